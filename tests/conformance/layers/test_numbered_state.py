"""Numbered cases of shared layers, ghost batches, renorm and masks that are more than a case of a layer."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from bnpass.semantics.reference import Forward, State, backward, forward
from bnpass.semantics.resolved import Resolved
from bnpass.semantics.spec import BatchNormSpec
from tests.conformance.layers import meaning
from tests.conformance.layers.arrays import draw
from tests.conformance.layers.cases import Array, Case
from tests.conformance.layers.conftest import Outcome
from tests.conformance.layers.deviation_cases import PROBES
from tests.support.build import normal

Oracle = Callable[[Case], Outcome]
SINGLE = 1e-5
"""A few float32 roundings of numbers of size 1, in TensorFlow."""


def two_steps(probe: Case) -> tuple[list[Forward], list[Array], list[Array]]:
    """Return two calls of one layer, its inputs, and the gradients of its outputs."""
    arrays, layer = draw(probe), meaning.layer(probe)
    xs, dys = ([arrays[f"{kind}/{i}/0"] for i in (0, 1)] for kind in "xw")
    first = forward(layer, [xs[0]], meaning.state_of(layer, meaning.started(probe, arrays)), training=True)
    return [first, forward(layer, [xs[1]], first.state, training=True)], xs, dys


@pytest.mark.keras
def test_case_14_a_shared_layer(tensorflow: Oracle) -> None:
    """Two calls in one step: two updates in their order, and the gradients of the parameters add up."""
    _, found = tensorflow(PROBES["shared_layer"])
    calls, xs, dys = two_steps(PROBES["shared_layer"])
    gradients = [backward(call, [x], [dy]) for call, x, dy in zip(calls, xs, dys, strict=True)]
    for i, (call, gradient) in enumerate(zip(calls, gradients, strict=True)):
        np.testing.assert_allclose(found[f"y/{i}"], call.ys[0], rtol=SINGLE, atol=SINGLE)
        np.testing.assert_allclose(found[f"dx/{i}"], gradient.dxs[0], rtol=SINGLE, atol=SINGLE)
    np.testing.assert_allclose(found["dgamma"], sum(g.dscales[0] for g in gradients), rtol=SINGLE, atol=SINGLE)
    np.testing.assert_allclose(found["dbeta"], sum(g.dBs[0] for g in gradients), rtol=SINGLE, atol=SINGLE)
    np.testing.assert_allclose(found["after/moving_mean"], calls[1].state.running_mean, rtol=SINGLE)
    np.testing.assert_allclose(found["after/moving_variance"], calls[1].state.running_var, rtol=SINGLE)


@pytest.mark.keras
def test_case_14_reuse(tensorflow: Oracle) -> None:
    """tf.layers with one name: one set of variables, and the updates of each call in UPDATE_OPS."""
    facts, found = tensorflow(PROBES["reuse"])
    assert facts["updates"] == 4
    assert facts["variables"] == ["stem/beta", "stem/gamma", "stem/moving_mean", "stem/moving_variance"]
    assert facts["trainable"] == ["stem/beta", "stem/gamma"]
    calls, _, _ = two_steps(PROBES["reuse"])
    for i, call in enumerate(calls):
        np.testing.assert_allclose(found[f"y/{i}"], call.ys[0], rtol=SINGLE, atol=SINGLE)
    np.testing.assert_allclose(found["after/moving_mean"], calls[1].state.running_mean, rtol=SINGLE)
    np.testing.assert_allclose(found["after/moving_variance"], calls[1].state.running_var, rtol=SINGLE)


def layer(shape: Sequence[int], api: str = "tf_keras", dtype: str = "float64", **arguments: object) -> Resolved:
    return BatchNormSpec(api, **arguments).resolve(tuple(shape), dtype)  # type: ignore[arg-type]


def state(channels: int = 3, **values: float) -> State:
    full = {"scale": 1.5, "B": 0.5, "running_mean": 0.2, "running_var": 1.3} | values
    return State(**{name: np.full(channels, value) for name, value in full.items()})


def test_case_20_groups_are_strided() -> None:
    """Ghost batch g of N = 8, b = 4 holds the samples g, g + 2, g + 4, g + 6, not four that lie together."""
    x = normal(8, 3).astype(np.float64)
    found = forward(layer((8, 3), virtual_batch_size=4), [x], state(), training=True)
    for g in (0, 1):
        alone = forward(layer((4, 3)), [x[g::2]], state(), training=True)
        np.testing.assert_allclose(found.ys[0][g::2], alone.ys[0], rtol=1e-12)
    variances = [x[g::2].var(0) for g in (0, 1)]
    np.testing.assert_allclose(found.state.running_var, 0.99 * 1.3 + 0.01 * np.mean(variances, 0), rtol=1e-12)
    together = np.concatenate([forward(layer((4, 3)), [x[i : i + 4]], state(), training=True).ys[0] for i in (0, 4)])
    assert np.abs(found.ys[0] - together).max() > 0.1


@pytest.mark.parametrize("replicas", [1, 2])
def test_case_42_renorm_that_clips_nothing(replicas: int) -> None:
    """Y is a normalization by the renorm averages, but its gradient is not that of constants."""
    shares = [normal(n, 3, seed=n).astype(np.float64) for n in (6, 2)[:replicas]]
    resolved = layer(shares[0].shape, synchronized=replicas > 1, renorm=True)
    before = state(running_stddev=0.9, renorm_mean=0.3, renorm_stddev=0.8)
    found = forward(resolved, shares, before, training=True)
    dys = [normal(*x.shape, seed=9).astype(np.float64) for x in shares]
    gradient = backward(found, shares, dys)
    whole, dY = np.concatenate(shares), np.concatenate(dys)
    np.testing.assert_allclose(np.concatenate(found.ys), 1.5 * (whole - 0.3) / 0.8 + 0.5, rtol=1e-12)
    inv_std = 1 / np.sqrt(whole.var(0) + 1e-3)
    x_hat, g = (whole - whole.mean(0)) * inv_std, dY * 1.5 / (0.8 * inv_std)
    wanted = inv_std * (g - g.mean(0) - x_hat * (g * x_hat).mean(0))
    np.testing.assert_allclose(np.concatenate(gradient.dxs), wanted, rtol=1e-10, atol=1e-12)
    assert np.abs(wanted - dY * 1.5 / 0.8).max() > 0.1
    np.testing.assert_allclose(sum(gradient.dscales), (dY * (whole - 0.3) / 0.8).sum(0), rtol=1e-10)


@pytest.mark.parametrize("epsilon", [1e-3, 4.0])
def test_case_43_the_denominator_of_inference(epsilon: float) -> None:
    """sqrt(variance + eps) before the first update; then the moving stddev, but never less than sqrt(eps)."""
    x = normal(6, 3).astype(np.float64)
    resolved = layer(x.shape, renorm=True, epsilon=epsilon, momentum=0.9)
    before = state(running_stddev=0.9, renorm_mean=0.3, renorm_stddev=0.8)
    y = forward(resolved, [x], before, training=False).ys[0]
    np.testing.assert_allclose(y, 1.5 * (x - 0.2) / np.sqrt(1.3 + epsilon) + 0.5, rtol=1e-12)
    after = forward(resolved, [x], before, training=True).state
    assert after.running_stddev is not None
    denominator = np.maximum(after.running_stddev, np.sqrt(epsilon))
    assert (denominator == np.sqrt(epsilon)).all() == (epsilon == 4.0)
    y = forward(resolved, [x], after, training=False).ys[0]
    np.testing.assert_allclose(y, 1.5 * (x - after.running_mean) / denominator + 0.5, rtol=1e-12)


@pytest.mark.parametrize(
    ("api", "kind"),
    [
        ("tf_keras", "weights"),
        ("sync", "weights"),
        ("keras3", "0"),
        ("keras3", "1"),
        ("keras3", "2"),
        ("keras3", "half"),
    ],
)
def test_case_44_gradients_of_masks_by_differences(api: str, kind: str) -> None:
    """Also where Keras 3's denominator shows: a large mean over a small W."""
    x = normal(4, 2, 3).astype(np.float64) + (1e3 if api == "keras3" else 0)
    w = np.ones((4, 2)) if kind == "half" else np.zeros((4, 2))
    w.flat[: {"0": 0, "1": 1, "2": 2}.get(kind, 4)] = 1 if kind != "half" else 0
    if kind == "weights":
        w = np.arange(8.0).reshape(4, 2) / 4
    resolved, dY = layer(x.shape, api), normal(*x.shape, seed=5).astype(np.float64)

    def value(moved: Array) -> float:
        return float((forward(resolved, [moved], state(), training=True, masks=[w]).ys[0] * dY).sum())

    found = forward(resolved, [x], state(), training=True, masks=[w])
    gradient = backward(found, [x], [dY]).dxs[0]
    step = 1e-4 * max(1e-2, float((1 / found.inv_std).max()))
    for index in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        difference = (value(up) - value(down)) / (2 * step)
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(gradient[index], difference, rtol=1e-5, atol=1e-6 * scale)
