"""The report of an export."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from bnpass import __version__
from bnpass.census import Census
from bnpass.report.base import SCHEMA, Check, FileFact, counted, versions

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_SHOWN = 12
"""Kinds of nodes in the text."""


@dataclass(frozen=True)
class ExportReport:
    """What an export did.

    Attributes:
        name: The model, as it was given.
        framework: What it is a model of, with the version.
        source: The file that it was read from; None for a live model, and for a folder.
        target: The file that was written, if one was.
        norms: By layer of batch normalization, how many nodes stand for it: one for each call.
        state: Variables that go in and come out, in a training export: their number, and of those that change.
        after: What is in the exported model.
        notes: What a reader should know besides.
        checks: What was compared.
        options: What the caller chose, a dataclass.
        seconds: How long each stage took, if somebody had a clock running.
    """

    verb: ClassVar[str] = "export"

    name: str
    framework: str
    source: FileFact | None
    target: FileFact | None
    norms: dict[str, int]
    state: tuple[int, int]
    after: Census
    notes: tuple[str, ...]
    checks: tuple[Check, ...]
    options: "DataclassInstance"
    seconds: Mapping[str, float] | None = field(default=None, kw_only=True)

    def to_text(self) -> str:
        """Return what was exported, in a few lines."""
        lines = [f"{self.name} ({self.framework}) -> {self.target.path if self.target else 'memory'}", ""]
        lines.append(self.summary())
        if self.state[0]:
            lines.append(f"state: {counted(self.state[0], 'input')} with a default, {self.state[1]} updated")
        most = sorted(self.after.ops.items(), key=lambda item: (-item[1], item[0]))
        more = f", {len(most) - _SHOWN} more kinds" if len(most) > _SHOWN else ""
        lines.append(
            f"{counted(self.after.nodes, 'node')}: " + ", ".join(f"{n} {op}" for op, n in most[:_SHOWN]) + more
        )
        lines += [f"note: {note}" for note in self.notes]
        lines += ["", *(f"{'checked' if c.ran else 'not checked'}, {c.name}: {c.text}" for c in self.checks)]
        return "\n".join(lines)

    def summary(self) -> str:
        """Return what was done, in one line."""
        calls = sum(self.norms.values())
        return f"batch normalization: {counted(len(self.norms), 'layer')}, {counted(calls, 'call')}, a node for each"

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain data, in the form of ``report.schema.json``."""
        return {
            "schema": SCHEMA,
            "verb": self.verb,
            "bnpass": __version__,
            "versions": versions(),
            "source": None if self.source is None else asdict(self.source),
            "target": None if self.target is None else asdict(self.target),
            "framework": self.framework,
            "options": asdict(self.options),
            "norms": dict(self.norms),
            "state": {"inputs": self.state[0], "updated": self.state[1]},
            "after": asdict(self.after),
            "notes": list(self.notes),
            "checks": [asdict(c) for c in self.checks],
            "seconds": None if self.seconds is None else dict(self.seconds),
        }

    def to_html(self) -> str:
        """Return the same as a page that needs nothing but itself."""
        from bnpass.report.html import to_html  # which knows every report

        return to_html(self)
