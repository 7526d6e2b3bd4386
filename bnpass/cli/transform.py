"""What the verbs share that make one model of another: their arguments, and the way a call goes."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bnpass.cli.progress import Progress
from bnpass.cli.report_file import Stopwatch, add_report, is_same, report_file
from bnpass.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from bnpass.report import Report


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
    add_report(parser)
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
    if not arguments.in_place and is_same(source, target):
        raise UsageError(f"{target}: the output is the input; say --in-place if it should be replaced")
    with (
        report_file(arguments.report, (source, target), force=arguments.force) as write,
        Progress(quiet=arguments.quiet) as bar,
    ):
        progress = Stopwatch(bar)
        result = verb(
            source,
            options,
            output=None if arguments.dry_run else target,
            force=arguments.force or arguments.in_place,
            dry_run=arguments.dry_run,
            fingerprint=arguments.report is not None,
            trust_external_data=arguments.trust_external_data,
            progress=progress,
            on_checked=progress.timed(write),
        )
    if not arguments.quiet:
        print(result.report.to_text())
    return ExitCode.DONE


def count(text: str) -> int:
    """Read a whole number from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 on")
    return int(text)
