"""``bnpass fold IN [-o OUT]``: fold a model and write the result."""

import argparse
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bnpass.cli.progress import Progress
from bnpass.errors import ExitCode, SaveError, UsageError

if TYPE_CHECKING:
    from bnpass.folding.options import FoldOptions
    from bnpass.report import Report


def add_to(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this verb to the command line."""
    parser = verbs.add_parser(
        "fold",
        help="fold batch normalization into the weights around it",
        description="Fold inference batch normalization and per-channel affines into the weights around them. "
        "The result is written only after it was checked against the original.",
    )
    add_input(parser)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("-o", "--output", metavar="OUT", type=Path, help="the result (default: IN's stem.folded.onnx)")
    where.add_argument("--in-place", action="store_true", help="replace IN by the result")
    where.add_argument("--dry-run", action="store_true", help="write nothing, only say what would happen")
    parser.add_argument("--force", action="store_true", help="overwrite OUT if it exists")
    parser.add_argument("--report", metavar="FILE", type=Path, help="also write the report as JSON")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    add_selection(parser)
    parser.add_argument(
        "--check", metavar="N", type=count, default=3,
        help="random draws of the whole-model check in ONNX Runtime (default 3; 0: only the local check of each edit)",
    )  # fmt: skip
    parser.add_argument("--seed", type=count, default=0, help="seed of those draws (default 0)")
    parser.set_defaults(run=run)


def add_input(parser: argparse.ArgumentParser) -> None:
    """Add the model that is read."""
    parser.add_argument("input", metavar="IN", type=Path, help="the model")
    add_trust(parser)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add how far the models that are read are trusted."""
    parser.add_argument(
        "--trust-external-data", action="store_true", help="accept symbolic and hard links as data files of a model"
    )


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what may be folded."""
    parser.add_argument(
        "--inference", action="store_true",
        help="treat training-mode batch normalization as inference: its stored statistics are used",
    )  # fmt: skip
    parser.add_argument(
        "--only", metavar="PATTERN", action="append", default=[],
        help="fold only nodes whose name or output matches (*, ?, [...]); may be given more than once",
    )  # fmt: skip
    parser.add_argument(
        "--exclude", metavar="PATTERN", action="append", default=[], help="leave matching nodes alone; likewise"
    )
    parser.add_argument(
        "--clone-budget", metavar="BYTES", type=bytecount, default=64 << 20,
        help="bytes that copies of shared weights may add, with K, M or G (default 64M)",
    )  # fmt: skip


def options_of(arguments: argparse.Namespace) -> "FoldOptions":
    """Return the fold options that the command line stands for."""
    from bnpass.folding.options import FoldOptions  # --help must stay instant

    return FoldOptions(
        inference=arguments.inference,
        only=tuple(arguments.only),
        exclude=tuple(arguments.exclude),
        clone_budget=arguments.clone_budget,
        check=getattr(arguments, "check", 0),
        seed=getattr(arguments, "seed", 0),
    )


def run(arguments: argparse.Namespace) -> ExitCode:
    """Carry the verb out."""
    from bnpass.api import default_output, fold  # --help must stay instant

    source: Path = arguments.input
    target = source if arguments.in_place else arguments.output or default_output(source)
    if not arguments.in_place and _is_same(source, target):
        raise UsageError(f"{target}: the output is the input; say --in-place if it should be replaced")
    if arguments.report is not None:
        _check_report(arguments.report, (source, target), force=arguments.force)
    with _report_file(arguments.report) as write, Progress(quiet=arguments.quiet) as progress:
        result = fold(
            source,
            options_of(arguments),
            output=None if arguments.dry_run else target,
            force=arguments.force or arguments.in_place,
            dry_run=arguments.dry_run,
            trust_external_data=arguments.trust_external_data,
            fingerprint=arguments.report is not None,
            progress=progress,
            on_checked=write,
        )
    if not arguments.quiet:
        print(result.report.to_text())
    return ExitCode.DONE


def bytecount(text: str) -> int:
    """Read a number of bytes such as ``64M``."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    number, unit = (text[:-1], units[text[-1].upper()]) if text[-1:].upper() in units else (text, 1)
    try:
        value = int(float(number) * unit)
    except (ValueError, OverflowError):
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of bytes")
    return value


def count(text: str) -> int:
    """Read a whole number from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 on")
    return int(text)


def _is_same(a: Path, b: Path) -> bool:
    return os.path.realpath(a) == os.path.realpath(b) or (a.exists() and b.exists() and a.samefile(b))


def _check_report(report: Path, models: tuple[Path, ...], *, force: bool) -> None:
    """Refuse a report that could not be written before anything else is."""
    if any(_is_same(report, model) for model in models):
        raise UsageError(f"{report}: the report would overwrite a model")
    if report.is_dir():
        raise SaveError(f"{report}: is a folder; give the name of a file in it")
    if not report.parent.is_dir():
        raise SaveError(f"{report}: the folder {report.parent} does not exist; make it first")
    if report.exists() and not force:
        raise SaveError(f"{report}: exists already; give --force to overwrite it")


@contextmanager
def _report_file(path: Path | None) -> Iterator[Callable[["Report"], None]]:
    """Give a function that writes the report beside its place, and put it there when all went well."""
    temporary = None if path is None else path.with_name(f".bnpass-{os.getpid()}.json")

    def write(report: "Report") -> None:
        if temporary is not None:
            text = json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n"
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


@contextmanager
def _as_save_error(path: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SaveError(f"{path}: the report cannot be written: {error.strerror}") from error
