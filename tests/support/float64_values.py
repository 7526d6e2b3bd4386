"""A number with its bounds: the arithmetic of the own float64 evaluator.

With every value travel

    size        the sum of magnitudes, Σ|w||x| + |b|, of the way it was computed
    roundings   how many rounded tensors stand in a row on the way to it
    underflow   what numbers too small for their type may have cost, absolute

so that two graphs that are equal over the reals, one of them with constants rounded to unit roundoff u, differ
by at most ``roundings·u·size + underflow``. What is no more than the largest of its operands (a maximum, a bound, a
choice) has the largest of their sizes, and what moves numbers moves their sizes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray

Array = NDArray[Any]
Attributes = Mapping[str, Any]

FLOATS = {
    onnx.TensorProto.FLOAT16: np.dtype(np.float16),
    onnx.TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    onnx.TensorProto.FLOAT: np.dtype(np.float32),
    onnx.TensorProto.DOUBLE: np.dtype(np.float64),
}


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether this is one of the float types of the generator."""
    return dtype in FLOATS.values()


def limits(dtype: np.dtype[Any]) -> Any:
    """Return finfo, bfloat16 included."""
    return ml_dtypes.finfo(dtype) if dtype == ml_dtypes.bfloat16 else np.finfo(dtype)


def unit_roundoff(dtype: np.dtype[Any]) -> float:
    """Largest relative error of rounding to nearest."""
    return float(limits(dtype).eps) / 2


def round_to(x: Array, dtype: np.dtype[Any]) -> Array:
    """Round to nearest even by arithmetic on exponents: an own way, for every type, to judge others by."""
    info = limits(dtype)
    wide = np.asarray(x)
    _, exponent = np.frexp(wide)
    bits = 8 if dtype == ml_dtypes.bfloat16 else int(info.nmant) + 1
    tiniest = round(math.log2(float(info.smallest_subnormal))) if dtype != np.float64 else -1074
    quantum = np.maximum(exponent - bits, tiniest)
    with np.errstate(all="ignore"):
        rounded = np.ldexp(np.rint(np.ldexp(wide, -quantum)), quantum)
        rounded = np.where(np.abs(rounded) > float(info.max), np.copysign(np.inf, wide), rounded)
    return np.asarray(np.where(np.isfinite(wide), rounded, wide))


@dataclass(frozen=True, eq=False)
class Judged:
    """A value with its bounds.

    Attributes:
        value: The numbers, wide (or as they are, if they are no floats).
        size: Sum of magnitudes.
        roundings: Rounded tensors in a row on the way.
        underflow: Absolute error through numbers below the normal range.
        dtype: The type it has in the model.
        constant: Whether it depends on no input.
    """

    value: Array
    size: Array
    roundings: int
    underflow: Array
    dtype: np.dtype[Any]
    constant: bool = False


def plain(array: Array, kind: Any = np.float64, *, constant: bool = False) -> Judged:
    """Wrap an exact array."""
    array = np.asarray(array)
    if not is_float(array.dtype):
        return Judged(array, array, 0, np.zeros(()), array.dtype, constant)
    wide = array.astype(kind)
    return Judged(wide, np.abs(wide), 0, np.zeros((), kind), array.dtype, constant)


def moved(x: Judged, move: Callable[[Array], Array]) -> Judged:
    """Move numbers about; each result is one of them."""
    lost = filled(x).underflow
    underflow = lost if lost.ndim == 0 else move(lost)
    return replace(x, value=move(x.value), size=move(x.size), underflow=underflow)


def summed(a: Judged, b: Judged, sign: int = 1) -> Judged:
    """Add, or subtract."""
    return Judged(
        a.value + sign * b.value,
        a.size + b.size,
        max(a.roundings, b.roundings),
        a.underflow + b.underflow,
        a.dtype,
        a.constant and b.constant,
    )


def bilinear(a: Judged, b: Judged, apply: Callable[[Array, Array], Array]) -> Judged:
    """Apply an op that is linear in either operand and has no negative coefficient of its own."""
    lost = np.zeros((), a.value.dtype)
    if a.underflow.any():
        lost = lost + apply(np.broadcast_to(a.underflow, a.size.shape), b.size)
    if b.underflow.any():
        lost = lost + apply(a.size + a.underflow, np.broadcast_to(b.underflow, b.size.shape))
    value, size = apply(a.value, b.value), apply(a.size, b.size)
    return Judged(value, size, a.roundings + b.roundings, lost, a.dtype, a.constant and b.constant)


def scaled(x: Judged, factor: float) -> Judged:
    """Multiply by an exact number."""
    return replace(x, value=factor * x.value, size=abs(factor) * x.size, underflow=abs(factor) * x.underflow)


def multiplied(a: Judged, b: Judged) -> Judged:
    """Multiply element by element."""
    return bilinear(a, b, np.multiply)


def filled(x: Judged) -> Judged:
    """Give the underflow bound the shape of the value, for ops that count elements."""
    if x.underflow.ndim == 0:
        return x
    return replace(x, underflow=np.broadcast_to(x.underflow, x.value.shape))


def reciprocal(x: Judged) -> Judged:
    """Return 1/x; its bound ends where an error of x could not be told from x."""
    with np.errstate(all="ignore"):
        value = 1 / x.value
        near = x.roundings * unit_roundoff(x.dtype) * x.size > 0.04 * np.abs(x.value)
        size = np.where(near | np.isinf(value), np.inf, x.size * value * value)
        return replace(x, value=value, size=size, underflow=x.underflow * value * value)


def square_root(x: Judged) -> Judged:
    """Return the root of what has no bounds worth to keep, since it is a constant."""
    with np.errstate(all="ignore"):
        value = np.sqrt(x.value)
        return replace(x, value=value, size=np.abs(value), underflow=np.zeros((), value.dtype))


def extreme(a: Judged, b: Judged, choose: Callable[[Array, Array], Array]) -> Judged:
    """Return the larger or the smaller one: |max(a, b) - max(a', b')| ≤ max(|a - a'|, |b - b'|)."""
    sizes = [np.where(np.isinf(v.value), 0, v.size) for v in (a, b)]  # a bound of ∞ binds nothing
    return Judged(
        choose(a.value, b.value),
        np.maximum(*sizes),
        max(a.roundings, b.roundings),
        np.maximum(a.underflow, b.underflow),
        a.dtype,
        a.constant and b.constant,
    )


def weighted(x: Judged, apply: Callable[[Array], Array]) -> Judged:
    """Apply an op whose results are sums of its numbers with coefficients that are not negative."""
    lost = apply(np.broadcast_to(x.underflow, x.value.shape)) if x.underflow.any() else np.zeros((), x.value.dtype)
    return replace(x, value=apply(x.value), size=apply(x.size), underflow=lost)


def stretched(x: Judged, size: float, value: Array) -> Judged:
    """Return what a function of one number makes of x; no difference grows by more than ``size``."""
    return replace(x, value=value, size=np.maximum(size * x.size, np.abs(value)), underflow=size * x.underflow)
