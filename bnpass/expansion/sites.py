"""What there is to expand: one record for each node, whatever its spelling."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import onnx_ir as ir

from bnpass.errors import RefusalId
from bnpass.expansion.attributes import Attributes, bad_attribute, refused
from bnpass.expansion.facts import Facts
from bnpass.expansion.options import ExpandOptions
from bnpass.expansion.result import Expanded
from bnpass.graph.batch_norm import in_training
from bnpass.graph.nodes import described, label, operand
from bnpass.ops import DOMAIN
from bnpass.semantics.regroup import Dim

DOUBLE = ir.DataType.DOUBLE
FLOATS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, DOUBLE)

_BATCH_NORM = ("X", "scale", "B", "input_mean", "input_var")
_INPUTS: Mapping[str, Sequence[str]] = {
    "BatchNormalization": _BATCH_NORM,
    "SyncBatchNormalization": (*_BATCH_NORM, "after"),
    "SyncBatchNormalizationGrad": ("dY", "X", "scale", "saved_mean", "saved_inv_std", "count", "after"),
    "SyncBatchMoments": ("X", "after"),
}
_OUTPUTS: Mapping[str, Sequence[str]] = {
    "BatchNormalization": ("Y", "running_mean", "running_var", "saved_mean", "saved_var"),
    "SyncBatchNormalization": ("Y", "running_mean", "running_var", "saved_mean", "saved_inv_std", "count"),
    "SyncBatchNormalizationGrad": ("dX", "dscale", "dB"),
    "SyncBatchMoments": ("mean", "var", "count"),
}
_TYPED_LIKE = {
    **dict.fromkeys(("Y", "dX"), "X"),
    **dict.fromkeys(("dscale", "dB"), "scale"),
    "running_mean": "input_mean",
    "running_var": "input_var",
}
"""Outputs that have the type of an input; all others of ours are double."""


class Kind(Enum):
    """What a site computes."""

    TRAINING = "training"
    INFERENCE = "inference"
    GRADIENT = "gradient"
    MOMENTS = "moments"


@dataclass(frozen=True, eq=False)
class Site:
    """A node that is to be expanded.

    Attributes:
        node: The node.
        label: How it is addressed.
        op_type: Its op, as it was found.
        kind: What it computes.
        dtype: Element type of X.
        dims: Dimensions of X: lengths where they are proved, else names or None.
        axis: The channel axis, not negative; it is the rank of X where X has an implied axis of one channel.
        channels: C.
        epsilon: Added to the variance.
        momentum: The fraction kept of the running statistics.
        correction: ddof of the running variance.
        group: The replicas that share statistics.
        virtual_batch_size: Samples in a ghost batch; 0 for none.
        results: The outputs that are read, by name, each with its type.
        unproved: Inputs whose shape is not proved to be what it has to be: that is left to the run. Of X it is C.
    """

    node: ir.Node
    label: str
    op_type: str
    kind: Kind
    dtype: ir.DataType
    dims: tuple[Dim, ...]
    axis: int
    channels: int
    epsilon: float
    momentum: float
    correction: int
    group: str
    virtual_batch_size: int
    results: Mapping[str, ir.DataType]
    unproved: frozenset[str]

    @property
    def ours(self) -> bool:
        """Whether it is one of our operators."""
        return self.op_type != "BatchNormalization"

    def input(self, name: str) -> ir.Value:
        """Return an input."""
        value = operand(self.node, _INPUTS[self.op_type].index(name))
        if value is None:
            raise ValueError(f"{self.label} has no {name}")
        return value

    def output(self, name: str) -> ir.Value:
        """Return an output."""
        return self.node.outputs[_OUTPUTS[self.op_type].index(name)]

    @property
    def elements(self) -> int | None:
        """Elements per channel and ghost batch on this replica, where the shape proves them."""
        lengths = [n for n in self.dims if isinstance(n, int)]
        if len(lengths) < len(self.dims):
            return None
        others = math.prod(n for i, n in enumerate(lengths) if i != self.axis)
        return others // self.groups if self.groups else others

    @property
    def groups(self) -> int | None:
        """The number of ghost batches, where the shape proves it."""
        if not self.virtual_batch_size:
            return 1
        return self.dims[0] // self.virtual_batch_size if isinstance(self.dims[0], int) else None

    def done(self, collectives: int) -> Expanded:
        """Return the record of the site once it is written out."""
        return Expanded(
            node=self.label,
            op_type=self.op_type,
            kind=self.kind.value,
            dtype=self.dtype.numpy().name,
            shape=self.dims,
            axis=self.axis,
            channels=self.channels,
            epsilon=self.epsilon,
            momentum=self.momentum,
            correction=self.correction,
            group=self.group,
            virtual_batch_size=self.virtual_batch_size,
            collectives=collectives,
        )


def is_site(node: ir.Node, opset: int) -> bool:
    """Whether a node is to be expanded: batch normalization in training mode, or one of our operators in any mode.

    A mode that is given by reference to an attribute of the function around it counts as training.
    """
    if node.domain == DOMAIN:
        return node.op_type in _INPUTS
    if node.domain != "" or node.op_type != "BatchNormalization":
        return False
    mode = node.attributes.get("training_mode" if opset >= 14 else "is_test")
    if mode is not None and (mode.is_ref() or mode.type != ir.AttributeType.INT):
        return True
    return in_training(node, opset)


def recognize(node: ir.Node, opset: int, facts: Facts, options: ExpandOptions) -> Site:
    """Read a node for which ``is_site`` holds.

    Raises:
        RefusedError: BN202, BN203, BN205, BN206, BN208: it cannot be expanded exactly.
    """
    attributes = Attributes(node, opset)
    kind = _kind(node, attributes)
    ours = node.domain == DOMAIN
    dtype = _dtype_of_data(node, facts)
    dims, axis, channels = _channels(node, facts, attributes.integer("axis") if ours else None)
    site = Site(
        node=node,
        label=label(node),
        op_type=node.op_type,
        kind=kind,
        dtype=dtype,
        dims=dims,
        axis=axis,
        channels=channels,
        epsilon=attributes.number("epsilon"),
        momentum=attributes.number("momentum"),
        correction=attributes.integer("running_var_correction", 0, 1) if ours else options.correction,
        group=attributes.group() if ours else options.group,
        virtual_batch_size=attributes.integer("virtual_batch_size"),
        results=_results(node, facts, dtype),
        unproved=frozenset(_unproved(node, facts, dims, axis)),
    )
    _check_numbers(site)
    _check_outputs(site, opset)
    _check_parameters(site, facts)
    return site


def _kind(node: ir.Node, attributes: Attributes) -> Kind:
    """Return what a node computes; its mode, its inputs and outputs are checked on the way."""
    required = [name for name in _INPUTS[node.op_type] if name != "after"]
    for name in required:
        if _input(node, name) is None:
            raise bad_attribute(node, f"{described(node)} has no {name}")
    if len(node.inputs) > len(_INPUTS[node.op_type]) or len(node.outputs) > len(_OUTPUTS[node.op_type]):
        raise bad_attribute(node, f"{described(node)} has more inputs or outputs than its op")
    if not any(map(_is_read, node.outputs)):
        raise bad_attribute(node, f"{described(node)} is dead: none of its outputs is read")
    if attributes.integer("spatial", 0, 1) == 0 and "spatial" in node.attributes:
        raise bad_attribute(node, "spatial is 0: each position has statistics of its own")
    if node.op_type == "SyncBatchNormalizationGrad":
        return Kind.GRADIENT
    if node.op_type == "SyncBatchMoments":
        return Kind.MOMENTS
    attributes.integer("is_test", 0, 1)
    if node.op_type == "BatchNormalization":
        return Kind.TRAINING
    return Kind.TRAINING if attributes.integer("training_mode", 0, 1) else Kind.INFERENCE


def _input(node: ir.Node, name: str) -> ir.Value | None:
    return operand(node, _INPUTS[node.op_type].index(name))


def _is_read(value: ir.Value) -> bool:
    return bool(value.name) and (bool(value.uses()) or value.is_graph_output())


def _dtype_of_data(node: ir.Node, facts: Facts) -> ir.DataType:
    data = _input(node, "X")
    dtype = facts.dtype(data) if data is not None else None
    if dtype is None:
        raise refused(RefusalId.UNKNOWN_SHAPE, node, "the type of X is not known: run shape inference")
    if dtype not in FLOATS:
        raise refused(RefusalId.STATISTICS_TYPE, node, f"X is of type {dtype.name.lower()}")
    return dtype


def _channels(node: ir.Node, facts: Facts, axis: int | None) -> tuple[tuple[Dim, ...], int, int]:
    """Return the dimensions of X, the channel axis and C; ``axis`` None stands for that of BatchNormalization."""
    data = _input(node, "X")
    dims, declared = (None, None) if data is None else (facts.proved(data), facts.declared(data))
    known = dims if dims is not None else declared
    if known is None:
        raise refused(RefusalId.UNKNOWN_SHAPE, node, "the rank of X is not known: declare its shape")
    rank = len(known)
    place = 1 if axis is None else axis
    if rank == 0 or (axis is not None and not -rank <= axis < rank):
        raise bad_attribute(node, f"axis is {place}, but X has rank {rank}")
    place = place % rank if axis is not None else place
    dims = dims if dims is not None else (None,) * rank
    found = {1} if place == rank else {n for n in (dims[place], (declared or dims)[place]) if isinstance(n, int)}
    found |= {shape[-1] for shape in _vectors(node, facts).values() if shape and isinstance(shape[-1], int)}
    if not found:
        raise refused(RefusalId.UNKNOWN_SHAPE, node, "the number of channels is not known: declare the shape of X")
    if len(found) > 1:
        counts = " and ".join(map(str, sorted(found)))
        raise refused(RefusalId.STATISTICS_TYPE, node, f"X, scale, B and the statistics count {counts} channels")
    return dims, place, found.pop()


def _vectors(node: ir.Node, facts: Facts) -> dict[str, tuple[Dim, ...]]:
    """Return the shapes, as far as they are known, of inputs that have one number per channel."""
    names = [n for n in _INPUTS[node.op_type] if n not in ("X", "dY", "count", "after")]
    shapes = {name: facts.proved(value) for name in names if (value := _input(node, name)) is not None}
    return {name: shape for name, shape in shapes.items() if shape is not None}


def _unproved(node: ir.Node, facts: Facts, dims: tuple[Dim, ...], axis: int) -> Iterator[str]:
    """Yield the inputs whose shape is not known, number by number."""
    if axis < len(dims) and not isinstance(dims[axis], int):
        yield "X"
    for name in _INPUTS[node.op_type]:
        value = _input(node, name) if name not in ("X", "after") else None
        shape = facts.proved(value) if value is not None else None
        if value is not None and (shape is None or not all(isinstance(n, int) for n in shape)):
            yield name


def _results(node: ir.Node, facts: Facts, dtype: ir.DataType) -> dict[str, ir.DataType]:
    """Return the outputs that are read, with their types."""
    found = {}
    for name, value in zip(_OUTPUTS[node.op_type], node.outputs, strict=False):
        if not _is_read(value):
            continue
        like = _TYPED_LIKE.get(name)
        source = _input(node, like) if like is not None else None
        kind = facts.dtype(source) if source is not None else DOUBLE if node.domain == DOMAIN else dtype
        if kind is None:
            raise refused(RefusalId.STATISTICS_TYPE, node, f"the type of {like} is not known, so neither is {name}'s")
        found[name] = kind
    return found


def _check_numbers(site: Site) -> None:
    node, size = site.node, site.virtual_batch_size
    if site.epsilon < 0:
        raise bad_attribute(node, f"epsilon is {site.epsilon}, less than 0")
    if size < 0:
        raise bad_attribute(node, f"virtual_batch_size is {size}, less than 0")
    if size and site.axis == 0:
        raise bad_attribute(node, "virtual_batch_size needs a batch axis, but axis 0 holds the channels")
    if size and isinstance(site.dims[0], int) and site.dims[0] % size:
        raise bad_attribute(node, f"virtual_batch_size {size} does not divide the batch {site.dims[0]}")


def _check_outputs(site: Site, opset: int) -> None:
    if not site.ours and opset >= 14 and {"saved_mean", "saved_var"} & site.results.keys():
        raise bad_attribute(site.node, f"{described(site.node)} has more than three outputs")
    if "saved_var" in site.results:
        raise refused(
            RefusalId.SAVED_STATISTICS,
            site.node,
            "its fifth output is read: whether that is a variance or an inverse standard deviation is defined nowhere",
        )
    if site.kind is Kind.INFERENCE and {"running_mean", "running_var"} & site.results.keys():
        raise bad_attribute(site.node, "running_mean and running_var are outputs of training mode alone")


def _check_parameters(site: Site, facts: Facts) -> None:
    """Refuse vectors of another shape, and types that our operators do not take."""
    _check_upstream(site, facts)
    for name, shape in _vectors(site.node, facts).items():
        ghost = site.virtual_batch_size and site.kind is not Kind.TRAINING and name not in ("scale", "B")
        if len(shape) != 1 and not (ghost and len(shape) == 2):
            reason = f"{name} has rank {len(shape)}"
            raise refused(RefusalId.STATISTICS_TYPE, site.node, reason)
    doubles = ("saved_mean", "saved_inv_std", "count")
    for name in _INPUTS[site.op_type]:
        value = _input(site.node, name) if name not in ("X", "after") else None
        dtype = facts.dtype(value) if value is not None else None
        if dtype is None:
            continue
        allowed: Sequence[ir.DataType] = FLOATS
        if site.ours and name == "dY":
            allowed = (site.dtype,)
        elif site.ours:
            allowed = (DOUBLE,) if name in doubles or site.dtype == DOUBLE else (ir.DataType.FLOAT, DOUBLE)
        if dtype not in allowed:
            raise refused(RefusalId.STATISTICS_TYPE, site.node, f"{name} is of type {dtype.name.lower()}")


def _check_upstream(site: Site, facts: Facts) -> None:
    """Refuse a gradient of another shape than X."""
    value = _input(site.node, "dY") if site.kind is Kind.GRADIENT else None
    dims = facts.proved(value) if value is not None else None
    if dims is None:
        return
    pairs = [(a, b) for a, b in zip(dims, site.dims, strict=False) if isinstance(a, int) and isinstance(b, int)]
    if len(dims) != len(site.dims) or any(a != b for a, b in pairs):
        raise refused(RefusalId.STATISTICS_TYPE, site.node, "dY has another shape than X")
