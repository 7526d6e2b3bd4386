"""The models of tf_keras's published test of its two classes of batch normalization, rebuilt, trained and exported.

Read for it: ``batch_normalization_test.py`` of tf_keras, from ``BatchNormalizationV1Test`` on; its beginning is in
``test_tf_keras_published.py``. Where Keras 3 can build the same model, that is exported as well. What is refused by the
classes is left out: fused layers with renorm, ghost batches, adjustment, or of a wrong axis or rank.
"""

from typing import Any

import numpy as np
import pytest

from tests.exporting.live import close, export, variable_values
from tests.exporting.published import (
    TRAINED_MARKS,
    VERSIONS,
    batches,
    class_of,
    holds,
    of_one_layer,
    trained_once,
    uniform,
    wide,
)

pytestmark = TRAINED_MARKS


@pytest.mark.parametrize(
    ("arguments", "shape", "fused"),
    [
        ({}, (4, 4, 4), True),
        ({"fused": False}, (4, 4, 4), False),
        ({"virtual_batch_size": 2}, (2, 2, 2), False),
    ],
    ids=["default", "not fused", "ghost batches"],
)
def test_v1_fused_attribute(arguments: dict[str, Any], shape: tuple[int, ...], fused: bool) -> None:
    is_fused(*class_of("V1"), arguments, shape, fused=fused)


@pytest.mark.parametrize(
    ("arguments", "shape", "fused"),
    [
        ({}, (4, 4, 4), True),
        ({}, (4, 4), False),
        ({}, (4, 4, 4, 4), True),
        ({"virtual_batch_size": 2}, (4, 4, 4), False),
        ({"fused": False}, (4, 4, 4), False),
        ({"fused": True, "axis": [3]}, (4, 4, 4), True),
    ],
    ids=["rank 4", "rank 3", "rank 5", "ghost batches", "not fused", "axis 3"],
)
def test_v2_fused_attribute(arguments: dict[str, Any], shape: tuple[int, ...], fused: bool) -> None:
    is_fused(*class_of("V2"), arguments, shape, fused=fused)


def is_fused(
    keras: Any, batch_normalization: Any, arguments: dict[str, Any], shape: tuple[int, ...], *, fused: bool
) -> None:
    """Assert that a layer agrees with its export, which keeps a sample's variance if it is fused."""
    given, layer = keras.Input(shape), batch_normalization(momentum=0.5, **arguments)
    model = keras.Model(given, layer(given))
    assert layer.fused == fused
    x = wide(2, *shape)
    held = holds(model, x)
    divisor = 2 * np.prod(shape[:-1]) - (1 if fused else 0)
    sums = np.square(x - x.mean((0, *range(1, x.ndim - 1)), keepdims=True)).sum(tuple(range(x.ndim - 1)))
    if layer.virtual_batch_size is None:
        np.testing.assert_allclose(held.moved("moving_variance"), 0.5 + 0.5 * sums / divisor, rtol=1e-5)


@pytest.mark.parametrize(("fused", "shape"), [(True, (3, 3, 3, 3)), (None, (3, 3, 3))])
def test_basic_batchnorm_v2(tf_keras: Any, fused: bool | None, shape: tuple[int, ...]) -> None:
    model = of_one_layer(tf_keras, tf_keras.layers.BatchNormalization(fused=fused), *shape[1:])
    holds(trained_once(model, wide(*shape)), *batches(*shape))


@pytest.mark.parametrize("version", VERSIONS)
def test_updates_in_wrap_function(version: str) -> None:
    keras, batch_normalization = class_of(version)
    held = holds(of_one_layer(keras, batch_normalization(), 1), np.ones((10, 1), np.float32))
    assert len(held.run.updated) == 2


def test_basic_batchnorm_v2_input_shape_and_virtual_batch_size(tf_keras: Any) -> None:
    """Of lengths that nobody knows, and with a batch that ghost batches do not divide, which matters in training."""
    ghosts = tf_keras.layers.BatchNormalization(virtual_batch_size=8)
    holds(of_one_layer(tf_keras, ghosts, None, None, 3), wide(8, 4, 5, 3), wide(16, 3, 2, 3))
    model = of_one_layer(tf_keras, tf_keras.layers.BatchNormalization(virtual_batch_size=8), 28, 28)
    x = wide(1, 28, 28)
    _, run = export(model, training=False)
    close(run(x)[0], model(x, training=False))
    _, run = export(model, training=True)
    for step in (run, lambda x: model(x, training=True)):
        for batch in (1, 12):
            with pytest.raises(Exception, match=r"Reshape|Gather"):
                step(wide(batch, 28, 28))


def test_fused_batchnorm_empty_batch(tf_keras: Any) -> None:
    import tensorflow as tf

    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    strategy.extended.enable_partial_batch_handling = True
    with strategy.scope():
        layer = tf_keras.layers.BatchNormalization()
        model = of_one_layer(tf_keras, layer, 2, 2, 2)
    x = np.ones((0, 2, 2, 2), np.float32)
    _, run = export(model, training=True)
    close(run(x)[0], strategy.run(lambda: model(x, training=True)))
    assert layer.fused
    for name, value in run.updated.items():
        close(value, variable_values(model)[name], name)
        np.testing.assert_array_equal(value, 1 if "variance" in name else 0)


@pytest.mark.parametrize("version", VERSIONS)
def test_shared_batchnorm(version: str) -> None:
    """One layer at two inputs, then the model of the second inside of another."""
    keras, batch_normalization = class_of(version)
    norm, (first, second, third) = batch_normalization(), (keras.Input((10,)) for _ in range(3))
    norm(first)
    model, x, sgd = keras.Model(second, norm(second)), wide(2, 10), keras.optimizers.SGD(0.01)
    holds(trained_once(model, x, optimizer=sgd), *batches(2, 10))
    outer = keras.Model(third, model(third), name="new_model")
    holds(trained_once(outer, x, optimizer=keras.optimizers.SGD(0.01)), *batches(2, 10))
    holds(model, *batches(2, 10))


@pytest.mark.parametrize("version", VERSIONS)
def test_that_trainable_disables_updates(version: str) -> None:
    keras, batch_normalization = class_of(version)
    given, layer = keras.Input((4,)), batch_normalization()
    model, x, y = keras.Model(given, layer(given)), uniform(10, 4), uniform(10, 4, seed=1)
    model.trainable = False
    is_frozen(model, x, y)
    model.trainable = True
    thawed = holds(trained_once(model, x, y, optimizer="sgd"), *batches(10, 4))
    assert thawed.moved("moving_mean").any()
    layer.trainable = False
    is_frozen(model, x, y)


def is_frozen(model: Any, x: Any, y: Any) -> None:
    """Assert that training moves nothing in a model that is not trainable, live or exported."""
    before = export(model, training=False)[1](x)[0]
    held = holds(trained_once(model, x, y, optimizer="sgd"), *batches(10, 4))
    assert held.run.updated == {}
    close(export(model, training=False)[1](x)[0], before)


@pytest.mark.parametrize("version", VERSIONS)
def test_batchnorm_trainable(version: str) -> None:
    """In training the statistics of the batch count, whatever the moving ones are."""
    keras, batch_normalization = class_of(version)
    model, x = of_one_layer(keras, batch_normalization(), 1), np.arange(10, dtype=np.float32)[:, None]
    model.set_weights([np.array([value]) for value in (1.0, 0.0, 0.5, 100.0)])
    held = holds(model, x, x, x)
    np.testing.assert_allclose(held.run(x)[0], (x - x.mean()) / x.std(), atol=1e-3)
