"""Sessions come and go, and nodes run for ever, in constant memory."""

import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import bnpass
from tests.kernel.sessions import opened, without_bodies
from tests.unit.ops.body_cases import data, gradient, normalization, step_of

PAGE = 4096
ALLOWED = 512 * 1024
"""Bytes: less than one a cycle would be lost in the noise of the allocator."""


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE


def growth(cycle: Callable[[], object], times: int) -> int:
    """Return by how many bytes the process grows in some cycles, after as many to warm up: allocators settle slowly."""
    for _ in range(times):
        cycle()
    before = resident()
    for _ in range(times):
        cycle()
    return resident() - before


def registrations() -> int:
    """Return the growth in a thousand registrations, each with a session and a run."""
    case = normalization("norm", step_of(data((4, 33, 50), 1, np.dtype(np.float32)), 1))
    model = without_bodies(case).SerializeToString()

    def cycle() -> None:
        options = bnpass.register(onnxruntime.SessionOptions())
        options.intra_op_num_threads = 1
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, case.feeds)

    return growth(cycle, 1000)


def runs() -> int:
    """Return the growth in ten thousand runs, forward and backward."""
    step = step_of(data((4, 33, 50), 1, np.dtype(np.float32)), 1)
    cases = [normalization("norm", step), gradient("grad", step)]
    sessions = [(opened(without_bodies(case), threads=2), case.feeds) for case in cases]

    def cycle() -> None:
        for session, feeds in sessions:
            session.run(None, feeds)

    return growth(cycle, 10_000)


@pytest.mark.parametrize("measured", [registrations, runs])
def test_nothing_is_left_behind(measured: Callable[[], int]) -> None:
    # in a process of its own: what other tests have freed would be taken up again, or not
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        assert process.submit(measured).result() < ALLOWED
