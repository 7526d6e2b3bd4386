"""Renorm, adjustment and ghost batches in the published test of ``tf.layers``, rebuilt from what it says, and exported.

Read for it: ``legacy_tf_layers/normalization_test.py`` of tf_keras, of which ``test_tf_layers_published.py`` has the
rest. A negative size of ghost batches is refused by the class (``testGhostBNNegativeVirtualBatch``).
"""

from typing import Any

import numpy as np
import pytest

from tests.exporting.live import close, export, state_agrees, variable_values
from tests.exporting.phases import Phases, handing, layer_of, of_both
from tests.exporting.published import TRAINED_MARKS, uniform
from tests.exporting.stepping import Array

pytestmark = TRAINED_MARKS

KNOWN = {"gamma_initializer": 2.0, "beta_initializer": 3.0, "epsilon": 0.001}
RENORM = {**KNOWN, "axis": 1, "momentum": 0.99, "renorm": True, "renorm_momentum": 0.8}
CLIPPING = {"rmax": 1.1, "rmin": 0.9, "dmax": 0.1}
GHOSTS = {"gamma_initializer": 3.0, "beta_initializer": 2.0, "momentum": 0.8, "epsilon": 1e-3}


class Renormalized:
    """The averages that a layer with renorm keeps, starting from 0 and 1, by their definition."""

    def __init__(self, momentum: float, renorm_momentum: float, clipping: dict[str, float] | None) -> None:
        self._momenta, self._clipping = (momentum, renorm_momentum), clipping or {}
        self._moving, self._renorm = [np.zeros(3), np.ones(3)], [np.zeros(3), np.ones(3)]

    def infer(self, x: Array) -> Array:
        """Return what inference standardizes."""
        mean, deviation = self._moving
        return np.asarray((x - mean) / deviation)

    def train(self, x: Array) -> Array:
        """Return what training standardizes, and move the averages."""
        mean, deviation = x.mean(0, np.float64), np.sqrt(x.var(0, np.float64) + 0.001)
        r, d = deviation / self._renorm[1], (mean - self._renorm[0]) / self._renorm[1]
        if self._clipping:
            r = r.clip(self._clipping["rmin"], self._clipping["rmax"])
            d = d.clip(-self._clipping["dmax"], self._clipping["dmax"])
        for averages, momentum in zip((self._moving, self._renorm), self._momenta, strict=True):
            averages[:] = [
                m * momentum + new * (1 - momentum) for m, new in zip(averages, (mean, deviation), strict=True)
            ]
        return np.asarray((x - mean) / deviation * r + d)


@of_both
def test_renorm(version: str) -> None:
    step = Phases(layer_of(version, **RENORM, renorm_clipping=CLIPPING), (4, 3))
    reference = Renormalized(0.99, 0.8, CLIPPING)
    for number in range(5):
        x = uniform(4, 3, seed=number)
        np.testing.assert_allclose(step(x, training=True), reference.train(x) * 2 + 3, atol=1e-5)
        np.testing.assert_allclose(step(x, training=False), reference.infer(x) * 2 + 3, atol=1e-5)


@of_both
def test_renorm_no_clipping_same_momentum_gives_same_test_train(version: str) -> None:
    """After the first step, before which the variance is 1 and the deviation 1, not √(1 + epsilon)."""
    arguments = RENORM | {"momentum": 0.9, "renorm_momentum": 0.9, "renorm_clipping": None}
    step = Phases(layer_of(version, **arguments), (4, 3))
    for number in range(6):
        x = uniform(4, 3, seed=number)
        inference = step(x, training=False)
        np.testing.assert_allclose(step(x, training=True), inference, atol=1e-5 if number else 1.5e-3)


@of_both
@pytest.mark.parametrize("renorm", [False, True], ids=["Adjustment", "RenormWithAdjustment"])
def test_adjustment(version: str, renorm: bool) -> None:
    """In training alone the standardized numbers are scaled and moved, before gamma and beta."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    scale, bias = rng.uniform(0.5, 1.5, 3).astype(np.float32), rng.uniform(-0.2, 0.2, 3).astype(np.float32)
    arguments = RENORM | {"renorm": renorm} | ({"renorm_clipping": CLIPPING} if renorm else {})
    adjusted = layer_of(version, **arguments, adjustment=lambda _: (tf.constant(scale), tf.constant(bias)))
    step, plain = Phases(adjusted, (4, 3)), Phases(layer_of(version, **arguments), (4, 3))
    for number in range(5):
        x = uniform(4, 3, seed=number)
        y, bare = step(x, training=True), plain(x, training=True)
        np.testing.assert_allclose(y, (bare - 3) * scale + bias * 2 + 3, atol=1e-5)
        np.testing.assert_allclose(step(x, training=False), plain(x, training=False), atol=1e-6)


@of_both
def test_adjustment_at_random(version: str) -> None:
    """Of what is drawn anew in each step an export draws its own, between the same limits; the statistics agree."""
    import tensorflow as tf

    layer = layer_of(
        version,
        **KNOWN,
        axis=1,
        adjustment=lambda _: (tf.random.uniform([3], 0.5, 1.5), tf.random.uniform([3], -0.2, 0.2)),
    )
    model, drawn = handing(layer, 4, 3), []
    before, signature = variable_values(model), [((None, 3), "float32")]
    _, inference = export(model, training=False, signature=signature)
    close(inference(uniform(4, 3))[0], model(uniform(4, 3), training=False))
    _, run = export(model, training=True, signature=signature)
    for number in range(5):
        x = uniform(4, 3, seed=number)
        (y,), _ = run(x), model(x, training=True)
        standard = (x - x.mean(0)) / np.sqrt(x.var(0) + 0.001)
        lines = [np.polyfit(standard[:, c], (y[:, c] - 3) / 2, 1, full=True) for c in range(3)]
        assert all(residual < 1e-9 for _, (residual,), *_ in lines)
        assert all(0.5 <= scale <= 1.5 and -0.2 <= bias <= 0.2 for (scale, bias), *_ in lines)
        drawn += [scale for (scale, _), *_ in lines]
        state_agrees(run, before, variable_values(model))
    assert len({round(scale, 4) for scale in drawn}) == len(drawn)


@of_both
def test_ghost_bn_virtual_batch_full(version: str) -> None:
    """One ghost batch is no ghost batch."""
    x = uniform(6, 5, 4, 3)
    whole, ghost = (ghosted(layer_of(version, **more), x) for more in ({}, {"virtual_batch_size": 6}))
    for found, wanted in zip(ghost, whole, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def ghosted(layer: Any, *batches: Array) -> list[Array]:
    """Return what a layer gives in training for some batches, and then in inference for the last, live and exported.

    In TensorFlow 2 a tensor that tells the mode would turn ghost batches off: nothing but True turns them on.
    """
    signature = [((None, *batches[0].shape[1:]), "float32")]
    model = handing(layer, *batches[0].shape)
    _, run = export(model, training=True, signature=signature)
    before, ys = variable_values(model), []
    for x in batches:
        ys += run(x)
        close(ys[-1], model(x, training=True))
        state_agrees(run, before, variable_values(model))
    _, run = export(model, training=False, signature=signature)
    ys += run(x)
    close(ys[-1], model(x, training=False))
    return ys


@of_both
def test_ghost_bn_input_output_shapes_match(version: str) -> None:
    training, inference = ghosted(layer_of(version, virtual_batch_size=3), uniform(6, 4, 3))
    assert training.shape == inference.shape == (6, 4, 3)


@of_both
def test_ghost_bn_unknown_batch_size(version: str) -> None:
    sizes = (10, 4, 2)
    found = ghosted(layer_of(version, virtual_batch_size=2), *(uniform(size, 5, 4) for size in sizes))
    assert [y.shape for y in found] == [(size, 5, 4) for size in (*sizes, sizes[-1])]


@of_both
@pytest.mark.parametrize(
    ("shape", "ghosts", "axis", "fused"),
    [
        ((6, 2), 3, -1, None),
        ((6, 10, 10, 3), 2, 3, None),
        ((6, 3, 10, 10), 2, 1, False),
        ((6, 3, 10, 10, 4), 3, [1, 4], False),
    ],
    ids=["2Dims", "4DimsAxis3", "4DimsAxis1", "5DimsMultiAxis14"],
)
def test_ghost_bn(version: str, shape: tuple[int, ...], ghosts: int, axis: Any, fused: bool | None) -> None:
    """Sample n belongs to ghost batch n modulo their number; the moving statistics take the mean of them all."""
    batches = [uniform(*shape, seed=number) for number in range(5)]
    layer = layer_of(version, **GHOSTS, axis=axis, fused=fused, virtual_batch_size=ghosts)
    *training, inference = ghosted(layer, *batches)
    axes = [n % len(shape) for n in np.atleast_1d(axis)]
    over = (0, *(n + 1 for n in range(1, len(shape)) if n not in axes))
    moving: list[Any] = [0.0, 1.0]
    for x, y in zip(batches, training, strict=True):
        split = x.reshape(ghosts, -1, *shape[1:]).astype(np.float64)
        mean, variance = split.mean(over, keepdims=True), split.var(over, keepdims=True)
        moving = [0.8 * m + 0.2 * new.mean(1, keepdims=True) for m, new in zip(moving, (mean, variance), strict=True)]
        wanted = (split - mean) / np.sqrt(variance + 1e-3) * 3 + 2
        np.testing.assert_allclose(y, wanted.reshape(shape), atol=1e-4)
    wanted = (split - moving[0]) / np.sqrt(moving[1] + 1e-3) * 3 + 2
    np.testing.assert_allclose(inference, wanted.reshape(shape), atol=1e-4)
