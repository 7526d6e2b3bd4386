"""``bnpass fold IN [-o OUT]``: fold a model and write the result."""

import argparse
from typing import TYPE_CHECKING

from bnpass.cli.transform import add_check, add_input, add_output, carry_out
from bnpass.errors import ExitCode

if TYPE_CHECKING:
    from bnpass.folding.options import FoldOptions


def add_to(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this verb to the command line."""
    parser = verbs.add_parser(
        "fold",
        help="fold batch normalization into the weights around it",
        description="Fold inference batch normalization and per-channel affines into the weights around them. "
        "The result is written only after it was checked against the original.",
    )
    add_input(parser)
    add_output(parser, "folded")
    add_selection(parser)
    add_check(parser, "the local check of each edit")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Carry the verb out."""
    from bnpass.api.fold import fold  # --help must stay instant

    return carry_out(arguments, fold, options_of(arguments))


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
        "--no-merge", dest="merge", action="store_false",
        help="leave parallel branches and chains of linear ops as they are",
    )  # fmt: skip
    parser.add_argument(
        "--target", choices=("onnxruntime-cpu", "onnxruntime-cuda", "portable"), default="onnxruntime-cpu",
        help="what will run the model: affines that stay are written in its cheapest form (default onnxruntime-cpu)",
    )  # fmt: skip
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
        merge=arguments.merge,
        target=arguments.target,
        clone_budget=arguments.clone_budget,
        check=getattr(arguments, "check", 0),
        seed=getattr(arguments, "seed", 0),
    )


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
