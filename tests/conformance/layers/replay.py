"""TensorFlow's own order of operations, in numbers that know their rounding error.

This gives the tolerance of every comparison: how far a correct float32 (or float64) evaluation of the same formulas
may lie from the exact value, by the type, by the number of elements, and by abs(mean)·inv_std (semantics 2.2). It is
also a derivation of its own (``replayed_pass.py``), which the judge holds against the reference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bnpass.semantics.canonical import Canonical
from bnpass.semantics.resolved import Resolved
from tests.conformance.layers.approx import Approx
from tests.conformance.layers.cases import Array
from tests.conformance.layers.replayed_pass import Named, Numerics, Pass


@dataclass(frozen=True)
class Step:
    """The outcome of one step.

    Attributes:
        ys: Y of each replica.
        dxs: The gradient with regard to X, of each replica.
        dgammas: With regard to gamma, [C], local to each replica.
        dbetas: With regard to beta, [C].
        state: Variables after the step, [C], by their Keras names.
    """

    ys: list[Approx]
    dxs: list[Approx]
    dgammas: list[Approx]
    dbetas: list[Approx]
    state: Named


class Replay:
    """A layer, step by step.

    Args:
        layer: The layer.
        numerics: How it is computed.
        state: The variables before the first step, [C], by their Keras names.
        clip: Values of the renorm clipping that are tensors.
        symbolic: ``training`` is a tensor.
    """

    def __init__(
        self,
        layer: Resolved,
        numerics: Numerics,
        state: Mapping[str, Array],
        clip: Mapping[str, float],
        symbolic: bool = False,
    ) -> None:
        self._layer, self._numerics, self._clip, self._symbolic = layer, numerics, clip, symbolic
        unit = numerics.unit
        self.state: Named = {name: Approx(value, 0.0, unit) for name, value in state.items()}
        self._epsilon = Approx(layer.epsilon, numerics.epsilon_error + unit * layer.epsilon, unit)

    def step(self, xs: Sequence[Array], dys: Sequence[Array], masks: Sequence[Array] | None, training: bool) -> Step:
        """Return the outcome of a step, and remember the state."""
        batch = self._layer.uses_batch_statistics(training)
        ghost = self._layer.virtual_batch_size if batch and not self._symbolic else 0
        forms = [Canonical(x.shape, self._layer.axes, ghost) for x in xs]
        parts = [Approx(form.pack(x), 0.0, self._numerics.unit) for form, x in zip(forms, xs, strict=True)]
        grads = [Approx(form.pack(dy), 0.0, self._numerics.unit) for form, dy in zip(forms, dys, strict=True)]
        pass_ = Pass(self._layer, self._numerics, self._epsilon, forms, parts, self._weights(forms, masks))
        if batch:
            pass_.take_moments()
        else:
            pass_.take_constants(self.state["moving_mean"][None], self.state["moving_variance"][None])
        before = self.state
        transforms = [self._transform(pass_, form, batch) for form in forms]
        if batch and pass_.count:
            self.state = self.state | self._updated(pass_, training)
        ys, dxs, dgammas, dbetas = pass_.outputs(grads, transforms, before)
        return Step(ys, dxs, dgammas, dbetas, self.state)

    def _weights(self, forms: Sequence[Canonical], masks: Sequence[Array] | None) -> list[Array] | None:
        if masks is None or self._layer.mask_rule == "ignored":
            return None
        chosen = [(m != 0).astype(float) for m in masks] if self._layer.mask_rule == "select" else masks
        return [form.pack(m[..., None]) for form, m in zip(forms, chosen, strict=True)]

    def _transform(self, pass_: Pass, form: Canonical, batch: bool) -> tuple[Approx, Approx]:
        """Return (p, q): scale = gamma·p, offset = gamma·q + beta, canonical."""
        unit = self._numerics.unit
        p, q = Approx(1.0, 0.0, unit), Approx(0.0, 0.0, unit)
        if not batch:
            return p, q
        if self._layer.adjustment is not None:
            a, c = self._layer.adjustment(form.shape)
            p, q = Approx(form.pack(a), 0.0, unit), Approx(form.pack(c), 0.0, unit)
        if self._layer.renorm is not None:
            r, d = self._corrections(pass_)
            return p * r, p * d + q
        return p, q

    def _corrections(self, pass_: Pass) -> tuple[Approx, Approx]:
        renorm = self._layer.renorm
        assert renorm is not None
        mean, var = pass_.averages()
        low = self.state["renorm_stddev"].at_least(self._epsilon.sqrt())
        r, d = (var + self._epsilon).sqrt() / low, (mean - self.state["renorm_mean"]) / low
        rmin, rmax, dmax = (
            self._clip[key] if (v := getattr(renorm, key)) is None else v for key in ("rmin", "rmax", "dmax")
        )
        return r.at_least(rmin).at_most(rmax), d.at_least(-dmax).at_most(dmax)

    def _updated(self, pass_: Pass, training: bool) -> Named:
        mean, var = pass_.averages()
        kept, renorm = (self._layer.momentum, self._numerics.momentum_error), self._layer.renorm
        after: Named = {}
        if self._layer.updates_statistics(training):
            after["moving_mean"] = self._average("moving_mean", mean, *kept)
        if self._layer.updates_statistics(training) and renorm is None:
            correction = pass_.count / max(pass_.count - self._layer.running_var_correction, 1.0)
            after["moving_variance"] = self._average("moving_variance", var * correction, *kept)
        if renorm is None:
            return after
        stddev = (var + self._epsilon).sqrt()
        if self._layer.updates_statistics(training):
            after["moving_stddev"] = self._average("moving_stddev", stddev, *kept)
            squared = after["moving_stddev"] * after["moving_stddev"]
            after["moving_variance"] = (squared - self._epsilon).at_least(0.0)
        if self._layer.updates_renorm(training):
            kept = (renorm.momentum, self._numerics.renorm_momentum_error)
            after["renorm_mean"] = self._average("renorm_mean", mean, *kept)
            after["renorm_stddev"] = self._average("renorm_stddev", stddev, *kept)
        return after

    def _average(self, name: str, new: Approx, momentum: float, off: float) -> Approx:
        unit = self._numerics.unit
        kept = Approx(momentum, off + unit * momentum, unit)
        fresh = Approx(1 - momentum, off + unit * (1 - momentum), unit)
        old = self.state[name]
        # tf_keras writes old − (old − new)·fresh, whose roundings do not go away with momentum 0
        return (old * kept + new * fresh).off_by(2 * unit * (np.abs(old.value) + np.abs(new.value)) * fresh.value)
