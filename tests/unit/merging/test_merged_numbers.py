"""Merged numbers are the float64 sum rounded once, also when affines came before or come later; and none that is wrong
gets past the local check."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bnpass.errors import VerificationError
from bnpass.folding.absorb import Absorption
from bnpass.folding.merging import branch, check, numbers, reader, sums
from bnpass.folding.merging.merger import merge
from bnpass.folding.plan import Ledger
from bnpass.folding.rules.conv import describe
from bnpass.folding.window import Axis
from bnpass.folding.write import Writer
from bnpass.graph.nodes import scopes
from bnpass.graph.shapes import Shapes
from bnpass.semantics.affine import Affine, round_once
from tests.support.build import BFLOAT16, batch_norm, normal
from tests.support.judge import serialized
from tests.unit.merging.merged import block, merged, merged_and_right

NAMES = {np.float16: "float16", BFLOAT16: "bfloat16", np.float32: "float", np.float64: "double"}
BLOCK = (
    "[c3] a = Conv<pads=[1,1,1,1]>(x, w, c) e = Conv<group=2>(x, u) "
    "n = BatchNormalization<epsilon=0.001>(x, s, b, m, v) t = Add(a, e) y = Add(t, n)"
)


def constants(dtype: Any, seed: int = 0) -> dict[str, Any]:
    return {
        "w": normal(8, 8, 3, 3, seed=seed, dtype=dtype),
        "c": normal(8, seed=seed, dtype=dtype),
        "u": normal(8, 4, 1, 1, seed=seed + 1, dtype=dtype),
        **batch_norm(8, seed, dtype),
    }


def exact(given: dict[str, Any], kind: Any) -> tuple[Any, Any]:
    """Return weight and bias of the block, from their definition."""
    w, c, u, s, b, m, v = (given[name].astype(kind) for name in "wcusbmv")
    scale = s / np.sqrt(v + kind(np.float32(0.001)))
    weight = w.copy()
    weight[:4, :4, 1, 1] += u[:4, :, 0, 0]
    weight[4:, 4:, 1, 1] += u[4:, :, 0, 0]
    weight[:, :, 1, 1] += np.diag(scale)
    return weight, c + (b - m * scale)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("memory", [1 << 20, 0])
@pytest.mark.parametrize("dtype", NAMES, ids=NAMES.get)
def test_rounded_once(dtype: Any, memory: int, seed: int) -> None:
    given = constants(dtype, seed)
    built = block(BLOCK, "2,8,7,8", given, "2,8,7,8", kind=NAMES[dtype], opset=22, ir_version=10)
    result = merged(built, memory=memory)
    assert result.ops == ["Conv"]
    kind = np.longdouble if dtype is np.float64 else np.float64
    for got, wanted in zip((result.constant("w"), result.constant("c")), exact(given, kind), strict=True):
        if dtype is np.float64:
            np.testing.assert_array_max_ulp(got, wanted.astype(dtype), maxulp=2)
        else:
            assert got.tobytes() == round_once(wanted, np.dtype(dtype)).tobytes()


def test_what_is_held_and_what_is_computed_again_are_the_same() -> None:
    built = block(BLOCK, "2,8,7,8", constants(np.float32), "2,8,7,8")
    held, lazy = merged(built), merged(built, memory=0)
    assert held.ledger.memory == (128 << 20) - 8 * 8 * 9 * 12
    assert lazy.ledger.memory == 0
    assert serialized(held.after) == serialized(lazy.after)


@pytest.mark.parametrize("memory", [1 << 20, 0])
def test_an_affine_that_comes_later_is_rounded_together_with_the_sum(memory: int) -> None:
    given = constants(BFLOAT16)
    built = block(BLOCK, "2,8,7,8", given, "2,8,7,8", kind="bfloat16", opset=22, ir_version=10)
    result = merged(built, memory=memory)
    (absorption,) = result.ledger.absorbed.values()
    factor = np.random.default_rng(5).uniform(0.3, 3, 8)
    later = absorption.behind(Affine(factor.reshape(1, 8, 1, 1), np.zeros((1, 1, 1, 1))))
    assert not hasattr(later, "reason")
    tensor = later.tensor("w", None)
    weight, bias = exact(given, np.float64)
    assert tensor.numpy().tobytes() == round_once(weight * factor.reshape(8, 1, 1, 1), np.dtype(BFLOAT16)).tobytes()
    slot = absorption.linear.bias
    assert slot is not None
    assert np.array_equal(np.asarray(slot.value), bias)


def test_affines_that_came_before_are_rounded_together_with_the_sum() -> None:
    given = constants(BFLOAT16)
    built = block(BLOCK, "2,8,7,8", given, "2,8,7,8", kind="bfloat16", opset=22, ir_version=10)
    after = ir.from_proto(ir.to_proto(built))
    (scope,) = scopes(after)
    ledger, shapes = Ledger(1 << 20), Shapes(after)
    conv = after.graph[0]
    factor = np.random.default_rng(5).uniform(0.3, 3, 8)
    absorption = Absorption.of(describe(conv, scope)).behind(  # type: ignore[arg-type]
        Affine(factor.reshape(1, 8, 1, 1), np.zeros((1, 1, 1, 1)))
    )
    ledger.absorbed[conv] = absorption  # type: ignore[assignment]
    after.graph.initializers["w"].const_value = absorption.tensor("w", None)  # type: ignore[union-attr]
    after.graph.initializers["c"].const_value = ir.tensor(
        round_once(given["c"].astype(np.float64) * factor, np.dtype(BFLOAT16)), name="c"
    )
    merge(scope, shapes, ledger, Writer(after))
    wanted = exact({**given, "w": given["w"].astype(np.float64) * factor.reshape(8, 1, 1, 1)}, np.float64)[0]
    tensor = after.graph.initializers["w"].const_value
    assert tensor is not None
    assert tensor.numpy().tobytes() == round_once(wanted, np.dtype(BFLOAT16)).tobytes()


# --- planted bugs: the local check has to see every one of them ------------------------------------------------------


def _swapped_pads(axis: Axis) -> tuple[int, int]:
    return axis.reach + axis.last, -axis.first


def _shifted(axis: Axis, part: Axis) -> slice:
    place = PLACE(axis, part)
    count = len(range(place.start, place.stop, place.step or 1))
    return slice(0, (count - 1) * (place.step or 1) + 1, place.step)


PLACE = Axis.place_of
WIDENED = branch._widened
PRODUCT = branch._product


def _wrong_block(W: Any, here: slice, of: branch.Branch, group: int) -> Any:
    return np.roll(WIDENED(W, here, of, group), 1, axis=1)


def _transposed(W2: Any, W1: Any) -> Any:
    return PRODUCT(W2[:, ::-1], W1)


def _one_lost(W: Any, here: slice, of: branch.Branch, group: int) -> Any:
    wide = WIDENED(W, here, of, group).copy()
    wide.reshape(-1)[0] = 0
    return wide


FAST = "a = Conv<group=4, pads=[2,0,0,2]>(x, w) e = Conv<group=4, pads=[1,1,1,1]>(x, u, c) y = Add(a, e)"
ROW = "t = Conv(x, p, c) y = Conv(t, q, d)"
ROW_LESS = "a = Conv(x, p, c) y = Sub(x, a)"
MEAN = (
    "a = Conv<group=4, pads=[1,1,1,1]>(x, w, c) "
    "e = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x) y = Add(a, e)"
)
SMALL = {
    "w": normal(4, 1, 3, 3),
    "u": normal(4, 1, 3, 3, seed=1),
    "c": normal(4),
    "p": normal(4, 4, 1, 1),
    "q": normal(5, 4, 3, 3),
    "d": normal(5),
}
BUGS: dict[str, tuple[str, Any, str, Any]] = {
    "pads swapped": (FAST.replace("[1,1,1,1]", "[2,0,0,2]"), Axis, "pads", property(_swapped_pads)),
    "taps at the wrong place": (FAST, Axis, "place_of", _shifted),
    "blocks at the wrong inputs": (BLOCK, branch, "_widened", _wrong_block),
    "one weight lost": (BLOCK, branch, "_widened", _one_lost),
    "channels in between reversed": (ROW, branch, "_product", _transposed),
    "a sign lost": (ROW_LESS, sums, "negative", lambda branch: branch),
    "another mean": (MEAN, reader, "wide", lambda _: np.dtype(np.float16)),
    "rounded to another type": (BLOCK, numbers, "round_once", lambda x, t: x.astype(np.float16).astype(t)),
}


@pytest.mark.parametrize("bug", BUGS)
def test_the_local_check_sees(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, module, name, planted = BUGS[bug]
    given = constants(np.float32) if text == BLOCK else {n: a for n, a in SMALL.items() if f" {n}" in text}
    channels, out = (8, "2,8,P,Q") if text == BLOCK else (4, "2,M,P,Q")
    built = block(text, out, given, f"2,{channels},7,8")
    assert merged(built).ops == ["Conv"]
    monkeypatch.setattr(module, name, planted)
    with pytest.raises(VerificationError, match="local check failed"):
        merged(built)


@pytest.mark.parametrize(("factor", "term"), [(1 + 1e-4, 0.0), (1.0, 1e-3)])
def test_the_local_check_sees_numbers_that_are_a_little_off(
    factor: float, term: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = block(BLOCK, "2,8,P,Q", constants(np.float32), "2,8,7,8")
    rows_of = branch._added

    @contextmanager
    def planted(*given: Any) -> Iterator[branch.Rows]:
        with rows_of(*given) as rows:
            yield lambda here: (rows(here)[0] * factor, rows(here)[1] + term)

    monkeypatch.setattr(branch, "_added", planted)
    with pytest.raises(VerificationError, match="deviates"):
        merged(built)


def test_an_output_of_another_length_is_seen() -> None:
    built = block(FAST, "2,4,P,Q", {n: a for n, a in SMALL.items() if f" {n}" in FAST}, "2,4,7,8")
    (scope,) = scopes(built)
    runs = [check.Run((built.graph[i],), 0) for i in range(2)]
    attributes = {"pads": ir.AttrInt64s("pads", (1, 1, 1, 2)), "group": ir.AttrInt64("group", 4)}
    with pytest.raises(VerificationError, match="another length"):
        check.MergeCheck(runs, attributes, (4, 1, 3, 3), 4, (), np.dtype(np.float32), scope, "a")


def test_the_block_is_right() -> None:
    merged_and_right(block(BLOCK, "2,8,P,Q", constants(np.float32), "2,8,7,8"))
