"""The report of a comparison."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bnpass import __version__
from bnpass.comparison import Comparison
from bnpass.comparison.result import ChangedNode, ChangedWeight, Fact, OnlyNode, OnlyWeight
from bnpass.report.base import SCHEMA, Check, FileFact, counted, versions

_SHOWN = 12
"""Lines of one kind in the text."""
_FEW, _NAMED = 4, 2
"""Of more nodes of one op that only one model has, so many are named."""


@dataclass(frozen=True)
class DiffReport:
    """What differs between two models.

    Attributes:
        a: The first, if it was a file.
        b: The second, if it was a file.
        comparison: What differs.
        numbers: Whether they compute the same.
        seconds: How long each stage took, if somebody had a clock running.
    """

    a: FileFact | None
    b: FileFact | None
    comparison: Comparison
    numbers: Check
    seconds: Mapping[str, float] | None = field(default=None, kw_only=True)

    def to_text(self) -> str:
        """Return the verdict, a line for each difference, and what the numbers say."""
        found = self.comparison
        nodes, weights = (counted(pair[0], noun) for pair, noun in ((found.nodes, "node"), (found.weights, "weight")))
        names = " -> ".join(fact.path for fact in (self.a, self.b) if fact is not None)
        lines = [f"{names}: " if names else ""]
        lines[0] += f"same: {nodes}, {weights}" if found.same else "different"
        lines += _section("interface", map(_fact, found.interface))
        lines += _section("structure", [*_only_nodes(found.only_nodes), *map(_changed, found.changed_nodes)])
        lines += _section("weights", [*_only_weights(found.only_weights), *map(_weight, found.changed_weights)])
        lines += [text for text in (self._renamed(),) if text]
        lines += _section("not counted", map(_fact, found.uncounted))
        lines.append(f"numbers: {self.numbers.text}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain data, in the form of ``diff.schema.json``."""
        found = asdict(self.comparison)
        return {
            "schema": SCHEMA,
            "verb": "diff",
            "bnpass": __version__,
            "versions": versions(),
            "a": None if self.a is None else asdict(self.a),
            "b": None if self.b is None else asdict(self.b),
            "same": self.comparison.same,
            **{key: list(value) for key, value in found.items()},
            "numbers": asdict(self.numbers),
            "seconds": None if self.seconds is None else dict(self.seconds),
        }

    def _renamed(self) -> str:
        kinds = [each.kind for each in self.comparison.renamed]
        told = [counted(kinds.count(kind), kind) for kind in ("node", "value", "weight", "dimension") if kind in kinds]
        return f"renamed only: {', '.join(told)}" if told else ""


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    given = list(lines)
    if given:
        yield title
        yield from (f"  {line}" for line in given[:_SHOWN])
    if len(given) > _SHOWN:
        yield f"  and {len(given) - _SHOWN:,} more (--report FILE lists them)"


def _fact(fact: Fact) -> str:
    if not fact.before or not fact.after:
        return f"{fact.what}: {fact.before or fact.after} only in {'A' if fact.before else 'B'}"
    return f"{fact.what}: {fact.before} -> {fact.after}"


def _only_nodes(nodes: Iterable[OnlyNode]) -> Iterator[str]:
    groups: dict[tuple[str, str, str], list[str]] = {}
    for node in nodes:
        groups.setdefault((node.side, node.where, node.op_type), []).append(node.node)
    for (side, where, op_type), names in groups.items():
        op = "" if op_type == "function" else op_type
        yield from _together(op, names, f"{f' in {where}' if where else ''}: only in {side.upper()}")


def _only_weights(weights: Iterable[OnlyWeight]) -> Iterator[str]:
    for side in ("a", "b"):
        names = [f"'{weight.name}' {weight.type}" for weight in weights if weight.side == side]
        yield from _together("", names, f": only in {side.upper()}", noun="weights")


def _together(op: str, names: list[str], told: str, noun: str = "") -> Iterator[str]:
    """Yield a line for each of a few things; for many of one kind, one line that counts them and names the first."""
    quoted = [name if noun or not op else f"'{name}'" for name in names]
    if len(names) <= _FEW:
        yield from (f"{op} {name}{told}".lstrip() for name in quoted)
    else:
        yield f"{len(names):,} {noun or op or 'functions'}{told}: {', '.join(quoted[:_NAMED])}, …"


def _changed(node: ChangedNode) -> str:
    subject = f"{node.op_type} '{node.node}'" if node.op_type else ""
    place = " in ".join(filter(None, (subject, node.where)))
    return f"{place}: {node.what}: {node.before} -> {node.after}".removeprefix(": ")


def _weight(weight: ChangedWeight) -> str:
    if weight.before != weight.after:
        return f"'{weight.name}': {weight.before} -> {weight.after}"
    far = ""
    if weight.max_abs is not None:
        relative = f", {weight.max_rel:.2g} of the largest" if weight.max_rel is not None else ""
        far = f", by at most {weight.max_abs:.3g}{relative}"
    return f"'{weight.name}' {weight.before}: {weight.differing:,} of {weight.elements:,} elements differ{far}"
