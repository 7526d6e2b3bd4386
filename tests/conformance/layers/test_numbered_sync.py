"""Numbered cases of synchronized statistics that are more than a case of a layer."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import onnx_ir as ir
import pytest

from bnpass.expansion.options import ExpandOptions
from bnpass.layers.model import layer_model
from bnpass.passes import ExpandSyncBatchNorm
from bnpass.semantics.reference import State, backward, forward
from bnpass.semantics.resolved import Resolved
from bnpass.semantics.spec import BatchNormSpec
from bnpass.verification.replicas import run_replicas
from tests.conformance.layers import meaning
from tests.conformance.layers.arrays import draw
from tests.conformance.layers.cases import Array, Case
from tests.conformance.layers.conftest import Outcome
from tests.conformance.layers.exchange import Arrays
from tests.conformance.layers.judge import PRODUCTS
from tests.conformance.layers.meaning import Named
from tests.conformance.layers.numbered_cases import CASES
from tests.conformance.layers.products import CHANGES
from tests.conformance.layers.runtime import runner
from tests.support.build import model, normal

ROUNDING = 1e-5
"""A few float32 roundings of numbers of size 1."""


Oracle = Callable[[Case], Outcome]


def step(product: str, case: Case, xs: Sequence[Array], dys: Sequence[Array]) -> Arrays:
    """Return one training step of a product, from the start of the case."""
    start: Named = {
        "gamma": np.array([1.5, -0.5]),
        "beta": np.array([0.5, 0.25]),
        "moving_mean": np.array([0.2, 0.1]),
        "moving_variance": np.array([1.3, 0.7]),
    }
    return PRODUCTS[product](case, start).step(xs, dys, None, True)


def split(product: str, shares: Sequence[int], dtype: str = "float32") -> tuple[Arrays, Arrays]:
    """Return a step of a whole batch, and of its shares on as many replicas."""
    x, dy = (normal(sum(shares), 3, 2, seed=seed).astype(np.float64) for seed in (1, 2))
    ends = np.cumsum(shares)[:-1]
    whole = Case("split", "sync", "whole", {}, (x.shape,), dtype)
    parts = Case("split", "sync", "parts", {}, tuple((n, 3, 2) for n in shares), dtype)
    return step(product, whole, [x], [dy]), step(product, parts, np.split(x, ends), np.split(dy, ends))


def together(found: Arrays, name: str, replicas: int) -> Array:
    return np.concatenate([found[f"{r}/{name}"] for r in range(replicas)])


def is_the_batch(product: str, shares: Sequence[int], dtype: str, tolerance: float) -> None:
    one, several = split(product, shares, dtype)
    count = len(shares)
    for name in ("y", "dx"):
        wanted = one[f"0/{name}"]
        np.testing.assert_allclose(together(several, name, count), wanted, rtol=tolerance, atol=tolerance)
    for name in ("dgamma", "dbeta"):  # local, and their sum is that of the batch
        total = sum(several[f"{r}/{name}"] for r in range(count))
        np.testing.assert_allclose(total, one[f"0/{name}"], rtol=tolerance, atol=tolerance)
    for name in ("moving_mean", "moving_variance"):
        for r in range(count):
            np.testing.assert_allclose(several[f"{r}/{name}"], one[f"0/{name}"], rtol=tolerance)
            np.testing.assert_array_equal(several[f"{r}/{name}"], several[f"0/{name}"])  # the same bits on all


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("product", PRODUCTS)
def test_case_23_a_split_batch_is_the_batch(product: str, dtype: str) -> None:
    is_the_batch(product, (4, 4), dtype, 1e-12 if dtype == "float64" or product == "reference" else ROUNDING)


@pytest.mark.parametrize("shares", [(5, 2, 1, 0), (0, 1, 7), (1, 0)], ids=str)
@pytest.mark.parametrize("product", PRODUCTS)
def test_case_24_unequal_shares_are_the_batch(product: str, shares: tuple[int, ...]) -> None:
    is_the_batch(product, shares, "float32", 1e-12 if product == "reference" else ROUNDING)


def sync_layer(shape: Sequence[int | None], api: str = "sync", **arguments: object) -> Resolved:
    return BatchNormSpec(api, **arguments).resolve(tuple(shape))  # type: ignore[arg-type]


def feeds(x: Array, channels: int, dY: Array | None = None) -> Arrays:
    one, zero = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    given = {"X": x, "scale": 1.5 * one, "B": 0.5 * one, "input_mean": zero, "input_var": one}
    return given if dY is None else given | {"dY": dY}


def state(channels: int) -> State:
    one = np.ones(channels)
    return State(1.5 * one, 0.5 * one, 0 * one, one)


@pytest.mark.parametrize("way", CHANGES)
def test_case_27_groups_keep_to_themselves(way: str) -> None:
    """Two pairs of replicas in one run: each pair shares its own statistics, also backward."""
    layer = sync_layer((None, 3))
    built = layer_model(layer, training=True, gradient=True, group="pairs")
    CHANGES[way](built)
    xs, dys = ([normal(n, 3, seed=n + seed) for n in (5, 2, 3, 1)] for seed in (0, 10))
    given = [feeds(x, 3, dy) for x, dy in zip(xs, dys, strict=True)]
    found = run_replicas(built, given, groups={"pairs": [[0, 3], [2, 1]]})
    for pair in ([0, 3], [2, 1]):
        mine = [xs[r].astype(np.float64) for r in pair]
        wanted = forward(layer, mine, state(3), training=True)
        gradient = backward(wanted, mine, [dys[r].astype(np.float64) for r in pair])
        for i, r in enumerate(pair):
            np.testing.assert_allclose(found[r]["Y"], wanted.ys[i], rtol=ROUNDING, atol=ROUNDING)
            np.testing.assert_allclose(found[r]["dX"], gradient.dxs[i], rtol=ROUNDING, atol=ROUNDING)
            np.testing.assert_allclose(found[r]["running_var"], wanted.state.running_var, rtol=ROUNDING)


def collectives(built: ir.Model) -> list[ir.Node]:
    return [node for node in built.graph if node.op_type == "AllReduce"]


@pytest.mark.parametrize("coalesce", [True, False])
def test_case_28_parallel_branches_have_one_order(coalesce: bool) -> None:
    """Two layers that do not wait for each other: one message, or two with ids and a chain from one to the next."""
    attributes = 'axis = 1, epsilon = 0.001, momentum = 0.5, training_mode = 1, group = "world"'
    built = model(
        f"""g (float[N, 2] x) => (float[N, 2] y) {{
        a, am, av, as, ai, an = bnpass.SyncBatchNormalization <{attributes}> (x, s, b, m, v, )
        t = Mul (x, x)
        c, cm, cv, cs, ci, cn = bnpass.SyncBatchNormalization <{attributes}> (t, s, b, m, v, )
        y = Add (a, c) }}""",
        {name: np.full(2, value, np.float32) for name, value in (("s", 1.5), ("b", 0.5), ("m", 0.0), ("v", 1.0))},
        opset=18,
    )
    ExpandSyncBatchNorm(ExpandOptions(coalesce=coalesce))(built)
    nodes = collectives(built)
    assert len(nodes) == (1 if coalesce else 2)
    ids = [node.attributes["collective_id"].as_int() for node in nodes]
    assert len(set(ids)) == len(ids)
    for before, after in pairwise(nodes):
        assert after.inputs[1] is not None, "the second waits for the first"
        assert before.outputs[0] in _reached(after.inputs[1])
    xs = [normal(n, 2, seed=n) for n in (4, 3)]
    found = run_replicas(built, [{"x": x} for x in xs])
    layer, mine = sync_layer((4, 2)), [x.astype(np.float64) for x in xs]
    first, second = (forward(layer, values, state(2), training=True).ys for values in (mine, [x * x for x in mine]))
    for r in (0, 1):
        np.testing.assert_allclose(found[r]["y"], first[r] + second[r], rtol=ROUNDING, atol=ROUNDING)


def _reached(value: ir.Value) -> set[ir.Value]:
    """Return a value and all that it is made of."""
    found: set[ir.Value] = set()
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            node = one.producer()
            waiting += [v for v in node.inputs if v is not None] if node is not None else []
    return found


def test_case_29_a_world_of_one_changes_no_bit_of_the_body() -> None:
    """The policy: with one replica the group makes no difference, unlike in Keras."""
    x, dy = normal(6, 3), normal(6, 3, seed=1)
    found = []
    for group in ("", "world"):
        built = layer_model(sync_layer((6, 3)), training=True, gradient=True, group=group)
        CHANGES["body"](built)
        (outputs,) = runner(built, 1)([feeds(x, 3, dy)])
        found.append(outputs)
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        np.testing.assert_array_equal(value, found[1][name])


@pytest.mark.parametrize("way", CHANGES)
def test_case_31_a_count_above_2_to_the_24(way: str) -> None:
    """float32 has no 2^24 + 1; the count is a double from the first to the last."""
    count = 2**24 + 1
    built = model(
        "g (float16[N, 1] x) => (double[1] mean, double[1] var, double n) "
        "{ mean, var, n = bnpass.SyncBatchMoments <axis = 1> (x, ) }",
        opset=18,
    )
    CHANGES[way](built)
    x = np.zeros((count, 1), np.float16)
    x[-1] = 1
    (found,) = runner(built, 1)([{"x": x}])
    assert found["n"] == count
    np.testing.assert_allclose(found["mean"], 1 / count, rtol=1e-6)
    assert int(np.float32(count)) != count


@pytest.mark.parametrize(("unused", "messages"), [("", 2), ("dscale", 2), ("dB", 2), ("dX", 1)])
def test_case_32_collectives_of_gradients_that_no_one_reads(unused: str, messages: int) -> None:
    """Frozen scale or B: the same messages. No dX: none in the backward pass, on every rank, as all run one model."""
    built = layer_model(sync_layer((None, 3)), training=True, gradient=True, group="world")
    built.graph.outputs[:] = [value for value in built.graph.outputs if value.name != unused]
    ExpandSyncBatchNorm()(built)
    assert len(collectives(built)) == messages
    xs, dys = ([normal(n, 3, seed=n + seed) for n in (4, 1)] for seed in (0, 10))
    found = run_replicas(built, [feeds(x, 3, dy) for x, dy in zip(xs, dys, strict=True)])
    mine = [x.astype(np.float64) for x in xs]
    result = forward(sync_layer((4, 3)), mine, state(3), training=True)
    gradient = backward(result, mine, [dy.astype(np.float64) for dy in dys])
    for r in (0, 1):
        wanted = {"dX": gradient.dxs[r], "dscale": gradient.dscales[r], "dB": gradient.dBs[r]}
        for name in wanted.keys() - {unused}:
            np.testing.assert_allclose(found[r][name], wanted[name], rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.keras
def test_case_33_keras_statistics_bit_for_bit(tensorflow: Oracle) -> None:
    """Sums of integers are exact, so nothing but the order of Keras's own operations is left."""
    (case,) = [case for case in CASES if case.row == "33"]
    _, found = tensorflow(case)
    arrays, layer = draw(case), replace(meaning.layer(case), input_shape=(None, 3))
    built = layer_model(layer, training=True, group="world")
    ExpandSyncBatchNorm(ExpandOptions(stats="keras", coalesce=False))(built)
    assert len(collectives(built)) == 3
    given = []
    for r in (0, 1):
        zero, one = np.zeros(3, np.float32), np.ones(3, np.float32)
        x = arrays[f"x/0/{r}"].astype(np.float32)
        given.append({"X": x, "scale": one, "B": zero, "input_mean": zero, "input_var": zero})
    mine = run_replicas(built, given)
    whole = np.concatenate([feed["X"] for feed in given])
    n = np.float32(len(whole))
    mean, square = whole.sum(0) / n, (whole * whole).sum(0) / n
    replayed = np.maximum(square - mean * mean, np.float32(0))
    for r in (0, 1):
        for name, ours, wanted in (
            ("moving_mean", "running_mean", mean),
            ("moving_variance", "running_var", replayed),
        ):
            np.testing.assert_array_equal(found[f"0/{r}/{name}"].astype(np.float32), wanted)
            np.testing.assert_array_equal(mine[r][ours], wanted)
    exact = whole.astype(np.float64).var(0)
    assert np.abs(replayed / exact - 1).max() > 1e-4, "one pass loses digits here, or the case shows nothing"


@pytest.mark.parametrize("product", PRODUCTS)
def test_case_34_the_count_of_the_gradient_is_global(product: str) -> None:
    """Paddle and PyTorch 1.4 divided by the number of replicas times the local count."""
    shares = [normal(n, 2, seed=n).astype(np.float64) for n in (6, 1)]
    dys = [normal(n, 2, seed=n + 50).astype(np.float64) for n in (6, 1)]
    case = Case("34", "sync", "uneven", {}, ((6, 2), (1, 2)))
    found = step(product, case, shares, dys)
    x, dy = np.concatenate(shares), np.concatenate(dys)
    mean, s = x.mean(0), 1 / np.sqrt(x.var(0) + 1e-3)
    k, s1, s2 = np.array([1.5, -0.5]) * s, dy.sum(0), (dy * (x - mean)).sum(0)
    for r, (own, own_dy) in enumerate(zip(shares, dys, strict=True)):
        right, wrong = (k * (own_dy - s1 / count - (own - mean) * s**2 * s2 / count) for count in (7, 2 * len(own)))
        np.testing.assert_allclose(found[f"{r}/dx"], right, rtol=ROUNDING, atol=ROUNDING)
        assert np.abs(found[f"{r}/dx"] - wrong).max() > 1e-2


@pytest.mark.parametrize("api", ["sync", "tf_keras", "keras3"])
def test_case_41_statistics_of_a_mask_are_those_of_what_it_leaves(api: str) -> None:
    """As Flax tests it: the moving statistics are those of the batch without what is masked out."""
    x, mask = normal(4, 3, 2).astype(np.float64), (np.arange(12).reshape(4, 3) % 3 > 0).astype(np.float64)
    found = forward(sync_layer(x.shape, api, momentum=0.0), [x], state(2), training=True, masks=[mask]).state
    tolerance = 1e-7 if api == "keras3" else 1e-12  # its denominator is W + 1e-7
    np.testing.assert_allclose(found.running_mean, x[mask > 0].mean(0), rtol=tolerance)
    np.testing.assert_allclose(found.running_var, x[mask > 0].var(0), rtol=tolerance)
