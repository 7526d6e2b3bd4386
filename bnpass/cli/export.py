"""``bnpass export MODEL [-o OUT]``: Keras and TensorFlow to ONNX, batch normalization intact."""

import argparse
from pathlib import Path

from bnpass.cli.progress import Progress
from bnpass.cli.report_file import Stopwatch, add_report, report_file
from bnpass.cli.transform import count
from bnpass.errors import ExitCode, UsageError


def add_to(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this verb to the command line."""
    parser = verbs.add_parser(
        "export",
        help="export a Keras or TensorFlow model to ONNX with its batch normalization intact",
        description="Export a .keras or .h5 file, a SavedModel or a frozen graph to ONNX. Each call of a "
        "batch-normalization layer becomes one node. The result is written only after it was compared with the "
        "framework on the same inputs.",
    )
    parser.add_argument("input", metavar="MODEL", type=Path, help="a .keras, .h5 or .pb file, or a SavedModel folder")
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=Path, help="the result (default: MODEL's stem.onnx, or .training.onnx)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite OUT if it exists")
    parser.add_argument(
        "--training", action="store_true",
        help="the forward graph of a training step: weights and statistics are inputs with defaults, "
        "updated statistics are outputs",
    )  # fmt: skip
    parser.add_argument("--fold", action="store_true", help="fold the batch normalization of the result")
    parser.add_argument("--opset", metavar="N", type=int, default=17, help="15 to 18 (default 17)")
    parser.add_argument(
        "--group", metavar="NAME", default="world",
        help="the replicas that synchronized layers share statistics with (default world: all)",
    )  # fmt: skip
    parser.add_argument(
        "--sync", action="store_true", help="make all batch normalization synchronized; files of tf_keras do not say it"
    )
    parser.add_argument(
        "--input-shape", metavar="TYPE:N,..", action="append", default=[],
        help="an input of a model that does not know its own, as float32:None,224,224,3; once for each",
    )  # fmt: skip
    parser.add_argument(
        "--inputs", metavar="NAMES", help="tensors of a graph without layers that are its inputs, as x:0,y:0"
    )
    parser.add_argument("--outputs", metavar="NAMES", help="likewise its outputs (default: both are found)")
    parser.add_argument("--signature-key", metavar="KEY", help="which signature of a SavedModel without layers")
    parser.add_argument(
        "--reinitialize", metavar="SEED", type=count, help="with --training: fresh weights of the layers' initializers"
    )
    parser.add_argument("--trust-model", action="store_true", help="load files that can hold code: HDF5, Lambda layers")
    parser.add_argument(
        "--check", metavar="N", type=count, default=3,
        help="calls that are compared with the framework, in training at least 5 steps (default 3; 0: none)",
    )  # fmt: skip
    parser.add_argument("--seed", type=count, default=0, help="seed of their inputs, and of Dropout (default 0)")
    add_report(parser)
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Carry the verb out."""
    from bnpass.api.export import export  # --help must stay instant
    from bnpass.exporting.options import ExportOptions

    options = ExportOptions(
        training=arguments.training,
        opset=arguments.opset,
        signature=tuple(map(_input, arguments.input_shape)) or None,
        inputs=_names(arguments.inputs),
        outputs=_names(arguments.outputs),
        signature_key=arguments.signature_key,
        group=arguments.group,
        check=arguments.check,
        seed=arguments.seed,
        reinitialize=arguments.reinitialize,
    )
    models = (arguments.input, *([arguments.output] if arguments.output else []))
    with report_file(arguments.report, models, force=arguments.force) as write, Progress(quiet=arguments.quiet) as bar:
        progress = Stopwatch(bar)
        result = export(
            arguments.input,
            arguments.output,
            options,
            fold=arguments.fold,
            sync=arguments.sync,
            trust_model=arguments.trust_model,
            force=arguments.force,
            progress=progress,
            on_checked=progress.timed(write),
        )
    if not arguments.quiet:
        print(result.report.to_text())
    return ExitCode.DONE


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name for name in text.split(",") if name)


def _input(text: str) -> tuple[tuple[int | None, ...], str]:
    """Read ``float32:None,224,224,3``."""
    dtype, colon, lengths = text.partition(":")
    words = lengths.split(",") if lengths else []
    if not colon or not all(word in ("None", "?") or word.isdecimal() for word in words):
        raise UsageError(f"'{text}' is no input shape; one looks like float32:None,224,224,3")
    return tuple(None if word in ("None", "?") else int(word) for word in words), dtype
