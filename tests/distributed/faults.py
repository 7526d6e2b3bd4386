"""Jobs with one planned fault, and the judgement over them.

A job is right if nobody got a wrong sum, nobody finished, every survivor raised within the deadline + 1 s of its call
or was ended by the launcher, and the whole job ended by itself, with an error, soon after.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.distributed.mpi_jobs import ROOT, Job, Mpi, run

REPLICA = ROOT / "tests" / "distributed" / "fault_replica.py"
FAULTS = ("raise", "exit", "exit well", "exit at once", "kill", "stop", "late", "fail", "length", "type", "skip")
LAUNCHER_S = 6.0
"""What a launcher may take to end a job, above the deadlines: Open MPI's takes 1.5 s on an idle machine."""
LIMIT_S = 60.0
"""When a job is taken to hang."""


@dataclass(frozen=True)
class Plan:
    """What happens in a job.

    Attributes:
        fault: One of ``FAULTS``.
        ranks: Number of processes.
        rank: The culprit.
        moment: Number of the collective at which it does it.
        rounds: Number of collectives.
        length: Doubles per collective.
        deadline: Seconds.
        adopted: Whether mpi4py started MPI.
    """

    fault: str
    ranks: int
    rank: int
    moment: int
    rounds: int = 400
    length: int = 129
    deadline: float = 1.0
    adopted: bool = False


def plan(seed: int) -> tuple[Plan, int]:
    """Return the plan of a seed, and a number by which one of several MPIs is chosen."""
    draw = random.Random(seed)  # noqa: S311  nothing here is secret
    ranks = draw.choice((2, 2, 3, 4))
    return Plan(
        fault=FAULTS[seed % len(FAULTS)],
        ranks=ranks,
        rank=draw.randrange(ranks),
        moment=draw.choice((0, 1, draw.randrange(390))),
        length=draw.choice((1, 129, 4097, 100_000)),
        deadline=draw.choice((0.7, 1.0, 1.5)),
        adopted=draw.random() < 0.5,
    ), draw.randrange(1000)


@dataclass(frozen=True)
class Outcome:
    """How a job went.

    Attributes:
        wrong: What is wrong with it, a sentence each; empty if it is right.
        raised: Number of survivors that raised.
        ended: Number of survivors that were ended by the launcher.
        longest: Longest time that a survivor waited in its last call, seconds beyond the deadline (negative: less).
        took: Seconds from the fault to the end of the job.
        sentences: What survivors raised.
    """

    wrong: tuple[str, ...]
    raised: int
    ended: int
    longest: float
    took: float
    sentences: tuple[str, ...]


def carry_out(plan: Plan, mpi: Mpi, folder: Path) -> Outcome:
    """Run the job of a plan and judge it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "plan.json"
    path.write_text(json.dumps(asdict(plan)), encoding="utf-8")
    job = run(mpi, plan.ranks, [REPLICA, path, folder], limit=LIMIT_S)
    return judge(plan, job, [_events(folder / f"{rank}.jsonl") for rank in range(plan.ranks)])


def _events(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def judge(plan: Plan, job: Job, events: Sequence[list[dict[str, Any]]]) -> Outcome:
    """Return what is wrong with a job."""
    wrong = []
    at = [event["time"] for event in events[plan.rank] if event["event"] == "fault"]
    took = job.ended - at[0] if at else 0.0
    if not at:
        wrong.append(f"the fault did not happen: {job.out}")
    if job.code is None:
        wrong.append(f"the job hung: {job.out}")
    elif job.code == 0:
        wrong.append("the job ended well")
    names = [[event["event"] for event in of_rank] for of_rank in events]
    wrong += [f"rank {rank} got a wrong sum" for rank, seen in enumerate(names) if "wrong" in seen]
    wrong += [f"rank {rank} finished" for rank, seen in enumerate(names) if "finished" in seen]
    raised = [
        event
        for rank, of_rank in enumerate(events)
        for event in of_rank
        if event["event"] == "raised" and rank != plan.rank
    ]
    beyond = [event["waited"] - plan.deadline for event in raised]
    wrong += [f"a survivor waited {extra:.2f} s beyond the deadline" for extra in beyond if extra > 1.0]
    # A late culprit comes after a deadline, and may be the one that ends the job one deadline later.
    patience = 2 * plan.deadline + 1.0 + LAUNCHER_S
    if took > patience:
        wrong.append(f"the job ended {took:.1f} s after the fault: {job.out}")
    sentences = tuple(sorted({event["sentence"] for event in raised}))
    survivors = plan.ranks - 1
    return Outcome(tuple(wrong), len(raised), survivors - len(raised), max(beyond, default=0.0), took, sentences)
