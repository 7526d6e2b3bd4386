"""What a verification found: a value that prints as a table and converts to JSON."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from math import ceil, inf, isfinite, log10
from typing import Any

from bnpass.errors import VerificationError
from bnpass.verification.bound import Judgement
from bnpass.verification.compare_points import NotCompared

__all__ = ["OutputComparison", "PartCheck", "Status", "Verification"]


class Status(Enum):
    """How a verification ended."""

    AGREE = "agree"
    MISMATCH = "mismatch"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class OutputComparison:
    """One output, or inner value, over all draws; the figures are those of the worst draw.

    Attributes:
        name: Its name in the graph.
        inner: Whether it is a value inside the graphs, compared in place of an output behind it.
        ok: Whether it was accepted in every draw.
        max_abs_error: Largest difference from the reference.
        max_rel_error: The same relative to the largest reference element.
        original_error: The original's own largest difference from the reference.
        slack: What one ULP of the weights moves, with one rounding of the output.
        allowed: The bound.
        snr_db: Signal to noise ratio of the new output.
        atol_that_would_pass: Absolute tolerance between the two models that would accept every draw.
        draw: The worst draw.
        reason: Why it was not accepted.

    """

    name: str
    inner: bool
    ok: bool
    max_abs_error: float
    max_rel_error: float
    original_error: float
    slack: float
    allowed: float
    snr_db: float
    atol_that_would_pass: float
    draw: int
    reason: str = ""

    @classmethod
    def worst(cls, name: str, judgements: Iterable[tuple[int, Judgement]], *, inner: bool) -> "OutputComparison":
        """Summarize the judgements of all draws."""
        every = list(judgements)
        draw, judgement = max(every, key=lambda pair: _badness(pair[1]))
        return cls(
            name=name,
            inner=inner,
            ok=all(j.ok for _, j in every),
            max_abs_error=judgement.error,
            max_rel_error=judgement.relative,
            original_error=judgement.error_original,
            slack=judgement.slack,
            allowed=judgement.allowed,
            snr_db=judgement.snr_db,
            atol_that_would_pass=_rounded_up(max(j.difference for _, j in every)),
            draw=draw,
            reason=judgement.reason,
        )


def _badness(judgement: Judgement) -> tuple[bool, float]:
    if judgement.allowed > 0:
        return not judgement.ok, judgement.error / judgement.allowed
    return not judgement.ok, inf if judgement.error else 0.0


def _rounded_up(value: float) -> float:
    """Two digits, never below the value."""
    if value == 0 or not isfinite(value):
        return value
    unit = 10.0 ** (ceil(log10(value)) - 2)
    rounded = ceil(value / unit) * unit
    return float(f"{rounded:.3g}") if float(f"{rounded:.3g}") >= value else rounded * 1.01


@dataclass(frozen=True)
class PartCheck:
    """One check of a part of a model, or of replicas; the figures are those of the worst value and draw.

    Attributes:
        name: What was checked.
        ok: Whether it was accepted.
        largest: The largest error, over what is allowed; infinite where there is no such number.
        value: The value that it was found in.
        draw: The draw that it was found in.
        reason: Why it was not accepted.

    """

    name: str
    ok: bool
    largest: float
    value: str
    draw: int
    reason: str = ""

    @classmethod
    def worst(cls, name: str, judgements: Iterable[tuple[str, int, Judgement]]) -> "PartCheck":
        """Summarize what was judged, each with the name of the value and the draw."""
        value, draw, judgement = max(judgements, key=lambda judged: _badness(judged[2]))
        return cls(name, judgement.ok, _badness(judgement)[1], value, draw, judgement.reason)

    def __str__(self) -> str:
        if self.ok:
            return f"ok  {self.name}: largest error {self.largest:.2g} of what is allowed ('{self.value}')"
        where = f"'{self.value}': " if self.value else ""
        return f"NO  {self.name}: {where}{self.reason} (draw {self.draw})"


@dataclass(frozen=True)
class Verification:
    """The result of comparing two models, or one model run in several ways.

    Attributes:
        status: Whether they agree, differ, or could not be compared.
        seed: The seed of the draws.
        draws: How many sets of inputs both models were run on.
        sizes: The input shapes that were run, one line per draw.
        outputs: The comparisons.
        reference: What the new model was judged against.
        not_compared: Outputs left out, with reasons.
        failure: Why the models differ as a whole or could not be run; empty otherwise.
        notes: What a reader should know besides.
        checks: Checks of parts and of replicas, where one model is run in several ways.

    """

    status: Status
    seed: int
    draws: int = 0
    sizes: tuple[str, ...] = ()
    outputs: tuple[OutputComparison, ...] = ()
    reference: str = ""
    not_compared: tuple[NotCompared, ...] = ()
    failure: str = ""
    notes: tuple[str, ...] = ()
    checks: tuple[PartCheck, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the models were compared and agree."""
        return self.status is Status.AGREE

    @property
    def tolerance_that_would_pass(self) -> float:
        """The `atol` (with `rtol` 0) that would have accepted every output; infinite if none would."""
        return max((output.atol_that_would_pass for output in self.outputs), default=inf)

    def with_more(self, others: Iterable["Verification"], note: str = "") -> "Verification":
        """Return this result and others of the same model as one; a note of one's own comes first."""
        every = [self, *others]
        status = max((one.status for one in every), key=(Status.AGREE, Status.MISMATCH, Status.NOT_RUN).index)
        checks = []
        for position, one in enumerate(every):
            before = sum(len(other.sizes) for other in every[:position])
            checks += [replace(check, draw=check.draw + before) for check in one.checks]
        return replace(
            self,
            status=status,
            draws=sum(one.draws for one in every),
            failure="; ".join(one.failure for one in every if one.failure),
            sizes=tuple(size for one in every for size in one.sizes),
            checks=tuple(checks),
            notes=tuple(dict.fromkeys(filter(None, (note, *(text for one in every for text in one.notes))))),
        )

    def to_text(self) -> str:
        """Return a table for people.

        Returns:
            Several lines without colour.

        """
        reference = self.reference or "none"
        lines = [f"{self.status.value}: {self.draws} draws, seed {self.seed}, reference: {reference}"]
        if self.failure:
            lines.append(self.failure)
        lines += [f"  draw {number}  {sizes}" for number, sizes in enumerate(self.sizes)]
        lines += [f"  {check}" for check in self.checks]
        if self.outputs:
            lines += _table(self.outputs)
        lines += [f"  {output.name}: {output.reason} (draw {output.draw})" for output in self.outputs if not output.ok]
        lines += [f"  not compared: {item.name}: {item.reason}" for item in self.not_compared]
        lines += [f"  note: {note}" for note in self.notes]
        if self.status is Status.MISMATCH and not self.checks and isfinite(self.tolerance_that_would_pass):
            lines.append(f"  --atol {self.tolerance_that_would_pass:.3g} would have passed")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain data; infinities and NaN, which JSON lacks, become null.

        Returns:
            A dictionary for ``json.dumps``.

        """
        return {
            "ok": self.ok,
            "status": self.status.value,
            "failure": self.failure,
            "seed": self.seed,
            "draws": self.draws,
            "sizes": list(self.sizes),
            "reference": self.reference,
            "outputs": [{key: _plain(value) for key, value in vars(output).items()} for output in self.outputs],
            "checks": [{key: _plain(value) for key, value in vars(check).items()} for check in self.checks],
            "not_compared": [vars(item) for item in self.not_compared],
            "tolerance_that_would_pass": _plain(self.tolerance_that_would_pass),
            "notes": list(self.notes),
        }

    def summary(self) -> str:
        """Return what was compared and how close it came, in one line."""
        draws = "1 draw" if self.draws == 1 else f"{self.draws} draws"
        text = f"{draws} in ONNX Runtime, seed {self.seed}, reference {self.reference}"
        if self.outputs:
            closest = max(self.outputs, key=lambda o: o.max_abs_error / o.allowed if o.allowed else 0.0)
            text += f"; largest error {closest.max_abs_error:.2g} of '{closest.name}', {closest.allowed:.2g} is allowed"
        return text

    def raise_for_mismatch(self) -> None:
        """Raise if the models were not found to agree.

        Raises:
            VerificationError: They differ, or could not be compared.

        """
        if self.ok:
            return
        wrong = [f"{check.name}: {check.reason}" for check in self.checks if not check.ok]
        wrong += [f"{output.name}: {output.reason}" for output in self.outputs if not output.ok]
        error = VerificationError(self.failure or f"The models differ: {'; '.join(wrong)}")
        error.add_note(f"seed {self.seed}; sizes: {'; '.join(self.sizes) or 'none'}")
        raise error


def _plain(value: float | str | bool) -> float | str | bool | None:
    return None if isinstance(value, float) and not isfinite(value) else value


def _table(outputs: Iterable[OutputComparison]) -> list[str]:
    rows = [("output", "ok", "max abs", "max rel", "original", "allowed", "SNR dB")]
    rows += [
        (
            output.name + (" (inner)" if output.inner else ""),
            "yes" if output.ok else "NO",
            f"{output.max_abs_error:.3g}",
            f"{output.max_rel_error:.3g}",
            f"{output.original_error:.3g}",
            f"{output.allowed:.3g}",
            f"{output.snr_db:.1f}",
        )
        for output in outputs
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
