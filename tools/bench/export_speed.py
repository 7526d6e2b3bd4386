"""Export networks of keras.applications with bnpass and with tf2onnx alone: time and peak memory of whole processes.

    python tools/bench/export_speed.py                          ResNet50, 3 rounds: about 2 minutes
    python tools/bench/export_speed.py --all --repeats 5 --write README.md tools/bench/RESULTS.md

Each process imports TensorFlow, builds the network at the image size that it was made for, and exports it without a
check; "neither" builds it alone. tf2onnx is called as its documentation says, ``tf2onnx.convert.from_keras``.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import measure
from measure import RESULTS, ROOT, Sample

TOOLS = ("bnpass", "tf2onnx", "neither")
FAMILIES = (
    "ResNet50",
    "ResNet50V2",
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Small",
    "DenseNet121",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "InceptionV3",
    "Xception",
    "NASNetMobile",
    "RegNetX002",
    "RegNetY002",
)
ONLY_TF_KERAS = {"RegNetX002", "RegNetY002"}
TARGET, TIME_LIMIT = "ResNet50", 1.1
"""The target: bnpass takes at most that many times what tf2onnx alone takes for this family."""
HEAD = ("", "bnpass, s: median [range]", "tf2onnx alone, s", "×", "neither, s", "bnpass, MiB", "tf2onnx, MiB", "×")


def main() -> int:
    arguments = _parser().parse_args()
    names = FAMILIES if arguments.all else arguments.names or (TARGET,)
    how = (
        f"`python tools/bench/export_speed.py{' --all' * arguments.all} --repeats {arguments.repeats}`: whole "
        f"processes, interleaved, {arguments.repeats} rounds after a warm-up, medians; no check. Networks of "
        f"{'Keras 3' if arguments.framework == 'keras' else 'tf_keras'}, of tf_keras where Keras 3 has none. tf2onnx "
        "alone is `tf2onnx.convert.from_keras`; neither: the process that only builds the network."
    )
    rows, verdicts = [], []
    with measure.scratch(arguments) as folder:
        for name in names:
            samples = _samples(name, arguments, folder)
            rows.append(_row(name, samples))
            if name == TARGET and all(samples[tool][0].ok for tool in TOOLS):
                ours, theirs = (measure.median(samples[tool]) for tool in ("bnpass", "tf2onnx"))
                text = f"{name}, at most {TIME_LIMIT} × tf2onnx alone ({theirs:.2f} s)"
                verdicts.append(measure.verdict(text, ours, TIME_LIMIT * theirs, " s"))
    text = "\n\n".join([measure.conditions(how), measure.table(HEAD, rows), "\n".join(verdicts)]).rstrip()
    publish("export_speed", text, arguments.write)
    return 0


def publish(name: str, text: str, files: Sequence[Path] | None) -> None:
    """Print a result and put it into several files: none for None, RESULTS.md if none is named."""
    for file in [None] if files is None else files or [RESULTS]:
        measure.publish(name, text, file)


def family_parser(document: str | None, default: str) -> argparse.ArgumentParser:
    """Return the options of every script here, with families and several files to write to.

    Args:
        document: Of the script.
        default: What is said to be exported if no family is named.
    """
    shared = measure.parser(None)
    made = argparse.ArgumentParser(
        description=document,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[shared],
        add_help=False,
        conflict_handler="resolve",
    )
    made.add_argument("names", nargs="*", metavar="NAME", help=f"families (default: {default})")
    made.add_argument(
        "--write", metavar="FILE", type=Path, nargs="*",
        help="also put the result between the markers of each FILE (default tools/bench/RESULTS.md)",
    )  # fmt: skip
    return made


def _parser() -> argparse.ArgumentParser:
    made = family_parser(__doc__, TARGET)
    made.add_argument("--all", action="store_true", help="all families")
    made.add_argument("--framework", choices=("keras", "tf_keras"), default="keras")
    made.add_argument("--repeats", type=int, default=3, metavar="N", help="rounds that count (default 3)")
    return made


def _samples(name: str, arguments: argparse.Namespace, folder: Path) -> Mapping[str, list[Sample]]:
    framework = "tf_keras" if name in ONLY_TF_KERAS else arguments.framework
    script = str(ROOT / "tools" / "bench" / "export_one.py")
    targets = {tool: folder / f"{tool}.onnx" for tool in TOOLS}

    def after(tool: str, _: Sample, __: bool) -> None:
        targets[tool].unlink(missing_ok=True)  # every run creates its file, none replaces one

    commands = {tool: [sys.executable, script, tool, name, framework, str(targets[tool])] for tool in TOOLS}
    return measure.interleaved(commands, folder=folder, repeats=arguments.repeats, after=after)


def _row(name: str, samples: Mapping[str, Sequence[Sample]]) -> list[str]:
    failed = [
        f"{tool}: {samples[tool][0].failure}: {samples[tool][0].complaint}" for tool in TOOLS if not samples[tool][0].ok
    ]
    if failed:
        return [name, "; ".join(failed), *[""] * (len(HEAD) - 2)]
    times = {tool: measure.spread(s.seconds for s in samples[tool]) for tool in TOOLS}
    ours, theirs = ((measure.median(samples[tool]), measure.peak(samples[tool])) for tool in ("bnpass", "tf2onnx"))
    return [
        name,
        times["bnpass"],
        times["tf2onnx"],
        f"{ours[0] / theirs[0]:.2f}",
        times["neither"],
        f"{ours[1]:.0f}",
        f"{theirs[1]:.0f}",
        f"{ours[1] / theirs[1]:.2f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
