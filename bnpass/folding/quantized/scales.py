"""An affine in the scales of a quantized weight: the integers stay.

    W = (q - z)·a                   q integers, z zero point, a scale: one number, or a vector along an axis
    m·W = (q - z)·(a·m)             m > 0: what every weight is multiplied by, the same along all axes but that one
    m·W = (q' - z')·(a·|m|)         m < 0: q' - z' = -(q - z)
    0·W = (q' - z)·a                m = 0: q' = z, for a scale of 0 is none

For m < 0, q' = 2z - q and z' = z where that is in the range of the type: what is symmetric stays symmetric. In int8
with z = 0 it is not where q = -128; runtimes take z = 0 for granted, so that is refused. Elsewhere, q' = l + h - q and
z' = l + h - z, with l and h the ends of the range, always are.
"""

import numpy as np

from bnpass.errors import Refusal, RefusalId
from bnpass.folding.absorb import Absorption
from bnpass.folding.linear import Linear, refuse
from bnpass.folding.quantized.stored import Stored, along
from bnpass.semantics.affine import Array, limits_of, round_once

_GROUPED = ("Conv", "ConvTranspose")


def factors(absorption: Absorption) -> Array:
    """Return what every weight is multiplied by: the rank of the stored weight, axes of length 1 where it is equal."""
    linear = absorption.linear
    layout, rank = linear.layout, len(linear.weight.shape)
    m = layout.over(absorption.into.scale, layout.in_axes) * layout.over(absorption.out.scale, layout.out_axes)
    if linear.node.op_type in _GROUPED:  # [groups, rows of a group, columns, taps] -> [rows, columns, taps…]
        groups, per_group = layout.view[:2]
        if m.shape[:2] != (1, 1):
            m = np.broadcast_to(m, (groups, per_group, *m.shape[2:]))
        m = m.reshape(-1, m.shape[2], *(1,) * (rank - 2))
    for axis in range(rank):
        first = m.take([0], axis)
        m = first if (m == first).all() else m
    return m


def multiplier(absorption: Absorption, stored: Stored, opset: int) -> tuple[Array, int | None] | Refusal:
    """Return what the scale is multiplied by, () or a vector, and the axis that the new scale runs along."""
    linear, m = absorption.linear, factors(absorption)
    varies = [axis for axis, length in enumerate(m.shape) if length != 1]
    if not varies:
        return m.reshape(()), stored.axis
    if stored.axis is None and opset < 13:
        return _refuse(linear, f"has one scale, and in opset {opset} there is none per channel")
    allowed = _output_axes(absorption) if stored.axis is None else [stored.axis]
    if varies == [varies[0]] and varies[0] in allowed:
        return m.reshape(-1), varies[0]
    return _unfit(absorption, stored, varies, allowed)


def _output_axes(absorption: Absorption) -> list[int]:
    """Return along which axes of the weight one scale may become a scale per channel: those of output channels."""
    linear = absorption.linear
    match linear.node.op_type:
        case "Conv":
            return [0]
        case "ConvTranspose":  # rows are inputs, but with one output for each group they tell outputs apart as well
            return [1] if absorption.into.has_scale else [0, 1]
        case _:
            return list(linear.layout.out_axes)


def _unfit(absorption: Absorption, stored: Stored, varies: list[int], allowed: list[int]) -> Refusal:
    linear = absorption.linear
    groups = linear.layout.view[0]
    if linear.node.op_type == "ConvTranspose" and groups > 1 and not absorption.into.has_scale:
        return _refuse(linear, f"has a scale along axis {allowed[-1]} that serves the channels of all {groups} groups")
    if absorption.into.has_scale:
        return _refuse(linear, "has no scale per input channel, as an affine before it would need")
    return _refuse(linear, f"has a scale along axis {stored.axis} and would need one along {varies}")


def scaled(linear: Linear, stored: Stored, m: Array, axis: int | None) -> Array | Refusal:
    """Return the new scale, rounded, or why its type cannot hold it."""
    exact = np.where(m == 0, 1.0, np.abs(m)) * stored.scale
    dtype = linear.weight.dtype.numpy()
    limits, new = limits_of(dtype), round_once(exact, dtype)
    if not np.isfinite(new).all():
        return _of_type(linear, "beyond the range of", RefusalId.WOULD_OVERFLOW)
    if (exact < limits.smallest_normal).any():
        return _of_type(linear, "too small for", RefusalId.DTYPE_WOULD_LOSE_PRECISION)
    return np.broadcast_to(new, new.shape if axis is None else (linear.weight.shape[axis],)).copy()


def turned(linear: Linear, stored: Stored, m: Array, axis: int | None) -> tuple[Array, Array] | Refusal:
    """Return integers and zero point, as int32, for what is multiplied by ``m``, sign included."""
    q = stored.integers()
    low, high = int(stored.kind.min), int(stored.kind.max)
    count = 1 if axis is None else q.shape[axis]
    m, zero = (np.broadcast_to(v.reshape(-1), count) for v in (m, stored.zero))
    is_symmetric, new_zero = low < 0 and not zero.any(), zero.copy()
    for channel in np.flatnonzero(m <= 0):
        here = (slice(None),) * (axis or 0) + ((slice(None) if axis is None else channel),)
        mirrored = np.asarray(2 * zero[channel] - q[here] if m[channel] else np.full_like(q[here], zero[channel]))
        if mirrored.min() < low or mirrored.max() > high:
            if is_symmetric:
                return _refuse(linear, f"would need the negative of {low} in {stored.kind.name.lower()}")
            mirrored, new_zero[channel] = low + high - q[here], low + high - zero[channel]
        q[here] = mirrored
    return q, new_zero.reshape(()) if axis is None else new_zero


def requantizable(stored: Stored, floats: Array, q: Array, scale: Array, zero: Array, axis: int | None) -> Array | None:
    """Return floats that a QuantizeLinear with the new scale makes these integers of; None if there are none.

    A float that would end up on the other side of a tie is put where its integer stands.
    """
    wide_scale = along(scale.astype(np.float64), axis, q.ndim)
    centre = round_once((q - along(zero, axis, q.ndim)) * wide_scale, scale.dtype)
    for _ in range(2):
        floats = np.where(_lands(stored, floats, q, scale, zero, axis), floats, centre)
    return floats if _lands(stored, floats, q, scale, zero, axis).all() else None


def _lands(stored: Stored, floats: Array, q: Array, scale: Array, zero: Array, axis: int | None) -> Array:
    """Tell which floats become their integer, whether the quotient is rounded to float32 or not."""
    low, high = int(stored.kind.min), int(stored.kind.max)
    agrees = np.ones(q.shape, np.bool_)
    for kind in (np.float32, np.float64):
        steps = np.rint(floats.astype(kind) / along(scale, axis, q.ndim).astype(kind))
        agrees &= np.clip(steps + along(zero, axis, q.ndim), low, high) == q
    return agrees


def _refuse(linear: Linear, why: str) -> Refusal:
    return refuse(linear.node, f"is quantized: its weight {why}", RefusalId.QUANTIZED_WEIGHT)


def _of_type(linear: Linear, what: str, refusal: RefusalId) -> Refusal:
    return refuse(linear.node, f"would get a scale {what} {linear.weight.dtype.name.lower()}", refusal)
