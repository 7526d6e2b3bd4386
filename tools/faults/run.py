"""Let one replica of many jobs do something wrong, at random, and count how the others fare.

    python -m tools.faults.run [--count 200] [--seed 0] [--jobs 1] [--write]

A run is right if no replica got a wrong sum, none went on, each survivor raised within its deadline + 1 s or was ended
by the launcher, and the job ended by itself. MPIs are MPICH's wheel, by both of its interfaces, and Open MPI below
BNPASS_OPENMPI_PREFIX (see ``tests/distributed/mpi_jobs.py``). Fault, rank, moment, length, deadline, number of ranks,
MPI, and whether mpi4py started it, follow from the seed alone. ``--write`` puts the table into ``RESULTS.md``.
Exit code: 1 if a run was not right.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.distributed.faults import FAULTS, Outcome, Plan, carry_out, plan
from tests.distributed.mpi_jobs import NAMES, Mpi, installation

RESULTS = Path(__file__).with_name("RESULTS.md")
MEANING = {
    "raise": "raises an exception that nobody catches",
    "exit": "`sys.exit(3)`",
    "exit well": "`sys.exit(0)`, its work half done",
    "exit at once": "`os._exit(3)`",
    "kill": "is killed by SIGKILL",
    "stop": "is frozen by SIGSTOP",
    "late": "comes 0.7 s after the deadline",
    "fail": "tells that it cannot take part",
    "length": "sends one element more",
    "type": "sends float, not double",
    "skip": "skips a collective",
}


@dataclass(frozen=True)
class Run:
    """One job.

    Attributes:
        seed: What it follows from.
        mpi: Name of the MPI.
        plan: What was to happen.
        outcome: What did.
    """

    seed: int
    mpi: str
    plan: Plan
    outcome: Outcome


def run(seed: int, mpis: Sequence[Mpi], folder: Path) -> Run:
    """Carry out the plan of a seed; standard-ABI MPICH is never started by mpi4py, whose wheel does not load it."""
    drawn, number = plan(seed)
    fitting = [mpi for mpi in mpis if not (drawn.adopted and mpi.name == "mpich-abi")]
    mpi = fitting[number % len(fitting)]
    done = Run(seed, mpi.name, drawn, carry_out(drawn, mpi, folder / str(seed)))
    mark = "; ".join(done.outcome.wrong) or f"right, {done.outcome.took:.1f} s after the fault"
    print(f"seed {seed}: {mpi.name}, {drawn.ranks} ranks, {drawn.fault} at {drawn.moment}: {mark}", flush=True)
    return done


def table(runs: Sequence[Run]) -> list[str]:
    """Return the rows: one per fault."""
    rows = [
        "| one replica … | runs | right | survivors raised | ended by launcher | wait beyond deadline | job ended |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for fault in FAULTS:
        mine = [run.outcome for run in runs if run.plan.fault == fault]
        if not mine:
            continue
        beyond = max((outcome.longest for outcome in mine if outcome.raised), default=0.0)
        cells = (
            MEANING[fault],
            len(mine),
            sum(not outcome.wrong for outcome in mine),
            sum(outcome.raised for outcome in mine),
            sum(outcome.ended for outcome in mine),
            f"{max(beyond, 0.0):.2f} s",
            f"within {max(outcome.took for outcome in mine):.1f} s",
        )
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return rows


def report(runs: Sequence[Run], words: str) -> str:
    """Return RESULTS.md."""
    newline = "\n"
    right = sum(not run.outcome.wrong for run in runs)
    used = Counter(run.mpi for run in runs)
    wrong = [f"- seed {run.seed}, {run.mpi}: {'; '.join(run.outcome.wrong)}" for run in runs if run.outcome.wrong]
    adopted = sum(run.plan.adopted for run in runs)
    return f"""# One replica does something wrong

`python -m tools.faults.run {words}`, {time.strftime("%Y-%m-%d")}: {right} of {len(runs)} runs are right. Right is: no
replica got a wrong sum or went on without the others, each survivor raised within its deadline + 1 s or was ended by
the launcher, and the job ended by itself.

{newline.join(table(runs))}

Runs by MPI: {", ".join(f"{name} {count}" for name, count in sorted(used.items()))}; mpi4py had started it in {adopted}.
Deadlines are 0.7, 1 or 1.5 s, replicas 2 to 4, messages 1 to 100,000 doubles.
{newline.join(("", "Not right:", "", *wrong, "")) if wrong else ""}"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--write", action="store_true", help="write RESULTS.md")
    options = parser.parse_args()
    mpis = [mpi for mpi in map(installation, NAMES) if mpi.is_installed()]
    if not mpis:
        sys.exit("no MPI is installed: pip install 'bnpass[test]'")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        seeds = range(options.seed, options.seed + options.count)
        runs = list(pool.map(lambda seed: run(seed, mpis, Path(folder)), seeds))
    text = report(runs, f"--count {options.count} --seed {options.seed}")
    print(text)
    if options.write:
        RESULTS.write_text(text, encoding="utf-8")
    return int(any(run.outcome.wrong for run in runs))


if __name__ == "__main__":
    sys.exit(main())
