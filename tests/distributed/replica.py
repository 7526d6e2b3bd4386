"""One process of a job: ``python replica.py SCENARIO FOLDER adopted|own``. What it finds out, it writes to FOLDER.

``adopted``: mpi4py has started MPI, and a duplicate of its world is the communicator. ``own``: bnpass starts MPI.
"""

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bnpass.errors import BnpassError
from bnpass.runtime.group import Groups, mpi
from tests.distributed import draws

Found = dict[str, Any]


def message(call: Callable[[], object]) -> str:
    """Return the type and the text of what a call raises."""
    try:
        call()
    except BnpassError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def reductions(groups: Groups, folder: Path) -> Found:
    """Reduce every case; the results go to a file, bit for bit."""
    results = [
        groups.all_reduce(draws.draw(kind, shape, groups.rank), reduction, collective_id=number)
        for number, (kind, shape, reduction) in enumerate(draws.cases())
    ]
    for result, (kind, shape, _) in zip(results, draws.cases(), strict=True):
        assert (result.dtype, result.shape) == (kind, shape)
    (folder / f"results-{groups.rank}").write_bytes(b"".join(result.tobytes() for result in results))
    return {"library": groups._native.mpi_description()}


def sub_groups(groups: Groups, _: Path) -> Found:
    """Sum ranks in two sub-groups at once, and in the world between."""
    part = groups.names[1]
    sums = [float(groups.all_reduce(np.float64(groups.rank), group=part, collective_id=i)) for i in range(200)]
    world = float(groups.all_reduce(np.float64(groups.rank)))
    others = message(lambda: groups.all_reduce(np.zeros(1), group={"even": "odd", "odd": "even"}[part]))
    rank = groups.rank_in(part)
    return {"part": part, "rank": rank, "sums": sorted(set(sums)), "world": world, "others": others}


def two_threads(groups: Groups, _: Path) -> Found:
    """Use two groups of the same replicas from two threads at once."""
    found: dict[str, list[float]] = {"first": [], "second": []}

    def work(name: str, factor: float) -> None:
        for number in range(300):
            total = groups.all_reduce(np.full(129, factor * number), group=name, collective_id=number)
            found[name].append(float(total[-1]))

    threads = [threading.Thread(target=work, args=given) for given in (("first", 1.0), ("second", 1000.0))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {**found}


def one_group_twice(groups: Groups, _: Path) -> Found:
    """Use one group from two threads of replica 0 at once: one of them is refused, the other goes on."""
    found: list[str] = []
    if groups.rank == 0:
        waiting = threading.Thread(target=lambda: found.append(str(groups.all_reduce(np.ones(2)))))
        waiting.start()
        waiting.join(0.3)
        found.append(message(lambda: groups.all_reduce(np.ones(2))))
        groups.all_reduce(np.ones(2), group="first")
        waiting.join()
    else:
        groups.all_reduce(np.ones(2), group="first")
        found.append(str(groups.all_reduce(np.ones(2))))
    return {"found": found}


def sentences(groups: Groups, _: Path) -> Found:
    """Disagree in several ways, each in a group of its own, and then use one of them again."""
    rank = groups.rank
    length = message(lambda: groups.all_reduce(np.zeros(129 if rank == 0 else 65), group="first", collective_id=3))
    order = message(lambda: groups.all_reduce(np.zeros(1), group="second", collective_id=3 + rank))
    kind = message(lambda: groups.all_reduce(np.zeros(2, np.float32 if rank else np.int64), group="third"))
    reduction = message(lambda: groups.all_reduce(np.zeros(2), "sum" if rank else "cube", group="fourth"))
    dtype = message(lambda: groups.all_reduce(np.zeros(2, np.complex64 if rank else np.float32), group="fifth"))
    again = message(lambda: groups.all_reduce(np.zeros(1), group="first"))
    rest = float(groups.all_reduce(np.float64(1)))
    return {"said": [length, order, kind, reduction, dtype, again], "rest": rest}


def wrong_groups(_: Groups, __: Path) -> Found:
    """Ask for groups that cannot be, or that replicas disagree about."""
    world = mpi()
    mine = {"a": [0, 1]} if world.rank == 0 else {"a": [1, 0]}
    return {
        "said": [
            message(lambda: mpi(groups={"a": [0, 7]})),
            message(lambda: mpi(groups=mine)),
            message(lambda: mpi(groups={"world": [0]} if world.rank == 1 else {})),
        ],
        "rest": float(world.all_reduce(np.float64(1))),
    }


def other_thread(groups: Groups, _: Path) -> Found:
    """Use the group on a thread that MPI was not initialized for."""
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(message(lambda: groups.all_reduce(np.ones(2)))))
    thread.start()
    thread.join()
    return {"said": said, "here": float(groups.all_reduce(np.ones(2))[0])}


def churn(_: Groups, __: Path) -> Found:
    """Make and close groups again and again: communicators are a scarce resource."""
    for number in range(3000):
        with mpi(deadline=20) as groups:
            if number % 100 == 0:
                groups.all_reduce(np.ones(3))
    return {"made": number + 1}


SCENARIOS: dict[str, Callable[[Groups, Path], Found]] = {
    "reductions": reductions,
    "sub_groups": sub_groups,
    "two_threads": two_threads,
    "one_group_twice": one_group_twice,
    "sentences": sentences,
    "wrong_groups": wrong_groups,
    "other_thread": other_thread,
    "churn": churn,
}


def given(scenario: str, ranks: int) -> dict[str, list[int]]:
    """Return the sub-groups that a scenario works with."""
    everybody = list(range(ranks))
    if scenario == "sub_groups":
        return {"even": everybody[::-2] if ranks % 2 else everybody[-2::-2], "odd": everybody[1::2]}
    return dict.fromkeys(("first", "second", "third", "fourth", "fifth"), everybody)


def main(scenario: str, folder: str, mode: str) -> None:
    communicator = None
    if mode != "own":
        import mpi4py

        if mode == "funneled":
            mpi4py.rc.thread_level = "funneled"
        from mpi4py import MPI

        communicator = MPI.COMM_WORLD.Dup() if mode == "adopted" else None
    ranks = int(sys.argv[4])
    with mpi(groups=given(scenario, ranks), deadline=20, communicator=communicator) as groups:
        assert groups.size == ranks, groups._native.mpi_description()
        found = SCENARIOS[scenario](groups, Path(folder))
        Path(folder, f"found-{groups.rank}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:4])
