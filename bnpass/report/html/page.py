"""A report as one page that needs nothing but itself: no scripts, no requests, style and pictures inline.

The page says so to the browser, too: its policy forbids whatever it does not hold itself.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from bnpass import __version__
from bnpass.report.base import Check, Report, counted, versions
from bnpass.report.export import ExportReport
from bnpass.report.html.fates import Fate, Group, groups_of
from bnpass.report.html.figures import (
    before_after,
    errors_table,
    facts_table,
    files_table,
    ops_table,
    seconds,
    size,
    tile,
    times_table,
    worst_share,
)
from bnpass.report.html.markup import Element, el, name, serialized, shown

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

BUDGET = 3 << 20
"""Bytes of pictures and sentences; what is beyond is counted. A model of 5,000 normalizations fits."""
DRAWN = 1000
"""Pictures in a page; what is beyond has a sentence only."""
_OPEN = 40
"""Up to so many members, a group is shown open."""
_NOTES = 200


def to_html(report: Report | ExportReport) -> str:
    """Return a report as one self-contained page.

    Args:
        report: The report of a fold, an expansion or an export.

    Returns:
        HTML in which nothing refers to anything outside, and every name from the model is text.
    """
    title = f"bnpass {report.verb}"
    given = report.name if isinstance(report, ExportReport) else report.source.path if report.source else ""
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=POLICY),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", f"{title}: {shown(given, 80)}" if given else title),
        el("style", Path(__file__).with_name("page.css").read_text(encoding="utf-8")),
    )
    body = el("body", _header(report, title, given), el("main", *_sections(report)), _footer())
    return "<!doctype html>\n" + serialized(el("html", head, body, lang="en")) + "\n"


def _header(report: Report | ExportReport, title: str, given: str) -> Element:
    path = [name(Path(given).name or given or "a model in memory")]
    if report.target is not None:
        path += [el("span", " → ", class_="to"), name(Path(report.target.path).name)]
    return el("header", el("p", title, class_="verb"), el("h1", *path), el("p", report.summary(), class_="sum"))


def _footer() -> Element:
    return el("footer", el("p", f"Written by bnpass {__version__}. Nothing in this page is loaded from elsewhere."))


def _sections(report: Report | ExportReport) -> Iterator[Element]:
    yield el("ul", *_tiles(report), class_="tiles")
    yield _section("Checks", *_checks(report.checks))
    groups = groups_of(report)
    if groups:
        affines = " and affine" if report.verb == "fold" else ""
        yield _section(f"What became of each batch normalization{affines}", *_folded_since(report), *_fates(groups))
    before = None if isinstance(report, ExportReport) else report.before
    yield _section("Ops", *ops_table(before, report.after))
    if isinstance(report, ExportReport) and report.notes:
        notes = [el("li", shown(note, 1000)) for note in report.notes[:_NOTES]]
        yield _section("Notes", el("ul", *notes))
    files = files_table(report.source, report.target)
    if files is not None:
        yield _section("Files", files)
    if report.seconds:
        yield _section("Time", times_table(report.seconds))
    chosen = [("Options", asdict(report.options)), ("Versions", {"bnpass": __version__, **versions()})]
    yield _section("", *(el("details", el("summary", title), facts_table(facts)) for title, facts in chosen))


def _tiles(report: Report | ExportReport) -> Iterator[Element]:
    after = report.after
    before = after if isinstance(report, ExportReport) else report.before
    norms = before_after(f"{before.batch_norms:,}", f"{after.batch_norms:,}")
    if before.batch_norms or after.batch_norms:  # others write it as Mul and Add
        yield tile("batch normalizations", *norms, mark="main")
    yield tile("nodes", *before_after(f"{before.nodes:,}", f"{after.nodes:,}"))
    constants = before_after(size(before.constant_bytes), size(after.constant_bytes))
    yield tile("constants", *constants)
    if report.target is not None:
        read = None if isinstance(report, ExportReport) else report.source  # a file of another kind is no measure
        old = read.bytes if read else report.target.bytes
        yield tile("file", *before_after(size(old), size(report.target.bytes)))
    share = worst_share(report.checks)
    if share is None:
        ran = sum(check.ran for check in report.checks)
        yield tile("checks", f"{ran} of {len(report.checks)}", note="whole model not run")
    else:
        outputs = sum(len((c.details or {}).get("outputs") or ()) for c in report.checks)
        yield tile("largest error", f"{share:.0%}", note=f"of what is allowed, {counted(outputs, 'output')}")
    if report.seconds:
        yield tile("time", seconds(sum(report.seconds.values())))


def _checks(checks: tuple[Check, ...]) -> Iterator[Element]:
    lines = []
    for check in checks:
        mark = el("span", "checked" if check.ran else "not checked", class_="chip done" if check.ran else "chip open")
        lines.append(el("li", mark, el("strong", f" {check.name}"), ": ", el("bdi", shown(check.text, 1000))))
    yield el("ul", *lines, class_="checks")
    for check in checks:
        table = errors_table(check)
        if table is not None:
            yield el("h3", f"Error per output, {check.name}")
            yield table
            yield from _not_compared(check)


def _not_compared(check: Check) -> Iterator[Element]:
    for left in ((check.details or {}).get("not_compared") or ())[:_NOTES]:
        yield el("p", "Not compared: ", name(left["name"]), f": {shown(left['reason'], 1000)}", class_="quiet")


def _folded_since(report: Report | ExportReport) -> Iterator[Element]:
    """Say of an export that was folded that these nodes are not what is in the file."""
    if isinstance(report, ExportReport) and any(check.name == "local" for check in report.checks):
        left = counted(report.after.batch_norms, "batch normalization")
        yield el("p", f"As exported. Folded then: {left} left.", class_="quiet")


def _fates(groups: list[Group]) -> Iterator[Element]:
    spent = drawn = left_out = 0
    for group in groups:
        rows: list[Element] = []
        for fate in group.fates:
            row = _row(fate, drawn=drawn < DRAWN)
            length = len(serialized(row).encode())
            if spent + length > BUDGET:
                left_out += sum(left.count for left in group.fates[len(rows) :])
                break
            spent += length
            drawn += 1
            rows.append(row)
        yield _group(group, rows)
    if left_out or drawn > DRAWN:
        yield el("p", _what_is_missing(drawn, left_out), class_="quiet")


def _what_is_missing(listed: int, left_out: int) -> str:
    parts = [f"Pictures of the first {DRAWN:,} only."] if listed > DRAWN else []
    if left_out:
        parts.append(f"{left_out:,} more are counted above and not listed.")
    return " ".join([*parts, "The JSON report lists everything: --report FILE.json"])


def _row(fate: Fate, *, drawn: bool) -> Element:
    return el("li", *([fate.drawn] if drawn else []), fate.sentence)


def _group(group: Group, rows: list[Element]) -> Element:
    number = sum(fate.count for fate in group.fates)
    chip = el("span", group.code, class_="chip kept") if group.code else el("span", "done", class_="chip done")
    summary = el("summary", chip, f" {group.title}", el("span", f"{number:,}", class_="count"))
    is_open = {"open": "open"} if number <= _OPEN else {}
    return el("details", summary, el("ul", *rows, class_="fates"), class_=group.mark, **is_open)


def _section(title: str, *parts: Element) -> Element:
    return el("section", *([el("h2", title)] if title else []), *parts)
