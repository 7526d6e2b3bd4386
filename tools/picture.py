"""Draw two versions of a model side by side as SVG: what a pass has removed shows as gaps on the right.

    python tools/picture.py BEFORE.onnx AFTER.onnx -o docs/digits_before_after.svg

Rows are in graph order. A node of AFTER stands beside the node of BEFORE with the same op type and the same
output or node name, as far as the order of both allows. Affines are BatchNormalization and Mul, Add, Sub,
Div with a constant operand (the bias of a dense layer is one); Constant nodes and subgraphs are not drawn.
Colours are chosen to be readable on a light and on a dark page.
"""

import argparse
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

LINEAR = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
NORMALIZATION = {"BatchNormalization", "SyncBatchNormalization"}
ARITHMETIC = {"Mul", "Add", "Sub", "Div"}
FILL = {"affine": "#f7a44a", "linear": "#8fc1f5", "other": "#d5d9de", "edge": "#eceef0"}
GREY = "#7d8590"
"""About 4:1 against white and against black."""
INK = "#1c2128"
STYLE = f"""<style>
text {{ font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: {INK} }}
.title {{ font-size: 16px; font-weight: 600; fill: {GREY}; text-anchor: middle }}
.count {{ fill: {GREY}; text-anchor: middle }}
.op {{ font-weight: 600 }}
.detail {{ font-weight: 400 }}
.label {{ font-size: 11px; text-anchor: end; opacity: 0.75 }}
.box {{ stroke: {GREY}; stroke-width: 0.8 }}
.edge {{ fill: none; stroke: {GREY}; stroke-width: 1.4; marker-end: url(#tip) }}
</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0.8 8 4 0 7.2z" fill="{GREY}"/></marker></defs>"""

WIDTH, HEIGHT, PITCH = 290, 26, 40
"""Of a box, and from one row to the next."""
MARGIN, GUTTER, TOP = 64, 40, 66
"""Beside the columns (skipping edges pass there), between them, above the first row."""

Row = tuple[int | None, int | None]
"""Indices into the boxes before and after; None is a gap."""


@dataclass(frozen=True)
class Box:
    """One node, graph input or graph output, as drawn."""

    op: str
    kind: str
    """A key of `FILL`."""
    detail: str = ""
    """What the weights do, such as "3×3, 1→16"."""
    label: str = ""
    """The layer, as far as the node's name tells."""
    names: frozenset[str] = frozenset()
    """Node name and output names: what is compared between the two models."""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Column:
    """One model as drawn: its boxes, and the row of each."""

    boxes: Sequence[Box]
    x: float
    bulge: int
    """The side on which edges pass other boxes: -1 left, 1 right."""
    rows: dict[int, int] = field(default_factory=dict)


def read_boxes(model: onnx.ModelProto) -> list[Box]:
    graph = model.graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            shapes[node.output[0]] = tuple(node.attribute[0].t.dims)
    boxes = [
        Box("input", "edge", label=value.name, names=frozenset({value.name}), outputs=(value.name,))
        for value in graph.input
        if value.name not in shapes
    ]
    nodes = [node for node in graph.node if node.op_type != "Constant"]
    prefix = _common_prefix([node.name for node in nodes])
    for node in nodes:
        constants = [shapes[name] for name in node.input if name in shapes]
        affine = node.op_type in NORMALIZATION or (node.op_type in ARITHMETIC and bool(constants))
        boxes.append(
            Box(
                node.op_type,
                kind="affine" if affine else "linear" if node.op_type in LINEAR else "other",
                detail=_detail(node, constants),
                label=node.name.removeprefix(prefix).split("/")[0],
                names=frozenset({node.name, *node.output} - {""}),
                inputs=tuple(name for name in node.input if name and name not in shapes),
                outputs=tuple(node.output),
            )
        )
    boxes += [
        Box("output", "edge", label=value.name, names=frozenset({value.name}), inputs=(value.name,))
        for value in graph.output
    ]
    return boxes


def _common_prefix(names: Iterable[str]) -> str:
    """Return the first part of slash-separated names, where most of them share it."""
    parts = [name.split("/")[0] for name in names if "/" in name]
    first = max(set(parts), key=lambda part: (parts.count(part), part), default="")
    return f"{first}/" if parts and 2 * parts.count(first) > len(parts) else ""


def _detail(node: onnx.NodeProto, constants: Sequence[tuple[int, ...]]) -> str:
    if node.op_type in ARITHMETIC and constants:
        sizes = [size for size in constants[0] if size != 1]
        return f"{'×'.join(map(str, sizes))} values" if sizes else "scalar"
    if node.op_type == "BatchNormalization" and constants:
        return f"{constants[0][0]}"
    if node.op_type in {"Gemm", "MatMul"} and constants and len(constants[0]) == 2:
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        rows, columns = reversed(constants[0]) if transposed else constants[0]
        return f"{rows}→{columns}"
    if node.op_type in {"Conv", "ConvTranspose"} and constants and len(constants[0]) > 2:
        group = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        first, second, *kernel = constants[0]
        channels = (second * group, first) if node.op_type == "Conv" else (first, second * group)
        size = "×".join(map(str, kernel))
        if group > 1 and channels == (group, group):
            return f"{size} depthwise, {group}"
        groups = f", {group} groups" if group > 1 else ""
        return f"{size}, {channels[0]}→{channels[1]}{groups}"
    return ""


def align(before: Sequence[Box], after: Sequence[Box]) -> list[Row]:
    """Pair the boxes in order, with as many shared names as possible, then as many equal op types."""
    best = [[0] * (len(after) + 1) for _ in range(len(before) + 1)]
    for i in reversed(range(len(before))):
        for j in reversed(range(len(after))):
            pair = _likeness(before[i], after[j])
            best[i][j] = max(best[i + 1][j], best[i][j + 1], pair and pair + best[i + 1][j + 1])
    rows: list[Row] = []
    i = j = 0
    while i < len(before) or j < len(after):
        pair = _likeness(before[i], after[j]) if i < len(before) and j < len(after) else 0
        if pair and best[i][j] == pair + best[i + 1][j + 1]:
            rows.append((i, j))
            i, j = i + 1, j + 1
        elif j == len(after) or (i < len(before) and best[i][j] == best[i + 1][j]):
            rows.append((i, None))
            i += 1
        else:
            rows.append((None, j))
            j += 1
    return rows


def _likeness(one: Box, other: Box) -> int:
    if one.kind != other.kind or (one.op != other.op and one.kind != "linear"):  # MatMul + Add may become Gemm
        return 0
    return 1 + 4 * bool(one.names & other.names)


def draw(before: Sequence[Box], after: Sequence[Box], titles: tuple[str, str]) -> str:
    """Return the SVG text."""
    rows = align(before, after)
    left = Column(before, MARGIN, -1)
    right = Column(after, MARGIN + WIDTH + GUTTER, 1)
    for number, (i, j) in enumerate(rows):
        if i is not None:
            left.rows[i] = number
        if j is not None:
            right.rows[j] = number
    width = 2 * (MARGIN + WIDTH) + GUTTER
    height = TOP + len(rows) * PITCH
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">',
        f"<title>{_text(f'{titles[0]} and {titles[1]}', 200)}</title>",
        STYLE,
    ]
    for column, title in zip((left, right), titles, strict=True):
        parts += _heading(column, title)
        parts += _edges(column)
    for number, (i, j) in enumerate(rows):
        y = TOP + number * PITCH
        parts += _box(left, i, y)
        parts += _box(right, j, y)
    return "\n".join([*parts, "</svg>\n"])


def _heading(column: Column, title: str) -> list[str]:
    kinds = [box.kind for box in column.boxes]
    middle = column.x + WIDTH / 2
    legend = [
        f'<tspan fill="{FILL[kind]}">■</tspan> {kinds.count(kind)} {kind}' for kind in ("affine", "linear", "other")
    ]
    counts = f"{len(kinds) - kinds.count('edge')} nodes:  {'  '.join(legend)}"
    return [
        f'<text class="title" x="{middle}" y="24">{_text(title, 36)}</text>',
        f'<text class="count" x="{middle}" y="45" xml:space="preserve">{counts}</text>',
    ]


def _edges(column: Column) -> list[str]:
    made = {name: index for index, box in enumerate(column.boxes) for name in box.outputs if name}
    taken = set(column.rows.values())
    lines = []
    for target, box in enumerate(column.boxes):
        for source in sorted({made[name] for name in box.inputs if name in made}):
            start, end = column.rows[source], column.rows[target]
            y1, y2 = TOP + start * PITCH, TOP + end * PITCH
            if taken.isdisjoint(range(start + 1, end)):
                x = column.x + WIDTH / 2
                path = f"M{x} {y1 + HEIGHT}V{y2 - 1}"
            else:
                x = column.x + (WIDTH if column.bulge > 0 else 0)
                out = x + column.bulge * min(MARGIN - 10, 14 + 5 * (end - start)) * 4 / 3
                middle1, middle2 = y1 + HEIGHT / 2, y2 + HEIGHT / 2
                path = f"M{x} {middle1}C{out:.0f} {middle1 + PITCH} {out:.0f} {middle2 - PITCH} {x} {middle2}"
            lines.append(f'<path d="{path}" class="edge"/>')
    return lines


def _box(column: Column, index: int | None, y: float) -> list[str]:
    if index is None:
        return []
    box = column.boxes[index]
    x = column.x
    radius = HEIGHT / 2 if box.kind == "edge" else 5
    title = f'{_text(box.op, 24)} <tspan class="detail">{_text(box.detail, 26)}</tspan>'
    space = int((WIDTH - 36 - 9.2 * len(box.op) - 8 * len(box.detail)) / 6.8)  # in letters of the widest usual font
    label = _text(box.label, space) if space >= 6 else ""
    size = f'width="{WIDTH}" height="{HEIGHT}" rx="{radius}"'
    return [
        f'<rect class="box" x="{x}" y="{y}" {size} fill="{FILL[box.kind]}"/>',
        f'<text class="op" x="{x + 12}" y="{y + 17.5}">{title}</text>',
        f'<text class="label" x="{x + WIDTH - 12}" y="{y + 17}">{label}</text>',
    ]


def _text(text: str, limit: int) -> str:
    """Return `text` as XML, cut to `limit` characters; names in a model may hold anything."""
    printable = "".join(character for character in text if character.isprintable())
    if len(printable) > limit:
        printable = printable[: max(limit - 1, 0)] + "…"
    return html.escape(printable)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw two versions of an ONNX model side by side as SVG.")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--titles", nargs=2, default=("before", "after"), metavar=("BEFORE", "AFTER"))
    arguments = parser.parse_args()
    boxes = [read_boxes(onnx.load(path, load_external_data=False)) for path in (arguments.before, arguments.after)]
    arguments.output.write_text(draw(*boxes, tuple(arguments.titles)), encoding="utf-8")
    removed = len(boxes[0]) - len(boxes[1])
    print(f"{arguments.output}: {len(boxes[0])} boxes before, {len(boxes[1])} after, {removed} gone")


if __name__ == "__main__":
    main()
