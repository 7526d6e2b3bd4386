"""``bnpass fold IN [-o OUT]``: fold a model and write the result."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bnpass.cli.progress import Progress
from bnpass.errors import ExitCode, SaveError, UsageError

if TYPE_CHECKING:
    from bnpass.fold.options import FoldOptions
    from bnpass.report import Report


def add_to(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this verb to the command line."""
    parser = verbs.add_parser(
        "fold",
        help="fold batch normalization into the weights around it",
        description="Fold inference batch normalization and per-channel affines into the weights around them. "
        "The result is written only after it was checked against the original.",
    )
    parser.add_argument("input", metavar="IN", type=Path, help="the model")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("-o", "--output", metavar="OUT", type=Path, help="the result (default: IN's stem.folded.onnx)")
    where.add_argument("--in-place", action="store_true", help="replace IN by the result")
    where.add_argument("--dry-run", action="store_true", help="write nothing, only say what would happen")
    parser.add_argument("--force", action="store_true", help="overwrite OUT if it exists")
    parser.add_argument("--report", metavar="FILE", type=Path, help="also write the report as JSON")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    add_selection(parser)
    parser.add_argument(
        "--check", metavar="N", type=_count, default=3,
        help="random draws of the whole-model check in ONNX Runtime (default 3; 0: only the local check of each edit)",
    )  # fmt: skip
    parser.add_argument("--seed", type=_count, default=0, help="seed of those draws (default 0)")
    parser.set_defaults(run=run)


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
        "--clone-budget", metavar="BYTES", type=byte_count, default=64 << 20,
        help="bytes that copies of shared weights may add, with K, M or G (default 64M)",
    )  # fmt: skip


def options_of(arguments: argparse.Namespace) -> "FoldOptions":
    """Return the fold options that the command line stands for."""
    from bnpass.fold.options import FoldOptions  # --help must stay instant

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
    with Progress(quiet=arguments.quiet) as progress:
        result = fold(
            source,
            options_of(arguments),
            output=None if arguments.dry_run else target,
            force=arguments.force or arguments.in_place,
            dry_run=arguments.dry_run,
            fingerprint=arguments.report is not None,
            progress=progress,
        )
    if arguments.report is not None:
        _write(arguments.report, result.report)
    if not arguments.quiet:
        print(result.report.to_text())
    return ExitCode.DONE


def byte_count(text: str) -> int:
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


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 on")
    return int(text)


def _is_same(a: Path, b: Path) -> bool:
    return os.path.realpath(a) == os.path.realpath(b) or (a.exists() and b.exists() and a.samefile(b))


def _check_report(report: Path, models: tuple[Path, ...], *, force: bool) -> None:
    """Refuse a report that could not be written before anything else is."""
    if any(_is_same(report, model) for model in models):
        raise UsageError(f"{report}: the report would overwrite a model")
    if report.exists() and not force:
        raise SaveError(f"{report}: exists already; give --force to overwrite it")
    if not report.parent.is_dir() or report.is_dir():
        raise SaveError(f"{report}: there is no folder for it, or it is one")


def _write(path: Path, report: "Report") -> None:
    temporary = path.with_name(f".bnpass-{os.getpid()}-{path.name}")
    try:
        temporary.write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        print(f"bnpass: the model is written, but not its report {path}: {error.strerror}", file=sys.stderr)
        raise SaveError(f"{path}: {error.strerror}") from error
