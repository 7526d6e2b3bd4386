"""Arithmetic in double, and the sums over all axes but that of the channels."""

import onnx_ir as ir

from bnpass.layers.axes import ChannelAxis
from bnpass.ops.calls import DOUBLE, typed
from bnpass.ops.emit import Emit


def number(op: Emit, value: float) -> ir.Value:
    """Write a scalar constant, a double."""
    return typed(op.floats(value), DOUBLE, ir.Shape([]))


def f64(op: Emit, op_type: str, *operands: ir.Value, name: str = "") -> ir.Value:
    """Write a node whose result is a double; operands of another known or unknown type are cast."""
    return typed(op(op_type, *(op.cast(value, DOUBLE) for value in operands), name=name), DOUBLE)


def per_channel(op: Emit, way: ChannelAxis, x: ir.Value, name: str) -> ir.Value:
    """Write Σ x in double over all axes but the channel axis: [C]."""
    x = op.cast(x, DOUBLE)
    if not way.others:  # ReduceSum would take no axes for all axes
        return x
    return typed(op("ReduceSum", x, op.ints(*way.others), name=name, keepdims=0), DOUBLE, ir.Shape([way.channels]))


def constant_vector(op: Emit, value: float, channels: int, dtype: ir.DataType) -> ir.Value:
    """Write the same number for every channel: [C]."""
    return typed(op.floats([value] * channels, dtype.numpy()), dtype, ir.Shape([channels]))
