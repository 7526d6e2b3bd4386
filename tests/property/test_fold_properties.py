"""Statements that hold of every fold, tried on random graphs; each example is small and each draw adversarial.

BNPASS_PROPERTY_PERCENT scales the number of examples (100 in CI; 10 for a quick look, 5000 for a long night);
BNPASS_PROPERTY_SHRINK=0 reports the first failure as it was found.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bnpass.errors import RefusalId
from bnpass.passes import FoldBatchNorm
from tests.property.carriers import carrier_cases
from tests.property.graphs import BRAIN, DOUBLE, HALF, SINGLE, Case, cases, layout_cases
from tests.property.judge import judge, summary
from tests.support.build import model
from tests.support.float64 import Array, round_to

PERCENT = int(os.environ.get("BNPASS_PROPERTY_PERCENT", "100"))
PHASES = [Phase.generate] if os.environ.get("BNPASS_PROPERTY_SHRINK") == "0" else [Phase.generate, Phase.shrink]
TYPE_NAMES = {HALF: "float16", BRAIN: "bfloat16", SINGLE: "float", DOUBLE: "double"}


def examples(count: int) -> Callable[[Any], Any]:
    """Return settings for about ``count`` examples, the same ones on every run."""
    return settings(
        max_examples=max(20, count * PERCENT // 100),
        derandomize=True,
        database=None,
        deadline=None,
        phases=PHASES,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )


def _judged(case: Case) -> None:
    try:
        judge(case)
    except Exception as error:
        error.add_note(summary(case.model))
        raise


@examples(1500)
@given(cases())
def test_a_folded_model_is_the_same_function_and_a_valid_graph(case: Case) -> None:
    _judged(case)


@examples(150)
@given(cases(np.float16))
def test_the_same_in_float16(case: Case) -> None:
    _judged(case)


@examples(150)
@given(cases(BRAIN))
def test_the_same_in_bfloat16(case: Case) -> None:
    _judged(case)


@examples(100)
@given(cases(np.float64))
def test_the_same_in_float64(case: Case) -> None:
    _judged(case)


@examples(600)
@given(layout_cases())
def test_affines_keep_their_axis_through_layout_ops(case: Case) -> None:
    _judged(case)


@examples(1000)
@given(carrier_cases())
def test_affines_pass_branches_pools_and_padding(case: Case) -> None:
    _judged(case)


# --- the arithmetic: zero units in the last place -------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """One linear op with a batch normalization behind it, and what its weights have to become.

    Attributes:
        op: The ONNX text of the op.
        weight: Stored weight.
        out: Output channel of every element of the weight.
        inner: Input channel of every element of the weight.
        channels: Numbers of input and output channels.
        data: Shape of the activation.
    """

    op: str
    weight: Array
    out: Array
    inner: Array
    channels: tuple[int, int]
    data: str


def _layer(kind: str, group: int, rng: np.random.Generator, *, behind: bool = True) -> Layer:
    into, out = 2 * group, 3 * group
    if kind == "Conv":
        index = np.indices((out, 2, 2))
        return Layer(
            f"Conv<group={group}>(x, w, c)", rng.standard_normal((out, 2, 2)), index[0],
            index[0] // 3 * 2 + index[1], (into, out), f"N, {into}, 5",
        )  # fmt: skip
    if kind == "ConvTranspose":
        index = np.indices((into, 3, 2 if behind else 1))  # a kernel of 2 takes no shift in before it
        return Layer(
            f"ConvTranspose<group={group}>(x, w, c)", rng.standard_normal(index[0].shape),
            index[0] // 2 * 3 + index[1], index[0], (into, out), f"N, {into}, 5",
        )  # fmt: skip
    index = np.indices((out, into) if kind == "Gemm transB" else (into, out))
    columns, rows = (index[0], index[1]) if kind == "Gemm transB" else (index[1], index[0])
    attributes = "<transB=1, alpha=0.5>" if kind == "Gemm transB" else ""
    op = f"Gemm{attributes}(x, w, c)" if kind.startswith("Gemm") else "MatMul(x, w)"
    return Layer(op, rng.standard_normal(index[0].shape), columns, rows, (into, out), f"N, {into}")


def _near_ties(rng: np.random.Generator, weight: Array, channel: Array, count: int) -> Array:
    """Return float32 factors that bring one weight of each channel as near to a bfloat16 tie as they can."""
    tie = 1 + (2 * rng.integers(0, 128, count) + 1) / 256
    first = np.array([weight.astype(np.float64)[channel == k][0] for k in range(count)])
    return np.asarray(tie / np.where(first == 0, 1, first)).astype(np.float32)


KINDS = ("Conv", "ConvTranspose", "Gemm", "Gemm transB", "MatMul")


@pytest.mark.parametrize("dtype", [HALF, BRAIN, SINGLE, DOUBLE], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@examples(30)
@given(seed=st.integers(0, 1 << 30), group=st.integers(1, 3), ties=st.booleans(), behind=st.booleans())
def test_folded_numbers_are_the_formula_rounded_once(
    kind: str, dtype: Any, seed: int, group: int, ties: bool, behind: bool
) -> None:
    rng = np.random.default_rng(seed)
    layer = _layer(kind, group, rng, behind=behind)
    weight, bias = layer.weight.astype(dtype), rng.standard_normal(layer.channels[1]).astype(dtype)
    count, channel = (layer.channels[1], layer.out) if behind else (layer.channels[0], layer.inner)
    small = SINGLE if dtype == BRAIN else dtype
    s, b, m, v = (
        a.astype(small)
        for a in (rng.uniform(0.3, 2, count), *rng.standard_normal((2, count)), rng.uniform(0.5, 2, count))
    )
    epsilon = 1e-3
    if ties:  # scale·1/sqrt(1 + 0) is scale: products that lie next to a tie
        s, m, v, epsilon = _near_ties(rng, weight, channel, count).astype(small), 0 * m, 0 * v + 1, 0.0
    norm = f"BatchNormalization<epsilon={epsilon}>({'t' if behind else 'x'}, s, b, m, v)"
    first, second = (f"t = {layer.op}", f"y = {norm}") if behind else (
        f"t = {norm}", "y = " + layer.op.replace("(x", "(t"))  # fmt: skip
    name = TYPE_NAMES[dtype]
    length = {"Conv": ["4"], "ConvTranspose": ["6" if behind else "5"]}.get(kind, [])
    out = ", ".join(["N", str(layer.channels[1]), *length])
    constants = {"w": weight, "c": bias, "s": s, "b": b, "m": m, "v": v}
    if kind == "MatMul":
        del constants["c"]
    built = model(f"g ({name}[{layer.data}] x) => ({name}[{out}] y) {{ {first} {second} }}", constants, opset=22)
    FoldBatchNorm()(built)
    assert [n.op_type for n in built.graph] in ([layer.op.split("(")[0].split("<")[0]], ["MatMul", "Add"])
    kind_of = np.longdouble if dtype == DOUBLE else np.float64
    eps = kind_of(np.float32(epsilon))
    w, c, S, B, M, V = (a.astype(kind_of) for a in (weight, bias, s, b, m, v))
    factor = S / np.sqrt(V + eps)
    shift = B - M * factor
    exact = w * factor[channel]
    stored = _weight_of(built)
    if dtype == DOUBLE:
        assert np.all(np.abs(stored - exact) <= np.spacing(np.abs(stored)))
    else:
        assert np.array_equal(stored.astype(np.float64), round_to(exact, dtype))
    if kind == "MatMul":
        c = 0 * c
    gain = 0.5 if "alpha" in layer.op else 1.0
    total = c * factor + shift if behind else c + gain * _sums(w * shift[channel], layer.out, layer.channels[1])
    got = _bias_of(built).astype(kind_of).reshape(-1)
    ulp = np.spacing(np.abs(got).astype(np.float64)) if dtype == DOUBLE else 0
    near = 4 * float(np.finfo(kind_of).eps) * (np.abs(total) + 8)  # the order of a sum is free
    wanted = np.stack([round_to(total + d, dtype) for d in (-near, 0 * near, near)]) if dtype != DOUBLE else total
    assert np.all(np.min(np.abs(wanted - got), axis=0) <= ulp if dtype != DOUBLE else np.abs(got - total) <= 2 * ulp)


def _sums(parts: Array, channel: Array, count: int) -> Array:
    return np.array([parts[channel == k].sum() for k in range(count)])


def _weight_of(built: ir.Model) -> Array:
    value = built.graph[0].inputs[1]
    assert value is not None
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy())


def _bias_of(built: ir.Model) -> Array:
    node = built.graph[-1]
    value = node.inputs[1 if node.op_type == "Add" else 2]
    assert value is not None
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy())


# --- metamorphic ----------------------------------------------------------------------------------------------------


def _fold_layer(layer: Layer, weight: Array, bias: Array, norms: list[dict[str, Array]]) -> tuple[Array, Array]:
    """Fold batch normalizations behind a layer; return weight and bias."""
    constants, text, value = {"w": weight, "c": bias}, f"t0 = {layer.op} ", "t0"
    for i, norm in enumerate(norms, 1):
        constants.update({f"{k}{i}": a for k, a in norm.items()})
        text += f"t{i} = BatchNormalization<epsilon=0.0>({value}, s{i}, b{i}, m{i}, v{i}) "
        value = f"t{i}"
    text += f"y = Identity({value})"
    rank = layer.data.count(",") + 1
    dims = ", ".join(["N", str(layer.channels[1]), *["L"] * (rank - 2)])
    built = model(f"g (float[{layer.data}] x) => (float[{dims}] y) {{ {text} }}", constants)
    FoldBatchNorm()(built)
    assert len(built.graph) == 1
    return _weight_of(built), np.asarray(built.graph[0].inputs[2].const_value.numpy())  # type: ignore[union-attr]


def _norm(rng: np.random.Generator, count: int) -> dict[str, Array]:
    arrays = (rng.standard_normal(count), *rng.standard_normal((2, count)), rng.uniform(0.1, 3, count))
    return {name: a.astype(np.float32) for name, a in zip("sbmv", arrays, strict=True)}


def _same_kind(kind: str, seed: int, group: int) -> tuple[Layer, Array, Array, np.random.Generator]:
    rng = np.random.default_rng(seed)
    layer = _layer(kind, group, rng)
    return (
        layer,
        layer.weight.astype(np.float32),
        rng.standard_normal(layer.channels[1]).astype(np.float32),
        rng,
    )


METAMORPHIC = pytest.mark.parametrize("kind", [k for k in KINDS if k != "MatMul"])


@METAMORPHIC
@examples(20)
@given(seed=st.integers(0, 1 << 30), group=st.integers(1, 3))
def test_an_identity_batch_norm_folds_to_the_same_weights(kind: str, seed: int, group: int) -> None:
    layer, weight, bias, _ = _same_kind(kind, seed, group)
    zero = np.zeros(layer.channels[1], np.float32)
    new = _fold_layer(layer, weight, bias, [{"s": zero + 1, "b": zero, "m": zero, "v": zero + 1}])
    assert np.array_equal(new[0], weight)
    assert np.array_equal(new[1], bias)


@METAMORPHIC
@examples(20)
@given(seed=st.integers(0, 1 << 30), group=st.integers(1, 3))
def test_two_batch_norms_are_one(kind: str, seed: int, group: int) -> None:
    layer, weight, bias, rng = _same_kind(kind, seed, group)
    a, b = (_norm(rng, layer.channels[1]) for _ in range(2))
    new = _fold_layer(layer, weight, bias, [a, b])
    wide = [{k: v.astype(np.float64) for k, v in n.items()} for n in (a, b)]
    s1, s2 = (n["s"] / np.sqrt(n["v"]) for n in wide)
    t1, t2 = (n["b"] - n["m"] * s for n, s in zip(wide, (s1, s2), strict=True))
    exact = weight * (s2 * s1)[layer.out]
    assert np.array_equal(new[0], exact.astype(np.float32))
    total = s2 * (s1 * bias.astype(np.float64) + t1) + t2
    assert np.all(np.abs(new[1] - total) <= np.spacing(np.abs(new[1])))


@METAMORPHIC
@examples(20)
@given(seed=st.integers(0, 1 << 30))
def test_permuting_channels_commutes_with_folding(kind: str, seed: int) -> None:
    layer, weight, bias, rng = _same_kind(kind, seed, 1)
    norm, order = _norm(rng, layer.channels[1]), rng.permutation(layer.channels[1])
    axis = 0 if kind in ("Conv", "Gemm transB") else 1
    plain = _fold_layer(layer, weight, bias, [norm])
    moved = _fold_layer(layer, weight.take(order, axis), bias[order], [{k: a[order] for k, a in norm.items()}])
    assert np.array_equal(plain[0].take(order, axis), moved[0])
    assert np.array_equal(plain[1][order], moved[1])


@METAMORPHIC
@examples(20)
@given(seed=st.integers(0, 1 << 30), group=st.integers(1, 3), power=st.integers(-8, 8))
def test_doubling_gamma_and_beta_doubles_weights_and_bias(kind: str, seed: int, group: int, power: int) -> None:
    layer, weight, bias, rng = _same_kind(kind, seed, group)
    norm, factor = _norm(rng, layer.channels[1]), np.float32(2.0**power)
    plain = _fold_layer(layer, weight, bias, [norm])
    scaled = _fold_layer(layer, weight, bias, [{**norm, "s": norm["s"] * factor, "b": norm["b"] * factor}])
    assert np.array_equal(plain[0] * factor, scaled[0])
    assert np.array_equal(plain[1] * factor, scaled[1])


# --- what no number shows -------------------------------------------------------------------------------------------

_VECTOR = np.array([2, 3], np.float32)
_WEIGHT = np.arange(1, 5, dtype=np.float32).reshape(2, 2)
_KEPT = [
    pytest.param(
        "t = MatMul(x, w) y = BatchNormalization(t, s, s, s, v)", "float", RefusalId.INVALID_STATISTICS, id="var<0"
    ),
    pytest.param(
        "t = MatMul(x, w) d, mask = Dropout(t) z = Cast<to=1>(mask) e = BatchNormalization(d, s, s, s, s) "
        "y = Add(e, z)",
        "float", RefusalId.NONLINEAR_BETWEEN, id="dropout mask read",
    ),
    pytest.param(
        "t = MatMul(x, w) d = Dropout(t, ratio, on) y = BatchNormalization(d, s, s, s, s)",
        "float", RefusalId.NONLINEAR_BETWEEN, id="dropout in training",
    ),
    pytest.param(
        "h = Cast<to=10>(x) t = MatMul(h, half) c = Cast<to=1>(t) y = BatchNormalization(c, s, s, s, s)",
        "float", RefusalId.DTYPE_WOULD_LOSE_PRECISION, id="cast towards float32",
    ),
    pytest.param(
        "n = BatchNormalization(x, s, s, s, s) c = Cast<to=10>(n) t = MatMul(c, half) y = Cast<to=1>(t)",
        "float", RefusalId.DTYPE_WOULD_LOSE_PRECISION, id="cast towards float16",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "name", "refusal"), _KEPT)
def test_a_batch_norm_stays_where_folding_is_not_allowed(text: str, name: str, refusal: RefusalId) -> None:
    constants = {
        "s": _VECTOR, "w": _WEIGHT, "half": _WEIGHT.astype(np.float16), "v": np.array([1, -1e-6], np.float32),
        "ratio": np.array(0.5, np.float32), "on": np.array(True),
    }  # fmt: skip
    used = {k: a for k, a in constants.items() if f", {k}" in text}
    built = model(f"g ({name}[N, 2] x) => ({name}[N, 2] y) {{ {text} }}", used)
    fold_pass = FoldBatchNorm()
    assert not fold_pass(built).modified
    assert refusal in [k.refusal for k in fold_pass.kept]


def test_weights_that_would_overflow_stay() -> None:
    half = np.full((2, 2), 6e4, np.float16)
    built = model(
        "g (float16[N, 2] x) => (float16[N, 2] y) { t = MatMul(x, w) y = BatchNormalization(t, s, s, s, s) }",
        {"w": half, "s": np.array([100, 200], np.float16)},
    )
    fold_pass = FoldBatchNorm()
    assert not fold_pass(built).modified
    assert [k.refusal for k in fold_pass.kept] == [RefusalId.WOULD_OVERFLOW]


# --- bugs that the fuzzer found, in their smallest forms ------------------------------------------------------------


def test_a_branch_that_nobody_reads_leaves_no_initializers_behind() -> None:
    built = model(
        "g (float[1, 2, 3] x) => (float[1, 2, 3] y) { t = Conv(x, w) u = Mul(t, s) y = Relu(x) }",
        {"w": np.ones((2, 2, 1), np.float32), "s": np.full((2, 1), 2, np.float32)},
    )
    FoldBatchNorm()(built)
    assert all(value.uses() for value in built.graph.initializers.values())


def test_all_of_a_branch_that_nobody_reads_may_disappear() -> None:
    built = model(
        "g (float[1, 1, 1, 1] x) => (float[1, 1, 1, 1] y) "
        "{ a = Mul(x, c) b = Mul(a, c) t = Conv(b, w) d = Mul(t, c) e = Mul(d, c) y = Relu(x) }",
        {"w": np.ones((1, 1, 1, 1), np.float32), "c": np.full((1, 1, 1), 2, np.float32)},
    )
    FoldBatchNorm()(built)
    assert all(value.uses() for value in built.graph.initializers.values())


def test_a_second_fold_finds_nothing_behind_a_batched_matmul() -> None:
    built = model(
        "g (float[N, 2, 2] x) => (float[N, 2, 2] y) { a = Add(x, p) t = MatMul(a, w) u = Add(t, p) y = Mul(u, p) }",
        {"p": _VECTOR, "w": _WEIGHT[None]},
    )
    FoldBatchNorm()(built)
    assert not FoldBatchNorm()(built).modified


def test_a_batch_norm_that_takes_in_a_mul_before_an_unsqueeze_keeps_its_own_axes() -> None:
    """The joined affine is stated before the Unsqueeze; the batch normalization stands behind it."""
    built = model(
        "g (float[2, 6] x) => (float[2, 6, 1] y, float[2, 6, 1] z) "
        "{ a = Relu(x) m = Mul(a, s) u = Unsqueeze(m, axes) n = BatchNormalization(u, s, s, s, s) "
        "y = Conv<group=6>(n, w) z = Relu(n) }",
        {"s": np.arange(1, 7, dtype=np.float32), "axes": np.array([2]), "w": np.ones((6, 1, 1), np.float32)},
    )
    FoldBatchNorm()(built)


def test_a_batch_norm_that_takes_in_a_neg_before_a_transpose_keeps_its_own_axes() -> None:
    """Here the axes have equal lengths: nothing but the local check stands between this and a wrong model."""
    built = model(
        "g (float[2, 2] x) => (float[2, 1] y) { a = Neg(x) t = Transpose<perm=[1, 0]>(a) "
        "n = BatchNormalization(t, s, s, s, s) f = Flatten<axis=1>(n) y = Gemm<transA=1>(f, w) }",
        {"s": _VECTOR, "w": np.ones((2, 1), np.float32)},
    )
    FoldBatchNorm()(built)


def test_an_input_with_a_default_stays_an_input() -> None:
    """With beta = 0 nobody needs C, which is given by a value that a caller may override."""
    built = model(
        "g (float[N, 2] x, float[2] c) => (float[N, 2] y) "
        "{ t = Gemm<beta=0.0>(x, w, c) y = BatchNormalization(t, s, s, s, s) }",
        {"c": _VECTOR, "s": _VECTOR, "w": _WEIGHT},
    )
    FoldBatchNorm()(built)
    assert [value.name for value in built.graph.inputs] == ["x", "c"]


def test_joining_into_a_batch_norm_keeps_magnitudes() -> None:
    """(1e4·x - 1e4)·s: with input_mean kept, B' becomes 1e8·s, and float32 has 7 digits."""
    channel = np.ones(1, np.float32)
    built = model(
        "g (float[N, 1] x) => (float[N, 1] y) { a = Relu(x) t = Mul(a, c) y = BatchNormalization(t, s, b, m, s) }",
        {"c": channel * 1e4, "s": channel, "b": channel * 0.3, "m": channel * 12345.6},
    )
    FoldBatchNorm()(built)
    node = built.graph[-1]
    assert node.op_type == "BatchNormalization"
    stored = [float(v.const_value.numpy()[0]) for v in node.inputs[1:5]]  # type: ignore[union-attr]
    s, b, m, v = stored
    scale, mean = np.float64(1) / np.sqrt(1 + np.float64(np.float32(1e-5))), np.float64(np.float32(12345.6))
    wanted = (1e4 * 1.0 - mean) * scale + np.float64(np.float32(0.3))
    size = (1e4 + mean) * scale + 0.3
    got = (1.0 - m) * s / np.sqrt(v + np.float64(np.float32(1e-5))) + b
    assert abs(got - wanted) <= 4 * 2.0**-24 * size


def test_a_scale_that_rounds_to_one_is_no_scale() -> None:
    """x/c·c is 1 ± 1e-16 times x in float64: the first fold writes Mul by 1, the second takes it away."""
    built = model(
        "g (float[N, 2] x) => (float[N, 2] y) { a = Relu(x) t = Div(a, c) y = Mul(t, c) }",
        {"c": np.array([0.9050998, 0.8708504], np.float32)},
    )
    FoldBatchNorm()(built)
    assert not FoldBatchNorm()(built).modified


def test_a_constant_of_higher_rank_than_a_guess_is_no_failed_check() -> None:
    """The Mul that joins two has an output of unknown shape; the way behind it is tried on vectors and 'fails'."""
    built = model(
        "g (float[N, 3, 4, 2] x) => (float[N, 3, 4, 5] y, float[N, 3, 4, 2] z) "
        "{ b = Abs(x) z = Relu(b) c = Mul(b, p) d = Mul(c, p) e = Add(d, q) y = MatMul(e, w) }",
        {
            "p": np.array([2, 3, 4], np.float32).reshape(3, 1, 1),
            "q": _VECTOR.reshape(1, 1, 2),
            "w": np.ones((2, 5), np.float32),
        },
    )
    FoldBatchNorm()(built)


def test_a_second_fold_finds_nothing_behind_a_cast() -> None:
    built = model(
        "g (float[1, 4] x) => (float[6, 1] y) { v = BatchNormalization(x, s, s, s, s) m = MatMul(v, w) "
        "c = Cast<to=1>(m) g = Gemm<transB=1>(a, c) y = BatchNormalization(g, one, one, one, one) }",
        {
            "s": np.arange(1, 5, dtype=np.float32),
            "w": np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32),
            "a": np.ones((6, 6), np.float32),
            "one": np.ones(1, np.float32),
        },
    )
    FoldBatchNorm()(built)
    assert not FoldBatchNorm()(built).modified


def test_a_subnormal_bias_times_beta_is_no_failed_check() -> None:
    built = model(
        "g (float16[N, 1] x) => (float16[N, 6] y) { v = Gemm<beta=3.0, alpha=-0.5, transB=1>(x, w, c) y = Div(v, d) }",
        {
            "w": np.ones((6, 1), np.float16),
            "c": np.array([0.3586, 1.322, -0.013916, 1.042, 1.402, 1.15], np.float16),
            "d": np.full(6, 12000, np.float16),
        },
    )
    FoldBatchNorm()(built)
