"""The judgement whether a new output is as good as the old one.

    err(new, ref) ≤ 2·err(old, ref) + slack          err(a, b) = max |a - b|

`ref` is a float64 evaluation of the original, `slack` what the old output moves when its weights move by
one unit in the last place, plus one rounding of the output itself. A double output of a kernel is given 64 more:
it adds up in an order of its own, and `ref` is rounded as it is. Max-norm over the whole output: a correct fold
moves single small elements by many of their own ULPs, which says nothing. Where no reference exists,
``max |new - old| ≤ 4·slack`` takes its place. NaN and infinities have to be where they were.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite, log10

import ml_dtypes
import numpy as np

from bnpass.verification.windows import Array

__all__ = ["EPSILON", "SHIFT", "Judgement", "judge", "judge_against", "judge_within"]

# Both the old output and the new one are one correct rounding away from the reference at best.
EPSILON = {
    np.dtype(np.float16): 2.0**-10,
    np.dtype(ml_dtypes.bfloat16): 2.0**-7,
    np.dtype(np.float32): 2.0**-23,
    np.dtype(np.float64): 2.0**-52,
}
"""One unit in the last place of 1."""
_NO_REFERENCE_FACTOR = 4.0
# What is computed in double is held against something that is computed in double: so many roundings.
_DOUBLE_ROUNDINGS = 64 * 2.0**-53
SHIFT = 2.0**-40
"""By how much, relatively, inputs are moved to learn what a rounding of theirs would be worth."""


@dataclass(frozen=True)
class Judgement:
    """One output of one draw.

    Attributes:
        ok: Whether the new output is accepted.
        error: ``err(new, ref)``, or ``err(new, old)`` without a reference.
        error_original: ``err(old, ref)``, 0 without a reference.
        slack: What one ULP of the weights is worth, with one rounding of the output.
        allowed: The bound that `error` was held against.
        difference: ``max |new - old|``.
        scale: ``max |ref|``.
        snr_db: Signal to noise ratio of the new output in dB.
        reason: Why it was not accepted, one sentence; empty if it was.

    """

    ok: bool
    error: float
    error_original: float
    slack: float
    allowed: float
    difference: float
    scale: float
    snr_db: float
    reason: str = ""

    @property
    def relative(self) -> float:
        """The error relative to the largest reference element."""
        return self.error / self.scale if self.scale else (0.0 if self.error == 0 else inf)

    @classmethod
    def rejected(cls, reason: str) -> "Judgement":
        """Return the judgement on what cannot be held against a bound."""
        return cls(False, inf, 0.0, 0.0, 0.0, inf, 0.0, -inf, reason)


def _max(array: Array) -> float:
    return float(array.max()) if array.size else 0.0


def _snr_db(signal: Array, noise: Array) -> float:
    power, disturbance = float(np.square(signal).sum()), float(np.square(noise).sum())
    if disturbance == 0:
        return inf
    return 10 * log10(power / disturbance) if power > 0 else -inf


def _pattern_difference(old: Array, new: Array) -> str:
    """Name the first kind of non-finite value that sits elsewhere; empty if none does."""
    for name, before, after in (
        ("NaN", np.isnan(old), np.isnan(new)),
        ("+Inf", np.isposinf(old), np.isposinf(new)),
        ("-Inf", np.isneginf(old), np.isneginf(new)),
    ):
        if not np.array_equal(before, after):
            return f"{name} at {int(after.sum())} elements instead of {int(before.sum())}, or at others"
    return ""


def _comparable(old: Array, new: Array) -> Judgement | None:
    """Judge what needs no arithmetic: shape, type, exact kinds, NaN and infinities."""
    if old.shape != new.shape:
        return Judgement.rejected(f"shape {new.shape} instead of {old.shape}")
    if old.dtype != new.dtype:
        return Judgement.rejected(f"type {new.dtype} instead of {old.dtype}")
    if old.dtype not in EPSILON:
        wrong = int((old != new).sum())
        if wrong:
            return Judgement.rejected(f"{wrong} of {old.size} elements of type {old.dtype} differ")
        return Judgement(True, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, inf)
    pattern = _pattern_difference(old.astype(np.float64), new.astype(np.float64))
    return Judgement.rejected(pattern) if pattern else None


def judge(
    old: Array,
    new: Array,
    ref: Array | None,
    perturbed: Sequence[Array] = (),
    *,
    rounding: float = 0.0,
    own_order: bool = False,
) -> Judgement:
    """Hold one new output against the bound.

    Args:
        old: Output of the original.
        new: Output of the new model.
        ref: Float64 evaluation of the original, if there is one.
        perturbed: Outputs of the original with weights moved by one ULP.
        rounding: What else is rounded, in units in the last place of 1: magnitudes of parts that `new` is a sum of.
        own_order: `new` adds up in another order than `ref`, which shows in double.

    Returns:
        The judgement.

    Example:
        >>> old = np.float32([1, 2, 3])
        >>> judge(old, old + np.float32(1e-7), np.float64([1, 2, 3]), [old + np.float32(2e-7)]).ok
        True
        >>> judge(old, old * 2, np.float64([1, 2, 3]), [old]).ok
        False

    """
    early = _comparable(old, new)
    if early is not None:
        return early
    epsilon = EPSILON[old.dtype]
    before, after = old.astype(np.float64), new.astype(np.float64)
    truth = before if ref is None else np.asarray(ref, dtype=np.float64)
    if truth.shape != before.shape:
        return Judgement.rejected(f"the float64 evaluation has shape {truth.shape} instead of {before.shape}")
    finite = np.isfinite(before) & np.isfinite(truth)
    before, after, truth = before[finite], after[finite], truth[finite]
    scale = _max(np.abs(truth))
    moved = [
        np.abs(np.nan_to_num(other.astype(np.float64)[finite] - before, nan=0.0, posinf=0.0, neginf=0.0))
        for other in perturbed
        if other.shape == old.shape
    ]
    slack = max(map(_max, moved), default=0.0) + epsilon * (scale + rounding)
    if own_order and old.dtype == np.float64:
        slack += _DOUBLE_ROUNDINGS * scale
    error, error_original = _max(np.abs(after - truth)), _max(np.abs(before - truth))
    allowed = _NO_REFERENCE_FACTOR * slack if ref is None else 2 * error_original + slack
    ok = error <= allowed
    reason = "" if ok else f"error {error:.3g} where {allowed:.3g} is allowed"
    difference, snr = _max(np.abs(after - before)), _snr_db(truth, after - truth)
    return Judgement(ok, error, error_original, slack, allowed, difference, scale, snr, reason)


def judge_within(old: Array, new: Array, *, atol: float, rtol: float) -> Judgement:
    """Hold one new output against tolerances that the user chose.

    Args:
        old: Output of the original.
        new: Output of the new model.
        atol: Absolute tolerance.
        rtol: Tolerance relative to the largest element of `old`.

    Returns:
        The judgement, with ``allowed = atol + rtol·max|old|``.

    """
    early = _comparable(old, new)
    if early is not None:
        return early
    before, after = old.astype(np.float64), new.astype(np.float64)
    finite = np.isfinite(before)
    before, after = before[finite], after[finite]
    scale, error = _max(np.abs(before)), _max(np.abs(after - before))
    allowed = atol + rtol * scale
    ok = isfinite(error) and error <= allowed
    reason = "" if ok else f"error {error:.3g} where {allowed:.3g} is allowed"
    return Judgement(ok, error, 0.0, 0.0, allowed, error, scale, _snr_db(before, after - before), reason)


def judge_against(truth: Array, found: Array, shifted: Sequence[Array]) -> Judgement:
    """Hold what one node gives against its definition, on the same inputs.

    Args:
        truth: The definition's result in float64, or an exact type.
        found: What was found; its type is the type of the output.
        shifted: The definition's results on inputs moved by ``SHIFT``, up or down at random.

    Returns:
        The judgement. Allowed are 64 roundings of inputs and results in double, and one unit in the last place of the
        type of the output.

    Example:
        >>> judge_against(np.float64([1, 2]), np.float32([1, 2]), []).ok
        True

    """
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = truth.astype(found.dtype)
    early = _comparable(rounded, found)
    if early is not None:
        return early
    finite = np.isfinite(rounded.astype(np.float64)) & np.isfinite(truth)
    after, exact = found.astype(np.float64)[finite], truth[finite]
    scale = _max(np.abs(exact))
    moved = [np.abs(np.nan_to_num(other[finite] - exact, nan=0.0, posinf=0.0, neginf=0.0)) for other in shifted]
    condition = max(map(_max, moved), default=0.0) / SHIFT
    slack = _DOUBLE_ROUNDINGS * (condition + scale) + EPSILON[found.dtype] * scale
    error = _max(np.abs(after - exact))
    ok = error <= slack
    reason = "" if ok else f"error {error:.3g} where {slack:.3g} is allowed"
    return Judgement(ok, error, 0.0, slack, slack, error, scale, _snr_db(exact, after - exact), reason)
