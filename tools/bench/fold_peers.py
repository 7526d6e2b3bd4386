"""Fold many models with bnpass and with every peer: what is left, how long it took, and how fast the result runs.

    python tools/bench/fold_peers.py --quick                            six models: about 3 minutes once built
    python tools/bench/fold_peers.py --build                            build the models, measure nothing
    python tools/bench/fold_peers.py                                    all of them: about half an hour once built
    python tools/bench/fold_peers.py --only MobileOne DenseNet          those whose title has one of these words
    python tools/bench/fold_peers.py --write README.md tools/bench/RESULTS.md

Models: every family of `models/zoo.py` with each batch normalization as one node, full size and small; the networks of
`models/reparam.py` in the form they are trained in; those of `models/torch_nets.py`, for which the environment variable
BNPASS_BENCH_TORCH names a Python that has torch, onnx and NumPy. Models that cannot be built are left out, and named.
Files that have been built are found again, so a run that was ended can be started anew.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import capability
import measure
from built_files import REPARAM, TORCH, reparam_file, torch_file
from capability import TIMEOUT_S, WRONG, Outcome
from contestants import PEERS, command
from export_speed import publish
from zoo_files import zoo_file

OURS, ALONE, COUNTED = "bnpass", "ONNX Runtime alone", "ONNX Runtime extended"
"""ONNX Runtime alone runs the model as it is; what it leaves is counted in the file that it saves for itself."""
RUN = (ALONE, *PEERS, OURS)
"""Whose files are timed."""
FASTER, FASTER_MOBILE_ONE, SLOWER = 1.10, 3.0, 1.03
"""Targets: best peer / bnpass over all models, be it one for all or another for each; ONNX Runtime alone / bnpass on
MobileOne; bnpass / its input."""
IN_DOUBT, MORE_ROUNDS = 1.02, 3
"""A model that seems to run that much slower than its input is timed again, in that many times the rounds."""
MOBILE_ONE = "MobileOne"
QUICK = (
    "ResNet18, torch", "MobileOneS0, torch", "DenseNet121, small", "MobileNetV2, small", "MobileOneS0, Keras 3",
    "DBBResNet18, Keras 3",
)  # fmt: skip
HEAD = (
    "BN + affine / Conv", "input", "bnpass leaves", "the others at least", "bnpass, s", "fastest peer, s", "input, ms",
    "best other, ms", "bnpass, ms", "input / bnpass", "best other / bnpass", "noise", "",
)  # fmt: skip


@dataclass(frozen=True)
class Model:
    """One model.

    Attributes:
        build: Returns its file, given the folder of models.
        brightest: Images are uniform between 0 and this.
    """

    build: Callable[[Path], Path]
    brightest: float = 1.0


MODELS: dict[str, Model] = {
    **{f"{name}, Keras 3": Model(partial(reparam_file, name=name)) for name in REPARAM},
    **{f"{name}, torch": Model(partial(torch_file, name=name)) for name in TORCH},
    **{
        f"{name}{', small' * small}": Model(partial(zoo_file, family=name, keep_bn=True, small=small), brightest)
        for small in (False, True)
        for name, brightest in capability.FAMILIES.items()
    },
}


@dataclass(frozen=True)
class Found:
    """What all tools made of one model.

    Attributes:
        outcomes: Of each tool that writes a file, and of ONNX Runtime alone.
        times: Of each file that is right, the median run in each round, in seconds.
        noise: The input against itself: the ratio of two sessions that are the same.
    """

    outcomes: Mapping[str, Outcome]
    times: Mapping[str, Sequence[float]]
    noise: float

    @property
    def others(self) -> list[str]:
        """Whose file is right, but for ours."""
        return [name for name, outcome in self.outcomes.items() if name != OURS and _is_right(outcome)]

    @property
    def leaves_more_than(self) -> list[str]:
        """Those who are right and leave less of either kind."""
        ours = _counts(self.outcomes[OURS])
        theirs = {name: _counts(self.outcomes[name]) for name in self.others}
        return [name for name, counts in theirs.items() if any(m > t for m, t in zip(ours, counts, strict=True))]

    @property
    def best_other(self) -> str:
        """The fastest that is right and not ours; the input if there is none."""
        right = [name for name in self.others if name in self.times]
        return min(right, key=lambda name: statistics.median(self.times[name]), default=ALONE)

    @property
    def is_complete(self) -> bool:
        """Whether there is something to compare."""
        return OURS in self.times and ALONE in self.times

    def ratio(self, over: str, under: str = OURS) -> float:
        """Return how many times as long one file takes as another."""
        return statistics.median(self.times[over]) / statistics.median(self.times[under])


def main() -> int:
    arguments = _arguments()
    wanted = [title for title in MODELS if _is_wanted(title, arguments)]
    found: dict[str, Found] = {}
    missing = []
    with measure.scratch(arguments) as folder:
        conditions = _conditions(arguments)
        for number, title in enumerate(wanted, 1):
            measure.say(f"{number}/{len(wanted)}  {title}")
            try:
                source = MODELS[title].build(arguments.models)
            except (RuntimeError, OSError) as error:
                missing.append(f"- {title}: {measure.without_paths(str(error)).splitlines()[-1][:200]}")
                measure.say(missing[-1])
                continue
            if not arguments.build:
                found[title] = _found(title, source, folder, arguments)
    if arguments.build:
        return int(bool(missing))
    if not found:
        raise SystemExit("no model could be built")
    text = [conditions, _targets(found), measure.table(HEAD, [_row(*item) for item in found.items()])]
    publish("fold_peers", "\n\n".join([*text, *_notes(found, missing)]), arguments.write)
    print()
    publish("fold_peers_details", _details(found), _with_details(arguments.write))
    return 0


def _arguments() -> argparse.Namespace:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[measure.parser(None)], add_help=False, conflict_handler="resolve",
    )  # fmt: skip
    made.add_argument(
        "--write", metavar="FILE", type=Path, nargs="*",
        help="also put the result between the markers of each FILE (default tools/bench/RESULTS.md)",
    )  # fmt: skip
    made.add_argument("--quick", action="store_true", help="six models")
    made.add_argument("--only", nargs="+", metavar="WORD", help="models whose title has one of these words")
    made.add_argument("--build", action="store_true", help="build what is missing, and measure nothing")
    made.add_argument("--rounds", type=int, default=5, metavar="N", help="of latency (default 5)")
    made.add_argument("--seconds", type=float, default=0.3, metavar="S", help="of a round, per file (default 0.3)")
    made.add_argument("--threads-wait", default="sleep", help="see latency.py (default sleep)")
    return made.parse_args()


def _is_wanted(title: str, arguments: argparse.Namespace) -> bool:
    if arguments.only:
        return any(word in title for word in arguments.only)
    return title in QUICK or not arguments.quick


def _conditions(arguments: argparse.Namespace) -> str:
    return measure.conditions(
        f"`python tools/bench/fold_peers.py{' --quick' * arguments.quick}`: models in which every batch normalization "
        "is one node; those of PyTorch from its own exporter, the others of Keras 3 and tf_keras. BN + affine / Conv: "
        "nodes left of BatchNormalization and per-channel affines together, and of convolutions (counted by "
        "`tools/bench/judge.py`; for ONNX Runtime alone in the file that it writes for itself). Seconds: the whole "
        f"process, once. Milliseconds: ONNX Runtime, CPU, all optimizations, 2 threads, batch 1; all files of a model "
        f"in one process, in turns, {arguments.rounds} rounds of {arguments.seconds:g} s in rotating order, medians; "
        f"--threads-wait {arguments.threads_wait}. Others: ONNX Runtime alone, which runs the input as it is, and "
        f"{', '.join(PEERS)}. WRONG: outputs off by more than {WRONG:g}, relative to the largest, in ONNX Runtime with "
        "optimizations off; such a file is nobody's best. Noise: the input against a second session of itself. A model "
        f"that seemed more than {IN_DOUBT - 1:.0%} slower than its input was timed again in {MORE_ROUNDS} times the "
        "rounds, and that counts."
    )


def _found(title: str, source: Path, folder: Path, arguments: argparse.Namespace) -> Found:
    brightest = MODELS[title].brightest
    expected = folder / "expected.npz"
    files = {ALONE: source, **{tool: folder / f"{tool}.onnx" for tool in (*PEERS, OURS)}}
    judged = {"input": capability._judged(None, source, folder, "--record", expected, "--brightest", brightest)}  # noqa: SLF001
    judged[ALONE] = _made(COUNTED, source, folder / "counted.onnx", expected)
    for tool in (*PEERS, OURS):
        judged[tool] = _made(tool, source, files[tool], expected)
    for tool, outcome in judged.items():
        measure.say(f"  {tool}: {_brief(outcome)}{_seconds(outcome)}")
    # Where ONNX Runtime alone is wrong it is nobody's best, but still what a user has without folding.
    right = {tool: files[tool] for tool in RUN if tool == ALONE or _is_right(judged[tool])}
    found = Found(judged, *_timed(right, brightest, folder, arguments, arguments.rounds))
    if found.is_complete and found.ratio(OURS, ALONE) > IN_DOUBT:
        measure.say(f"  {found.ratio(OURS, ALONE):.3f} × input: once more")
        found = Found(judged, *_timed(right, brightest, folder, arguments, MORE_ROUNDS * arguments.rounds))
    for leftover in folder.iterdir():
        leftover.unlink()
    if found.is_complete:
        measure.say(
            f"  {_ms(found, ALONE)} ms, {found.best_other} {_ms(found, found.best_other)} ms, bnpass "
            f"{_ms(found, OURS)} ms; noise {found.noise:.3f}"
        )
    return found


def _made(tool: str, source: Path, target: Path, expected: Path) -> Outcome:
    sample = measure.run(command(tool, source, target), folder=target.parent, timeout_s=TIMEOUT_S)
    if not sample.ok or not target.exists():
        reason = "no output" if sample.ok else sample.failure
        return Outcome(sample.seconds, {}, f"{reason}: {sample.complaint}")
    return capability._judged(sample.seconds, target, target.parent, "--expect", expected)  # noqa: SLF001


def _timed(
    files: Mapping[str, Path], brightest: float, folder: Path, arguments: argparse.Namespace, rounds: int
) -> tuple[dict[str, list[float]], float]:
    """Return the times of each file that runs, and how far the input is off from itself."""
    twin = [*files.values(), files[ALONE]]
    options = ["--rounds", rounds, "--seconds", arguments.seconds, "--threads-wait", arguments.threads_wait]
    program = [sys.executable, str(Path(__file__).with_name("latency.py")), *map(str, twin)]
    sample = measure.run(
        [*program, *map(str, options), "--brightest", str(brightest)], folder=folder, timeout_s=TIMEOUT_S
    )
    if not sample.ok:
        measure.say(f"  latency: {sample.failure}: {sample.complaint}")
        return {}, float("nan")
    *times, again = json.loads(sample.output)
    found = {name: of for name, of in zip(files, times, strict=True) if isinstance(of, list)}
    if ALONE not in found or not isinstance(again, list):
        return found, float("nan")
    return found, statistics.median(again) / statistics.median(found[ALONE])


def _is_right(outcome: Outcome) -> bool:
    return not outcome.failure and not outcome.is_wrong


def _counts(outcome: Outcome) -> tuple[int, int]:
    return outcome.affines, int(str(outcome.left["convs"]))


def _brief(outcome: Outcome) -> str:
    if outcome.failure:
        return outcome.brief()
    wrong = f" WRONG ({outcome.difference:.1g})" if outcome.is_wrong else ""
    return "{} / {}".format(*_counts(outcome)) + wrong


def _seconds(outcome: Outcome) -> str:
    return "" if outcome.seconds is None else f", {outcome.seconds:.1f} s"


def _ms(found: Found, name: str) -> str:
    return f"{statistics.median(found.times[name]) * 1e3:.2f}" if name in found.times else ""


def _row(title: str, found: Found) -> list[str]:
    outcomes = found.outcomes
    least = min((_counts(outcomes[name]) for name in found.others if name != "input"), default=None)
    times = [outcomes[name].seconds for name in PEERS if name in found.others]
    cells = [
        title,
        _brief(outcomes["input"]),
        _brief(outcomes[OURS]),
        "{} / {}".format(*least) if least else "",
        f"{outcomes[OURS].seconds:.1f}",
        f"{min(filter(None, times), default=float('nan')):.1f}",
    ]
    if not found.is_complete:
        return [*cells, *[""] * (len(HEAD) - len(cells) - 1), _verdict(found)]
    best = found.best_other
    return [
        *cells,
        _ms(found, ALONE),
        f"{_ms(found, best)} ({best})",
        _ms(found, OURS),
        f"{found.ratio(ALONE):.2f}",
        f"{found.ratio(best):.2f}",
        f"{abs(found.noise - 1):.1%}",
        _verdict(found),
    ]


def _verdict(found: Found) -> str:
    if not _is_right(found.outcomes[OURS]) or not found.is_complete:
        return "**FAIL**"
    reasons = [f"leaves more than {', '.join(found.leaves_more_than)}"] if found.leaves_more_than else []
    if found.ratio(OURS, ALONE) > SLOWER:
        reasons.append(f"{found.ratio(OURS, ALONE) - 1:.1%} slower than its input")
    return f"**FAIL**: {'; '.join(reasons)}" if reasons else "PASS"


def _targets(found: Mapping[str, Found]) -> str:
    timed = {title: of for title, of in found.items() if of.is_complete}
    mobile = [of.ratio(ALONE) for title, of in timed.items() if title.startswith(MOBILE_ONE)]
    wrong = sum(not _is_right(of.outcomes[OURS]) or not of.is_complete for of in found.values())
    more = sum(bool(of.leaves_more_than) for of in found.values() if _is_right(of.outcomes[OURS]))
    slower = sum(of.ratio(OURS, ALONE) > SLOWER for of in timed.values())
    best = _mean(of.ratio(of.best_other) for of in timed.values())
    peer, of_peer = _best_of_all(timed)
    lines = [
        _at_least(f"time of the best other, {peer}, / bnpass, geometric mean of {len(timed)} models", of_peer, FASTER),
        _at_least("time of whoever is best at each of them / bnpass, geometric mean", best, FASTER),
        _at_least(
            f"time of ONNX Runtime alone / bnpass, geometric mean of {len(mobile)} MobileOne", _mean(mobile),
            FASTER_MOBILE_ONE,
        ),
        measure.verdict(f"models, of {len(found)}, in which bnpass leaves more than someone who is right", more, 0, ""),
        measure.verdict(f"models that run more than {SLOWER - 1:.0%} slower than their input", slower, 0, ""),
        measure.verdict("models that bnpass got wrong, or that could not be timed", wrong, 0, ""),
    ]  # fmt: skip
    return "\n".join(lines)


def _best_of_all(timed: Mapping[str, Found]) -> tuple[str, float]:
    """Return the tool that is nearest to bnpass on the set, by geometric mean over the models that it gets right."""
    others = [tool for tool in RUN if tool != OURS]
    right = {tool: [of for of in timed.values() if tool in of.others and tool in of.times] for tool in others}
    means = {tool: _mean(of.ratio(tool) for of in models) for tool, models in right.items() if models}
    best = min(means, key=lambda tool: means[tool], default=ALONE)
    return best, means.get(best, float("nan"))


def _at_least(text: str, found: float, limit: float) -> str:
    return f"- **{'PASS' if found >= limit else 'FAIL'}** {text}: {found:.2f}, wanted {limit:.2f}"


def _mean(ratios: Iterable[float]) -> float:
    known = list(ratios)
    return statistics.geometric_mean(known) if known else float("nan")


def _notes(found: Mapping[str, Found], missing: Sequence[str]) -> list[str]:
    failed = [
        f"- {title}, {tool}: {outcome.failure.rstrip(': ') or f'WRONG, off by {outcome.difference:.1g}'}"
        for title, of in found.items()
        for tool, outcome in of.outcomes.items()
        if not _is_right(outcome)
    ]
    return [part for part in ("\n".join(failed), "\n".join(["Not built:", "", *missing]) if missing else "") if part]


def _details(found: Mapping[str, Found]) -> str:
    """Return what is left and seconds, then milliseconds, of every tool."""
    columns = ("input", ALONE, *PEERS, OURS)
    left = [
        [title, *(f"{_brief(of.outcomes[tool])}{_seconds(of.outcomes[tool])}" for tool in columns)]
        for title, of in found.items()
    ]
    times = [[title, *(_ms(of, tool) for tool in RUN)] for title, of in found.items()]
    return "\n\n".join(
        [measure.table(("BN + affine / Conv, seconds", *columns), left), measure.table(("milliseconds", *RUN), times)]
    )


def _with_details(files: Sequence[Path] | None) -> list[Path] | None:
    """Return those files that have markers for the details."""
    if files is None:
        return None
    kept = [f for f in files or [measure.RESULTS] if "fold_peers_details:begin" in f.read_text(encoding="utf-8")]
    return kept or None


if __name__ == "__main__":
    sys.exit(main())
