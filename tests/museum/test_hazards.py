"""Hazards read in the sources of others, each as a test; what others get wrong when run is in ``test_museum``."""

import numpy as np
import pytest

from bnpass.errors import RefusalId
from tests.golden.pairs import read
from tests.museum.published import batch_norm, becomes, parameters, stays
from tests.support import build
from tests.support.judge import fold, folded_and_right, serialized

F = np.float32


# --- onnx2tf: a conv bias that is computed is dropped -------------------------------------------------------------


@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("behind", ["[op] y = Add (t, k)", "[op] y = Mul (t, k)", f"[op] y = {batch_norm('t')}"])
def test_onnx2tf_run_time_bias_is_not_dropped(op_type: str, behind: str) -> None:
    """Nothing goes behind it: a bias that is computed can neither be scaled nor added to."""
    graph = f"""g (float[2,4,6,6] x, float[4] c) => (float[2,4,P,Q] y)
        <float[4,4,3,3] W, float[4,1,1] k, {parameters(4)}> {{
        [conv] t = {op_type} (x, W, c)
        {behind}
    }}"""
    stays(graph, {"op": (RefusalId.NON_CONSTANT_PARAMETER, "conv")})


def test_onnx2tf_run_time_bias_of_a_gemm_is_not_dropped() -> None:
    graph = f"""g (float[2,3] x, float[4] c) => (float[2,4] y) <float[3,4] W, {parameters(4)}> {{
        [gemm] t = Gemm (x, W, c)
        [bn] y = {batch_norm("t")}
    }}"""
    stays(graph, {"bn": (RefusalId.NON_CONSTANT_PARAMETER, "gemm")})


def test_onnx2tf_run_time_bias_and_a_batch_norm_before() -> None:
    """The weight takes the scale; the shift needs the bias."""
    graph = f"""g (float[2,3,6,6] x, float[4] c) => (float[2,4,4,4] y) <float[4,3,3,3] W, {parameters(3)}> {{
        [bn] t = {batch_norm("x")}
        [conv] y = Conv (t, W, c)
    }}"""
    result = becomes(graph, "Add Conv", {"bn/Add": (RefusalId.NON_CONSTANT_PARAMETER, "conv")})
    assert [v.name for v in result.after.graph.node(1).inputs if v is not None][2] == "c"


# --- MNN: weights are changed before the last test; epsilon left out is 1e-10 -------------------------------------


def test_mnn_a_fold_that_is_refused_has_changed_no_weight() -> None:
    """Its value is read twice, which MNN asks after it has changed the weight."""
    graph = f"""g (float[2,3,6,6] x) => (float[2,4,4,4] y, float[2,4,4,4] z) <float[4,3,3,3] W, {parameters(4)}> {{
        [conv] t = Conv (x, W)
        [bn] y = {batch_norm("t")}
        [act] z = Sigmoid (t)
    }}"""
    result = stays(graph, {"bn": (RefusalId.PRODUCER_USED_ELSEWHERE, "conv")})
    assert serialized(result.after) == serialized(read(graph))


@pytest.mark.parametrize(
    "attributes", ["", "<epsilon = 0.00001>", "<momentum = 0.5>", "<momentum = 0.5, epsilon = 0.00001>"]
)
def test_mnn_and_aimet_epsilon_is_found_by_its_name(attributes: str) -> None:
    """MNN takes 1e-10 where it is left out; AIMET takes the first attribute for it, whatever it is."""
    graph = f"""g (float[2,3,6,6] x) => (float[2,4,4,4] y) {{
        [conv] t = Conv (x, W)
        [bn] y = BatchNormalization {attributes} (t, s, b, m, v)
    }}"""
    weight = build.normal(4, 3, 3, 3)
    zero, one = np.zeros(4, F), np.ones(4, F)
    result = folded_and_right(build.model(graph, {"W": weight, "s": one, "b": zero, "m": zero, "v": zero}))
    expected = (weight.astype(float) / np.sqrt(float(F(1e-5)))).astype(F)
    np.testing.assert_array_equal(result.constant("W"), expected)


# --- AIMET: attributes that are left out, auto_pad ----------------------------------------------------------------


@pytest.mark.parametrize("attributes", ["", "<strides = [2, 2]>", "<dilations = [2, 2]>", "<kernel_shape = [3, 3]>"])
def test_aimet_pads_and_group_left_out_before_a_conv(attributes: str) -> None:
    graph = f"""g (float[2,4,8,8] x) => (float[2,4,P,Q] y) <float[4,4,3,3] W, {parameters(4)}> {{
        [bn] t = {batch_norm("x")}
        [conv] y = Conv {attributes} (t, W)
    }}"""
    becomes(graph, "Conv")


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
def test_aimet_auto_pad_same_pads_where_the_kernel_or_the_stride_needs_it(auto_pad: str) -> None:
    """A kernel of 1 needs no padding: there the shift is a bias."""
    graph = f"""g (float[2,4,8,8] x) => (float[2,8,8,8] y) <float[8,4,K,K] W, {parameters(4)}> {{
        [bn] t = {batch_norm("x")}
        [conv] y = Conv <auto_pad = "{auto_pad}"> (t, W)
    }}"""
    becomes(graph.replace("K,K", "1,1"), "Conv")
    becomes(graph.replace("K,K", "3,3"), "Add Conv", {"bn/Add": (RefusalId.PADDING_BLOCKS_SHIFT, "conv")})


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_aimet_alpha_and_beta_before_a_gemm(beta: float) -> None:
    """The sum of shift and weight is scaled by alpha as the product is, and is not scaled by beta."""
    graph = f"""g (float[2,3] x) => (float[2,4] y) <float[3,4] W, float[4] c, {parameters(3)}> {{
        [bn] t = {batch_norm("x")}
        [gemm] y = Gemm <alpha = 0.25, beta = {beta}> (t, W, c)
    }}"""
    becomes(graph, "Gemm")


def test_aimet_shared_weight_before_which_only_one_is_normalized() -> None:
    graph = f"""g (float[2,3,6,6] x, float[2,3,6,6] z) => (float[2,4,4,4] y, float[2,4,4,4] k)
        <float[4,3,3,3] W, {parameters(3)}> {{
        [bn] t = {batch_norm("x")}
        [conv1] y = Conv (t, W)
        [conv2] k = Conv (z, W)
    }}"""
    result = becomes(graph, "Conv Conv")
    before = result.before.graph.initializers["W"].const_value
    assert before is not None
    np.testing.assert_array_equal(result.constant("W"), before.numpy())


# --- INC: nodes are taken out before all is known -----------------------------------------------------------------


def test_inc_bias_add_before_a_batch_norm_that_is_refused() -> None:
    """The Add is a bias for itself; it is not gone because the batch normalization behind it could have been."""
    graph = f"""g (float[2,3,6,6] x, float[4] k) => (float[2,4,4,4] y)
        <float[4,3,3,3] W, float[4,1,1] c, {parameters(4)}> {{
        [conv] t = Conv (x, W)
        [add] u = Add (t, c)
        [bn] y = BatchNormalization (u, k, b, m, v)
    }}"""
    becomes(graph, "Conv BatchNormalization", {"bn": (RefusalId.NON_CONSTANT_PARAMETER, "bn")})


def test_inc_bias_add_at_run_time_before_a_batch_norm() -> None:
    """It is a branch like any other: the shift passes it, the scale does not, since nobody divides an input."""
    graph = f"""g (float[2,3,6,6] x, float[4,1,1] k) => (float[2,4,4,4] y) <float[4,3,3,3] W, {parameters(4)}> {{
        [conv] t = Conv (x, W)
        [add] u = Add (t, k)
        [bn] y = {batch_norm("u")}
    }}"""
    at = (RefusalId.PRODUCER_IS_GRAPH_OUTPUT, "bn/Mul")
    becomes(graph, "Conv Add Mul", {"bn/Mul": at})


# --- onnx-mlir PR #3131: mean and variance are left out of the formula --------------------------------------------


@pytest.mark.parametrize("name", ["m", "v"])
def test_onnx_mlir_3131_gemm_takes_mean_and_variance(name: str) -> None:
    graph = """g (float[2,3] x) => (float[2,4] y) {
        [gemm] t = Gemm (x, W, c)
        [bn] y = BatchNormalization (t, s, b, m, v)
    }"""
    weight, c = build.normal(3, 4), build.normal(4, seed=1)
    plain: dict[str, build.Array] = {"s": np.ones(4, F), "b": np.zeros(4, F), "m": np.zeros(4, F), "v": np.ones(4, F)}
    plain[name] = np.array([0.25, 0.5, 2, 4], F)
    result = folded_and_right(build.model(graph, {"W": weight, "c": c, **plain}))
    scale = 1 / np.sqrt(plain["v"].astype(float) + float(F(1e-5)))
    np.testing.assert_array_equal(result.constant("W"), (weight.astype(float) * scale).astype(F))
    np.testing.assert_array_equal(result.constant("c"), ((c.astype(float) - plain["m"]) * scale).astype(F))


# --- onnx2tf: float16 becomes float32 -----------------------------------------------------------------------------


def test_onnx2tf_float16_weight_stays_float16_before_a_conv() -> None:
    kinds = ", ".join(f"float16[3] {name}" for name in "sbmv")
    graph = f"""g (float16[2,3,6,6] x) => (float16[2,4,4,4] y) <float16[4,3,3,3] W, {kinds}> {{
        [bn] t = {batch_norm("x")}
        [conv] y = Conv (t, W)
    }}"""
    result = becomes(graph, "Conv")
    assert {v.dtype.name for v in result.after.graph.initializers.values() if v.dtype is not None} == {"FLOAT16"}


# --- PyTorch: the scale is cast to the type of the weight first ---------------------------------------------------


def test_pytorch_fuse_linear_scale_that_float16_does_not_hold() -> None:
    """The scale alone overflows float16, or is no longer normal in it; the product with the weight is."""
    graph = """g (float16[2,3] x) => (float16[2,2] y) {
        t = Gemm (x, W)
        y = BatchNormalization <epsilon = 0.0> (t, s, b, m, v)
    }"""
    weight = np.array([[1e-4, 1e4], [2e-4, -2e4], [-3e-4, 3e4]], np.float16)
    zero = np.zeros(2, F)
    s = np.array([1e5, 1e-7], F)
    constants: dict[str, build.Array] = {"W": weight, "s": s, "b": zero, "m": zero, "v": np.ones(2, F)}
    result = fold(build.model(graph, constants))
    assert result.ops == ["Gemm"]
    expected = (weight.astype(float) * s.astype(float)).astype(np.float16)
    np.testing.assert_array_equal(result.constant("W"), expected)
