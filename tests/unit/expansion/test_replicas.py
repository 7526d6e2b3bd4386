"""Replicas that share statistics, simulated in one process: equal, unequal and empty shares."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bnpass.expansion.options import ExpandOptions
from tests.unit.expansion.cases import (
    F16,
    F32,
    F64,
    WORLD,
    Array,
    Arrays,
    Layer,
    batch_norm,
    close,
    expanded,
    run_replicas,
    sync_batch_norm,
)

SHARES = [(8,), (4, 4), (5, 2, 1, 0), (1, 1, 1), (0, 3), (0, 0)]


def batches(layer: Layer, shares: tuple[int, ...]) -> list[Array]:
    return [layer.x(10 + i, batch=n) for i, n in enumerate(shares)]


def judge(layer: Layer, xs: list[Array], found: list[Arrays]) -> None:
    coarse = F64 if layer.dtype == F64 else F32
    for got, want in zip(found, layer.expected(xs), strict=True):
        for name, value in got.items():
            close(value, want[name], worked_in=coarse)
        for name in got.keys() - {"Y"}:
            assert np.array_equal(got[name], found[0][name]), f"replicas disagree about {name}"


@pytest.mark.parametrize("dtype", [F16, F32, F64], ids=str)
@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_shares(shares: tuple[int, ...], correction: int, dtype: Any) -> None:
    layer = Layer((4, 3, 5), dtype=dtype, correction=correction)
    model, done = expanded(sync_batch_norm(layer, group="world", open_batch=True))
    xs = batches(layer, shares)
    judge(layer, xs, run_replicas(model, [{"X": x, **layer.parameters} for x in xs]))
    assert done.expanded[0].collectives == (2 if dtype == F64 else 1)


@pytest.mark.parametrize("shares", [(4, 4), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("open_batch", [False, True])
def test_ghost_batches_of_the_same_number_are_pooled(shares: tuple[int, ...], open_batch: bool) -> None:
    layer = Layer((shares[0], 3, 5), ghost=2)
    model, _ = expanded(sync_batch_norm(layer, group="world", open_batch=open_batch))
    xs = batches(layer, shares)
    judge(layer, xs, run_replicas(model, [{"X": x, **layer.parameters} for x in xs]))


def test_replicas_with_different_numbers_of_ghost_batches_fail() -> None:
    layer = Layer((4, 3, 5), ghost=2)
    model, _ = expanded(sync_batch_norm(layer, group="world", open_batch=True))
    with pytest.raises(ValueError, match="different lengths"):
        run_replicas(model, [{"X": x, **layer.parameters} for x in batches(layer, (4, 2))])


@pytest.mark.parametrize("opset", [6, 9, 14, 17])
def test_plain_batch_normalization_is_synchronized_over_the_group_of_the_options(opset: int) -> None:
    layer = Layer((4, 3, 5))
    model, done = expanded(batch_norm(layer, opset, open_batch=opset >= 9), WORLD)
    samples = (5, 2, 1, 0) if opset >= 9 else (4, 4)
    xs = batches(layer, samples)
    state = {name: layer.parameters[name] for name in ("input_mean", "input_var")}
    judge(layer, xs, run_replicas(model, [{"X": x, **state} for x in xs]))
    assert done.expanded[0].group == "world"
    assert model.opset_imports[""] == max(opset, 15)  # the first one with bodies
    assert model.opset_imports["bnpass"] == 1
    assert [key[1] for key in model.functions] == ["AllReduce"]


def test_our_operators_carry_their_own_group() -> None:
    layer = Layer((4, 3, 5))
    for mine, option, expected in (("mine", "world", "mine"), ("", "world", "")):
        model, done = expanded(sync_batch_norm(layer, group=mine), ExpandOptions(group=option))
        groups = [n.attributes.get_string("group") for n in model.graph if n.op_type == "AllReduce"]
        assert groups == [expected] * bool(expected)
        assert done.expanded[0].group == expected


def test_the_all_reduce_is_written_in_full() -> None:
    model, _ = expanded(batch_norm(Layer((4, 3, 5)), 17), WORLD)
    (node,) = [n for n in model.graph if n.op_type == "AllReduce"]
    assert (node.domain, len(node.inputs), len(node.outputs)) == ("bnpass", 2, 1)
    assert {name: a.value for name, a in node.attributes.items()} == {
        "group": "world", "reduction": "sum", "collective_id": 0,
    }  # fmt: skip
    assert ir.to_proto(model).graph.node[[n.name for n in model.graph].index(node.name)].input[1] == ""
    message = node.inputs[0]
    assert message is not None
    assert message.dtype == ir.DataType.DOUBLE
    assert message.shape == (1 + 2 * 3,)


@pytest.mark.parametrize("option", [True, False])
def test_sites_side_by_side_share_a_message(option: bool) -> None:
    layer = Layer((4, 3, 5))
    proto = ir.to_proto(sync_batch_norm(layer, group="world"))
    twin = onnx.NodeProto()
    twin.CopyFrom(proto.graph.node[0])
    twin.name, twin.output[:] = "twin", ["Z", "a", "b", "c", "d", "e"]
    proto.graph.node.append(twin)
    proto.graph.output.add().CopyFrom(proto.graph.output[0])
    proto.graph.output[-1].name = "Z"
    model, done = expanded(ir.from_proto(proto), ExpandOptions(coalesce=option))
    assert (done.collectives.before, done.collectives.after, done.collectives.depth) == (2, 1 if option else 2, 1)
    nodes = [n for n in model.graph if n.op_type == "AllReduce"]
    assert [n.attributes.get_int("collective_id") for n in nodes] == list(range(done.collectives.after))
    xs = batches(layer, (4, 4))
    judge_y = run_replicas(model, [{"X": x, **layer.parameters} for x in xs])
    for got, want in zip(judge_y, layer.expected(xs), strict=True):
        close(got["Y"], want["Y"])
        close(got["Z"], want["Y"])


def test_onnx_runtimes_own_collective() -> None:
    model, done = expanded(batch_norm(Layer((4, 3, 5)), 17), ExpandOptions(group="world", collective="com.microsoft"))
    (node,) = [n for n in model.graph if n.op_type == "AllReduce"]
    assert (node.domain, len(node.inputs), len(node.attributes)) == ("com.microsoft", 1, 0)
    assert model.opset_imports["com.microsoft"] == 1
    assert "bnpass" not in model.opset_imports
    assert not model.functions
    assert done.collectives.after == 1


def test_no_collective_makes_every_group_one_replica() -> None:
    layer = Layer((4, 3, 5))
    model, done = expanded(sync_batch_norm(layer, group="world"), ExpandOptions(collective="none"))
    assert not [n for n in model.graph if n.op_type == "AllReduce"]
    assert done.collectives.before == 0
    local, _ = expanded(sync_batch_norm(layer))
    assert [n.op_type for n in model.graph] == [n.op_type for n in local.graph]


def all_reduce(collective: str) -> ir.Model:
    model = ir.from_onnx_text("""<ir_version: 8, opset_import: ["": 17, "bnpass": 1]>
        g (double[2] a, double[2] b) => (double[2] c, double[2] d)
        { c = bnpass.AllReduce <group = "world"> (a, b)  d = bnpass.AllReduce (b) }""")
    return expanded(model, ExpandOptions(collective=collective))[0]  # type: ignore[arg-type]


def test_all_reduces_that_were_there_become_what_is_asked_for() -> None:
    ours, theirs, none = (all_reduce(c) for c in ("bnpass", "com.microsoft", "none"))
    assert [(n.domain, n.op_type) for n in ours.graph] == [("bnpass", "AllReduce")] * 2
    assert [(n.domain, n.op_type) for n in theirs.graph] == [("com.microsoft", "AllReduce"), ("", "Identity")]
    assert [(n.domain, n.op_type) for n in none.graph] == [("", "Identity")] * 2
