"""Fold random graphs for as long as it takes, with the generator and the judge of the property tests.

    python tools/fuzz/fuzz_fold.py --cases 100000 --seed 1 [--minutes 10] [--out DIR]
    python tools/fuzz/fuzz_fold.py --case 4711 [--dtype float16]        one case again, with the model printed

Case k of seed s is the integer s·2³² + k: that one number is all it takes to see a failure again.
Exit code: 0 if every statement held, 1 if one did not.
"""

import argparse
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np  # noqa: E402
import onnx  # noqa: E402
from results import keep  # noqa: E402

from tests.property.graphs import BRAIN, DOUBLE, HALF, SINGLE, RandomChoices, random_case  # noqa: E402
from tests.property.judge import Outcome, judge, summary  # noqa: E402

DTYPES = {"float16": HALF, "bfloat16": BRAIN, "float32": SINGLE, "float64": DOUBLE}


@dataclass
class Tally:
    """What was seen.

    Attributes:
        cases: Cases judged.
        changed: Cases that folding changed.
        runs: Runs of affines that are gone.
        in_runtime: Changed cases that ONNX Runtime judged too.
        worst: Largest deviation over what is permitted.
        types: Cases by type of the input.
        ops: Nodes by op.
        failures: Failing cases by kind of failure.
    """

    cases: int = 0
    changed: int = 0
    runs: int = 0
    in_runtime: int = 0
    worst: float = 0.0
    types: Counter[str] = field(default_factory=Counter)
    ops: Counter[str] = field(default_factory=Counter)
    failures: dict[str, list[int]] = field(default_factory=dict)

    def add(self, outcome: Outcome) -> None:
        """Count one case that holds."""
        self.changed += outcome.changed
        self.runs += outcome.folded
        self.in_runtime += outcome.ran
        self.worst = max(self.worst, outcome.worst)


def kind_of(error: Exception) -> str:
    """Return a failure without its names and numbers."""
    return re.sub(r"'[^']*'|\[[^\]]*\]|[-+]?\d[\d.e+-]*", "…", f"{type(error).__name__}: {error}".split("\n")[0])[:120]


def one(number: int, tally: Tally, dtype: np.dtype[np.generic] | None, out: Path | None) -> None:
    """Judge one case and count it."""
    case = random_case(RandomChoices(number), dtype=dtype)
    tally.cases += 1
    tally.types[str(case.dtype)] += 1
    tally.ops.update(n.op_type for n in case.model.graph.node)
    try:
        tally.add(judge(case))
    except Exception as error:  # noqa: BLE001 (anything that escapes is a finding)
        seen = tally.failures.setdefault(kind_of(error), [])
        seen.append(number)
        if out is not None and len(seen) <= 5:
            save(number, dtype, case.model, error, out)


def save(number: int, dtype: np.dtype[np.generic] | None, model: onnx.ModelProto, error: Exception, out: Path) -> None:
    """Keep a failing model with the command that shows it again."""
    out.mkdir(parents=True, exist_ok=True)
    option = f" --dtype {dtype}" if dtype is not None else ""
    command = f"python tools/fuzz/fuzz_fold.py --case {number}{option}"
    (out / f"{number}.onnx").write_bytes(model.SerializeToString())
    (out / f"{number}.txt").write_text(f"{command}\n{type(error).__name__}: {error}\n\n{summary(model)}\n")
    print(f"FAILED  {command}\n        {type(error).__name__}: {str(error)[:200]}", flush=True)


def report(tally: Tally, seed: int, seconds: float) -> str:
    """Return the summary as Markdown."""
    rows = [
        ("seed", str(seed)),
        ("cases", f"{tally.cases:,}"),
        ("seconds", f"{seconds:.0f}"),
        ("cases that folding changed", f"{tally.changed:,}"),
        ("runs of affines folded", f"{tally.runs:,}"),
        ("changed cases judged in ONNX Runtime too", f"{tally.in_runtime:,}"),
        ("largest deviation / permitted (float64)", f"{tally.worst:.3f}"),
        ("by type", ", ".join(f"{name} {n:,}" for name, n in tally.types.most_common())),
        ("nodes", ", ".join(f"{name} {n:,}" for name, n in tally.ops.most_common())),
        ("failing cases", str(sum(map(len, tally.failures.values())))),
    ]
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    for kind, numbers in sorted(tally.failures.items(), key=lambda item: -len(item[1])):
        lines.append(f"| {len(numbers)} × `{kind}` | cases {', '.join(map(str, numbers[:5]))} |")
    return "\n".join(lines)


def show(number: int, dtype: np.dtype[np.generic] | None) -> int:
    """Judge one case and print it."""
    case = random_case(RandomChoices(number), dtype=dtype)
    print(summary(case.model))
    print(judge(case))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=0.0, help="stop after this long; 0: never")
    parser.add_argument("--dtype", choices=DTYPES, help="type of the input; default: a mixture")
    parser.add_argument("--out", type=Path, default=Path("fuzz-failures"))
    parser.add_argument("--case", type=int, help="show one case again")
    parser.add_argument("--write", action="store_true", help="write the section of tools/fuzz/RESULTS.md")
    arguments = parser.parse_args()
    dtype = DTYPES[arguments.dtype] if arguments.dtype else None
    if arguments.case is not None:
        return show(arguments.case, dtype)
    print(f"seed {arguments.seed}", flush=True)
    tally, begun = Tally(), time.monotonic()
    for index in range(arguments.cases):
        one((arguments.seed << 32) + index, tally, dtype, arguments.out)
        if arguments.minutes and time.monotonic() - begun > 60 * arguments.minutes:
            break
    told = report(tally, arguments.seed, time.monotonic() - begun)
    print(told)
    if arguments.write:
        command = f"python tools/fuzz/fuzz_fold.py --cases {arguments.cases} --seed {arguments.seed}"
        keep("Folding", command, told)
    return int(bool(tally.failures))


if __name__ == "__main__":
    sys.exit(main())
