"""Export networks of keras.applications with bnpass, and with tf2onnx and every peer behind it: what is left?

    python tools/bench/export_left.py                                   all families: about 10 minutes
    python tools/bench/export_left.py ResNet50 DenseNet121              some
    python tools/bench/export_left.py --write README.md tools/bench/RESULTS.md
    python tools/bench/export_left.py --export bnpass ResNet50 FILE.onnx FILE.npz   one export and what Keras answers

The networks are those of ``models/zoo.py``: small in image size, full in depth and channels, with the weights and
statistics of a trained one. Each export, each tool and each judgement has a process of its own. What a tool left is
held against what Keras itself answered in the process that exported.
"""

import argparse
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import capability
import export_one
import measure
from capability import TIMEOUT_S, WRONG, Outcome
from contestants import command
from export_speed import FAMILIES, ONLY_TF_KERAS, family_parser, publish
from measure import ROOT

OURS, PLAIN = "bnpass", "tf2onnx"
EXPORTERS = {OURS: export_one.by_bnpass, PLAIN: export_one.by_tf2onnx}
PEERS = tuple(tool for tool in capability.TOOLS if tool != OURS)
"""Each runs on the file of tf2onnx."""
COLUMNS = ("bnpass export + fold", "tf2onnx alone", *(f"+ {tool}" for tool in PEERS))
FRAMEWORKS = ("tensorflow", "keras", "tf_keras", "tf2onnx")


@dataclass(frozen=True)
class Left:
    """What one way from Keras to ONNX leaves.

    Attributes:
        outcome: What ``judge.py`` says of the file.
        transposes: Of the file, subgraphs and functions included.
    """

    outcome: Outcome
    transposes: int = 0

    @property
    def counts(self) -> tuple[int, int]:
        """Batch normalizations and per-channel affines together, and Transposes."""
        return self.outcome.affines, self.transposes

    @property
    def is_right(self) -> bool:
        """Whether it computes what Keras does."""
        return not self.outcome.failure and not self.outcome.is_wrong

    def exceeds(self, other: "Left") -> bool:
        """Whether it has more of either kind."""
        return any(mine > theirs for mine, theirs in zip(self.counts, other.counts, strict=True))

    def brief(self) -> str:
        """Say it in one cell."""
        if self.outcome.failure:
            return self.outcome.brief()
        wrong = f" WRONG ({self.outcome.difference:.1g})" if self.outcome.is_wrong else ""
        return f"{self.counts[0]} / {self.counts[1]}{wrong}"


def main() -> int:
    arguments = _arguments()
    if arguments.export:
        export(*arguments.export)
        return 0
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in FRAMEWORKS)
    conditions = measure.conditions(
        "`python tools/bench/export_left.py`: nodes left of BatchNormalization and per-channel affines together (as "
        "counted by `tools/bench/judge.py`) / Transposes. Networks of Keras 3, of tf_keras where Keras 3 has none, at "
        "a small image size, with the statistics of a trained one. bnpass: export, then fold; tf2onnx alone is "
        "`tf2onnx.convert.from_keras`, for RegNet with the jit of grouped convolutions taken off; +: that file through "
        f"the tool. WRONG: the outputs are off from those of Keras by more than {WRONG:g}, relative to the largest, in "
        "ONNX Runtime with optimizations off. PASS: bnpass is right and has no more of either kind than anyone else "
        "who is, and fewer than tf2onnx alone if that leaves any affine. Each export and each tool ran in a process "
        f"of its own. {versions}."
    )
    with measure.scratch(arguments) as folder:
        found = {name: _family(name, folder) for name in arguments.names or FAMILIES}
    publish("export_left", "\n\n".join(filter(None, [conditions, _table(found), _notes(found)])), arguments.write)
    return 0


def export(tool: str, family: str, target: str, expected: str) -> None:
    """Build a network, export it and keep what Keras answers.

    Args:
        tool: One of ``EXPORTERS``.
        family: One of ``FAMILIES``.
        target: The ONNX file to write.
        expected: The NPZ file to write, as ``judge.py --expect`` reads it.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    sys.path.insert(0, str(ROOT / "models"))
    import numpy as np
    import onnx
    import zoo

    keras = importlib.import_module("tf_keras" if family in ONLY_TF_KERAS else "keras")
    facts, rng = zoo.FAMILIES[family], np.random.default_rng(zoo.SEED)
    size = facts.small
    keras.utils.set_random_seed(zoo.SEED)
    model = getattr(keras.applications, family)(weights=None, input_shape=(size, size, 3), classifier_activation=None)
    zoo._make_trained(model, keras, rng, zoo._images(rng, facts, size, 8))  # noqa: SLF001  as zoo itself makes them
    images = zoo._images(rng, facts, size, 2)  # noqa: SLF001
    answers = np.asarray(model(images, training=False))
    EXPORTERS[tool](model, size, Path(target))
    (value,) = onnx.load(target, load_external_data=False).graph.input
    np.savez(expected, **{f"input:{value.name}": images, "output:0": answers})


def _arguments() -> argparse.Namespace:
    made = family_parser(__doc__, "all")
    made.add_argument(
        "--export", nargs=4, metavar=("TOOL", "FAMILY", "ONNX", "NPZ"),
        help=f"export one family by {' or '.join(EXPORTERS)} and keep what Keras answers; nothing else",
    )  # fmt: skip
    return made.parse_args()


def _family(name: str, folder: Path) -> dict[str, Left]:
    exported = {tool: folder / f"{tool}.onnx" for tool in EXPORTERS}
    failures = {tool: _exported(tool, name, target) for tool, target in exported.items()}
    found = {}
    for tool in (OURS, PLAIN, *PEERS):
        origin = OURS if tool == OURS else PLAIN
        failure, source = failures[origin], exported[origin]
        if failure:
            found[tool] = Left(Outcome(None, {}, failure))
        elif tool == PLAIN:
            found[tool] = _left(source, source.with_suffix(".npz"))
        else:
            found[tool] = _optimized(tool, source, folder / "optimized.onnx")
        measure.say(f"{name}  {tool}: {found[tool].brief()}")
    for leftover in folder.iterdir():
        leftover.unlink()
    return found


def _exported(tool: str, family: str, target: Path) -> str:
    """Export in a process of its own; return why that failed, or nothing."""
    ways = [tool, family, str(target), str(target.with_suffix(".npz"))]
    sample = measure.run([sys.executable, __file__, "--export", *ways], folder=target.parent, timeout_s=TIMEOUT_S)
    measure.say(f"{family}  exported by {tool}: {sample.seconds:.1f} s")
    return "" if sample.ok else f"{sample.failure}: {sample.complaint}"


def _optimized(tool: str, source: Path, target: Path) -> Left:
    sample = measure.run(command(tool, source, target), folder=target.parent, timeout_s=TIMEOUT_S)
    if not sample.ok or not target.exists():
        reason = "no output" if sample.ok else sample.failure
        return Left(Outcome(sample.seconds, {}, f"{reason}: {sample.complaint}"))
    found = _left(target, source.with_suffix(".npz"))
    for leftover in target.parent.glob(f"{target.name}*"):
        leftover.unlink()
    return found


def _left(model: Path, expected: Path) -> Left:
    outcome = capability._judged(None, model, model.parent, "--expect", expected)  # noqa: SLF001  its very judgement
    return Left(outcome, _transposes(model))


def _transposes(path: Path) -> int:
    import onnx

    model = onnx.load(path, load_external_data=False)
    bodies = [model.graph.node, *(function.node for function in model.functions)]
    count = 0
    while bodies:
        for node in bodies.pop():
            count += node.op_type == "Transpose"
            bodies += [graph.node for a in node.attribute for graph in (a.g, *a.graphs)]
    return count


def _table(found: Mapping[str, Mapping[str, Left]]) -> str:
    rows = [[name, *(left.brief() for left in of.values()), _verdict(of)] for name, of in found.items()]
    totals = ["**all**"]
    for tool in (OURS, PLAIN, *PEERS):
        counts = [of[tool].counts for of in found.values() if not of[tool].outcome.failure]
        total = " / ".join(str(sum(of_kind)) for of_kind in zip(*counts, strict=True)) or "0"
        totals.append(total + ("" if len(counts) == len(found) else f" (of {len(counts)} models)"))
    return measure.table(["BN + affine / Transposes", *COLUMNS, ""], [*rows, [*totals, ""]])


def _verdict(found: Mapping[str, Left]) -> str:
    ours, plain = found[OURS], found[PLAIN]
    if not ours.is_right:
        return "**FAIL**"
    rivals = [tool for tool, left in found.items() if left.is_right and ours.exceeds(left)]
    if not rivals and plain.is_right and plain.outcome.affines and ours.counts == plain.counts:
        rivals = [f"no fewer than {PLAIN} alone"]
    return f"**FAIL**: {', '.join(rivals)}" if rivals else "PASS"


def _notes(found: Mapping[str, Mapping[str, Left]]) -> str:
    failed = ((name, tool, left.outcome.failure) for name, of in found.items() for tool, left in of.items())
    return "\n".join(f"- {name}, {tool}: {failure}" for name, tool, failure in failed if failure)


if __name__ == "__main__":
    sys.exit(main())
