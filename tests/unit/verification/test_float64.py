"""The float64 evaluation against ONNX's own node tests, in float64."""

import warnings
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from bnpass.verification.float64 import Budget, Float64Model, NoFloat64Error
from bnpass.verification.float64_ops import FLOAT64_OPS
from tests.unit.verification.models import chain, info, model

OVERRIDDEN = {op.__name__ for op in FLOAT64_OPS}


@cache
def node_tests() -> dict[str, list[object]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        found: dict[str, list[object]] = {op: [] for op in OVERRIDDEN}
        for case in load_model_tests(kind="node"):
            nodes = case.model.graph.node
            values = [a for data in case.data_sets or () for part in data for a in part]
            of_tensors = all(isinstance(a, np.ndarray) for a in values)  # the others hold sequences
            if len(nodes) == 1 and nodes[0].op_type in found and of_tensors:
                found[nodes[0].op_type].append(case)
    return found


@pytest.mark.parametrize("op", sorted(OVERRIDDEN))
def test_agrees_with_the_node_tests_of_onnx(op: str) -> None:
    cases = node_tests()[op]
    assert len(cases) >= (1 if op == "Loop" else 2)
    for case in cases:
        evaluated = Float64Model(ir.from_proto(case.model))
        names = [value.name for value in case.model.graph.output]
        for given, expected in case.data_sets:
            feeds = {v.name: a for v, a in zip(case.model.graph.input, given, strict=True)}
            found = evaluated.run(feeds, names)
            for name, right in zip(names, expected, strict=True):
                assert found[name].shape == right.shape, case.name
                if right.dtype.kind == "f":
                    assert found[name].dtype == np.float64, case.name
                np.testing.assert_allclose(found[name], right, case.rtol, case.atol, err_msg=case.name)


def one_node(op: str, inputs: dict[str, np.ndarray], opset: int, outputs: int = 1, **attributes: object) -> list:
    node = helper.make_node(op, list(inputs), [f"y{i}" for i in range(outputs)], **attributes)
    values = [info(name, array.shape) for name, array in inputs.items()]
    proto = model([node], values, [info(f"y{i}", None) for i in range(outputs)], opset=opset)
    found = Float64Model(ir.from_proto(proto)).run(inputs, [f"y{i}" for i in range(outputs)])
    return list(found.values())


def bn_inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    inputs = {"X": rng.normal(2, 3, (2, 3, 4, 5)).astype(np.float32)}
    for name in ("scale", "B", "mean", "var"):
        inputs[name] = rng.uniform(0.5, 2, 3).astype(np.float32)
    return inputs


def normalized(inputs: dict[str, np.ndarray], mean: np.ndarray, var: np.ndarray) -> np.ndarray:
    def column(a: np.ndarray) -> np.ndarray:
        return np.asarray(a, dtype=float).reshape(-1, 1, 1)

    X = inputs["X"].astype(float)
    root = np.sqrt(column(var) + float(np.float32(1e-5)))
    return (X - column(mean)) / root * column(inputs["scale"]) + column(inputs["B"])


@pytest.mark.parametrize(
    ("opset", "attributes"),
    [(6, {"is_test": 1}), (7, {}), (8, {}), (9, {}), (13, {}), (14, {}), (15, {}), (22, {})],
)
def test_batch_normalization_in_inference_at_every_opset(opset: int, attributes: dict[str, int]) -> None:
    inputs = bn_inputs()
    (Y,) = one_node("BatchNormalization", inputs, opset, **attributes)
    np.testing.assert_allclose(Y, normalized(inputs, inputs["mean"], inputs["var"]), rtol=1e-13)


@pytest.mark.parametrize(
    ("opset", "outputs", "attributes"),
    [
        (6, 1, {}),
        (6, 5, {}),
        (7, 5, {}),
        (9, 5, {}),
        (9, 3, {}),
        (14, 1, {"training_mode": 1}),
        (14, 3, {"training_mode": 1}),
        (15, 1, {"training_mode": 1}),
    ],
)
def test_batch_normalization_in_training_at_every_opset(opset: int, outputs: int, attributes: dict[str, int]) -> None:
    inputs = bn_inputs()
    X = inputs["X"].astype(float)
    mean, var = X.mean(axis=(0, 2, 3)), X.var(axis=(0, 2, 3))
    momentum = float(np.float32(0.9))
    running = [momentum * inputs[k].astype(float) + (1 - momentum) * v for k, v in (("mean", mean), ("var", var))]
    expected = [normalized(inputs, mean, var), *running, mean, var]
    found = one_node("BatchNormalization", inputs, opset, outputs, **attributes)
    for value, right in zip(found, expected, strict=False):
        np.testing.assert_allclose(value, right, rtol=1e-12)


@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER"])
def test_conv_transpose_cuts_an_odd_rest_where_onnx_runtime_does(auto_pad: str) -> None:
    import onnxruntime as ort

    rng = np.random.default_rng(0)
    inputs = {name: rng.normal(size=(1, 2, 4, 4)).astype(np.float32) for name in ("X", "W")}
    attributes = {"strides": [2, 3], "output_shape": [7, 10], "auto_pad": auto_pad}
    node = helper.make_node("ConvTranspose", ["X", "W"], ["y"], **attributes)
    proto = model([node], [info("X", [1, 2, 4, 4]), info("W", [2, 2, 4, 4])], [info("y", None)])
    inputs["W"] = rng.normal(size=(2, 2, 4, 4)).astype(np.float32)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found = Float64Model(ir.from_proto(proto)).run(inputs, ["y"])["y"]
    np.testing.assert_allclose(found, session.run(None, inputs)[0], atol=1e-5)


def test_functions_and_subgraphs_use_the_same_operators() -> None:
    inputs = bn_inputs()
    names = list(inputs)
    node = helper.make_node("BatchNormalization", names, ["z"])
    function = helper.make_function("local", "F", names, ["z"], [node], [helper.make_opsetid("", 9)])
    branch = helper.make_graph([helper.make_node("F", names, ["b"], domain="local")], "b", [], [info("b", None)])
    call = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    proto = model(
        [call],
        [info("c", [], TensorProto.BOOL), *(info(n, a.shape) for n, a in inputs.items())],
        [info("y", None)],
        opset=9,
    )
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("local", 1))
    found = Float64Model(ir.from_proto(proto)).run({"c": np.array(True), **inputs}, ["y"])
    np.testing.assert_allclose(found["y"], normalized(inputs, inputs["mean"], inputs["var"]), rtol=1e-13)


def test_casts_and_constants_do_not_leave_float64() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Constant", [], ["third"], value_float=1 / 3),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("Add", ["half", "third"], ["s"]),
        helper.make_node("Add", ["s", "zeros"], ["y"]),
    ]
    proto = model(nodes, [info("x", [1])], [info("y", None)], {"shape": np.array([1])})
    found = Float64Model(ir.from_proto(proto)).run({"x": np.float32([0.1])}, ["y"])["y"]
    assert found.dtype == np.float64
    assert found[0] == float(np.float32(0.1)) + float(np.float32(1 / 3))


@pytest.mark.parametrize(
    ("budget", "sentence"),
    [(Budget(flops=10), "GFLOP"), (Budget(live_bytes=100), "memory"), (Budget(seconds=-1), "more than -1 s")],
)
def test_a_budget_is_kept(budget: Budget, sentence: str) -> None:
    evaluated = Float64Model(ir.from_proto(chain()))
    with pytest.raises(NoFloat64Error, match=sentence):
        evaluated.run({"x": np.zeros((1, 3, 12, 12), np.float32)}, ["r1"], budget)


def test_an_unknown_operator_is_named() -> None:
    proto = model([helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")], [info("x", [1])], [info("y", None)])
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(NoFloat64Error, match="Gelu"):
        Float64Model(ir.from_proto(proto))


def test_the_caller_s_model_is_left_alone() -> None:
    proto = chain()
    given = ir.from_proto(proto)
    before = ir.to_proto(given).SerializeToString()
    Float64Model(given).run({"x": np.zeros((1, 3, 12, 12), np.float32)}, ["r1"])
    assert ir.to_proto(given).SerializeToString() == before
    assert isinstance(proto, onnx.ModelProto)


@pytest.mark.parametrize(("axes", "shape"), [([-2, -1], (3, 4, 1, 1)), ([2, 1], (3, 1, 1, 4)), ([0], (1, 3, 4))])
def test_unsqueeze_counts_its_axes_in_the_result_at_every_opset(axes: list[int], shape: tuple[int, ...]) -> None:
    (y,) = one_node("Unsqueeze", {"x": np.zeros((3, 4))}, 11, axes=axes)
    assert y.shape == shape
