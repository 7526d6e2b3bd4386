"""Run the bodies and the kernels of the operators in many releases of ONNX Runtime.

    python tools/runtimes/releases.py [RELEASE ...] [--every N] [--keep FOLDER] [--write]

Without RELEASE: some old ones, and all from 1.18.0 that pip has for this Python. Each gets a virtual environment of its
own, made by pip, and runs the cases of tests/unit/ops/body_cases.py twice: nodes with their bodies, and nodes without
them, for the kernels, which need a built library (BNPASS_LIBRARY names another one). A crash ends one case, not the
run. ``--write`` writes RESULTS.md. Exit code: 0 if all releases from the oldest one that is supported are right, and
the kernels refused by name in those that are too old for them; 1 if not.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bnpass.runtime import get_library_path
from tests.unit.ops.body_cases import Case, all_cases

RUNNER = Path(__file__).with_name("run_cases.py")
RESULTS = Path(__file__).with_name("RESULTS.md")
OLD_RELEASES = ("1.15.0", "1.15.1", "1.16.0", "1.16.3", "1.17.0", "1.17.3")
OLDEST = (1, 16)
"""The oldest release that runs all bodies."""

OLDEST_FOR_KERNELS = (1, 18)
"""The oldest release that the kernels take; older ones are refused."""

NUMPY_2 = (1, 19)
"""The first release that takes NumPy 2."""

OPSETS = (15, 18)
"""The opsets that are used in turn: from the oldest one for bodies to the one that models are made of."""

LEVELS = ("off", "all")
SAID_BY_KERNELS = r"Status Message: [^\n]*(virtual_batch_size|ghost batches|axis|has the shape|expected)"
"""What a kernel says of a node that does not fit."""

TEXT = """\
# Releases of ONNX Runtime

Written by `tools/runtimes/releases.py --write`. Every case of `tests/unit/ops/body_cases.py`, a model of one operator,
runs twice on the CPU: graph optimizations off and on. *Right* means that the numbers are within the bounds of rounding,
or, for what must be refused, that the node in charge said so.

## Bodies

"""
KERNELS = """
## Kernels

The same nodes without bodies, so that only the kernels of one `libbnpass_ort.so` can run them. *Too old* means that
registration raised "bnpass needs ONNX Runtime 1.18 or newer, this is ...", and that the process went on.

"""
REMARK = """
Releases before 1.16 end with a segmentation fault as they load a node of a model-local function that has an input `""`:
the function need not even read it, and a node that ends before it fares no better. `after` is such an input. The rows
*`after` written* have X there instead, which means the same, and nothing else is changed.

Up to 1.16.3, `ReduceSum` with `keepdims = 1` over no elements returns no sums instead of zeros. Bodies bring zeros of
their own and cut off what is too much.

A node with fewer outputs than its function aborts the process up to 1.24.4 at least, and is refused by 1.31.1. onnx_ir
drops unnamed outputs at the end of a node, so `add_bodies` gives the last one a name.
"""


@dataclass
class Outcome:
    """What one release made of the cases, each run twice; ``wanted`` is what all of them should be."""

    release: str
    wanted: str = "right"
    counts: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)

    def add(self, kind: str, what: str) -> None:
        """Count one run of one case."""
        self.counts[kind] += 1
        if kind != self.wanted:
            self.complaints.append(f"{kind}: {what}")


def numbers(release: str) -> tuple[int, ...]:
    """Return major and minor number."""
    return tuple(int(number) for number in release.split(".")[:2])


def environment(release: str, folder: Path) -> Path:
    """Make a virtual environment with one release and nothing else; return its Python.

    Raises:
        subprocess.CalledProcessError: pip found no wheel, or no network; its message is in ``stderr``.
    """
    target = folder / f"onnxruntime-{release}"
    python = target / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", target], check=True)
    numpy = "numpy<2" if numbers(release) < NUMPY_2 else "numpy"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "--retries", "1"]
    # what else it asks for (sympy, coloredlogs, ...) is not needed to run a model
    command = [*pip, "install", "-q", "--no-deps", f"onnxruntime=={release}", numpy]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return python


def offered() -> list[str]:
    """Return the releases that the kernels take and pip has for this Python, the oldest first.

    Raises:
        subprocess.CalledProcessError: pip has no network.
    """
    command = [sys.executable, "-m", "pip", "index", "versions", "onnxruntime", "--disable-pip-version-check"]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    line = re.search(r"^Available versions: (.+)$", answer, re.MULTILINE)
    releases = line[1].split(", ") if line else []
    return [release for release in reversed(releases) if numbers(release) >= OLDEST_FOR_KERNELS]


def write_cases(
    cases: Sequence[Case], folder: Path, *, with_after: bool = False, with_bodies: bool = True
) -> dict[str, Case]:
    """Write model and inputs of every case; return the cases by file name."""
    folder.mkdir(exist_ok=True)
    named = {f"case{number:04}": case for number, case in enumerate(cases)}
    first, last = OPSETS
    for number, (name, case) in enumerate(named.items()):
        model = case.model(first + number % (last - first + 1))
        for node in model.graph.node if with_after else ():
            node.input[:] = [operand or node.input[0] for operand in node.input]
        if not with_bodies:
            del model.functions[:]
        onnx.save(model, folder / f"{name}.onnx")
        np.savez(folder / f"{name}.npz", **case.feeds)
    return named


def run(python: Path, folder: Path, named: dict[str, Case], release: str) -> Outcome:
    """Run all cases, with bodies, by one interpreter and judge them."""
    outcome = Outcome(release)
    for stem, case, crash in _runs(python, folder, named):
        outcome.add(*_judged(stem, case, crash, case.fails))
    return outcome


def run_kernels(python: Path, folder: Path, named: dict[str, Case], release: str, library: str) -> Outcome:
    """Run all cases, without bodies, by one interpreter and a library of kernels, and judge them."""
    outcome = Outcome(release, "right" if numbers(release) >= OLDEST_FOR_KERNELS else "too old")
    for stem, case, crash in _runs(python, folder, named, library):
        kind, what = _judged(stem, case, crash, SAID_BY_KERNELS if case.fails else "")
        said = f"bnpass needs ONNX Runtime 1.18 or newer, this is {release}"
        outcome.add("too old" if kind == "error" and what.endswith(said) else kind, what)
    return outcome


def _runs(
    python: Path, folder: Path, named: dict[str, Case], *libraries: str
) -> Iterator[tuple[Path, Case, int | None]]:
    """Run all cases; yield what the files with each result begin with, the case, and the signal if it crashed."""
    for stale in (f for level in LEVELS for f in folder.glob(f"case????.{level}.*")):
        stale.unlink()
    crashes = _run_through(
        [str(python), "-W", "ignore", str(RUNNER), str(folder), *map(os.path.abspath, libraries)], list(named)
    )
    for name, case in named.items():
        for level in LEVELS:
            yield folder / f"{name}.{level}", case, crashes.get((name, level))


def _run_through(command: list[str], names: list[str]) -> dict[tuple[str, str], int]:
    """Run cases until none is left; return where the process died, and of which signal."""
    crashes: dict[tuple[str, str], int] = {}
    bare = {"PATH": os.environ["PATH"]}
    while names:
        done = subprocess.run(command, input=" ".join(names), capture_output=True, text=True, check=False, env=bare)
        if done.returncode == 0:
            break
        if done.returncode > 0 or not done.stdout:
            raise RuntimeError(done.stderr)
        name, level = done.stdout.splitlines()[-1].split()
        for lost in LEVELS[LEVELS.index(level) :]:
            crashes[name, lost] = -done.returncode
        names = names[names.index(name) + 1 :]
    return crashes


def _judged(stem: Path, case: Case, crash: int | None, must_say: str) -> tuple[str, str]:
    where = f"{case.name} [{stem.suffix[1:]}]"
    if crash is not None:
        return "crash", f"{where}: signal {crash}"
    error = Path(f"{stem}.txt")
    if error.exists():
        text = error.read_text(encoding="utf-8")
        is_right = must_say and re.search(must_say, text)
        return ("right", "") if is_right else ("error", f"{where}: {text[:300]}")
    with np.load(f"{stem}.npz") as found:
        results = [found[f"arr_{i}"] for i in range(len(found.files))]
    why = "it returned numbers" if case.fails else case.why_wrong(results)
    return ("wrong", f"{where}: {why}") if why else ("right", "")


def table(outcomes: Iterable[Outcome], *kinds: str) -> str:
    """Return a Markdown table."""
    lines = ["| ONNX Runtime | " + " | ".join(kinds) + " |", "|---|" + "---|" * len(kinds)]
    lines += [f"| {o.release} | " + " | ".join(str(o.counts[kind]) for kind in kinds) + " |" for o in outcomes]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("releases", nargs="*")
    parser.add_argument("--every", type=int, default=1, help="run every N-th case only")
    parser.add_argument("--keep", type=Path, help="keep the environments in this folder")
    parser.add_argument("--write", action="store_true", help="write RESULTS.md")
    arguments = parser.parse_args()
    cases = all_cases()[:: arguments.every]
    bodies, kernels = [], []
    with tempfile.TemporaryDirectory(prefix="bnpass-runtimes-") as scratch:
        library = shutil.copy(get_library_path(), scratch)  # one build for all releases, whatever is built meanwhile
        plain, given, alone = (Path(scratch) / name for name in ("plain", "given", "alone"))
        named = write_cases(cases, plain)
        write_cases(cases, given, with_after=True)
        write_cases(cases, alone, with_bodies=False)
        for release in arguments.releases or [*OLD_RELEASES, *offered()]:
            python = environment(release, arguments.keep or Path(scratch))
            bodies.append(run(python, plain, named, release))
            if numbers(release) < OLDEST:
                bodies.append(run(python, given, named, f"{release}, `after` written"))
            kernels.append(run_kernels(python, alone, named, release, library))
            print(release, dict(bodies[-1].counts), dict(kernels[-1].counts), file=sys.stderr, flush=True)
    for title, outcomes in (("bodies", bodies), ("kernels", kernels)):
        for outcome in outcomes:
            print(f"{outcome.release}, {title}", *outcome.complaints[:10], sep="\n  ")
    text = table(bodies, "right", "wrong", "error", "crash") + REMARK
    text += KERNELS + table(kernels, "right", "too old", "wrong", "error", "crash")
    print(text)
    if arguments.write:
        RESULTS.write_text(TEXT + text, encoding="utf-8")
    supported = [outcome for outcome in bodies if numbers(outcome.release.partition(",")[0]) >= OLDEST]
    return 1 if any(outcome.complaints for outcome in (*supported, *kernels)) else 0


if __name__ == "__main__":
    sys.exit(main())
