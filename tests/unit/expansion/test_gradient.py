"""SyncBatchNormalizationGrad written out: against the reference, and against central differences."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bnpass.errors import RefusedError
from bnpass.expansion.expander import expand
from bnpass.expansion.options import ExpandOptions
from bnpass.semantics import reference
from tests.unit.expansion.cases import (
    BF16,
    F16,
    F32,
    F64,
    Array,
    Arrays,
    Layer,
    close,
    expanded,
    model_of,
    run_everywhere,
    run_ort,
    run_reference,
    run_replicas,
)

SAVED = ("saved_mean", "saved_inv_std", "count")


def gradient_model(
    layer: Layer, *, group: str = "", open_batch: bool = False, outputs: Sequence[int] = (0, 1, 2)
) -> ir.Model:
    names = [name if i in outputs else "" for i, name in enumerate(["dX", "dscale", "dB"])]
    node = onnx.helper.make_node(
        "SyncBatchNormalizationGrad", ["dY", "X", "scale", *SAVED, ""], names,
        domain="bnpass", name="grad", axis=layer.axis, group=group, virtual_batch_size=layer.ghost,
    )  # fmt: skip
    kind = layer.parameters["scale"].dtype
    types = {"dX": (layer.dtype, len(layer.shape)), "dscale": (kind, 1), "dB": (kind, 1)}
    shapes = {name: ["N", *layer.shape[1:]] for name in ("X", "dY")} if open_batch else {}
    if layer.ghost:
        shapes |= {name: ["G", layer.shape[layer.axis]] for name in SAVED[:2]}
    given = feeds(layer, layer.forward([layer.x()]), layer.x(), layer.x(7))
    return model_of([node], given, {name: types[name] for name in names if name}, shapes=shapes)


def feeds(layer: Layer, found: reference.Forward, x: Array, dy: Array) -> Arrays:
    mean, inv_std = (v if layer.ghost else v[0] for v in (found.mean, found.inv_std))
    return {
        "dY": dy, "X": x, "scale": layer.parameters["scale"],
        "saved_mean": mean, "saved_inv_std": inv_std, "count": np.asarray(found.count),
    }  # fmt: skip


def judge(
    layer: Layer, found: reference.Forward, xs: Sequence[Array], dys: Sequence[Array], runs: Sequence[Arrays]
) -> None:
    want = reference.backward(found, [x.astype(F64) for x in xs], [dy.astype(F64) for dy in dys])
    coarse = F64 if layer.dtype == F64 else F32
    for got, dx, dscale, dB in zip(runs, want.dxs, want.dscales, want.dBs, strict=True):
        assert got["dX"].dtype == layer.dtype
        assert got["dscale"].dtype == got["dB"].dtype == layer.parameters["scale"].dtype
        close(got["dX"], dx, worked_in=coarse)
        close(got["dscale"], dscale, worked_in=coarse, units=16)
        close(got["dB"], dB, worked_in=coarse, units=16)


PLACES = [
    ((6, 3), 1, 0), ((5,), 0, 0), ((4, 3, 5), 0, 0), ((4, 3, 5), -1, 0), ((2, 3, 4, 2), 1, 0), ((2, 2, 3, 2, 2), 2, 0),
    ((2, 3, 2, 2, 2, 2), 1, 0), ((8, 3), 1, 2), ((6, 2, 3), 2, 3), ((4, 3, 2, 2), 1, 4),
]  # fmt: skip
CLOSED = [(*place, False) for place in PLACES]
OPEN = [(*place, True) for place in PLACES if place[1] != 0]  # an open batch is no axis of channels


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64], ids=str)
@pytest.mark.parametrize(("shape", "axis", "ghost", "open_batch"), CLOSED + OPEN)
def test_against_the_reference(shape: tuple[int, ...], axis: int, ghost: int, dtype: Any, open_batch: bool) -> None:
    layer = Layer(shape, axis=axis, ghost=ghost, dtype=dtype)
    model, done = expanded(gradient_model(layer, open_batch=open_batch))
    x, dy = layer.x(), layer.x(7)
    found = layer.forward([x])
    given = feeds(layer, found, x, dy)
    for got in [run_reference(model, given)] if dtype == BF16 else run_everywhere(model, given):
        judge(layer, found, [x], [dy], [got])
    assert done.expanded[0].kind == "gradient"


@pytest.mark.parametrize("ghost", [0, 2])
def test_against_central_differences(ghost: int) -> None:
    layer = Layer((4, 3, 2), ghost=ghost, dtype=F64)
    model, _ = expanded(gradient_model(layer))
    x, dy, h = layer.x(), layer.x(7), 1e-5
    got = run_reference(model, feeds(layer, layer.forward([x]), x, dy))

    def loss(x: Array) -> float:
        return float((layer.forward([x]).ys[0] * dy).sum())

    numeric = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        step = np.zeros_like(x)
        step[index] = h
        numeric[index] = (loss(x + step) - loss(x - step)) / (2 * h)
    assert np.abs(got["dX"] - numeric).max() < 1e-8


def test_count_zero_says_that_the_statistics_were_constants() -> None:
    layer = Layer((4, 3, 5))
    model, _ = expanded(gradient_model(layer))
    x, dy = layer.x(), layer.x(7)
    found = layer.forward([x], training=False)
    assert found.count == 0
    for got in run_everywhere(model, feeds(layer, found, x, dy)):
        judge(layer, found, [x], [dy], [got])
        factor = layer.state.scale * found.inv_std[0]
        close(got["dX"], dy * factor[:, None])


@pytest.mark.parametrize("ghost", [0, 2])
def test_without_elements(ghost: int) -> None:
    layer = Layer((4, 3, 5), ghost=ghost)
    model, _ = expanded(gradient_model(layer, open_batch=True))
    empty, statistics = layer.x(batch=0), np.ones((0, 3) if ghost else 3)
    scale = layer.parameters["scale"]
    given = dict(
        zip(("dY", "X", "scale", *SAVED), (empty, empty, scale, statistics, statistics, np.zeros(())), strict=True)
    )
    for got in run_everywhere(model, given):
        assert got["dX"].shape == (0, 3, 5)
        assert (got["dscale"] == 0).all()
        assert (got["dB"] == 0).all()


@pytest.mark.parametrize("dtype", [F16, F32, F64], ids=str)
@pytest.mark.parametrize("shares", [(4, 4), (5, 2, 1, 0), (1, 0)], ids=str)
def test_replicas(shares: tuple[int, ...], dtype: Any) -> None:
    layer = Layer((4, 3, 5), dtype=dtype)
    model, done = expanded(gradient_model(layer, group="world", open_batch=True))
    xs = [layer.x(10 + i, batch=n) for i, n in enumerate(shares)]
    dys = [layer.x(20 + i, batch=n) for i, n in enumerate(shares)]
    found = layer.forward(xs)
    judge(layer, found, xs, dys, run_replicas(model, [feeds(layer, found, x, d) for x, d in zip(xs, dys, strict=True)]))
    assert done.collectives.before == 1


@pytest.mark.parametrize("mean", [1e3, 1e4])
def test_a_large_mean_costs_nothing(mean: float) -> None:
    """The centred form: x − K is exact, K near the mean, and the rest of the mean is taken into account in double."""
    layer = Layer((512, 3), mean=mean)
    x, dy = layer.x(), layer.x(7)
    found = layer.forward([x])
    model, _ = expanded(gradient_model(layer))
    dy = (dy - np.float32(mean)).astype(F32)  # dY is of ordinary size
    want = reference.backward(found, [x.astype(F64)], [dy.astype(F64)])
    for got in run_everywhere(model, feeds(layer, found, x, dy)):
        assert np.abs(got["dscale"] - want.dscales[0]).max() <= 1e-5 * np.abs(want.dscales[0]).max()
        assert np.abs(got["dX"] - want.dxs[0]).max() <= 1e-5 * np.abs(want.dxs[0]).max()


def test_without_dx_nothing_is_exchanged() -> None:
    layer = Layer((4, 3, 5))
    proto = ir.to_proto(gradient_model(layer, group="world"))
    del proto.graph.output[0]
    model, done = expanded(ir.from_proto(proto))
    assert done.expanded[0].collectives == 0
    x, dy = layer.x(), layer.x(7)
    found = layer.forward([x])
    want = reference.backward(found, [x.astype(F64)], [dy.astype(F64)])
    given = feeds(layer, found, x, dy)
    read = {value.name for value in model.graph.inputs}
    got = run_reference(model, {name: value for name, value in given.items() if name in read})
    close(got["dscale"], want.dscales[0], units=16)


@pytest.mark.parametrize("wrong", ["dY", "scale", "saved_mean", "saved_inv_std", "count"])
def test_what_broadcasts_at_run_time_fails(wrong: str) -> None:
    layer = Layer((4, 3, 5))
    model = gradient_model(layer)
    for value in model.graph.inputs:
        if value.name != "X":
            value.shape = ir.Shape([None] * len(value.shape or ())) if value.name != "count" else None
    expand(model, ExpandOptions())
    x, dy = layer.x(), layer.x(7)
    found = layer.forward([x])
    good = feeds(layer, found, x, dy)
    judge(layer, found, [x], [dy], [run_ort(model, good)])
    bad = {"dY": dy[:1], "count": np.full(3, 20.0)}
    bad |= {name: good[name][:1] for name in ("scale", "saved_mean", "saved_inv_std")}
    with pytest.raises(Exception, match=r"(?i)reshape"):
        run_ort(model, {**good, wrong: bad[wrong]})


def test_a_gradient_of_another_shape_is_refused() -> None:
    model = gradient_model(Layer((4, 3, 5)))
    model.graph.inputs[0].shape = ir.Shape([4, 3, 1])
    with pytest.raises(RefusedError, match="BN205"):
        expand(model, ExpandOptions())
