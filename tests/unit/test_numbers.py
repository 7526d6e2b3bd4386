"""Folded numbers are the float64 formula rounded once: not one unit in the last place away from it.

The formula stands here a second time, written down from the definitions and not from the code under test. float64
weights are held against long double, where two units are granted.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from bnpass.passes import FoldBatchNorm
from bnpass.semantics.affine import round_once
from tests.support.build import BFLOAT16, batch_norm, model, normal
from tests.support.judge import Result, fold, folded_and_right, serialized

Array = NDArray[Any]

NAMES = {np.float16: "float16", BFLOAT16: "bfloat16", np.float32: "float", np.float64: "double"}
TYPES = [np.float16, BFLOAT16, np.float32, np.float64]
SEEDS = range(4)


def kind_of(dtype: Any) -> Any:
    return np.longdouble if dtype is np.float64 else np.float64


def correctly_rounded(x: Array, dtype: Any) -> Array:
    """Round to nearest, ties to even, by comparing with both neighbours."""
    if dtype is not BFLOAT16:
        return x.astype(dtype)
    bits = (x.astype(np.float32).view(np.uint32) >> 16).astype(np.int64)
    candidates = np.stack([(bits + step).astype(np.uint16).view(BFLOAT16) for step in (-1, 0, 1)])
    gaps = np.nan_to_num(np.abs(candidates.astype(np.float64) - x), nan=np.inf)
    is_odd = candidates.view(np.uint16) & 1
    best = np.lexsort((is_odd, gaps), axis=0)[0]
    return np.take_along_axis(candidates, best[None], axis=0)[0]


def affine(constants: Mapping[str, Array], kind: Any, suffix: str = "") -> tuple[Array, Array]:
    scale, B, mean, var = (constants[name + suffix].astype(kind) for name in "sbmv")
    s = scale / np.sqrt(var + kind(np.float32(1e-5)))
    return s, B - mean * s


def same(result: Array, exact: Array, dtype: Any) -> None:
    assert result.dtype == np.dtype(dtype)
    expected = correctly_rounded(exact, dtype)
    if dtype is np.float64:
        np.testing.assert_array_max_ulp(result, expected, maxulp=2)
        return
    wrong = result.view(np.uint8) != expected.view(np.uint8)
    assert not wrong.any(), f"{result[result != expected][:3]} instead of {expected[result != expected][:3]}"


def folded(graph: str, constants: dict[str, Array], dtype: Any) -> Result:
    result = fold(model(graph.replace("TYPE", NAMES[dtype]), constants, opset=22, ir_version=10))
    assert [k for k in result.kept if k.op_type == "BatchNormalization"] == []
    return result


def bias_of(result: Result) -> Array:
    return next(result.constant(n) for n in result.after.graph.initializers if n.endswith(("bias", "c", "constant")))


LINEAR = {
    "Conv": ("Conv", (6, 4, 3, 3)),
    "ConvTranspose": ("ConvTranspose", (4, 6, 1, 1)),
    "Gemm": ("Gemm", (4, 6)),
    "Gemm, transB": ("Gemm <transB = 1>", (6, 4)),
    "MatMul": ("MatMul", (4, 6)),
}
OUT_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "Gemm, transB": 0, "MatMul": 1}


def along(vector: Array, axis: int, rank: int) -> Array:
    shape = [1] * rank
    shape[axis] = -1
    return vector.reshape(shape)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", TYPES, ids=NAMES.get)
@pytest.mark.parametrize("op", OUT_AXIS)
def test_behind_a_linear_op(op: str, dtype: Any, seed: int) -> None:
    op_text, shape = LINEAR[op]
    has_bias = op != "MatMul"
    constants = {"W": normal(*shape, seed=seed, dtype=dtype), **batch_norm(6, seed, dtype)}
    if has_bias:
        constants["c"] = normal(6, seed=seed + 9, dtype=dtype)
    dims = "2,4" if len(shape) == 2 else "2,4,5,5"
    graph = f"""g (TYPE[{dims}] x) => (TYPE[{dims.replace("4", "6").replace("5", "P", 1).replace("5", "Q")}] y) {{
        t = {op_text} (x, W{", c" if has_bias else ""})
        y = BatchNormalization (t, s, b, m, v)
    }}"""
    result = folded(graph, constants, dtype)
    kind = kind_of(dtype)
    s, t = affine(constants, kind)
    same(result.constant("W"), constants["W"].astype(kind) * along(s, OUT_AXIS[op], len(shape)), dtype)
    bias = s * constants["c"].astype(kind) + t if has_bias else t
    same(bias_of(result), bias, dtype)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", TYPES, ids=NAMES.get)
@pytest.mark.parametrize("op", OUT_AXIS)
def test_before_a_linear_op(op: str, dtype: Any, seed: int) -> None:
    op_text, shape = LINEAR[op]
    constants = {"W": normal(*shape, seed=seed, dtype=dtype), **batch_norm(4, seed, dtype)}
    dims = "2,4" if len(shape) == 2 else "2,4,5,5"
    graph = f"""g (TYPE[{dims}] x) => (TYPE[{dims.replace("4", "6").replace("5", "P", 1).replace("5", "Q")}] y) {{
        t = BatchNormalization (x, s, b, m, v)
        y = {op_text} (t, W)
    }}"""
    result = folded(graph, constants, dtype)
    kind = kind_of(dtype)
    s, t = affine(constants, kind)
    in_axis = 1 - OUT_AXIS[op]
    W = constants["W"].astype(kind)
    same(result.constant("W"), W * along(s, in_axis, len(shape)), dtype)
    summed = tuple(a for a in range(len(shape)) if a != OUT_AXIS[op])
    bias = (W.astype(np.longdouble) * along(t, in_axis, len(shape))).sum(axis=summed)
    same(bias_of(result).reshape(-1), bias.astype(kind), dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=NAMES.get)
def test_behind_and_before_and_two_in_a_row_are_rounded_once(dtype: Any) -> None:
    graph = """g (TYPE[2,4,5,5] x) => (TYPE[2,6,5,5] y) {
        a = BatchNormalization (x, s1, b1, m1, v1)
        c = BatchNormalization (a, s2, b2, m2, v2)
        d = Conv (c, W)
        e = BatchNormalization (d, s3, b3, m3, v3)
        y = BatchNormalization (e, s4, b4, m4, v4)
    }"""
    constants = {"W": normal(6, 4, 1, 1, dtype=dtype)}
    for i, channels in enumerate((4, 4, 6, 6), 1):
        constants |= {f"{k}{i}": a for k, a in batch_norm(channels, i, dtype).items()}
    result = folded(graph, constants, dtype)
    assert result.ops == ["Conv"]
    kind = np.longdouble
    (s1, _), (s2, _), (s3, _), (s4, _) = (affine(constants, kind, str(i)) for i in (1, 2, 3, 4))
    W = constants["W"].astype(kind)
    exact = W * along(s1 * s2, 1, 4) * along(s3 * s4, 0, 4)
    same(result.constant("W"), exact.astype(kind_of(dtype)), dtype)


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=NAMES.get)
def test_a_million_weights_without_one_double_rounding(dtype: Any) -> None:
    graph = "g (TYPE[1,50] x) => (TYPE[1,20000] y) { t = Gemm (x, W) y = BatchNormalization (t, s, b, m, v) }"
    constants = {"W": normal(50, 20000, dtype=dtype), **batch_norm(20000, 5)}
    result = folded(graph, constants, dtype)
    exact = constants["W"].astype(np.float64) * affine(constants, np.float64)[0]
    same(result.constant("W"), exact, dtype)
    twice = exact.astype(np.float32).astype(dtype)
    assert (twice != correctly_rounded(exact, dtype)).any(), "this draw would not have told the difference"


@pytest.mark.parametrize(
    ("exact", "expected"),
    [
        (1 + 2.0**-8, 1.0),  # a tie goes to even
        (1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-7),  # above the tie, but float32 does not see it
        (1 + 3 * 2.0**-8, 1 + 2.0**-6),
        (1 + 3 * 2.0**-8 - 2.0**-40, 1 + 2.0**-7),
        (-(1 + 2.0**-8 + 2.0**-40), -(1 + 2.0**-7)),
        (2.0**-133, 2.0**-133),
        (2.0**-134, 0.0),  # half the smallest subnormal, to even
        (2.0**-134 * (1 + 2.0**-30), 2.0**-133),
        (3.4e38, float("inf")),
        (float("inf"), float("inf")),
        (0.0, 0.0),
    ],
)
def test_bfloat16_is_rounded_in_one_step(exact: float, expected: float) -> None:
    assert float(round_once(np.array([exact]), np.dtype(BFLOAT16))[0]) == expected


def test_gemm_bias_is_divided_by_beta_and_rounded_once() -> None:
    graph = """g (TYPE[2,4] x) => (TYPE[2,6] y) {
        t = Gemm <alpha = 0.3, beta = 0.7> (x, W, c)
        y = BatchNormalization (t, s, b, m, v)
    }"""
    constants = {"W": normal(4, 6), "c": normal(6, seed=3), **batch_norm(6)}
    result = folded(graph, constants, np.float32)
    s, t = affine(constants, np.float64)
    beta = float(np.float32(0.7))
    same(result.constant("c"), (s * (beta * constants["c"].astype(float)) + t) / beta, np.float32)
    same(result.constant("W"), constants["W"].astype(float) * s, np.float32)


# --- metamorphic --------------------------------------------------------------------------------------------------

CONV_BN = """g (float[2,3,6,6] x) => (float[2,4,4,4] y) {
    t = Conv (x, W)
    y = BatchNormalization <epsilon = EPSILON> (t, s, b, m, v)
}"""


def weights_of(graph: str, constants: dict[str, Array]) -> tuple[Array, Array | None]:
    result = folded_and_right(model(graph.replace("EPSILON", "0.00001"), constants))
    bias = [n for n in result.after.graph.initializers if n.endswith("bias")]
    return result.constant("W"), result.constant(bias[0]) if bias else None


def test_an_identity_batch_norm_leaves_the_weights_as_they_are() -> None:
    one, zero = np.ones(4, np.float32), np.zeros(4, np.float32)
    constants = {"W": normal(4, 3, 3, 3), "s": one, "b": zero, "m": zero, "v": one}
    result = folded_and_right(model(CONV_BN.replace("EPSILON", "0.0"), constants))
    assert result.ops == ["Conv"]
    np.testing.assert_array_equal(result.constant("W"), constants["W"])


def test_permuting_channels_commutes_with_folding() -> None:
    constants = {"W": normal(4, 3, 3, 3), **batch_norm(4)}
    order = [2, 0, 3, 1]
    W, bias = weights_of(CONV_BN, constants)
    permuted_W, permuted_bias = weights_of(CONV_BN, {k: a[order] for k, a in constants.items()})
    assert bias is not None
    assert permuted_bias is not None
    np.testing.assert_array_equal(permuted_W, W[order])
    np.testing.assert_array_equal(permuted_bias, bias[order])


def test_doubling_gamma_and_beta_doubles_weight_and_bias() -> None:
    constants = {"W": normal(4, 3, 3, 3), **batch_norm(4)}
    W, bias = weights_of(CONV_BN, constants)
    doubled_W, doubled_bias = weights_of(CONV_BN, {**constants, "s": 2 * constants["s"], "b": 2 * constants["b"]})
    assert bias is not None
    assert doubled_bias is not None
    np.testing.assert_array_equal(doubled_W, 2 * W)
    np.testing.assert_array_equal(doubled_bias, 2 * bias)


def test_folding_twice_is_as_exact_as_folding_once() -> None:
    """Behind first, then what was put in front of the result: the second fold starts from rounded weights."""
    once = fold(model(CONV_BN.replace("EPSILON", "0.001"), {"W": normal(4, 3, 3, 3), **batch_norm(4)}))
    again = fold(once.after)
    assert serialized(again.after) == serialized(once.after)


@pytest.mark.parametrize("dtype", TYPES, ids=NAMES.get)
def test_what_stays_is_joined_from_exact_numbers(dtype: Any) -> None:
    """Two batch normalizations with no linear neighbour: gamma' = s·sqrt(var + eps), beta' = t + mean·s."""
    graph = """g (TYPE[2,4,3] x) => (TYPE[2,4,3] y) {
        t = BatchNormalization (x, s1, b1, m1, v1)
        y = BatchNormalization (t, s2, b2, m2, v2)
    }"""
    constants = {f"{k}{i}": a for i in (1, 2) for k, a in batch_norm(4, i, dtype).items()}
    result = fold(model(graph.replace("TYPE", NAMES[dtype]), constants, opset=22, ir_version=10))
    assert result.ops == ["BatchNormalization"]
    kind = kind_of(dtype)
    (s1, t1), (s2, t2) = (affine(constants, kind, str(i)) for i in (1, 2))
    s, t = s1 * s2, s2 * t1 + t2
    deviation = np.sqrt(constants["v1"].astype(kind) + kind(np.float32(1e-5)))
    same(result.constant("s1"), s * deviation, dtype)
    same(result.constant("b1"), t + constants["m1"].astype(kind) * s, dtype)


# --- where the numbers lie ----------------------------------------------------------------------------------------


def test_weights_in_an_external_file_fold_to_the_same_numbers(tmp_path: Path) -> None:
    built = model(CONV_BN.replace("EPSILON", "0.001"), {"W": normal(4, 3, 3, 3), **batch_norm(4)})
    inline = fold(built)
    ir.save(built, tmp_path / "model.onnx", external_data="weights.bin", size_threshold_bytes=0)
    loaded = ir.load(tmp_path / "model.onnx")
    assert any(isinstance(v.const_value, ir.ExternalTensor) for v in loaded.graph.initializers.values())
    before = zlib.crc32((tmp_path / "weights.bin").read_bytes())

    after = FoldBatchNorm()(loaded).model
    for name in ("W", "y/bias"):
        tensor = after.graph.initializers[name].const_value
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), inline.constant(name))
    assert zlib.crc32((tmp_path / "weights.bin").read_bytes()) == before


def test_weights_as_raw_data_and_as_typed_fields_fold_to_the_same_numbers() -> None:
    constants = {"W": normal(4, 3, 3, 3), **batch_norm(4)}
    raw = ir.to_proto(model(CONV_BN.replace("EPSILON", "0.001"), constants))
    typed = onnx.ModelProto()
    typed.CopyFrom(raw)
    for tensor in typed.graph.initializer:
        array = constants[tensor.name]
        tensor.CopyFrom(onnx.helper.make_tensor(tensor.name, tensor.data_type, array.shape, array.ravel()))
    assert typed.graph.initializer[0].float_data
    np.testing.assert_array_equal(fold(ir.from_proto(raw)).constant("W"), fold(ir.from_proto(typed)).constant("W"))


def test_the_judge_itself_flags_a_weight_that_is_two_units_off() -> None:
    constants = {"W": normal(4, 3, 1, 1), **batch_norm(4)}
    result = fold(model(CONV_BN.replace("EPSILON", "0.001").replace("4,4] y", "6,6] y"), constants))
    W = result.constant("W")
    wrong = np.nextafter(np.nextafter(W, np.inf), np.inf)
    with pytest.raises(AssertionError, match="instead of"):
        same(wrong, W.astype(np.float64), np.float32)
    assert ml_dtypes.finfo(BFLOAT16).eps == 2.0**-7
