"""The report of one run of a verb, as text for people and JSON for programs.

The JSON form is described by ``report.schema.json`` beside this file; its ``schema`` number grows when a field
changes its meaning or goes away.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from bnpass import __version__
from bnpass.census import Census
from bnpass.graph.kept import Kept

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SCHEMA = 1


@dataclass(frozen=True)
class Check:
    """One layer of checking.

    Attributes:
        name: ``local`` or ``whole model``.
        ran: Whether it ran.
        text: What it found, or why it did not run.
        details: Its figures, as plain data.
    """

    name: str
    ran: bool
    text: str
    details: dict[str, Any] | None = None


@dataclass(frozen=True)
class FileFact:
    """A file that was read or written.

    Attributes:
        path: Its path, as given.
        bytes: Its size; of a written one, with its data file.
        sha256: Its digest, if one was asked for.
    """

    path: str
    bytes: int
    sha256: str | None


@dataclass(frozen=True)
class Report:
    """What a verb did with a model; each verb adds its own part.

    Attributes:
        source: The file it was read from, if it was a file.
        target: The file it was written to, if it was.
        before: What was in the model.
        after: What is in it now.
        kept: The nodes that stayed, with the reason.
        checks: The layers of checking.
        options: What the caller chose, a dataclass.
        seconds: How long each stage took, if somebody had a clock running.
    """

    verb: ClassVar[str]

    source: FileFact | None
    target: FileFact | None
    before: Census
    after: Census
    kept: tuple[Kept, ...]
    checks: tuple[Check, ...]
    options: "DataclassInstance"
    seconds: Mapping[str, float] | None = field(default=None, kw_only=True)

    def to_text(self) -> str:
        """Return the table before/after, a line for each kept node, and what was checked."""
        lines = [*self._title(), *_table(self.before, self.after), "", self.summary()]
        if self.kept:
            lines += ["", *(str(kept) for kept in self.kept)]
        lines += ["", *(f"{'checked' if c.ran else 'not checked'}, {c.name}: {c.text}" for c in self.checks)]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain data, in the form of ``report.schema.json``."""
        return {
            "schema": SCHEMA,
            "verb": self.verb,
            "bnpass": __version__,
            "versions": versions(),
            "source": None if self.source is None else asdict(self.source),
            "target": None if self.target is None else asdict(self.target),
            "options": asdict(self.options),
            "before": asdict(self.before),
            "after": asdict(self.after),
            **self._done(),
            "kept": [kept_line(k) for k in self.kept],
            "checks": [asdict(c) for c in self.checks],
            "seconds": None if self.seconds is None else dict(self.seconds),
        }

    def to_html(self) -> str:
        """Return the same as a page that needs nothing but itself."""
        from bnpass.report.html import to_html  # which knows every report

        return to_html(self)

    def _done(self) -> dict[str, Any]:
        """Return the verb's own part, as plain data."""
        raise NotImplementedError

    def summary(self) -> str:
        """Return what was done, in one line."""
        raise NotImplementedError

    def _title(self) -> list[str]:
        if self.source is None:
            return []
        target = f" -> {self.target.path}" if self.target is not None else ""
        return [f"{self.source.path}{target}", ""]


def versions() -> dict[str, str]:
    """Return the versions of what the result depends on."""
    import ml_dtypes  # only a written report asks
    import numpy as np
    import onnx
    import onnx_ir as ir

    return {module.__name__: str(module.__version__) for module in (ir, ml_dtypes, np, onnx)}


def counted(number: int, noun: str) -> str:
    """Return ``1 edit``, ``2 edits``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def kept_line(kept: Kept) -> dict[str, str]:
    """Return what was kept as plain data."""
    return {
        "node": kept.node,
        "op_type": kept.op_type,
        "id": kept.refusal.code,
        "slug": kept.refusal.slug,
        "at": kept.at,
        "reason": kept.reason,
    }


def _table(before: Census, after: Census) -> list[str]:
    names = sorted({*before.ops, *after.ops})
    changed = [n for n in names if before.ops.get(n, 0) != after.ops.get(n, 0)]
    rows = [(n, before.ops.get(n, 0), after.ops.get(n, 0)) for n in changed]
    same = sum(before.ops.get(n, 0) for n in names if n not in changed)
    rows += [
        ("other ops" if changed else "all ops", same, same),
        ("nodes", before.nodes, after.nodes),
        ("bytes of constants", before.constant_bytes, after.constant_bytes),
    ]
    cells = [("", "before", "after", "change")]
    cells += [(name, f"{a:,}", f"{b:,}", f"{b - a:+,}" if a != b else "") for name, a, b in rows]
    return list(aligned(cells))


def aligned(rows: Sequence[tuple[str, ...]]) -> Iterable[str]:
    """Yield rows with the first column to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()
