"""Quantized models that are refused, each with a neighbour, one step away, that is folded."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from bnpass.errors import RefusalId
from tests.support.build import batch_norm, model, normal, tensor
from tests.support.judge import fold, is_right
from tests.unit.test_refusals import Case

Array = NDArray[Any]
F = np.float32

CONV_MUL = """g (float[2,3,6,6] x) => (float[2,4,4,4] y) {
    [dq] w = DequantizeLinear <axis = 0> (Q, a)
    [conv] t = Conv (x, w)
    [bn] y = Mul (t, k)
}"""
MUL_CONV = """g (float[2,3,6,6] x) => (float[2,4,4,4] y) {
    [dq] w = DequantizeLinear (Q, a)
    [bn] t = Mul (x, k)
    [conv] y = Conv (t, w)
}"""
GEMM_MUL = """g (float[2,3] x) => (float[2,4] y) {
    [dq] w = DequantizeLinear <axis = 1> (Q, a)
    [dqb] c = DequantizeLinear (B, ab)
    [gemm] t = Gemm (x, w, c)
    [bn] y = Mul (t, k)
}"""
QAT = """g (float[2,3] x) => (float[2,4] y) {
    [q] i = QuantizeLinear (W, a, z)
    [dq] w = DequantizeLinear (i, a2, z)
    [gemm] t = Gemm (x, w)
    [bn] y = Mul (t, k)
}"""
ACTIVATION = """g (float[2,3,6,6] x) => (float[2,4,4,4] y) {
    [bn] t = BatchNormalization (x, s, b, m, v)
    [q] i = QuantizeLinear (t, a)
    [dq] u = DequantizeLinear (i, a)
    [conv] y = Conv (u, W)
}"""

DYNAMIC = """[dyn] i, xs, xz = DynamicQuantizeLinear (t)
    [mi] j = MatMulInteger (i, Q, xz)
    [cast] f = Cast <to = 1> (j)
    [mul] y = Mul (f, xs)"""


def integers(*shape: int, low: int = -127, high: int = 127, dtype: Any = np.int8) -> Array:
    return np.random.default_rng(0).integers(low, high + 1, shape).astype(dtype)


def lowest(*shape: int) -> Array:
    q = integers(*shape)
    q[1] = -128
    return q


SIGNS = np.array([1, -1, 2, -0.5], F)
SCALES = np.array([0.01, 0.02, 0.03, 0.04], F)
CONV = {"Q": integers(4, 3, 3, 3), "a": SCALES, "k": SIGNS.reshape(4, 1, 1)}
GEMM = {
    "Q": integers(3, 4), "a": SCALES, "B": integers(4, low=-9999, high=9999, dtype=np.int32), "ab": F(1e-3), "k": SIGNS
}  # fmt: skip
TRAINED = {"W": normal(3, 4), "a": F(0.05), "a2": F(0.06), "z": np.int8(0), "k": SIGNS}
Q = RefusalId.QUANTIZED_WEIGHT

CASES = (
    Case(
        Q, "the negative of -128", CONV_MUL, {**CONV, "Q": lowest(4, 3, 3, 3)},
        at="conv", says=("negative of -128 in int8",), instead_constants={"Q": integers(4, 3, 3, 3)},
    ),
    Case(
        Q, "a scale per input channel", MUL_CONV, {**CONV, "a": F(0.1), "k": normal(3, 1, 1)},
        at="conv", says=("no scale per input channel",), instead_constants={"k": F(-3)},
    ),
    Case(
        Q, "groups share a scale",
        """g (float[2,4,6,6] x) => (float[2,4,8,8] y) {
            [dq] w = DequantizeLinear <axis = 1> (Q, a)
            [ct] t = ConvTranspose <group = 2> (x, w)
            [bn] y = Mul (t, k)
        }""",
        {"Q": integers(4, 2, 3, 3), "a": SCALES[:2], "k": SIGNS.reshape(4, 1, 1)},
        at="ct", says=("all 2 groups",), instead_constants={"k": np.array([1, -2, 1, -2], F).reshape(4, 1, 1)},
    ),
    Case(
        Q, "one scale before opset 13", CONV_MUL.replace("<axis = 0>", ""), {**CONV, "a": F(0.1)},
        at="conv", says=("in opset 12 there is none per channel",), opset=12, instead_opset=13,
    ),
    Case(
        Q, "another axis", CONV_MUL.replace("= 0", "= 1"), {**CONV, "a": SCALES[:3]},
        at="conv", says=("a scale along axis 1", "along [0]"), instead=("axis = 1", "axis = 0"),
        instead_constants={"a": SCALES},
    ),
    Case(
        Q, "blocks",
        GEMM_MUL.replace("axis = 1", "axis = 0, block_size = 3").replace("(Q, a)", "(Q, aa)"),
        {**GEMM, "aa": SCALES.reshape(1, 4)},
        at="gemm", says=("has block_size 3",), opset=21, instead_opset=21,
        instead=("axis = 0, block_size = 3> (Q, aa)", "axis = 1> (Q, a)"),
    ),
    Case(
        Q, "float8", CONV_MUL, {**CONV, "Q": normal(4, 3, 3, 3).astype(ml_dtypes.float8_e4m3fn)},
        at="conv", says=("makes it of FLOAT8E4M3FN",), opset=19, instead_opset=19,
        instead_constants={"Q": integers(4, 3, 3, 3)},
    ),
    Case(
        Q, "beta", GEMM_MUL.replace("Gemm", "Gemm <beta = 2.0>"), GEMM,
        at="gemm", says=("a quantized C", "beta 2"), instead=("<beta = 2.0>", ""),
    ),
    Case(
        Q, "trained with other scales", QAT, TRAINED,
        at="gemm", says=("QuantizeLinear 'q'", "other scales"), instead=("a2", "a"),
    ),
    Case(
        Q, "trained, -128", QAT.replace("a2", "a"), {**TRAINED, "W": normal(3, 4) * 50},
        at="gemm", says=("negative of -128",), instead_constants={"W": normal(3, 4)},
    ),
    Case(
        Q, "before quantization", ACTIVATION, {"W": normal(4, 3, 3, 3), "a": F(0.1), **batch_norm(3)},
        at="q", says=("QuantizeLinear 'q' stands behind it", "move its ties"),
        instead=("[q] i = QuantizeLinear (t, a)\n    [dq] u = DequantizeLinear (i, a)", "u = Identity (t)"),
    ),
    Case(
        Q, "dynamic quantization",
        """g (float[2,3] x) => (float[2,4] y) {
            [bn] t = BatchNormalization (x, s, b, m, v)
            """ + DYNAMIC + "}",
        {"Q": integers(3, 4), "W": normal(3, 4), **batch_norm(3)},
        at="dyn", says=("DynamicQuantizeLinear 'dyn' stands behind it", "run time"),
        instead=(DYNAMIC, "[matmul] y = MatMul (t, W)"),
    ),
    Case(
        Q, "ConvInteger",
        """g (uint8[2,3,6,6] x) => (float[2,4,4,4] y) {
            [ci] i = ConvInteger (x, Q)
            [cast] t = Cast <to = 1> (i)
            [bn] y = BatchNormalization (t, s, b, m, v)
        }""",
        {"Q": integers(4, 3, 3, 3), "W": normal(4, 3, 3, 3), **batch_norm(4)},
        at="ci", says=("ConvInteger 'ci' stands before it",),
        instead=("ConvInteger (x, Q)\n            [cast] t = Cast <to = 1> (i)",
                 "Cast <to = 1> (x)\n            [conv] t = Conv (i, W)"),
    ),
    Case(
        Q, "QLinearConv",
        """g (uint8[2,3,6,6] x) => (float[2,4,4,4] y) {
            [ql] i = QLinearConv (x, a, z, Q, a, zq, a, z)
            [dq] t = DequantizeLinear (i, a, z)
            [bn] y = BatchNormalization (t, s, b, m, v)
        }""",
        {"Q": integers(4, 3, 3, 3), "W": normal(4, 3, 3, 3), "a": F(0.1), "z": np.uint8(9), "zq": np.int8(0),
         **batch_norm(4)},
        at="ql", says=("QLinearConv 'ql' stands before it",),
        instead=("QLinearConv (x, a, z, Q, a, zq, a, z)\n            [dq] t = DequantizeLinear (i, a, z)",
                 "DequantizeLinear (x, a, z)\n            [conv] t = Conv (i, W)"),
    ),
    Case(
        RefusalId.WOULD_OVERFLOW, "int32 of a bias", GEMM_MUL.replace("Mul (t, k)", "Add (t, k)"),
        {**GEMM, "k": np.array([1, 1e7, 1, 1], F)},
        at="gemm", says=("overflows int32",), instead_constants={"k": np.array([1, 1e5, 1, 1], F)},
    ),
    Case(
        RefusalId.WOULD_OVERFLOW, "int32 with the products", GEMM_MUL.replace("Mul (t, k)", "Add (t, k)"),
        {**GEMM, "k": np.array([1, 2147460, 1, 1], F)},
        at="gemm", says=("overflows int32",), instead_constants={"k": np.array([1, 2146000, 1, 1], F)},
    ),
    Case(
        RefusalId.WOULD_OVERFLOW, "a scale", CONV_MUL, {**CONV, "k": np.full((4, 1, 1), 1e38, F), "a": SCALES * 1e4},
        at="conv", says=("scale beyond the range of float",), instead_constants={"k": np.full((4, 1, 1), 1e20, F)},
    ),
    Case(
        RefusalId.WOULD_OVERFLOW, "a weight", CONV_MUL, {**CONV, "k": np.full((4, 1, 1), 1e38, F)},
        at="conv", says=("weight beyond the range of float",), instead_constants={"k": np.full((4, 1, 1), 1e20, F)},
    ),
    Case(
        RefusalId.DTYPE_WOULD_LOSE_PRECISION, "a scale", CONV_MUL, {**CONV, "k": np.full((4, 1, 1), 1e-37, F)},
        at="conv", says=("scale too small for float",), instead_constants={"k": np.full((4, 1, 1), 1e-20, F)},
    ),
    Case(
        RefusalId.INVALID_STATISTICS, "a scale of zero", CONV_MUL, {**CONV, "a": SCALES * np.array([1, 1, 0, 1], F)},
        at="conv", says=("not a positive number",), instead_constants={"a": SCALES},
    ),
    Case(
        RefusalId.INVALID_STATISTICS, "trained, NaN", QAT.replace("a2", "a"), {**TRAINED, "W": normal(3, 4) * F("nan")},
        at="gemm", says=("NaN or infinity in its weight",), instead_constants={"W": normal(3, 4)},
    ),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_refuses_and_says_why(case: Case) -> None:
    result = fold(case.model())
    (kept,) = result.kept
    assert (kept.node, kept.refusal, kept.at) == ("bn", case.id, case.at), kept
    for words in case.says:
        assert words in kept.reason
    assert not result.modified


@pytest.mark.parametrize("case", CASES, ids=str)
def test_folds_the_neighbour(case: Case) -> None:
    result = fold(case.neighbour())
    assert not result.kept
    assert result.folded
    is_right(result)


def test_an_overridable_scale_is_refused() -> None:
    proto = ir.to_proto(model(CONV_MUL, CONV))
    proto.graph.input.append(onnx.helper.make_tensor_value_info("a", 1, [4]))
    (kept,) = fold(ir.from_proto(proto)).kept
    assert (kept.refusal, kept.at) == (RefusalId.OVERRIDABLE_INITIALIZER, "conv")
    assert "scale of DequantizeLinear 'dq'" in kept.reason


def test_ops_of_onnx_runtime_are_named() -> None:
    node = onnx.helper.make_node("QGemm", ["x", "xs", "z", "Q", "xs", "zq"], ["t"], "qg", domain="com.microsoft")
    mul = onnx.helper.make_node("Mul", ["t", "k"], ["y"], "bn")
    values = [onnx.helper.make_tensor_value_info("x", 2, [2, 3]), onnx.helper.make_tensor_value_info("y", 1, [2, 4])]
    constants = {"Q": integers(3, 4), "xs": F(0.1), "z": np.uint8(3), "zq": np.int8(0), "k": SIGNS}
    graph = onnx.helper.make_graph(
        [node, mul], "g", values[:1], values[1:], [tensor(np.asarray(a), n) for n, a in constants.items()],
        value_info=[onnx.helper.make_tensor_value_info("t", 1, [2, 4])],
    )  # fmt: skip
    imports = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    (kept,) = fold(ir.from_proto(onnx.helper.make_model(graph, opset_imports=imports, ir_version=8))).kept
    assert (kept.refusal, kept.at) == (Q, "qg")
    assert "QGemm 'qg' stands before it" in kept.reason
