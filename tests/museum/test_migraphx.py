"""The published cases of MIGraphX's ``simplify_algebra_test.cpp`` about affines and linear ops, rebuilt in ONNX.

Its graphs are integer there, and have explicit broadcasts; here they are float32 and broadcast as ONNX does. Left out:
what has no affine in it (horizontal fusion, logarithms, ``dot_slice_*``, ``conv_broadcast_*`` without a constant).
"""

import numpy as np
import pytest

from bnpass.errors import RefusalId
from tests.museum.published import becomes, stays
from tests.support.build import model, normal
from tests.support.judge import folded_and_right

STRIDED = "Conv <pads = [1, 1, 1, 1], strides = [2, 2]>"
CHANNELS = (
    "int64[1] n0 = {0}, int64[1] n2 = {2}, int64[1] n3 = {3}, int64[1] n5 = {5}, int64[1] n6 = {6}, int64[1] axis = {1}"
)
AT_OUTPUT = RefusalId.PRODUCER_IS_GRAPH_OUTPUT


# --- a product behind a Conv --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["6,1,1", "1,6,1,1"])
def test_simplify_mul_conv1_and_3(shape: str) -> None:
    graph = f"""g (float[1,4,8,8] x) => (float[1,6,4,4] y) <float[6,4,3,3] W, float[{shape}] a> {{
        [conv] t = {STRIDED} (x, W)
        [mul] y = Mul (t, a)
    }}"""
    becomes(graph, "Conv")


def test_simplify_mul_conv2_unsqueezed_constant() -> None:
    graph = f"""g (float[1,4,8,8] x) => (float[1,6,4,4] y) <float[6,4,3,3] W, float[6] a, int64[2] axes = {{1, 2}}> {{
        [conv] t = {STRIDED} (x, W)
        [unsqueeze] u = Unsqueeze (a, axes)
        [mul] y = Mul (t, u)
    }}"""
    becomes(graph, "Conv")


def test_simplify_mul_conv_expanded_constant() -> None:
    """MIGraphX sees through a broadcast of a constant; here Expand is not read as one that only rearranges."""
    graph = f"""g (float[1,4,8,8] x) => (float[1,6,4,4] y)
        <float[6,4,3,3] W, float[6,1,1] a, int64[4] shape = {{1, 6, 4, 4}}> {{
        [conv] t = {STRIDED} (x, W)
        [expand] u = Expand (a, shape)
        [mul] y = Mul (t, u)
    }}"""
    stays(graph)


def test_simplify_mul_conv_skip1_and_2_constant_that_was_broadcast() -> None:
    """All positions of a channel have one number, but that stands nowhere: MIGraphX skips it too."""
    graph = f"""g (float[1,4,8,8] x) => (float[1,6,4,4] y) {{
        [conv] t = {STRIDED} (x, W)
        [mul] y = Mul (t, a)
    }}"""
    a = np.ascontiguousarray(np.broadcast_to(normal(6, 1, 1), (6, 4, 4)))
    assert not folded_and_right(model(graph, {"W": normal(6, 4, 3, 3), "a": a})).modified


def test_simplify_mul_slice_conv1() -> None:
    """MIGraphX scales the half of the weight that the Slice takes; here a Conv that two Slices read is left alone."""
    graph = f"""g (float[1,4,5,5] x) => (float[1,3,5,5] y) <float[6,4,1,1] W, float[3,1,1] a, {CHANNELS}> {{
        [conv] t = Conv (x, W)
        [slice1] u = Slice (t, n0, n3, axis)
        [mul] w = Mul (u, a)
        [slice2] p = Slice (t, n3, n6, axis)
        [sum] y = Add (w, p)
    }}"""
    stays(graph, {"mul": (RefusalId.PRODUCER_USED_ELSEWHERE, "conv")})


def test_simplify_mul_slice_conv1_as_one_split() -> None:
    """What one node takes apart can be scaled in part."""
    graph = """g (float[1,4,5,5] x) => (float[1,3,5,5] y) <float[6,4,1,1] W, float[3,1,1] a> {
        [conv] t = Conv (x, W)
        [split] u, p = Split <axis = 1> (t)
        [mul] w = Mul (u, a)
        [sum] y = Add (w, p)
    }"""
    becomes(graph, "Conv Split Add")


def test_simplify_mul_slice_conv_one_slice() -> None:
    graph = f"""g (float[1,4,5,5] x) => (float[1,3,5,5] y) <float[6,4,1,1] W, float[3,1,1] a, {CHANNELS}> {{
        [conv] t = Conv (x, W)
        [slice] u = Slice (t, n2, n5, axis)
        [mul] y = Mul (u, a)
    }}"""
    becomes(graph, "Conv Slice")


def test_simplify_mul_slice_conv_overlapping_slice() -> None:
    graph = f"""g (float[1,4,5,5] x) => (float[1,3,5,5] y) <float[6,4,1,1] W, float[3,1,1] a, {CHANNELS}> {{
        [conv] t = Conv (x, W)
        [slice1] u = Slice (t, n0, n3, axis)
        [mul] w = Mul (u, a)
        [slice2] p = Slice (t, n2, n5, axis)
        [sum] y = Add (w, p)
    }}"""
    stays(graph, {"mul": (RefusalId.PRODUCER_USED_ELSEWHERE, "conv")})


def test_simplify_mul_slice_conv_not_all_slice() -> None:
    graph = f"""g (float[1,4,5,5] x) => (float[1,9,5,5] y)
        <float[6,4,1,1] W, float[3,1,1] a, float[1,6,5,5] map, {CHANNELS}> {{
        [conv] t = Conv (x, W)
        [slice] u = Slice (t, n0, n3, axis)
        [mul] w = Mul (u, a)
        [add] p = Add (t, map)
        [concat] y = Concat <axis = 1> (w, p)
    }}"""
    stays(graph, {"mul": (RefusalId.PRODUCER_USED_ELSEWHERE, "conv")})


def test_simplify_mul_slice_conv_horiz_fusion() -> None:
    """MIGraphX leaves one Add; as Slices all three affines stay here, as one Split none does."""
    slices = f"""g (float[1,4,5,5] x) => (float[1,3,5,5] y, float[1,3,5,5] z)
        <float[6,4,1,1] W, float[3,1,1] a1, float[3,1,1] a2, float[3,1,1] a3, {CHANNELS}> {{
        [conv] t = Conv (x, W)
        [slice1] u = Slice (t, n0, n3, axis)
        [mul] w = Mul (u, a1)
        [add1] y = Add (w, a2)
        [slice2] p = Slice (t, n3, n6, axis)
        [add2] z = Add (p, a3)
    }}"""
    used = (RefusalId.PRODUCER_USED_ELSEWHERE, "conv")
    stays(slices, {"mul": used, "add1": used, "add2": used})
    split = """g (float[1,4,5,5] x) => (float[1,3,5,5] y, float[1,3,5,5] z)
        <float[6,4,1,1] W, float[3,1,1] a1, float[3,1,1] a2, float[3,1,1] a3> {
        [conv] t = Conv (x, W)
        [split] u, p = Split <axis = 1> (t)
        [mul] w = Mul (u, a1)
        [add1] y = Add (w, a2)
        [add2] z = Add (p, a3)
    }"""
    becomes(split, "Conv Split")


# --- sums before products, Convs and dots -------------------------------------------------------------------------


def test_simplify_mul_add() -> None:
    """MIGraphX puts the product first: as many ops, so nothing is gained here."""
    scalars = """g (float[1] x) => (float[1] y) <float three = {3}, float two = {2}> {
        [add] t = Add (three, x)
        [mul] y = Mul (t, two)
    }"""
    stays(scalars)
    channels = """g (float[2,3,4,4] x) => (float[2,3,4,4] y) <float[3,1,1] three, float[3,1,1] two> {
        [add] t = Add (three, x)
        [mul] y = Mul (t, two)
    }"""
    stays(channels, {"add": (AT_OUTPUT, "mul"), "mul": (AT_OUTPUT, "mul")})


def test_simplify_mul_add_for_onnx_runtime_is_one_batch_normalization() -> None:
    graph = """g (float[2,3,4,4] x) => (float[2,3,4,4] y) <float[3,1,1] three, float[3,1,1] two> {
        [add] t = Add (three, x)
        [mul] y = Mul (t, two)
    }"""
    name = "mul/BatchNormalization"
    becomes(graph, "BatchNormalization", {name: (AT_OUTPUT, name)}, target="onnxruntime-cpu")


def test_simplify_dot_add_of_a_matrix() -> None:
    """MIGraphX multiplies the constant matrix, and adds it behind: as many ops."""
    graph = """g (float[2,2] x) => (float[2,2] y) <float[2,2] one, float[2,2] two> {
        [add] t = Add (one, x)
        [dot] y = MatMul (t, two)
    }"""
    stays(graph)


def test_simplify_dot_add_of_a_matrix_before_gemm() -> None:
    """The product of the constants could be the C of the Gemm; here a constant over two axes is no affine."""
    graph = """g (float[2,2] x) => (float[2,2] y) <float[2,2] one, float[2,2] two> {
        [add] t = Add (one, x)
        [dot] y = Gemm (t, two)
    }"""
    stays(graph)


def test_simplify_dot_add_of_a_row() -> None:
    graph = """g (float[2,2] x) => (float[2,2] y) <float[2] one, float[2,2] two> {
        [add] t = Add (one, x)
        [dot] y = Gemm (t, two)
    }"""
    becomes(graph, "Gemm")
    stays(graph.replace("Gemm", "MatMul"))
    becomes(graph.replace("Gemm", "MatMul"), "MatMul Add", target="onnxruntime-cpu")


def test_simplify_conv_add_of_an_image() -> None:
    """MIGraphX convolves the constant image, and adds it behind; here it is no affine."""
    graph = """g (float[1,3,8,8] x) => (float[1,4,6,6] y) <float[1,3,8,8] c, float[4,3,3,3] w> {
        [add] t = Add (c, x)
        [conv] y = Conv (t, w)
    }"""
    stays(graph)


@pytest.mark.parametrize("c", [(3, 1, 1), ()], ids=str)
def test_simplify_conv_add_of_channels(c: tuple[int, ...]) -> None:
    graph = """g (float[1,3,8,8] x) => (float[1,4,6,6] y) {
        [add] t = Add (c, x)
        [conv] y = Conv (t, w)
    }"""
    assert folded_and_right(model(graph, {"c": normal(*c), "w": normal(4, 3, 3, 3)})).ops == ["Conv"]


def test_simplify_conv_add_of_channels_before_padding() -> None:
    """MIGraphX has a constant map behind every Conv; here only behind one that gives fewer numbers than it reads."""
    widening = """g (float[1,3,8,8] x) => (float[1,4,8,8] y) <float[3,1,1] c, float[4,3,3,3] w> {
        [add] t = Add (c, x)
        [conv] y = Conv <pads = [1, 1, 1, 1]> (t, w)
    }"""
    stays(widening, {"add": (RefusalId.PADDING_BLOCKS_SHIFT, "conv")})
    narrowing = """g (float[1,3,8,8] x) => (float[1,2,8,8] y)
        <float[3] s, float[3] b, float[3] m, float[3] v, float[2,3,3,3] w> {
        [bn] t = BatchNormalization (x, s, b, m, v)
        [conv] y = Conv <pads = [1, 1, 1, 1]> (t, w)
    }"""
    becomes(narrowing, "Conv Add")


# --- dots ---------------------------------------------------------------------------------------------------------

LEFT = "g (float[2,8,4] x) => (float[2,8,6] y) <float[{shape}] c, float[2,4,6] B>"
RIGHT = "g (float[2,4,6] x) => (float[2,8,6] y) <float[{shape}] c, float[2,8,4] A>"


def test_mul_dot_a() -> None:
    becomes(LEFT.format(shape="1,1,4") + "{ [mul] t = Mul (x, c) [dot] y = MatMul (t, B) }", "MatMul")


def test_mul_dot_b() -> None:
    becomes(RIGHT.format(shape="1,4,1") + "{ [mul] t = Mul (x, c) [dot] y = MatMul (A, t) }", "MatMul")


def test_mul_dot_a_not_k_broadcast() -> None:
    graph = LEFT.format(shape="1,8,1") + "{ [mul] t = Mul (x, c) [dot] y = MatMul (t, B) }"
    stays(graph, {"mul": (RefusalId.AXIS_NOT_PROVABLE, "dot")})


def test_mul_dot_b_not_k_broadcast() -> None:
    graph = RIGHT.format(shape="1,1,6") + "{ [mul] t = Mul (x, c) [dot] y = MatMul (A, t) }"
    stays(graph, {"mul": (RefusalId.AXIS_NOT_PROVABLE, "dot")})


@pytest.mark.parametrize(("scales", "size"), [("8,1", 16), ("8,16", 1)], ids=["one row each", "one each"])
def test_mul_dot_a_int4_dq(scales: str, size: int) -> None:
    graph = f"""g (float[1,3,16] x) => (float[1,3,8] y) <float[16] c, int4[8,16] Q, float[{scales}] gamma> {{
        [mul] t = Mul (x, c)
        [dq] u = DequantizeLinear <axis = 1, block_size = {size}> (Q, gamma)
        [transpose] w = Transpose <perm = [1, 0]> (u)
        [dot] y = MatMul (t, w)
    }}"""
    stays(graph, {"mul": (RefusalId.QUANTIZED_WEIGHT, "dot")}, opset=21)


def test_mul_dot_a_int4_dq_concat() -> None:
    graph = """g (float[1,3,16] x) => (float[1,3,8] y) <float[16] c, int4[16,4] Q, int4[16,4] R, float[4] gamma> {
        [mul] t = Mul (x, c)
        [dq1] u = DequantizeLinear <axis = 1> (Q, gamma)
        [dq2] w = DequantizeLinear <axis = 1> (R, gamma)
        [concat] p = Concat <axis = 1> (u, w)
        [dot] y = MatMul (t, p)
    }"""
    stays(graph, {"mul": (RefusalId.NON_CONSTANT_PARAMETER, "dot")}, opset=21)


def test_dot_mul_a_int4_dq() -> None:
    """Behind the dot, the scales of the columns take it."""
    graph = """g (float[1,3,16] x) => (float[1,3,8] y) <float[8] c, int4[16,8] Q, float[8] gamma> {
        [dq] u = DequantizeLinear <axis = 1> (Q, gamma)
        [dot] t = MatMul (x, u)
        [mul] y = Mul (t, c)
    }"""
    becomes(graph, "DequantizeLinear MatMul", opset=21)


def test_dot_mul_a() -> None:
    becomes(LEFT.format(shape="1,1,6") + "{ [dot] t = MatMul (x, B) [mul] y = Mul (t, c) }", "MatMul")


def test_dot_mul_a_used_twice() -> None:
    nodes = "{ [dot] t = MatMul (x, B) [mul] u = Mul (t, c) [relu] w = Relu (u) [sum] y = Add (t, w) }"
    stays(LEFT.format(shape="1,1,6") + nodes, {"mul": (RefusalId.PRODUCER_USED_ELSEWHERE, "dot")})


def test_dot_mul_a_non_const() -> None:
    """The rows are those of the operand that is computed."""
    graph = LEFT.format(shape="1,8,1") + "{ [dot] t = MatMul (x, B) [mul] y = Mul (t, c) }"
    stays(graph, {"mul": (RefusalId.AXIS_NOT_PROVABLE, "dot")})


def test_dot_mul_b() -> None:
    becomes(RIGHT.format(shape="1,8,1") + "{ [dot] t = MatMul (A, x) [mul] y = Mul (t, c) }", "MatMul")


def test_dot_mul_b_non_const() -> None:
    graph = RIGHT.format(shape="1,1,6") + "{ [dot] t = MatMul (A, x) [mul] y = Mul (t, c) }"
    stays(graph, {"mul": (RefusalId.AXIS_NOT_PROVABLE, "dot")})


def test_dot_slice_b_with_a_mul_behind() -> None:
    graph = """g (float[2,8,4] x) => (float[2,8,3] y)
        <float[1,1,3] c, float[2,4,6] B, int64[1] n3 = {3}, int64[1] n6 = {6}, int64[1] axis = {2}> {
        [dot] t = MatMul (x, B)
        [slice] u = Slice (t, n3, n6, axis)
        [mul] y = Mul (u, c)
    }"""
    becomes(graph, "MatMul Slice")


# --- concat and split ---------------------------------------------------------------------------------------------


def test_simplify_concat_add_relu() -> None:
    """MIGraphX makes one Add and one Relu of two each; they add and clip as many numbers, so nothing is gained here."""
    graph = """g (float[2,3,4,5] x, float[2,3,4,5] z) => (float[2,6,4,5] y) <float[3,1,1] one, float[3,1,1] two> {
        [add1] t = Add (x, one)
        [relu1] u = Relu (t)
        [add2] w = Add (z, two)
        [relu2] p = Relu (w)
        [concat] y = Concat <axis = 1> (u, p)
    }"""
    stays(graph, {"add1": (AT_OUTPUT, "concat"), "add2": (AT_OUTPUT, "concat")})


def test_simplify_concat_add_relu_before_a_conv() -> None:
    """A Conv could take both shifts, but Max in place of Relu costs as much as the Add."""
    graph = """g (float[2,3,4,5] x, float[2,3,4,5] z) => (float[2,2,4,5] y)
        <float[3,1,1] one, float[3,1,1] two, float[2,6,1,1] W> {
        [add1] t = Add (x, one)
        [relu1] u = Relu (t)
        [add2] w = Add (z, two)
        [relu2] p = Relu (w)
        [concat] q = Concat <axis = 1> (u, p)
        [conv] y = Conv (q, W)
    }"""
    stays(graph)


def test_simplify_concat_mul_broadcast_diff_size() -> None:
    graph = """g (float[1,3,5,8] x, float[1,3,7,8] z) => (float[1,3,12,8] y) <float[8] one, float[8] two> {
        [mul1] t = Mul (x, one)
        [mul2] u = Mul (z, two)
        [concat] y = Concat <axis = 2> (t, u)
    }"""
    stays(graph, {"mul1": (AT_OUTPUT, "concat"), "mul2": (AT_OUTPUT, "concat")})


def test_simplify_concat_mul_broadcast_diff_size_before_a_dot() -> None:
    """Rows that owe different scales cannot share one weight."""
    graph = """g (float[1,3,5,8] x, float[1,3,7,8] z) => (float[1,3,12,4] y)
        <float[8] one, float[8] two, float[8,4] W> {
        [mul1] t = Mul (x, one)
        [mul2] u = Mul (z, two)
        [concat] w = Concat <axis = 2> (t, u)
        [dot] y = MatMul (w, W)
    }"""
    stays(graph, {"mul1": (RefusalId.AXIS_NOT_PROVABLE, "dot"), "mul2": (RefusalId.AXIS_NOT_PROVABLE, "dot")})


def test_simplify_split_mul_broadcast_diff_size() -> None:
    graph = """g (float[1,3,12,8] x) => (float[1,3,5,8] y, float[1,3,7,8] z)
        <float[8] one, float[8] two, int64[2] parts = {5, 7}> {
        [split] t, u = Split <axis = 2> (x, parts)
        [mul1] y = Mul (t, one)
        [mul2] z = Mul (u, two)
    }"""
    stays(graph, {"mul1": (AT_OUTPUT, "mul1"), "mul2": (AT_OUTPUT, "mul2")})


def test_simplify_split_add_relu() -> None:
    graph = """g (float[3,2,4] x) => (float[3,1,4] y) <float one = {1}, float two = {2}> {
        [split] t, u = Split <axis = 1> (x)
        [add1] w = Add (t, one)
        [relu1] p = Relu (w)
        [add2] q = Add (u, two)
        [relu2] r = Relu (q)
        [sum] y = Add (p, r)
    }"""
    stays(graph)


def test_conv_concat_with_a_mul_behind() -> None:
    """MIGraphX makes one grouped Conv of the two; the affine goes into both of them here."""
    graph = """g (float[1,8,4,4] x, float[1,8,4,4] z) => (float[1,4,2,2] y)
        <float[2,4,3,3] W, float[2,4,3,3] W2, float[4,1,1] c> {
        [conv1] t = Conv <group = 2> (x, W)
        [conv2] u = Conv <group = 2> (z, W2)
        [concat] w = Concat <axis = 1> (t, u)
        [mul] p = Mul (w, c)
        [tanh] y = Tanh (p)
    }"""
    becomes(graph, "Conv Conv Concat Tanh")


@pytest.mark.parametrize("strides", ["1, 1", "2, 2"])
def test_simplify_add_conv1_and_1x1_diff_strides_with_a_mul_behind(strides: str) -> None:
    """MIGraphX makes one Conv of two that read different values; the affine goes into both of them here."""
    size = "8,8" if strides == "2, 2" else "4,4"
    graph = f"""g (float[1,4,4,4] x, float[1,4,{size}] z) => (float[1,5,4,4] y)
        <float[5,4,1,1] W, float[5,4,1,1] W2, float[5,1,1] c> {{
        [conv1] t = Conv (x, W)
        [conv2] u = Conv <strides = [{strides}]> (z, W2)
        [sum] w = Add (t, u)
        [mul] y = Mul (w, c)
    }}"""
    becomes(graph, "Conv Conv Add")


# --- sums of sums, and constants that do nothing ------------------------------------------------------------------


def test_simplify_add1_and_2() -> None:
    """MIGraphX adds the constants to each other, one op less; here shifts do not meet through a sum."""
    scalars = """g (float[1] x, float[1] z) => (float[1] y) <float one = {1}, float two = {2}> {
        [add1] t = Add (x, one)
        [add2] u = Add (two, z)
        [sum] y = Add (t, u)
    }"""
    stays(scalars)


def test_simplify_add3() -> None:
    graph = """g (float[1] x) => (float[1] y) <float one = {1}, float two = {2}> {
        [add1] t = Add (one, x)
        [add2] u = Add (one, two)
        [sum] y = Add (t, u)
    }"""
    becomes(graph, "Add")


def test_simplify_add4() -> None:
    """A case that MIGraphX has, and does not run."""
    graph = """g (float[1,2,3,3] x, float[1,2,3,3] z) => (float[1,2,3,3] y) <float[2,1,1] one, float[2,1,1] two> {
        [add1] t = Add (one, x)
        [sum] u = Add (t, z)
        [add2] y = Add (u, two)
    }"""
    stays(graph, {"add1": (RefusalId.NONLINEAR_BETWEEN, "add2"), "add2": (RefusalId.NONLINEAR_BETWEEN, "add1")})


def test_simplify_add_broadcast1() -> None:
    graph = """g (float[1,2,3,3] x, float[1,2,3,3] z) => (float[1,2,3,3] y) <float[2,1,1] one, float[2,1,1] two> {
        [add1] t = Add (x, one)
        [add2] u = Add (z, two)
        [sum] y = Add (t, u)
    }"""
    stays(graph, {"add1": (AT_OUTPUT, "sum"), "add2": (AT_OUTPUT, "sum")})


def test_simplify_add_broadcast1_before_a_conv() -> None:
    graph = """g (float[1,2,3,3] x, float[1,2,3,3] z) => (float[1,2,3,3] y)
        <float[2,1,1] one, float[2,1,1] two, float[2,2,1,1] W> {
        [add1] t = Add (x, one)
        [add2] u = Add (z, two)
        [sum] w = Add (t, u)
        [conv] y = Conv (w, W)
    }"""
    becomes(graph, "Add Conv")


def _broadcast_values(shape: str) -> str:
    return f"""g (float[{shape}] x, float[24,1,1] z) => (float[1,24,5,5] y)
        <int64[3] up = {{24, 1, 1}}, int64[4] whole = {{1, 24, 5, 5}}> {{
        [reshape] t = Reshape (x, up)
        [expand1] u = Expand (t, whole)
        [expand2] w = Expand (z, whole)
        [sum] y = Add (u, w)
    }}"""


@pytest.mark.parametrize("shape", ["24", "1,24", "1,24,1,1"])
def test_simplify_inner_broadcast_of_values(shape: str) -> None:
    """Two computed vectors, each expanded: there is no affine in it, however MIGraphX orders it."""
    stays(_broadcast_values(shape))


def test_simplify_inner_broadcast_of_values_of_the_same_shape() -> None:
    """A Reshape to the shape that is there goes."""
    becomes(_broadcast_values("24,1,1"), "Expand Expand Add")


@pytest.mark.parametrize("op_type", ["Add", "Mul"])
def test_simplify_inner_broadcast_of_a_constant(op_type: str) -> None:
    """The op belongs before the broadcast, and there into the Conv."""
    graph = f"""g (float[1,24,1,1] x) => (float[1,24,5,5] y)
        <float[24,24,1,1] W, float[24,1,1] c, int64[4] whole = {{1, 24, 5, 5}}> {{
        [conv] t = Conv (x, W)
        [expand] u = Expand (t, whole)
        [op] y = {op_type} (u, c)
    }}"""
    becomes(graph, "Conv Expand")


def test_conv_broadcast_input_with_a_mul_before() -> None:
    graph = """g (float[1,6,1,1] x) => (float[1,6,2,2] y)
        <float[6,6,3,3] W, float[6,1,1] c, int64[4] whole = {1, 6, 4, 4}> {
        [mul] t = Mul (x, c)
        [expand] u = Expand (t, whole)
        [conv] y = Conv (u, W)
    }"""
    becomes(graph, "Expand Conv")


UNIT = {"Mul": 1.0, "Div": 1.0, "Add": 0.0, "Sub": 0.0}


@pytest.mark.parametrize("op_type", UNIT)
@pytest.mark.parametrize("shape", [(), (3, 1)], ids=str)
def test_simplify_unit_mult_unit_div_zero_add_and_sub_zero_const(op_type: str, shape: tuple[int, ...]) -> None:
    graph = f"g (float[2,3,4] x) => (float[2,3,4] y) {{ t = Sigmoid (x) u = {op_type} (t, c) y = Sigmoid (u) }}"
    built = model(graph, {"c": np.full(shape, UNIT[op_type], np.float32)})
    assert folded_and_right(built).ops == ["Sigmoid", "Sigmoid"]


@pytest.mark.parametrize("op_type", ["Mul", "Div"])
def test_simplify_neg_unit_mult_const(op_type: str) -> None:
    """MIGraphX writes Neg, which is one op as well."""
    graph = f"g (float[2,3,4] x) => (float[2,3,4] y) {{ t = Sigmoid (x) u = {op_type} (t, c) y = Sigmoid (u) }}"
    assert not folded_and_right(model(graph, {"c": np.full((3, 1), -1, np.float32)})).modified


def test_simplify_sub_neg_zero_const() -> None:
    """0 - x is Neg: one op, as it was; a Conv takes it."""
    graph = "g (float[2,3,4] x) => (float[2,3,4] y) { t = Sigmoid (x) u = Sub (c, t) y = Sigmoid (u) }"
    assert not folded_and_right(model(graph, {"c": np.zeros((3, 1), np.float32)})).modified
    behind = "g (float[2,3,4] x) => (float[2,3,4] y) { t = Conv (x, W) y = Sub (c, t) }"
    constants = {"c": np.zeros((3, 1), np.float32), "W": normal(3, 3, 1)}
    assert folded_and_right(model(behind, constants)).ops == ["Conv"]


def test_simplify_zero_mult_const() -> None:
    """MIGraphX writes 0, which NaN and infinity are not; here it stays."""
    graph = "g (float[2,3,4] x) => (float[2,3,4] y) { t = Sigmoid (x) u = Mul (t, c) y = Sigmoid (u) }"
    assert not folded_and_right(model(graph, {"c": np.zeros((3, 1), np.float32)})).modified


def test_simplify_div_const() -> None:
    """MIGraphX multiplies by the rounded inverse; here a Div that stays is divided by what it was."""
    graph = "g (float[2,3,4] x) => (float[2,3,4] y) { t = Sigmoid (x) u = Div (t, c) y = Sigmoid (u) }"
    assert not folded_and_right(model(graph, {"c": np.full((3, 1), 3, np.float32)})).modified
