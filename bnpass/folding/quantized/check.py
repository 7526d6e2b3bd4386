"""Local check of a quantized op: what its DequantizeLinear makes before against what it will make.

Weights are evaluated here from integers, scales and zero points as ONNX defines DequantizeLinear and QuantizeLinear,
with the axis that stands in the node; then as those of any linear op. Permitted is one rounding of every scale, and
half a unit of a bias that is stored as integers.
"""

import numpy as np
import onnx_ir as ir

from bnpass.folding.absorb import Absorption, bias_after, bias_before
from bnpass.folding.linear_check import LinearCheck
from bnpass.folding.quantized.result import NewBias, NewWeight
from bnpass.folding.quantized.stored import Stored
from bnpass.semantics.affine import BLOCK_ELEMENTS, Array


def check(absorption: Absorption, stored: Stored, new: NewWeight, bias: NewBias | Array | None) -> float:
    """Run the op before and after.

    Returns:
        The largest deviation in units of what is permitted.

    Raises:
        VerificationError: It is more than permitted, which is a bug in bnpass.
    """
    linear = absorption.linear
    shape, dtype = linear.weight.shape, linear.weight.dtype.numpy()
    before, after = _before(stored), _after(stored, new)
    run = LinearCheck(linear.node, linear.weight_index, shape, absorption.into, absorption.out, dtype)
    columns = shape[-1] if linear.node.op_type in ("Gemm", "MatMul") else int(np.prod(shape[1:]))
    old_rows, new_rows = before.reshape(-1, columns), after.reshape(-1, columns)
    step = max(1, BLOCK_ELEMENTS // columns)
    for start in range(0, len(old_rows), step):
        run.add(old_rows[start : start + step], new_rows[start : start + step])
    gain, factor = (linear.bias.gain, linear.bias.factor) if linear.bias else (1.0, 1.0)
    if not isinstance(bias, NewBias):
        return run.finish(bias_before(linear), bias_after(linear, bias), gain, factor)
    scale = bias.scale.astype(np.float64)
    return run.finish(bias_before(linear), bias.integers * scale, gain, factor, slack=scale / 2)


def _before(stored: Stored) -> Array:
    axis = stored.node.attributes.get_int("axis", 1)
    with stored.source.reading() as numbers:
        if stored.quantizer is None:
            return _dequantized(numbers.astype(np.float64), stored.scale, stored.zero, axis)
        at = stored.quantizer.attributes.get_int("axis", 1)
        q = _quantized(numbers.astype(np.float64), stored.scale, stored.zero, at, stored.kind)
    return _dequantized(q, stored.scale, stored.zero, axis)


def _after(stored: Stored, new: NewWeight) -> Array:
    axis, scale, zero = new.axis or 0, new.scale.astype(np.float64), new.zero.astype(np.float64)
    if new.floats is None:
        return _dequantized(new.integers.astype(np.float64), scale, zero, axis)
    return _dequantized(_quantized(new.floats.astype(np.float64), scale, zero, axis, stored.kind), scale, zero, axis)


def _dequantized(q: Array, scale: Array, zero: Array, axis: int) -> Array:
    """``(q - zero)·scale``, with the axis of the vectors moved to the end, where they broadcast by themselves."""
    if scale.ndim == 0:
        return (q - zero) * scale
    return np.moveaxis((np.moveaxis(q, axis, -1) - zero) * scale, -1, axis)


def _quantized(x: Array, scale: Array, zero: Array, axis: int, kind: ir.DataType) -> Array:
    """``saturate(round(x / scale) + zero)``, divided in float32 as runtimes do."""
    last = x if scale.ndim == 0 else np.moveaxis(x, axis, -1)
    steps = np.rint(last.astype(np.float32) / scale.astype(np.float32)).astype(np.float64) + zero
    q = np.asarray(np.minimum(np.maximum(steps, float(kind.min)), float(kind.max)))
    return q if scale.ndim == 0 else np.moveaxis(q, -1, axis)
