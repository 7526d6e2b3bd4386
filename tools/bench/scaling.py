"""Fold synthetic graphs of 1,000, 10,000 and 100,000 nodes: does the time per node stay what it is?

    python tools/bench/scaling.py                       3 rounds: the 100,000 nodes take long
    python tools/bench/scaling.py --sizes 1000 10000    without the long one

Two clocks. "process" is the whole process of `fold --check 0` less that of a graph with one block, which is what
starting and importing cost. "pass" is `FoldBatchNorm` alone, inside a process that has everything loaded.
"""

import argparse
import itertools
import statistics
import subprocess
import sys
from pathlib import Path

import measure
from contestants import command
from measure import Sample

GROWTH_LIMIT = 1.3
"""The target: time per node may grow by less than this from one size to the next (they differ tenfold)."""
SIZES = (1_000, 10_000, 100_000)
EMPTY = 1
"""Nodes asked for where only the start is to be measured: gives one block."""
_FOLD_ONLY = """\
import sys, time
from pathlib import Path
from bnpass import model_io
from bnpass.passes import FoldBatchNorm
model = model_io.load(Path(sys.argv[1]))
begin = time.perf_counter()
FoldBatchNorm()(model)
print(time.perf_counter() - begin)
"""
_MAKE = """\
import sys
import onnx, synthetic
onnx.save(synthetic.chain(int(sys.argv[1])), sys.argv[2])
"""


def main() -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="rounds that count (default 3)")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=SIZES, metavar="NODES", help="sizes, from small to large"
    )
    arguments = parser.parse_args()
    how = (
        f"`python tools/bench/scaling.py --repeats {arguments.repeats} --sizes {' '.join(map(str, arguments.sizes))}`: "
        f"medians of {arguments.repeats} interleaved rounds after a warm-up. Process: the whole process of "
        "`fold --check 0`; per node, the process of a graph with one block is subtracted. Pass: `FoldBatchNorm` alone."
    )
    conditions = measure.conditions(how)
    with measure.scratch(arguments) as folder:
        measure.publish("scaling", f"{conditions}\n\n{_measure(arguments, folder)}", arguments.write)
    return 0


def _measure(arguments: argparse.Namespace, folder: Path) -> str:
    sizes = [EMPTY, *arguments.sizes]
    models = {size: _model(folder, size) for size in sizes}
    output = folder / "out.onnx"
    contestants = {f"bnpass {size}": command("bnpass", models[size], output) for size in sizes}
    contestants |= {f"onnx_ir {size}": command("onnx_ir load + save", models[size], output) for size in sizes}
    contestants |= {f"pass {size}": [sys.executable, "-c", _FOLD_ONLY, str(models[size])] for size in sizes}
    samples = measure.interleaved(
        contestants,
        folder=folder,
        repeats=arguments.repeats,
        timeout_s=1800,
        after=lambda *_: output.unlink(missing_ok=True),
    )
    broken = {name: found[0] for name, found in samples.items() if not found[0].ok}
    if broken:
        return "\n".join(f"- **FAIL** {name}: {s.failure}: {s.complaint}" for name, s in broken.items())
    return _report(samples, arguments.sizes)


def _report(samples: dict[str, list[Sample]], sizes: list[int]) -> str:
    def net(who: str, size: int) -> float:
        return measure.median(samples[f"{who} {size}"]) - measure.median(samples[f"{who} {EMPTY}"])

    def inside(size: int) -> float:
        return statistics.median(float(sample.output) for sample in samples[f"pass {size}"])

    clocks = {
        "process": {size: net("bnpass", size) / size for size in sizes},
        "pass": {size: inside(size) / size for size in sizes},
        "onnx_ir": {size: net("onnx_ir", size) / size for size in sizes},
    }
    empty = samples[f"bnpass {EMPTY}"]
    rows: list[list[str]] = [
        ["one block", measure.spread(s.seconds for s in empty), "", "", "", "", "", f"{measure.peak(empty):.0f}", ""]
    ]
    for position, size in enumerate(sizes):
        growth = ["", ""]
        if position:
            before = sizes[position - 1]
            growth = [f"{clocks[clock][size] / clocks[clock][before]:.2f}" for clock in ("process", "pass")]
        ours = samples[f"bnpass {size}"]
        rows.append([
            f"{size:,}",
            measure.spread(s.seconds for s in ours),
            f"{1e6 * clocks['process'][size]:.0f}",
            growth[0],
            measure.spread(float(s.output) for s in samples[f"pass {size}"]),
            f"{1e6 * clocks['pass'][size]:.0f}",
            growth[1],
            f"{measure.peak(ours):.0f}",
            f"{1e6 * clocks['onnx_ir'][size]:.0f}",
        ])  # fmt: skip
    head = (
        "nodes", "process, s", "µs per node", "growth", "pass, s", "µs per node", "growth", "peak MiB",
        "onnx_ir load + save, µs per node",
    )  # fmt: skip
    targets = [
        measure.verdict(
            f"{clock}: growth of the time per node from {before:,} to {size:,} nodes",
            clocks[clock][size] / clocks[clock][before],
            GROWTH_LIMIT,
            "×",
        )
        for clock in ("process", "pass")
        for before, size in itertools.pairwise(sizes)
    ]
    return measure.table(head, rows) + "\n\n" + "\n".join(targets)


def _model(folder: Path, size: int) -> Path:
    """Make it in another process: this one has to stay small."""
    path = folder / f"chain{size}.onnx"
    measure.say(f"making {path.stem}")
    here = Path(__file__).parent
    subprocess.run([sys.executable, "-c", _MAKE, str(size), str(path)], cwd=here, check=True)
    return path


if __name__ == "__main__":
    sys.exit(main())
