"""Each identity of the rules, proved over the reals on small shapes with symbols for all numbers.

The layouts are those that the rules describe, so a swapped axis or a forgotten group is a failed proof; the ops are
those of the float64 evaluator, which knows nothing of the rules.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import sympy as sp

from bnpass.errors import Refusal
from bnpass.folding.linear import Linear
from bnpass.folding.rules import LINEAR
from bnpass.graph.nodes import scopes
from bnpass.semantics.affine import Affine
from tests.support.build import model
from tests.support.float64 import Array, conv, conv_transpose

Op = Callable[[Array, Array, Any], Array]


def symbols(name: str, shape: tuple[int, ...]) -> Array:
    """Return an array of real symbols."""
    array = np.empty(shape, object)
    for index in np.ndindex(*shape):
        array[index] = sp.Symbol("_".join([name, *map(str, index)]), real=True)
    return array


def equal(a: Array, b: Array) -> bool:
    """Whether two arrays of expressions are the same polynomials."""
    return a.shape == b.shape and all(sp.expand(p - q) == 0 for p, q in zip(a.flat, b.flat, strict=True))


def describe(node: str, weight: tuple[int, ...], slot: int = 1) -> Linear:
    """Return what the rules say about a node of ONNX text with a weight ``w`` of this shape."""
    shape = ",".join(["1"] * 3) if "Conv" in node else "2,2"
    built = model(f"g (float[{shape}] x) => (float[{shape}] y) {{ y = {node} }}", {"w": np.ones(weight, np.float32)})
    linear = LINEAR[built.graph[0].op_type](built.graph[0], next(scopes(built)))
    assert not isinstance(linear, Refusal)
    assert linear.weight_index == slot
    return linear


def along(vector: Array, axis: int, rank: int) -> Array:
    """Lay a vector along one axis."""
    return vector.reshape([vector.size if a == axis % rank else 1 for a in range(rank)])


def folded(linear: Linear, w: Array, b: Any, into: Affine, out: Affine, gain: Any = 1) -> tuple[Array, Array]:
    """Return ``W' = (W·s_in)·s_out`` and ``b' = s_out·(b + gain·Σ W·t_in) + t_out`` by the layout of the rule."""
    layout = linear.layout
    view = w.reshape(layout.view)
    s_in, t_in = (layout.over(v, layout.in_axes) for v in (into.scale, into.shift))
    s_out = layout.over(out.scale, layout.out_axes)
    summed = tuple(a for a in range(view.ndim) if a not in (*layout.out_axes, *layout.batch_axes))
    through = (view * t_in).sum(axis=summed)
    if not layout.batch_axes:
        through = through.reshape(-1)
    return (view * s_in * s_out).reshape(w.shape), out.scale * (b + gain * through) + out.shift


CONV: list[tuple[str, Mapping[str, Any], tuple[int, ...], int, int]] = [
    ("Conv", {}, (2, 2, 2), 2, 2),
    ("Conv", {"group": 2}, (4, 1, 2), 2, 4),
    ("Conv", {"group": 2, "strides": [2], "dilations": [2]}, (2, 2, 2), 4, 2),
    ("ConvTranspose", {}, (2, 3, 2), 2, 3),
    ("ConvTranspose", {"strides": [2]}, (2, 2, 1), 2, 2),
    ("ConvTranspose", {"output_padding": [1]}, (2, 2, 1), 2, 2),
    ("ConvTranspose", {"group": 2}, (4, 2, 2), 4, 4),
    ("ConvTranspose", {"group": 2, "strides": [2], "pads": [1, 0]}, (2, 1, 2), 2, 2),
]
IDS = [f"{op} {attributes}" for op, attributes, *_ in CONV]


def _text(op: str, attributes: Mapping[str, Any]) -> str:
    return f"{op}<{', '.join(f'{k}={v}' for k, v in attributes.items())}>(x, w)" if attributes else f"{op}(x, w)"


@pytest.mark.parametrize(("op", "attributes", "shape", "inner", "outer"), CONV, ids=IDS)
def test_convolutions_behind(
    op: str, attributes: Mapping[str, Any], shape: tuple[int, ...], inner: int, outer: int
) -> None:
    """s·(W*x + b) + t = (s·W)*x + (s·b + t)."""
    apply: Op = conv if op == "Conv" else conv_transpose
    linear = describe(_text(op, attributes), shape)
    assert (linear.layout.in_channels, linear.layout.out_channels) == (inner, outer)
    x, w = symbols("x", (1, inner, 4)), symbols("w", shape)
    b, s, t = (symbols(n, (outer,)) for n in "bst")
    one, zero = np.array([1]), np.array([0])
    new_w, new_b = folded(linear, w, b, Affine(one, zero), Affine(s, t))
    before = along(s, 1, 3) * (apply(x, w, attributes) + along(b, 1, 3)) + along(t, 1, 3)
    assert equal(before, apply(x, new_w, attributes) + along(new_b, 1, 3))


@pytest.mark.parametrize(("op", "attributes", "shape", "inner", "outer"), CONV, ids=IDS)
def test_convolutions_before(
    op: str, attributes: Mapping[str, Any], shape: tuple[int, ...], inner: int, outer: int
) -> None:
    """W*(s·x + t) + b = (W·s)*x + (b + Σ W·t); where the rule refuses the shift, it is wrong."""
    apply: Op = conv if op == "Conv" else conv_transpose
    linear = describe(_text(op, attributes), shape)
    x, w, b = symbols("x", (1, inner, 4)), symbols("w", shape), symbols("b", (outer,))
    s, t = (symbols(n, (inner,)) for n in "st")
    one, zero = np.array([1]), np.array([0])
    new_w, new_b = folded(linear, w, b, Affine(s, t), Affine(one, zero))
    before = apply(along(s, 1, 3) * x + along(t, 1, 3), w, attributes) + along(b, 1, 3)
    after = apply(x, new_w, attributes) + along(new_b, 1, 3)
    assert equal(before, after) == (linear.shift_at_input is None)
    nothing = dict.fromkeys(t, 0)
    scaled = (np.vectorize(lambda e: sp.sympify(e).subs(nothing), otypes=[object])(y) for y in (before, after))
    assert equal(*scaled)  # the scale alone always passes


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_padding_stops_a_shift_but_no_scale(op: str) -> None:
    apply: Op = conv if op == "Conv" else conv_transpose
    attributes = {"pads": [1, 1]}
    linear = describe(_text(op, attributes), (1, 1, 3))
    assert linear.shift_at_input is not None
    x, w, (s, t) = symbols("x", (1, 1, 3)), symbols("w", (1, 1, 3)), (symbols(n, (1,)) for n in "st")
    assert equal(apply(s * x, w, attributes), apply(x, w * s, attributes))
    assert not equal(apply(x + t, w, attributes), apply(x, w, attributes) + (w * t).sum())


def test_a_pointwise_conv_transpose_takes_a_shift() -> None:
    linear = describe("ConvTranspose<group=2>(x, w)", (4, 1, 1))
    assert linear.shift_at_input is None
    x, w, b = symbols("x", (1, 4, 3)), symbols("w", (4, 1, 1)), symbols("b", (2,))
    s, t = (symbols(n, (4,)) for n in "st")
    new_w, new_b = folded(linear, w, b, Affine(s, t), Affine(np.array([1]), np.array([0])))
    attributes = {"group": 2}
    before = conv_transpose(along(s, 1, 3) * x + along(t, 1, 3), w, attributes) + along(b, 1, 3)
    assert equal(before, conv_transpose(x, new_w, attributes) + along(new_b, 1, 3))


@pytest.mark.parametrize("flip_weight", [0, 1])
@pytest.mark.parametrize("flip_data", [0, 1])
@pytest.mark.parametrize("is_right", [True, False])
def test_gemm(is_right: bool, flip_data: int, flip_weight: int) -> None:
    """s·(αA'B' + βC) + t and α(s·A + t)'B' + βC, with the constant operand on either side."""
    flags = (flip_data, flip_weight) if is_right else (flip_weight, flip_data)
    operands = "x, w" if is_right else "w, x"
    inner, fresh, batch = 2, 3, 2
    natural = (inner, fresh) if is_right else (fresh, inner)
    shape = natural[::-1] if flip_weight else natural
    linear = describe(f"Gemm<transA={flags[0]}, transB={flags[1]}>({operands})", shape, 1 if is_right else 0)
    alpha, beta = sp.symbols("alpha beta", real=True, nonzero=True)
    data = (batch, inner) if is_right else (inner, batch)
    x, w = symbols("x", data[::-1] if flip_data else data), symbols("w", shape)

    def gemm(x: Array, w: Array, c: Array) -> Array:
        a, b = (x, w) if is_right else (w, x)
        return alpha * np.matmul(a.T if flags[0] else a, b.T if flags[1] else b) + beta * c

    def upright(v: Array) -> Array:
        return v.reshape(1, -1) if is_right else v.reshape(-1, 1)

    c, s, t = (symbols(n, (fresh,)) for n in "cst")
    one, zero = np.array([1]), np.array([0])
    new_w, total = folded(linear, w, beta * c, Affine(one, zero), Affine(s, t), alpha)
    before = upright(s) * gemm(x, w, upright(c)) + upright(t)
    assert equal(before, gemm(x, new_w, upright(total / beta)))
    s, t = (symbols(n, (inner,)) for n in "st")
    new_w, total = folded(linear, w, beta * c, Affine(s, t), Affine(one, zero), alpha)
    moved = along(s, linear.data_axis, 2) * x + along(t, linear.data_axis, 2)
    assert equal(gemm(moved, w, upright(c)), gemm(x, new_w, upright(total / beta)))


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("is_right", [True, False])
def test_matmul(is_right: bool, batch: tuple[int, ...]) -> None:
    """s·(X·W) + t = X·(W·s) + t and (s·X + t)·W = X·(s·W) + Σ t·W, with batched weights too."""
    inner, fresh = 2, 3
    shape = (*batch, inner, fresh) if is_right else (*batch, fresh, inner)
    linear = describe(f"MatMul({'x, w' if is_right else 'w, x'})", shape, 1 if is_right else 0)
    x, w = symbols("x", (2, 2, inner) if is_right else (2, inner, 2)), symbols("w", shape)

    def matmul(x: Array, w: Array) -> Array:
        return np.matmul(x, w) if is_right else np.matmul(w, x)

    one, zero = np.array([1]), np.array([0])
    for into, out in ((inner, 0), (0, fresh)):
        s, t = (symbols(n, (into or out,)) for n in "st")
        here, there = (Affine(s, t), Affine(one, zero)) if into else (Affine(one, zero), Affine(s, t))
        new_w, shift = folded(linear, w, 0, here, there)
        shift = np.broadcast_to(shift, (*batch, fresh)) if not into else shift
        added = shift[..., None, :] if is_right else shift[..., :, None]
        axis = linear.data_axis if into else linear.out_axis
        scale, term = along(s, axis, 3), along(t, axis, 3)
        before = matmul(scale * x + term, w) if into else scale * matmul(x, w) + term
        assert equal(before, matmul(x, new_w) + added)


def test_two_affines_are_one() -> None:
    """s₂(s₁x + t₁) + t₂ = (s₂s₁)x + (s₂t₁ + t₂), and three of them in either grouping."""
    x = symbols("x", (2,))
    a, b, c = (Affine(symbols(f"s{i}", (2,)), symbols(f"t{i}", (2,))) for i in range(3))

    def apply(affine: Affine, value: Array) -> Array:
        return affine.scale * value + affine.shift

    assert equal(apply(b, apply(a, x)), apply(a.then(b), x))
    assert equal(apply(a.then(b).then(c), x), apply(a.then(b.then(c)), x))
    assert equal(apply(c, apply(b, apply(a, x))), apply(a.then(b).then(c), x))


def test_batch_normalization_is_an_affine() -> None:
    """(x - mean)/sqrt(var + eps)·scale + B = s·x + t; and read back with mean and variance kept."""
    x, mean, scale, B = sp.symbols("x mean scale B", real=True)
    var, eps = sp.symbols("var eps", positive=True)
    s = scale / sp.sqrt(var + eps)
    t = B - mean * s
    assert sp.simplify((x - mean) / sp.sqrt(var + eps) * scale + B - (s * x + t)) == 0
    S, T = sp.symbols("S T", real=True)
    again = (x - mean) / sp.sqrt(var + eps) * (S * sp.sqrt(var + eps)) + (T + mean * S)
    assert sp.simplify(again - (S * x + T)) == 0


def test_a_split_affine_is_the_same() -> None:
    """s·x + t = s·(x + t/s), s ≠ 0: the scale goes on and the Add stays."""
    x, t = sp.symbols("x t", real=True)
    s = sp.Symbol("s", real=True, nonzero=True)
    assert sp.simplify(s * x + t - s * (x + t / s)) == 0


def test_every_spelling_of_an_affine() -> None:
    """x·c, x/c, x+c, x-c, c-x, -x as (scale, shift)."""
    x = sp.Symbol("x", real=True)
    c = sp.Symbol("c", real=True, nonzero=True)
    table = [(x * c, c, 0), (x / c, 1 / c, 0), (x + c, 1, c), (x - c, 1, -c), (c - x, -1, c), (-x, -1, 0)]
    for spelled, scale, shift in table:
        assert sp.simplify(spelled - (scale * x + shift)) == 0
