"""The layers of the published test of ``tf.layers``'s batch normalization, rebuilt from what they say, and exported.

Read for it: ``legacy_tf_layers/normalization_test.py`` of tf_keras; the class of ``tf.layers`` and V1 are exported. As
there, a tensor tells the mode, where the test is not about something else. ``test_tf_layers_published_averages.py`` has
renorm, adjustment and ghost batches. An axis that is not there is refused by the class (``testMultiAxisInvalid``).
"""

from typing import Any

import numpy as np
import pytest

from tests.exporting.live import close, export, state_agrees, variable_values
from tests.exporting.phases import Phases, handing, layer_of, of_both
from tests.exporting.published import TRAINED_MARKS, holds, trained_once, uniform
from tests.exporting.structures import norms

pytestmark = [*TRAINED_MARKS, pytest.mark.filterwarnings("ignore:`tf.layers.batch_normalization` is:UserWarning")]

LARGE = 100.0
CONDITION = LARGE / 0.28
"""Numbers from 100 to 101 over their deviation: how much larger a rounding is of what comes out."""


@of_both
@pytest.mark.parametrize(
    ("shape", "axis", "arguments"),
    [
        ((5, 4, 3), 1, {}),
        ((5, 4, 3), 2, {}),
        ((5, 4, 3, 6), 1, {"fused": False}),
        ((5, 4, 3, 6), 2, {}),
        ((5, 4, 3, 6), 3, {}),
        ((5, 4, 3, 6), 1, {"fused": True}),
        ((5, 4, 3, 6), 3, {"fused": True}),
        ((5, 4, 3, 6), -1, {}),
        ((5, 4, 3), [1, 2], {}),
        ((5, 3, 4, 4, 3), [1, 2, 3], {}),
    ],
    ids=[
        "3DInputAxis1",
        "3DInputAxis2",
        "4DInputAxis1",
        "4DInputAxis2",
        "4DInputAxis3",
        "4DInputAxis1Fused",
        "4DInputAxis3Fused",
        "NegativeAxis",
        "3DInputMultiAxis12",
        "5DInputMultiAxis123",
    ],
)
def test_input_axis(version: str, shape: tuple[int, ...], axis: Any, arguments: dict[str, Any]) -> None:
    step = Phases(layer_of(version, axis=axis, epsilon=1e-3, momentum=0.9, **arguments), shape, off=CONDITION)
    x = uniform(*shape) + np.float32(LARGE)
    for _ in range(100):
        y = step(x, training=True)
    axes = [n % len(shape) for n in np.atleast_1d(axis)]
    others = tuple(n for n in range(len(shape)) if n not in axes)
    np.testing.assert_allclose(y.mean(others), 0, atol=0.01)
    np.testing.assert_allclose(step(x, training=False), y, atol=0.1)


@of_both
def test_create_bn(version: str) -> None:
    layer = layer_of(version, axis=1)
    step = Phases(layer, (5, 4, 3))
    assert step(uniform(5, 4, 3), training=True).shape == (5, 4, 3)
    assert (len(layer.variables), len(layer.trainable_variables), len(step.statistics())) == (4, 2, 2)


@of_both
def test_create_fused_bn_float16(version: str) -> None:
    layer = layer_of(version, axis=1, fused=True, dtype="float16")
    model = handing(layer, 5, 4, 3, 3, dtype="float16")
    x = uniform(5, 4, 3, 3).astype(np.float16)
    held = holds(model, x, x, x, half=True, signature=[((None, 4, 3, 3), "float16")])
    assert [str(value.dtype) for value in held.training.model.graph.outputs] == ["FLOAT16", "FLOAT", "FLOAT"]


@of_both
def test_boolean_learning_phase(version: str) -> None:
    """A layer that is called in both modes: inference reads what training has just left."""
    import tf_keras

    class Twice(tf_keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.norm = layer_of(version, axis=-1, epsilon=1e-3, momentum=0.9)

        def call(self, x: Any) -> Any:
            return [self.norm(x, training=True), self.norm(x, training=False)]

    model, x = Twice(), uniform(5, 4, 3, 6)
    model(x)
    exported, run = export(model, training=True, signature=[((None, 4, 3, 6), "float32")])
    assert len(norms(exported.model)) == 2
    before = variable_values(model)
    for _ in range(100):
        first, second = run(x)
        for found, wanted in zip((first, second), model(x), strict=True):
            close(found, wanted)
        state_agrees(run, before, variable_values(model))
    np.testing.assert_allclose(second, first, atol=0.1)


def test_functional_no_reuse(tf_keras: Any) -> None:
    """The function that makes a layer at each call, whose variables are found again by name."""
    from tf_keras.src.legacy_tf_layers import normalization
    from tf_keras.src.legacy_tf_layers.variable_scope_shim import track_tf1_style_variables

    def normalized(_: Any, x: Any, training: Any = None) -> Any:
        return normalization.batch_normalization(x, axis=-1, momentum=0.9, epsilon=1e-3, training=training, name="bn")

    functional = type("Functional", (tf_keras.Model,), {"call": track_tf1_style_variables(normalized)})
    model, x = functional(), uniform(5, 4, 3, 6)
    model(x, training=False)
    held = holds(model, x, x, x)
    assert list(held.run.updated) == ["bn/moving_mean", "bn/moving_variance"]


@of_both
def test_functional_reuse(version: str) -> None:
    """Two calls with two inputs; a step of the one is followed by that of the other."""
    import tf_keras

    class Reused(tf_keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.norm = layer_of(version, axis=-1, epsilon=1e-3, momentum=0.9)

        def call(self, inputs: Any, training: Any = None) -> Any:
            a, b = inputs
            self.norm(a, training=training)
            return self.norm(b, training=training)

    model, given = Reused(), [uniform(5, 4, 3, 6), 3 * uniform(5, 4, 3, 6, seed=1)]
    model(given, training=False)
    before = variable_values(model)
    for training in (False, True):
        _, run = export(model, training=training, signature=[((None, 4, 3, 6), "float32")] * 2)
        for _ in range(10 if training else 1):
            close(run(*given)[0], model(given, training=training))
    state_agrees(run, before, variable_values(model))


@of_both
@pytest.mark.parametrize("without", ["center", "scale"])
def test_no_center_no_scale(version: str, without: str) -> None:
    layer = layer_of(version, axis=1, **{without: False})
    step = Phases(layer, (5, 4, 3))
    step(uniform(5, 4, 3), training=True)
    step(uniform(5, 4, 3), training=False)
    assert len(layer.trainable_variables) == 1


@of_both
@pytest.mark.parametrize("which", ["beta", "gamma"])
def test_regularizers(version: str, which: str) -> None:
    import tensorflow as tf

    layer = layer_of(
        version,
        axis=1,
        gamma_initializer=2.0,
        beta_initializer=3.0,
        **{f"{which}_regularizer": lambda x: 0.1 * tf.reduce_sum(x)},
    )
    model = handing(layer, 5, 4, 3)
    held = holds(model, uniform(5, 4, 3), signature=[((None, 4, 3), "float32")])
    _, loss = held.run(uniform(5, 4, 3))
    assert loss == pytest.approx(0.1 * 4 * {"gamma": 2, "beta": 3}[which], rel=1e-6)


@of_both
def test_constraints(version: str) -> None:
    import tensorflow as tf

    layer = layer_of(
        version,
        axis=1,
        gamma_constraint=lambda x: x / tf.reduce_sum(x),
        beta_constraint=lambda x: x / tf.reduce_max(tf.abs(x)),
    )
    model = handing(layer, 5, 4, 3)
    trained_once(model, uniform(5, 4, 3), uniform(5, 4, 3, seed=1))
    assert layer.gamma.numpy().sum() == pytest.approx(1, rel=1e-6)
    holds(model, uniform(5, 4, 3), signature=[((None, 4, 3), "float32")])


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize(("saved", "restored"), [(True, True), (True, False), (False, True), (False, False)])
def test_checkpoint(tf_keras: Any, saved: bool, restored: bool, frozen: bool) -> None:
    """Weights of a fused layer go on in one that is not, and the other way round."""
    weights = convolved(tf_keras, fused=saved, frozen=frozen).get_weights()
    model = convolved(tf_keras, fused=restored, frozen=frozen, weights=weights)
    held = holds(model, *(uniform(2, 4, 5, 3, seed=number) for number in range(3)))
    assert bool(held.run.updated) == (not frozen)


def test_half_precision(tf_keras: Any) -> None:
    weights = convolved(tf_keras, fused=True, dtype="float16").get_weights()
    model = convolved(tf_keras, fused=True, dtype="float16", weights=weights)
    x = [uniform(2, 4, 5, 3, seed=number).astype(np.float16) for number in range(3)]
    half = holds(model, *x, half=True)
    whole = holds(convolved(tf_keras, fused=True, weights=weights), *(one.astype(np.float32) for one in x))
    for name, value in whole.run.updated.items():
        found = half.run.updated[name.replace(name.partition("/")[0], next(iter(half.run.updated)).partition("/")[0])]
        np.testing.assert_allclose(found, value, rtol=2e-3, atol=1e-3)


def convolved(keras: Any, *, fused: bool, frozen: bool = False, dtype: str = "float32", weights: Any = None) -> Any:
    """Return a convolution with weights 1 and batch normalization, trained for two steps from weights, if given."""
    import tensorflow as tf
    from tf_keras.src.layers.normalization import batch_normalization_v1

    layers = [
        keras.layers.Conv2D(2, 3, use_bias=False, kernel_initializer="ones", dtype=dtype),
        batch_normalization_v1.BatchNormalization(fused=fused, dtype=dtype),
    ]
    model = keras.Sequential([keras.layers.Input((4, 5, 3), dtype=dtype), *layers])
    model.trainable = not frozen
    if weights is not None:
        model.set_weights(weights)
    model.compile("sgd", lambda _, y: tf.reduce_sum(tf.abs(tf.cast(y, "float32"))))
    for number in range(2):
        x = uniform(2, 4, 5, 3, seed=number).astype(dtype)
        model.train_on_batch(x, np.zeros((2, 2, 3, 2), dtype))
    return model
