"""A model whose batch statistics are off by what a framework loses when it adds up in its own type.

Our operators add up in double. A framework that adds n numbers of float32 one after the other is off by √n roundings,
as a random walk is; four times that covers every channel. The error of a mean is one of Y, too:
δY = scale·δmean/√(var + epsilon). A copy with such errors shows what they are worth at every output.
"""

import functools
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bnpass.ops import DOMAIN
from bnpass.ops.emit import Emit

_UNIT = {ir.DataType.DOUBLE: 2.0**-53}
"""Half a unit in the last place of 1; that of float32 for all narrower types, which are added up in float32."""
_UNIT_FLOAT = 2.0**-24
_DEVIATIONS = 4.0
_ATTRIBUTE = 2.0**-25
"""How far momentum, an attribute of float32 just below 1, is from the number that the framework has."""
_REDUCE_AXES_INPUT = 18
"""The first opset whose ReduceMax has its axes as an input."""
_DOUBLE = ir.DataType.DOUBLE

Replaced = dict[ir.Value, ir.Value]


def with_rounded_statistics(model: ir.Model, seed: int) -> ir.Model | None:
    """Return a copy with errors in the statistics of every batch; None if none are taken.

    Args:
        model: The model; it is not changed.
        seed: Of the signs.
    """
    copy, rng = model.clone(), np.random.default_rng(seed)
    nodes = list(ir.traversal.RecursiveGraphIterator(copy.graph))
    sites = [site for number, node in enumerate(nodes) if (site := _site(node, number, rng)) is not None]
    for site in sites:
        _insert(site, _moments(site) if site.node.op_type == "SyncBatchMoments" else _normalization(site))
    return copy if sites else None


@dataclass(frozen=True)
class _Site:
    """A node that takes the statistics of a batch.

    Attributes:
        node: The node.
        graph: The graph that it is in.
        op: Where the error is written.
        dtype: Of X.
        behind: Axes of X behind the channels.
        unit: Half a unit in the last place of 1 in that type, of random sign.
    """

    node: ir.Node
    graph: ir.Graph
    op: Emit
    dtype: ir.DataType
    behind: int
    unit: float

    @functools.cached_property
    def error(self) -> ir.Value:
        """The relative error of a sum."""
        return self.op("Mul", self.op("Sqrt", self.node.outputs[-1]), self.op.floats(_DEVIATIONS * self.unit))


def _site(node: ir.Node, number: int, rng: np.random.Generator) -> _Site | None:
    """Return a node that takes the statistics of a batch of known type and rank; None for any other."""
    mode, graph = node.attributes.get("training_mode"), node.graph
    trains = node.op_type == "SyncBatchNormalization" and mode is not None and mode.as_int() == 1
    if node.domain != DOMAIN or not (trains or node.op_type == "SyncBatchMoments"):
        return None
    X = node.inputs[0]
    if X is None or X.dtype is None or X.shape is None or not isinstance(graph, ir.Graph):
        return None
    rank = len(X.shape)
    unit = _UNIT.get(X.dtype, _UNIT_FLOAT) * rng.choice((-1.0, 1.0))
    behind = rank - 1 - node.attributes["axis"].as_int() % rank
    return _Site(node, graph, Emit(f"bnpass_rounding_{number}"), X.dtype, behind, unit)


def _moments(site: _Site) -> Replaced:
    """Return mean and variance with an error each."""
    op = site.op
    factor = op("Add", op.floats(1.0), site.error)
    return {value: op("Mul", value, factor) for value in site.node.outputs[:2]}


def _normalization(site: _Site) -> Replaced:
    """Return Y and the running statistics as they are with errors in mean and variance."""
    op, node = site.op, site.node
    Y, running_mean, running_var, saved_mean, saved_inv_std, _ = node.outputs
    _, scale, _, input_mean, input_var = node.inputs[:5]
    shift = op("Mul", op("Mul", saved_mean, saved_inv_std), site.error)
    if node.attributes["virtual_batch_size"].as_int():
        shift = _largest(site, shift)
    shift = op("Mul", shift, op("Cast", scale, to=int(_DOUBLE)))
    if site.behind:
        shift = op("Unsqueeze", shift, op.ints(*range(1, site.behind + 1)))
    rounded = op("Mul", op("Cast", Y, to=int(_DOUBLE)), op.floats(1.0 + abs(site.unit)))
    replaced = {Y: op("Cast", op("Add", rounded, shift), to=int(site.dtype))}
    for new, old in ((running_mean, input_mean), (running_var, input_var)):
        if new.name and old is not None and old.dtype is not None:
            replaced[new] = _running(site, new, old, old.dtype)
    return replaced


def _running(site: _Site, new: ir.Value, old: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Return a running statistic with errors in the step, new − momentum·old."""
    op, keep = site.op, site.node.attributes["momentum"].as_float()
    after = op("Cast", new, to=int(_DOUBLE))
    step = op("Sub", after, op("Mul", op("Cast", old, to=int(_DOUBLE)), op.floats(keep)))
    off = op("Mul", step, op("Add", site.error, op.floats(_ATTRIBUTE / (1 - keep) if keep < 1 else 0.0)))
    return op("Cast", op("Add", after, off), to=int(dtype))


def _largest(site: _Site, shift: ir.Value) -> ir.Value:
    """Return the largest of the ghost batches, which lie along axis 0."""
    op = site.op
    if site.graph.opset_imports.get("", _REDUCE_AXES_INPUT) >= _REDUCE_AXES_INPUT:
        return op("ReduceMax", op("Abs", shift), op.ints(0), keepdims=0)
    return op("ReduceMax", op("Abs", shift), axes=[0], keepdims=0)


def _insert(site: _Site, replaced: Replaced) -> None:
    """Put the error behind its node and let what reads the node read it."""
    ours = set(site.op.nodes)
    for old, new in replaced.items():
        new.shape, new.type = old.shape, old.type
        for user, index in list(old.uses()):
            if user not in ours:
                user.replace_input_with(index, new)
        for index, output in enumerate(site.graph.outputs):
            if output is old:
                old.name, new.name = f"{old.name}/exact", old.name
                site.graph.outputs[index] = new
    site.graph.insert_after(site.node, site.op.nodes)
