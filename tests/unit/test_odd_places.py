"""Places that no exporter writes and hostile or hand-made files have: nothing goes wrong there, and nothing hangs."""

import time
from itertools import pairwise

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bnpass.errors import RefusalId
from bnpass.folding.options import FoldOptions
from bnpass.passes import FoldBatchNorm
from tests.support.build import Array, batch_norm, model, normal, ops
from tests.support.judge import folded_and_right

CONV = normal(3, 4, 1, 1)


def refusals(built: ir.Model, options: FoldOptions | None = None) -> set[RefusalId]:
    """Fold, and return the ids of what stayed."""
    fold = FoldBatchNorm(options)
    fold(built)
    return {kept.refusal for kept in fold.kept}


def test_bodies_beside_each_other_may_use_one_name_for_two_values() -> None:
    """`t` has rank 4 in one branch and 3 in the other: in the first, k varies over the height, not the channels."""
    built = model(
        "g (bool c, float[1,4,4,5] x, float[1,4,5] z) => (float[1,3,4,5] y) { y = If (c) <"
        "then_branch = g1 () => (float[1,3,4,5] o1) { t = Sin(x) u = Add(t, k) o1 = Conv(u, w) },"
        "else_branch = g2 () => (float[1,3,4,5] o2) { t = Sin(z) s = ReduceSum<keepdims=0>(t) o2 = Expand(s, shape) }"
        "> }",
        {"k": normal(4, 1), "w": CONV, "shape": np.array([1, 3, 4, 5])},
    )
    assert not FoldBatchNorm()(built).modified


def test_the_default_domain_has_two_spellings() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["ai.onnx": 17]> g (float[1,2] x) => (float[1,3] y) '
        "<float[2,3] w = {1,2,3,4,5,6}, float[3] k = {1,2,3}> { t = Gemm(x, w) y = Add(t, k) }"
    )
    result = folded_and_right(ir.from_proto(proto))
    assert result.ops == ["Gemm"]


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose"])
def test_a_bias_that_is_no_number_is_refused(op_type: str, number: float) -> None:
    weight = normal(3, 2, 1, 1) if op_type == "Conv" else normal(2, 3, 1, 1)
    built = model(
        f"g (float[1,2,4,4] x) => (float[1,3,4,4] y) {{ t = Mul(x, s) y = {op_type}(t, w, b) }}",
        {"s": normal(2, 1, 1), "w": weight, "b": np.array([1, number, 2], np.float32)},
    )
    assert refusals(built) == {RefusalId.INVALID_STATISTICS}


def test_an_affine_whose_scale_would_overflow_the_weights_stays_whole() -> None:
    built = model(
        "g (float16[1,2,4,4] x) => (float16[1,3,4,4] y) { t = Conv(x, w) u = Mul(t, s) y = Add(u, k) }",
        {
            "w": np.full((3, 2, 1, 1), 8, np.float16),
            "s": np.full((3, 1, 1), 16384, np.float16),
            "k": np.full((3, 1, 1), 16384, np.float16),
        },
    )
    fold = FoldBatchNorm(FoldOptions(target="portable"))
    assert not fold(built).modified
    assert {kept.refusal for kept in fold.kept} == {RefusalId.WOULD_OVERFLOW}


def test_a_c_of_gemm_that_is_nan_for_all_columns_is_refused() -> None:
    built = model(
        "g (float[N,2] x) => (float[N,2] y) { t = Mul(x, s) y = Gemm(t, w, c) }",
        {"s": normal(2), "w": normal(2, 2), "c": np.array(np.nan, np.float32)},
    )
    assert refusals(built) == {RefusalId.INVALID_STATISTICS}


@pytest.mark.parametrize(("name", "value"), [("alpha", np.nan), ("beta", np.inf)])
def test_a_gemm_factor_that_is_no_number_is_refused(name: str, value: float) -> None:
    built = model(
        "g (float[N,2] x) => (float[N,2] y) { t = Mul(x, s) y = Gemm(t, w, s) }",
        {"s": normal(2), "w": normal(2, 2)},
    )
    built.graph[-1].attributes[name] = ir.AttrFloat32(name, value)
    assert refusals(built) == {RefusalId.INVALID_STATISTICS}


@pytest.mark.parametrize(
    ("dtype", "factor", "times"), [("double", 1e200, 2), ("double", 1e-200, 2), ("float", 1e-35, 9)]
)
def test_runs_that_leave_the_range_of_float64_are_no_failed_check(dtype: str, factor: float, times: int) -> None:
    names = ["x", *(f"t{i}" for i in range(times - 1)), "y"]
    nodes = " ".join(f"{b} = Mul({a}, c)" for a, b in pairwise(names))
    kind = np.float64 if dtype == "double" else np.float32
    built = model(f"g ({dtype}[N,2] x) => ({dtype}[N,2] y) {{ {nodes} }}", {"c": np.full(2, factor, kind)})
    FoldBatchNorm()(built)


@pytest.mark.parametrize("start", ["x", "k"])
def test_a_chain_that_doubles_is_searched_once(start: str) -> None:
    """a1 = a0 + a0, a2 = a1 + a1, …: looking at both operands each time would take 2³¹ steps."""
    names = [start, *(f"a{i}" for i in range(31))]
    nodes = " ".join(f"{b} = Add({a}, {a})" for a, b in pairwise(names))
    built = model(
        f"g (float[1,2] x) => (float[1,2] y) {{ {nodes} z = Mul({names[-1]}, c) y = Add(z, x) }}",
        {"c": normal(2), "k": np.full(2, 1e-9, np.float32)},
    )
    begin = time.perf_counter()
    FoldBatchNorm()(built)
    assert time.perf_counter() - begin < 20


def test_a_copy_of_what_lies_behind_a_transpose_counts_too() -> None:
    built = model(
        "g (float[1,4] x) => (float[1,4] y, float[1,4] z) "
        "{ a = Transpose(w) b = Transpose(w) t = MatMul(x, a) y = Mul(t, s) u = MatMul(x, b) z = Mul(u, s) }",
        {"w": normal(4, 4), "s": normal(4)},
    )
    assert refusals(built, FoldOptions(clone_budget=0)) == {RefusalId.CLONE_BUDGET}


MISFITS: dict[str, tuple[str, dict[str, Array]]] = {
    "bias": ("y = BatchNormalization(t, s, b, m, v)", {"w": CONV, "c": normal(2), **batch_norm(3)}),
    "batch normalization": ("u = BatchNormalization(t, c, c, c, c) y = BatchNormalization(u, s, b, m, v)",
                            {"w": CONV, "c": np.ones(2, np.float32), **batch_norm(3)}),
}  # fmt: skip


@pytest.mark.parametrize("what", MISFITS)
def test_lengths_that_do_not_fit_are_no_internal_error(what: str) -> None:
    nodes, constants = MISFITS[what]
    first = "t = Conv(x, w, c)" if what == "bias" else "t = Relu(x)"
    FoldBatchNorm()(model(f"g (float[1,4,2,2] x) => (float[1,3,2,2] y) {{ {first} {nodes} }}", constants))


@pytest.mark.parametrize("attribute", [
    ir.AttrInt64s("dilations", []), ir.AttrInt64s("dilations", [1]), ir.AttrInt64s("pads", [1]),
    ir.AttrFloat32("group", 1.0), ir.Attr("auto_pad", ir.AttributeType.STRING, b"\xff\xfe"),
    ir.AttrInt64s("strides", [0, 1]), ir.AttrInt64s("dilations", [1, -1]), ir.AttrInt64s("pads", [0, -1, 0, 0]),
    ir.AttrInt64s("kernel_shape", [3, 3]), ir.AttrInt64s("kernel_shape", [1]),
], ids=lambda a: a.name)  # fmt: skip
def test_attributes_that_make_no_sense_keep_the_node(attribute: ir.Attr) -> None:
    built = model(
        "g (float[1,4,2,2] x) => (float[1,3,2,2] y) { t = Conv(x, w) y = BatchNormalization(t, s, b, m, v) }",
        {"w": CONV, **batch_norm(3)},
    )
    built.graph[0].attributes.add(attribute)
    FoldBatchNorm()(built)
    assert ops(built) == ["Conv", "BatchNormalization"]


@pytest.mark.parametrize("attribute", [
    ir.AttrInt64s("pads", [1, 1, 1, 10**9]), ir.AttrInt64s("dilations", [10**9, 1]), ir.AttrInt64s("dilations", [7, 2]),
    ir.AttrInt64s("strides", [0, 1]), ir.AttrInt64s("kernel_shape", [1, 1, 3]),
], ids=lambda a: f"{a.name}={a.value}")  # fmt: skip
def test_a_padded_convolution_that_claims_anything_keeps_the_shift_before_it(attribute: ir.Attr) -> None:
    built = model(
        "g (float[1,3,6,6] x) => (float[1,4,P,Q] y) "
        "{ t = BatchNormalization(x, s, b, m, v) y = Conv<pads=[1,1,1,1]>(t, w) }",
        {"w": normal(4, 3, 3, 3), **batch_norm(3)},
    )
    built.graph[1].attributes.add(attribute)
    FoldBatchNorm()(built)
    assert ops(built)[0] in ("BatchNormalization", "Mul", "Add")
    assert ops(built)[-1] == "Conv"


def test_an_image_that_is_too_large_to_try_keeps_the_shift_before_it() -> None:
    """The map behind it is small; the image that the local check would run is not."""
    built = model(
        "g (float[1,3,40000,40000] x) => (float[1,4,P,Q] y) "
        "{ t = BatchNormalization(x, s, b, m, v) y = Conv<pads=[1,1,1,1], strides=[20000,20000]>(t, w) }",
        {"w": normal(4, 3, 3, 3), **batch_norm(3)},
    )
    assert refusals(built) == {RefusalId.PADDING_BLOCKS_SHIFT}


@pytest.mark.parametrize("op", [
    "Reshape(t, shape)",
    "Slice(t, one, ends, axes)",
    "ReduceMean<axes=[2], keepdims=3>(t)",
    "ReduceMean<axes=[2, -2]>(t)",
    "MaxPool<kernel_shape=[1,2], pads=[0,2,0,0]>(t)",
    'MaxPool<kernel_shape=[2,2], auto_pad="SAME_UPPER", strides=[0,1]>(t)',
    "AveragePool<kernel_shape=[2,-1]>(t)",
    "SpaceToDepth<blocksize=0>(t)",
    "SpaceToDepth<blocksize=1000000000>(t)",
])  # fmt: skip
def test_an_op_of_arguments_that_make_no_sense_carries_nothing(op: str) -> None:
    built = model(
        "g (float[1,3,4,4] x) => (float[A,B,C,D] y) "
        f"{{ t = BatchNormalization(x, s, b, m, v) u = {op} y = Conv(u, w) }}",
        {
            "w": CONV[:, :3],
            **batch_norm(3),
            "shape": np.array([0, 7]),
            "one": np.array([0]),
            "ends": np.array([2, 2]),
            "axes": np.array([2, 3]),
        },
    )
    FoldBatchNorm()(built)
    assert "BatchNormalization" in ops(built)


def test_parameters_behind_a_squeeze_of_no_axis_are_not_constant() -> None:
    built = model(
        "g (float[1,3,4,4] x) => (float[1,3,4,4] y) "
        "{ h = Squeeze(s, far) t = BatchNormalization(x, h, b, m, v) y = Conv(t, w) }",
        {"w": CONV[:, :3], **batch_norm(3), "far": np.array([2**62])},
    )
    FoldBatchNorm()(built)
    assert "BatchNormalization" in ops(built)


def test_a_second_fold_finds_nothing_between_two_batched_products() -> None:
    """The Add that the first fold writes behind `t` has the shape of `t`, which only inference knows."""
    built = model(
        "g (float[2,1] x) => (float[1,1,2] y) { r = Reshape(x, shape) n = BatchNormalization(r, s, b, m, v) "
        "t = MatMul(n, w) u = MatMul(t, z) d = Div(u, c) e = Add(d, c) y = Relu(e) }",
        {
            "shape": np.array([-1, 1, 2]),
            "w": normal(1, 2, 3),
            "z": normal(1, 3, 2),
            "c": np.array([2, 3], np.float32),
            **batch_norm(1),
        },
    )
    FoldBatchNorm()(built)
    assert ops(built) == ["Reshape", "MatMul", "MatMul", "Add", "Relu"]
    assert not FoldBatchNorm()(built).modified
