"""Activations that are linear on either side of zero, or between two bounds.

    f(s·x)             =  s·f(x)                                            s ≥ 0: Relu, LeakyRelu, PRelu
    |s·x|              =  |s|·|x|
    clip(s·x + t; a, b)  =  s·clip(x; (a − t)/s, (b − t)/s) + t             bounds swapped for s < 0
    s·clip(x; a, b) + t  =  clip(s·x + t; s·a + t, s·b + t)                 likewise; any s

Relu is clip with the bounds 0 and ∞. New bounds that differ between channels need Max and Min, since ONNX's Clip takes
scalars. A channel with s = 0 is constant: forward it owes that constant, whatever comes in.
"""

import numpy as np

from bnpass.errors import Refusal, RefusalId
from bnpass.folding.linear import refuse
from bnpass.folding.rules.carrier import (
    Direction,
    Given,
    Passage,
    Rewrite,
    Step,
    argument,
    blocks,
    is_given,
    only,
    passed,
)
from bnpass.semantics.affine import Affine, Array, limits_of

_BROADCASTS = 8
"""The first opset whose Max and Min broadcast."""

Bounds = tuple[Array, Array]


def relu(step: Step, given: Given) -> Passage | Refusal:
    """Relu: a scale that is not negative passes; anything else moves the bounds."""
    affine = only(step, given)
    if isinstance(affine, Refusal) or _is_scale(affine):
        return affine if isinstance(affine, Refusal) else passed(step, affine)
    return _clipped(step, affine, (np.asarray(0.0), np.asarray(np.inf)))


def clip(step: Step, given: Given) -> Passage | Refusal:
    """Clip with constant bounds: they move with the affine."""
    affine = only(step, given)
    if isinstance(affine, Refusal):
        return affine
    bounds = [np.asarray(-np.inf), np.asarray(np.inf)]
    for number, name in enumerate(("min", "max")):
        if is_given(step, name, number + 1):
            bound = argument(step, name, number + 1)
            if bound is None or bound.size != 1 or np.isnan(bound).any():
                return blocks(step, f"has a {name} that is not a constant number")
            bounds[number] = bound.reshape(()).astype(np.float64)
    if bounds[0] > bounds[1]:
        return blocks(step, "has bounds in the wrong order")
    return _clipped(step, affine, (bounds[0], bounds[1]))


def of_scale(step: Step, given: Given) -> Passage | Refusal:
    """LeakyRelu, PRelu: a scale that is not negative passes."""
    affine = only(step, given)
    if isinstance(affine, Refusal):
        return affine
    return passed(step, affine) if _is_scale(affine) else blocks(step, "lets no shift and no negative scale pass")


def absolute(step: Step, given: Given) -> Passage | Refusal:
    """Abs: a scale passes; going forward it loses its sign."""
    affine = only(step, given)
    if isinstance(affine, Refusal):
        return affine
    if affine.has_shift or (step.direction is Direction.BACKWARD and (affine.scale < 0).any()):
        return blocks(step, "lets no shift and, backward, no negative scale pass")
    return passed(step, Affine(np.abs(affine.scale), affine.shift))


def _is_scale(affine: Affine) -> bool:
    return not affine.has_shift and bool((affine.scale >= 0).all())


def _clipped(step: Step, affine: Affine, bounds: Bounds) -> Passage | Refusal:
    """Move the bounds of a clip."""
    s, t = np.broadcast_arrays(affine.scale, affine.shift)
    moved, owed = _forward(affine, bounds) if step.direction is Direction.FORWARD else (_behind(s, t, bounds), affine)
    low, high = moved
    if not (_is_number(low) and _is_number(high)):
        return refuse(step.node, "would get bounds beyond the range of its type", RefusalId.WOULD_OVERFLOW)
    ops = _ops(low, high)
    if step.scope.opset < _BROADCASTS and any(op_type != "Relu" for op_type, _ in ops):
        return blocks(step, f"would need Max or Min, which do not broadcast in opset {step.scope.opset}")
    return passed(step, owed, Rewrite(ops))


def _forward(affine: Affine, bounds: Bounds) -> tuple[Bounds, Affine]:
    """Return the bounds of x, and the affine behind them."""
    s, t = np.broadcast_arrays(affine.scale, affine.shift)
    dead = s == 0
    divisor = np.where(dead, 1.0, s)
    ends = [(bound - t) / divisor for bound in bounds]
    low, high = np.where(s > 0, ends[0], ends[1]), np.where(s > 0, ends[1], ends[0])
    free = np.where(dead, -np.inf, low), np.where(dead, np.inf, high)
    return free, Affine(affine.scale, np.where(dead, np.clip(t, *bounds), t))


def _behind(s: Array, t: Array, bounds: Bounds) -> Bounds:
    """Return the bounds of s·x + t."""
    with np.errstate(invalid="ignore"):  # 0·∞, which the next line replaces
        ends = [np.where(s == 0, t, s * bound + t) for bound in bounds]
    return np.minimum(*ends), np.maximum(*ends)


def _is_number(bound: Array) -> bool:
    """Whether bounds are infinite, or at least far from overflow in float64; the writer looks at the narrower type."""
    return bool((np.isinf(bound) | (np.abs(bound) < limits_of(np.dtype(np.float64)).max / 2)).all())


def _ops(low: Array, high: Array) -> tuple[tuple[str, Array | None], ...]:
    """Return the cheapest ops that clip."""
    first: list[tuple[str, Array | None]] = []
    if not np.isneginf(low).all():
        first = [("Max", _smallest(low))] if (low != 0).any() else [("Relu", None)]
    if not np.isposinf(high).all():
        first.append(("Min", _smallest(high)))
    return tuple(first)


def _smallest(bound: Array) -> Array:
    """Return a bound as one number where all channels have the same."""
    return bound.reshape(-1)[:1].reshape(()) if (bound == bound.reshape(-1)[0]).all() else bound
