"""How far a correct evaluation of a layer may lie from the reference: every rounding on the way, added up.

Two arithmetics are known. The bodies work in double throughout. The expansion works per element in the type of X
(float32 for 16 bits) around a shift K near the mean, and per channel in double, where S2/M − mean² cancels if replicas
share statistics. What both have in common, with u the unit roundoff per element and U that of double:

    size    = abs(x − mean) + K's distance from the mean                what is squared and added up
    δmean   = n·u·A(size) + n·U·A(abs x)                                A: the average over the batch, or its shares
    δvar    = n·u·A(size²) + δmean² [+ U·A(x²) where it cancels]
    δinv    = 1/√(var − δvar + epsilon) − inv_std
    δY      = u·(abs(scale)·(abs(a)·(size·inv_std·abs(r) + abs(d)) + abs(c)) + abs(B)) + what δmean … δr, δd move

and so on: sums of n terms lose n·u·Σ abs(term) in any order (N. Higham, Accuracy and Stability of Numerical
Algorithms, section 4.2). The numbers are those of the reference; nothing is taken from what is judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import ml_dtypes
import numpy as np

from bnpass.semantics.canonical import REDUCED
from bnpass.semantics.reference import Forward, State
from bnpass.semantics.resolved import Resolved
from tests.property.specs import FLOATS
from tests.support.float64 import Array

DOUBLE = 2.0**-53
SAFETY = 2.0
"""The order of operations is free, and a constant times a rounding is a matter of counting."""
LOST = 1e-36
"""What numbers of float32 that underflow may lose on the way, as they are flushed to zero here and there."""


def unit(dtype: str) -> float:
    """Return the unit roundoff of a type."""
    return float(ml_dtypes.finfo(FLOATS[dtype]).eps) / 2


@dataclass(frozen=True)
class Arithmetic:
    """How a model computes.

    Attributes:
        unit: Unit roundoff of what is done per element.
        cancels: Whether the variance is S2/M − mean².
        attributes: Whether epsilon and momentum go through a float attribute.
    """

    unit: float
    cancels: bool = False
    attributes: bool = True

    @classmethod
    def of_bodies(cls, layer: Resolved, *, masked: bool) -> "Arithmetic":
        """Return that of the bodies; an adjustment around them is in the type of the parameters.

        Moments under a mask are no operator: replicas exchange them in one message, unless X is double.
        """
        per_element = DOUBLE if layer.adjustment is None else unit(layer.parameter_dtype)
        return cls(per_element, cancels=masked and layer.synchronized and layer.dtype != "float64")

    @classmethod
    def of_expansion(cls, layer: Resolved, *, replicas: bool) -> "Arithmetic":
        """Return that of the expansion."""
        return cls(unit(layer.parameter_dtype), cancels=replicas and layer.dtype != "float64")


class Bounds:
    """How far the results of one step may be off.

    Args:
        layer: The layer.
        state: Before the step.
        step: What the reference says of it.
        xs: X of each replica.
        dys: dY of each replica.
        arithmetic: How the model computes.
    """

    def __init__(
        self,
        layer: Resolved,
        state: State,
        step: Forward,
        xs: Sequence[Array],
        dys: Sequence[Array],
        arithmetic: Arithmetic,
    ) -> None:
        self._layer, self._state, self._step, self._how = layer, state, step, arithmetic
        self._xs = [form.pack(x) for form, x in zip(step.forms, xs, strict=True)]
        self._dys = [form.pack(dy) for form, dy in zip(step.forms, dys, strict=True)]
        self._terms = float(sum(x.shape[0] * x.shape[2] for x in self._xs)) + 8.0  # and a few more
        epsilon, momentum = layer.epsilon, layer.momentum
        self._epsilon_off = abs(float(np.float32(epsilon)) - epsilon) * arithmetic.attributes + DOUBLE * epsilon
        self._momentum_off = abs(float(np.float32(momentum)) - momentum) * arithmetic.attributes
        self._moments()
        self._corrections()

    # --- statistics, [G, C] ---

    def _average(self, parts: Sequence[Array]) -> Array:
        shares = self._step.shares or []
        return self._total([share * part for share, part in zip(shares, parts, strict=True)])

    @staticmethod
    def _total(parts: Sequence[Array]) -> Array:
        return np.asarray(np.sum([part.sum(REDUCED) for part in parts], axis=0))

    def _moments(self) -> None:
        u, mean = self._how.unit, self._step.mean
        distances = [np.abs(x - mean[:, None]) for x in self._xs]
        shift = u * np.abs(mean)
        for x, distance in zip(self._xs, distances, strict=True):  # K is near the mean of this replica's own X
            count = x.shape[0] * x.shape[2]
            if count:
                near = distance.sum(REDUCED) + self._terms * u * np.abs(x).sum(REDUCED)
                shift = np.maximum(shift, near / count)
        self._sizes = [distance + shift[:, None] for distance in distances]
        if self._step.shares is None:
            self.mean, var = DOUBLE * np.abs(mean), 0 * mean
        else:
            n, size = self._terms, self._average(self._sizes)
            self.mean = n * u * size + n * DOUBLE * self._average([np.abs(x) for x in self._xs])
            squares = self._average([s * s for s in self._sizes])
            # Keras 3's weights do not add up to 1: Σ w·(x − mean)/W is lost·mean, so δmean counts in first order, too
            var = 4 * n * u * squares + self.mean**2 + 2 * self.mean * np.abs(mean) * self._step.lost
            if self._how.cancels:
                var = var + 16 * DOUBLE * self._average([x * x for x in self._xs])
        self.var = var
        # epsilon's own error stays inside the root: a computed variance is never negative
        true = 1 / self._step.inv_std**2
        self._below = np.minimum(var, np.maximum(true - self._layer.epsilon, 0)) + self._epsilon_off + 4 * DOUBLE * true
        self.inv_std = 1 / np.sqrt(np.maximum(true - self._below, 1e-300)) - self._step.inv_std
        self.inv_std += 4 * DOUBLE * self._step.inv_std

    def _corrections(self) -> None:
        """Set the errors of r, d and √(var + epsilon), [C], over the averages of ghost batches."""
        step, zero = self._step, 0 * self._step.r
        self.r, self.d, self.stddev = zero, zero, zero
        if self._layer.renorm is None or step.shares is None or not step.count:
            return
        renormed = self._state.renorm_stddev
        assert renormed is not None
        assert self._state.renorm_mean is not None
        true = (1 / step.inv_std**2).mean(0)
        std = np.sqrt(true)
        self.stddev = std - np.sqrt(np.maximum(true - self._below.mean(0), 0)) + 8 * DOUBLE * std
        floor = np.maximum(renormed, np.sqrt(self._layer.epsilon))
        self.r = self.stddev / floor + 8 * DOUBLE * step.r
        size = np.abs(step.mean).mean(0) + np.abs(self._state.renorm_mean)
        self.d = (self.mean.mean(0) + 8 * DOUBLE * size) / floor

    # --- elements ---

    @cached_property
    def _x_hats(self) -> list[tuple[Array, Array]]:
        """Magnitude and error of x̂ of each replica."""
        inv_std = self._step.inv_std[:, None]
        sizes = [size * inv_std for size in self._sizes]
        errors = [self.mean[:, None] * inv_std + s * self.inv_std[:, None] + 4 * self._how.unit * h
                  for s, h in zip(self._sizes, sizes, strict=True)]  # fmt: skip
        return list(zip(sizes, errors, strict=True))

    @cached_property
    def _renormed(self) -> list[tuple[Array, Array]]:
        """Magnitude and error of x̂·r + d."""
        r, d = np.abs(self._step.r), np.abs(self._step.d)
        return [(h * r + d, e * r + h * self.r + self.d + 4 * self._how.unit * (h * r + d)) for h, e in self._x_hats]

    def ys(self) -> list[Array]:
        """Return how far Y of each replica may be off, shaped as X."""
        scale, B, found = np.abs(self._state.scale), np.abs(self._state.B), []
        for form, (z, error), (a, c) in zip(self._step.forms, self._renormed, self._step.adjustments, strict=True):
            size = scale * (np.abs(a) * z + np.abs(c)) + B
            found.append(form.unpack(scale * np.abs(a) * error + 8 * self._how.unit * size + LOST))
        return found

    def dscales(self) -> list[Array]:
        """Return how far dscale of each replica may be off, [C]."""
        found, rounding = [], 2 * self._terms * self._how.unit
        for dy, (z, error), (a, c) in zip(self._dys, self._renormed, self._step.adjustments, strict=True):
            size = np.abs(a) * z + np.abs(c)
            found.append((np.abs(dy) * (np.abs(a) * error + rounding * size)).sum((0, 1, 2)) + LOST)
        return found

    def biases(self) -> list[Array]:
        """Return how far dB of each replica may be off, [C]."""
        return [2 * self._terms * self._how.unit * np.abs(dy).sum((0, 1, 2)) + LOST for dy in self._dys]

    def adjustments(self) -> list[tuple[Array, Array]]:
        """Return how far the gradients of a and c may be off, per element, to be summed as these are."""
        scale, found, u = np.abs(self._state.scale), [], 2 * self._terms * self._how.unit
        for form, dy, (z, error) in zip(self._step.forms, self._dys, self._renormed, strict=True):
            upstream = np.abs(dy) * scale
            found.append((form.unpack(upstream * (error + u * z) + LOST), form.unpack(u * upstream + LOST)))
        return found

    def _upstream(self) -> list[tuple[Array, Array]]:
        """Return magnitude and error of dY·scale·a·r."""
        scale, r, found = np.abs(self._state.scale), np.abs(self._step.r), []
        for dy, (a, _) in zip(self._dys, self._step.adjustments, strict=True):
            g = np.abs(dy) * scale * np.abs(a)
            found.append((g * r, g * self.r + 8 * self._how.unit * g * r))
        return found

    def dxs(self) -> list[Array]:
        """Return how far dX of each replica may be off, shaped as X."""
        step, rounding = self._step, 4 * self._terms * self._how.unit
        upstream, x_hats = self._upstream(), self._x_hats
        sums = self._total([g for g, _ in upstream]), self._total([e for _, e in upstream])
        crossed = self._total([g * h for (g, _), (h, _) in zip(upstream, x_hats, strict=True)])
        crossed_off = self._total([g * e + o * h for (g, o), (h, e) in zip(upstream, x_hats, strict=True)])
        inv_std, lost = step.inv_std[:, None], (step.inv_std * np.abs(step.mean) * step.lost)[:, None]
        shares = step.shares or [np.zeros(())] * len(upstream)
        found = []
        for form, (g, g_off), (h, h_off), share in zip(step.forms, upstream, x_hats, shares, strict=True):
            h = h + lost
            size = g + share * (sums[0][:, None] + h * crossed[:, None])
            off = g_off + share * (sums[1][:, None] + h * crossed_off[:, None] + h_off * crossed[:, None])
            whole = inv_std * (off + rounding * size) + self.inv_std[:, None] * (size + off)
            found.append(form.unpack(np.broadcast_to(whole, g.shape) + LOST))
        return found

    # --- statistics after the step, [C] ---

    def state(self) -> dict[str, Array]:
        """Return how far each statistic after the step may be off, by the names of the outputs."""
        step, layer = self._step, self._layer
        before, after = self._state, step.state
        if not step.count or step.shares is None:
            names = ("running_mean", "running_var", "running_stddev", "running_renorm_mean", "running_renorm_stddev")
            return dict.fromkeys(names, 0 * step.r)
        rest = 1 - layer.momentum
        correction = step.count / max(step.count - layer.running_var_correction, 1.0)
        mean, var = self.mean.mean(0), (self.var + 8 * DOUBLE / step.inv_std**2).mean(0) * correction
        found = {
            "running_mean": rest * mean + self._rounded(before.running_mean, after.running_mean, layer.momentum),
            "running_var": rest * var + self._rounded(before.running_var, after.running_var, layer.momentum),
        }
        if layer.renorm is None:
            return found
        kept = layer.renorm.momentum
        for name, old, new, off, momentum in (
            ("running_stddev", before.running_stddev, after.running_stddev, self.stddev, layer.momentum),
            ("running_renorm_mean", before.renorm_mean, after.renorm_mean, mean, kept),
            ("running_renorm_stddev", before.renorm_stddev, after.renorm_stddev, self.stddev, kept),
        ):
            assert old is not None
            assert new is not None
            found[name] = (1 - momentum) * off + self._rounded(old, new, momentum)
        assert after.running_stddev is not None
        stddev = after.running_stddev
        found["running_var"] = 2 * stddev * found["running_stddev"] + 8 * DOUBLE * (stddev**2 + layer.epsilon)
        return found

    def _rounded(self, before: Array, after: Array, momentum: float) -> Array:
        """Return what the roundings of momentum·before + (1 − momentum)·batch and of momentum itself cost."""
        batch = np.abs(after - momentum * before)  # (1 − momentum)·batch
        rest = 1 - momentum
        moved = self._momentum_off * (np.abs(before) + (batch / rest if rest else np.abs(before)))
        return 4 * DOUBLE * (np.abs(momentum * before) + batch + np.abs(before)) + moved
