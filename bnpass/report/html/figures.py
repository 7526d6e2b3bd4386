"""The figures of a report as tables: ops, errors of the outputs, files, times, and what was chosen."""

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

from bnpass.census import Census
from bnpass.report.base import Check, FileFact, counted
from bnpass.report.html.markup import Element, el, name, shown
from bnpass.report.html.picture import share_bar

ROWS = 200
"""Rows of a table that a page shows; the rest is counted."""


def size(number: int) -> str:
    """Return a number of bytes as people say it: ``85.8 kB``."""
    value, unit = float(number), "B"
    for larger in ("kB", "MB", "GB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}" if unit != "B" else f"{number} B"


def seconds(value: float) -> str:
    """Return a time as people say it: ``0.42 s``, ``3 min 5 s``."""
    if value < 60:
        return f"{value:.2g} s" if value >= 0.01 else "< 0.01 s"
    return f"{int(value) // 60} min {int(value) % 60} s"


def tile(title: str, *figures: Element | str, note: str = "", mark: str = "") -> Element:
    """Return one figure of the overview."""
    small = [el("span", note, class_="note")] if note else []
    return el("li", el("span", title, class_="title"), el("span", *figures, class_="figure"), *small, class_=mark)


def before_after(before: str, after: str) -> list[Element | str]:
    """Return two figures with an arrow between them; one, if they are the same."""
    if before == after:
        return [after]
    return [el("span", before, class_="before"), el("span", " → ", class_="to"), el("span", after)]


def ops_table(before: Census | None, after: Census) -> list[Element]:
    """Return how many nodes of each op there are; ops of which nothing changed are folded away."""
    old = after.ops if before is None else before.ops
    names = sorted({*old, *after.ops}, key=lambda n: (-abs(old.get(n, 0) - after.ops.get(n, 0)), -old.get(n, 0), n))
    most = max([*old.values(), *after.ops.values(), 1])
    changed = [n for n in names if old.get(n, 0) != after.ops.get(n, 0)]
    same = [n for n in names if n not in set(changed)]
    if before is None:
        return [_table(("op", "nodes"), [_op_row(n, None, after.ops[n], most) for n in same], "ops")]
    head = ("op", "before", "after", "change")
    parts = [
        _table(head, [_op_row(n, old.get(n, 0), after.ops.get(n, 0), most) for n in changed], "ops")
        if changed
        else el("p", "No op was added or taken away.", class_="quiet")
    ]
    if same:
        total = counted(sum(old[n] for n in same), "node")
        inner = _table(head, [_op_row(n, old[n], after.ops[n], most) for n in same], "ops")
        unchanged = f"{counted(len(same), 'op')} of which nothing changed: {total}"
        parts.append(el("details", el("summary", unchanged), inner))
    return parts


def _op_row(op: str, before: int | None, after: int, most: int) -> Element:
    cells = [el("td", f"{after:,}")]
    if before is not None:
        change = f"{after - before:+,}".replace("-", "−") if after != before else ""
        cells = [el("td", f"{before:,}"), *cells, el("td", change, class_="less" if after < before else "more")]
    left = el("th", name(op), share_bar(after / most, before=(before or 0) / most), scope="row")
    return el("tr", left, *cells)


def errors_table(check: Check) -> Element | None:
    """Return the error of each output with its bound; None if a check has no such figures."""
    outputs = (check.details or {}).get("outputs")
    if not outputs:
        return None
    head = ("output", "error", "allowed", "of the bound", "SNR")
    return _table(head, [_error_row(output) for output in outputs], "errors")


def worst_share(checks: Iterable[Check]) -> float | None:
    """Return the largest error of any output over what is allowed; None if nothing was run."""
    shares = [_share(o) for c in checks for o in (c.details or {}).get("outputs") or ()]
    return max(shares, default=None)


def _error_row(output: Mapping[str, Any]) -> Element:
    share, ok = _share(output), bool(output["ok"])
    inner = el("span", " inner value", class_="quiet") if output["inner"] else ""
    why = el("span", shown(str(output["reason"]), 1000), class_="why") if output["reason"] else ""
    left = el("th", name(str(output["name"])), inner, why, scope="row")
    told = f"{share:.0%}" if isfinite(share) else "beyond it"
    cells = [
        el("td", _figure(output["max_abs_error"]), data_label="error"),
        el("td", _figure(output["allowed"]), data_label="allowed"),
        el("td", el("span", share_bar(share, ok=ok), told if ok else f"{told}: too far"), data_label="of the bound"),
        el("td", "exact" if output["snr_db"] is None and ok else f"{_figure(output['snr_db'])} dB", data_label="SNR"),
    ]
    return el("tr", left, *cells)


def _share(output: Mapping[str, Any]) -> float:
    """Return an error over what is allowed; infinite where there is no such number."""
    error, allowed = output["max_abs_error"], output["allowed"]
    if error is None or allowed is None:
        return 0.0 if output["ok"] else float("inf")
    if allowed > 0:
        return float(error / allowed)
    return float("inf") if error else 0.0


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}".replace("-", "−")


def files_table(source: FileFact | None, target: FileFact | None) -> Element | None:
    """Return the files that were read and written, with their sizes and digests."""
    rows = []
    for role, fact in (("read", source), ("written", target)):
        if fact is not None:
            digest = el("span", f"SHA-256 {fact.sha256}", class_="digest") if fact.sha256 else ""
            told = el("td", el("span", name(fact.path), digest), class_="path", data_label="file")
            exact = el(
                "td", f"{size(fact.bytes)} ({fact.bytes:,} {'byte' if fact.bytes == 1 else 'bytes'})", data_label="size"
            )
            rows.append(el("tr", el("th", role, scope="row"), told, exact))
    return _table(("", "file", "size"), rows, "files") if rows else None


def times_table(stages: Mapping[str, float]) -> Element:
    """Return how long each stage took."""
    whole = sum(stages.values()) or 1.0
    rows = [
        el("tr", el("th", shown(stage), share_bar(spent / whole), scope="row"), el("td", seconds(spent)))
        for stage, spent in stages.items()
    ]
    return _table(("stage", "time"), rows, "times")


def facts_table(facts: Mapping[str, object]) -> Element:
    """Return names and values, as of options and versions."""
    rows = [el("tr", el("th", shown(str(key)), scope="row"), el("td", _value(value))) for key, value in facts.items()]
    return _table(("", ""), rows, "facts")


def _value(value: object) -> Element | str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value in ("", (), []):
        return "–"
    return name(", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))


def _table(head: Sequence[str], rows: Sequence[Element], kind: str) -> Element:
    titles = [el("tr", *(el("th", title, scope="col") for title in head))] if any(head) else []
    table = el("table", el("thead", *titles), el("tbody", *rows[:ROWS]), class_=kind)
    rest = len(rows) - ROWS
    return el("div", table, *([el("p", f"and {rest:,} more", class_="quiet")] if rest > 0 else []), class_="scroll")
