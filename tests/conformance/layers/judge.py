"""Compare a product with TensorFlow, step by step, each keeping its own state.

The tolerance of every number is how far a correct evaluation in TensorFlow's arithmetic may be off, plus how far one
in the product's may be (``replay.py``), twice, for orders of evaluation that differ from the one replayed. To this
comes half a last place of each side's output where that is of 16 bits.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.conformance.layers import meaning
from tests.conformance.layers.approx import UNIT
from tests.conformance.layers.bounds import Bounds
from tests.conformance.layers.cases import Array, Case
from tests.conformance.layers.exchange import Arrays, part
from tests.conformance.layers.meaning import Named
from tests.conformance.layers.products import Product, Reference, expanded, with_bodies, with_kernels

PRODUCTS: dict[str, Callable[[Case, Named], Product]] = {
    "reference": Reference,
    "body": with_bodies,
    "kernel": with_kernels,
    "expanded": expanded,
}
SAFETY = 2.0


@dataclass(frozen=True)
class Finding:
    """The comparison of one array.

    Attributes:
        what: Step, replica and quantity.
        ratio: Largest deviation over tolerance; at most 1 is right, and NaN is not.
        deviation: The largest deviation.
        tolerance: The largest tolerance, over the largest magnitude.
    """

    what: str
    ratio: float
    deviation: float
    tolerance: float


@dataclass(frozen=True)
class Verdict:
    """The comparison of a case.

    Attributes:
        findings: Every array that was compared.
    """

    findings: tuple[Finding, ...]

    @property
    def wrong(self) -> list[Finding]:
        """What is not within its tolerance."""
        return [f for f in self.findings if not f.ratio <= 1]

    @property
    def worst(self) -> float:
        """The largest ratio."""
        return max((f.ratio for f in self.findings), default=0.0)


@np.errstate(invalid="ignore", over="ignore", divide="ignore")
def judge(case: Case, product: str, arrays: Arrays, oracle: Arrays) -> Verdict:
    """Run a case on a product, and compare it with what TensorFlow gave.

    Args:
        case: The case.
        product: One of ``PRODUCTS``.
        arrays: What the layer was fed (``arrays.draw``).
        oracle: What it gave.
    """
    start = meaning.started(case, arrays)
    findings = [
        compare(f"before/{name}", start[name], value, 2 * UNIT["float32"] * np.abs(value))
        for name, value in part(oracle, "before").items()
    ]
    mine = PRODUCTS[product](case, start)
    exact = product == "reference"
    bounds = [Bounds(case, start, is_product=False), Bounds(case, start, is_product=True, exact=exact)]
    skip = skipped(case)
    for step, training in enumerate(case.steps):
        inputs = inputs_of(case, arrays, step)
        loss = np.asarray(meaning.loss(case, mine.state[0]))
        sides = [{"loss": bound.loss()} for bound in bounds]
        found = mine.step(*inputs, training) | {"loss": loss}
        sides = [side | bound.step(*inputs, training) for side, bound in zip(sides, bounds, strict=True)]
        if case.learning_rate and training:
            _learn(case, mine, found)
            sides = [side | bound.learn() for side, bound in zip(sides, bounds, strict=True)]
        wanted = part(oracle, str(step))
        for key in sorted(set(wanted) - skip):
            allowed = SAFETY * (sides[0][key].error + sides[1][key].error)
            findings.append(compare(f"{step}/{key}", found[key], wanted[key], allowed))
            if exact:  # and the tolerance is that of the right function
                replayed = sides[1][key]
                findings.append(compare(f"replay {step}/{key}", found[key], replayed.value, SAFETY * replayed.error))
    return Verdict(tuple(findings))


def holds(case: Case, product: str, arrays: Arrays, oracle: Arrays) -> Verdict:
    """Assert that a product does what TensorFlow did."""
    verdict = judge(case, product, arrays, oracle)
    wrong = verdict.wrong
    assert not wrong, f"{product}: {len(wrong)} of {len(verdict.findings)} arrays are wrong: {wrong[:6]}"
    return verdict


def inputs_of(case: Case, arrays: Arrays, step: int) -> tuple[list[Array], list[Array], list[Array] | None]:
    """Return X, the gradient of Y, and the mask, of each replica."""
    replicas = range(len(case.shares))
    xs, dys = ([arrays[f"{kind}/{step}/{r}"] for r in replicas] for kind in ("x", "w"))
    return xs, dys, [arrays[f"mask/{step}/{r}"] for r in replicas] if case.mask else None


def skipped(case: Case) -> set[str]:
    """Return what is not compared: in tf_keras an empty replica does not update its own copy of the statistics."""
    empty = [r for r, shape in enumerate(case.shares) if 0 in shape] if case.api != "keras3" else []
    return {f"{r}/{name}" for r in empty for name in meaning.FIELDS}


def _learn(case: Case, mine: Product, found: Arrays) -> None:
    """Let gamma and beta of a product learn from its own gradients."""
    for r, state in enumerate(mine.state):
        learnt = {
            name: meaning.learnt(case, name, state[name], found[f"{r}/d{name}"])
            for name in ("gamma", "beta")
            if name in state
        }
        mine.state[r] = state | learnt
        found |= {f"{r}/{name}": value for name, value in learnt.items()}


def compare(what: str, found: Array, wanted: Array, allowed: Array) -> Finding:
    """Compare an array with what it should be, element by element."""
    if found.shape != wanted.shape:
        return Finding(f"{what}: shape {found.shape} instead of {wanted.shape}", np.inf, np.inf, 0.0)
    if not wanted.size:
        return Finding(what, 0.0, 0.0, 0.0)
    allowed = np.broadcast_to(allowed, wanted.shape)
    # infinity or NaN: the order of the operations decides which of them comes out, but a number is neither
    same = (found == wanted) | (~np.isfinite(found) & ~np.isfinite(wanted))
    with np.errstate(invalid="ignore", divide="ignore"):
        deviation = np.where(same, 0.0, np.abs(found - wanted))
        # a tolerance that is no number permits nothing
        ratio = np.where(same, 0.0, deviation / np.where(np.isfinite(allowed), allowed, 0.0))
    ratio = np.where(np.isnan(ratio), np.inf, ratio)
    finite = np.isfinite(wanted) & np.isfinite(allowed)
    scale = np.abs(wanted, where=finite, out=np.zeros_like(wanted)).max()
    tolerance = allowed[finite].max(initial=0.0) / scale if scale else 0.0
    return Finding(what, float(ratio.max()), float(deviation.max()), float(tolerance))
