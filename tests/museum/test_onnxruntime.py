"""The published fusion cases of ONNX Runtime's ``graph_transform_test.cc`` around affines, rebuilt.

Its models are files; these graphs follow what their names and assertions say. What has no affine in it (FusedConv,
FusedMatMul, Pad into Conv) is rebuilt with a batch normalization or a product beside it.
"""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bnpass.errors import RefusalId
from tests.museum.published import batch_norm, becomes, parameters, stays
from tests.support import build
from tests.support.judge import fold, folded_and_right

CONV = f"<float[4,3,3,3] W, {parameters(4)}>"
MATMUL = f"<float[3,4] W, {parameters(4)}"
AT_OUTPUT = RefusalId.PRODUCER_IS_GRAPH_OUTPUT


# --- Conv, BatchNormalization, Mul, Add ---------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [9, 13, 17])
def test_fuse_conv_bn_no_bias_and_a_missing_optional_output(opset: int) -> None:
    """The Conv gets the name of what the batch normalization gave."""
    outputs = 'y, ""' if opset < 14 else "y"
    graph = f"""g (float[2,3,6,6] x) => (float[2,4,4,4] y) {CONV} {{
        [conv] t = Conv (x, W)
        [bn] {outputs} = {batch_norm("t")}
    }}"""
    result = becomes(graph, "Conv", opset=opset)
    assert result.after.graph.node(0).outputs[0].name == "y"


@pytest.mark.parametrize("outputs", ["y, mean", "y, mean, var, saved_mean, saved_var"])
def test_dont_fuse_conv_with_bn_with_optional_outputs(outputs: str) -> None:
    """Before opset 14, more than one output is training mode, even if nobody reads it."""
    graph = f"""g (float[2,3,6,6] x) => (float[2,4,4,4] y) {{
        [conv] t = Conv (x, W)
        [bn] {outputs} = BatchNormalization (t, s, b, m, v)
    }}"""
    constants = {"W": build.normal(4, 3, 3, 3), **build.batch_norm(4)}
    result = fold(build.model(graph, constants, opset=9))  # two outputs are not valid, and ONNX Runtime tests them
    assert not result.modified
    assert result.refusals == {"bn": RefusalId.TRAINING_MODE}


@pytest.mark.parametrize("bias", ["", ", c0"], ids=["no bias", "bias"])
def test_fuse_conv_bn_mul_add_unsqueeze(bias: str) -> None:
    graph = f"""g (float[2,3,6,6] x) => (float[2,4,4,4] y)
        <float[4,3,3,3] W, float[4] c0, {parameters(4)}, float[4] a, float[4] c, int64[2] axes = {{1, 2}}> {{
        [conv] t = Conv (x, W{bias})
        [bn] u = {batch_norm("t")}
        [unsqueeze1] p = Unsqueeze (a, axes)
        [mul] w = Mul (u, p)
        [unsqueeze2] q = Unsqueeze (c, axes)
        [add] y = Add (w, q)
    }}"""
    becomes(graph, "Conv")


def test_fuse_conv_bn_mul_add_unsqueeze_negative_axes() -> None:
    graph = f"""g (float[2,3,6,6] x) => (float[2,4,4,4] y)
        <float[4,3,3,3] W, {parameters(4)}, float[4] a, float[4] c, int64[2] axes = {{-2, -1}}> {{
        [conv] t = Conv (x, W)
        [bn] u = {batch_norm("t")}
        [unsqueeze1] p = Unsqueeze (a, axes)
        [mul] w = Mul (u, p)
        [unsqueeze2] q = Unsqueeze (c, axes)
        [add] y = Add (w, q)
    }}"""
    becomes(graph, "Conv")


@pytest.mark.parametrize("axes", ["-2, -1", "-1, -2", "2, 1"])
def test_fuse_conv_bn_mul_add_unsqueeze_negative_axes_of_opset_11(axes: str) -> None:
    """The order of the axes says nothing, but ``onnx.reference`` unsqueezes one after the other before opset 13.

    So the numbers are held against those of the axes in order.
    """
    graph = """g (float[2,3,6,6] x) => (float[2,4,4,4] y) {
        [conv] t = Conv (x, W)
        [unsqueeze1] p = Unsqueeze <axes = [AXES]> (a)
        [mul] w = Mul (t, p)
        [unsqueeze2] q = Unsqueeze <axes = [AXES]> (c)
        [add] y = Add (w, q)
    }"""
    constants = {"W": build.normal(4, 3, 3, 3), "a": build.normal(4), "c": build.normal(4, seed=1)}
    ordered = folded_and_right(build.model(graph.replace("AXES", "1, 2"), constants, opset=11))
    other = fold(build.model(graph.replace("AXES", axes), constants, opset=11))
    assert other.ops == ordered.ops == ["Conv"]
    for name in ("W", "conv/bias"):
        np.testing.assert_array_equal(other.constant(name), ordered.constant(name))


def test_fuse_conv_bn_add_mul_float16() -> None:
    kind = ", ".join(f"float16[4] {name}" for name in "sbmv")
    graph = f"""g (float16[2,3,6,6] x) => (float16[2,4,4,4] y)
        <float16[4,3,3,3] W, float16[4] c0, {kind}, float16[4,1,1] a, float16[1,4,1,1] c> {{
        [conv] t = Conv (x, W, c0)
        [bn] u = {batch_norm("t")}
        [add] w = Add (u, a)
        [mul] y = Mul (w, c)
    }}"""
    assert becomes(graph, "Conv").constant("W").dtype == np.float16


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("lead", ["4", "1,4", None], ids=["rank of W less one", "rank of W", "scalar"])
@pytest.mark.parametrize("bias", ["", ", c0"], ids=["no bias", "bias"])
def test_fuse_conv_add_mul_1d_and_3d(rank: int, lead: str | None, bias: str) -> None:
    shape = "" if lead is None else f"[{lead},{','.join('1' * rank)}]"
    graph = f"""g (float[2,3,{",".join("5" * rank)}] x) => (float[2,4,{",".join("3" * rank)}] y)
        <float[4,3,{",".join("3" * rank)}] W, float[4] c0, float{shape} a, float{shape} c> {{
        [conv] t = Conv (x, W{bias})
        [add] u = Add (t, a)
        [mul] y = Mul (u, c)
    }}"""
    becomes(graph, "Conv")


@pytest.mark.parametrize("op_type", ["Mul", "Add"])
def test_fuse_conv_mul_no_bias_and_fuse_conv_add_no_bias(op_type: str) -> None:
    graph = f"""g (float[2,3,6,6] x) => (float[2,4,4,4] y) <float[4,3,3,3] W, float[4] a, int64[2] axes = {{1, 2}}> {{
        [conv] t = Conv (x, W)
        [unsqueeze] u = Unsqueeze (a, axes)
        [op] y = {op_type} (t, u)
    }}"""
    becomes(graph, "Conv")


@pytest.mark.parametrize("overridable", [("W", [4, 3, 3, 3]), ("a", [4])], ids=["weight", "constant"])
@pytest.mark.parametrize("op_type", ["Mul", "Add"])
def test_negative_fuse_conv_add_no_bias(op_type: str, overridable: tuple[str, list[int]]) -> None:
    """From IR 4 on, an initializer that is a graph input as well is a default."""
    graph = f"""g (float[2,3,6,6] x) => (float[2,4,4,4] y) <int64[2] axes = {{1, 2}}> {{
        [conv] t = Conv (x, W)
        [unsqueeze] u = Unsqueeze (a, axes)
        [op] y = {op_type} (t, u)
    }}"""
    name, dims = overridable
    proto = ir.to_proto(build.model(graph, {"W": build.normal(4, 3, 3, 3), "a": build.normal(4)}))
    proto.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims))
    result = folded_and_right(ir.from_proto(proto))
    assert not result.modified
    assert result.refusals == {"op": RefusalId.OVERRIDABLE_INITIALIZER}


# --- MatMul -------------------------------------------------------------------------------------------------------


def test_fuse_matmul_bn_directly() -> None:
    """ONNX Runtime makes a Gemm, which has a bias; here the shift is the Add behind the MatMul."""
    becomes(
        f"g (float[5,3] x) => (float[5,4] y) {MATMUL}> {{ [matmul] t = MatMul (x, W) [bn] y = {batch_norm('t')} }}",
        "MatMul Add",
    )


def test_fuse_matmul_bn_with_in_between_nodes() -> None:
    graph = f"""g (float[2,5,3] x) => (float[2,4,5,1] y) {MATMUL}, int64[4] shape = {{2, 5, 1, 4}}> {{
        [matmul] t = MatMul (x, W)
        [reshape] u = Reshape (t, shape)
        [transpose] w = Transpose <perm = [0, 3, 1, 2]> (u)
        [bn] y = {batch_norm("w")}
    }}"""
    becomes(graph, "MatMul Add Reshape Transpose")


def test_fuse_matmul_bn_with_empty_optional_output_with_in_between_nodes() -> None:
    graph = f"""g (float[2,5,3] x) => (float[2,4,5,1] y) {MATMUL}, int64[4] shape = {{2, 5, 1, 4}}> {{
        [matmul] t = MatMul (x, W)
        [reshape] u = Reshape (t, shape)
        [transpose] w = Transpose <perm = [0, 3, 1, 2]> (u)
        [bn] y, "" = {batch_norm("w")}
    }}"""
    becomes(graph, "MatMul Add Reshape Transpose", opset=9)


def test_fuse_matmul_bn_with_optional_output_with_in_between_nodes() -> None:
    graph = f"""g (float[2,5,3] x) => (float[2,4,5,1] y) {MATMUL}, int64[4] shape = {{2, 5, 1, 4}}> {{
        [matmul] t = MatMul (x, W)
        [reshape] u = Reshape (t, shape)
        [transpose] w = Transpose <perm = [0, 3, 1, 2]> (u)
        [bn] y, mean, var, saved_mean, saved_var = {batch_norm("w")}
    }}"""
    stays(graph, {"bn": (RefusalId.TRAINING_MODE, "bn")}, opset=9)


def test_fuse_matmul_bn_with_only_reshape() -> None:
    graph = f"""g (float[2,5,3] x) => (float[10,4] y) {MATMUL}, int64[2] shape = {{-1, 4}}> {{
        [matmul] t = MatMul (x, W)
        [reshape] u = Reshape (t, shape)
        [bn] y = {batch_norm("u")}
    }}"""
    becomes(graph, "MatMul Reshape Add")


def test_fuse_matmul_bn_with_only_reshape_for_onnx_runtime() -> None:
    """For ONNX Runtime an Add is as dear as a batch normalization, unless it can be fused with the MatMul."""
    graph = f"""g (float[2,5,3] x) => (float[10,4] y) {MATMUL}, int64[2] shape = {{-1, 4}}> {{
        [matmul] t = MatMul (x, W)
        [reshape] u = Reshape (t, shape)
        [bn] y = {batch_norm("u")}
    }}"""
    stays(graph, {"bn": (RefusalId.NO_GAIN, "bn")}, target="onnxruntime-cpu")


def test_fuse_matmul_bn_with_only_transpose() -> None:
    graph = f"""g (float[2,5,3] x) => (float[2,4,5] y) {MATMUL}> {{
        [matmul] t = MatMul (x, W)
        [transpose] u = Transpose <perm = [0, 2, 1]> (t)
        [bn] y = {batch_norm("u")}
    }}"""
    becomes(graph, "MatMul Add Transpose")


def test_fuse_matmul_bn_without_batch_normalization() -> None:
    graph = """g (float[2,5,3] x) => (float[2,4,5] y) <float[3,4] W> {
        [matmul] t = MatMul (x, W)
        [transpose] y = Transpose <perm = [0, 2, 1]> (t)
    }"""
    stays(graph)


@pytest.mark.parametrize("op_type", ["Sigmoid", "Exp", "Tanh", "Erf"])
def test_fuse_matmul_bn_with_non_ignorable_node(op_type: str) -> None:
    graph = f"""g (float[5,3] x) => (float[5,4] y) {MATMUL}, float low = {{-1}}, float high = {{1}}> {{
        [clip] k = Clip (x, low, high)
        [matmul] t = MatMul (k, W)
        [op] u = {op_type} (t)
        [bn] y = {batch_norm("u")}
    }}"""
    stays(graph, {"bn": (RefusalId.NONLINEAR_BETWEEN, "op")})


def test_matmul_add_fusion_two_and_three_input() -> None:
    """ONNX Runtime makes a Gemm; here the bias of a MatMul is an Add, and is not reported."""
    graph = """g (float[5,3] x) => (float[5,4] y) <float[3,4] W, float[4] c> {
        [matmul] t = MatMul (x, W)
        [add] y = Add (t, c)
    }"""
    stays(graph)


def test_matmul_add_fusion_then_batch_norm() -> None:
    graph = f"""g (float[5,3] x) => (float[5,4] y) {MATMUL}, float[4] c> {{
        [matmul] t = MatMul (x, W)
        [add] u = Add (t, c)
        [bn] y = {batch_norm("u")}
    }}"""
    becomes(graph, "MatMul Add")


def test_matmul_add_fusion_then_relu_then_batch_norm() -> None:
    """As Gemm it folds; as MatMul and Add the scale does not pass the Add that stays."""
    graph = f"""g (float[5,3] x) => (float[5,4] y) <float[3,4] W, float[4] c, {parameters(4, positive=True)}> {{
        [matmul] t = MatMul (x, W)
        [add] u = Add (t, c)
        [relu] w = Relu (u)
        [bn] y = {batch_norm("w", positive=True)}
    }}"""
    stays(graph, {"bn": (RefusalId.NONLINEAR_BETWEEN, "add")})
    gemm = graph.replace("t = MatMul (x, W)", "u = Gemm (x, W, c)").replace("[add] u = Add (t, c)", "")
    becomes(gemm, "Gemm Max")


def test_matmul_add_fusion_negative_case_of_a_vector() -> None:
    graph = """g (float[3] x) => (float[4] y) <float[3,4] W, float[4] c, float[4] a> {
        [matmul] t = MatMul (x, W)
        [add] u = Add (t, c)
        [mul] y = Mul (u, a)
    }"""
    becomes(graph, "MatMul Add")


def test_matmul_add_fusion_not_broadcastable() -> None:
    """The constant makes a row of the vector: the scale goes around it nevertheless."""
    graph = """g (float[4] x) => (float[1,4] y) <float[4,4] W, float[1,4] c, float[4] a> {
        [matmul] t = MatMul (x, W)
        [add] u = Add (t, c)
        [mul] y = Mul (u, a)
    }"""
    becomes(graph, "MatMul Add")


def test_matmul_add_fusion_missing_shape() -> None:
    """Of a value without a shape nothing is known to be a channel."""
    graph = "g (float[] x) => (float[] y) { [matmul] t = MatMul (x, W) [add] u = Add (t, c) [mul] y = Mul (u, a) }"
    proto = ir.to_proto(build.model(graph, {"W": build.normal(4, 4), "c": build.normal(4), "a": build.normal(4)}))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.ClearField("shape")
    result = fold(ir.from_proto(proto))
    assert not result.modified
    assert result.refusals == {"add": RefusalId.AXIS_NOT_PROVABLE, "mul": RefusalId.AXIS_NOT_PROVABLE}


def test_matmul_scale_fusion_of_values() -> None:
    """ONNX Runtime has FusedMatMul for the factors; in ONNX three could be one, which is not done."""
    graph = """g (float[2,5,3] x, float[2,3,4] z) => (float[2,5,4] y) <float a = {2}, float b = {3}, float c = {0.5}> {
        [mul1] t = Mul (x, a)
        [mul2] u = Mul (b, z)
        [matmul] w = MatMul (t, u)
        [div] y = Div (w, c)
    }"""
    stays(graph)


def test_matmul_scale_fusion_of_a_weight() -> None:
    graph = """g (float[2,5,3] x) => (float[2,5,4] y) <float a = {2}, float[3,4] W, float c = {0.5}> {
        [mul] t = Mul (x, a)
        [matmul] w = MatMul (t, W)
        [div] y = Div (w, c)
    }"""
    becomes(graph, "MatMul")


# --- activations --------------------------------------------------------------------------------------------------

ACTIVATIONS = ["Relu", "Sigmoid", "Tanh", "Softsign", "LeakyRelu", "HardSigmoid", "Elu"]
PASSED = {"Relu", "LeakyRelu"}


@pytest.mark.parametrize("op_type", ACTIVATIONS)
def test_fuse_conv_activation_with_a_batch_norm_between(op_type: str) -> None:
    graph = f"""g (float[2,3,6,6] x) => (float[2,4,4,4] y) {CONV} {{
        [conv] t = Conv (x, W)
        [bn] u = {batch_norm("t")}
        [act] y = {op_type} (u)
    }}"""
    becomes(graph, f"Conv {op_type}")


@pytest.mark.parametrize("op_type", ACTIVATIONS)
def test_onnxruntime_9938_positive_scale_behind_the_activation(op_type: str) -> None:
    graph = f"""g (float[2,3,6,6] x) => (float[2,4,4,4] y) <float[4,3,3,3] W, float[4,1,1] gamma> {{
        [conv] t = Conv (x, W)
        [act] u = {op_type} (t)
        [mul] y = Mul (u, gamma)
    }}"""
    if op_type in PASSED:
        becomes(graph, f"Conv {op_type}")
    else:
        stays(graph, {"mul": (RefusalId.NONLINEAR_BETWEEN, "act")})


@pytest.mark.parametrize("op_type", ACTIVATIONS)
def test_onnxruntime_9938_batch_norm_behind_the_activation(op_type: str) -> None:
    graph = f"""g (float[2,3,6,6] x) => (float[2,4,4,4] y) <float[4,3,3,3] W, {parameters(4, positive=True)}> {{
        [conv] t = Conv (x, W)
        [act] u = {op_type} (t)
        [bn] y = {batch_norm("u", positive=True)}
    }}"""
    between = RefusalId.NONLINEAR_BETWEEN
    match op_type:
        case "Relu":
            becomes(graph, "Conv Max")
            stays(graph, {"bn": (RefusalId.NO_GAIN, "bn")}, target="onnxruntime-cpu")
        case "LeakyRelu":
            becomes(graph, "Conv LeakyRelu Add", {"bn/Add": (between, "act")})
        case _:
            stays(graph, {"bn": (between, "act")})


@pytest.mark.parametrize("op_type", ACTIVATIONS)
def test_onnxruntime_9938_batch_norm_behind_the_activation_and_a_conv_behind_that(op_type: str) -> None:
    graph = f"""g (float[2,3,6,6] x) => (float[2,4,4,4] y) <float[4,3,3,3] W, float[4,4,1,1] W2, {parameters(4)}> {{
        [conv] t = Conv (x, W)
        [act] u = {op_type} (t)
        [bn] w = {batch_norm("u")}
        [conv2] y = Conv (w, W2)
    }}"""
    becomes(graph, f"Conv {op_type} Conv")


def test_fuse_conv_clip_with_a_batch_norm_behind() -> None:
    graph = f"""g (float[2,3,6,6] x) => (float[2,4,4,4] y)
        <float[4,3,3,3] W, {parameters(4, positive=True)}, float low = {{0}}, float high = {{6}}> {{
        [conv] t = Conv (x, W)
        [clip] u = Clip (t, low, high)
        [bn] y = {batch_norm("u", positive=True)}
    }}"""
    stays(graph, {"bn": (RefusalId.NO_GAIN, "bn")})


# --- Pad ----------------------------------------------------------------------------------------------------------

PADS = "int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 1}"


def test_fuse_pad_with_conv_and_a_batch_norm_behind() -> None:
    """The Conv pads for itself then."""
    graph = f"""g (float[2,3,6,6] x) => (float[2,4,6,6] y) <float[4,3,3,3] W, {PADS}, {parameters(4)}> {{
        [pad] t = Pad (x, pads)
        [conv] u = Conv (t, W)
        [bn] y = {batch_norm("u")}
    }}"""
    becomes(graph, "Conv")


def test_fuse_pad_with_conv_and_a_mul_before() -> None:
    graph = f"""g (float[2,3,6,6] x) => (float[2,4,6,6] y) <float[4,3,3,3] W, {PADS}, float[3,1,1] c> {{
        [mul] t = Mul (x, c)
        [pad] u = Pad (t, pads)
        [conv] y = Conv (u, W)
    }}"""
    becomes(graph, "Conv")


@pytest.mark.parametrize("stride", [1, 2])
def test_fuse_pad_with_conv_and_a_batch_norm_before(stride: int) -> None:
    """The Conv pads for itself; the scale passes that, the shift becomes a map where the image gets smaller."""
    graph = f"""g (float[2,3,8,8] x) => (float[2,3,{8 // stride},{8 // stride}] y)
        <float[3,3,3,3] W, {PADS}, {parameters(3)}> {{
        [bn] t = {batch_norm("x")}
        [pad] u = Pad (t, pads)
        [conv] y = Conv <strides = [{stride}, {stride}]> (u, W)
    }}"""
    if stride == 1:
        becomes(graph, "Add Conv", {"bn/Add": (RefusalId.PADDING_BLOCKS_SHIFT, "conv")})
    else:
        becomes(graph, "Conv Add")


def test_fuse_pad_with_another_value_than_0_and_a_mul_before() -> None:
    graph = f"""g (float[2,3,6,6] x) => (float[2,4,6,6] y)
        <float[4,3,3,3] W, {PADS}, float[3,1,1] c, float one = {{1}}> {{
        [mul] t = Mul (x, c)
        [pad] u = Pad (t, pads, one)
        [conv] y = Conv (u, W)
    }}"""
    stays(graph, {"mul": (RefusalId.PADDING_BLOCKS_SHIFT, "pad")})


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_fuse_pad_that_repeats_and_a_batch_norm_before(mode: str) -> None:
    graph = f"""g (float[2,3,6,6] x) => (float[2,4,6,6] y) <float[4,3,3,3] W, {PADS}, {parameters(3)}> {{
        [bn] t = {batch_norm("x")}
        [pad] u = Pad <mode = "{mode}"> (t, pads)
        [conv] y = Conv (u, W)
    }}"""
    becomes(graph, "Pad Conv")


def test_fuse_pad_with_no_pads_and_a_batch_norm_before() -> None:
    graph = f"""g (float[2,3,6,6] x) => (float[2,4,4,4] y)
        <float[4,3,3,3] W, int64[8] pads = {{0, 0, 0, 0, 0, 0, 0, 0}}, {parameters(3)}> {{
        [bn] t = {batch_norm("x")}
        [pad] u = Pad (t, pads)
        [conv] y = Conv (u, W)
    }}"""
    becomes(graph, "Conv")


def test_fuse_pad_of_channels_and_a_mul_before() -> None:
    """A channel more, of zeros: any scale would do for it, but that is not looked for."""
    graph = """g (float[2,2,6,6] x) => (float[2,4,4,4] y)
        <float[4,3,3,3] W, int64[8] pads = {0, 0, 0, 0, 0, 1, 0, 0}, float[2,1,1] c> {
        [mul] t = Mul (x, c)
        [pad] u = Pad (t, pads)
        [conv] y = Conv (u, W)
    }"""
    stays(graph, {"mul": (RefusalId.NONLINEAR_BETWEEN, "pad")})


def test_fuse_pad_with_max_pool_and_a_batch_norm_before() -> None:
    graph = f"""g (float[2,3,6,6] x) => (float[2,4,4,4] y) <float[4,3,3,3] W, {PADS}, {parameters(3, positive=True)}> {{
        [bn] t = {batch_norm("x", positive=True)}
        [pad] u = Pad (t, pads)
        [pool] w = MaxPool <kernel_shape = [3, 3]> (u)
        [conv] y = Conv (w, W)
    }}"""
    becomes(graph, "Add Pad MaxPool Conv", {"bn/Add": (RefusalId.PADDING_BLOCKS_SHIFT, "pad")})


def test_div_mul_fusion() -> None:
    """1 / x is no affine."""
    stays("g (float[2,3] x, float[2,3] z) => (float[2,3] y) <float one = {1}> { t = Div (one, x) y = Mul (t, z) }")
