"""The algebra of per-channel affines ``y = scale·x + shift``, and what a linear op does with one.

Batch normalization in inference is an affine:

    s = scale / sqrt(input_var + epsilon)          t = B - input_mean·s

Two of them in a row are one:  ``s₂(s₁x + t₁) + t₂ = (s₂s₁)x + (s₂t₁ + t₂)``.
A linear op with weights W and bias b takes one in on either side:

    behind   s·(W*x + b) + t  =  (W·s)*x + (s·b + t)           s, t over output channels
    before   W*(s·x + t) + b  =  (W·s)*x + (b + Σ W·t)         s, t over input channels

The order of operations stands here and nowhere else: ``W' = (W·s_in)·s_out`` and
``b' = s_out·(b + Σ W·t_in) + t_out``. Everything is computed wide (float64; long double for
float64 weights) and rounded once to the type of the weight.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

BLOCK_ELEMENTS = 1 << 16
"""Weights are worked on in pieces of about this many elements: they stay in the cache."""


def wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type to compute in for numbers that end up as ``dtype``."""
    return np.dtype(np.longdouble) if dtype == np.float64 else np.dtype(np.float64)


@dataclass(frozen=True)
class Limits:
    """Limits of a float type: unit step at 1, largest, smallest normal and smallest subnormal number."""

    eps: float
    max: float
    smallest_normal: float
    smallest_subnormal: float


def limits_of(dtype: np.dtype[Any]) -> Limits:
    """Return the limits of a float type, bfloat16 included; those beyond float64 become infinity or 0."""
    finder: Any = ml_dtypes.finfo if dtype == ml_dtypes.bfloat16 else np.finfo
    info = finder(dtype)
    return Limits(float(info.eps), float(info.max), float(info.smallest_normal), float(info.smallest_subnormal))


def round_once(x: Array, dtype: np.dtype[Any]) -> Array:
    """Round to nearest, ties to even, in one step.

    ml_dtypes casts float64 to bfloat16 through float32 and so rounds twice. Rounding to odd on the
    way keeps in the last float32 bit the knowledge that something was cut off, which makes the
    second rounding the only one (Boldo and Melquiond, 2008).
    """
    with np.errstate(over="ignore", invalid="ignore"):  # an overflow is found by the caller
        if dtype != ml_dtypes.bfloat16 or x.dtype == np.float32:
            return x.astype(dtype)
        y = np.asarray(x, np.float64).astype(np.float32)
        inexact = np.isfinite(y) & (y != x)
        away = inexact & (np.abs(y.astype(np.float64)) > np.abs(x))
        bits = y.view(np.int32)
        bits = np.where(away, bits - 1, bits)  # towards zero first: truncation
        bits = np.where(inexact, bits | 1, bits)
        return np.asarray(bits.view(np.float32).astype(dtype))


@dataclass(frozen=True, eq=False)
class Affine:
    """``y = scale·x + shift`` over a value of rank r.

    Attributes:
        scale: Shape ``()`` (the same everywhere) or rank r, each axis of length 1 or that of the value.
        shift: Shape as scale.
    """

    scale: Array
    shift: Array

    @property
    def is_uniform(self) -> bool:
        """Whether one number serves all channels."""
        return self.scale.size == 1 and self.shift.size == 1

    @property
    def has_scale(self) -> bool:
        """Whether any channel is scaled."""
        return bool(np.any(self.scale != 1))

    @property
    def has_shift(self) -> bool:
        """Whether any channel is shifted."""
        return bool(np.any(self.shift != 0))

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes over which scale or shift vary, counted from the front."""
        shape = np.broadcast_shapes(self.scale.shape, self.shift.shape)
        return tuple(i for i, length in enumerate(shape) if length != 1)

    @property
    def only_scale(self) -> "Affine":
        """The same without its shift."""
        return Affine(self.scale, np.zeros_like(self.shift))

    @property
    def only_shift(self) -> "Affine":
        """The same without its scale."""
        return Affine(np.ones_like(self.scale), self.shift)

    @property
    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        return bool(np.isfinite(self.scale).all() and np.isfinite(self.shift).all())

    @property
    def is_moderate(self) -> bool:
        """Whether every number is 0 or far from the ends of float64, so that it can be checked there."""
        numbers = np.concatenate([np.abs(self.scale).ravel(), np.abs(self.shift).ravel()])
        return bool(((numbers == 0) | ((numbers > 1e-290) & (numbers < 1e290))).all())

    def then(self, later: "Affine") -> "Affine":
        """Return the affine that applies this one first and ``later`` second."""
        return Affine(later.scale * self.scale, later.scale * self.shift + later.shift)

    def vector(self, axis: int, length: int) -> "Affine | None":
        """Return scale and shift as vectors of ``length`` (or 1) along ``axis``; None if they vary elsewhere."""
        if self.is_uniform:
            return Affine(self.scale.reshape(1), self.shift.reshape(1))
        shape = np.broadcast_shapes(self.scale.shape, self.shift.shape)
        axis = axis % len(shape) if -len(shape) <= axis < len(shape) else -1
        if axis < 0 or self.axes != (axis,) or shape[axis] != length:
            return None
        return Affine(self.scale.reshape(-1), self.shift.reshape(-1))


def identity(dtype: np.dtype[Any]) -> Affine:
    """Return the affine that changes nothing, as one-element vectors of ``dtype``."""
    return Affine(np.ones(1, dtype), np.zeros(1, dtype))


def composed(affines: Iterable[Affine], dtype: np.dtype[Any]) -> Affine:
    """Return the affine that applies all of these, the first one first; of none, the one that changes nothing."""
    whole = Affine(np.ones((), dtype), np.zeros((), dtype))
    for affine in affines:
        whole = whole.then(affine)
    return whole


def of_batch_norm(scale: Array, B: Array, input_mean: Array, input_var: Array, epsilon: float) -> Affine:
    """Return the affine of an inference batch normalization; all arguments are vectors [C], already wide.

    Formula: ONNX BatchNormalization-15, ``Y = (X - input_mean) / sqrt(input_var + epsilon) * scale + B``.
    """
    with np.errstate(all="ignore"):  # bad statistics are refused by the caller, who sees the result
        s = scale / np.sqrt(input_var + input_var.dtype.type(epsilon))
        return Affine(s, B - input_mean * s)


@dataclass(frozen=True)
class WeightLayout:
    """How output and input channels lie in a weight.

    Attributes:
        view: The stored shape with groups and kernel axes split or merged; same elements, same order.
        out_axes: The axes of ``view`` that together count the output channels.
        in_axes: The axes of ``view`` that together count the input channels.
        batch_axes: Axes that belong to neither and are not summed over (batched MatMul weights).
    """

    view: tuple[int, ...]
    out_axes: tuple[int, ...]
    in_axes: tuple[int, ...]
    batch_axes: tuple[int, ...] = ()

    @property
    def out_channels(self) -> int:
        """Number of output channels."""
        return math.prod(self.view[a] for a in self.out_axes)

    @property
    def in_channels(self) -> int:
        """Number of input channels."""
        return math.prod(self.view[a] for a in self.in_axes)

    def over(self, vector: Array, axes: tuple[int, ...]) -> Array:
        """Lay a vector of channels (or of length 1) along ``axes`` of the view, ready to broadcast."""
        keep = axes if vector.size != 1 else ()
        return vector.reshape([n if a in keep else 1 for a, n in enumerate(self.view)])

    def blocks(self) -> Iterator[tuple[slice, ...]]:
        """Cut the view into consecutive pieces of at most about BLOCK_ELEMENTS elements, in storage order."""
        axis = 0
        while axis < len(self.view) - 1 and math.prod(self.view[axis + 1 :]) > BLOCK_ELEMENTS:
            axis += 1
        step = max(1, BLOCK_ELEMENTS // max(1, math.prod(self.view[axis + 1 :])))
        for lead in np.ndindex(*self.view[:axis]):
            for start in range(0, self.view[axis], step):
                yield (*(slice(i, i + 1) for i in lead), slice(start, start + step))


def cut(multiplier: Array, block: tuple[slice, ...]) -> Array:
    """Return the part of a broadcast multiplier that belongs to ``block``."""
    return multiplier[tuple(s if multiplier.shape[a] != 1 else slice(None) for a, s in enumerate(block))]


@dataclass(frozen=True, eq=False)
class WeightFold:
    """``W' = (W·s_in)·s_out``, block by block.

    Attributes:
        layout: Where the channels lie.
        dtype: The stored type of W and of W'.
        into: The affine at the input, as vectors over input channels.
        out: The affine at the output, as vectors over output channels.
    """

    layout: WeightLayout
    dtype: np.dtype[Any]
    into: Affine
    out: Affine

    def pieces(self, weight: Array) -> Iterator[tuple[tuple[slice, ...], Array, Array]]:
        """Yield ``(block, W, W')`` in storage order: W as stored, W' rounded once."""
        w = weight.reshape(self.layout.view)
        s_in = self.layout.over(self.into.scale, self.layout.in_axes)
        s_out = self.layout.over(self.out.scale, self.layout.out_axes)
        for block in self.layout.blocks():
            piece = w[block]
            exact = piece.astype(wide(self.dtype))
            with np.errstate(over="ignore", invalid="ignore"):
                if self.into.has_scale:
                    exact *= cut(s_in, block)
                if self.out.has_scale:
                    exact *= cut(s_out, block)
            yield block, piece, round_once(exact, self.dtype)

    def rows(self, weight: Array, rows: slice) -> Array:
        """Return W' of some output channels, wide and not rounded yet.

        Args:
            weight: W as ``[output channels, inputs of a group, taps…]``; the view is ``[groups, outputs of a group,
                inputs of a group, taps]``.
            rows: The output channels.
        """
        groups, per_out, per_in, _ = self.layout.view
        exact = weight[rows].astype(wide(self.dtype))
        ones = (1,) * (weight.ndim - 2)
        with np.errstate(over="ignore", invalid="ignore"):
            if self.into.has_scale:
                s_in = np.broadcast_to(self.into.scale, groups * per_in).reshape(groups, per_in)
                exact *= s_in[np.arange(groups * per_out)[rows] // per_out].reshape(-1, per_in, *ones)
            if self.out.has_scale:
                exact *= np.broadcast_to(self.out.scale, groups * per_out)[rows].reshape(-1, 1, *ones)
        return exact

    def weight(self, weight: Array) -> Array:
        """Return all of W', in the stored shape."""
        result = np.empty(self.layout.view, self.dtype)
        for block, _, piece in self.pieces(weight):
            result[block] = piece
        return result.reshape(weight.shape)

    def shift_through(self, weight: Array) -> Array:
        """Return ``Σ W·t_in``, wide: shape [batch axes…, output channels]."""
        layout, kind = self.layout, wide(self.dtype)
        kept = (*layout.batch_axes, *layout.out_axes)
        summed = tuple(a for a in range(len(layout.view)) if a not in kept)
        total = np.zeros([n if a in kept else 1 for a, n in enumerate(layout.view)], kind)
        t_in = layout.over(self.into.shift, layout.in_axes)
        w = weight.reshape(layout.view)
        for block in layout.blocks():
            part = (w[block].astype(kind) * cut(t_in, block)).sum(axis=summed, keepdims=True)
            total[tuple(slice(None) if a in summed else s for a, s in enumerate(block))] += part
        return total.reshape(*(layout.view[a] for a in layout.batch_axes), layout.out_channels)

    def bias(self, bias: Array | None, weight: Array, gain: float = 1.0) -> Array:
        """Return ``s_out·(b + gain·Σ W·t_in) + t_out``, wide; ``bias`` broadcasts against output channels last."""
        inner = np.zeros(1, wide(self.dtype)) if bias is None else bias
        if self.into.has_shift:
            inner = inner + gain * self.shift_through(weight)
        with np.errstate(over="ignore", invalid="ignore"):
            return self.out.scale * inner + self.out.shift
