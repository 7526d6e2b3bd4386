"""``bnpass diff A B``: what differs between two models."""

import argparse
from pathlib import Path

from bnpass.cli.progress import Progress
from bnpass.cli.report_file import Stopwatch, is_page, report_file
from bnpass.cli.transform import add_check, add_trust
from bnpass.errors import ExitCode, UsageError


def add_to(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this verb to the command line."""
    parser = verbs.add_parser(
        "diff",
        help="say what differs between two models: structure, weights, numbers",
        description="Say what differs between two models. They are the same, and the exit code is 0, if their graphs "
        "are isomorphic, with equal attributes, constants that are equal bit for bit, and inputs and outputs of the "
        "same names, types and shapes. The order of nodes does not count, nor do the names of nodes, of values between "
        "them, of weights and of open dimensions: they are told as renamed. Else the exit code is 1, and models that "
        "take and give the same are run and compared as verify does.",
    )
    parser.add_argument("a", metavar="A", type=Path, help="the first model")
    parser.add_argument("b", metavar="B", type=Path, help="the second model")
    add_check(parser, "structure and weights")
    add_trust(parser)
    parser.add_argument("--report", metavar="FILE", type=Path, help="also write all differences as JSON")
    parser.add_argument("--force", action="store_true", help="overwrite FILE if it exists")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Carry the verb out."""
    if arguments.report is not None and is_page(arguments.report):
        raise UsageError(f"{arguments.report}: diff writes its report as JSON; give it another name")
    from bnpass.api.diff import diff  # --help must stay instant

    models = (arguments.a, arguments.b)
    with (
        report_file(arguments.report, models, force=arguments.force) as write,
        Progress(quiet=arguments.quiet) as bar,
    ):
        watch = Stopwatch(bar)
        found = diff(
            *models,
            check=arguments.check,
            seed=arguments.seed,
            trust_external_data=arguments.trust_external_data,
            progress=watch,
        )
        watch.timed(write)(found.report)
    if not arguments.quiet:
        print(found.report.to_text())
    return ExitCode.DONE if found.same else ExitCode.MISMATCH
