"""``bnpass expand IN [-o OUT]``: write training batch normalization out in plain ONNX and AllReduce."""

import argparse

from bnpass.cli.transform import add_check, add_input, add_output, carry_out
from bnpass.errors import ExitCode


def add_to(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this verb to the command line."""
    parser = verbs.add_parser(
        "expand",
        help="write training batch normalization out in plain ONNX and AllReduce",
        description="Expand training batch normalization, and the bnpass operators, forward and backward, into "
        "moments, AllReduce and plain ONNX. The result is written only after it was checked against the original.",
    )
    add_input(parser)
    add_output(parser, "expanded")
    parser.add_argument(
        "--sync", metavar="GROUP", default="",
        help="share the statistics of BatchNormalization over this group of replicas (world: all)",
    )  # fmt: skip
    parser.add_argument(
        "--correction", metavar="N", type=int, choices=(0, 1), default=0,
        help="running variance of BatchNormalization: 0 population (default), 1 sample (PyTorch, fused TensorFlow)",
    )  # fmt: skip
    parser.add_argument(
        "--collective", choices=("bnpass", "com.microsoft", "none"), default="bnpass",
        help="which AllReduce to write; none: every group is one replica",
    )  # fmt: skip
    parser.add_argument(
        "--stats", choices=("exact", "keras"), default="exact",
        help="keras: its three one-pass reductions, with their rounding (default: exact)",
    )  # fmt: skip
    parser.add_argument(
        "--as-functions", action="store_true",
        help="keep each as one bnpass operator, with a body that any ONNX Runtime can run",
    )  # fmt: skip
    parser.add_argument(
        "--no-coalesce", action="store_true", help="leave one AllReduce per batch normalization and direction"
    )
    parser.add_argument(
        "--uniform", metavar="NAME", action="append", default=[],
        help="an input that is the same on all replicas, so that it may decide about collectives; "
        "may be given more than once",
    )  # fmt: skip
    add_check(parser, "the check of each kind of batch normalization alone")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Carry the verb out."""
    from bnpass.api.expand import expand  # --help must stay instant
    from bnpass.expansion.options import ExpandOptions

    options = ExpandOptions(
        group=arguments.sync,
        correction=arguments.correction,
        collective=arguments.collective,
        stats=arguments.stats,
        as_functions=arguments.as_functions,
        coalesce=not arguments.no_coalesce,
        uniform=tuple(arguments.uniform),
        check=arguments.check,
        seed=arguments.seed,
    )
    return carry_out(arguments, expand, options)
