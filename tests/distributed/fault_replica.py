"""One process of a job in which one replica does something wrong: ``python fault_replica.py PLAN.json FOLDER``.

Each rank sums numbers whose totals it knows, and writes what happens to FOLDER/RANK.jsonl, one event per line.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bnpass.errors import CollectiveError
from bnpass.runtime.group import Groups, mpi


class Log:
    """The events of one rank; each is on the disk before the next thing happens."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def write(self, event: str, **facts: object) -> None:
        self._file.write(json.dumps({"event": event, "time": time.time(), **facts}) + "\n")
        self._file.flush()


def misbehave(fault: str, groups: Groups, number: int, deadline: float) -> int:
    """Do what the plan says; return how the next collective goes on (``length``, ``id``: one more than it should)."""
    if fault == "raise":
        raise RuntimeError("a planned fault")
    if fault in ("exit", "exit well"):
        sys.exit(3 if fault == "exit" else 0)
    if fault == "exit at once":
        os._exit(3)
    if fault in ("kill", "stop"):
        os.kill(os.getpid(), signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
    if fault == "late":
        time.sleep(deadline + 0.7)
    if fault == "fail":
        groups.fail("a planned fault", collective_id=number)
    return 1


def step(groups: Groups, number: int, length: int, kind: Any) -> bool:
    """Sum once; return whether the sum is right."""
    share = np.arange(length) % 7 * (groups.rank + 1) + number % 11
    total = groups.all_reduce(share.astype(kind), collective_id=number)
    ranks = groups.size
    expected = np.arange(length) % 7 * (ranks * (ranks + 1) // 2) + ranks * (number % 11)
    return bool(np.array_equal(total.astype(np.float64), expected))


def work(groups: Groups, plan: dict[str, Any], log: Log) -> None:
    """Sum again and again; the culprit does its fault at its moment."""
    for number in range(plan["rounds"]):
        length, identity = plan["length"], number
        kind: Any = np.float64
        if (groups.rank, number) == (plan["rank"], plan["moment"]):
            log.write("fault")
            misbehave(plan["fault"], groups, number, plan["deadline"])
            length += plan["fault"] == "length"
            identity += plan["fault"] == "skip"
            kind = np.float32 if plan["fault"] == "type" else kind
        began = time.monotonic()
        try:
            if not step(groups, identity, length, kind):
                log.write("wrong", number=number)
        except CollectiveError as error:
            log.write("raised", waited=time.monotonic() - began, sentence=str(error), number=number)
            raise
    log.write("finished")


def main(plan_path: str, folder: str) -> None:
    plan = json.loads(Path(plan_path).read_text(encoding="utf-8"))
    if plan["adopted"]:
        from mpi4py import MPI

        communicator = MPI.COMM_WORLD
    groups = mpi(deadline=plan["deadline"], communicator=communicator if plan["adopted"] else None)
    log = Log(Path(folder, f"{groups.rank}.jsonl"))
    log.write("ready", pid=os.getpid())
    work(groups, plan, log)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
