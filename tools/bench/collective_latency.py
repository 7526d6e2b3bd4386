"""Latency of an all-reduce of the kernels above the bare MPI_Allreduce of the same bytes, at 2 replicas.

    python tools/bench/collective_latency.py [--build DIR] [--runs 5] [--write [FILE]]

Needs a C++ compiler, CMake, and the MPI of ``pip install mpich``, or Open MPI below BNPASS_OPENMPI_PREFIX. In each run,
bursts of both kinds take turns, and their medians are taken (``native/tests/group_latency.cpp``); the table has the
median over runs. ``--write`` puts it between the markers of ``tools/bench/RESULTS.md``. Exit code: 1 if it is above the
limit.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import measure
from measure import RESULTS, ROOT

sys.path.insert(0, str(ROOT))

from tests.distributed.mpi_jobs import NAMES, Mpi, environment, installation

NATIVE = ROOT / "bnpass" / "runtime" / "native"
LENGTHS = (129, 513, 4097)
"""Doubles of one message: 2·C + 1 for 64, 256 and 2,048 channels."""
LIMIT_US = 10.0
Row = tuple[str, int, float, float, float]
"""MPI, doubles, and the microseconds of bare, group and the difference."""
HOW = (
    "`python tools/bench/collective_latency.py --runs {runs}`: an all-reduce of doubles at 2 replicas; µs, medians of "
    "{runs} runs. Above: of the differences within a run. Where it is negative, the non-blocking all-reduce, of which "
    "a call needs two, is faster than the blocking one."
)


def build(folder: Path) -> Path:
    """Build the program that measures; return it."""
    make = ["cmake", "-S", NATIVE, "-B", folder, "-DBNPASS_TESTS=ON", "-DBNPASS_CUDA=OFF"]
    subprocess.run([str(word) for word in make], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(
        ["cmake", "--build", str(folder), "--target", "group_latency"], check=True, stdout=subprocess.DEVNULL
    )
    return folder / "tests" / "group_latency"


def one_run(program: Path, mpi: Mpi) -> dict[int, tuple[float, float]]:
    """Return the microseconds of (bare, group) for each length."""
    words = [mpi.mpiexec, *mpi.options, "-n", 2, program, mpi.library_path, *LENGTHS]
    done = subprocess.run(
        [str(word) for word in words],
        env=environment(mpi),
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"doubles"')]
    return {line["doubles"]: (line["bare"], line["group"]) for line in lines}


def rows(program: Path, mpi: Mpi, runs: int) -> list[Row]:
    """Return (MPI, length, bare, group, difference) for each length, in microseconds; medians over runs."""
    measured = [one_run(program, mpi) for _ in range(runs)]
    found = []
    for length in LENGTHS:
        bare = median(run[length][0] for run in measured)
        group = median(run[length][1] for run in measured)
        above = median(run[length][1] - run[length][0] for run in measured)
        found.append((mpi.name, length, bare, group, above))
        measure.say(f"{mpi.name} {length}: bare {bare:.1f} µs, group {group:.1f} µs, above {above:.1f} µs")
    return found


def report(table: list[Row], conditions: str) -> str:
    """Return conditions, verdicts and the table, in Markdown."""
    head = ("MPI", "doubles", "MPI_Allreduce, µs", "the group, µs", "above, µs")
    cells = [
        (name, f"{length:,}", f"{bare:.1f}", f"{group:.1f}", f"{above:.1f}")
        for name, length, bare, group, above in table
    ]
    worst = max(above for *_, above in table)
    verdict = measure.verdict("latency above the bare MPI_Allreduce", worst, LIMIT_US, " µs")
    return f"{conditions}\n\n{measure.table(head, cells)}\n\n{verdict}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--build", type=Path, help="a folder of CMake to build in; default: a new one")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--write", metavar="FILE", type=Path, nargs="?", const=RESULTS,
        help="also put the result between the markers of FILE (default tools/bench/RESULTS.md)",
    )  # fmt: skip
    options = parser.parse_args()
    mpis = [mpi for mpi in map(installation, NAMES) if mpi.is_installed()]
    if not mpis:
        sys.exit("no MPI is installed: pip install 'bnpass[test]'")
    with tempfile.TemporaryDirectory() as folder:
        program = build(options.build or Path(folder))
        conditions = measure.conditions(HOW.format(runs=options.runs))
        table = [row for mpi in mpis for row in rows(program, mpi, options.runs)]
    measure.publish("collective_latency", report(table, conditions), options.write)
    return int(any(above > LIMIT_US for *_, above in table))


if __name__ == "__main__":
    sys.exit(main())
