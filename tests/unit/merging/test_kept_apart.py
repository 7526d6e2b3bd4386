"""What does not merge, each beside a neighbour, one step away, that does."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from bnpass.errors import RefusalId
from tests.support.build import Array, model, normal
from tests.unit.merging.merged import block, merged, merged_and_right

W = {"w": normal(4, 4, 3, 3), "u": normal(4, 4, 3, 3, seed=1)}
SUM = "a = Conv<pads=[1,1,1,1]>(x, w) e = Conv<pads=[1,1,1,1]>(x, u) [sum] y = Add(a, e)"


@dataclass(frozen=True)
class Case:
    """A block that stays as it is, and how it would merge.

    Attributes:
        name: What is in the way.
        nodes: Its nodes.
        refusal: What is said of it; None if nothing is.
        instead: What to write where, for a block that merges.
        constants: Its constants.
        instead_constants: Those that differ then.
        data: Shape of x.
    """

    name: str
    nodes: str
    refusal: RefusalId | None
    instead: tuple[str, str] | None = None
    constants: Mapping[str, Array] = field(default_factory=lambda: W)
    instead_constants: Mapping[str, Array] = field(default_factory=dict)
    data: str = "2,4,7,8"

    def built(self, *, merges: bool = False, **options: Any) -> Any:
        nodes = self.nodes.replace(*self.instead) if merges and self.instead else self.nodes
        constants = {**self.constants, **(self.instead_constants if merges else {})}
        return block(nodes, "2,4,P,Q", {n: a for n, a in constants.items() if n in nodes}, self.data, **options)


CASES = [
    Case(
        "output lengths that agree for some inputs alone",
        "a = Conv<strides=[2,2]>(x, w) e = Conv<strides=[2,2]>(x, u) [sum] y = Add(a, e)",
        RefusalId.BRANCHES_DO_NOT_FIT,
        constants={"w": normal(4, 4, 1, 1), "u": normal(4, 4, 2, 2)},
        instead_constants={"w": normal(4, 4, 2, 2)},
        data="2,4,H,L",
    ),
    Case(
        "strides that differ on an axis of length one",
        "a = Conv<strides=[1,2]>(x, w) e = Conv<strides=[1,1]>(x, u) [sum] y = Add(a, e)",
        RefusalId.BRANCHES_DO_NOT_FIT,
        ("strides=[1,1]", "strides=[1,2]"),
        constants={"w": normal(4, 4, 3, 1), "u": normal(4, 4, 3, 1)},
        data="2,4,7,1",
    ),
    Case(
        "channels that broadcast",
        "a = Conv(x, w) e = Conv(x, u) [sum] y = Add(a, e)",
        RefusalId.BRANCHES_DO_NOT_FIT,
        constants={"w": normal(4, 4, 1, 1), "u": normal(1, 4, 1, 1)},
        instead_constants={"u": normal(4, 4, 1, 1)},
    ),
    Case(
        "x that broadcasts",
        "a = Conv(x, w) [sum] y = Add(a, x)",
        RefusalId.BRANCHES_DO_NOT_FIT,
        constants={"w": normal(1, 4, 1, 1)},
        instead_constants={"w": normal(4, 4, 1, 1)},
    ),
    Case(
        "dilations without a common grid",
        "a = Conv<pads=[1,1,1,1]>(x, w) e = Conv<pads=[2,2,2,2], dilations=[2,2]>(x, u) [sum] y = Add(a, e)",
        RefusalId.WORK_WOULD_GROW,
        ("<pads=[2,2,2,2], dilations=[2,2]>", "<pads=[1,1,1,1]>"),
    ),
    Case(
        "a depthwise branch beside a dense one",
        "a = Conv(x, w) e = Conv<group=4, pads=[1,1,1,1]>(x, u) [sum] y = Add(a, e)",
        RefusalId.WORK_WOULD_GROW,
        ("<group=4, pads=[1,1,1,1]>", "<group=4>"),
        constants={"w": normal(4, 4, 1, 1), "u": normal(4, 1, 3, 3)},
        instead_constants={"u": normal(4, 1, 1, 1)},
    ),
    Case(
        "a row and a column",
        "a = Conv<pads=[0,1,0,1]>(x, w) e = Conv<pads=[1,0,1,0]>(x, u) [sum] y = Add(a, e)",
        RefusalId.WORK_WOULD_GROW,
        ("pads=[1,0,1,0]", "pads=[0,1,0,1]"),
        constants={"w": normal(4, 4, 1, 3), "u": normal(4, 4, 3, 1)},
        instead_constants={"u": normal(4, 4, 1, 3)},
    ),
    Case(
        "a mean that leaves zeros of padding out",
        "a = Conv<group=4, pads=[1,1,1,1]>(x, w) "
        "e = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=0>(x) [sum] y = Add(a, e)",
        None,
        ("count_include_pad=0", "count_include_pad=1"),
        constants={"w": normal(4, 1, 3, 3)},
    ),
    Case(
        "a mean that may hang over the end",
        "a = Conv<group=4, strides=[2,2]>(x, w) "
        "e = AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x) [sum] y = Add(a, e)",
        None,
        ("ceil_mode=1", "ceil_mode=0"),
        constants={"w": normal(4, 1, 3, 3)},
        data="2,4,7,7",
    ),
    Case(
        "padding that depends on the length",
        'a = Conv<strides=[2,2], auto_pad="SAME_UPPER">(x, w) e = Conv<strides=[2,2], auto_pad="SAME_UPPER">(x, u) '
        "[sum] y = Add(a, e)",
        None,
        data="2,4,H,L",
    ),
    Case(
        "weights of run time",
        SUM.replace("(x, w)", "(x, r)").replace("a =", "r = Relu(w) a ="),
        None,
        ("r = Relu(w)", "r = Identity(w)"),
    ),
    Case(
        "a bias of run time",
        "r = Relu(c) a = Conv<pads=[1,1,1,1]>(x, w, r) e = Conv<pads=[1,1,1,1]>(x, u) [sum] y = Add(a, e)",
        None,
        ("r = Relu(c)", "r = Neg(c)"),
        constants={**W, "c": normal(4)},
    ),
    Case("NaN", SUM, RefusalId.INVALID_STATISTICS, None, {**W, "u": W["u"] * np.float32(np.nan)}, W),
    Case(
        "infinity in a bias",
        SUM.replace("(x, u)", "(x, u, c)"),
        RefusalId.INVALID_STATISTICS,
        None,
        {**W, "c": np.array([1, 2, np.inf, 3], np.float32)},
        {"c": normal(4)},
    ),
    Case(
        "a shift before padding",
        "t = Conv(x, p, c) y = Conv<pads=[1,1,1,1]>(t, w)",
        None,
        ("(x, p, c)", "(x, p)"),
        {**W, "p": normal(4, 4, 1, 1), "c": normal(4)},
    ),
    Case(
        "a narrow value in the middle",
        "t = Conv(x, p) y = Conv(t, q)",
        None,
        None,
        {"p": normal(1, 4, 1, 1), "q": normal(4, 1, 1, 1)},
        {"p": normal(4, 4, 1, 1), "q": normal(4, 4, 1, 1)},
    ),
    Case(
        "a pad that is longer than the first op",
        "t = Conv(x, p) y = Conv<pads=[6,6,6,6]>(t, q)",
        None,
        ("pads=[6,6,6,6]", "pads=[1,1,1,1]"),
        {"p": normal(3, 4, 1, 1), "q": normal(4, 3, 3, 3)},
        {"p": normal(5, 4, 1, 1), "q": normal(4, 5, 3, 3)},
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_it_stays(case: Case) -> None:
    result = merged(case.built())
    assert result.merged == ()
    assert result.refused == ({} if case.refusal is None else {"sum": case.refusal})


@pytest.mark.parametrize("case", [c for c in CASES if c.instead or c.instead_constants], ids=lambda c: c.name)
def test_its_neighbour_merges(case: Case) -> None:
    result = merged_and_right(case.built(merges=True))
    assert result.merged != ()
    assert result.refused == {}


def test_a_branch_that_others_read_stays() -> None:
    built = model(
        "g (float[2,4,7,8] x) => (float[2,4,7,8] y, float[2,4,7,8] z) "
        "{ a = Conv<pads=[1,1,1,1]>(x, w) e = Conv<pads=[1,1,1,1]>(x, u) f = Conv<pads=[1,1,1,1]>(x, w) "
        "t = Add(a, e) y = Add(t, f) z = Relu(e) }",
        W,
    )
    assert merged_and_right(built).ops == ["Conv", "Conv", "Add", "Relu"]


def test_a_branch_that_is_a_graph_output_stays() -> None:
    built = model(
        "g (float[2,4,7,8] x) => (float[2,4,7,8] y, float[2,4,7,8] e) "
        "{ a = Conv<pads=[1,1,1,1]>(x, w) e = Conv<pads=[1,1,1,1]>(x, u) y = Add(a, e) }",
        W,
    )
    result = merged_and_right(built)
    assert result.ops == ["Conv", "Conv", "Add"]


def test_a_partial_sum_that_is_a_graph_output_stays() -> None:
    built = model(
        "g (float[2,4,7,8] x) => (float[2,4,7,8] y, float[2,4,7,8] t) "
        "{ a = Conv<pads=[1,1,1,1]>(x, w) e = Conv<pads=[1,1,1,1]>(x, u) f = Conv<pads=[1,1,1,1]>(x, w) "
        "t = Add(a, e) y = Add(t, f) }",
        W,
    )
    result = merged_and_right(built)
    assert result.ops == ["Conv", "Conv", "Add"]
    assert [str(v.name) for v in result.after.graph.outputs] == ["y", "t"]


def test_one_value_added_twice_is_two_addends() -> None:
    built = block("a = Conv(x, p) t = Add(a, a) y = Add(t, x)", "2,4,7,8", {"p": normal(4, 4, 1, 1)})
    assert merged(built).merged == ()


def test_overflow_in_float16() -> None:
    large = np.full((4, 4, 1, 1), 4e4, np.float16)
    nodes = "a = Conv(x, p) e = Conv(x, q) [sum] y = Add(a, e)"
    built = block(nodes, "2,4,7,8", {"p": large, "q": large}, kind="float16")
    result = merged(built)
    assert result.merged == ()
    assert result.refused == {"sum": RefusalId.WOULD_OVERFLOW}


def test_weights_that_would_sink_below_the_smallest_normal_number() -> None:
    small = normal(4, 4, 1, 1, dtype=np.float16) * np.float16(2e-4)
    built = block("a = Conv(x, p) y = Conv(a, q)", "2,4,7,8", {"p": small, "q": small}, kind="float16")
    assert merged(built).merged == ()
    larger = {"p": small, "q": small * np.float16(5000)}
    assert merged(block("a = Conv(x, p) y = Conv(a, q)", "2,4,7,8", larger, kind="float16")).merged != ()


def test_what_is_not_selected_stays() -> None:
    built = block("a = Conv(x, p) [q] e = Conv(x, q) [sum] y = Add(a, e)", "2,4,7,8",
                  {"p": normal(4, 4, 1, 1), "q": normal(4, 4, 1, 1)})  # fmt: skip
    assert merged(built, is_selected=lambda node: node.name != "q").merged == ()
    assert merged(built).merged != ()


def test_a_quantized_weight_stays_quantized() -> None:
    quantized = np.arange(16, dtype=np.int8).reshape(4, 4, 1, 1)
    given = {"p": normal(4, 4, 1, 1), "q": quantized, "s": np.array(0.1, np.float32)}
    built = block("w = DequantizeLinear(q, s) a = Conv(x, p) e = Conv(x, w) y = Add(a, e)", "2,4,7,8", given)
    assert merged(built).merged == ()


def test_a_shared_weight_costs_the_clone_budget() -> None:
    built = model(
        "g (float[2,4,7,8] x) => (float[2,4,7,8] y, float[2,4,7,8] z) "
        "{ a = Conv<pads=[1,1,1,1]>(x, w) e = Conv<pads=[1,1,1,1]>(x, u) [sum] y = Add(a, e) "
        "r = Relu(x) z = Conv<pads=[1,1,1,1]>(r, w) }",
        W,
    )
    assert merged(built, budget=575).refused == {"sum": RefusalId.CLONE_BUDGET}
    result = merged_and_right(built, budget=576)
    assert result.ops == ["Conv", "Relu", "Conv"]
    assert result.ledger.budget == 0
