"""Types and shapes of what the operators return, from those of what they are given.

A node that the operators' text does not allow is refused here, in ``onnx.shape_inference`` and ``onnx.checker``, with
one sentence. What is not known, be it a type, a length or an attribute given by reference, is not judged.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx
from onnx.shape_inference import InferenceContext, InferenceError

from bnpass.ops import GROUP_NAME

Dim: TypeAlias = int | str | None
Dims: TypeAlias = tuple[Dim, ...]

DOUBLE, INT64 = onnx.TensorProto.DOUBLE, onnx.TensorProto.INT64
REDUCTIONS = ("sum", "mean", "max", "min")


class _Node:
    """What is known of one node."""

    def __init__(self, context: InferenceContext) -> None:
        self._context = context

    def integer(self, name: str, default: int) -> int | None:
        """Return an attribute; None if it is a reference."""
        found = self._attribute(name)
        return default if found is None else None if found.ref_attr_name else found.i

    def text(self, name: str, default: str) -> str | None:
        """Return an attribute; None if it is a reference."""
        found = self._attribute(name)
        return default if found is None else None if found.ref_attr_name else found.s.decode("utf-8", "replace")

    def element(self, index: int) -> int | None:
        """Return the element type of an input, if known."""
        tensor = self._tensor(index)
        return None if tensor is None else tensor.elem_type or None

    def dims(self, index: int) -> Dims | None:
        """Return the dimensions of an input; None if not even its rank is known."""
        tensor = self._tensor(index)
        if tensor is None or not tensor.HasField("shape"):
            return None
        return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim)

    def wants(self, index: int) -> bool:
        """Whether an output is written on the node."""
        return index < self._context.get_num_outputs() and self._context.has_output(index)

    def returns(self, index: int, element: int | None, dims: Dims | None) -> None:
        """Say what an output is, as far as known."""
        if element is None or not self.wants(index):
            return
        result = onnx.TypeProto()
        result.tensor_type.elem_type = element
        if dims is not None:
            result.tensor_type.shape.SetInParent()
        for dim in dims or ():
            field = result.tensor_type.shape.dim.add()
            if isinstance(dim, int):
                field.dim_value = dim
            elif dim:
                field.dim_param = dim
        self._context.set_output_type(index, result)

    def _attribute(self, name: str) -> onnx.AttributeProto | None:
        return self._context.get_attribute(name)

    def _tensor(self, index: int) -> onnx.TypeProto.Tensor | None:
        if index >= self._context.get_num_inputs() or not self._context.has_input(index):
            return None
        found = self._context.get_input_type(index)
        return found.tensor_type if found is not None and found.HasField("tensor_type") else None


@dataclass(frozen=True)
class _Channels:
    """How a value is taken apart.

    Attributes:
        length: C.
        statistics: The shape of statistics, [C] or [G, C]; None if not even its rank is known.
    """

    length: Dim
    statistics: Dims | None


def all_reduce(context: InferenceContext) -> None:
    """Y is as X."""
    node = _Node(context)
    _check_group(node)
    reduction = node.text("reduction", "sum")
    if reduction is not None and reduction not in REDUCTIONS:
        raise InferenceError(f"reduction is '{reduction}', not one of {', '.join(REDUCTIONS)}")
    if reduction == "mean" and node.element(0) == INT64:
        raise InferenceError("the mean of int64 is not defined")
    node.returns(0, node.element(0), node.dims(0))


def moments(context: InferenceContext) -> None:
    """Mean and var are statistics, count is a scalar."""
    node = _Node(context)
    channels = _channels(node, 0)
    for index in (0, 1):
        node.returns(index, DOUBLE, channels.statistics)
    node.returns(2, DOUBLE, ())


def normalization(context: InferenceContext) -> None:
    """Y is as X, the running statistics are as the input ones, what is saved is double."""
    node = _Node(context)
    channels = _channels(node, 0)
    training = node.integer("training_mode", 0)
    _check_flag(training, "training_mode")
    _check_flag(node.integer("running_var_correction", 0), "running_var_correction")
    if training == 0 and (node.wants(1) or node.wants(2)):
        raise InferenceError("running_mean and running_var are outputs of training mode alone")
    _check_parameters(node, channels, (1, 2), ("scale", "B"))
    _check_double(node, 0, (1, 2, 3, 4), ("scale", "B", "input_mean", "input_var"))
    for index, name in ((3, "input_mean"), (4, "input_var")):
        shapes = [(channels.length,)] if training == 1 else [(channels.length,), channels.statistics]
        _check_shape(node.dims(index), shapes, name)
    node.returns(0, node.element(0), node.dims(0))
    node.returns(1, node.element(3), (channels.length,))
    node.returns(2, node.element(4), (channels.length,))
    for index in (3, 4):
        node.returns(index, DOUBLE, channels.statistics)
    node.returns(5, DOUBLE, ())


def gradient(context: InferenceContext) -> None:
    """Return that dX is as X, and that dscale and dB are as scale."""
    node = _Node(context)
    channels = _channels(node, 1)
    _check_parameters(node, channels, (2,), ("scale",))
    _check_double(node, 1, (2,), ("scale",))
    _check_shape(node.dims(0), [node.dims(1)], "dY")
    for index, name in ((3, "saved_mean"), (4, "saved_inv_std")):
        _check_shape(node.dims(index), [channels.statistics], name)
    _check_shape(node.dims(5), [()], "count")
    node.returns(0, node.element(1), node.dims(1))
    for index in (1, 2):
        node.returns(index, node.element(2), (channels.length,))


RESULT_TYPES: dict[str, Callable[[InferenceContext], None]] = {
    "AllReduce": all_reduce,
    "SyncBatchMoments": moments,
    "SyncBatchNormalization": normalization,
    "SyncBatchNormalizationGrad": gradient,
}
"""What ONNX's shape inference calls, by op name."""


def _channels(node: _Node, index: int) -> _Channels:
    """Read axis, virtual_batch_size and group of a node whose X is input ``index``."""
    _check_group(node)
    ghost, axis, dims = node.integer("virtual_batch_size", 0), node.integer("axis", -1), node.dims(index)
    if ghost is not None and ghost < 0:
        raise InferenceError(f"virtual_batch_size is {ghost}, less than 0")
    length: Dim = None
    groups: Dim = None
    if axis is not None and dims is not None:
        if not -len(dims) <= axis < len(dims):
            raise InferenceError(f"axis is {axis}, but X has rank {len(dims)}")
        length = dims[axis]
        if ghost:
            groups = _groups(dims[0], ghost, of_channels=axis % len(dims) == 0)
    return _Channels(length, None if ghost is None else (groups, length) if ghost else (length,))


def _groups(batch: Dim, ghost: int, *, of_channels: bool) -> int | None:
    """Return the number of ghost batches, if known."""
    if of_channels:
        raise InferenceError("virtual_batch_size needs a batch axis, but axis 0 holds the channels")
    if not isinstance(batch, int):
        return None
    if batch % ghost:
        raise InferenceError(f"virtual_batch_size {ghost} does not divide the batch {batch}")
    return batch // ghost


def _check_group(node: _Node) -> None:
    group = node.text("group", "")
    if group and not GROUP_NAME.fullmatch(group):
        raise InferenceError(f"group '{group}' is not made of 1 to 64 letters, digits, '_', '.' and '-'")


def _check_flag(value: int | None, name: str) -> None:
    if value not in (None, 0, 1):
        raise InferenceError(f"{name} is {value}, not 0 or 1")


def _check_parameters(node: _Node, channels: _Channels, indices: Sequence[int], names: Sequence[str]) -> None:
    for index, name in zip(indices, names, strict=True):
        _check_shape(node.dims(index), [(channels.length,)], name)


def _check_double(node: _Node, data: int, indices: Sequence[int], names: Sequence[str]) -> None:
    for index, name in zip(indices, names, strict=True):
        if node.element(data) == DOUBLE and node.element(index) not in (None, DOUBLE):
            raise InferenceError(f"{name} must be double, as X is")


def _check_shape(dims: Dims | None, allowed: Sequence[Dims | None], name: str) -> None:
    if dims is None or any(shape is None or _agree(dims, shape) for shape in allowed):
        return
    wanted = " or ".join(_written(shape) for shape in dict.fromkeys(allowed) if shape is not None)
    raise InferenceError(f"{name} has shape {_written(dims)}, not {wanted}")


def _agree(one: Dims, other: Dims) -> bool:
    """Whether two shapes may be the same: only known lengths can contradict each other."""
    return len(one) == len(other) and all(
        a == b or not isinstance(a, int) or not isinstance(b, int) for a, b in zip(one, other, strict=True)
    )


def _written(dims: Dims) -> str:
    return f"[{', '.join('?' if d is None else str(d) for d in dims)}]"
