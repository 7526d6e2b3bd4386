"""Groups in one process: alone, and threads. More about threads: ``native/tests/group_check.cpp``."""

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnpass.errors import BnpassError, CollectiveError, MissingDependencyError, UsageError
from bnpass.runtime.group import Groups, local, threads
from bnpass.runtime.native_library import NativeLibrary
from tests.distributed import draws
from tests.distributed.mpi_jobs import ROOT
from tests.distributed.test_mpi import assert_reduced


def together(replicas: Sequence[Groups], work: Callable[[Groups], Any]) -> list[Any]:
    """Run work on each replica in a thread of its own; return what each returned or raised."""
    results: list[Any] = [None] * len(replicas)

    def run(index: int) -> None:
        try:
            results[index] = work(replicas[index])
        except BnpassError as error:
            results[index] = error

    running = [threading.Thread(target=run, args=(index,)) for index in range(len(replicas))]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return results


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_threads_reduce_like_numpy_and_hold_the_same_bits(count: int) -> None:
    replicas = threads(count)
    for number, (kind, shape, reduction) in enumerate(draws.cases()):
        shares = [draws.draw(kind, shape, rank) for rank in range(count)]

        def work(mine: Groups, shares: Any = shares, reduction: str = reduction, number: int = number) -> Any:
            return mine.all_reduce(shares[mine.rank], reduction, collective_id=number)

        results = together(replicas, work)
        assert len({result.tobytes() for result in results}) == 1
        assert_reduced(results[0], shares, reduction)


def test_a_replica_alone_keeps_its_value_in_a_group_of_any_name() -> None:
    with local() as alone:
        assert (alone.rank, alone.size, alone.names) == (0, 1, ("world",))
        np.testing.assert_array_equal(alone.all_reduce([1.0, np.nan], "mean", group="any"), [1.0, np.nan])


def test_a_late_replica_is_named() -> None:
    first, second = threads(2, deadline=0.2)
    with pytest.raises(
        CollectiveError, match=r"^replica 1 of group 'world' did not come to collective 4 of .* 0\.2 s$"
    ):
        first.all_reduce(np.ones(3), collective_id=4)
    with pytest.raises(CollectiveError, match=r"^this group failed before: replica 1 of group 'world' did not come"):
        second.all_reduce(np.ones(3), collective_id=4)


def test_a_replica_that_closes_its_groups_is_not_waited_for() -> None:
    first, second = threads(2)
    second.close()
    second.close()
    with pytest.raises(CollectiveError, match="replica 1 of group 'world' has left"):
        first.all_reduce(np.ones(3))
    with pytest.raises(UsageError, match="these groups are closed"):
        second.all_reduce(np.ones(3))


def test_a_failure_is_the_same_error_on_all_replicas() -> None:
    raised = together(threads(3), lambda mine: mine.fail("no data") if mine.rank == 1 else mine.all_reduce(np.ones(2)))
    assert [str(error) for error in raised] == ["replica 1 failed: no data"] * 3


def test_sub_groups_have_names_and_ranks_of_their_own() -> None:
    replicas = threads(4, groups={"even": [2, 0], "odd": [1, 3]})
    assert [mine.names for mine in replicas] == [("world", "even"), ("world", "odd")] * 2
    assert [mine.rank_in(mine.names[1]) for mine in replicas] == [1, 0, 0, 1]
    with pytest.raises(UsageError, match="this replica is not in group 'odd'; its groups are 'even', 'world'"):
        replicas[0].size_of("odd")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"count": 0}, "a group has at least one replica, not 0"),
        ({"count": 2, "deadline": 0.0}, "a deadline is more than 0 s, not 0 s"),
        ({"count": 2, "groups": {"a": []}}, "group 'a' has no members"),
        ({"count": 2, "groups": {"a": [2]}}, "group 'a' has the member 2, but replicas are numbered 0 to 1"),
        ({"count": 2, "groups": {"world": [0]}}, "group 'world' cannot be made"),
    ],
)
def test_groups_that_cannot_be_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        threads(**arguments)


def test_a_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"\x7fELF and nothing more")
    for path in (str(broken), "libc.so.6"):
        with pytest.raises(MissingDependencyError, match="the kernel library cannot be loaded"):
            NativeLibrary(path)


def test_without_any_mpi_the_error_says_what_to_install() -> None:
    """Names that no system has stand for a system without MPI; a real one would be found."""
    program = (
        "import sys, bnpass.runtime.mpi_process as process; sys.prefix = '/nowhere'\n"
        "from bnpass.runtime.group import mpi\n"
        "mpi()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode == 0:
        pytest.skip("this system has an MPI of its own")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("bnpass.errors.MissingDependencyError: MPI is needed: pip install 'bnpass[mpi]' (no MPI")
