"""The number of threads changes nothing but the time."""

import numpy as np
import pytest

from tests.kernel.sessions import run, without_bodies
from tests.unit.ops.body_cases import TYPES, Case, data, gradient, moments, normalization, step_of

SHAPES = [((8, 64, 28, 28), 1), ((8, 28, 28, 64), 3), ((2, 3, 301, 211), 1), ((2, 301, 211, 3), -1), ((513, 257), 1)]


def cases() -> list[Case]:
    found = []
    for (shape, axis), dtype in zip(
        SHAPES * 2, [np.dtype(np.float32)] * 5 + [*TYPES, np.dtype(np.float32)], strict=True
    ):
        step = step_of(data(shape, axis, dtype, mean=10.0), axis, correction=1)
        found += [
            normalization(f"norm {dtype} {shape}", step),
            gradient(f"grad {dtype} {shape}", step),
            moments(f"moments {dtype} {shape}", step.x, axis),
        ]
    return list({case.name: case for case in found}.values())


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_results_are_the_same_bits_for_any_number_of_threads(case: Case) -> None:
    model = without_bodies(case)
    alone = run(model, case.feeds)
    for threads in (2, 3, 4, 7):
        together = run(model, case.feeds, threads=threads)
        assert all(one.tobytes() == other.tobytes() for one, other in zip(alone, together, strict=True))
