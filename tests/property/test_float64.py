"""The float64 evaluator is what the property tests trust, so it is judged first: ONNX's own node tests, then ORT."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from ml_dtypes import finfo

from tests.property.carriers import carrier_case
from tests.property.graphs import OPSETS, Case, RandomChoices, random_case
from tests.support.build import BFLOAT16
from tests.support.float64 import Evaluator, is_float, limits, round_to

COVERED = {
    *(
        "Conv",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "BatchNormalization",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Neg",
        "Relu",
    ),
    *("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"),
    *("Abs", "LeakyRelu", "PRelu", "HardSigmoid", "Clip", "Max", "Min", "Sum", "Concat", "Split", "Slice", "Gather"),
    *("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"),
    *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"),
    *("Pad", "Resize", "Expand", "DepthToSpace", "SpaceToDepth"),
}


def _node_tests() -> list[Any]:
    from onnx.backend.test.loader import load_model_tests  # builds all tests, slowly and noisily

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_model_tests(kind="node")


EXCEPT = (
    *("cubic", "antialias", "tf_crop", "symmetric", "_axes_", "_not_", "scales_linear_align"),
    *("empty_set", "argmax_2d_precomputed_strides", "training_mode"),
    "ceil_last_window_starts_on_pad",  # three digits are given
)
"""Names of what is not generated: other ways to resize, no elements at all, places counted by columns."""


def _is_covered(case: Any) -> bool:
    nodes = case.model.graph.node
    if any(part in case.name for part in EXCEPT):
        return False
    if len(nodes) != 1 or nodes[0].op_type not in COVERED or nodes[0].domain:
        return False
    if nodes[0].op_type == "Dropout":
        return "_default" in case.name and "training" not in case.name
    first = case.model.graph.input[0].type
    return first.HasField("tensor_type") and is_float(onnx.helper.tensor_dtype_to_np_dtype(first.tensor_type.elem_type))


def test_it_agrees_with_the_node_tests_of_onnx() -> None:
    cases = [case for case in _node_tests() if _is_covered(case)]
    assert {case.model.graph.node[0].op_type for case in cases} == COVERED
    assert len(cases) >= 230
    for case in cases:
        for inputs, outputs in case.data_sets:
            names = [v.name for v in case.model.graph.input]
            values = Evaluator(case.model).run(dict(zip(names, inputs, strict=True)))
            name = case.model.graph.output[0].name
            assert values[name].value.shape == outputs[0].shape, case.name
            permitted = 16 * float(finfo(outputs[0].dtype).eps) * values[name].size  # ONNX computed in the file's type
            assert (np.abs(values[name].value - outputs[0]) <= permitted).all(), case.name


@pytest.mark.parametrize("make", [random_case, carrier_case])
def test_it_agrees_with_onnxruntime_on_generated_graphs(make: Callable[..., Case]) -> None:
    judged = 0
    for seed in range(60):
        case = make(RandomChoices(seed), dtype=np.dtype(np.float32), tame=True)
        if case.has_training:
            continue
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        if any(not is_float(a.dtype) or a.dtype != np.float32 for a in case.feeds.values()):
            continue
        try:
            session = ort.InferenceSession(case.model.SerializeToString(), options)
        except ort.capi.onnxruntime_pybind11_state.NotImplemented:
            continue  # float64 or float16 convolution behind a Cast
        expected = session.run(None, dict(case.feeds))
        values = Evaluator(case.model).run(case.feeds)
        for output, array in zip(case.model.graph.output, expected, strict=True):
            value = values[output.name]
            assert value.value.shape == array.shape
            if not is_float(array.dtype):
                assert np.array_equal(value.value, array), seed
                continue
            bound = 64 * float(limits(np.dtype(np.float32)).eps) * np.max(value.size, initial=1e-6)
            assert np.all(np.abs(value.value - array) <= bound), seed
        judged += 1
    assert judged >= 30


@pytest.mark.parametrize("dtype", [np.float16, np.float32, BFLOAT16])
def test_its_rounding_hits_the_neighbours_and_never_rounds_twice(dtype: Any) -> None:
    dtype = np.dtype(dtype)
    rng = np.random.default_rng(0)
    exact = rng.standard_normal(2000).astype(dtype)
    wide = exact.astype(np.float64)
    assert np.array_equal(round_to(wide, dtype), wide)
    eps = float(limits(dtype).eps)
    one = np.array([1 + eps / 2, 1 + eps / 2 * (1 + 2.0**-20), 1 + 1.5 * eps, 1 + eps / 2 * (1 - 2.0**-20)])
    assert np.array_equal(round_to(one, dtype), [1, 1 + eps, 1 + 2 * eps, 1])
    tiniest = float(limits(dtype).smallest_subnormal)
    assert np.array_equal(round_to(np.array([tiniest * 0.75, tiniest * 0.5]), dtype), [tiniest, 0])
    assert np.isinf(round_to(np.array([float(limits(dtype).max) * 1.01]), dtype)).all()


def test_every_opset_is_generated() -> None:
    seen = {random_case(RandomChoices(seed)).opset for seed in range(200)}
    assert seen == set(OPSETS)
