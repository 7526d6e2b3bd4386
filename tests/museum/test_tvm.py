"""The published cases of TVM's ``test_pass_fold_scale_axis.py`` (Relay), rebuilt in ONNX.

TVM moves scales alone and leaves shifts behind as Add; here both move. Its blocked layouts (NCHWc) are one Transpose
and one Reshape in ONNX; channels last stands between Transposes. Its ``_let_fail`` is about a let binding, which ONNX
does not have: the value that two read is here, by its name.
"""

import numpy as np
import pytest

from bnpass.errors import RefusalId
from tests.golden.pairs import read
from tests.museum.published import becomes, stays
from tests.support.build import model, normal
from tests.support.judge import folded_and_right

PADDED = "Conv <pads = [1, 1, 1, 1]>"
DEPTHWISE = "Conv <pads = [1, 1, 1, 1], group = 3>"
TO_NCHW = "Transpose <perm = [0, 3, 1, 2]>"
TO_NHWC = "Transpose <perm = [0, 2, 3, 1]>"
VOLUME = "pads = [1, 1, 1, 1, 1, 1]"


# --- forward ------------------------------------------------------------------------------------------------------


def test_fold_fwd_simple() -> None:
    """The shift, too: the constant map behind the Conv has half the channels of the Add before it."""
    graph = f"""g (float[2,4,10,10] x) => (float[2,2,10,10] y) <float[4,1,1] gamma, float[4,1,1] c, float[2,4,3,3] W> {{
        [mul] t = Mul (x, gamma)
        [relu] u = Relu (t)
        [add] w = Add (u, c)
        [conv] y = {PADDED} (w, W)
    }}"""
    becomes(graph, "Relu Conv Add")


def test_fold_fwd_simple_8_channels() -> None:
    """TVM divides the Add that stays; here a scale does not pass an affine that stays."""
    graph = f"""g (float[2,4,10,10] x) => (float[2,8,10,10] y) <float[4,1,1] gamma, float[4,1,1] c, float[8,4,3,3] W> {{
        [mul] t = Mul (x, gamma)
        [relu] u = Relu (t)
        [add] w = Add (u, c)
        [conv] y = {PADDED} (w, W)
    }}"""
    stays(
        graph,
        {"mul": (RefusalId.NONLINEAR_BETWEEN, "add"), "add": (RefusalId.NONLINEAR_BETWEEN, "mul")},
    )


def test_fold_fwd_simple_without_padding() -> None:
    graph = """g (float[2,4,10,10] x) => (float[2,8,8,8] y) <float[4,1,1] gamma, float[4,1,1] c, float[8,4,3,3] W> {
        [mul] t = Mul (x, gamma)
        [relu] u = Relu (t)
        [add] w = Add (u, c)
        [conv] y = Conv (w, W)
    }"""
    becomes(graph, "Relu Conv")


def test_fold_fwd_simple_bias_at_run_time() -> None:
    """TVM divides it at run time, one more op; here it stays."""
    graph = f"""g (float[2,4,10,10] x, float[4,1,1] k) => (float[2,2,10,10] y) <float[4,1,1] gamma, float[2,4,3,3] W> {{
        [mul] t = Mul (x, gamma)
        [relu] u = Relu (t)
        [add] w = Add (u, k)
        [conv] y = {PADDED} (w, W)
    }}"""
    stays(graph, {"mul": (RefusalId.NO_LINEAR_NEIGHBOUR, "k")})


def test_fold_fwd_simple_blocked() -> None:
    """TVM has a rule for blocked axes; here a constant over two axes is no per-channel affine."""
    graph = f"""g (float[2,2,10,10,2] x) => (float[2,8,10,10] y)
        <float[1,2,1,1,2] gamma, float[1,2,1,1,2] c, float[8,4,3,3] W, int64[4] whole = {{2, 4, 10, 10}}> {{
        [mul] t = Mul (x, gamma)
        [relu] u = Relu (t)
        [add] w = Add (u, c)
        [order] p = Transpose <perm = [0, 1, 4, 2, 3]> (w)
        [join] q = Reshape (p, whole)
        [conv] y = {PADDED} (q, W)
    }}"""
    stays(graph)


def test_fold_fwd_dual_path() -> None:
    """TVM folds: both Convs take the scale, the Sub before them is divided; here a scale does not pass that Sub."""
    graph = f"""g (float[2,4,10,3] x) => (float[2,4,10,3] y) <float[3] gamma, float[3] c, float[3,1,3,3] W> {{
        [mul] t = Mul (gamma, x)
        [relu] u = Relu (t)
        [sub] w = Sub (u, c)
        [in1] p = {TO_NCHW} (w)
        [conv1] q = {DEPTHWISE} (p, W)
        [out1] r = {TO_NHWC} (q)
        [in2] k = {TO_NCHW} (w)
        [conv2] l = {DEPTHWISE} (k, W)
        [out2] n = {TO_NHWC} (l)
        [sum] y = Add (r, n)
    }}"""
    stays(
        graph,
        {"mul": (RefusalId.NONLINEAR_BETWEEN, "sub"), "sub": (RefusalId.NONLINEAR_BETWEEN, "mul")},
    )


def test_fold_fwd_dual_path_without_the_shift() -> None:
    """One clone of the weight is enough: both Convs read it."""
    graph = f"""g (float[2,4,10,3] x) => (float[2,4,10,3] y) <float[3] gamma, float[3,1,3,3] W> {{
        [mul] t = Mul (gamma, x)
        [relu] w = Relu (t)
        [in1] p = {TO_NCHW} (w)
        [conv1] q = {DEPTHWISE} (p, W)
        [out1] r = {TO_NHWC} (q)
        [in2] k = {TO_NCHW} (w)
        [conv2] l = {DEPTHWISE} (k, W)
        [out2] n = {TO_NHWC} (l)
        [sum] y = Add (r, n)
    }}"""
    becomes(graph, "Relu Transpose Conv Transpose Transpose Conv Transpose Add")


def test_fold_fwd_dual_path_without_padding() -> None:
    """Both biases take the shift."""
    graph = f"""g (float[2,6,10,3] x) => (float[2,3,4,8] y, float[2,3,4,8] z)
        <float[3] gamma, float[3] c, float[3,1,3,3] W> {{
        [mul] t = Mul (gamma, x)
        [relu] u = Relu (t)
        [sub] w = Sub (u, c)
        [in] p = {TO_NCHW} (w)
        [conv1] y = Conv <group = 3> (p, W)
        [conv2] z = Conv <group = 3> (p, W)
    }}"""
    becomes(graph, "Relu Transpose Conv Conv")


def test_fold_fwd_fail() -> None:
    """The scaled value goes around the Conv, to an output."""
    graph = f"""g (float[2,11,10,4] x) => (float[2,11,10,4] y) <float[4] gamma, float[4,4,3,3] W> {{
        [mul] t = Mul (x, gamma)
        [leaky] u = LeakyRelu <alpha = 0.1> (t)
        [in] p = {TO_NCHW} (u)
        [conv] q = {PADDED} (p, W)
        [out] r = {TO_NHWC} (q)
        [sum] y = Add (r, t)
    }}"""
    stays(graph, {"mul": (RefusalId.PRODUCER_IS_GRAPH_OUTPUT, "sum")})


def test_fold_fwd_relu_fail_scale_at_run_time() -> None:
    graph = f"""g (float[2,11,10,4] x, float[4] k) => (float[2,11,10,4] y) <float[4,4,3,3] W> {{
        [mul] t = Mul (x, k)
        [relu] u = Relu (t)
        [in] p = {TO_NCHW} (u)
        [conv] q = {PADDED} (p, W)
        [out] r = {TO_NHWC} (q)
        [sum] y = Add (r, t)
    }}"""
    stays(graph)  # what is computed is no affine, and is not reported


def test_fold_fwd_relu_fail_negative_scale() -> None:
    graph = f"""g (float[2,11,10,4] x) => (float[2,11,10,4] y)
        <float[4] c = {{-0.5, -0.75, -0.625, -1.0}}, float[4,4,3,3] W> {{
        [mul] t = Mul (x, c)
        [relu] u = Relu (t)
        [in] p = {TO_NCHW} (u)
        [conv] q = {PADDED} (p, W)
        [out] r = {TO_NHWC} (q)
        [sum] y = Add (r, t)
    }}"""
    stays(graph, {"mul": (RefusalId.PRODUCER_IS_GRAPH_OUTPUT, "sum")})


def test_fold_fwd_relu_fail_negative_scale_and_nobody_else_reads() -> None:
    """A negative scale turns Relu into Min with 0, which is as dear as the Mul."""
    graph = f"""g (float[2,4,10,10] x) => (float[2,4,10,10] y)
        <float[4,1,1] c = {{-0.5, -0.75, -0.625, -1.0}}, float[4,4,3,3] W> {{
        [mul] t = Mul (x, c)
        [relu] u = Relu (t)
        [conv] y = {PADDED} (u, W)
    }}"""
    stays(graph)


def test_fold_fwd_let_fail() -> None:
    graph = f"""g (float[2,11,10,4] x) => (float[2,11,10,4] y) <float[4] gamma, float[4] c, float[4,4,3,3] W> {{
        [mul] t = Mul (x, gamma)
        [relu] u = Relu (t)
        [add] w = Add (u, c)
        [in] p = {TO_NCHW} (w)
        [conv] q = {PADDED} (p, W)
        [out] r = {TO_NHWC} (q)
        [sum] y = Add (r, w)
    }}"""
    stays(
        graph,
        {"mul": (RefusalId.NONLINEAR_BETWEEN, "add"), "add": (RefusalId.NONLINEAR_BETWEEN, "mul")},
    )


def test_fold_fwd_negative_scale() -> None:
    graph = f"""g (float[2,4,10,10] x) => (float[2,4,10,10] y)
        <float[4,1,1] c = {{-0.5, -0.75, -0.625, -1.0}}, float[4,4,3,3] W> {{
        [mul] t = Mul (x, c)
        [conv] y = {PADDED} (t, W)
    }}"""
    result = becomes(graph, "Conv")
    before = read(graph).graph.initializers["W"].const_value
    assert before is not None
    factors = np.array([-0.5, -0.75, -0.625, -1.0])[:, None, None]
    np.testing.assert_array_equal(result.constant("W"), (before.numpy().astype(float) * factors).astype(np.float32))


@pytest.mark.parametrize(("rows", "k", "columns"), [(2, 4, 3), (3, 5, 4)])
def test_fold_fwd_dense(rows: int, k: int, columns: int) -> None:
    """The shift as well: Gemm has a bias."""
    graph = f"""g (float[{rows},{k}] x) => (float[{rows},{columns}] y)
        <float[{k}] gamma, float[{k}] c, float[{columns},{k}] W> {{
        [mul] t = Mul (x, gamma)
        [relu] u = Relu (t)
        [add] w = Add (u, c)
        [dense] y = Gemm <transB = 1> (w, W)
    }}"""
    becomes(graph, "Relu Gemm")


@pytest.mark.parametrize(("rows", "k", "columns"), [(2, 4, 3), (3, 5, 4)])
def test_fold_fwd_dense_as_matmul(rows: int, k: int, columns: int) -> None:
    """The Add moves behind the product, where runtimes fuse it."""
    graph = f"""g (float[{rows},{k}] x) => (float[{rows},{columns}] y)
        <float[{k}] gamma, float[{k}] c, float[{k},{columns}] W> {{
        [mul] t = Mul (x, gamma)
        [relu] u = Relu (t)
        [add] w = Add (u, c)
        [dense] y = MatMul (w, W)
    }}"""
    becomes(graph, "Relu MatMul Add")


def test_fold_fwd_conv3d() -> None:
    graph = f"""g (float[2,4,5,5,5] x) => (float[2,2,5,5,5] y)
        <float[4,1,1,1] gamma, float[4,1,1,1] c, float[2,4,3,3,3] W> {{
        [mul] t = Mul (x, gamma)
        [relu] u = Relu (t)
        [add] w = Add (u, c)
        [conv] y = Conv <{VOLUME}> (w, W)
    }}"""
    becomes(graph, "Relu Conv Add")


# --- backward -----------------------------------------------------------------------------------------------------


def test_fold_bwd_simple() -> None:
    graph = f"""g (float[2,4,10,10] x) => (float[2,8,10,10] y) <float[8,1,1] gamma, float[8,1,1] c, float[8,4,3,3] W> {{
        [conv] t = {PADDED} (x, W)
        [add] u = Add (t, c)
        [relu] w = Relu (u)
        [mul] y = Mul (w, gamma)
    }}"""
    becomes(graph, "Conv Relu")


def test_fold_bwd_simple_blocked() -> None:
    """As above: a constant over two axes is no per-channel affine, so the Mul stays."""
    graph = f"""g (float[2,4,10,10] x) => (float[2,4,10,10,2] y)
        <float[1,4,1,1,2] gamma, float[8,1,1] c, float[8,4,3,3] W, int64[5] blocks = {{2, 4, 2, 10, 10}}> {{
        [conv] t = {PADDED} (x, W)
        [add] u = Add (t, c)
        [relu] w = Relu (u)
        [split] p = Reshape (w, blocks)
        [order] q = Transpose <perm = [0, 1, 3, 4, 2]> (p)
        [mul] y = Mul (q, gamma)
    }}"""
    becomes(graph, "Conv Relu Reshape Transpose Mul")


def test_fold_bwd_dual_path() -> None:
    graph = f"""g (float[2,4,10,10] x) => (float[2,8,10,10] y) <float[8,1,1] gamma, float[8,4,3,3] W> {{
        [conv1] t = {PADDED} (x, W)
        [relu1] u = Relu (t)
        [conv2] w = {PADDED} (x, W)
        [relu2] p = Relu (w)
        [sum] q = Add (u, p)
        [mul] y = Mul (q, gamma)
    }}"""
    becomes(graph, "Conv Relu Conv Relu Add")


def test_fold_bwd_simple_constant() -> None:
    graph = f"""g (float[1,3,20,20] x) => (float[1,16,20,20] y)
        <float[16,1,1] c, float[16,3,3,3] W, float two = {{2}}> {{
        [conv] t = {PADDED} (x, W)
        [add] u = Add (t, c)
        [relu] w = Relu (u)
        [mul] y = Mul (w, two)
    }}"""
    becomes(graph, "Conv Relu")


def test_fold_bwd_dual_consumer() -> None:
    """All three Convs have one weight and one scale."""
    graph = f"""g (float[2,4,10,10] x) => (float[2,4,10,10] y) <float[4,1,1] gamma, float[4,4,3,3] W> {{
        [conv0] a = {PADDED} (x, W)
        [mul0] b = Mul (a, gamma)
        [relu0] c = Relu (b)
        [conv1] d = {PADDED} (c, W)
        [mul1] e = Mul (d, gamma)
        [relu1] f = Relu (e)
        [conv2] h = {PADDED} (c, W)
        [mul2] i = Mul (h, gamma)
        [relu2] j = Relu (i)
        [sum] y = Add (f, j)
    }}"""
    becomes(graph, "Conv Relu Conv Relu Conv Relu Add")


def test_fold_bwd_fail_1_axes_of_the_two_paths_differ() -> None:
    """The second path has its channels where the first has its batch, and both are 4 long."""
    graph = f"""g (float[4,4,10,10] x) => (float[4,4,10,10] y) <float[4,1,1] gamma, float[4,4,3,3] W> {{
        [conv1] t = {PADDED} (x, W)
        [relu1] u = Relu (t)
        [conv2] w = {PADDED} (x, W)
        [swap] p = Transpose <perm = [1, 0, 2, 3]> (w)
        [relu2] q = Relu (p)
        [sum] r = Add (u, q)
        [mul] y = Mul (r, gamma)
    }}"""
    stays(graph, {"mul": (RefusalId.AXIS_NOT_PROVABLE, "conv2")})


def test_fold_bwd_fail_2_another_reads_the_conv() -> None:
    graph = f"""g (float[4,4,10,10] x) => (float[4,4,10,10] y) <float[4,1,1] gamma, float[4,4,3,3] W> {{
        [conv] t = {PADDED} (x, W)
        [relu] u = Relu (t)
        [mul] w = Mul (t, gamma)
        [sum] y = Add (w, u)
    }}"""
    stays(graph, {"mul": (RefusalId.PRODUCER_USED_ELSEWHERE, "conv")})


def test_fold_bwd_relu_fail_as_it_is_published() -> None:
    """The published test scales the input, not what Relu gives."""
    graph = f"""g (float[4,4,10,10] x) => (float[4,4,10,10] y)
        <float[4,1,1] c = {{-0.5, -0.75, -0.625, -1.0}}, float[4,4,3,3] W> {{
        [conv] t = {PADDED} (x, W)
        [relu] u = Relu (t)
        [mul] y = Mul (x, c)
    }}"""
    stays(graph, {"mul": (RefusalId.PRODUCER_USED_ELSEWHERE, "x")})


def test_fold_bwd_relu_fail_scale_at_run_time() -> None:
    graph = f"""g (float[4,4,10,10] x, float[4,1,1] k) => (float[4,4,10,10] y) <float[4,4,3,3] W> {{
        [conv] t = {PADDED} (x, W)
        [relu] u = Relu (t)
        [mul] y = Mul (u, k)
    }}"""
    stays(graph)


def test_fold_bwd_relu_fail_negative_scale() -> None:
    """Min with 0 in place of Relu would cost what the Mul costs."""
    graph = f"""g (float[4,4,10,10] x) => (float[4,4,10,10] y)
        <float[4,1,1] c = {{-0.5, -0.75, -0.625, -1.0}}, float[4,4,3,3] W> {{
        [conv] t = {PADDED} (x, W)
        [relu] u = Relu (t)
        [mul] y = Mul (u, c)
    }}"""
    stays(graph)


def test_fold_bwd_relu_fail_one_negative_scale_among_positive_ones() -> None:
    graph = f"""g (float[4,4,10,10] x) => (float[4,4,10,10] y)
        <float[4,1,1] c = {{0.5, -0.75, 0.625, 1.0}}, float[4,4,3,3] W> {{
        [conv] t = {PADDED} (x, W)
        [relu] u = Relu (t)
        [mul] y = Mul (u, c)
    }}"""
    stays(graph)


def test_fold_bwd_negative_scale() -> None:
    graph = f"""g (float[2,4,10,10] x) => (float[2,8,10,10] y) {{
        [conv] t = {PADDED} (x, W)
        [mul] y = Mul (t, c)
    }}"""
    c = -np.linspace(0.5, 1, 8, dtype=np.float32).reshape(8, 1, 1)
    assert folded_and_right(model(graph, {"W": normal(8, 4, 3, 3), "c": c})).ops == ["Conv"]


@pytest.mark.parametrize(("rows", "k", "columns"), [(2, 4, 3), (3, 5, 4)])
def test_fold_bwd_dense(rows: int, k: int, columns: int) -> None:
    graph = f"""g (float[{rows},{k}] x) => (float[{rows},{columns}] y)
        <float[{columns}] gamma, float[{columns}] c, float[{columns},{k}] W> {{
        [dense] t = Gemm <transB = 1> (x, W)
        [add] u = Add (t, c)
        [relu] w = Relu (u)
        [mul] y = Mul (w, gamma)
    }}"""
    becomes(graph, "Gemm Relu")


@pytest.mark.parametrize(("rows", "k", "columns"), [(2, 4, 3), (3, 5, 4)])
def test_fold_bwd_dense_as_matmul(rows: int, k: int, columns: int) -> None:
    """TVM scales the bias with the weight; here a scale does not pass an affine that stays, as the bias of a MatMul."""
    graph = f"""g (float[{rows},{k}] x) => (float[{rows},{columns}] y)
        <float[{columns}] gamma, float[{columns}] c, float[{k},{columns}] W> {{
        [dense] t = MatMul (x, W)
        [add] u = Add (t, c)
        [relu] w = Relu (u)
        [mul] y = Mul (w, gamma)
    }}"""
    stays(graph, {"mul": (RefusalId.NONLINEAR_BETWEEN, "add")})


def test_fold_bwd_bias_add() -> None:
    """``bias_add`` is the third input of Conv."""
    graph = f"""g (float[2,4,10,10] x) => (float[2,4,10,10] y) <float[4,1,1] gamma, float[4] c, float[4,4,3,3] W> {{
        [conv] t = {PADDED} (x, W, c)
        [relu] u = Relu (t)
        [mul] y = Mul (u, gamma)
    }}"""
    becomes(graph, "Conv Relu")


def test_fold_bwd_conv3d() -> None:
    graph = f"""g (float[2,4,5,5,5] x) => (float[2,8,5,5,5] y)
        <float[8,1,1,1] gamma, float[8,1,1,1] c, float[8,4,3,3,3] W> {{
        [conv] t = Conv <{VOLUME}> (x, W)
        [add] u = Add (t, c)
        [relu] w = Relu (u)
        [mul] y = Mul (w, gamma)
    }}"""
    becomes(graph, "Conv Relu")


# --- issues -------------------------------------------------------------------------------------------------------


def test_tvm_17151_squeeze_and_excite() -> None:
    """The scaled value goes into its own gate: ``FoldScaleAxis`` failed on MobileNetV3."""
    graph = """g (float[2,4,6,6] x) => (float[2,4,6,6] y)
        <float[4,4,1,1] W, float[4] s, float[4] b, float[4] m, float[4] v, float[2,4,1,1] A, float[4,2,1,1] C> {
        [conv] t = Conv (x, W)
        [bn] u = BatchNormalization (t, s, b, m, v)
        [pool] p = GlobalAveragePool (u)
        [fc1] q = Conv (p, A)
        [relu] r = Relu (q)
        [fc2] w = Conv (r, C)
        [gate] k = HardSigmoid (w)
        [mul] y = Mul (k, u)
    }"""
    becomes(graph, "Conv GlobalAveragePool Conv Relu Conv HardSigmoid Mul")


def test_tvm_16211_conv_relu_mul_of_small_scales_stays_exact() -> None:
    """The scale passes Relu; numerically unacceptable results were reported of that reordering."""
    graph = f"""g (float[2,3,8,8] x) => (float[2,4,8,8] y) {{
        [conv] t = {PADDED} (x, W, b)
        [relu] u = Relu (t)
        [mul] y = Mul (u, c)
    }}"""
    c = np.array([1e-4, 1e-2, 1, 1e3], np.float32).reshape(4, 1, 1)
    result = folded_and_right(model(graph, {"W": normal(4, 3, 3, 3), "b": normal(4), "c": c}))
    assert result.ops == ["Conv", "Relu"]
