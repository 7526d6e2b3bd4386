"""The adjustment (a, c) between normalization and parameters, and its gradient, in plain nodes.

    z = x̂, or x̂·r + d with renorm      t = a·z + c      Y = scale·t + B
    dB = Σ dY   dscale = Σ dY·t   u = dY·scale   da = Σ u·z   dc = Σ u   dz = u·a

da and dc are summed over the axes along which a and c were broadcast. For 16-bit data all of it is in float32, as in
tf_keras. Where the mode at run time turns out to be inference, a = 1 and c = 0, and both gradients are 0.
"""

import numpy as np
import onnx_ir as ir

from bnpass.errors import UsageError
from bnpass.layers.axes import ChannelAxis
from bnpass.layers.values import Adjusted, Gradients, LayerInputs
from bnpass.layers.vectors import f64, number
from bnpass.ops.calls import DOUBLE, TYPES, typed
from bnpass.ops.emit import Emit
from bnpass.semantics.resolved import Resolved


def apply(
    op: Emit, layer: Resolved, way: ChannelAxis, inputs: LayerInputs, z: ir.Value, training: ir.Value | None
) -> tuple[ir.Value, Adjusted]:
    """Write Y from the normalized values.

    Args:
        op: Where it is written.
        layer: The layer.
        way: Its channel axes.
        inputs: Holds scale, B, a and c.
        z: The normalized values, of X's shape, float32 or double.
        training: The mode, where only run time knows it.

    Raises:
        UsageError: a or c is missing among the inputs.
    """
    dtype = TYPES[layer.parameter_dtype]
    a, c = (op.cast(value, dtype) for value in _pair(inputs))
    if training is not None:
        a = typed(op("Where", training, a, op.floats(1.0, dtype.numpy()), name="a"), dtype)
        c = typed(op("Where", training, c, op.floats(0.0, dtype.numpy()), name="c"), dtype)
    t = typed(op("Add", op("Mul", z, a), c, name="adjusted"), dtype, z.shape)
    Y = t
    if inputs.scale is not None:
        Y = typed(op("Mul", Y, way.along_all(op, inputs.scale), name="scaled"), dtype, z.shape)
    if inputs.B is not None:
        Y = typed(op("Add", Y, way.along_all(op, inputs.B), name="shifted"), dtype, z.shape)
    Y = typed(op.cast(Y, TYPES[layer.dtype], name="Y"), None, z.shape)
    return Y, Adjusted(z, t, a, training)


def gradient(
    op: Emit, way: ChannelAxis, inputs: LayerInputs, adjusted: Adjusted, dY: ir.Value
) -> tuple[ir.Value, Gradients]:
    """Write dz, in the type of z, and the gradients that an adjustment changes; their dX is dz, too.

    Args:
        op: Where it is written.
        way: The channel axes.
        inputs: Holds scale, a and c.
        adjusted: What the forward pass left.
        dY: Of X's shape.

    Raises:
        UsageError: a or c is missing among the inputs.
    """
    dtype, rank = adjusted.after.dtype or DOUBLE, len(way.outer)
    pair = _pair(inputs)
    dY = op.cast(dY, dtype)
    dB = None if inputs.B is None else _per_channel(op, way, dY)
    dscale, u = None, dY
    if inputs.scale is not None:
        dscale = _per_channel(op, way, typed(op("Mul", dY, adjusted.after), dtype))
        u = typed(op("Mul", dY, way.along_all(op, inputs.scale), name="u"), dtype)
    da, dc = _as_broadcast(op, op("Mul", u, adjusted.before), pair[0], rank), _as_broadcast(op, u, pair[1], rank)
    if adjusted.training is not None:
        da, dc = (op("Where", adjusted.training, part, number(op, 0.0)) for part in (da, dc))
    dz = typed(op("Mul", u, adjusted.a, name="dz"), dtype, adjusted.before.shape)
    of_pair = zip((da, dc), pair, strict=True)
    parts = [typed(op.cast(part, like.dtype or dtype), None, like.shape) for part, like in of_pair]
    return dz, Gradients(dz, dscale, dB, *parts)


def _pair(inputs: LayerInputs) -> tuple[ir.Value, ir.Value]:
    if inputs.adjust_scale is None or inputs.adjust_bias is None:
        raise UsageError("a layer with an adjustment reads adjust_scale and adjust_bias in training")
    return inputs.adjust_scale, inputs.adjust_bias


def _per_channel(op: Emit, way: ChannelAxis, x: ir.Value) -> ir.Value:
    """Write Σ x in double over all axes of X but those of the channels: [C]."""
    others = [i for i in range(len(way.outer)) if i not in way.axes]
    total = f64(op, "Identity", x) if not others else op("ReduceSum", op.cast(x, DOUBLE), op.ints(*others), keepdims=0)
    return typed(op("Reshape", total, op.ints(way.channels), name="per_channel"), DOUBLE, ir.Shape([way.channels]))


def _as_broadcast(op: Emit, x: ir.Value, operand: ir.Value, rank: int) -> ir.Value:
    """Write the sum of x, in double, over the axes along which an operand was broadcast; of the operand's shape."""
    own = op("Shape", operand)
    missing = op("Sub", op.ints(rank), op("Shape", own))
    lengths = op("Concat", op("ConstantOfShape", missing, value=ir.tensor(np.array([1]))), own, axis=0)
    axes = op("Reshape", op("NonZero", op("Equal", lengths, op.ints(1))), op.ints(-1), name="axes")
    total = op("ReduceSum", op.cast(x, DOUBLE), axes, keepdims=1, noop_with_empty_axes=1)
    return typed(op("Reshape", total, own, name="as_broadcast", allowzero=1), DOUBLE)
