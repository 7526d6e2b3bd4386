"""Kernels of several replicas share statistics, whatever each of them has; and fail together, if one does."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bnpass.runtime import Groups, threads
from bnpass.semantics.reference import backward, forward
from tests.kernel.sessions import Array, Feeds, opened, without_bodies
from tests.unit.ops.body_cases import TYPES, U, data, gradient, layer, moments, normalization, step_of

DOUBLE = np.dtype(np.float64)
SHARES = [
    [(3, 2)],
    [(2, 3), (2, 3)],
    [(3, 2), (1, 2), (0, 2)],
    [(2, 3), (5, 1), (1, 70), (2, 2)],
]
"""Batch and positions of each replica: one, equal, unequal, empty."""


def in_replicas(model: onnx.ModelProto, groups: Sequence[Groups], feeds: Sequence[Feeds]) -> list[Sequence[Array]]:
    """Run one model in every replica at once."""
    sessions = [opened(model, group=group) for group in groups]
    with ThreadPoolExecutor(len(groups)) as pool:
        futures = [pool.submit(s.run, None, dict(f)) for s, f in zip(sessions, feeds, strict=True)]
        return [future.result() for future in futures]


def batches(shares: Sequence[tuple[int, int]], dtype: np.dtype[Any], mean: float = 5.0) -> list[Array]:
    return [data((batch, 3, positions), 1, dtype, mean=mean + batch) for batch, positions in shares]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_statistics_and_gradients_are_those_of_all_replicas(
    shares: list[tuple[int, int]], dtype: np.dtype[Any]
) -> None:
    xs = batches(shares, dtype)
    step = step_of(xs[0], 1, correction=1)
    truth = forward(layer((None, 3, None), 1, correction=1), [x.astype(DOUBLE) for x in xs], step.state, training=True)  # type: ignore[arg-type]
    case, groups = normalization("", step), threads(len(xs))
    found = in_replicas(without_bodies(case, group="world"), groups, [{**case.feeds, "X": fed(x)} for x in xs])
    eps = rounding(dtype)
    for (Y, running_mean, running_var, mean, inv_std, count), y in zip(found, truth.ys, strict=True):
        close(Y, y, eps)
        close(running_mean, truth.state.running_mean, rounding(step.given_mean.dtype))
        close(running_var, truth.state.running_var, rounding(step.given_mean.dtype))
        close(mean, truth.mean[0], 64 * U)
        close(inv_std, truth.inv_std[0], 1e3 * U)
        assert count == truth.count
    assert len({b"".join(np.asarray(part).tobytes() for part in parts[1:]) for parts in found}) == 1

    dys = [np.cos(x.astype(np.float32)).astype(dtype) for x in xs]
    grads = backward(truth, [x.astype(DOUBLE) for x in xs], [dy.astype(DOUBLE) for dy in dys])
    case = gradient("", step)
    given = {"saved_mean": truth.mean[0], "saved_inv_std": truth.inv_std[0], "count": np.array(truth.count)}
    feeds = [{**case.feeds, **given, "dY": fed(dy), "X": fed(x)} for x, dy in zip(xs, dys, strict=True)]
    found = in_replicas(without_bodies(case, group="world"), groups, feeds)
    for parts, dx, dscale, dB in zip(found, grads.dxs, grads.dscales, grads.dBs, strict=True):
        close(parts[0], dx, eps)
        close(parts[1], dscale, rounding(step.state.scale.dtype))
        close(parts[2], dB, rounding(step.state.scale.dtype))


@pytest.mark.parametrize("ghost", [1, 2])
def test_ghost_batches_of_one_number_are_pooled(ghost: int) -> None:
    xs = batches([(2, 3), (2, 1), (2, 2)], DOUBLE)
    step = step_of(xs[0], 1, ghost=ghost)
    truth = forward(layer((None, 3, None), 1, ghost=ghost), xs, step.state, training=True)  # type: ignore[arg-type]
    case = normalization("", step)
    found = in_replicas(without_bodies(case, group="world"), threads(3), [{**case.feeds, "X": x} for x in xs])
    for parts, y in zip(found, truth.ys, strict=True):
        close(parts[0], y, 1e3 * U)
        close(parts[3], truth.mean, 64 * U)


def test_moments_far_from_zero_keep_their_variance() -> None:
    for mean, allowed in ((1e4, 1e-7), (1e5, 1e-5)):
        xs = [data((n, 3, 500), 1, np.dtype(np.float32), mean=mean, std=1.0) for n in (3, 1, 4)]
        found = in_replicas(without_bodies(moments("", xs[0], 1), group="world"), threads(3), [{"X": x} for x in xs])
        whole = np.concatenate([x.astype(DOUBLE) for x in xs]).var((0, 2))
        for _, var, _ in found:
            np.testing.assert_allclose(var, whole, rtol=allowed)


def test_replicas_without_any_sample_leave_the_statistics_alone() -> None:
    step = step_of(np.zeros((0, 3), np.float32), 1)
    case = normalization("", step)
    for parts in in_replicas(without_bodies(case, group="world"), threads(2), [case.feeds] * 2):
        np.testing.assert_array_equal(parts[1], step.given_mean)
        assert parts[5] == 0


def two_branches() -> onnx.ModelProto:
    """Return a model whose statistics are taken in two halves of the replicas, and a sum over all, in one order."""
    attributes = {"axis": -1, "virtual_batch_size": 0}
    nodes = [
        helper.make_node("SyncBatchMoments", ["X", ""], ["m", "v", "c"], domain="bnpass", **attributes,
                         group="half", collective_id=0),
        helper.make_node("AllReduce", ["m", "m"], ["all"], domain="bnpass", reduction="max", group="world",
                         collective_id=1),
        helper.make_node("SyncBatchMoments", ["Z", "all"], ["n", "w", "d"], domain="bnpass", **attributes,
                         group="world", collective_id=2),
    ]  # fmt: skip
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 3]) for name in "XZ"]
    outputs = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in ("m", "c", "all", "n", "d")]
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("bnpass", 1)]
    return helper.make_model(helper.make_graph(nodes, "branches", inputs, outputs), opset_imports=imports, ir_version=8)


def test_sub_groups_and_the_world_work_in_one_model() -> None:
    feeds = [{name: data((n, 3), 1, np.dtype(np.float32), mean=n) for name in "XZ"} for n in (1, 2, 3, 4)]
    groups = threads(4, groups={"half": [0, 1], "other": [2, 3]})
    halves = threads(2, groups={"half": [0, 1]})
    with pytest.raises(Exception, match="half"):
        opened(two_branches(), group=groups[2])  # it is not in "half"
    for _, _, largest, n, d in in_replicas(two_branches(), halves, feeds[:2]):
        assert d == 3
        np.testing.assert_allclose(n, np.concatenate([f["Z"] for f in feeds[:2]]).mean(0, dtype=DOUBLE), atol=1e-12)
        assert largest.shape == (3,)


def test_a_group_that_the_session_does_not_know_is_named() -> None:
    case = normalization("", step_of(data((4, 3), 1, DOUBLE), 1))
    with pytest.raises(Exception, match=r"SyncBatchNormalization node '[^']*':.*'elsewhere'"):
        opened(without_bodies(case, group="elsewhere"), group=threads(1)[0])


def test_without_a_group_of_its_own_a_session_is_one_replica() -> None:
    case = normalization("", step_of(data((4, 3), 1, DOUBLE), 1))
    assert case.why_wrong(opened(without_bodies(case, group="elsewhere")).run(None, case.feeds)) == ""


@pytest.mark.parametrize(("name", "value"), [
    ("B", np.zeros(4)),
    ("X", np.zeros((4, 5))),
    ("X", np.zeros(())),
])  # fmt: skip
def test_what_one_replica_cannot_do_all_replicas_say(name: str, value: Array) -> None:
    case = normalization("", step_of(data((4, 3), 1, DOUBLE), 1))
    model = without_bodies(case, group="world")
    for given in model.graph.input:
        given.type.tensor_type.ClearField("shape")
    sessions = [opened(model, group=group) for group in threads(3, deadline=20.0)]
    feeds = [{**case.feeds, **({name: value} if rank == 1 else {})} for rank in range(3)]

    def sentence(rank: int) -> str:
        with pytest.raises(Exception, match="Status Message") as caught:
            sessions[rank].run(None, feeds[rank])
        return str(caught.value).split("Status Message: ")[1]

    with ThreadPoolExecutor(3) as pool:
        sentences = list(pool.map(sentence, range(3)))
    assert len(set(sentences)) == 1
    assert "expected" in sentences[0] or "scalar" in sentences[0] or "disagree" in sentences[0]


def test_a_replica_that_does_not_come_is_missed_at_the_deadline() -> None:
    case = moments("", data((4, 3), 1, DOUBLE), 1)
    present, absent = threads(2, deadline=0.2)
    session = opened(without_bodies(case, group="world"), group=present)
    with pytest.raises(Exception, match=r"0\.2 s"):
        session.run(None, case.feeds)
    with pytest.raises(Exception, match="failed before"):
        session.run(None, case.feeds)
    absent.close()


def fed(x: Array) -> Array:
    return x.astype(np.float32) if x.dtype == TYPES[1] else x


def rounding(dtype: np.dtype[Any]) -> float:
    """Return what one rounding to a type, and double sums of up to 100 terms, may cost, relative to 1."""
    return float(np.finfo(np.float32).eps) * 2.0**16 if dtype == TYPES[1] else max(float(np.finfo(dtype).eps), 1e3 * U)


def close(found: Array, wanted: Array, eps: float) -> None:
    np.testing.assert_allclose(
        np.asarray(found, DOUBLE), wanted, rtol=eps, atol=eps * (1 + np.abs(wanted).max(initial=0))
    )
