"""Numbered cases of the forward pass that are more than a case of a layer."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx.reference.ops.op_batch_normalization import BatchNormalization_14

from bnpass.layers.model import layer_model
from bnpass.passes import ExpandSyncBatchNorm
from bnpass.semantics.reference import State, backward, forward
from bnpass.semantics.resolved import Resolved
from bnpass.semantics.spec import BatchNormSpec
from tests.conformance.layers.cases import Array
from tests.conformance.layers.exchange import Arrays
from tests.conformance.layers.products import CHANGES
from tests.conformance.layers.runtime import runner
from tests.support.build import model, normal

WAYS = tuple(CHANGES)


def layer(shape: Sequence[int | None] = (6, 3), dtype: str = "float32", **arguments: object) -> Resolved:
    return BatchNormSpec("keras3", **arguments).resolve(tuple(shape), dtype)  # type: ignore[arg-type]


def state(channels: int = 3, mean: float = 0.0, var: float = 1.0) -> State:
    return State(np.full(channels, 1.5), np.full(channels, 0.5), np.full(channels, mean), np.full(channels, var))


def feeds(x: Array, before: State, dY: Array | None = None) -> Arrays:
    given = {"X": x, "scale": before.scale, "B": before.B}
    given |= {"input_mean": before.running_mean, "input_var": before.running_var}
    return given if dY is None else given | {"dY": dY}


def run(way: str, resolved: Resolved, x: Array, before: State, dY: Array | None = None) -> Arrays:
    built = layer_model(resolved, training=True, gradient=dY is not None)
    CHANGES[way](built)
    (found,) = runner(built, 1)([feeds(x, before, dY)])
    return found


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99, 1.0])
def test_case_05_momentum_conventions(momentum: float) -> None:
    """Fraction kept: Keras and ONNX. Fraction new: TensorFlow's exponential_avg_factor and PyTorch's momentum."""
    x, before = normal(6, 3).astype(np.float64), state(mean=2.0, var=3.0)
    after = forward(layer(momentum=momentum), [x], before, training=True).state
    new = 1 - momentum
    np.testing.assert_allclose(after.running_mean, 2.0 + new * (x.mean(0) - 2.0), rtol=1e-13)
    np.testing.assert_allclose(after.running_var, 3.0 + new * (x.var(0) - 3.0), rtol=1e-13)
    given: list[Any] = [x, before.scale, before.B, before.running_mean, before.running_var]
    onnx = BatchNormalization_14.eval(*given, epsilon=1e-3, momentum=momentum, training_mode=1)
    rounded = forward(layer(momentum=float(np.float32(momentum))), [x], before, training=True).state  # an attribute
    np.testing.assert_allclose(onnx[1], rounded.running_mean, rtol=1e-12)
    np.testing.assert_allclose(onnx[2], rounded.running_var, rtol=1e-12)


def test_case_05_a_cumulative_average() -> None:
    """PyTorch's momentum=None: the fraction new is 1/k in step k, so the momentum of that step is 1 − 1/k."""
    batches = [normal(6, 3, seed=k).astype(np.float64) for k in range(4)]
    after = state(mean=7.0, var=7.0)
    for k, x in enumerate(batches, 1):
        after = forward(layer(momentum=1 - 1 / k), [x], after, training=True).state
    np.testing.assert_allclose(after.running_mean, np.mean([x.mean(0) for x in batches], 0), rtol=1e-13)
    np.testing.assert_allclose(after.running_var, np.mean([x.var(0) for x in batches], 0), rtol=1e-13)


@pytest.mark.parametrize("mean", [1e2, 1e3, 1e4, 1e5])
@pytest.mark.parametrize("way", WAYS)
def test_case_07_a_large_mean_keeps_its_variance(way: str, mean: float) -> None:
    """The float32 numbers are given; from them on nothing is lost: E[x²] − E[x]² would be wrong from 1e3 on."""
    x = (normal(500, 3) + np.float32(mean)).astype(np.float64)
    dY = (normal(500, 3, seed=1) + np.float32(1)).astype(np.float64)
    found = run(way, layer((500, 3), momentum=0.0), x, state(), dY)
    np.testing.assert_allclose(found["running_var"], x.var(0), rtol=1e-6)
    result = forward(layer((500, 3)), [x], state(), training=True)
    gradient = backward(result, [x], [dY])
    np.testing.assert_allclose(found["Y"], result.ys[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["dX"], gradient.dxs[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["dscale"], gradient.dscales[0], rtol=1e-5)  # Σ dY·(x − mean), Σ dY not 0
    single = x.astype(np.float32)
    one_pass = (single * single).mean(0) - single.mean(0) ** 2
    assert mean < 1e3 or np.abs(one_pass / x.var(0) - 1).max() > 1e-3


@pytest.mark.parametrize(
    ("parameters", "statistics"), [("float", "float"), ("float16", "float"), ("float16", "float16")]
)
def test_case_09_types_of_parameters_and_statistics(parameters: str, statistics: str) -> None:
    """T, T1 and T2 of version 15 are independent; the arithmetic of float16 X is float32 at least."""
    built = model(
        f"""g (float16[N, 3] x, {parameters}[3] s, {parameters}[3] b, {statistics}[3] m, {statistics}[3] v)
        => (float16[N, 3] y, {statistics}[3] rm, {statistics}[3] rv)
        {{ y, rm, rv = BatchNormalization <training_mode = 1, epsilon = 0.001, momentum = 0.5> (x, s, b, m, v) }}""",
        opset=18,
    )
    x = (300 * normal(6, 3)).astype(np.float16).astype(np.float64)  # its variance is no float16
    ExpandSyncBatchNorm()(built)
    assert [node.op_type for node in built.graph if node.op_type == "BatchNormalization"] == []
    before = state(mean=2.0, var=3.0)
    values = (x, before.scale, before.B, before.running_mean, before.running_var)
    (found,) = runner(built, 1)([dict(zip("xsbmv", values, strict=True))])
    wanted = forward(layer(dtype="float16", momentum=0.5), [x], before, training=True)
    np.testing.assert_allclose(found["y"], wanted.ys[0], rtol=1e-3, atol=1e-3)
    tolerance = 1e-6 if statistics == "float" else 1e-3
    np.testing.assert_allclose(found["rm"], wanted.state.running_mean, rtol=tolerance)
    if statistics == "float":
        np.testing.assert_allclose(found["rv"], wanted.state.running_var, rtol=1e-6)
        assert wanted.state.running_var.max() > 40000
    else:
        largest = float(np.finfo(np.float16).max)
        fits = wanted.state.running_var <= largest
        np.testing.assert_allclose(found["rv"][fits], wanted.state.running_var[fits], rtol=1e-3)
        assert np.isinf(found["rv"][~fits]).all()


@pytest.mark.parametrize("way", WAYS)
def test_case_10_one_model_for_every_batch(way: str) -> None:
    built = layer_model(layer((None, 2, 3)), training=True, gradient=True)
    CHANGES[way](built)
    run_one = runner(built, 1)
    for batch in (1, 2, 7, 0):
        x, before = normal(batch, 2, 3).astype(np.float64), state(mean=2.0, var=3.0)
        (found,) = run_one([feeds(x, before, normal(batch, 2, 3, seed=1))])
        wanted = forward(layer((batch, 2, 3)), [x], before, training=True)
        assert found["Y"].shape == found["dX"].shape == (batch, 2, 3)
        np.testing.assert_allclose(found["Y"], wanted.ys[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found["running_mean"], wanted.state.running_mean, rtol=1e-6)
        np.testing.assert_allclose(found["running_var"], wanted.state.running_var, rtol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_case_15_one_initializer_for_all_parameters(way: str) -> None:
    """ONNX Runtime 1.27 writes the running statistics over their inputs (microsoft/onnxruntime#29790)."""
    node = "SyncBatchNormalization <axis = 1, epsilon = 0.001, momentum = 0.5, training_mode = 1> (x, p, p, p, p, )"
    built = model(
        f"""g (float[6, 3] x) => (float[6, 3] y, float[3] rm, float[3] rv)
        {{ y, rm, rv, sm, si, n = bnpass.{node} }}""",
        {"p": np.array([1.0, 2.0, 3.0], np.float32)},
        opset=18,
    )
    CHANGES[way](built)
    x, p = normal(6, 3).astype(np.float64), np.array([1.0, 2.0, 3.0])
    wanted = forward(layer(momentum=0.5), [x], State(p, p, p, p), training=True)
    run_one = runner(built, 1)
    for _ in range(2):  # a second run would see an initializer that was written over
        (found,) = run_one([{"x": x}])
        np.testing.assert_allclose(found["y"], wanted.ys[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found["rm"], wanted.state.running_mean, rtol=1e-6)
        np.testing.assert_allclose(found["rv"], wanted.state.running_var, rtol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_case_16_Y_knows_no_moving_statistics(way: str) -> None:  # noqa: N802
    x, resolved = normal(6, 3).astype(np.float64), layer()
    found = run(way, resolved, x, state())["Y"]
    np.testing.assert_array_equal(found, run(way, replace(resolved, momentum=0.3), x, state())["Y"])
    np.testing.assert_array_equal(found, run(way, resolved, x, state(mean=1e6, var=1e-6))["Y"])
    ys = [forward(resolved, [x], before, training=True).ys[0] for before in (state(), state(mean=1e6, var=1e-6))]
    np.testing.assert_array_equal(ys[0], ys[1])
