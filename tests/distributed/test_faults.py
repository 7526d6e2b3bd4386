"""One replica fails: nobody hangs, nobody gets a wrong sum, nobody goes on. More of these: ``tools/faults/run.py``."""

from pathlib import Path

import pytest

from tests.distributed.faults import FAULTS, Plan, carry_out
from tests.distributed.mpi_jobs import OPENMPI_PREFIX, Mpi, installation

TOLD = {
    "fail": "replica 1 failed: a planned fault",
    "length": "replicas disagree about collective 5: replica 0 sends 129 elements of double (Groups.all_reduce), "
    "replica 1 sends 130 elements of double (Groups.all_reduce)",
    "type": "replicas disagree about collective 5: replica 0 sends 129 elements of double (Groups.all_reduce), "
    "replica 1 sends 129 elements of float (Groups.all_reduce)",
    "skip": "replicas disagree about the order of collectives: replica 0 is at collective 5 (Groups.all_reduce), "
    "replica 1 at collective 6 (Groups.all_reduce)",
    "late": "collective 5 of Groups.all_reduce: not all 3 replicas of group 'world' came within 1 s",
}
"""What the survivors say, where the culprit is still there to tell, or they have waited for it."""


@pytest.fixture(params=["mpich", "openmpi"])
def mpi(request: pytest.FixtureRequest) -> Mpi:
    found = installation(request.param)
    if found.name == "openmpi" and not found.is_installed():
        pytest.skip(f"Open MPI is not installed here; {OPENMPI_PREFIX} may name a prefix that has it")
    assert found.is_installed(), "pip install 'bnpass[test]' brings MPICH"
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_one_replica_fails(mpi: Mpi, fault: str, tmp_path: Path) -> None:
    adopted = FAULTS.index(fault) % 2 == 0
    outcome = carry_out(Plan(fault, ranks=3, rank=1, moment=5, adopted=adopted), mpi, tmp_path)
    assert outcome.wrong == ()
    if fault in TOLD and outcome.raised:
        assert outcome.sentences == (TOLD[fault],)


def test_mpi4py_alone_would_hang_where_a_rank_raises(mpi: Mpi, tmp_path: Path) -> None:
    """Its MPI_Finalize waits for the others, who wait in the collective: bnpass ends the job at once."""
    outcome = carry_out(Plan("raise", ranks=2, rank=1, moment=3, deadline=30.0, adopted=True), mpi, tmp_path)
    assert outcome.wrong == ()
    assert outcome.took < 10, "long before the deadline"
