"""Real processes of MPI: what they sum, and what they say when they cannot."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.distributed import draws
from tests.distributed.mpi_jobs import NAMES, OPENMPI_PREFIX, ROOT, Mpi, environment, installation, run

UNITS = dict(zip(draws.TYPES, (2.0**-11, 2.0**-8, 2.0**-24, 2.0**-53), strict=False))
"""Unit roundoff: half of the distance between 1 and the next number."""
SMALLEST = dict(zip(draws.TYPES, (2.0**-14, 2.0**-126, 2.0**-126, 2.0**-1022), strict=False))
"""The smallest normal number."""
REPLICA = ROOT / "tests" / "distributed" / "replica.py"


@pytest.fixture(params=NAMES)
def mpi(request: pytest.FixtureRequest) -> Mpi:
    """An MPI; MPICH's must be there."""
    found = installation(request.param)
    if found.name == "openmpi" and not found.is_installed():
        pytest.skip(f"Open MPI is not installed here; {OPENMPI_PREFIX} may name a prefix that has it")
    assert found.is_installed(), "pip install 'bnpass[test]' brings MPICH"
    return found


def found(mpi: Mpi, ranks: int, scenario: str, mode: str, folder: Path) -> list[dict[str, Any]]:
    """Run a scenario; return what each rank found."""
    job = run(mpi, ranks, [REPLICA, scenario, folder, mode, ranks])
    assert job.code == 0, job.out
    return [json.loads((folder / f"found-{rank}.json").read_text(encoding="utf-8")) for rank in range(ranks)]


def assert_extreme(result: NDArray[Any], shares: list[NDArray[Any]], reduction: str) -> None:
    """Max and min are exact; NaN wins, and −0 < +0."""
    wide = np.stack(shares) if result.dtype == np.int64 else np.stack(shares).astype(np.float64)
    given = result.astype(wide.dtype)
    expected = np.max(wide, axis=0) if reduction == "max" else np.min(wide, axis=0)
    np.testing.assert_array_equal(given, expected)
    negative = np.signbit(wide) & (wide == 0)
    positive = ~np.signbit(wide) & (wide == 0)
    minus = ~np.any(positive, axis=0) if reduction == "max" else np.any(negative, axis=0)
    np.testing.assert_array_equal(np.signbit(given)[expected == 0], minus[expected == 0])


def assert_sum(result: NDArray[Any], shares: list[NDArray[Any]], reduction: str) -> None:
    """Terms are added in some order in float (double for double); the result is rounded once, a mean once more."""
    kind = result.dtype
    wide = np.stack(shares).astype(np.longdouble)
    with np.errstate(invalid="ignore"):
        expected = np.sum(wide, axis=0) / (len(shares) if reduction == "mean" else 1)
        magnitude = np.sum(np.abs(wide), axis=0)
    wire = UNITS[np.dtype(np.float64 if kind == np.float64 else np.float32)]
    finite = np.isfinite(expected)
    given = result.astype(np.longdouble)
    np.testing.assert_array_equal(given[~finite], expected[~finite])
    bound = 1.01 * (wire * len(shares) * magnitude + UNITS[kind] * np.abs(expected)) + SMALLEST[kind]
    assert np.all(np.abs(given[finite] - expected[finite]) <= bound[finite])


def assert_reduced(result: NDArray[Any], shares: list[NDArray[Any]], reduction: str) -> None:
    if reduction in ("max", "min"):
        assert_extreme(result, shares, reduction)
    elif result.dtype == np.int64:
        np.testing.assert_array_equal(result, np.sum(shares, axis=0))
    else:
        assert_sum(result, shares, reduction)


# mpi4py's wheel loads no library of the standard ABI.
@pytest.mark.parametrize(
    ("mpi", "mode"),
    [(name, mode) for name in NAMES for mode in ("own", "adopted") if (name, mode) != ("mpich-abi", "adopted")],
    indirect=["mpi"],
)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_reductions_are_those_of_numpy_and_the_same_bits_on_all_ranks(
    mpi: Mpi, ranks: int, mode: str, tmp_path: Path
) -> None:
    libraries = {report["library"] for report in found(mpi, ranks, "reductions", mode, tmp_path)}
    family = {"mpich": "MPICH family", "mpich-abi": "MPI standard ABI", "openmpi": "Open MPI"}[mpi.name]
    assert [library.split(",")[0] for library in libraries] == [family]
    bits = {(tmp_path / f"results-{rank}").read_bytes() for rank in range(ranks)}
    assert len(bits) == 1, "ranks hold different bits"
    whole, at = bits.pop(), 0
    for kind, shape, reduction in draws.cases():
        size = int(np.prod(shape)) * kind.itemsize
        result = np.frombuffer(whole[at : at + size], kind).reshape(shape)
        at += size
        assert_reduced(result, [draws.draw(kind, shape, rank) for rank in range(ranks)], reduction)
    assert at == len(whole)


def test_two_sub_groups_work_side_by_side(mpi: Mpi, tmp_path: Path) -> None:
    reports = found(mpi, 4, "sub_groups", "own", tmp_path)
    assert [report["part"] for report in reports] == ["even", "odd", "even", "odd"]
    assert [report["rank"] for report in reports] == [1, 0, 0, 1], "even is given as [2, 0]"
    assert [report["sums"] for report in reports] == [[2], [4], [2], [4]]
    assert {report["world"] for report in reports} == {6}
    assert reports[0]["others"] == "UsageError: this replica is not in group 'odd'; its groups are 'even', 'world'"


def test_two_threads_use_two_groups_at_once(mpi: Mpi, tmp_path: Path) -> None:
    for report in found(mpi, 2, "two_threads", "own", tmp_path):
        assert report["first"] == [2.0 * number for number in range(300)]
        assert report["second"] == [2000.0 * number for number in range(300)]


def test_two_threads_of_a_replica_in_one_group_are_refused(mpi: Mpi, tmp_path: Path) -> None:
    first, second = found(mpi, 2, "one_group_twice", "own", tmp_path)
    assert first["found"] == [
        "CollectiveError: two threads of replica 0 use group 'world' at once: collective 0 of Groups.all_reduce",
        "[2. 2.]",
    ]
    assert second["found"] == ["[2. 2.]"]


def test_a_disagreement_is_the_same_sentence_on_all_ranks(mpi: Mpi, tmp_path: Path) -> None:
    reports = found(mpi, 3, "sentences", "own", tmp_path)
    length = (
        "replicas disagree about collective 3: replica 0 sends 129 elements of double (Groups.all_reduce), "
        "replica 1 sends 65 elements of double (Groups.all_reduce)"
    )
    order = (
        "replicas disagree about the order of collectives: replica 0 is at collective 3 (Groups.all_reduce), "
        "replica 1 at collective 4 (Groups.all_reduce)"
    )
    kind = (
        "replicas disagree about collective 0: replica 0 sends 2 elements of int64 (Groups.all_reduce), "
        "replica 1 sends 2 elements of float (Groups.all_reduce)"
    )
    assert reports[0]["said"] == [
        f"CollectiveError: {length}",
        f"CollectiveError: {order}",
        f"CollectiveError: {kind}",
        "CollectiveError: replica 0 failed: there is no reduction 'cube'; there are 'sum', 'mean', 'max' and 'min'",
        "CollectiveError: replica 1 failed: there is no all-reduce of complex64 arrays",
        f"CollectiveError: this group failed before: {length}",
    ]
    assert [report["said"] for report in reports[1:]] == [reports[0]["said"]] * 2
    assert [report["rest"] for report in reports] == [3, 3, 3], "other groups go on"


def test_groups_that_cannot_be_are_refused_on_all_ranks(mpi: Mpi, tmp_path: Path) -> None:
    reports = found(mpi, 2, "wrong_groups", "own", tmp_path)
    name = "group 'world' cannot be made: the names of groups are different, and neither '' nor 'world'"
    assert [report["rest"] for report in reports] == [2, 2]
    for report in reports:
        assert report["said"] == [
            "CollectiveError: replica 0 failed: group 'a' has the member 7, but replicas are numbered 0 to 1",
            "CollectiveError: replicas disagree about the names, the order or the members of their groups",
            f"CollectiveError: replica 1 failed: {name}",
        ]


@pytest.mark.parametrize("mpi", ["mpich", "openmpi"], indirect=True)
def test_a_thread_that_mpi_was_not_initialized_for_is_refused(mpi: Mpi, tmp_path: Path) -> None:
    refused = (
        "CollectiveError: MPI was initialized for one thread (thread level 1), and this is another: "
        "initialize it with MPI_THREAD_SERIALIZED or MPI_THREAD_MULTIPLE"
    )
    for report in found(mpi, 2, "other_thread", "funneled", tmp_path):
        assert report["here"] == 2
        assert report["said"] == [refused]


def test_communicators_are_given_back(tmp_path: Path) -> None:
    """MPICH has about 2,000 of them."""
    reports = found(installation("mpich"), 2, "churn", "own", tmp_path)
    assert [report["made"] for report in reports] == [3000, 3000]


def test_the_launcher_of_another_mpi_is_refused(tmp_path: Path) -> None:
    mpich, openmpi = installation("mpich"), installation("openmpi")
    if not openmpi.is_installed():
        pytest.skip(f"Open MPI is not installed here; {OPENMPI_PREFIX} may name a prefix that has it")
    job = run(mpich, 2, [REPLICA, "reductions", tmp_path, "own", 2], env=environment(openmpi))
    assert job.code != 0
    assert "UsageError: this process is one of 2, but Open MPI," in job.out.replace("bnpass.errors.", "")


def test_a_library_that_is_none_is_refused(tmp_path: Path) -> None:
    mpich = installation("mpich")
    for path in (tmp_path / "nowhere.so", "libc.so.6"):
        env = {**environment(mpich), "BNPASS_MPI_LIBRARY": str(path)}
        job = run(mpich, 1, [REPLICA, "reductions", tmp_path, "own", 1], env=env)
        assert job.code != 0
        assert "UsageError" in job.out
        assert "BNPASS_MPI_LIBRARY names no MPI library" in job.out or "this is no MPI library" in job.out
