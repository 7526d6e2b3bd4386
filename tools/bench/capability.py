"""Give every model of the zoo to every tool: what is left, is it still right, how long did it take?

    python tools/bench/capability.py                                    all families, both variants, all tools
    python tools/bench/capability.py --families ResNet50 DenseNet121    some
    python tools/bench/capability.py --write                            the tables of RESULTS.md
    python tools/bench/capability.py --write README.md                  those that have markers there

Models are small in image size, full in depth and channels. Building them needs TensorFlow and takes a while the
first time. Each tool runs in a process of its own with a time limit; one that fails leaves a cell that says so.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import measure
from contestants import CONTESTANTS, command
from measure import ROOT
from zoo_files import zoo_file

WRONG = 1e-3
"""Relative difference above which an output is wrong; correct folds of these networks stay below 1e-4."""
TIMEOUT_S = 300.0
TOOLS = tuple(name for name in CONTESTANTS if not name.endswith("load + save"))
FAMILIES = {
    "ResNet50": 1, "ResNet50V2": 1, "ResNetRS50": 255, "MobileNet": 1, "MobileNetV2": 1, "MobileNetV3Small": 255,
    "DenseNet121": 1, "EfficientNetB0": 255, "EfficientNetV2B0": 255, "InceptionV3": 1, "InceptionResNetV2": 1,
    "Xception": 1, "NASNetMobile": 1, "RegNetX002": 255, "RegNetY002": 255,
}  # fmt: skip
"""Those of `models/zoo.py`, each with its brightest pixel (this file cannot import them: it must stay small)."""
DIGITS = "digits_cnn"
VARIANTS = {False: "exported", True: "BN intact"}


@dataclass(frozen=True)
class Outcome:
    """What one tool made of one model.

    Attributes:
        seconds: The tool's whole process; None for the input itself.
        left: What `judge.py` says of the output; empty if there is none.
        failure: Why there is none, or why ONNX Runtime refuses it.
    """

    seconds: float | None
    left: dict[str, object]
    failure: str = ""

    @property
    def affines(self) -> int:
        """Batch normalizations and per-channel affines together."""
        return int(str(self.left["batch_norms"])) + int(str(self.left["affines"]))

    @property
    def difference(self) -> float:
        """To the original's outputs."""
        return float(str(self.left["difference"]))

    @property
    def is_wrong(self) -> bool:
        """Whether it runs and computes something else."""
        return not self.failure and not self.difference <= WRONG

    def brief(self) -> str:
        """Say it in one cell."""
        if self.failure:
            return self.failure.split(":")[0]
        return f"{self.affines} WRONG ({self.difference:.1g})" if self.is_wrong else str(self.affines)


def main() -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--families", nargs="+", choices=[*FAMILIES, DIGITS], default=[DIGITS, *FAMILIES], metavar="F")
    arguments = parser.parse_args()
    how = (
        "`python tools/bench/capability.py`: nodes left of BatchNormalization and per-channel affines together (as "
        f"counted by `tools/bench/judge.py`). WRONG: the outputs are off by more than {WRONG:g}, relative to the "
        "largest, in ONNX Runtime with optimizations off. Each tool ran in a process of its own."
    )
    conditions = measure.conditions(how)
    found: dict[str, dict[str, Outcome]] = {}
    with measure.scratch(arguments) as folder:
        for family in arguments.families:
            for keep_bn, variant in VARIANTS.items():
                if family == DIGITS and keep_bn:
                    continue
                title = f"{family}, trained" if family == DIGITS else f"{family}, {variant}"
                try:
                    source = _source(arguments.models, family, keep_bn=keep_bn)
                except (RuntimeError, OSError) as error:
                    measure.say(f"{title}: {error}")
                    continue
                found[title] = _outcomes(source, title, FAMILIES.get(family, 1), folder)
    if not found:
        raise SystemExit("no model could be built")
    has_details = arguments.write is None or "capability_details:begin" in arguments.write.read_text(encoding="utf-8")
    measure.publish("capability", f"{conditions}\n\n{_overview(found)}", arguments.write)
    print()
    measure.publish("capability_details", _details(found), arguments.write if has_details else None)
    return 0


def _source(models: Path, family: str, *, keep_bn: bool) -> Path:
    if family == DIGITS:
        return ROOT / "models" / f"{DIGITS}.onnx"
    return zoo_file(models, family, keep_bn=keep_bn, small=True)


def _outcomes(source: Path, title: str, brightest: float, folder: Path) -> dict[str, Outcome]:
    expected = folder / "expected.npz"
    found = {"input": _judged(None, source, folder, "--record", expected, "--brightest", brightest)}
    for number, tool in enumerate(TOOLS):
        target = folder / f"{number}.onnx"
        sample = measure.run(command(tool, source, target), folder=folder, timeout_s=TIMEOUT_S)
        if not sample.ok or not target.exists():
            reason = sample.failure if not sample.ok else "no output"
            found[tool] = Outcome(sample.seconds, {}, f"{reason}: {sample.complaint}")
        else:
            found[tool] = _judged(sample.seconds, target, folder, "--expect", expected)
        for leftover in folder.glob(f"{number}.onnx*"):
            leftover.unlink()
        measure.say(f"{title}  {tool}: {found[tool].brief()}, {sample.seconds:.1f} s")
    expected.unlink(missing_ok=True)
    return found


def _judged(seconds: float | None, model: Path, folder: Path, *options: object) -> Outcome:
    judge = [sys.executable, str(Path(__file__).with_name("judge.py")), str(model), *map(str, options)]
    sample = measure.run(judge, folder=folder, timeout_s=TIMEOUT_S)
    if not sample.ok:
        return Outcome(seconds, {}, f"not judged, {sample.failure}: {sample.complaint}")
    left: dict[str, object] = json.loads(sample.output)
    failure = "" if left["loads"] else f"does not load: {measure.without_paths(str(left['error']))}"
    return Outcome(seconds, left, failure)


def _overview(found: dict[str, dict[str, Outcome]]) -> str:
    columns = ["input", *TOOLS]
    rows = [[title, *(outcomes[column].brief() for column in columns)] for title, outcomes in found.items()]
    totals, wrong, failed = ["**all**"], ["**wrong outputs**"], ["**no usable output**"]
    for column in columns:
        outcomes = [of[column] for of in found.values()]
        sound = [outcome.affines for outcome in outcomes if not outcome.failure]
        totals.append(str(sum(sound)) + ("" if len(sound) == len(outcomes) else f" (of {len(sound)} models)"))
        wrong.append(str(sum(outcome.is_wrong for outcome in outcomes)))
        failed.append(str(sum(bool(outcome.failure) for outcome in outcomes)))
    return measure.table(["left of BN + affine", *columns], [*rows, totals, wrong, failed])


def _details(found: dict[str, dict[str, Outcome]]) -> str:
    rows = []
    notes = []
    for title, outcomes in found.items():
        for tool, outcome in outcomes.items():
            count = [str(outcome.left.get(key, "")) for key in ("batch_norms", "affines", "convs", "nodes")]
            verdict = "" if outcome.failure else f"{outcome.difference:.1e}" + (" WRONG" if outcome.is_wrong else "")
            seconds = "" if outcome.seconds is None else f"{outcome.seconds:.1f}"
            rows.append([title, tool, *count, verdict or outcome.brief(), seconds])
            if outcome.failure:
                notes.append(f"- {title}, {tool}: {outcome.failure}")
    head = ("model", "tool", "BN", "affine", "Conv", "nodes", "difference", "s")
    return "\n\n".join(filter(None, [measure.table(head, rows), "\n".join(notes)]))


if __name__ == "__main__":
    sys.exit(main())
