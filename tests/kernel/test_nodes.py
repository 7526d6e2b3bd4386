"""A kernel computes what the operator means, for every type, rank, axis, mode and size; and so does the body."""

import re
from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.kernel.sessions import run, without_bodies
from tests.unit.ops.body_cases import TYPES, Case, all_cases, data, gradient, moments, normalization, step_of


def sizes() -> Iterator[Case]:
    """Yield lengths that leave something over in every loop, channels first and last."""
    for dtype in TYPES:
        for C, inner in ((1, 3137), (3, 7), (65, 7), (1000, 1), (2, 1), (64, 49), (17, 100), (5, 3137)):
            for shape, axis in (((3, C, inner), 1), ((3, inner, C), 2)):
                x = data(shape, axis, dtype, mean=0.5)
                for ghost in (0, 1):
                    step = step_of(x, axis, ghost=ghost, correction=1)
                    name = f"{dtype} {list(shape)} axis {axis} ghost {ghost}"
                    yield normalization(f"sizes norm {name}", step)
                    yield gradient(f"sizes grad {name}", step)
                    yield moments(f"sizes moments {name}", x, axis, ghost=ghost)


CASES = [*all_cases(), *sizes()]
GOOD = [case for case in CASES if not case.fails]
BAD = [case for case in CASES if case.fails]


@pytest.mark.parametrize("case", GOOD, ids=[case.name for case in GOOD])
def test_a_kernel_computes_what_the_operator_means(case: Case) -> None:
    model = without_bodies(case)
    assert case.why_wrong(run(model, case.feeds)) == ""
    assert case.why_wrong(run(model, case.feeds, threads=3)) == ""


@pytest.mark.parametrize("case", BAD, ids=[case.name for case in BAD])
def test_what_does_not_fit_is_named(case: Case) -> None:
    said = r"Status Message: [^\n]*(virtual_batch_size|ghost batches|axis|has the shape|expected)"
    with pytest.raises(Exception, match=said):
        run(without_bodies(case), case.feeds)


def test_without_the_kernels_such_a_model_cannot_be_opened() -> None:
    model = without_bodies(GOOD[0])
    with pytest.raises(Exception, match=re.escape("bnpass")):
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("case", GOOD[::10], ids=[case.name for case in GOOD[::10]])
def test_beside_a_body_the_kernel_is_taken(case: Case) -> None:
    model = case.model(18)
    for function in model.functions:  # a body that would return twice what it should
        for node in function.node:
            node.output[:] = [f"half_of_{name}" if name in function.output else name for name in node.output]
        function.node.extend(onnx.helper.make_node("Add", [f"half_of_{name}"] * 2, [name]) for name in function.output)
    found = run(model, case.feeds)
    assert case.why_wrong(found) == ""
    kernel = run(without_bodies(case), case.feeds)
    assert all(np.array_equal(one, other, equal_nan=True) for one, other in zip(found, kernel, strict=True))
