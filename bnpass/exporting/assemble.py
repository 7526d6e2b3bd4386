"""A marker becomes batch normalization: the operator of ONNX where it can say it, else a layer of ours.

inference, one channel axis      BatchNormalization on axis 1, in float32 or float64
everything else                  ``layers.emit_layer``: our operators, with their bodies
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from bnpass.exporting.capture.calls import Call, Calls, DropoutCall, NormCall
from bnpass.exporting.converter import MARKER, TOKEN, channels_last
from bnpass.exporting.errors import ExportError
from bnpass.exporting.random_ops import dropout_seed
from bnpass.layers.layer import emit_layer, values_of
from bnpass.layers.values import LayerInputs
from bnpass.layers.vectors import constant_vector
from bnpass.ops.calls import TYPES, typed
from bnpass.ops.emit import Emit
from bnpass.semantics.resolved import Resolved

_OP = "BatchNormalization"


@dataclass(frozen=True)
class Assembled:
    """What became of the markers.

    Attributes:
        layers: By name of the layer, how often it stands in the graph: once for each call.
        unused: Calls that no output depends on; they are not in the graph.
    """

    layers: Mapping[str, int]
    unused: tuple[str, ...]

    @property
    def norms(self) -> int:
        """Nodes of batch normalization that were written."""
        return sum(self.layers.values())


def assemble(model: ir.Model, calls: Calls, *, group: str, seed: int) -> Assembled:
    """Replace every marker of a model.

    Args:
        model: Changed in place.
        calls: What the markers stand for.
        group: The replicas that synchronized layers share statistics with.
        seed: Where layers that drop have none of their own.

    Raises:
        ExportError: A marker is unknown.
    """
    names, seen = Counter[str](), set[int]()
    for node in [node for node in model.graph.all_nodes() if node.op_type == MARKER]:
        call = _call_of(node, calls)
        seen.add(id(call))  # records of a shared layer are equal
        path = call.layer_name
        number = names[path]
        names[path] += 1
        op = Emit(path if number == 0 else f"{path}_{number}")
        _replace(node, op, call, group, dropout_seed(seed, len(seen)))
    norms = [record for record in calls.records if isinstance(record, NormCall)]
    unused = [record.layer_name for record in norms if id(record) not in seen]
    return Assembled({record.layer_name: names[record.layer_name] for record in norms}, tuple(unused))


def _call_of(node: ir.Node, calls: Calls) -> Call:
    call = calls.of(node.attributes[TOKEN].as_string())
    if call is None:
        raise ExportError(f"'{node.name}' stands for no call of a layer")
    return call


def _replace(node: ir.Node, op: Emit, call: Call, group: str, seed: int) -> None:
    """Write what a marker stands for in its place."""
    given = [value for value in node.inputs if value is not None]
    if isinstance(call, DropoutCall):
        outputs = [_dropout(op, call, given[0], seed)]
    else:
        layer = _turned(call.layer) if channels_last(call) else call.layer
        inputs = dict(zip(call.inputs, given, strict=True))
        typed(inputs["X"], TYPES[layer.dtype], inputs["X"].shape)
        values = _standard(op, layer, inputs) if _is_standard(layer, call) else _layer(op, layer, call, inputs, group)
        outputs = [values[name] for name in call.outputs]
    graph = node.graph
    assert graph is not None  # noqa: S101  it was found in one
    graph.insert_before(node, op.nodes)
    ir.convenience.replace_all_uses_with(node.outputs, outputs, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _turned(layer: Resolved) -> Resolved:
    """Return a layer for its input with the channels first."""
    shape = layer.input_shape
    return replace(layer, axes=(1,), input_shape=(shape[0], shape[-1], *shape[1:-1]))


def _is_standard(layer: Resolved, call: NormCall) -> bool:
    """Whether BatchNormalization says it: inference, one channel axis that is 1 or can be made so."""
    return not layer.uses_batch_statistics(call.training is not False) and layer.axes == (1,)


def _standard(op: Emit, layer: Resolved, inputs: Mapping[str, ir.Value]) -> dict[str, ir.Value]:
    """Write a BatchNormalization; 16 bits are normalized in float32, as in Keras."""
    dtype, C = TYPES[layer.parameter_dtype], layer.channels
    scale = inputs.get("scale") or constant_vector(op, 1.0, C, dtype)
    B = inputs.get("B") or constant_vector(op, 0.0, C, dtype)
    X = op.cast(inputs["X"], dtype)
    Y = op(_OP, X, scale, B, inputs["input_mean"], inputs["input_var"], name="Y", epsilon=float(layer.epsilon))
    typed(Y, dtype, inputs["X"].shape)
    return {"Y": typed(op.cast(Y, TYPES[layer.dtype]), TYPES[layer.dtype], inputs["X"].shape)}


def _layer(
    op: Emit, layer: Resolved, call: NormCall, inputs: Mapping[str, ir.Value], group: str
) -> Mapping[str, ir.Value]:
    known = {name: value for name, value in inputs.items() if name != "training"}
    for name, value in known.items():
        if name not in ("X", "mask", "adjust_scale", "adjust_bias"):
            shape = ir.Shape([] if name in ("rmin", "rmax", "dmax") else [layer.channels])
            typed(value, TYPES[layer.parameter_dtype], shape)
    training = inputs["training"] if call.training is None else call.training
    found = values_of(emit_layer(op, layer, LayerInputs(**known), training=training, group=group))
    return {name: found[name] for name in call.outputs}


def _dropout(op: Emit, call: DropoutCall, X: ir.Value, seed: int) -> ir.Value:
    ratio = op.floats(call.rate, np.float32)
    training = op("Constant", name="training", value=ir.tensor(np.array(True)))
    dtype = TYPES[call.dtype]
    wide = dtype if dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT
    typed(X, dtype)
    seed = seed if call.seed is None else dropout_seed(call.seed, 0)  # masks of seeds 1 and 3 would be alike
    dropped, mask = op.many("Dropout", [op.cast(X, wide), ratio, training], ["dropped", "mask"], seed=seed)
    # the mask is read as well: ONNX Runtime removes a Dropout of which one output is used, in training mode too
    Y = op("Where", mask, dropped, op.floats(0.0, wide.numpy()), name="Y")
    return typed(op.cast(typed(Y, wide, X.shape), dtype), dtype, X.shape)
