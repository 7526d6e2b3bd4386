"""Every refusal has a model that provokes it and a neighbour, one step away, that is folded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from bnpass.errors import RefusalId
from bnpass.folding.options import FoldOptions
from tests.support.build import batch_norm, model, normal
from tests.support.judge import fold, folded_and_right, is_right

Array = NDArray[Any]

CONV_BN = """g (float[2,3,6,6] x) => (float[2,4,4,4] y) {
    [conv] t = Conv (x, W)
    [bn] y = BatchNormalization (t, s, b, m, v)
}"""
BN_CONV = """g (float[2,3,6,6] x) => (float[2,4,4,4] y) {
    [bn] t = BatchNormalization (x, s, b, m, v)
    [conv] y = Conv (t, W)
}"""
GEMM_BN = """g (float[2,3] x) => (float[2,4] y) {
    [gemm] t = Gemm (x, W)
    [bn] y = BatchNormalization (t, s, b, m, v)
}"""
ADD_CONV = """g (float[2,3,6,6] x) => (float[2,4,P,Q] y) {
    [bn] t = Add (x, c)
    [conv] y = Conv (t, W)
}"""
W = {"W": normal(4, 3, 3, 3)}
ADDED = {**W, "c": normal(3, 1, 1)}
CONV = {**W, **batch_norm(4)}
BEFORE = {**W, **batch_norm(3)}
GEMM = {"W": normal(3, 4), **batch_norm(4)}


@dataclass(frozen=True)
class Case:
    """A model that is refused, and what of it is changed in the neighbour that is not."""

    id: RefusalId
    name: str
    graph: str
    constants: Mapping[str, Array]
    at: str
    says: tuple[str, ...]
    instead: tuple[str, str] = ("", "")
    instead_constants: Mapping[str, Array] = field(default_factory=dict)
    opset: int = 17
    instead_opset: int = 17
    options: FoldOptions | None = None
    instead_options: FoldOptions | None = None
    node: str = "bn"

    def __str__(self) -> str:
        return f"{self.id.code}-{self.name}"

    def model(self) -> ir.Model:
        """Return the model that is refused."""
        return model(self.graph, self.constants, opset=self.opset)

    def neighbour(self) -> ir.Model:
        """Return the model that is not."""
        old, new = self.instead
        assert not old or old in self.graph
        graph = self.graph.replace(old, new) if old else self.graph
        return model(graph, {**self.constants, **self.instead_constants}, opset=self.instead_opset)


def params(**changed: Array) -> dict[str, Array]:
    return {**CONV, **changed}


F = np.float32

CASES = (
    Case(
        RefusalId.TRAINING_MODE,
        "attribute",
        CONV_BN.replace("[bn] y =", "[bn] y, rm, rv =").replace(
            "Normalization (", "Normalization <training_mode = 1> ("
        ),
        CONV,
        at="bn",
        says=("training mode",),
        instead=("y, rm, rv = BatchNormalization <training_mode = 1>", "y = BatchNormalization"),
    ),
    Case(
        RefusalId.TRAINING_MODE,
        "more outputs before opset 14",
        CONV_BN.replace("[bn] y =", "[bn] y, rm, rv, sm, sv ="),
        CONV,
        at="bn",
        says=("training mode",),
        instead=("y, rm, rv, sm, sv", "y"),
        opset=13,
        instead_opset=13,
    ),
    Case(
        RefusalId.TRAINING_MODE,
        "option inference",
        CONV_BN.replace("[bn] y =", "[bn] y, rm, rv =").replace(
            "Normalization (", "Normalization <training_mode = 1> ("
        ),
        CONV,
        at="bn",
        says=("training mode",),
        instead_options=FoldOptions(inference=True),
    ),
    Case(
        RefusalId.NON_CONSTANT_PARAMETER,
        "scale",
        CONV_BN.replace("x)", "x, float[4] s0)", 1).replace("s, b, m, v", "s0, b, m, v"),
        CONV,
        at="bn",
        says=("scale", "'s0'"),
        instead=("s0, b, m, v", "s, b, m, v"),
    ),
    Case(
        RefusalId.NON_CONSTANT_PARAMETER,
        "variance computed at run time",
        CONV_BN.replace("{", "{ [abs] w = Abs (v)", 1).replace("b, m, v)", "b, m, w)"),
        CONV,
        at="bn",
        says=("input_var", "Abs 'abs'"),
        instead=("Abs", "Identity"),
    ),
    Case(
        RefusalId.NON_CONSTANT_PARAMETER,
        "weight",
        CONV_BN.replace("x)", "x, float[4,3,3,3] w)", 1).replace("(x, W)", "(x, w)"),
        CONV,
        at="conv",
        says=("weight of Conv 'conv'", "'w'"),
        instead=("(x, w)", "(x, W)"),
    ),
    Case(
        RefusalId.NON_CONSTANT_PARAMETER,
        "bias",
        CONV_BN.replace("x)", "x, float[4] c)", 1).replace("(x, W)", "(x, W, c)"),
        CONV,
        at="conv",
        says=("bias of Conv 'conv'", "'c'"),
        instead=("(x, W, c)", "(x, W)"),
    ),
    Case(
        RefusalId.PRODUCER_USED_ELSEWHERE,
        "two readers",
        CONV_BN.replace("y)", "y, float[2,4,4,4] z)", 1).replace("}", "[relu] z = Relu (t) }"),
        CONV,
        at="conv",
        says=("'t'", "Relu 'relu'", "BatchNormalization 'bn'"),
        instead=("Relu (t)", "Relu (y)"),
    ),
    Case(
        RefusalId.PRODUCER_USED_ELSEWHERE,
        "statistics of inference mode",
        """g (float[2,3,6,6] x) => (float[2,4,4,4] y, float[4] rm) {
            [conv] t = Conv (x, W)
            [bn] y, rm, rv = BatchNormalization (t, s, b, m, v)
        }""",
        CONV,
        at="bn",
        says=("'rm'",),
        instead=(
            "y, rm, rv = BatchNormalization (t, s, b, m, v)",
            "y = BatchNormalization (t, s, b, m, v) rm = Abs (v)",
        ),
    ),
    Case(
        RefusalId.PRODUCER_IS_GRAPH_OUTPUT,
        "conv",
        CONV_BN.replace("y)", "y, float[2,4,4,4] t)", 1),
        CONV,
        at="conv",
        says=("'t'", "output of the graph"),
        instead=("y, float[2,4,4,4] t)", "y)"),
    ),
    Case(
        RefusalId.PRODUCER_IS_GRAPH_OUTPUT,
        "batch norm",
        BN_CONV.replace("y)", "y, float[2,3,6,6] t)", 1),
        BEFORE,
        at="bn",
        says=("'t'", "graph output"),
        instead=("y, float[2,3,6,6] t)", "y)"),
    ),
    Case(
        RefusalId.AXIS_NOT_PROVABLE,
        "square transpose",
        """g (float[4,3] x) => (float[4,4] y) {
            [matmul] t = MatMul (x, W)
            [transpose] u = Transpose <perm = [1, 0]> (t)
            [bn] y = BatchNormalization (u, s, b, m, v)
        }""",
        GEMM,
        at="matmul",
        says=("MatMul 'matmul'", "axis -1"),
        instead=("[1, 0]", "[0, 1]"),
    ),
    Case(
        RefusalId.AXIS_NOT_PROVABLE,
        "parameters of different lengths",
        CONV_BN,
        params(s=F([1])),
        at="bn",
        says=("[1], [4], [4], [4]",),
        instead_constants={"s": F([1, 2, 3, 4])},
    ),
    Case(
        RefusalId.AXIS_NOT_PROVABLE,
        "along the width",
        """g (float[2,3,6,6] x) => (float[2,4,4,4] y) {
            [conv] t = Conv (x, W)
            [bn] y = Mul (t, a)
        }""",
        {**W, "a": normal(4)},
        at="conv",
        says=("Conv 'conv'", "axis 1"),
        instead_constants={"a": normal(4, 1, 1)},
    ),
    Case(
        RefusalId.AXIS_NOT_PROVABLE,
        "reshape that merges the batch",
        """g (float[N,3,4] x) => (float[P,Q] y) <int64[2] shape = {-1, 6}> {
            [bn] t = BatchNormalization (x, s, b, m, v)
            [shape] u = Reshape (t, shape)
            [gemm] y = Gemm (u, W)
        }""",
        {"W": normal(6, 4), **batch_norm(3)},
        at="shape",
        says=("Reshape 'shape'", "[N, 3, 4]"),
        instead=("{-1, 6}", "{-1, 12}"),
        instead_constants={"W": normal(12, 4)},
    ),
    Case(
        RefusalId.PADDING_BLOCKS_SHIFT,
        "pads",
        ADD_CONV.replace("Conv (", "Conv <pads = [1, 0, 0, 0]> ("),
        ADDED,
        at="conv",
        says=("Conv 'conv'", "pads=[1, 0, 0, 0]"),
        instead=("[1, 0, 0, 0]", "[0, 0, 0, 0]"),
    ),
    Case(
        RefusalId.PADDING_BLOCKS_SHIFT,
        "auto_pad",
        ADD_CONV.replace("Conv (", 'Conv <auto_pad = "SAME_LOWER"> ('),
        ADDED,
        at="conv",
        says=("Conv 'conv'", "auto_pad=SAME_LOWER"),
        instead=("SAME_LOWER", "VALID"),
    ),
    Case(
        RefusalId.PADDING_BLOCKS_SHIFT,
        "a scale passes",
        ADD_CONV.replace("Conv (", "Conv <pads = [1, 1, 1, 1]> ("),
        ADDED,
        at="conv",
        says=("Conv 'conv'",),
        instead=("Add (", "Mul ("),
    ),
    Case(
        RefusalId.PADDING_BLOCKS_SHIFT,
        "stride of a transposed convolution",
        ADD_CONV.replace("Conv (", "ConvTranspose <strides = [2, 2]> ("),
        {**ADDED, "W": normal(3, 4, 1, 1)},
        at="conv",
        says=("ConvTranspose 'conv'",),
        instead=("[2, 2]", "[1, 1]"),
    ),
    Case(
        RefusalId.PADDING_BLOCKS_SHIFT,
        "kernel of a transposed convolution",
        ADD_CONV.replace("Conv (", "ConvTranspose ("),
        {**ADDED, "W": normal(3, 4, 1, 2)},
        at="conv",
        says=("ConvTranspose 'conv'",),
        instead_constants={"W": normal(3, 4, 1, 1)},
    ),
    Case(
        RefusalId.NONLINEAR_BETWEEN,
        "before",
        CONV_BN.replace("[bn]", "[tanh] u = Tanh (t) [bn]").replace("Normalization (t", "Normalization (u"),
        CONV,
        at="tanh",
        says=("Tanh 'tanh'",),
        instead=("Tanh", "Identity"),
    ),
    Case(
        RefusalId.NONLINEAR_BETWEEN,
        "behind",
        BN_CONV.replace("[conv]", "[tanh] u = Tanh (t) [conv]").replace("Conv (t", "Conv (u"),
        BEFORE,
        at="tanh",
        says=("Tanh 'tanh'",),
        instead=("Tanh", "Identity"),
    ),
    Case(
        RefusalId.NONLINEAR_BETWEEN,
        "dropout in training",
        CONV_BN.replace("[bn]", '[drop] u = Dropout (t, "", on) [bn]')
        .replace("Normalization (t", "Normalization (u")
        .replace("{", "<bool on = {1}> {", 1),
        CONV,
        at="drop",
        says=("Dropout 'drop'", "training"),
        instead=("{1}", "{0}"),
    ),
    Case(
        RefusalId.WOULD_OVERFLOW,
        "weight",
        GEMM_BN.replace("float[", "float16["),
        {"W": np.full((3, 4), 60000, np.float16), **batch_norm(4, dtype=np.float16)}
        | {"s": np.full(4, 9, np.float16), "v": np.ones(4, np.float16)},
        at="gemm",
        says=("Gemm 'gemm'", "weight", "float16"),
        instead_constants={"W": normal(3, 4, dtype=np.float16)},
    ),
    Case(
        RefusalId.WOULD_OVERFLOW,
        "bias",
        GEMM_BN,
        {**GEMM, "m": F([1e38] * 4), "s": F([1e3] * 4), "v": F([1e-3] * 4)},
        at="gemm",
        says=("Gemm 'gemm'", "bias", "float"),
        instead_constants={"m": F([1] * 4)},
    ),
    Case(
        RefusalId.INVALID_STATISTICS,
        "negative variance",
        CONV_BN,
        params(v=F([1, 1, -2, 1])),
        at="bn",
        says=("input_var", "-2", "channel 2"),
        instead_constants={"v": F([1, 1, 2, 1])},
    ),
    Case(
        RefusalId.INVALID_STATISTICS,
        "nan",
        CONV_BN,
        params(m=F([1, np.nan, 1, 1])),
        at="bn",
        says=("NaN",),
        instead_constants={"m": F([1, 0, 1, 1])},
    ),
    Case(
        RefusalId.INVALID_STATISTICS,
        "infinite scale",
        CONV_BN,
        params(s=F([1, np.inf, 1, 1])),
        at="bn",
        says=("infinity",),
        instead_constants={"s": F([1, 1e30, 1, 1])},
    ),
    Case(
        RefusalId.INVALID_STATISTICS,
        "zero variance without epsilon",
        CONV_BN.replace("Normalization (", "Normalization <epsilon = 0.0> ("),
        params(v=F([1, 0, 1, 1])),
        at="bn",
        says=("epsilon",),
        instead=("0.0", "0.001"),
    ),
    Case(
        RefusalId.INVALID_STATISTICS,
        "nan in the weight",
        CONV_BN,
        {**CONV, "W": np.full((4, 3, 3, 3), np.nan, F)},
        at="conv",
        says=("Conv 'conv'", "NaN"),
        instead_constants=W,
    ),
    Case(
        RefusalId.DTYPE_WOULD_LOSE_PRECISION,
        "subnormal weights",
        GEMM_BN.replace("float[", "float16["),
        {"W": normal(3, 4, dtype=np.float16), **batch_norm(4, dtype=np.float16)}
        | {"s": np.full(4, 1e-7, np.float16), "v": np.ones(4, np.float16)},
        at="gemm",
        says=("Gemm 'gemm'", "float16"),
        instead_constants={"s": np.full(4, 0.1, np.float16)},
    ),
    Case(
        RefusalId.DTYPE_WOULD_LOSE_PRECISION,
        "cast to the wider type",
        """g (float16[2,3] x) => (float[2,4] y) <float16[2,4] t, float[2,4] u> {
            [gemm] t = Gemm (x, W)
            [cast] u = Cast <to = 1> (t)
            [bn] y = BatchNormalization (u, s, b, m, v)
        }""",
        {"W": normal(3, 4, dtype=np.float16), **batch_norm(4)},
        at="cast",
        says=("Cast 'cast'", "FLOAT16", "narrower"),
        instead=(
            "float16[2,3] x) => (float[2,4] y) <float16[2,4] t",
            "float[2,3] x) => (float[2,4] y) <float[2,4] t",
        ),
        instead_constants={"W": normal(3, 4)},
    ),
    Case(
        RefusalId.CLONE_BUDGET,
        "a shared weight",
        CONV_BN.replace("y)", "y, float[2,4,4,4] z)", 1).replace("}", "[conv2] z = Conv (x, W) }"),
        CONV,
        at="conv",
        says=("Conv 'conv'", "432 bytes", "431"),
        options=FoldOptions(clone_budget=431),
        instead_options=FoldOptions(clone_budget=432),
    ),
    Case(
        RefusalId.NO_LINEAR_NEIGHBOUR,
        "made outside, read by nobody",
        """g (float[2,4] x, float[2,4] z) => (float[2,4] y) {
            [bn] t = BatchNormalization (x, s, b, m, v)
            [relu] y = Relu (z)
        }""",
        batch_norm(4),
        at="bn",
        says=("'x'", "'t'"),
        instead=("[relu] y = Relu (z)", "[gemm] y = Gemm (t, W)"),
        instead_constants={"W": normal(4, 4)},
    ),
    Case(
        RefusalId.UNSUPPORTED_OP,
        "vector",
        """g (float[2,4,3] x) => (float[N,M] y) {
            [matmul] t = MatMul (x, W)
            [bn] y = BatchNormalization (t, s, b, m, v)
        }""",
        {"W": normal(3), **batch_norm(4)},
        at="matmul",
        says=("MatMul 'matmul'", "vector of shape [3]"),
        instead=("float[2,4,3] x", "float[2,3] x"),
        instead_constants={"W": normal(3, 4)},
    ),
    Case(
        RefusalId.UNSUPPORTED_OP,
        "read as a bias",
        """g (float[2,4] x, float[2,4] c) => (float[2,4] y) {
            [bn] t = BatchNormalization (x, s, b, m, v)
            [gemm] y = Gemm (c, W, t)
        }""",
        {"W": normal(4, 4), **batch_norm(4)},
        at="gemm",
        says=("Gemm 'gemm'", "weight or bias"),
        instead=("(c, W, t)", "(t, W)"),
    ),
    Case(
        RefusalId.UNSUPPORTED_OP,
        "groups that do not divide",
        CONV_BN.replace("Conv (", "Conv <group = 3> ("),
        {**CONV, "W": normal(4, 1, 3, 3)},
        at="conv",
        says=("Conv 'conv'", "3 groups"),
        instead=("group = 3", "group = 1"),
        instead_constants=W,
    ),
    Case(
        RefusalId.CROSSES_SCOPE,
        "conv outside",
        """g (float[2,3] x, float[2,4] z, bool on) => (float[2,4] y) {
            [gemm] t = Gemm (x, W)
            [if] y = If (on) <
                then_branch = th () => (float[2,4] p) { [bn] p = BatchNormalization (t, s, b, m, v) },
                else_branch = el () => (float[2,4] q) { q = Relu (z) }
            >
        }""",
        GEMM,
        at="gemm",
        says=("Gemm 'gemm'",),
        instead=(
            "{ [bn] p = BatchNormalization (t,",
            "{ [g2] r = Gemm (x, W) [bn] p = BatchNormalization (r,",
        ),
    ),
    Case(
        RefusalId.QUANTIZED_WEIGHT,
        "rounded to integers in between",
        """g (float[2,3] x) => (float[2,2] y) <float a = {0.5}> {
            [gemm] t = Gemm (x, W)
            [q] i = QuantizeLinear (t, a)
            [dq] w = DequantizeLinear (i, a)
            [bn] y = BatchNormalization (w, s, b, m, v)
        }""",
        {"W": normal(3, 2), **batch_norm(2)},
        at="dq",
        says=("DequantizeLinear 'dq' stands before it",),
        instead=("[q] i = QuantizeLinear (t, a)\n            [dq] w = DequantizeLinear (i, a)", "w = Identity (t)"),
    ),
    Case(
        RefusalId.NOT_SELECTED,
        "excluded by name",
        CONV_BN,
        CONV,
        at="bn",
        says=("not selected",),
        options=FoldOptions(exclude=("b?",)),
        instead_options=FoldOptions(exclude=("b??",)),
    ),
    Case(
        RefusalId.NOT_SELECTED,
        "another one selected",
        CONV_BN,
        CONV,
        at="bn",
        says=("not selected",),
        options=FoldOptions(only=("other",)),
        instead_options=FoldOptions(only=("y",)),
    ),
    Case(
        RefusalId.NO_GAIN,
        "Max and Min for one batch norm",
        CONV_BN.replace("[bn]", "[relu] u = Relu (t) [bn]").replace("Normalization (t", "Normalization (u"),
        {**CONV, "s": F([1, -1, 1, -1])},
        at="bn",
        says=("Relu 'relu'", "Max and Min"),
        options=FoldOptions(target="portable"),
        instead_constants={"s": F([1, 2, 1, 2])},
        instead_options=FoldOptions(target="portable"),
    ),
)


def overridable(ir_version: int) -> ir.Model:
    """Return Conv and BN whose scale is also listed as an input: a default from IR 4 on, a plain constant before."""
    proto = ir.to_proto(model(CONV_BN, CONV, ir_version=ir_version))
    if ir_version >= 4:
        proto.graph.input.append(onnx.helper.make_tensor_value_info("s", 1, [4]))
    return ir.from_proto(proto)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_refuses_and_says_why(case: Case) -> None:
    result = fold(case.model(), case.options)
    kept = next((k for k in result.kept if k.node == case.node), None)
    assert kept is not None, f"'{case.node}' was not kept: {result.folded}"
    assert (kept.refusal, kept.at) == (case.id, case.at), kept
    for words in case.says:
        assert words in kept.reason
    assert not result.modified


@pytest.mark.parametrize("case", CASES, ids=str)
def test_folds_the_neighbour(case: Case) -> None:
    result = fold(case.neighbour(), case.instead_options)
    assert not [k for k in result.kept if k.refusal is case.id]
    assert result.folded
    if case.instead_options is None:
        is_right(result)


def test_overridable_scale_is_refused_from_ir_4_on() -> None:
    result = fold(overridable(4))
    (kept,) = result.kept
    assert (kept.refusal, kept.at) == (RefusalId.OVERRIDABLE_INITIALIZER, "bn")
    assert "'s'" in kept.reason
    assert "override" in kept.reason
    assert not result.modified


def test_listed_initializer_of_ir_3_is_a_constant() -> None:
    result = folded_and_right(overridable(3))
    assert result.ops == ["Conv"]
    assert not result.kept


def test_overridable_weight_is_refused() -> None:
    proto = ir.to_proto(model(CONV_BN, CONV))
    proto.graph.input.append(onnx.helper.make_tensor_value_info("W", 1, [4, 3, 3, 3]))
    (kept,) = fold(ir.from_proto(proto)).kept
    assert (kept.refusal, kept.at) == (RefusalId.OVERRIDABLE_INITIALIZER, "conv")
    assert "'W'" in kept.reason


def test_overridable_operand_of_a_mul_is_refused() -> None:
    proto = ir.to_proto(
        model(
            "g (float[2,3,6,6] x) => (float[2,4,4,4] y) { [conv] t = Conv (x, W) [mul] y = Mul (t, a) }",
            {**W, "a": normal(4, 1, 1)},
        )
    )
    proto.graph.input.append(onnx.helper.make_tensor_value_info("a", 1, [4, 1, 1]))
    (kept,) = fold(ir.from_proto(proto)).kept
    assert (kept.node, kept.refusal) == ("mul", RefusalId.OVERRIDABLE_INITIALIZER)


def test_every_refusal_is_provoked_here() -> None:
    elsewhere = {RefusalId.OVERRIDABLE_INITIALIZER, RefusalId.BRANCHES_DO_NOT_FIT, RefusalId.WORK_WOULD_GROW}
    assert {case.id for case in CASES} | elsewhere == {refusal for refusal in RefusalId if refusal.code < "BN200"}


def test_an_unnamed_node_is_addressed_by_its_first_output() -> None:
    result = fold(model(CONV_BN.replace("[conv]", "").replace("[bn]", "").replace("Conv (x", "Conv (x, x, "), CONV))
    assert [k.node for k in result.kept] == ["y"]
    assert result.kept[0].at == "t"


def test_codes_and_slugs_are_unique_and_in_order() -> None:
    codes = [refusal.code for refusal in RefusalId]
    folding = [code for code in codes if code < "BN200"]
    assert folding == [f"BN{101 + i}" for i in range(len(folding))]
    assert codes[len(folding) :] == [f"BN{201 + i}" for i in range(len(codes) - len(folding))]
    assert len({refusal.slug for refusal in RefusalId}) == len(codes)


def test_before_padding_the_scale_leaves_and_the_shift_says_why_it_stays() -> None:
    padded = BN_CONV.replace("4,4] y", "6,6] y").replace("Conv (", "Conv <pads = [1, 1, 1, 1]> (")
    result = folded_and_right(model(padded, BEFORE), options=FoldOptions(target="portable"))
    assert result.ops == ["Add", "Conv"]
    (kept,) = result.kept
    assert (kept.op_type, kept.refusal, kept.at) == ("Add", RefusalId.PADDING_BLOCKS_SHIFT, "conv")
