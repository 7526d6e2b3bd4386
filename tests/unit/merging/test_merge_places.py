"""Merging in subgraphs, functions and old files; names; and graphs that are long, deep or hostile."""

import time

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bnpass.passes import FoldBatchNorm
from tests.support.build import Array, batch_norm, model, normal, ops
from tests.support.judge import runs_in_onnx_runtime
from tests.unit.merging.merged import block, merged, merged_and_right

POINTS = {"p": normal(4, 4, 1, 1), "q": normal(4, 4, 1, 1, seed=1)}


def test_in_a_branch_over_a_value_from_outside() -> None:
    built = model(
        "g (bool c, float[2,4,7,8] x) => (float[2,4,7,8] y) { r = Relu(x) y = If (c) <"
        "then_branch = g1 () => (float[2,4,7,8] o1) { a = Conv(r, p) e = Conv(r, q) t = Add(a, e) o1 = Add(t, r) },"
        "else_branch = g2 () => (float[2,4,7,8] o2) { o2 = Add(r, r) }> }",
        POINTS,
    )
    result = merged_and_right(built)
    body = result.node("y").attributes["then_branch"].as_graph()
    assert [node.op_type for node in body] == ["Conv"]
    assert body.outputs[0].name == "o1"


def test_a_sum_does_not_reach_out_of_its_graph() -> None:
    built = model(
        "g (bool c, float[2,4,7,8] x) => (float[2,4,7,8] y) { a = Conv(x, p) y = If (c) <"
        "then_branch = g1 () => (float[2,4,7,8] o1) { e = Conv(x, q) o1 = Add(a, e) },"
        "else_branch = g2 () => (float[2,4,7,8] o2) { o2 = Neg(x) }> }",
        POINTS,
    )
    assert merged(built).merged == ()


FUNCTION = """<ir_version: 8, opset_import: ["": 17, "own": 1]>
g (float[1,2,3,3] x) => (float[1,2,3,3] y) { y = own.rep(x) }
<domain: "own", opset_import: ["": 17]>
rep (d) => (r) {
    w = Constant<value = float[2,2,1,1] {1, 2, 3, 4}>()
    k = Constant<value = float[2,2,1,1] {5, 6, 7, 8}>()
    b = Constant<value = float[2] {1, -1}>()
    a = Conv(d, w, b)
    e = Conv(d, k)
    t = Add(a, e)
    r = Add(t, d)
}"""


def test_in_a_function_numbers_are_constant_nodes() -> None:
    built = ir.from_proto(onnx.parser.parse_model(FUNCTION))
    result = merged_and_right(built)
    (function,) = result.after.functions.values()
    assert [node.op_type for node in function] == ["Constant", "Constant", "Conv"]
    assert [value.name for value in function.outputs] == ["r"]


@pytest.mark.parametrize(("opset", "ir_version"), [(6, 3), (7, 3), (11, 6), (22, 10)])
def test_old_and_new_files(opset: int, ir_version: int) -> None:
    test = ", is_test=1" if opset < 7 else ""
    built = block(
        f"a = Conv(x, p) n = BatchNormalization<epsilon=0.001{test}>(x, s, b, m, v) t = Sum(a, n) y = Add(t, x)",
        "2,4,7,8",
        {"p": POINTS["p"], **batch_norm(4)},
        opset=opset,
        ir_version=ir_version,
    )
    result = merged_and_right(built) if opset >= 7 else merged(built)
    assert result.ops == ["Conv"]
    assert [v.name for v in result.after.graph.inputs] == (["x"] if ir_version > 3 else ["x", "p", "y/bias"])


def test_an_axis_of_an_old_add_is_left_alone() -> None:
    built = block("a = Conv(x, p) e = Conv(x, q) y = Add<broadcast=1>(a, e)", "2,4,7,8", POINTS, opset=6, ir_version=3)
    assert merged(built).merged == ()


def test_names_of_the_largest_op_and_of_the_sum() -> None:
    built = block(
        "[small] a = Conv(x, p) [large] e = Conv<pads=[1,1,1,1]>(x, w) [sum] s = Add(a, e) y = Relu(s)",
        "2,4,7,8",
        {"p": POINTS["p"], "w": normal(4, 4, 3, 3)},
    )
    result = merged_and_right(built)
    node = result.after.graph[0]
    assert (node.name, node.outputs[0].name, node.inputs[1].name) == ("large", "s", "w")  # type: ignore[union-attr]
    assert result.merged[0].nodes == ("small", "sum")


def test_a_mean_gets_the_name_of_the_op_before_it() -> None:
    """With one input channel a point and a mean behind it are as cheap as what they come to."""
    built = model(
        "g (float[2,1,7,8] x) => (float[2,1,7,8] y) { [point] f = Conv(x, p) "
        "[mean] a = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(f) [sum] y = Add(a, x) }",
        {"p": normal(1, 1, 1, 1)},
    )
    result = merged_and_right(built)
    assert result.ops == ["Conv"]
    assert result.merged[0].into == "point"
    assert result.merged[0].nodes == ("mean", "sum")


def test_equal_models_give_equal_bytes() -> None:
    given = {f"w{i}": normal(4, 4, 1, 1, seed=i) for i in range(6)}
    nodes = " ".join(f"a{i} = Conv(x, w{i})" for i in range(6)) + " y = Sum(a0, a1, a2, a3, a4, a5)"
    first, second = (ir.to_proto(merged(block(nodes, "2,4,7,8", given)).after) for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


# --- size -----------------------------------------------------------------------------------------------------------


def comb(count: int, kinds: int) -> ir.Model:
    """Return x₀ + f(x₁) + f(x₂) + … as a comb, f one of Relu and Conv, over ``kinds`` values."""
    x = ir.Value(name="x", shape=ir.Shape([1, 2, 3, 3]), type=ir.TensorType(ir.DataType.FLOAT))
    nodes = [ir.Node("", "Relu", [x], name=f"r{i}") for i in range(kinds)]
    weight = ir.Value(name="w", const_value=ir.tensor(normal(2, 2, 1, 1), name="w"))
    total = nodes[0].outputs[0]
    for i in range(count):
        nodes.append(ir.Node("", "Conv", [nodes[i % kinds].outputs[0], weight], name=f"c{i}"))
        nodes.append(ir.Node("", "Add", [total, nodes[-1].outputs[0]], name=f"a{i}"))
        total = nodes[-1].outputs[0]
    total.shape, total.type = x.shape, x.type
    graph = ir.Graph([x], [total], nodes=nodes, initializers=[weight], opset_imports={"": 17}, name="g")
    return ir.Model(graph, ir_version=8)


@pytest.mark.parametrize("kinds", [1, 500])
def test_long_sums_take_linear_time(kinds: int) -> None:
    seconds = []
    for count in (1000, 4000):
        built = comb(count, kinds)
        start = time.perf_counter()
        result = merged(built)
        seconds.append(time.perf_counter() - start)
        assert len(result.merged) == kinds
        assert ops(result.after).count("Conv") == kinds
    assert seconds[1] < 10 * seconds[0] + 1


def test_many_branches_that_fit_in_pairs_take_linear_time() -> None:
    """Two taps at any distance are one kernel with a dilation; a third one fits no grid that is as cheap."""
    count = 1000
    given: dict[str, Array] = {f"w{i}": normal(1, 1, 1, seed=i) for i in range(count)}
    nodes = " ".join(f"a{i} = Conv<pads=[{i * i},{count**2 - i * i}]>(x, w{i})" for i in range(count))
    names = ", ".join(f"a{i}" for i in range(count))
    built = block(f"{nodes} y = Sum({names})", "2,1,P", given, "2,1,10")
    start = time.perf_counter()
    result = merged(built)
    assert time.perf_counter() - start < 30
    assert ops(result.after).count("Conv") <= count // 2 + 1


def test_a_stride_that_a_file_only_claims_costs_nothing() -> None:
    built = block("a = Conv<strides=[4611686018427387904,1]>(x, p) y = Conv(a, q)", "2,4,7,8", POINTS)
    start = time.perf_counter()
    assert merged(built).merged == ()
    assert time.perf_counter() - start < 5


def padded(attributes: str, ends: int, data: str = "x") -> ir.Model:
    """Fold a Pad of zeros before a Conv with attributes."""
    built = model(
        f"g (float[1,4,H,L] x) => (float[1,4,P,Q] y) {{ t = Pad(x, pads) y = Conv{attributes}(t, w) }}",
        {"w": normal(4, 4, 3, 3), "pads": np.array([0, 0, ends, ends] * 2)},
    )
    if not data:
        built.graph[0].replace_input_with(0, None)
    FoldBatchNorm()(built)
    return built


@pytest.mark.parametrize("attributes", [
    "strides=[0,1]", "strides=[2]", "dilations=[2]", "dilations=[0,1]", "dilations=[1000000000,1000000000]",
    "kernel_shape=[5,5]", "pads=[-1,0,0,0]",
])  # fmt: skip
def test_padding_before_a_conv_that_makes_no_sense_stays(attributes: str) -> None:
    assert ops(padded(f"<{attributes}>", 1)) == ["Pad", "Conv"]


def test_padding_that_a_file_only_claims_costs_nothing() -> None:
    start = time.perf_counter()
    assert ops(padded("", 10**9)) == ["Pad", "Conv"]
    assert time.perf_counter() - start < 5


def test_a_pad_without_data_stays() -> None:
    assert ops(padded("", 1, data="")) == ["Pad", "Conv"]


def test_windows_that_a_file_only_claims_cost_nothing() -> None:
    built = block(
        "a = AveragePool<kernel_shape=[1000000,1000000], pads=[999999,999999,0,0], count_include_pad=1>(x) "
        "e = Conv<dilations=[1000000,1], pads=[1000000,1,1000000,1]>(x, w) f = Conv(x, p) t = Add(a, e) y = Add(t, f)",
        "2,4,7,8",
        {"w": normal(4, 4, 3, 3), "p": POINTS["p"]},
    )
    start = time.perf_counter()
    result = merged(built)
    assert time.perf_counter() - start < 5
    assert result.ops == ["AveragePool", "Conv", "Add"]


def test_the_same_numbers_in_onnx_runtime() -> None:
    built = block("a = Conv(x, p) e = Conv(x, q) y = Add(a, e)", "2,4,7,8", POINTS)
    x = normal(2, 4, 7, 8, seed=9)
    old, new = (runs_in_onnx_runtime(m, {"x": x})[0] for m in (built, merged(built).after))
    assert np.abs(old - new).max() < 1e-5
