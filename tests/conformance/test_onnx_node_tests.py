"""ONNX's own backend node tests for batch normalization stay true after a fold and after an expansion."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from bnpass.errors import RefusalId
from bnpass.expansion.options import ExpandOptions
from bnpass.folding.options import FoldOptions
from bnpass.passes import ExpandSyncBatchNorm
from tests.support.build import batch_norm, normal, tensor
from tests.support.judge import fold, folded_and_right, runs_in_onnx_runtime

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import onnx.backend.test.case.node as node_tests

    # each of these registers its cases as it is imported; all of them together take seconds
    import onnx.backend.test.case.node.batch_normalization
    import onnx.backend.test.case.node.conv
    import onnx.backend.test.case.node.convtranspose
    import onnx.backend.test.case.node.gemm
    import onnx.backend.test.case.node.matmul

Array = NDArray[Any]

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def _cases(*op_types: str) -> list[Any]:
    found = {case.name: case for case in node_tests._NodeTestCases}
    return [case for case in found.values() if case.model.graph.node[0].op_type in op_types]


CASES = _cases("BatchNormalization")
INFERENCE = [case for case in CASES if "training_mode" not in case.name]
TRAINING = [case for case in CASES if "training_mode" in case.name]
PARAMETERS = ("s", "bias", "mean", "var")


def feeds(case: Any) -> dict[str, Array]:
    ((inputs, _),) = case.data_sets
    return dict(zip([i.name for i in case.model.graph.input], inputs, strict=True))


def expected(case: Any) -> list[Array]:
    ((_, outputs),) = case.data_sets
    return list(outputs)


def with_constant_parameters(case: Any) -> onnx.ModelProto:
    """Return the case with its parameters as initializers."""
    proto = onnx.ModelProto()
    proto.CopyFrom(case.model)
    for name, array in feeds(case).items():
        if name == "x":
            continue
        proto.graph.initializer.append(tensor(array, name))
        proto.graph.input.remove(next(i for i in proto.graph.input if i.name == name))
    return proto


def holds(model: ir.Model, case: Any) -> None:
    wanted = {v.name for v in model.graph.inputs}
    results = runs_in_onnx_runtime(model, {k: v for k, v in feeds(case).items() if k in wanted})
    for result, output in zip(results, expected(case), strict=True):
        np.testing.assert_allclose(result, output, rtol=case.rtol, atol=case.atol)


def test_there_are_cases() -> None:
    assert {case.name for case in CASES} >= {
        "test_batchnorm_example",
        "test_batchnorm_epsilon",
        "test_batchnorm_example_training_mode",
        "test_batchnorm_epsilon_training_mode",
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_with_run_time_parameters_nothing_changes(case: Any) -> None:
    result = fold(ir.from_proto(case.model))
    assert not result.modified
    assert len(result.kept) == 1
    holds(result.after, case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_with_constant_parameters_it_still_holds(case: Any) -> None:
    result = folded_and_right(ir.from_proto(with_constant_parameters(case)))
    holds(result.after, case)


@pytest.mark.parametrize("case", INFERENCE, ids=lambda case: case.name)
def test_behind_an_identity_conv_it_folds_and_still_holds(case: Any) -> None:
    proto = with_constant_parameters(case)
    channels = feeds(case)["x"].shape[1]
    proto.graph.initializer.append(tensor(np.eye(channels, dtype=np.float32)[:, :, None, None], "W"))
    proto.graph.node[0].input[0] = "t"
    proto.graph.node.insert(0, onnx.helper.make_node("Conv", ["x", "W"], ["t"]))
    result = folded_and_right(ir.from_proto(proto))
    assert result.ops == ["Conv"]
    holds(result.after, case)


@pytest.mark.parametrize("case", INFERENCE, ids=lambda case: case.name)
def test_before_an_identity_conv_it_folds_and_still_holds(case: Any) -> None:
    proto = with_constant_parameters(case)
    channels = feeds(case)["x"].shape[1]
    proto.graph.initializer.append(tensor(np.eye(channels, dtype=np.float32)[:, :, None, None], "W"))
    proto.graph.node[0].output[0] = "t"
    proto.graph.node.append(onnx.helper.make_node("Conv", ["t", "W"], ["y"]))
    result = folded_and_right(ir.from_proto(proto))
    assert result.ops == ["Conv"]
    holds(result.after, case)


@pytest.mark.parametrize("case", INFERENCE, ids=lambda case: case.name)
@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "padded"])
def test_before_a_random_conv_it_is_as_exact_as_before(case: Any, padded: bool) -> None:
    proto = with_constant_parameters(case)
    channels = feeds(case)["x"].shape[1]
    proto.graph.initializer.append(tensor(normal(5, channels, 3, 3), "W"))
    proto.graph.node[0].output[0] = "t"
    proto.graph.node.append(onnx.helper.make_node("Conv", ["t", "W"], ["y"], pads=[1] * 4 if padded else [0] * 4))
    for dim in proto.graph.output[0].type.tensor_type.shape.dim:
        dim.ClearField("value")
    result = folded_and_right(ir.from_proto(proto), options=FoldOptions(target="portable"))
    assert result.ops == (["Add", "Conv"] if padded else ["Conv"])


@pytest.mark.parametrize("case", TRAINING, ids=lambda case: case.name)
def test_training_mode_behind_a_conv_is_left_alone(case: Any) -> None:
    proto = with_constant_parameters(case)
    channels = feeds(case)["x"].shape[1]
    proto.graph.initializer.append(tensor(np.eye(channels, dtype=np.float32)[:, :, None, None], "W"))
    proto.graph.node[0].input[0] = "t"
    proto.graph.node.insert(0, onnx.helper.make_node("Conv", ["x", "W"], ["t"]))
    result = folded_and_right(ir.from_proto(proto))
    assert not result.modified
    holds(result.after, case)


# --- the node tests of the linear ops, with a batch normalization at either side ----------------------------------

LINEAR_CASES = _cases(*LINEAR)


def _linear(case: Any) -> tuple[onnx.ModelProto, str]:
    """Return the case with a constant weight and bias, and the name of the weight."""
    proto = onnx.ModelProto()
    proto.CopyFrom(case.model)
    node = proto.graph.node[0]
    values = feeds(case)
    for name in [name for name in node.input[1:] if name]:
        array = values[name] if values[name].dtype != np.float64 else values[name].astype(np.float64)
        proto.graph.initializer.append(tensor(array, name))
        proto.graph.input.remove(next(i for i in proto.graph.input if i.name == name))
    return proto, node.input[1]


def test_there_are_linear_cases() -> None:
    assert {case.model.graph.node[0].op_type for case in LINEAR_CASES} == set(LINEAR)


def _with_channel_axis(of: Callable[[Any], Any]) -> list[Any]:
    """Return the cases in which a value has an axis 1: elsewhere there is nothing to normalize."""
    return [case for case in LINEAR_CASES if of(case).ndim >= 2]


@pytest.mark.parametrize("case", _with_channel_axis(lambda c: expected(c)[0]), ids=lambda case: case.name)
def test_batch_norm_behind_a_linear_op(case: Any) -> None:
    proto, _ = _linear(case)
    output = expected(case)[0]
    for name, array in batch_norm(output.shape[1], dtype=output.dtype).items():
        proto.graph.initializer.append(tensor(array, f"bn.{name}"))
    result_name = proto.graph.output[0].name
    proto.graph.node[0].output[0] = "linear"
    proto.graph.node.append(
        onnx.helper.make_node("BatchNormalization", ["linear", *(f"bn.{n}" for n in "sbmv")], [result_name], name="bn")
    )
    result = folded_and_right(ir.from_proto(proto), [{proto.graph.input[0].name: next(iter(feeds(case).values()))}])
    op_type = case.model.graph.node[0].op_type
    assert result.modified == (op_type != "MatMul" or output.ndim == 2)


@pytest.mark.parametrize("case", _with_channel_axis(lambda c: next(iter(feeds(c).values()))), ids=lambda c: c.name)
def test_batch_norm_before_a_linear_op(case: Any) -> None:
    proto, _ = _linear(case)
    data = next(iter(feeds(case).values()))
    for name, array in batch_norm(data.shape[1], dtype=data.dtype).items():
        proto.graph.initializer.append(tensor(array, f"bn.{name}"))
    first = proto.graph.input[0].name
    proto.graph.node[0].input[0] = "normalized"
    proto.graph.node.insert(
        0,
        onnx.helper.make_node("BatchNormalization", [first, *(f"bn.{n}" for n in "sbmv")], ["normalized"], name="bn"),
    )
    result = folded_and_right(ir.from_proto(proto), [{first: data}], FoldOptions(target="portable"))
    is_transposed = any(a.name == "transA" and a.i for a in case.model.graph.node[0].attribute)
    is_batch_axis = case.model.graph.node[0].op_type == "MatMul" and data.ndim > 2
    assert result.modified == (data.shape[1] == 1 or not (is_batch_axis or is_transposed))


@pytest.mark.parametrize("options", [{}, {"group": "world"}, {"as_functions": True}], ids=str)
@pytest.mark.parametrize("case", TRAINING, ids=lambda case: case.name)
def test_training_mode_expands_and_still_holds(case: Any, options: dict[str, Any]) -> None:
    model = ir.from_proto(case.model)
    assert ExpandSyncBatchNorm(ExpandOptions(**options))(model).modified
    assert "BatchNormalization" not in [node.op_type for node in model.graph]
    holds(model, case)


@pytest.mark.parametrize("case", INFERENCE, ids=lambda case: case.name)
def test_inference_mode_is_nothing_to_expand(case: Any) -> None:
    model = ir.from_proto(case.model)
    expansion = ExpandSyncBatchNorm()
    assert not expansion(model).modified
    assert [kept.refusal for kept in expansion.kept] == [RefusalId.INFERENCE_MODE]
    holds(model, case)
