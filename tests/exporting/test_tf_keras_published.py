"""The models of tf_keras's published test of batch normalization, rebuilt from what they say, trained and exported.

Read for it: ``batch_normalization_test.py`` of tf_keras; a test here is named for its published one. Where Keras 3 can
build the same model, that is exported as well. What the published test asserts is asserted of the export.

``test_tf_keras_published_versions.py`` has the rest of it: classes, and layers that are shared or frozen. A fused layer
that is synchronized is refused by its class, so that there is nothing to export (``test_batchnorm_sync_fused_error``).
"""

from typing import Any

import numpy as np
import pytest

from tests.exporting.live import close, export, make_lively, variable_values
from tests.exporting.published import (
    PADDED,
    TRAINED_MARKS,
    VERSIONS,
    batches,
    class_of,
    fitted,
    holds,
    is_standard,
    of_one_layer,
    trained_once,
    uniform,
    wide,
)
from tests.exporting.structures import norms

pytestmark = TRAINED_MARKS

L2 = {"class_name": "L2", "config": {"l2": 0.01}}
INITIALIZED = {
    "gamma_initializer": "ones",
    "beta_initializer": "ones",
    "moving_mean_initializer": "zeros",
    "moving_variance_initializer": "ones",
}


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({"momentum": 0.9, "epsilon": 0.1, "gamma_regularizer": L2, "beta_regularizer": L2}, (3, 4, 2)),
        (INITIALIZED, (3, 4, 2)),
        ({"scale": False, "center": False}, (3, 3)),
        (INITIALIZED, (3, 2, 4, 2)),
    ],
    ids=["regularized", "initialized", "bare", "initialized, rank 4"],
)
def test_basic_batchnorm(keras: Any, arguments: dict[str, Any], shape: tuple[int, ...]) -> None:
    model = of_one_layer(keras, keras.layers.BatchNormalization(**arguments), *shape[1:])
    held = holds(trained_once(model, wide(*shape)), *batches(*shape))
    assert ("regularization_loss" in held.run.outputs) == ("gamma_regularizer" in arguments)


@pytest.mark.parametrize(("bare", "trainable", "all_of_them"), [(True, 0, 2), (False, 2, 4)])
def test_batchnorm_weights(keras: Any, bare: bool, trainable: int, all_of_them: int) -> None:
    layer = keras.layers.BatchNormalization(scale=not bare, center=not bare)
    model = of_one_layer(keras, layer, 3, 4)
    held = holds(trained_once(model, wide(5, 3, 4)), *batches(5, 3, 4))
    assert len(held.run.pairs) == len(layer.weights) == all_of_them
    assert len([pair for pair in held.run.pairs if not pair["output"]]) == len(layer.trainable_weights) == trainable


def test_batchnorm_regularization(keras: Any) -> None:
    layer = keras.layers.BatchNormalization(gamma_regularizer="l1", beta_regularizer="l1")
    model = fitted(of_one_layer(keras, layer, 3, 4), wide(20, 3, 4))
    assert len(layer.losses) == 2
    _, loss = holds(model, *batches(5, 3, 4)).run(wide(5, 3, 4))
    l1 = 0.01 * np.abs([layer.gamma.numpy(), layer.beta.numpy()]).sum()
    assert loss == pytest.approx(l1, rel=1e-6)


def test_batchnorm_regularization_by_constraints(keras: Any) -> None:
    """Of what training does to gamma and beta an export has the result."""
    limits = {f"{name}_constraint": keras.constraints.MaxNorm(0.5) for name in ("gamma", "beta")}
    layer = keras.layers.BatchNormalization(**limits)
    model = trained_once(of_one_layer(keras, layer, 3, 4), wide(20, 3, 4))
    assert np.linalg.norm(layer.gamma.numpy()) == pytest.approx(0.5, rel=1e-5)
    holds(model, *batches(5, 3, 4))


@pytest.mark.parametrize("synchronized", [False, True], ids=["convnet", "convnet_synchronized"])
def test_batchnorm_convnet(keras: Any, synchronized: bool) -> None:
    layer = keras.layers.BatchNormalization(axis=1, momentum=0.8, synchronized=synchronized)
    x, sgd = wide(320, 3, 4, 4), keras.optimizers.SGD(0.01)
    model = fitted(of_one_layer(keras, layer, 3, 4, 4), x, optimizer=sgd, epochs=4)
    _, run = export(model, training=False)
    is_standard(run(x)[0], layer, 0.1, axis=1)
    (node,) = norms(holds(model, *np.split(x[:60], 3)).training.model)
    assert node.attributes.get_string("group", "") == ("world" if synchronized else "")


def test_batchnorm_convnet_channel_last(keras: Any) -> None:
    layer = keras.layers.BatchNormalization(axis=-1, momentum=0.8)
    x, sgd = wide(320, 4, 4, 3), keras.optimizers.SGD(0.01)
    model = fitted(of_one_layer(keras, layer, 4, 4, 3), x, optimizer=sgd, epochs=4)
    _, run = export(model, training=False)
    is_standard(run(x)[0], layer, 0.1)
    holds(model, *np.split(x[:60], 3))


def is_correct(keras: Any, layer: Any, x: Any, *more: Any, half: bool = False) -> None:
    """Assert that a trained layer standardizes, exported too."""
    model = keras.Sequential([keras.layers.Input((2, 2, 2), dtype=x.dtype.name), layer, *more])
    fitted(model, x, x.astype(np.float32), optimizer=keras.optimizers.SGD(0.01), epochs=4)
    _, run = export(model, training=False)
    is_standard(run(x)[0], layer, 0.2)
    holds(model, *np.split(x[:60], 3), half=half)


@pytest.mark.parametrize(
    ("version", "synchronized"), [("V1", False), ("V2", False), ("V2", True), ("Keras 3", False), ("Keras 3", True)]
)
def test_batchnorm_correctness(version: str, synchronized: bool) -> None:
    keras, batch_normalization = class_of(version)
    arguments = {"fused": False} if keras.__name__ == "tf_keras" else {}
    layer = batch_normalization(momentum=0.8, synchronized=synchronized, **arguments)
    is_correct(keras, layer, wide(320, 2, 2, 2))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "mixed_float16"])
def test_batchnorm_float16(version: str, dtype: str) -> None:
    """Whatever type the layer has: half-precision numbers go in."""
    keras, batch_normalization = class_of(version)
    arguments = {"fused": False} if keras.__name__ == "tf_keras" else {}
    layer = batch_normalization(momentum=0.8, dtype=dtype, **arguments)
    cast = keras.layers.Activation("linear", dtype="float32")
    is_correct(keras, layer, wide(320, 2, 2, 2).astype(np.float16), cast, half=dtype != "float32")


def test_batchnorm_mixed_precision(keras: Any) -> None:
    layer = keras.layers.BatchNormalization(axis=-1, momentum=0.8, dtype="mixed_float16")
    model = of_one_layer(keras, layer, 4, 4, 3)
    normal = np.random.default_rng(0).normal(size=(10, 4, 4, 3)).astype(np.float32)
    held = holds(model, normal, np.arange(480, dtype=np.float32).reshape(10, 4, 4, 3))
    types = {str(value.name): str(value.dtype) for value in held.training.model.graph.inputs}
    assert {str(value.dtype) for value in held.inference.model.graph.outputs} == {"FLOAT16"}
    assert {types[pair["input"]] for pair in held.run.pairs} == {"FLOAT"}


@pytest.mark.parametrize("fused", [True, False])
def test_batchnorm_mixed_precision_does_not_overflow(keras: Any, fused: bool) -> None:
    arguments = {"fused": fused} if keras.__name__ == "tf_keras" else {}
    model = of_one_layer(keras, keras.layers.BatchNormalization(dtype="mixed_float16", **arguments), 1, 1, 1)
    x = np.array([-1000, 1000], np.float32).reshape(2, 1, 1, 1)
    (y,) = holds(model, x).run(x)
    np.testing.assert_allclose(y.ravel(), [-1, 1], rtol=1e-3)


def test_batchnorm_non_trainable_with_fit(keras: Any) -> None:
    given = keras.Input((3,))
    layer = keras.layers.BatchNormalization()
    model = fitted(keras.Model(given, layer(given)), uniform(100, 3), uniform(100, 3, seed=1))
    assert holds(model, *batches(20, 3)).run.updated
    layer.trainable = False
    trained_once(model, uniform(100, 3, seed=2), uniform(100, 3, seed=3))
    frozen = holds(model, *batches(20, 3))
    assert frozen.run.updated == {}
    _, inference = export(model, training=False)
    close(frozen.run(wide(20, 3))[0], inference(wide(20, 3))[0])


def test_batchnorm_ignore_masked_values(keras: Any) -> None:
    given = keras.Input((None, 2))
    masked = keras.layers.Masking()(given)
    model = keras.Model(given, keras.layers.BatchNormalization(momentum=0.0)(masked))
    held = holds(fitted(model, PADDED, epochs=5, batch=10), PADDED, PADDED)
    np.testing.assert_allclose(held.moved("moving_mean"), [1.5, 5], rtol=1e-6)
    np.testing.assert_allclose(held.moved("moving_variance"), [0.25, 0], rtol=1e-6, atol=2e-6)


def test_sync_batchnorm_with_mask(keras: Any) -> None:
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        given = keras.Input((None, 2))
        layer = keras.layers.BatchNormalization(momentum=0.0, synchronized=True)
        model = keras.Model(given, layer(keras.layers.Masking()(given)))
        make_lively(model)
    step = tf.function(lambda x: model(x, training=True))
    _, run = export(model, training=True)
    for _ in range(5):
        close(run(PADDED)[0], strategy.run(step, args=(tf.constant(PADDED),)))
        for name, value in run.updated.items():
            close(value, variable_values(model)[name], name)
    np.testing.assert_allclose(sorted(np.ravel(list(run.updated.values()))), [0, 0.25, 1.5, 5], rtol=1e-6, atol=2e-6)


def test_eager_batchnorm_in_custom_model_call_with_tf_function(keras: Any) -> None:
    import tensorflow as tf

    class Custom(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.bn = keras.layers.BatchNormalization()

        @tf.function
        def call(self, x: Any, training: Any = None) -> Any:
            return self.bn(x, training=training)

    model, x = Custom(), np.full((1, 1), 0.5, np.float32)
    model(x, training=False)
    held = holds(model, *[x] * 10)
    np.testing.assert_allclose(held.moved("moving_mean"), 0.5 * (1 - 0.99**10), rtol=1e-5)
    np.testing.assert_allclose(held.moved("moving_variance"), 0.99**10, rtol=1e-5)


@pytest.mark.parametrize("rank", [4, 5])
def test_bessels_correction(keras: Any, rank: int) -> None:
    """A fused layer keeps the variance of a sample, which 0 and 2 have 2 of, and momentum 0.5 takes half of it."""
    layer = keras.layers.BatchNormalization(momentum=0.5, moving_variance_initializer="zeros")
    x = np.array([0, 2], np.float32).reshape(2, *[1] * (rank - 1))
    held = holds(of_one_layer(keras, layer, *x.shape[1:]), x)
    np.testing.assert_array_equal(held.moved("moving_variance"), 1 if keras.__name__ == "tf_keras" else 0.5)


def test_can_be_used_in_multiple_graphs(keras: Any) -> None:
    import tensorflow as tf

    fused = {"fused": True} if keras.__name__ == "tf_keras" else {}

    class Thrice(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm = keras.layers.BatchNormalization(scale=False, center=False, **fused)
            self.first = tf.function(lambda x: norm(x, training=True))
            self.second = tf.function(lambda x: norm(x, training=True))

        def call(self, x: Any) -> Any:
            return self.norm(self.second(self.first(x)), training=True)

    model, x = Thrice(), np.array([-1000, 1000], np.float32).reshape(2, 1, 1, 1)
    model.norm.build((2, 1, 1, 1))
    _, run = export(model, training=True, signature=[((None, 1, 1, 1), "float32")])
    for _ in range(3):
        (y,) = run(x)
        close(y, model(x))
        for name, value in run.updated.items():
            close(value, variable_values(model)[name], name)
    np.testing.assert_allclose(y.ravel(), [-0.9995, 0.9995], rtol=1e-5)
