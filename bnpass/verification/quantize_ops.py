"""QuantizeLinear and DequantizeLinear of every version, for the evaluation in float64.

    q = saturate(round(x / scale) + zero)        x = (q - zero)·scale

``onnx.reference`` knows them from opset 19 on, and computes in float32, which holds no large int32 bias.
"""

from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import onnx
from onnx.reference.op_run import OpRun

from bnpass.verification.windows import Array

__all__ = ["QUANTIZE_OPS"]

# What an attribute holds is checked by ONNX's schema, not by a type checker.
Attribute: TypeAlias = Any


def _placed(parameter: Array | None, shape: tuple[int, ...], attributes: dict[str, Attribute]) -> Array:
    """Lay a scale or zero point, one number, a vector along an axis, or one per block, over a tensor."""
    if parameter is None:
        return np.zeros(())
    wide = parameter.astype(np.float64)
    if wide.size == 1:
        return wide.reshape(())
    axis = attributes.get("axis")
    axis = (1 if axis is None else axis) % len(shape)
    block = attributes.get("block_size") or 0
    if block:
        return wide.repeat(block, axis)[tuple(slice(n) for n in shape)]
    return wide.reshape([-1 if a == axis else 1 for a in range(len(shape))])


class DequantizeLinear(OpRun):
    """Integers to floats."""

    op_domain = ""

    def _run(self, x: Array, scale: Array, zero: Array | None = None, **attributes: Attribute) -> tuple[Array]:
        offset, step = (_placed(p, x.shape, attributes) for p in (zero, scale))
        return ((x.astype(np.float64) - offset) * step,)


class QuantizeLinear(OpRun):
    """Floats to integers, ties to even."""

    op_domain = ""

    def _run(self, x: Array, scale: Array, zero: Array | None = None, **attributes: Attribute) -> tuple[Array]:
        step, offset = (_placed(p, x.shape, attributes) for p in (scale, zero))
        code = attributes.get("output_dtype") or onnx.TensorProto.UINT8
        kind = onnx.helper.tensor_dtype_to_np_dtype(code) if zero is None else zero.dtype
        if kind.kind not in "iu" and "int" not in kind.name:
            finder: Any = ml_dtypes.finfo
            largest = float(finder(kind).max)
            return (np.clip(x / step, -largest, largest).astype(kind),)
        low, high = _range(kind)
        return (np.clip(np.rint(x / step) + offset, low, high).astype(kind),)


def _range(kind: "np.dtype[Any]") -> tuple[int, int]:
    bits = int(kind.name.removeprefix("u").removeprefix("int"))  # those of 4 bits are no types of NumPy
    return (0, (1 << bits) - 1) if kind.name.startswith("u") else (-(1 << bits - 1), (1 << bits - 1) - 1)


QUANTIZE_OPS: tuple[type[OpRun], ...] = (DequantizeLinear, QuantizeLinear)
