"""How exact the statistics are where it is hard, and Keras's sums bit for bit."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bnpass.expansion.options import ExpandOptions
from tests.unit.expansion.cases import (
    BF16,
    F16,
    F32,
    F64,
    Array,
    Layer,
    close,
    expanded,
    run_everywhere,
    run_ort,
    run_reference,
    run_replicas,
    sync_batch_norm,
)
from tests.unit.expansion.test_gradient import feeds as gradient_feeds
from tests.unit.expansion.test_gradient import gradient_model

KERAS = ExpandOptions(stats="keras")


def variances(layer: Layer, got: dict[str, Array]) -> Array:
    """Return what the saved inverse standard deviations say of the variance."""
    return np.asarray(1 / got["saved_inv_std"] ** 2 - layer.resolved.epsilon)


@pytest.mark.parametrize("ratio", [1e2, 1e4, 1e5])
@pytest.mark.parametrize("group", ["", "world"])
@pytest.mark.parametrize(("shape", "axis"), [((4096, 4), 1), ((64, 4, 64), 1), ((64, 64, 4), 2)])
def test_float_with_a_large_mean(shape: tuple[int, ...], axis: int, group: str, ratio: float) -> None:
    """Alone nothing cancels; in the message it is S2/M − mean², in double."""
    layer = Layer(shape, axis=axis, mean=ratio, epsilon=0.0)
    model, _ = expanded(sync_batch_norm(layer, group=group))
    x = layer.x()
    found = layer.forward([x])
    allowed = 1e-6 + 4 * ratio**2 * 2**-53 * bool(group)
    for got in run_everywhere(model, {"X": x, **layer.parameters}):
        assert np.abs((found.inv_std[0] / got["saved_inv_std"]) ** 2 - 1).max() <= allowed
        assert np.abs(got["saved_mean"] - found.mean[0]).max() <= 6e-8
        assert np.abs(got["Y"] - found.ys[0]).max() <= 8 * allowed


@pytest.mark.parametrize(
    ("shape", "axis"), [((65536, 4), 1), ((16, 64, 64, 4), 3), ((16, 4, 64, 64), 1), ((8, 8192, 4), 2)]
)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_many_elements(shape: tuple[int, ...], axis: int, direction: str) -> None:
    """ONNX Runtime adds floats along leading axes one by one: 2e-5 here, if it is left to do so."""
    layer = Layer(shape, axis=axis, epsilon=0.0)
    x, axes = layer.x(), tuple(i for i in range(len(shape)) if i != axis)
    wide = x.astype(F64)
    if direction == "forward":
        model, _ = expanded(sync_batch_norm(layer))
        for optimized in (True, False):
            got = run_ort(model, {"X": x, **layer.parameters}, optimized=optimized)
            assert np.abs(variances(layer, got) / wide.var(axis=axes) - 1).max() <= 1e-6
            assert np.abs(got["saved_mean"] - wide.mean(axis=axes)).max() <= 6e-8  # the rounding of x − K
        return
    found = layer.forward([x])
    model, _ = expanded(gradient_model(layer))
    got = run_ort(model, gradient_feeds(layer, found, x, np.abs(x)))
    assert np.abs(got["dB"] / np.abs(wide).sum(axis=axes) - 1).max() <= 1e-6


@pytest.mark.parametrize("ratio", [1e4, 1e5])
def test_float_with_a_large_mean_in_unequal_replicas(ratio: float) -> None:
    layer = Layer((64, 4), mean=ratio, epsilon=0.0)
    model, _ = expanded(sync_batch_norm(layer, group="world", open_batch=True))
    xs = [layer.x(i, batch=n) for i, n in enumerate((700, 200, 100, 0))]
    exact = np.concatenate(xs).astype(F64).var(axis=0)
    for got in run_replicas(model, [{"X": x, **layer.parameters} for x in xs]):
        assert np.abs(variances(layer, got) / exact - 1).max() <= 4 * ratio**2 * 2**-53


@pytest.mark.parametrize("ratio", [1e6, 1e8])
def test_double_with_a_large_mean(ratio: float) -> None:
    """One message would lose (mean/std)² units of 2⁻⁵³; two do not."""
    layer = Layer((64, 4), mean=ratio, epsilon=0.0, dtype=F64)
    model, _ = expanded(sync_batch_norm(layer, group="world", open_batch=True))
    xs = [layer.x(i, batch=n) for i, n in enumerate((300, 100))]
    exact = np.concatenate(xs).astype(np.longdouble).var(axis=0)
    for got in run_replicas(model, [{"X": x, **layer.parameters} for x in xs]):
        assert np.abs(variances(layer, got) / exact - 1).max() <= 1e-14 * ratio


@pytest.mark.parametrize("group", ["", "world"])
def test_no_variance_is_negative(group: str) -> None:
    layer = Layer((5, 9, 13, 3), axis=3, epsilon=0.0)
    model, _ = expanded(sync_batch_norm(layer, group=group))
    for value in np.random.default_rng(0).normal(size=30) * np.array([1, 100, 1e5] * 10):
        got = run_ort(model, {"X": np.full(layer.shape, value, F32), **layer.parameters})
        assert not np.isnan(got["saved_inv_std"]).any()


def test_a_constant_channel_has_variance_zero() -> None:
    layer = Layer((64, 3), epsilon=1e-3)
    for value in (0.1, 1e4, -3e5):
        x = np.full(layer.shape, value, F32)
        for group in ("", "world"):
            model, _ = expanded(sync_batch_norm(layer, group=group))
            for got in run_everywhere(model, {"X": x, **layer.parameters}):
                assert (got["saved_inv_std"] <= 1 / np.sqrt(layer.resolved.epsilon)).all()
                close(got["saved_inv_std"], np.full(3, 1 / np.sqrt(layer.resolved.epsilon)), worked_in=F32)
                close(got["Y"], np.broadcast_to(layer.parameters["B"], (64, 3)).astype(F64), units=64)


def test_large_values_in_float16_do_not_overflow() -> None:
    layer = Layer((64, 4), dtype=F16, epsilon=1e-3)
    x = (1000 * np.random.default_rng(3).choice([-1.0, 1.0], (64, 4))).astype(F16)
    model, _ = expanded(sync_batch_norm(layer))
    want = layer.expected([x])[0]
    for got in run_everywhere(model, {"X": x, **layer.parameters}):
        assert np.isfinite(got["Y"]).all()
        assert got["running_var"].max() > 65504
        close(got["Y"], want["Y"])
        close(got["running_var"], want["running_var"])


def test_sums_of_large_values_in_bfloat16() -> None:
    layer = Layer((64, 4), dtype=BF16)
    x = layer.x() * np.asarray(1e3, BF16)
    model, _ = expanded(sync_batch_norm(layer))
    close(run_reference(model, {"X": x, **layer.parameters})["Y"], layer.expected([x])[0]["Y"])


def test_counts_that_float_cannot_hold() -> None:
    """Beyond 2²⁴ elements: the count is a constant of double here, and a sum of doubles in the message."""
    for samples, correction in ((2**24 + 1, 1), (2**33 + 1, 0)):
        layer = Layer((2, 3), correction=correction)
        model = sync_batch_norm(layer, group="world")
        model.graph.inputs[0].shape = ir.Shape([samples, 3])
        model, done = expanded(model)
        assert done.expanded[0].shape == (samples, 3)
        constants = [n.attributes["value"].as_tensor().numpy() for n in model.graph if n.op_type == "Constant"]
        assert any(c.dtype == F64 and c.shape == (1,) and c[0] == samples for c in constants)


def test_only_so_many_floats_are_added_in_float() -> None:
    """2²⁰ floats along axis 1, then doubles along axis 0; with one more than that, doubles along both."""
    for length, axes in ((2**20, {(0,), (1,)}), (2**20 + 1, {(0, 1)})):
        model = sync_batch_norm(Layer((2, 4, 3), axis=2))
        model.graph.inputs[0].shape = ir.Shape([2, length, 3])
        model, _ = expanded(model)
        constants = {n.outputs[0]: n.attributes["value"] for n in model.graph if n.op_type == "Constant"}
        along = [constants[n.inputs[1]].as_tensor().numpy() for n in model.graph if n.op_type == "ReduceSum"]
        assert {tuple(numbers.tolist()) for numbers in along} == axes


def test_counts_of_open_batches_are_integers_until_they_are_doubles() -> None:
    model, _ = expanded(sync_batch_norm(Layer((2, 3)), open_batch=True))
    size = next(n for n in model.graph if n.op_type == "Size")
    (reader,) = {use.node.op_type for use in size.outputs[0].uses()}
    assert reader == "Reshape"
    casts = [n for n in model.graph if n.op_type == "Cast" and n.outputs[0].name == "bn/n"]
    assert [n.attributes.get_int("to") for n in casts] == [ir.DataType.DOUBLE]


def keras_replay(x: Array, scale: Array, B: Array, epsilon: float) -> tuple[Array, Array, Array]:
    """Return mean, variance and Y of tf_keras's synchronized moments, operation by operation, for one replica."""
    kind = x.dtype.type
    count = kind(x.size // x.shape[-1])
    total, squares = x.sum(axis=0, dtype=kind), (x * x).sum(axis=0, dtype=kind)
    mean = total / count
    var = np.maximum(squares / count - mean * mean, kind(0))
    a = (scale.astype(F64) / 1) * (1 / np.sqrt(var.astype(F64) + epsilon))
    return mean, var, (x - mean) * a.astype(kind) + B.astype(kind)


@pytest.mark.parametrize("mean", [0.0, 30.0, 1e4])
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_keras_sums_bit_for_bit(dtype: Any, mean: float) -> None:
    layer = Layer((48, 5), axis=-1, dtype=dtype, mean=mean)
    model, done = expanded(sync_batch_norm(layer, group="world"), KERAS)
    x = layer.x()
    mean_, var, y = keras_replay(x, layer.parameters["scale"], layer.parameters["B"], layer.resolved.epsilon)
    got = run_reference(model, {"X": x, **layer.parameters})
    assert np.array_equal(got["saved_mean"], mean_.astype(F64))
    assert np.array_equal(got["saved_inv_std"], 1 / np.sqrt(var.astype(F64) + layer.resolved.epsilon))
    assert np.array_equal(got["Y"], y)
    assert done.collectives.before == 3


def test_keras_sums_cancel_where_the_exact_ones_do_not() -> None:
    layer = Layer((4096, 4), mean=1e4, epsilon=0.0)
    x = layer.x()
    exact = x.astype(F64).var(axis=0)
    keras, _ = expanded(sync_batch_norm(layer, epsilon=1e-3), KERAS)
    got = run_reference(keras, {"X": x, **layer.parameters})
    var = 1 / got["saved_inv_std"] ** 2 - float(np.float32(1e-3))
    assert np.abs(var / exact - 1).max() > 0.1
    assert (var > -1e-9).all()  # Keras clamps, too


@pytest.mark.parametrize("shares", [(4, 4), (5, 2, 1, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("dtype", [F16, F32, F64], ids=str)
def test_keras_sums_in_replicas(dtype: Any, shares: tuple[int, ...]) -> None:
    layer = Layer((4, 3, 5), dtype=dtype)
    model, _ = expanded(sync_batch_norm(layer, group="world", open_batch=True), KERAS)
    xs = [layer.x(i, batch=n) for i, n in enumerate(shares)]
    found = run_replicas(model, [{"X": x, **layer.parameters} for x in xs])
    for got, want in zip(found, layer.expected(xs), strict=True):
        for name, value in got.items():
            close(value, want[name], worked_in=F64 if dtype == F64 else F32, units=16)


def test_keras_sums_over_ghost_batches() -> None:
    layer = Layer((6, 3, 4), ghost=2)
    model, _ = expanded(sync_batch_norm(layer), KERAS)
    want = layer.expected([layer.x()])[0]
    for got in run_everywhere(model, {"X": layer.x(), **layer.parameters}):
        for name, value in got.items():
            close(value, want[name], worked_in=F32)
