"""The operators in float64 from their definition agree with the truth that the bodies are held against."""

import numpy as np
import onnx_ir as ir
import pytest

from bnpass.verification.float64 import Float64Model
from tests.unit.ops.body_cases import Case, all_cases

CASES = [case for case in all_cases() if not case.fails and "1e+08" not in case.name][::5]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_definition_needs_no_body(case: Case) -> None:
    model = ir.from_proto(case.model(18))
    model.functions.clear()
    names = [str(value.name) for value in model.graph.outputs]
    found = Float64Model(model, by_definition=True).run(case.feeds, names)
    for name, expected in zip(names, [e for e in case.outputs if e is not None], strict=True):
        wanted = np.asarray(expected.value, np.float64)
        scale = np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0)
        assert found[name].shape == wanted.shape
        np.testing.assert_allclose(found[name].astype(np.float64), wanted, rtol=1e-9, atol=1e-9 * scale)
