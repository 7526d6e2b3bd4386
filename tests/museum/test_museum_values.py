"""The museum's other wing: values and places that folding elsewhere gets wrong or leaves out."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bnpass.errors import RefusalId
from tests.support.build import batch_norm, model, normal
from tests.support.judge import fold, folded_and_right, is_right

Array = NDArray[Any]
F = np.float32

CONV_BN = """g (float[2,3,6,6] x) => (float[2,4,4,4] y) {
    [conv] t = Conv (x, W)
    [bn] y = BatchNormalization (t, s, b, m, v)
}"""
CONV = {"W": normal(4, 3, 3, 3), **batch_norm(4)}


def test_gamma_zero_leaves_the_shift() -> None:
    result = folded_and_right(model(CONV_BN, {**CONV, "s": F([0, 1, 0, 2])}))
    assert result.ops == ["Conv"]
    assert not result.constant("W")[[0, 2]].any()


def test_gamma_zero_everywhere() -> None:
    assert folded_and_right(model(CONV_BN, {**CONV, "s": np.zeros(4, F)})).ops == ["Conv"]


@pytest.mark.parametrize("v", [0.0, 1e-12, 9e-6, 1e-30], ids=str)
def test_variance_of_zero_or_below_epsilon(v: float) -> None:
    assert folded_and_right(model(CONV_BN, {**CONV, "v": np.full(4, v, F)})).ops == ["Conv"]


def test_large_variance_and_large_mean() -> None:
    constants = {**CONV, "v": np.full(4, 1e6, F), "m": F([1e4, -1e4, 1e4, 3])}
    assert folded_and_right(model(CONV_BN, constants)).ops == ["Conv"]


@pytest.mark.parametrize("name", "sbmv")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_or_infinity_in_a_parameter(name: str, bad: float) -> None:
    array = CONV[name].copy()
    array[2] = bad
    result = fold(model(CONV_BN, {**CONV, name: array}))
    assert not result.modified
    assert result.refusals == {"bn": RefusalId.INVALID_STATISTICS}


@pytest.mark.parametrize("v", [-1.0, -1e-6, -1e-30])
def test_negative_variance_even_if_epsilon_would_hide_it(v: float) -> None:
    result = fold(model(CONV_BN, {**CONV, "v": F([1, v, 1, 1])}))
    assert not result.modified
    assert result.refusals == {"bn": RefusalId.INVALID_STATISTICS}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_or_infinity_in_the_bias(bad: float) -> None:
    graph = CONV_BN.replace("(x, W)", "(x, W, c)")
    result = fold(model(graph, {**CONV, "c": F([1, bad, 1, 1])}))
    assert not result.modified
    assert [k.node for k in result.kept] == ["bn"]


def test_no_channels_at_all() -> None:
    """Nothing is normalized, so nothing is lost; the empty weight stays as it is."""
    graph = CONV_BN.replace("2,4,4,4", "2,0,4,4")
    result = fold(model(graph, {"W": np.zeros((0, 3, 3, 3), F), **{k: np.zeros(0, F) for k in "sbmv"}}))
    is_right(result, feeds=[])  # there is no number to compare
    assert result.ops in (["Conv"], ["Conv", "BatchNormalization"])
    assert result.constant("W").shape == (0, 3, 3, 3)


def test_an_empty_batch() -> None:
    assert folded_and_right(model(CONV_BN.replace("float[2,", "float[0,"), CONV)).ops == ["Conv"]


def test_one_channel_on_both_sides() -> None:
    graph = """g (float[2,1,6,6] x) => (float[2,1,4,4] y) {
        t = BatchNormalization (x, s, b, m, v)
        u = Conv (t, W)
        y = BatchNormalization (u, b, s, m, v)
    }"""
    assert folded_and_right(model(graph, {"W": normal(1, 1, 3, 3), **batch_norm(1)})).ops == ["Conv"]


def test_epsilon_left_out_is_1e_5() -> None:
    one = {"s": np.ones(4, F), "b": np.zeros(4, F), "m": np.zeros(4, F), "v": np.zeros(4, F)}
    result = folded_and_right(model(CONV_BN, {**CONV, **one}))
    expected = (CONV["W"].astype(float) / np.sqrt(float(F(1e-5)))).astype(F)
    np.testing.assert_array_equal(result.constant("W"), expected)


@pytest.mark.parametrize("rank", [1, 3])
def test_conv_1d_and_3d(rank: int) -> None:
    dims = ",".join("6" * rank)
    graph = f"""g (float[2,3,{dims}] x) => (float[2,4,{",".join("PQR"[:rank])}] y) {{
        t = Conv (x, W)
        y = BatchNormalization (t, s, b, m, v)
    }}"""
    assert folded_and_right(model(graph, {"W": normal(4, 3, *[3] * rank), **batch_norm(4)})).ops == ["Conv"]


def test_keras_channels_last_dense_head() -> None:
    """Conv in NCHW between Transposes, batch norm behind the way back to NHWC, then Flatten and Dense."""
    graph = """g (float[N,6,6,3] x) => (float[N,5] y) <int64[2] flat = {-1, 64}> {
        t = Transpose <perm = [0, 3, 1, 2]> (x)
        c = Conv (t, W)
        n = BatchNormalization (c, s, b, m, v)
        r = Relu (n)
        q = BatchNormalization (r, s, b, m, v)
        u = Transpose <perm = [0, 2, 3, 1]> (q)
        f = Reshape (u, flat)
        y = Gemm (f, D)
    }"""
    result = folded_and_right(model(graph, {**CONV, "D": normal(64, 5)}))
    assert result.ops == ["Transpose", "Conv", "Relu", "Transpose", "Reshape", "Gemm"]


def test_keras_channels_last_reshape_that_mixes_channels_and_columns() -> None:
    """Twelve is three channels of four, and also four of three: only one of them is channels last."""
    graph = """g (float[2,4,3] x) => (float[2,5] y) <int64[2] flat = {-1, 12}> {
        [mul] q = Mul (x, a)
        u = Reshape (q, flat)
        y = Gemm (u, D)
    }"""
    constants = {"a": normal(3), "D": normal(12, 5)}
    result = folded_and_right(model(graph, constants))
    assert result.ops == ["Reshape", "Gemm"]
    expected = constants["D"].astype(float) * np.tile(constants["a"].astype(float), 4)[:, None]
    np.testing.assert_array_equal(result.constant("D"), expected.astype(F))


def test_batch_norm_output_that_is_also_a_graph_output_is_not_folded_forward() -> None:
    graph = """g (float[2,3,6,6] x) => (float[2,4,4,4] y, float[2,3,6,6] t) {
        [bn] t = BatchNormalization (x, s, b, m, v)
        y = Conv (t, W)
    }"""
    result = fold(model(graph, {"W": CONV["W"], **batch_norm(3)}))
    assert not result.modified
    assert result.refusals == {"bn": RefusalId.PRODUCER_IS_GRAPH_OUTPUT}


def test_batch_norm_whose_result_is_two_graph_outputs() -> None:
    graph = """g (float[2,3,6,6] x) => (float[2,4,4,4] y, float[2,4,4,4] z) {
        t = Conv (x, W)
        y = BatchNormalization (t, s, b, m, v)
        z = Identity (y)
    }"""
    assert folded_and_right(model(graph, CONV)).ops == ["Conv", "Identity"]


def test_two_readers_of_one_batch_norm_behind_a_conv() -> None:
    graph = """g (float[2,3,6,6] x) => (float[2,4,4,4] y, float[2,4,4,4] z) {
        t = Conv (x, W)
        u = BatchNormalization (t, s, b, m, v)
        y = Relu (u)
        z = Tanh (u)
    }"""
    assert folded_and_right(model(graph, CONV)).ops == ["Conv", "Relu", "Tanh"]


def test_batch_norm_that_reads_one_value_as_data_and_as_parameter() -> None:
    graph = "g (float[4,4] x) => (float[4,4] y) { t = MatMul (x, W)  y = BatchNormalization (t, s, b, m, v) }"
    constants = {"W": normal(4, 4), **batch_norm(4)}
    assert folded_and_right(model(graph.replace("s, b, m, v", "v, v, v, v"), constants)).ops == [
        "MatMul",
        "Add",
    ]


def test_weight_and_bias_are_the_same_tensor() -> None:
    graph = """g (float[2,4] x) => (float[2,4] y) {
        t = Gemm (x, W, W)
        y = BatchNormalization (t, s, b, m, v)
    }"""
    result = folded_and_right(model(graph.replace("float[2,4]", "float[4,4]"), {"W": normal(4, 4), **batch_norm(4)}))
    assert result.ops == ["Gemm"]


def test_weight_that_is_a_graph_output_keeps_its_numbers() -> None:
    graph = CONV_BN.replace("y)", "y, float[4,3,3,3] W)", 1)
    result = folded_and_right(model(graph, CONV))
    assert result.ops == ["Conv"]
    np.testing.assert_array_equal(result.constant("W"), CONV["W"])


def test_mean_that_an_inner_body_reads_stays() -> None:
    graph = """g (float[2,3,6,6] x, bool on) => (float[2,4,4,4] y, float[4] z) {
        t = Conv (x, W)
        y = BatchNormalization (t, s, b, m, v)
        z = If (on) <
            then_branch = th () => (float[4] p) { p = Neg (m) },
            else_branch = el () => (float[4] q) { q = Abs (m) }
        >
    }"""
    assert folded_and_right(model(graph, CONV)).ops == ["Conv", "If"]


def test_conv_read_by_a_body_as_well() -> None:
    graph = """g (float[2,3,6,6] x, bool on) => (float[2,4,4,4] y, float[2,4,4,4] z) {
        [conv] t = Conv (x, W)
        [bn] y = BatchNormalization (t, s, b, m, v)
        z = If (on) <
            then_branch = th () => (float[2,4,4,4] p) { p = Neg (t) },
            else_branch = el () => (float[2,4,4,4] q) { q = Abs (x4) x4 = Identity (t) }
        >
    }""".replace("q = Abs (x4) x4 = Identity (t)", "q = Abs (t)")
    result = fold(model(graph, CONV))
    assert not result.modified
    assert result.refusals == {"bn": RefusalId.PRODUCER_USED_ELSEWHERE}


def test_folded_value_that_a_body_reads() -> None:
    graph = """g (float[2,3,6,6] x, bool on) => (float[2,4,4,4] z) {
        t = Conv (x, W)
        y = BatchNormalization (t, s, b, m, v)
        z = If (on) <
            then_branch = th () => (float[2,4,4,4] p) { p = Neg (y) },
            else_branch = el () => (float[2,4,4,4] q) { q = Abs (y) }
        >
    }"""
    assert folded_and_right(model(graph, CONV)).ops == ["Conv", "If"]


def test_weight_lives_in_the_branch_itself() -> None:
    graph = """g (float[2,2] x, bool on) => (float[2,2] y) {
        y = If (on) <
            then_branch = th () => (float[2,2] p) <float[2,2] W = {1, 2, 3, 4}, float[2] s = {2, 3}> {
                t = MatMul (x, W)
                p = Mul (t, s)
            },
            else_branch = el () => (float[2,2] q) { q = Abs (x) }
        >
    }"""
    result = folded_and_right(model(graph))
    branch = result.after.graph.node(0).attributes["then_branch"].as_graph()
    assert [node.op_type for node in branch] == ["MatMul"]


def test_without_any_declared_shape_a_function_body_folds() -> None:
    graph = """g (float[2,2,6,6] x) => (float[2,2,6,6] y) { y = bnpass.block (x) }
    <domain: "bnpass", opset_import: ["": 17]>
    block (a) => (d) {
        W = Constant <value = float[2,2,1,1] {1.0, 2.0, -3.0, 0.5}> ()
        p = Constant <value_floats = [1.5, 2.0]> ()
        c = Conv (a, W)
        d = BatchNormalization (c, p, p, p, p)
    }"""
    result = folded_and_right(model(graph))
    (function,) = result.after.functions.values()
    assert [node.op_type for node in function] == ["Constant", "Constant", "Conv"]


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("side", ["behind", "before"])
@pytest.mark.parametrize("constant", ["A", "B"])
def test_square_gemm_is_right_or_refused(side: str, constant: str, trans_a: int, trans_b: int) -> None:
    """Everything is 4×4: no length can tell the axes apart, only reasoning can."""
    data = "x" if side == "behind" else "t"
    operands = f"W, {data}" if constant == "A" else f"{data}, W"
    gemm = f"Gemm <transA = {trans_a}, transB = {trans_b}, alpha = 0.5, beta = 2.0> ({operands}, c)"
    nodes = (
        f"t = {gemm} [bn] y = BatchNormalization (t, s, b, m, v)"
        if side == "behind"
        else f"[bn] t = BatchNormalization (x, s, b, m, v) y = {gemm}"
    )
    constants = {"W": normal(4, 4), "c": normal(4, 4, seed=1), **batch_norm(4)}
    result = folded_and_right(model(f"g (float[4,4] x) => (float[4,4] y) {{ {nodes} }}", constants))
    columns_are_outputs = constant == "B"
    columns_are_summed = not trans_a if constant == "B" else bool(trans_b)
    folds = columns_are_outputs if side == "behind" else columns_are_summed
    assert bool(result.folded) == folds


@pytest.mark.parametrize("left", [False, True], ids=["right weight", "left weight"])
@pytest.mark.parametrize("before", [False, True], ids=["behind", "before"])
@pytest.mark.parametrize("transposed", [False, True], ids=["straight", "transposed"])
def test_square_matmul_is_right_or_refused(left: bool, before: bool, transposed: bool) -> None:
    between = "u = Transpose <perm = [1, 0]> ({})" if transposed else "u = Identity ({})"
    matmul = "MatMul (W, {})" if left else "MatMul ({}, W)"
    batch_norms = "[bn] {} = BatchNormalization ({}, s, b, m, v)"
    if before:
        nodes = f"{batch_norms.format('t', 'x')} {between.format('t')} y = {matmul.format('u')}"
    else:
        nodes = f"t = {matmul.format('x')} {between.format('t')} {batch_norms.format('y', 'u')}"
    constants = {"W": normal(4, 4), **batch_norm(4)}
    result = folded_and_right(model(f"g (float[4,4] x) => (float[4,4] y) {{ {nodes} }}", constants))
    assert bool(result.folded) == (left == transposed)


# --- affines that change nothing, and values that must not take another's name ------------------------------------

ONE = {"one": F(1)}


@pytest.mark.parametrize(
    ("graph", "left"),
    [
        ("g (float[2] x) => (float[2] t, float[2] y) { t = Relu (x) y = Mul (t, one) }", 2),
        ("g (float[2] x) => (float[2] y) { y = Mul (x, one) }", 1),
        ("g (float[2] x) => (float[2] y) { t = Relu (x) y = Mul (t, one) }", 1),
        ("g (float[2] x) => (float[2] y) { t = Mul (x, one) y = Relu (t) }", 1),
        ("g (float[2] x) => (float[2] y, float[2] z) { t = Relu (x) y = Mul (t, one) z = Mul (t, one) }", 2),
        ("g (float[2] x) => (float[2] y) { t = Neg (x) y = Neg (t) }", 2),
    ],
)
def test_times_one_goes_where_every_output_keeps_its_name(graph: str, left: int) -> None:
    assert len(folded_and_right(model(graph, ONE)).ops) == left


@pytest.mark.parametrize("outer", ["t = Relu (x)", "t = Conv (x, W)"])
def test_times_one_in_a_branch_does_not_rename_the_value_outside(outer: str) -> None:
    graph = f"""g (float[1,1,2] x, bool on) => (float[1,1,2] y) {{
        {outer}
        y = If (on) <
            then_branch = th () => (float[1,1,2] p) {{ p = Mul (t, one) }},
            else_branch = el () => (float[1,1,2] q) {{ q = Abs (x) }}
        >
    }}"""
    folded_and_right(model(graph, {**ONE, "W": normal(1, 1, 1)}))


# --- attributes of a function's nodes that only its callers know --------------------------------------------------

FUNCTION = """g (float[2,2,4,4] x) => (float[B,C,P,Q] y) {{ y = bnpass.block <q = {value}> (x) }}
<domain: "bnpass", opset_import: ["": 17]>
block <q> (a) => (d) {{
    W = Constant <value = float[2,2,1,1] {{1.0, 2.0, -3.0, 0.5}}> ()
    W1 = Constant <value = float[2,1,1,1] {{1.0, 2.0}}> ()
    p = Constant <value_floats = [1.5, 2.0]> ()
    k = Constant <value_float = 3.0> ()
    {nodes}
}}"""


@pytest.mark.parametrize(
    ("value", "nodes"),
    [
        ("10.0", "c = Conv (a, W) d = BatchNormalization <epsilon: float = @q> (c, p, p, p, p)"),
        ("0", "c = Conv (a, W) d = BatchNormalization <training_mode: int = @q> (c, p, p, p, p)"),
        ("[1, 1, 1, 1]", "c = Add (a, k) d = Conv <pads: ints = @q> (c, W)"),
        ("[2, 2]", "c = Add (a, k) d = ConvTranspose <strides: ints = @q> (c, W)"),
        ("[6, 6]", "c = Add (a, k) d = ConvTranspose <output_shape: ints = @q> (c, W)"),
        ("2", "c = Add (a, k) d = Conv <group: int = @q> (c, W1)"),
        (
            "[0, 1, 3, 2]",
            "c = Conv (a, W) e = Transpose <perm: ints = @q> (c) d = BatchNormalization (e, p, p, p, p)",
        ),
    ],
)
def test_an_attribute_that_refers_to_the_caller_s_is_not_read_as_its_default(value: str, nodes: str) -> None:
    assert not folded_and_right(model(FUNCTION.format(value=value, nodes=nodes))).modified


def test_without_such_an_attribute_the_same_function_folds() -> None:
    nodes = "c = Add (a, k) d = Conv (c, W)"
    assert folded_and_right(model(FUNCTION.format(value="1", nodes=nodes))).folded


# --- MatMul with vectors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [(3, 4), (2, 3, 4), (1, 3, 4)], ids=str)
def test_row_vector_times_weight_is_right(weight: tuple[int, ...]) -> None:
    graph = """g (float[3] x) => (float[OUT] y) {
        t = Mul (x, a)
        u = Add (t, a)
        y = MatMul (u, W)
    }""".replace("OUT", ",".join(map(str, (*weight[:-2], weight[-1]))))
    folded_and_right(model(graph, {"W": normal(*weight), "a": normal(3)}))


@pytest.mark.parametrize("weight", [(4, 3), (2, 4, 3), (4, 4)], ids=str)
@pytest.mark.parametrize("before", [False, True], ids=["behind", "before"])
def test_weight_times_column_vector_is_right(weight: tuple[int, ...], before: bool) -> None:
    out = ",".join(map(str, weight[:-1]))
    scaled = "t = Mul (x, a) y = MatMul (W, t)" if before else "t = MatMul (W, x) y = Mul (t, a)"
    graph = f"g (float[{weight[-1]}] x) => (float[{out}] y) {{ {scaled} }}"
    folded_and_right(model(graph, {"W": normal(*weight), "a": normal(weight[-1] if before else weight[-2])}))


def test_gemm_whose_c_is_not_read_forgets_it() -> None:
    """With beta 0 the run-time C does not matter; the slot takes the shift."""
    graph = """g (float[2,3] x, float[2,4] c) => (float[2,4] y) {
        t = Gemm <beta = 0.0> (x, W, c)
        y = BatchNormalization (t, s, b, m, v)
    }"""
    result = folded_and_right(model(graph, {"W": normal(3, 4), **batch_norm(4)}))
    assert result.ops == ["Gemm"]
    assert [v.name for v in result.after.graph.inputs] == ["x", "c"]
