"""What became of each batch normalization and affine: a picture and a sentence for each, in groups."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from bnpass.expansion.result import Expanded
from bnpass.folding.merging.result import Merged
from bnpass.folding.result import Folded
from bnpass.graph.kept import Kept
from bnpass.report.base import Report, counted
from bnpass.report.expand import ExpandReport
from bnpass.report.export import ExportReport
from bnpass.report.fold import FoldReport
from bnpass.report.html.markup import Element, el, name, shown
from bnpass.report.html.picture import Box, picture

_SIDES = {
    "output": "into the op before",
    "input": "into the op behind",
    "joined": "joined with other affines",
}
_MERGED = {"parallel": "branches of a sum, merged", "sequential": "chains, merged", "padding": "padding, merged"}
_NOWHERE = "gone: it changed no value"
_IDLE = "other nodes that changed no value"
_STEPS = {
    "training": ("statistics", "normalization"),
    "inference": ("normalization",),
    "gradient": ("sums", "gradient"),
    "moments": ("statistics",),
}
_NAMED = 20
"""Nodes that one sentence names; the rest is counted."""


@dataclass(frozen=True)
class Fate:
    """What became of one run of nodes.

    Attributes:
        sentence: It in words.
        drawn: It as a picture.
        count: How many of those that a group counts.
    """

    sentence: Element
    drawn: Element
    count: int = 1


@dataclass
class Group:
    """Nodes that have had the same fate.

    Attributes:
        title: The fate.
        mark: ``gone``, or ``kept`` for what a reader may want to do something about.
        fates: Its members.
        code: The id of the refusal.
    """

    title: str
    mark: str
    fates: list[Fate] = field(default_factory=list)
    code: str = ""


def groups_of(report: Report | ExportReport) -> list[Group]:
    """Return what became of each batch normalization and affine; what was kept comes first."""
    groups: dict[str, Group] = {}
    for group, fate in _fates(report):
        groups.setdefault(group.code + group.title, group).fates.append(fate)
    return list(groups.values())


def _fates(report: Report | ExportReport) -> Iterator[tuple[Group, Fate]]:
    if isinstance(report, ExportReport):
        for layer, calls in report.norms.items():
            yield Group("batch normalization, a node for each call", "gone"), _exported(layer, calls)
        return
    apart = report.apart if isinstance(report, FoldReport) else ()
    for kept in (*report.kept, *apart):
        yield Group(kept.refusal.slug, "kept", code=kept.refusal.code), _kept(kept)
    if isinstance(report, FoldReport):
        for merged in report.merged:
            yield Group(_MERGED[merged.kind], "gone"), _merged(merged)
        for folded in report.folded:
            yield Group(_SIDES[folded.side] if folded.into else _NOWHERE, "gone"), _folded(folded)
        if report.idle:
            idle = [Box(node, "idle", "gone") for node in report.idle]
            yield Group(_IDLE, "gone"), _nowhere(report.idle, idle, len(idle))
    elif isinstance(report, ExpandReport):
        for expanded in report.expanded:
            yield Group(f"{expanded.kind}, written out", "gone"), _expanded(expanded)


def _folded(folded: Folded) -> Fate:
    norms = set(folded.batch_norms)
    gone = [Box(n, "BatchNormalization" if n in norms else "affine", "gone") for n in folded.nodes]
    into = [Box(n, "affine" if folded.side == "joined" else "takes it in", "stays") for n in folded.into]
    words = {"output": "into the output of", "input": "into the input of", "joined": "joined in"}[folded.side]
    if not into:
        return _nowhere(folded.nodes, gone)
    told = f"{_told(folded.nodes)} went {words} {_told(folded.into)}"
    sentence = el("p", *_names(folded.nodes), f" {words} ", *_names(folded.into), *_rounded(folded))
    if folded.side == "output":
        return Fate(sentence, picture(into, gone, "left", "output", told))
    return Fate(sentence, picture(gone, into, "right", folded.side, told))


def _nowhere(nodes: tuple[str, ...], gone: list[Box], count: int = 1) -> Fate:
    drawn = picture(gone, [], "right", "", f"{_told(nodes)} changed no value")
    told = " changed no value and is gone" if len(nodes) == 1 else " changed no value and are gone"
    return Fate(el("p", *_names(nodes), told), drawn, count)


def _merged(merged: Merged) -> Fate:
    norms = set(merged.batch_norms)
    gone = [Box(n, "BatchNormalization" if n in norms else "merged", "gone") for n in merged.nodes]
    told = f"{_told(merged.nodes)} became part of {shown(merged.into)}"
    sentence = el("p", *_names(merged.nodes), " became part of ", name(merged.into))
    return Fate(sentence, picture(gone, [Box(merged.into, "one op", "stays")], "right", merged.kind, told))


def _rounded(folded: Folded) -> Iterator[Element | str]:
    """Yield what rounding came to beyond that of floats."""
    for rounding in folded.rounding[:_NAMED]:
        yield from ("; bias of ", name(rounding.node), f" rounded to integers, by at most {rounding.units:.2g} units")


def _kept(kept: Kept) -> Fate:
    alone = kept.at == kept.node
    told = f"{shown(kept.op_type)} {shown(kept.node)} stays: {kept.refusal}, at {shown(kept.at)}"
    boxes = [Box(kept.node, kept.op_type, "kept")], [] if alone else [Box(kept.at, "in the way", "blocks")]
    sentence = el("p", el("bdi", shown(kept.op_type)), " ", name(kept.node), ": ", el("bdi", shown(kept.reason, 1000)))
    return Fate(sentence, picture(*boxes, "barred", kept.refusal.code, told))


def _expanded(expanded: Expanded) -> Fate:
    steps = [Box(step, "plain ONNX", "stays") for step in _STEPS[expanded.kind]]
    if expanded.collectives:
        group = f"AllReduce '{expanded.group}'" if expanded.group else "AllReduce"
        steps.insert(1, Box(group, counted(expanded.collectives, "collective"), "stays"))
    shape = " × ".join("?" if d is None else shown(str(d)) for d in expanded.shape)
    facts = f"{expanded.dtype}, {shape}, {counted(expanded.channels, 'channel')} on axis {expanded.axis}"
    told = f"{shown(expanded.node)} is written out"
    drawn = picture([Box(expanded.node, expanded.op_type, "gone")], steps, "right", expanded.kind, told)
    return Fate(el("p", el("bdi", shown(expanded.op_type)), " ", name(expanded.node), f": {facts}"), drawn)


def _exported(layer: str, calls: int) -> Fate:
    nodes = counted(calls, "node")
    drawn = picture(
        [Box(layer, "layer", "kept" if not calls else "stays")],
        [Box(nodes, "in ONNX", "stays")],
        "right",
        counted(calls, "call"),
        f"{shown(layer)} became {nodes}",
    )
    return Fate(el("p", name(layer), f": {nodes}"), drawn)


def _names(nodes: tuple[str, ...]) -> list[Element | str]:
    """Return names as parts of a sentence."""
    parts: list[Element | str] = []
    for number, node in enumerate(nodes[:_NAMED]):
        parts += [", ", name(node)] if number else [name(node)]
    return [*parts, f" and {len(nodes) - _NAMED:,} more"] if len(nodes) > _NAMED else parts


def _told(nodes: tuple[str, ...]) -> str:
    return ", ".join(shown(n, 60) for n in nodes[:3]) + (f" and {len(nodes) - 3:,} more" if len(nodes) > 3 else "")
