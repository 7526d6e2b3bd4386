"""Small pictures of where a node went: boxes in two columns, and an arrow from what is gone to what does its work now.

A column stands where its nodes stood in the graph, data going from left to right. Dashed boxes are gone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bnpass.report.html.markup import Element, el, shown

WIDTH = 320
"""Of a picture, in pixels: what a phone has room for."""

_BOX_W, _GAP = 124, 8
_HEAD, _LINE = 20, 12
"""Height of what stands above the name in a box, and of a line of the name."""
_LETTERS = 17
"""In a line of a box, at 11 pixels in a typeface of fixed width."""
_LINES = 3
_WORDS = rf".{{1,{_LETTERS}}}$|.{{8,{_LETTERS}}}(?<=[/_.:-])|.{{1,{_LETTERS}}}"
"""The rest if it fits into a line, else as much as fits and ends a word, else as much as fits."""
_KIND = 24
_MOST = 3
"""Boxes in a column; the rest is counted in one more."""


@dataclass(frozen=True)
class Box:
    """A node in a picture.

    Attributes:
        name: Its name.
        kind: What it is, in a word or two.
        state: ``gone``, ``stays`` for what has taken something in, ``kept`` for what could not go, or ``blocks``.
    """

    name: str
    kind: str
    state: Literal["gone", "stays", "kept", "blocks"]


def picture(
    left: Sequence[Box], right: Sequence[Box], arrow: Literal["left", "right", "barred"], label: str, told: str
) -> Element:
    """Draw two columns and what goes on between them.

    Args:
        left: The nodes that data reach first.
        right: The others; none for a node that stands alone.
        arrow: Where it points; ``barred`` for one that is not let through.
        label: What stands above it.
        told: The whole picture in one sentence, for whom it is read out.

    Returns:
        An ``svg`` element.
    """
    columns = [_counted(left), _counted(right)]
    box_height = _HEAD + _LINE * max(len(_lines(box.name)) for column in columns for box in column) + 4
    step = box_height + _GAP
    middle = max(map(len, columns)) * step / 2
    height = 2 * middle
    drawn = [
        _box(box, x, middle - len(column) * step / 2 + row * step + _GAP / 2, box_height)
        for x, column in zip((1, WIDTH - _BOX_W - 1), columns, strict=True)
        for row, box in enumerate(column)
    ]
    return el(
        "svg", *drawn, *_arrow(arrow, label, middle), role="img", aria_label=told,
        width=WIDTH, height=round(height), viewBox=f"0 0 {WIDTH} {height:g}",
    )  # fmt: skip


def share_bar(share: float, *, before: float = 0.0, ok: bool = True) -> Element:
    """Draw how much of something there is: a bar that is filled up to ``share`` of 1, and faintly up to ``before``."""
    parts = (("track", 1.0), ("before", before), ("ok" if ok else "bad", share))
    # without an aspect ratio to keep, the bar is as wide as its place
    return el(
        "svg", *(_rect(kind, filled) for kind, filled in parts if filled > 0), class_="bar", viewBox="0 0 100 6",
        preserveAspectRatio="none", width=100, height=6, aria_hidden="true",
    )  # fmt: skip


def _rect(kind: str, filled: float) -> Element:
    return el("rect", width=f"{min(1.0, filled) * 100:.3g}", height=6, rx=3, class_=kind)


def _counted(boxes: Sequence[Box]) -> Sequence[Box]:
    if len(boxes) <= _MOST:
        return boxes
    more = len(boxes) - _MOST + 1
    return [*boxes[: _MOST - 1], Box(f"{more:,} more", "", boxes[-1].state)]


def _lines(text: str) -> list[str]:
    """Return a name in the lines that a box has for it."""
    visible = shown(text, _LINES * _LETTERS)
    at_words = re.findall(_WORDS, visible)
    return at_words if len(at_words) <= _LINES else re.findall(f".{{1,{_LETTERS}}}", visible)


def _box(box: Box, x: float, y: float, height: float) -> Element:
    """Draw a box; the inner ``svg`` cuts off what does not fit into it."""
    lines = _lines(box.name)
    first = _HEAD + (height - _HEAD - _LINE * len(lines)) / 2 + 8
    return el(
        "svg",
        el("rect", x=1, y=1, width=_BOX_W - 2, height=height - 2, rx=7),
        el("text", shown(box.kind, _KIND), x=_BOX_W / 2, y=14, class_="kind"),
        *(el("text", line, x=_BOX_W / 2, y=f"{first + _LINE * row:g}") for row, line in enumerate(lines)),
        x=x, y=f"{y:g}", width=_BOX_W, height=height, class_=box.state,
    )  # fmt: skip


def _arrow(arrow: str, label: str, y: float) -> list[Element]:
    start, end = _BOX_W + 6, WIDTH - _BOX_W - 6
    above = 10 if arrow == "barred" else 7
    text = [el("text", label, x=WIDTH / 2, y=f"{y - above:g}", class_="label")] if label else []
    if arrow == "barred":
        cross = f"M{WIDTH / 2 - 5:g} {y - 5:g}l10 10m0 -10l-10 10"
        return [el("path", d=f"M{start} {y:g}H{end}", class_="barred"), el("path", d=cross, class_="cross"), *text]
    tip, back = (end, -6) if arrow == "right" else (start, 6)
    head = f"M{tip + back} {y - 5:g}L{tip} {y:g}L{tip + back} {y + 5:g}"
    return [el("path", d=f"M{start} {y:g}H{end}{head}", class_="arrow"), *text]
