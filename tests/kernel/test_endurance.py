"""Sessions come and go, and nodes run for ever, in constant memory."""

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

import bnpass
from tests.kernel.sessions import opened, without_bodies
from tests.unit.ops.body_cases import data, gradient, normalization, step_of

STEP = step_of(data((4, 33, 50), 1, np.dtype(np.float32)), 1)
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


def test_a_thousand_registrations_leave_nothing_behind() -> None:
    case = normalization("norm", STEP)
    model = without_bodies(case).SerializeToString()

    def cycle() -> None:
        options = bnpass.register(onnxruntime.SessionOptions())
        options.intra_op_num_threads = 1
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, case.feeds)

    assert growth(cycle, 1000) < ALLOWED


def test_ten_thousand_runs_leave_nothing_behind() -> None:
    cases = [normalization("norm", STEP), gradient("grad", STEP)]
    sessions = [(opened(without_bodies(case), threads=2), case.feeds) for case in cases]

    def cycle() -> None:
        for session, feeds in sessions:
            session.run(None, feeds)

    assert growth(cycle, 10_000) < ALLOWED
