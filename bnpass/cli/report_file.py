"""The file of ``--report``: a page for a browser if its name ends in .html, else JSON; with the time of each stage."""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from bnpass.errors import SaveError, UsageError

if TYPE_CHECKING:
    from bnpass.report import ExportReport, Report
    from bnpass.report.diff import DiffReport

    AnyReport: TypeAlias = Report | ExportReport | DiffReport

_PAGE = (".html", ".htm")


class ToJson(Protocol):
    """A report of whatever kind."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        ...


class Stopwatch:
    """Told the stages as a progress bar is, it tells how long each of them took."""

    def __init__(self, progress: Callable[[str, float], None]) -> None:
        self._progress = progress
        self._spent: dict[str, float] = {}
        self._stage, self._begin = "", time.monotonic()

    def __call__(self, stage: str, fraction: float) -> None:
        """Say what is being done, and how much of it is; the bar is told, too."""
        if stage != self._stage:
            self._spent = self.seconds()
            self._stage, self._begin = stage, time.monotonic()
        self._progress(stage, fraction)

    def seconds(self) -> dict[str, float]:
        """Return how long each stage took, the one that is going on included, in their order."""
        if not self._stage:
            return {}
        running = self._spent.get(self._stage, 0.0) + time.monotonic() - self._begin
        return {**self._spent, self._stage: round(running, 6)}

    def timed(self, write: Callable[["AnyReport"], None]) -> Callable[["AnyReport"], None]:
        """Return ``write`` for reports that hold the time that was spent."""
        return lambda report: write(replace(report, seconds=self.seconds()))


def add_report(parser: argparse.ArgumentParser) -> None:
    """Add where the report of a verb goes."""
    parser.add_argument(
        "--report", metavar="FILE", type=Path,
        help="also write the report: as a page for a browser if FILE ends in .html, else as JSON",
    )  # fmt: skip


def is_same(a: Path, b: Path) -> bool:
    """Whether two paths lead to one file."""
    return os.path.realpath(a) == os.path.realpath(b) or (a.exists() and b.exists() and a.samefile(b))


@contextmanager
def report_file(path: Path | None, models: tuple[Path, ...], *, force: bool) -> Iterator[Callable[[ToJson], None]]:
    """Give a function that writes the report beside its place, and put it there when all went well.

    Args:
        path: Where it goes; None if nobody wants it.
        models: Files that it must not overwrite.
        force: Overwrite another file that is there.

    Raises:
        UsageError: It would overwrite a model, or is to be a page that there is not.
        SaveError: It cannot be written.
    """
    if path is not None:
        _check_report(path, models, force=force)
    temporary = None if path is None else path.with_name(f".bnpass-{os.getpid()}.report")

    def write(report: ToJson) -> None:
        if path is not None and temporary is not None:
            text = _text(path, report)
            with _as_save_error(path):
                temporary.write_text(text, encoding="utf-8")

    try:
        yield write
        if path is not None and temporary is not None:
            with _as_save_error(path):
                temporary.replace(path)
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()


def is_page(path: Path) -> bool:
    """Whether a report of this name is a page."""
    return path.suffix.lower() in _PAGE


def _text(path: Path, report: ToJson) -> str:
    if is_page(path):
        page: str = report.to_html()  # type: ignore[attr-defined]  # the verbs whose reports are no pages refuse before
        return page
    return json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n"


def _check_report(report: Path, models: tuple[Path, ...], *, force: bool) -> None:
    """Refuse a report that could not be written before anything else is."""
    if any(is_same(report, model) for model in models):
        raise UsageError(f"{report}: the report would overwrite a model")
    if report.is_dir():
        raise SaveError(f"{report}: is a folder; give the name of a file in it")
    if not report.parent.is_dir():
        raise SaveError(f"{report}: the folder {report.parent} does not exist; make it first")
    if report.exists() and not force:
        raise SaveError(f"{report}: exists already; give --force to overwrite it")


@contextmanager
def _as_save_error(path: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SaveError(f"{path}: the report cannot be written: {error.strerror}") from error
