"""One forward and backward pass in TensorFlow's order of operations, in numbers that know their rounding error.

Gradients are taken as automatic differentiation takes them, through ``y = x·k + (offset − mean·k)``,
k = scale/√(var + epsilon), and through the moments, not in the centred form of the reference.
"""

from dataclasses import dataclass

import numpy as np

from bnpass.semantics.canonical import REDUCED, Canonical
from bnpass.semantics.resolved import Resolved
from tests.conformance.layers.approx import Approx, total
from tests.conformance.layers.cases import Array

Named = dict[str, Approx]
ETA = 1e-7
"""Keras 3 divides masked sums by W + this."""

_LAST = (0, 1, 2)
"""All axes of the canonical form but the channels."""


@dataclass(frozen=True)
class Numerics:
    """How one side computes.

    Attributes:
        unit: Unit roundoff of its arithmetic.
        one_pass: The variance is E[x²] − E[x]²: the synchronized layers of TensorFlow.
        epsilon_error: How far its epsilon may lie from the one asked for.
        momentum_error: How far its momentum may lie from the one asked for.
        renorm_momentum_error: The same for the momentum of renorm.
    """

    unit: float
    one_pass: bool = False
    epsilon_error: float = 0.0
    momentum_error: float = 0.0
    renorm_momentum_error: float = 0.0


class Pass:
    """One forward and backward pass, canonical: [b, G, S, C], statistics [G, C]."""

    def __init__(
        self,
        layer: Resolved,
        numerics: Numerics,
        epsilon: Approx,
        forms: list[Canonical],
        parts: list[Approx],
        weights: list[Array] | None,
    ) -> None:
        self._layer, self._numerics, self._epsilon = layer, numerics, epsilon
        self._forms, self._parts = forms, parts
        if weights is not None and layer.mask_rule == "select":
            self._parts = [
                Approx(np.where(w == 0, 0, p.value), 0.0, p.unit) for p, w in zip(parts, weights, strict=True)
            ]
        self._all_parts = parts
        self._weights = [form.pack(np.ones(())) for form in forms] if weights is None else weights
        self._eta = ETA if weights is not None and layer.mask_rule == "select" else 0.0
        self.count = float(sum(form.elements for form in forms))
        self._moments = False

    def take_constants(self, mean: Approx, var: Approx) -> None:
        """Normalize with given statistics, [1, C]."""
        self.mean, self.var = mean, var

    def take_moments(self) -> None:
        """Normalize with the statistics of the batch."""
        self._moments = True
        weighted = [p * w for p, w in zip(self._parts, self._weights, strict=True)]
        self._total = sum(np.asarray(w.sum(REDUCED)) for w in self._weights) + self._eta
        whole = np.where(self._total > self._eta, self._total, 1.0)  # nothing to divide: 0
        self.mean = total(weighted, REDUCED) / whole
        if self._numerics.one_pass:
            squares = total([p * p * w for p, w in zip(self._parts, self._weights, strict=True)], REDUCED) / whole
            self.var = (squares - self.mean * self.mean).at_least(0.0)
            return
        # Σw·(x − m')² = Σw·(x − m)² − 2·(m' − m)·Σw·(x − m) + W·(m' − m)²: the error of the mean counts in second
        # order, but for Keras 3, whose denominator leaves Σw·(x − m) above 0
        centred = [p - self.mean.exact()[:, None] for p in self._parts]
        squares = total([c * c * w for c, w in zip(centred, self._weights, strict=True)], REDUCED)
        left = np.abs(self._left(centred).value) / whole
        self.var = (squares / whole).off_by(self.mean.error * (self.mean.error + 2 * left))

    def _left(self, centred: list[Approx]) -> Approx:
        """Return Σw·(x − mean)."""
        return total([c.exact() * w for c, w in zip(centred, self._weights, strict=True)], REDUCED).exact()

    def averages(self) -> tuple[Approx, Approx]:
        """Return mean and variance averaged over the ghost batches, [C]."""
        groups = self.mean.value.shape[0]
        return self.mean.sum((0,)) / groups, self.var.sum((0,)) / groups

    def outputs(
        self, grads: list[Approx], transforms: list[tuple[Approx, Approx]], state: Named
    ) -> tuple[list[Approx], list[Approx], list[Approx], list[Approx]]:
        """Return Y, and the gradients with regard to X, gamma and beta."""
        unit = self._numerics.unit
        gamma, beta = state.get("gamma", Approx(1.0, 0.0, unit)), state.get("beta", Approx(0.0, 0.0, unit))
        # no variance is negative, be it noise: 1/√ is bounded by epsilon
        inv = (self.var + self._epsilon).inverse_sqrt(float(self._epsilon.value - self._epsilon.error))
        ys, direct, dgammas, dbetas, of_inv, of_mean = [], [], [], [], [], []
        channels = gamma.value.shape or (self.mean.value.shape[-1],)
        for x, dy, (p, q) in zip(self._all_parts, grads, transforms, strict=True):
            k = inv[:, None] * (gamma * p)
            offset = gamma * q + beta
            ys.append(self._times_centred(x, k) + offset)
            direct.append(dy * k)
            dk = self._times_centred(x, dy)
            dgammas.append(_per_channel((dk * inv[:, None] * p + dy * q).sum(_LAST), channels))
            dbetas.append(_per_channel(dy.sum(_LAST), channels))
            of_inv.append(dk * (gamma * p))
            of_mean.append(dy * k)
        dxs = direct if not self._moments else self._through_moments(direct, inv, of_inv, of_mean)
        unpacked_y = [_unpack(form, y) for form, y in zip(self._forms, ys, strict=True)]
        return unpacked_y, [_unpack(form, dx) for form, dx in zip(self._forms, dxs, strict=True)], dgammas, dbetas

    def _times_centred(self, x: Approx, k: Approx) -> Approx:
        """Return x·k − mean·k: the error of k counts times x − mean, as it is one k; the roundings do not cancel."""
        unit, mean = self._numerics.unit, self.mean[:, None]
        rounding = unit * (np.abs(x.value) + np.abs(mean.value)) * np.abs(k.value)
        return ((x - mean) * k).off_by(2 * rounding)

    def _through_moments(
        self, direct: list[Approx], inv: Approx, of_inv: list[Approx], of_mean: list[Approx]
    ) -> list[Approx]:
        whole = np.where(self._total > self._eta, self._total, np.inf)
        d_mean = -total(of_mean, REDUCED)
        d_var = total(of_inv, REDUCED) * (inv * inv * inv) * -0.5
        if self._numerics.one_pass:  # max(E[x²] − E[x]², 0) hands no gradient on where rounding makes it negative
            d_var = d_var.off_by(np.where(self.var.value < self.var.error, np.abs(d_var.value), 0.0))
        centred = [p - self.mean[:, None] for p in self._parts]
        if not self._numerics.one_pass:
            d_mean = d_mean - d_var * self._left(centred) * 2.0 / whole
        else:  # 2·x·dvar − 2·mean·dvar: as in _times_centred
            unit, mean = self._numerics.unit, np.abs(self.mean.value)[:, None]
            centred = [c.off_by(2 * unit * (np.abs(p.value) + mean)) for c, p in zip(centred, self._parts, strict=True)]
        through = [
            (c * d_var[:, None] * 2.0 + d_mean[:, None]) * w / whole[:, None]
            for c, w in zip(centred, self._weights, strict=True)
        ]
        if self._eta:  # the gradient of Keras 3's where: nothing, even beside a NaN
            through = [t.where(w != 0) for t, w in zip(through, self._weights, strict=True)]
        return [d + t for d, t in zip(direct, through, strict=True)]


def _per_channel(value: Approx, channels: tuple[int, ...]) -> Approx:
    return Approx(np.broadcast_to(value.value, channels), np.broadcast_to(value.error, channels), value.unit)


def _unpack(form: Canonical, value: Approx) -> Approx:
    packed = form.pack(np.zeros(())).shape
    return Approx(
        form.unpack(np.broadcast_to(value.value, packed)), form.unpack(np.broadcast_to(value.error, packed)), value.unit
    )
