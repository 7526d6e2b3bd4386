"""Plan what a linear op's numbers become when it takes affines in: computed, judged and checked, not yet written.

Everything is computed from the weights as they were loaded, however many affines have arrived since: the one
rounding happens when the new weight is written. The weight itself streams by, and is held only on request.
"""

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from bnpass.errors import Refusal, RefusalId
from bnpass.folding.linear import Linear, refuse
from bnpass.folding.linear_check import LinearCheck
from bnpass.folding.quantized.result import NewBias, NewWeight
from bnpass.graph.nodes import label
from bnpass.semantics.affine import Affine, Array, WeightFold, identity, limits_of, round_once, wide


@dataclass(frozen=True, eq=False)
class Absorption:
    """A linear op and the affines it has taken in.

    Attributes:
        linear: The op as it was before the first of them.
        into: What is applied to the activation first, as vectors over input channels.
        out: What is applied to the result last, as vectors over output channels.
        is_written: Whether the model has other numbers than ``linear`` by now.
    """

    linear: Linear
    into: Affine
    out: Affine
    is_written: bool = False

    @classmethod
    def of(cls, linear: Linear) -> "Absorption":
        """Begin with a linear op that has taken in nothing."""
        one = identity(wide(linear.weight.dtype.numpy()))
        return cls(linear, one, one)

    def behind(self, affine: Affine) -> "Absorption | Refusal":
        """Take in an affine of the op's output."""
        vector = affine.vector(self.linear.out_axis, self.linear.layout.out_channels)
        if vector is None:
            return _wrong_axis(self.linear, affine, "output", self.linear.out_axis)
        return replace(self, out=self.out.then(self._widened(vector)))

    def before(self, affine: Affine) -> "Absorption | Refusal":
        """Take in an affine of the op's activation."""
        vector = affine.vector(self.linear.data_axis, self.linear.layout.in_channels)
        if vector is None:
            return _wrong_axis(self.linear, affine, "input", self.linear.data_axis)
        if vector.has_shift and self.linear.shift_at_input is not None:
            return self.linear.shift_at_input
        return replace(self, into=self._widened(vector).then(self.into))

    def _widened(self, vector: Affine) -> Affine:
        kind = wide(self.linear.weight.dtype.numpy())
        return Affine(vector.scale.astype(kind), vector.shift.astype(kind))

    @property
    def fold(self) -> WeightFold:
        """The arithmetic of the new weight."""
        return WeightFold(self.linear.layout, self.linear.weight.dtype.numpy(), self.into, self.out)

    def tensor(self, name: str | None, computed: Array | None) -> ir.TensorProtocol:
        """Return the new weight: as it was computed, or to be computed again when it is written."""
        weight = self.linear.weight
        if computed is not None:
            return ir.Tensor(computed, dtype=weight.dtype, name=name)

        def compute() -> ir.TensorProtocol:
            with weight.reading() as numbers:
                return ir.Tensor(self.fold.weight(numbers), dtype=weight.dtype)

        return ir.LazyTensor(compute, weight.dtype, ir.Shape(weight.shape), name=name)


@dataclass(frozen=True, eq=False)
class Numbers:
    """What an absorption comes to, besides the weight.

    Attributes:
        bias: The new content of the bias slot, rounded; None if the slot stays as it is.
        shift: For an op without a bias slot: what has to be added behind it, wide, channels last; None if nothing.
        error: Largest deviation of the local check, relative to what rounding permits; at most 1.
        weight: The new weight, if it was to be kept.
        integers: The new weight, if it is quantized.
        units: The new bias, if it is quantized.
    """

    bias: Array | None
    shift: Array | None
    error: float
    weight: Array | None = None
    integers: NewWeight | None = None
    units: NewBias | None = None


def compute(absorption: Absorption, *, keep: bool = False) -> Numbers | Refusal:
    """Compute, judge and check the numbers of an absorption in one pass over the weight.

    Args:
        absorption: The absorption.
        keep: Hold the new weight, instead of computing it again when it is written.

    Raises:
        VerificationError: The local check fails, which is a bug in bnpass.
    """
    linear, fold = absorption.linear, absorption.fold
    stands = linear.bias.value if linear.bias else None
    if isinstance(stands, np.ndarray) and not np.isfinite(stands).all():
        return refuse(linear.node, "has NaN or infinity in its bias", RefusalId.INVALID_STATISTICS)
    with linear.weight.reading() as weight:
        total = total_bias(absorption, weight)
        if isinstance(total, Refusal):
            return total
        slot = linear.bias
        stored = None if total is None else round_once(total / (slot.factor if slot else 1.0), fold.dtype)
        if stored is not None and not np.isfinite(stored).all():
            return _overflow(linear, "bias")
        check = LinearCheck(linear.node, linear.weight_index, weight.shape, fold.into, fold.out, fold.dtype)
        kept = np.empty(fold.layout.view, fold.dtype) if keep else None
        for block, old, new in fold.pieces(weight):
            check.add(old, new)
            if kept is not None:
                kept[block] = new
        refusal = _judge(linear, check, weight) or _lost(absorption, weight, check)
        if refusal is not None:
            return refusal
        gain, factor = (slot.gain, slot.factor) if slot else (1.0, 1.0)
        error = check.finish(bias_before(linear), bias_after(linear, stored), gain, factor)
    result = None if kept is None else kept.reshape(linear.weight.shape)
    return Numbers(None, total, error, result) if slot is None else Numbers(stored, None, error, result)


def total_bias(absorption: Absorption, weight: Array) -> Array | Refusal | None:
    """Return ``factor·b'`` of the result, wide; None if the slot needs no change."""
    slot, fold = absorption.linear.bias, absorption.fold
    changes = fold.into.has_shift or fold.out.has_shift or (slot is not None and absorption.is_written)
    old = slot.value if slot else None
    if not changes and (old is None or not fold.out.has_scale):
        return None
    if isinstance(old, Refusal):
        return old
    upright = slot is not None and slot.column
    if old is not None and upright:
        old = np.atleast_2d(old).T  # [M or 1, N or 1] -> channels last
    result = fold.bias(old, weight, slot.gain if slot else 1.0)
    channels = fold.layout.out_channels
    result = np.broadcast_to(result, np.broadcast_shapes(result.shape, (channels,)))
    return np.atleast_2d(result).T if upright else result


def bias_before(linear: Linear) -> Array:
    """Return ``factor·b`` before the fold for one column (row) of the output: [output channels] or [1]."""
    slot = linear.bias
    if slot is None or slot.value is None or isinstance(slot.value, Refusal):
        return np.zeros(1)
    return _one_line(slot.value, column=slot.column)


def bias_after(linear: Linear, stored: Array | None) -> Array:
    """Return ``factor·b`` after the fold likewise, or for an op without a slot what is added behind it."""
    if stored is None:
        return bias_before(linear)
    stored = stored.astype(wide(stored.dtype))
    if linear.bias is None:
        return stored.reshape(-1, stored.shape[-1]).T  # [output channels, points]
    return _one_line(stored, column=linear.bias.column) * linear.bias.factor


def _one_line(bias: Array, *, column: bool) -> Array:
    """Return the part of a Gemm's C that meets one row (column) of the output."""
    if bias.ndim < 2:
        return bias.reshape(-1)[:1] if column else bias.reshape(-1)
    return bias[:, 0] if column else bias[0]


def _judge(linear: Linear, check: LinearCheck, weight: Array) -> Refusal | None:
    if np.isfinite(check.channel_peak).all():
        return None
    if np.isfinite(weight.astype(np.float64)).all():
        return _overflow(linear, "weight")
    return refuse(linear.node, "has NaN or infinity in its weight", RefusalId.INVALID_STATISTICS)


def _overflow(linear: Linear, what: str) -> Refusal:
    kind = linear.weight.dtype.name.lower()
    return refuse(linear.node, f"would get a {what} beyond the range of {kind}", RefusalId.WOULD_OVERFLOW)


def _lost(absorption: Absorption, weight: Array, check: LinearCheck) -> Refusal | None:
    """Refuse if a whole output channel would sink into subnormal numbers and lose its digits there."""
    fold, limits = absorption.fold, limits_of(absorption.fold.dtype)
    peak = check.channel_peak
    if not ((peak < limits.smallest_normal) & (fold.out.scale != 0)).any():
        return None
    layout = fold.layout
    summed = tuple(a for a in range(len(layout.view)) if a not in layout.out_axes)
    exact_peak, error = (np.zeros([1 if a in summed else n for a, n in enumerate(layout.view)]) for _ in range(2))
    exactly = replace(fold, dtype=np.dtype(np.float64))
    for (block, _, rounded), (_, _, exact) in zip(fold.pieces(weight), exactly.pieces(weight), strict=True):
        here = tuple(slice(None) if a in summed else s for a, s in enumerate(block))
        gap = np.abs(rounded.astype(np.float64) - exact)
        exact_peak[here] = np.maximum(exact_peak[here], np.abs(exact).max(axis=summed, keepdims=True))
        error[here] = np.maximum(error[here], gap.max(axis=summed, keepdims=True))
    lost = error > limits.eps * exact_peak
    if not lost.any():
        return None
    return refuse(
        absorption.linear.node,
        f"would get weights too small for {absorption.linear.weight.dtype.name.lower()} "
        f"(at most {float(exact_peak[lost].min()):.3g} in some channel)",
        RefusalId.DTYPE_WOULD_LOSE_PRECISION,
    )


def _wrong_axis(linear: Linear, affine: Affine, side: str, axis: int) -> Refusal:
    shape = np.broadcast_shapes(affine.scale.shape, affine.shift.shape)
    channels = linear.layout.out_channels if side == "output" else linear.layout.in_channels
    return Refusal(
        RefusalId.AXIS_NOT_PROVABLE,
        label(linear.node),
        f"the affine has shape {list(shape)}, but {linear.node.op_type} '{label(linear.node)}' "
        f"has its {channels} {side} channels on axis {axis}",
    )
