"""A pytest plugin: replicas that are threads work over NCCL's stand-in (native/tests/cuda_host/fake_nccl.cpp)."""

from typing import Any

import pytest

from bnpass.runtime import Groups, threads
from bnpass.runtime.nccl_group import nccl


def threads_over_nccl(count: int, **options: Any) -> tuple[Groups, ...]:  # noqa: ANN401
    """Return what ``threads`` does, with NCCL below; the library is the stand-in, whatever it is asked for."""
    hosts = threads(count, **options)
    groups = []
    for host in hosts:
        host.library = "cuda"
        group = nccl(host)
        group.library = "cpu"
        groups.append(group)
    return tuple(groups)


@pytest.fixture(autouse=True)
def _over_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    import tests.kernel.test_replicas as replicas

    monkeypatch.setattr(replicas, "threads", threads_over_nccl)
