"""Time training steps of 1, 2 and 4 replicas, synchronized and not: what does the synchronization cost?

    python tools/bench/replica_steps.py                                     about 2 minutes
    python tools/bench/replica_steps.py --rounds 1 --steps 10               a glance
    python tools/bench/replica_steps.py --write                             also into tools/bench/RESULTS.md

A step is the forward and the backward nodes of a stack of batch normalizations on the CPU, in as many processes of MPI
as there are replicas (``replica.py``), each with its own share of the batch, one thread, and no spinning. A
synchronized step has two collectives per layer, one after the other. Within a job the two kinds of step take turns;
jobs of different size do so from round to round. Needs ``pip install 'bnpass[cpu,mpi]'``.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import measure
from measure import RESULTS, ROOT

sys.path.insert(0, str(ROOT))

from bnpass.runtime.launch import Launcher, find_launcher, run_ranks

REPLICA = Path(__file__).with_name("replica.py")
WARM_UP = 5
PATIENCE_S = 600.0
KINDS = ("unsynchronized", "synchronized")


Milliseconds = dict[str, list[float]]
"""Of the steps of one job, by kind."""


def main() -> int:
    arguments = _arguments()
    launcher = find_launcher()
    conditions = measure.conditions(_how(arguments, launcher))
    jobs: dict[int, list[Milliseconds]] = {ranks: [] for ranks in arguments.ranks}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            shift = number % len(jobs)
            for ranks in [*arguments.ranks[shift:], *arguments.ranks[:shift]]:
                job = run(launcher, ranks, arguments, Path(folder) / "steps.json")
                jobs[ranks].append(job)
                times = ", ".join(f"{kind} {statistics.median(job[kind]):.2f} ms" for kind in KINDS)
                measure.say(f"round {number + 1}/{arguments.rounds}  {ranks} ranks: {times}")
    head = ("ranks", "unsynchronized, ms", "synchronized, ms", "ratio", "µs per collective")
    table = measure.table(head, [_row(ranks, found, 2 * arguments.layers) for ranks, found in jobs.items()])
    measure.publish("replica_steps", f"{conditions}\n\n{table}", arguments.write)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], metavar="N", help="replicas (default 1 2 4)")
    parser.add_argument("--shape", default="16x64x28x28", help="of X, per replica (default 16x64x28x28)")
    parser.add_argument("--layers", type=int, default=10, metavar="N", help="in the stack (default 10)")
    parser.add_argument(
        "--steps", type=int, default=30, metavar="N", help="of each kind that count, per job (default 30)"
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="jobs of each size (default 5)")
    parser.add_argument(
        "--write", metavar="FILE", type=Path, nargs="?", const=RESULTS,
        help="also put the result between the markers of FILE (default tools/bench/RESULTS.md)",
    )  # fmt: skip
    return parser.parse_args()


def run(launcher: Launcher, ranks: int, arguments: argparse.Namespace, file: Path) -> Milliseconds:
    """Run one job to its end."""
    file.unlink(missing_ok=True)
    words = [arguments.shape, arguments.layers, WARM_UP, arguments.steps, file]
    command = [sys.executable, str(REPLICA), *map(str, words)]
    environment = {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    ended = run_ranks(launcher, ranks, command, timeout_s=PATIENCE_S, environment=environment)
    if ended.code != 0 or not file.exists():
        raise SystemExit(f"{ranks} ranks: exit {ended.code}\n{measure.without_paths(ended.output)}")
    answer = json.loads(file.read_text(encoding="utf-8"))
    if answer["ranks"] != ranks:
        raise SystemExit(f"{launcher.path} started {ranks} processes, and the MPI they loaded sees {answer['ranks']}")
    return dict(answer["ms"])


def _how(arguments: argparse.Namespace, launcher: Launcher) -> str:
    return (
        f"`python tools/bench/replica_steps.py --rounds {arguments.rounds} --steps {arguments.steps}`: forward and "
        f"backward of {arguments.layers} batch normalizations of {arguments.shape.replace('x', '×')} per rank, "
        "float32, one thread per rank, no spinning. A step ends when its slowest rank is done; both kinds take turns, "
        f"each behind a barrier. Medians of {arguments.rounds} jobs, in brackets their range; a job has "
        f"{arguments.steps} steps of each kind after {WARM_UP} to warm up. Per collective: the difference by "
        f"{2 * arguments.layers}, waits for the slowest rank included. {launcher.version}."
    )


def _row(ranks: int, jobs: Sequence[Milliseconds], collectives: int) -> list[object]:
    medians = {kind: [statistics.median(job[kind]) for job in jobs] for kind in KINDS}
    alone, together = (statistics.median(medians[kind]) for kind in KINDS)
    times = [measure.spread(medians[kind]) for kind in KINDS]
    return [ranks, *times, f"{together / alone:.2f}", f"{1e3 * (together - alone) / collectives:.0f}"]


if __name__ == "__main__":
    sys.exit(main())
