"""A model whose batch statistics are off by what a framework loses when it adds up in its own type.

Our operators add up in double. A framework that adds n numbers of float32 one after the other is off by √n roundings,
as a random walk is; four times that covers every channel. The error of a mean is one of Y, too:
δY = scale·δmean/√(var + epsilon). A copy with such errors shows what they are worth at every output.
"""

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


def with_rounded_statistics(model: ir.Model, seed: int) -> ir.Model | None:
    """Return a copy with errors in the statistics of every batch; None if none are taken.

    Args:
        model: The model; it is not changed.
        seed: Of the signs.
    """
    copy, rng = model.clone(), np.random.default_rng(seed)
    nodes = [node for node in ir.traversal.RecursiveGraphIterator(copy.graph) if node.domain == DOMAIN]
    taken = [node for node in nodes if node.op_type == "SyncBatchMoments" or _trains(node)]
    for number, node in enumerate(taken):
        op = Emit(f"bnpass_rounding_{number}")
        replaced = _normalization(op, node, rng) if _trains(node) else _moments(op, node, rng)
        _insert(node, op, replaced)
    return copy if taken else None


def _trains(node: ir.Node) -> bool:
    mode = node.attributes.get("training_mode")
    return node.op_type == "SyncBatchNormalization" and mode is not None and mode.as_int() == 1


def _moments(op: Emit, node: ir.Node, rng: np.random.Generator) -> dict[ir.Value, ir.Value]:
    """Return mean and variance with an error each."""
    mean, var, count = node.outputs
    return {value: op("Mul", value, op("Add", op.floats(1.0), _error(op, node, count, rng))) for value in (mean, var)}


def _normalization(op: Emit, node: ir.Node, rng: np.random.Generator) -> dict[ir.Value, ir.Value]:
    """Return Y and the running statistics as they are with errors in mean and variance."""
    Y, running_mean, running_var, saved_mean, saved_inv_std, count = node.outputs
    X, scale, _, input_mean, input_var = node.inputs[:5]
    assert X is not None and X.dtype is not None and scale is not None  # noqa: PT018  as add_bodies wrote them
    keep = node.attributes["momentum"].as_float()
    error = _error(op, node, count, rng)
    shift = op("Mul", op("Mul", saved_mean, saved_inv_std), error)
    if node.attributes["virtual_batch_size"].as_int():
        shift = _largest(op, shift, node)
    shift = _beside(op, op("Mul", shift, op.cast(scale, _DOUBLE)), node, X)
    moved = op("Add", op("Mul", op("Cast", Y, to=int(_DOUBLE)), op("Add", op.floats(1.0), _small(op, X))), shift)
    replaced = {Y: op("Cast", moved, to=int(X.dtype))}
    for new, old in ((running_mean, input_mean), (running_var, input_var)):
        if new.name and old is not None and old.dtype is not None:
            step = op(
                "Sub", op("Cast", new, to=int(_DOUBLE)), op("Mul", op("Cast", old, to=int(_DOUBLE)), op.floats(keep))
            )
            off = op("Mul", step, op("Add", error, op.floats(_ATTRIBUTE / (1 - keep) if keep < 1 else 0.0)))
            replaced[new] = op("Cast", op("Add", op("Cast", new, to=int(_DOUBLE)), off), to=int(old.dtype))
    return replaced


def _error(op: Emit, node: ir.Node, count: ir.Value, rng: np.random.Generator) -> ir.Value:
    """Return the relative error of a sum of ``count`` numbers, of random sign."""
    X = node.inputs[0]
    unit = _UNIT.get(X.dtype, _UNIT_FLOAT) if X is not None and X.dtype is not None else _UNIT_FLOAT
    return op("Mul", op("Sqrt", count), op.floats(_DEVIATIONS * unit * rng.choice((-1.0, 1.0))))


def _largest(op: Emit, shift: ir.Value, node: ir.Node) -> ir.Value:
    """Return the largest of the ghost batches, which lie along axis 0."""
    graph = node.graph
    assert graph is not None
    axes_are_inputs = graph.opset_imports.get("", _REDUCE_AXES_INPUT) >= _REDUCE_AXES_INPUT
    if axes_are_inputs:
        return op("ReduceMax", op("Abs", shift), op.ints(0), keepdims=0)
    return op("ReduceMax", op("Abs", shift), axes=[0], keepdims=0)


def _small(op: Emit, X: ir.Value) -> ir.Value:
    assert X.dtype is not None
    return op.floats(_UNIT.get(X.dtype, _UNIT_FLOAT))


def _beside(op: Emit, vector: ir.Value, node: ir.Node, X: ir.Value) -> ir.Value:
    """Return a vector of the channels so that it broadcasts against X."""
    assert X.shape is not None
    axis = node.attributes["axis"].as_int() % len(X.shape)
    behind = len(X.shape) - axis - 1
    return op("Unsqueeze", vector, op.ints(*range(1, behind + 1))) if behind else vector


def _insert(node: ir.Node, op: Emit, replaced: dict[ir.Value, ir.Value]) -> None:
    """Put nodes behind another and let what read its outputs read theirs."""
    ours = set(op.nodes)
    for old, new in replaced.items():
        new.dtype, new.shape = old.dtype, old.shape
        for user, index in list(old.uses()):
            if user not in ours:
                user.replace_input_with(index, new)
        graph = node.graph
        assert graph is not None
        for index, output in enumerate(graph.outputs):
            if output is old:
                old.name, new.name = f"{old.name}/exact", old.name
                graph.outputs[index] = new
    assert node.graph is not None
    node.graph.insert_after(node, op.nodes)
