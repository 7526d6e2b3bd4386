"""What the verbs share that make one model of another: their arguments, and the way a call goes."""

import argparse
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bnpass.cli.progress import Progress
from bnpass.errors import ExitCode, SaveError, UsageError

if TYPE_CHECKING:
    from bnpass.report import Report


class ToJson(Protocol):
    """A report."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        ...


class Reported(Protocol):
    """The result of a verb."""

    @property
    def report(self) -> "Report":
        """What happened."""
        ...


def add_input(parser: argparse.ArgumentParser) -> None:
    """Add the model that is read."""
    parser.add_argument("input", metavar="IN", type=Path, help="the model")
    add_trust(parser)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add how far the models that are read are trusted."""
    parser.add_argument(
        "--trust-external-data", action="store_true", help="accept symbolic and hard links as data files of a model"
    )


def add_output(parser: argparse.ArgumentParser, suffix: str) -> None:
    """Add where the result goes, and what is said about it."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "-o", "--output", metavar="OUT", type=Path, help=f"the result (default: IN's stem.{suffix}.onnx)"
    )
    where.add_argument("--in-place", action="store_true", help="replace IN by the result")
    where.add_argument("--dry-run", action="store_true", help="write nothing, only say what would happen")
    parser.add_argument("--force", action="store_true", help="overwrite OUT if it exists")
    parser.add_argument("--report", metavar="FILE", type=Path, help="also write the report as JSON")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.set_defaults(suffix=suffix)


def add_check(parser: argparse.ArgumentParser, without: str) -> None:
    """Add how thoroughly the result is checked; ``without`` says what is left at 0."""
    parser.add_argument(
        "--check", metavar="N", type=count, default=3,
        help=f"random draws of the whole-model check in ONNX Runtime (default 3; 0: only {without})",
    )  # fmt: skip
    parser.add_argument("--seed", type=count, default=0, help="seed of those draws (default 0)")


def carry_out(arguments: argparse.Namespace, verb: Callable[..., Reported], options: object) -> ExitCode:
    """Call a verb of the API as the command line says, and print its report."""
    from bnpass.api.transform import default_output  # --help must stay instant

    source: Path = arguments.input
    target = source if arguments.in_place else arguments.output or default_output(source, arguments.suffix)
    if not arguments.in_place and _is_same(source, target):
        raise UsageError(f"{target}: the output is the input; say --in-place if it should be replaced")
    with (
        report_file(arguments.report, (source, target), force=arguments.force) as write,
        Progress(quiet=arguments.quiet) as progress,
    ):
        result = verb(
            source,
            options,
            output=None if arguments.dry_run else target,
            force=arguments.force or arguments.in_place,
            dry_run=arguments.dry_run,
            fingerprint=arguments.report is not None,
            trust_external_data=arguments.trust_external_data,
            progress=progress,
            on_checked=write,
        )
    if not arguments.quiet:
        print(result.report.to_text())
    return ExitCode.DONE


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
def report_file(path: Path | None, models: tuple[Path, ...], *, force: bool) -> Iterator[Callable[["ToJson"], None]]:
    """Give a function that writes the report beside its place, and put it there when all went well.

    Args:
        path: Where it goes; None if nobody wants it.
        models: Files that it must not overwrite.
        force: Overwrite another file that is there.
    """
    if path is not None:
        _check_report(path, models, force=force)
    temporary = None if path is None else path.with_name(f".bnpass-{os.getpid()}.json")

    def write(report: ToJson) -> None:
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
