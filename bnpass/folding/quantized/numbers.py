"""Plan what the integers, scales and bias of a quantized op become: computed, judged and checked, not yet written."""

import numpy as np

from bnpass.errors import Refusal, RefusalId
from bnpass.folding.absorb import Absorption, Numbers, total_bias
from bnpass.folding.linear import Linear, refuse
from bnpass.folding.quantized.biases import stored_bias
from bnpass.folding.quantized.check import check
from bnpass.folding.quantized.result import NewWeight
from bnpass.folding.quantized.scales import multiplier, requantizable, scaled, turned
from bnpass.folding.quantized.stored import Dequantized, Stored, along
from bnpass.semantics.affine import Array, limits_of, round_once


def compute(absorption: Absorption, weight: Dequantized, opset: int) -> Numbers | Refusal:
    """Compute, judge and check the numbers of an absorption by a quantized op.

    Raises:
        VerificationError: The local check fails, which is a bug in bnpass.
    """
    linear, slot = absorption.linear, absorption.linear.bias
    if slot is not None and isinstance(slot.value, np.ndarray) and not np.isfinite(slot.value).all():
        return refuse(linear.node, "has NaN or infinity in its bias", RefusalId.INVALID_STATISTICS)
    new = _weight(absorption, weight.stored, opset)
    if isinstance(new, Refusal):
        return new
    total = total_bias(absorption, weight.stored.real())
    if isinstance(total, Refusal):
        return total
    if slot is not None and slot.stored is not None:
        whole = np.asarray(slot.value) if total is None else total
        kept = stored_bias(absorption, slot.stored, whole, _steps(linear, new), opset)
        if isinstance(kept, Refusal):
            return kept
        return Numbers(None, None, check(absorption, weight.stored, new, kept), weight=None, integers=new, units=kept)
    factor, dtype = (slot.factor if slot else 1.0), weight.dtype.numpy()
    stored = None if total is None else round_once(total / factor, dtype)
    if stored is not None and not np.isfinite(stored).all():
        told = f"would get a bias beyond the range of {weight.dtype.name.lower()}"
        return refuse(linear.node, told, RefusalId.WOULD_OVERFLOW)
    error = check(absorption, weight.stored, new, stored)
    return Numbers(stored if slot else None, None if slot else total, error, weight=None, integers=new)


def _weight(absorption: Absorption, stored: Stored, opset: int) -> NewWeight | Refusal:
    """Compute and judge scale, zero point and integers."""
    linear = absorption.linear
    if stored.quantizer is not None and not _is_finite(stored):
        return refuse(linear.node, "has NaN or infinity in its weight", RefusalId.INVALID_STATISTICS)
    placed = multiplier(absorption, stored, opset)
    if isinstance(placed, Refusal):
        return placed
    m, axis = placed
    scale, pair = scaled(linear, stored, m, axis), turned(linear, stored, m, axis)
    if isinstance(scale, Refusal):
        return scale
    if isinstance(pair, Refusal):
        return pair
    q, zero = pair
    with np.errstate(over="ignore"):
        largest = np.abs(q - along(zero, axis, q.ndim)) * along(scale.astype(np.float64), axis, q.ndim)
    if largest.max(initial=0.0) > limits_of(scale.dtype).max:
        told = f"would get a weight beyond the range of {linear.weight.dtype.name.lower()}"
        return refuse(linear.node, told, RefusalId.WOULD_OVERFLOW)
    kind = stored.kind.numpy()
    if stored.quantizer is None:
        return NewWeight(scale, zero.astype(kind), axis, q.astype(kind))
    floats = _floats(linear, stored, m, axis, (q, scale, zero))
    return floats if isinstance(floats, Refusal) else NewWeight(scale, zero.astype(kind), axis, q.astype(kind), floats)


def _is_finite(stored: Stored) -> bool:
    with stored.source.reading() as numbers:
        return bool(np.isfinite(numbers.astype(np.float64)).all())


def _floats(
    linear: Linear, stored: Stored, m: Array, axis: int | None, new: tuple[Array, Array, Array]
) -> Array | Refusal:
    """Return the floats of a model trained with quantization in sight, folded as floats are."""
    with stored.source.reading() as numbers:
        x = numbers.astype(np.float64)
    q, scale, zero = new
    floats = requantizable(stored, round_once(x * along(m, axis, x.ndim), scale.dtype), q, scale, zero, axis)
    if floats is None:
        told = "is quantized: its weights would be rounded to other integers"
        return refuse(linear.node, told, RefusalId.QUANTIZED_WEIGHT)
    return floats


def _steps(linear: Linear, new: NewWeight) -> Array:
    """Return Σ |q - z| of the weight of each output channel."""
    layout = linear.layout
    q = new.integers.astype(np.int32)
    distance = np.abs(q - along(new.zero.astype(np.int32), new.axis, q.ndim)).reshape(layout.view)
    others = tuple(a for a in range(len(layout.view)) if a not in layout.out_axes)
    return np.asarray(distance.sum(axis=others, dtype=np.float64)).reshape(-1)
