"""Batch normalization of every opset, read by the version that is in force."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from bnpass.errors import RefusalId
from tests.support.build import batch_norm, model, normal
from tests.support.judge import Result, fold, folded_and_right

Array = NDArray[Any]
NEWEST = onnx.defs.onnx_opset_version()
OPSETS = range(1, NEWEST + 1)
CONV = {"W": normal(4, 3, 3, 3), **batch_norm(4)}

INFERENCE, TRAINING = "inference", "training"


def conv_bn(opset: int, attributes: dict[str, Any], outputs: int = 1, ir_version: int | None = None) -> ir.Model:
    """Return Conv and BN, with what version 1 asks for on top."""
    if opset < 6:
        attributes = {**attributes, "consumed_inputs": [0, 0, 0, 1, 1]}
    nodes = [
        onnx.helper.make_node("Conv", ["x", "W"], ["t"], name="conv", kernel_shape=[3, 3]),
        onnx.helper.make_node(
            "BatchNormalization",
            ["t", "s", "b", "m", "v"],
            ["y", "o1", "o2", "o3", "o4"][:outputs],
            name="bn",
            **attributes,
        ),
    ]
    return built(nodes, CONV, opset, ir_version)


def built(
    nodes: list[onnx.NodeProto], constants: dict[str, Array], opset: int, ir_version: int | None = None
) -> ir.Model:
    version = ir_version or (3 if opset < 9 else 8)
    shell = model("g (float[2,3,6,6] x) => (float[2,4,4,4] y) { y = Neg (x) }", constants, ir_version=version)
    proto = ir.to_proto(shell)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    del proto.opset_import[:]
    proto.opset_import.append(onnx.helper.make_opsetid("", opset))
    return ir.from_proto(proto)


def mode(result: Result) -> str:
    if result.ops == ["Conv"]:
        return INFERENCE
    assert not result.modified
    assert result.refusals == {"bn": RefusalId.TRAINING_MODE}
    return TRAINING


@pytest.mark.parametrize("opset", OPSETS)
def test_inference_is_folded(opset: int) -> None:
    attributes = {"is_test": 1} if opset < 7 else {}
    assert mode(folded_and_right(conv_bn(opset, attributes))) == INFERENCE


@pytest.mark.parametrize("opset", OPSETS)
def test_training_is_not(opset: int) -> None:
    attributes = {"training_mode": 1} if opset >= 14 else {}
    outputs = 1 if opset < 7 else 5 if opset < 14 else 3
    assert mode(fold(conv_bn(opset, attributes, outputs))) == TRAINING


@pytest.mark.parametrize("opset", OPSETS)
def test_what_the_attributes_say_if_they_are_left_out(opset: int) -> None:
    """Versions 1 and 6 train unless told otherwise; all later ones infer."""
    assert mode(fold(conv_bn(opset, {}))) == (TRAINING if opset < 7 else INFERENCE)


@pytest.mark.parametrize("opset", OPSETS)
def test_is_test_zero_and_training_mode_zero(opset: int) -> None:
    attributes = {"is_test": 0} if opset < 7 else {"training_mode": 0} if opset >= 14 else {}
    assert mode(fold(conv_bn(opset, attributes))) == (TRAINING if opset < 7 else INFERENCE)


@pytest.mark.parametrize("opset", range(1, 7))
def test_before_opset_7_outputs_do_not_say_training(opset: int) -> None:
    assert mode(folded_and_right(conv_bn(opset, {"is_test": 1}, outputs=1))) == INFERENCE


@pytest.mark.parametrize("opset", range(7, 14))
@pytest.mark.parametrize("outputs", [2, 3, 4, 5])
def test_from_7_to_13_any_further_output_says_training(opset: int, outputs: int) -> None:
    assert mode(fold(conv_bn(opset, {}, outputs))) == TRAINING


@pytest.mark.parametrize("opset", [7, 9, 13])
def test_outputs_named_by_the_empty_string_are_left_out(opset: int) -> None:
    proto = ir.to_proto(conv_bn(opset, {}))
    proto.graph.node[1].output.extend(["", ""])
    result = fold(ir.from_proto(proto))
    assert mode(result) == INFERENCE


@pytest.mark.parametrize("opset", [7, 8])
def test_spatial_zero_with_one_parameter_per_point_is_no_per_channel_affine(opset: int) -> None:
    proto = ir.to_proto(conv_bn(opset, {"spatial": 0}))
    for tensor in proto.graph.initializer:
        if tensor.name in "sbmv":
            tensor.CopyFrom(onnx.helper.make_tensor(tensor.name, 1, [4, 4, 4], np.ones(64)))
    for listed in proto.graph.input:
        if listed.name in "sbmv":
            listed.CopyFrom(onnx.helper.make_tensor_value_info(listed.name, 1, [4, 4, 4]))
    result = fold(ir.from_proto(proto))
    assert not result.modified
    assert result.refusals == {"bn": RefusalId.AXIS_NOT_PROVABLE}


@pytest.mark.parametrize("opset", [1, 6, 7, 8])
def test_spatial_one_is_the_default(opset: int) -> None:
    attributes = {"is_test": 1} if opset < 7 else {}
    assert mode(folded_and_right(conv_bn(opset, {**attributes, "spatial": 1}))) == INFERENCE


@pytest.mark.parametrize("ir_version", range(3, onnx.IR_VERSION + 1))
def test_every_ir_version(ir_version: int) -> None:
    result = folded_and_right(conv_bn(8, {}, ir_version=ir_version))
    assert result.ops == ["Conv"]
    assert result.after.ir_version == ir_version
    listed = [v.name for v in result.after.graph.inputs]
    assert listed == (["x", "W", "conv/bias"] if ir_version < 4 else ["x"])


def arithmetic(op_type: str, opset: int, shape: tuple[int, ...], **attributes: int) -> Result:
    nodes = [
        onnx.helper.make_node("Conv", ["x", "W"], ["t"], name="conv", kernel_shape=[3, 3]),
        onnx.helper.make_node(op_type, ["t", "a"], ["y"], name="op", **attributes),
    ]
    return folded_and_right(built(nodes, {"W": CONV["W"], "a": normal(*shape)}, opset))


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize(("opset", "axis"), [(6, 1), (6, -3), (5, 1), (1, 1)])  # negative ones are defined from 6 on
def test_before_opset_7_axis_says_which(op_type: str, opset: int, axis: int) -> None:
    assert arithmetic(op_type, opset, (4,), broadcast=1, axis=axis).ops == ["Conv"]


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("axis", [2, 3])
def test_before_opset_7_another_axis_is_another_axis(op_type: str, axis: int) -> None:
    result = arithmetic(op_type, 6, (4,), broadcast=1, axis=axis)
    assert result.refusals == {"op": RefusalId.AXIS_NOT_PROVABLE}


def test_before_opset_7_without_axis_the_last_axes_are_meant() -> None:
    assert arithmetic("Mul", 6, (4,), broadcast=1).refusals == {"op": RefusalId.AXIS_NOT_PROVABLE}
    assert arithmetic("Mul", 6, (4, 1, 1), broadcast=1).ops == ["Conv"]


@pytest.mark.parametrize("opset", [7, 9, 13, 14, NEWEST])
def test_from_opset_7_the_last_axes_are_meant(opset: int) -> None:
    assert arithmetic("Mul", opset, (4,)).refusals == {"op": RefusalId.AXIS_NOT_PROVABLE}
    assert arithmetic("Mul", opset, (4, 1, 1)).ops == ["Conv"]


def test_what_is_written_before_opset_7_broadcasts_as_it_did_then() -> None:
    """Four single ops become Mul and Add, which then have to name their axis."""
    nodes = [
        onnx.helper.make_node("Sub", ["x", "a"], ["u"], broadcast=1, axis=1),
        onnx.helper.make_node("Mul", ["u", "a"], ["w"], broadcast=1, axis=1),
        onnx.helper.make_node("Mul", ["w", "c"], ["z"], broadcast=1, axis=1),
        onnx.helper.make_node("Add", ["z", "c"], ["y"], broadcast=1, axis=1),
    ]
    constants = {"a": normal(3), "c": normal(3, seed=1)}
    source = built(nodes, constants, 6)
    source.graph.outputs[0].shape = ir.Shape([2, 3, 6, 6])
    assert folded_and_right(source).ops == ["Mul", "Add"]


@pytest.mark.parametrize("opset", [1, 6])
def test_gemm_before_opset_7_gets_a_bias_that_it_may_broadcast(opset: int) -> None:
    extra = {"consumed_inputs": [0, 0, 0, 1, 1]} if opset < 6 else {}
    nodes = [
        onnx.helper.make_node("Flatten", ["x"], ["f"]),
        onnx.helper.make_node("Gemm", ["f", "W", "c"], ["t"], broadcast=1),
        onnx.helper.make_node("BatchNormalization", ["t", "s", "b", "m", "v"], ["y"], is_test=1, **extra),
    ]
    source = built(nodes, {"W": normal(108, 4), "c": normal(1), **batch_norm(4)}, opset)
    source.graph.outputs[0].shape = ir.Shape([2, 4])
    result = folded_and_right(source)
    assert result.ops == ["Flatten", "Gemm"]
    assert result.after.graph.node(1).attributes.get_int("broadcast", 0) == 1


@pytest.mark.parametrize("opset", [5, 13])
def test_squeeze_and_reshape_say_their_arguments_in_both_ways(opset: int) -> None:
    """Axes are an attribute of Unsqueeze before opset 13, an input from then on."""
    constants = {"W": CONV["W"], "a": normal(4)}
    if opset < 13:
        unsqueeze = onnx.helper.make_node("Unsqueeze", ["a"], ["a3"], axes=[1, 2])
    else:
        constants["axes"] = np.array([1, 2])
        unsqueeze = onnx.helper.make_node("Unsqueeze", ["a", "axes"], ["a3"])
    nodes = [
        unsqueeze,
        onnx.helper.make_node("Conv", ["x", "W"], ["t"], kernel_shape=[3, 3]),
        onnx.helper.make_node("Mul", ["t", "a3"], ["y"], **({"broadcast": 1} if opset < 7 else {})),
    ]
    assert folded_and_right(built(nodes, constants, opset)).ops == ["Conv"]
