"""Models with batch normalization in other published tests of tf_keras, rebuilt from what they say, and exported.

Read for it, under ``tf_keras``: tests of ``engine``, ``models``, ``layers/rnn``, ``saving``, ``tests`` and
``distribute`` that hold a batch normalization; the text of a test says which. Where Keras 3 can build the same model,
that is exported as well. Several replicas are a matter of ``test_mirrored.py``: here there is one.
"""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.exporting.live import close, export, variable_values
from tests.exporting.published import TRAINED_MARKS, fitted, holds, trained_once, uniform, wide
from tests.exporting.structures import norms

pytestmark = TRAINED_MARKS


def test_weight_deduplication_in_methods(keras: Any) -> None:
    """Of ``engine/training_test.py``: two models of the same two layers, added."""
    given, bn, dense = keras.Input((1,)), keras.layers.BatchNormalization(), keras.layers.Dense(1)
    first, second = (keras.Model(given, dense(bn(given))) for _ in range(2))
    model = keras.Model(given, keras.layers.Add()([first(given), second(given)]))
    held = holds(fitted(model, uniform(20, 1)), *(uniform(5, 1, seed=n) for n in range(3)), calls=2)
    assert len(held.run.pairs) == len(model.weights) == 6


def test_gan_workflow(keras: Any) -> None:
    """Of ``engine/training_test.py``: a layer in two models, frozen for the one and not for the other."""
    shared, (one, two), x = keras.layers.BatchNormalization(), (keras.Input((10,)) for _ in range(2)), uniform(10, 10)
    frozen, thawed = keras.Model(one, shared(one)), keras.Model(two, shared(two))
    shared.trainable = False
    assert holds(trained_once(frozen, x, optimizer="sgd"), x, x, x).run.updated == {}
    shared.trainable = True
    assert len(holds(trained_once(thawed, x, optimizer="sgd"), x, x, x).run.updated) == 2


def test_batchnorm_trainable_false(keras: Any) -> None:
    """Of ``engine/training_test.py``."""
    bn = keras.layers.BatchNormalization()
    model = keras.Sequential([keras.layers.Input((10,)), bn, keras.layers.Dense(1)])
    bn.trainable = False
    fitted(model, np.ones((10, 10)), np.ones((10, 1)), batch=2, optimizer="sgd")
    assert holds(model, uniform(4, 10)).run.updated == {}
    np.testing.assert_array_equal([bn.moving_mean.numpy(), bn.moving_variance.numpy()], [[0] * 10, [1] * 10])


def test_sequential_update_disabling(keras: Any) -> None:
    """Of ``engine/sequential_test.py``."""
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.BatchNormalization()])
    for trainable in (False, True):
        model.trainable = trainable
        held = holds(trained_once(model, uniform(10, 4), uniform(10, 4, seed=1), optimizer="sgd"), wide(10, 4))
        assert bool(held.run.updated) == trainable


def test_nested_layer_variable_tracking(keras: Any) -> None:
    """Of ``engine/base_layer_test.py``: a layer with a layer of ours, and variables of its own."""

    class Nesting(keras.layers.Layer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.dense1, self.dense2 = keras.layers.Dense(1), keras.layers.BatchNormalization()

        def build(self, shape: Any) -> None:
            self.v1 = self.add_weight(name="v1", shape=shape[1:], initializer="ones")
            self.v2 = self.add_weight(name="v2", shape=shape[1:], initializer="ones", trainable=False)
            self.dense1.build(shape)
            self.dense2.build(shape)
            super().build(shape)

        def call(self, inputs: Any) -> Any:
            return self.dense1(inputs) + self.dense2(inputs) + self.v1 + self.v2

    given, layer = keras.Input((1,)), Nesting()
    model, moved = keras.Model(given, layer(given)), 2
    for frozen in (layer.dense1, layer):
        held = holds(model, *(uniform(5, 1, seed=n) for n in range(3)))
        assert len(held.run.pairs) == 8
        assert len(held.run.updated) == moved
        frozen.trainable = False
    assert holds(model, uniform(5, 1)).run.updated == {}


def test_cloning(keras: Any) -> None:
    """Of ``models/cloning_test.py``: in training a copy drops out at random, so the inference is what is compared."""
    layers = keras.layers
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    first, second = layers.Dense(4), layers.Dense(4)
    x = second(layers.BatchNormalization()(layers.Dropout(0.5)(first(a))))
    model = keras.models.clone_model(keras.Model([a, b], layers.Add()([x, first(b)])))
    given = [uniform(10, 4), uniform(10, 4, seed=1)]
    trained_once(model, given, uniform(10, 4, seed=2))
    (y,) = export(model, training=False)[1](*given)
    close(y, model(given, training=False))
    exported, run = export(model, training=True)
    run(*given)
    assert (len(norms(exported.model)), len(run.updated)) == (1, 2)


@pytest.mark.parametrize("inner", ["deferred", "built", "functional"])
def test_updates_and_losses_for_nested_models_in_subclassed_model(keras: Any, inner: str) -> None:
    """Of ``tests/model_subclassing_test.py``: a model inside, and a loss from what a layer gives."""
    given, norm = keras.Input((10,)), keras.layers.BatchNormalization(axis=1)
    nested = {
        "deferred": lambda: keras.Sequential([norm]),
        "built": lambda: keras.Sequential([keras.layers.Input((10,)), norm]),
        "functional": lambda: keras.Model(given, norm(given)),
    }

    class Outer(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.bn = keras.layers.Dense(10, activity_regularizer="l1"), nested[inner]()

        def call(self, x: Any) -> Any:
            return self.bn(self.fc(x))

    model = Outer()
    model(uniform(7, 20))
    held = holds(model, *(uniform(7, 20, seed=n) for n in range(3)))
    assert (len(held.run.updated), held.run.outputs[-1]) == (2, "regularization_loss")


def test_training_updates_of_a_subclassed_model(keras: Any) -> None:
    """Of ``tests/model_subclassing_compiled_test.py``: its call takes no mode."""

    class Net(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.bn = keras.layers.BatchNormalization(beta_initializer="ones", gamma_initializer="ones")

        def call(self, inputs: Any) -> Any:
            return self.bn(inputs)

    x = np.ones((20, 50), np.float32)
    held = holds(trained_once(Net(), x), x, *(uniform(20, 50, seed=n) for n in range(2)))
    assert len(held.run.updated) == 2


def test_subclass_nested_in_sequential(keras: Any) -> None:
    """Of ``tests/model_subclassing_compiled_test.py``."""

    class Inner(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.dense1, self.dense2 = (keras.layers.Dense(n, activation="relu") for n in (32, 2))
            self.bn = keras.layers.BatchNormalization()

        def call(self, inputs: Any) -> Any:
            return self.bn(self.dense2(self.dense1(inputs)))

    model = fitted(keras.Sequential([Inner()]), np.ones((100, 50)), np.zeros((100, 2)), epochs=2)
    held = holds(model, *(uniform(10, 50, seed=n) for n in range(3)))
    assert len(held.run.pairs) == len(model.weights) == 8


def test_time_distributed_batchnorm(keras: Any) -> None:
    """Of ``layers/rnn/time_distributed_test.py``: the updates of a layer that another one wraps."""
    wrapped = keras.layers.TimeDistributed(keras.layers.BatchNormalization(center=True, scale=True), name="bn")
    model = keras.Sequential([keras.layers.Input((10, 2)), wrapped])
    trained_once(model, wide(1, 10, 2), np.broadcast_to(np.array([0.0, 1.0], np.float32), (1, 10, 2)))
    held = holds(model, *(wide(1, 10, 2, seed=n) for n in range(3)), calls=None)
    assert len(held.run.updated) == 2


@pytest.mark.parametrize("trainable", [True, False])
def test_saved_batch_norm_updates(tf_keras: Any, tmp_path: Path, trainable: bool) -> None:
    """Of ``saving/legacy/saved_model/saved_model_test.py``: frozen or not, it comes back as it was."""
    model = tf_keras.Sequential([tf_keras.layers.BatchNormalization(input_shape=(1,))])
    model.trainable = trainable
    model.save(tmp_path, save_format="tf")
    loaded = tf_keras.models.load_model(tmp_path)
    x = np.array([[11], [12], [13]], np.float32)
    held = holds(loaded, x)
    np.testing.assert_allclose(held.moved("moving_mean") if trainable else 0.12, 0.12, rtol=1e-5)
    assert bool(held.run.updated) == trainable


def test_image_classification(keras: Any) -> None:
    """Of ``tests/integration_test.py``."""
    layers = keras.layers
    stack = [
        layers.Conv2D(4, 3, padding="same", activation="relu"),
        layers.Conv2D(8, 3, padding="same"),
        layers.BatchNormalization(),
        layers.Conv2D(8, 3, padding="same"),
        layers.Flatten(),
        layers.Dense(2, activation="softmax"),
    ]
    model = keras.Sequential([layers.Input((10, 10, 3)), *stack])
    fitted(model, uniform(32, 10, 10, 3), uniform(32, 2, seed=1), optimizer="adam", epochs=2)
    holds(model, *(uniform(4, 10, 10, 3, seed=n) for n in range(3)))


def test_sequences_of_any_length(keras: Any) -> None:
    """Of ``tests/integration_test.py``: words, embedded."""
    layers = keras.layers
    stack = [
        layers.Embedding(16, 4),
        layers.Conv1D(4, 5, padding="same", activation="relu"),
        layers.Conv1D(8, 5, padding="same"),
        layers.BatchNormalization(),
        layers.Conv1D(3, 5, padding="same", activation="softmax"),
    ]
    model = keras.Sequential([layers.Input((None,), dtype="int32"), *stack])
    words = np.random.default_rng(0).integers(0, 16, (20, 7)).astype(np.int32)
    fitted(model, words, uniform(20, 7, 3), optimizer="adam")
    holds(model, words, words[:5, :4], words[5:, 1:])


@pytest.mark.parametrize("with_batch_norm", ["regular", "sync"])
def test_cnn_with_batch_norm_correctness(keras: Any, with_batch_norm: str) -> None:
    """Of ``distribute/keras_image_model_correctness_test.py``: one layer, or two synchronized ones side by side."""
    layers, sync = keras.layers, with_batch_norm == "sync"
    image = keras.Input((28, 28, 3), name="image")
    penalty = keras.regularizers.L2(1e-4)
    x = layers.Conv2D(16, 3, strides=4, kernel_regularizer=penalty, name="conv1")(image)
    if sync:
        x = layers.Add()([layers.BatchNormalization(name=f"bn{n}", synchronized=True)(x) for n in (1, 2)])
    else:
        x = layers.BatchNormalization(name="bn1")(x)
    x = layers.Flatten()(layers.MaxPooling2D(2)(x))
    model = keras.Model(image, layers.Dense(10, activation="softmax", name="pred")(x))
    fitted(model, uniform(32, 28, 28, 3), uniform(32, 10), optimizer="sgd")
    holds(model, *(uniform(4, 28, 28, 3, seed=n) for n in range(3)), calls=1 + sync)


@pytest.mark.parametrize("synchronized", [False, True])
def test_a_custom_training_loop(keras: Any, synchronized: bool) -> None:
    """Of ``distribute/ctl_correctness_test.py``: steps of a tape and a function."""
    import tensorflow as tf

    layers, penalty = keras.layers, keras.regularizers.L2(1e-4)
    stack = [
        layers.Dense(10, activation="relu"),
        layers.Dense(10, activation="relu", kernel_regularizer=penalty),
        layers.BatchNormalization(synchronized=synchronized),
        layers.Dense(10, activation="relu"),
        layers.Dense(1),
    ]
    model = keras.Sequential([layers.Input((1,)), *stack])

    @tf.function
    def step(x: Any) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - 3 * x))
        weights = (
            model.trainable_variables if keras.__name__ == "tf_keras" else [v.value for v in model.trainable_variables]
        )
        for weight, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
            weight.assign_sub(0.1 * gradient)

    for number in range(3):
        step(uniform(16, 1, seed=number))
    holds(model, *(uniform(16, 1, seed=n) for n in range(3)))


def test_batch_norm_with_dynamic_batch(keras: Any) -> None:
    """Of ``distribute/custom_training_loop_models_test.py``: 10 samples in batches of 4, 4 and 2."""
    fused, given = {"fused": True} if keras.__name__ == "tf_keras" else {}, keras.Input((3, 3, 3), name="input")
    y = keras.layers.BatchNormalization(name="bn", **fused)(given)
    model = keras.Model(given, keras.layers.Dense(4, name="dense")(keras.layers.Flatten()(y)))
    x = np.zeros((10, 3, 3, 3), np.float32)
    holds(fitted(model, x, np.zeros((10, 4)), batch=4), x[:4], x[4:8], x[8:])


@pytest.mark.parametrize(("momentum", "renorm"), list(product((0.8, 0.9, 0.99), (False, True))))
def test_train_network_with_batch_norm(tf_keras: Any, momentum: float, renorm: bool) -> None:
    """Of ``distribute/minimize_loss_test.py``: numbers that grow by 1, and by 100 from batch to batch."""
    norm = tf_keras.layers.BatchNormalization(momentum=momentum, renorm=renorm, fused=False)
    model = tf_keras.Sequential([tf_keras.layers.Input((8,)), norm, tf_keras.layers.Dense(1, use_bias=False)])
    batches = [np.arange(128, dtype=np.float32).reshape(16, 8) + 100 * n for n in range(3)]
    held = holds(model, *batches)
    mean = sum((1 - momentum) * momentum ** (2 - n) * batch.mean(0) for n, batch in enumerate(batches))
    np.testing.assert_allclose(held.moved("moving_mean"), mean, rtol=1e-5)


@pytest.mark.parametrize(("synchronized", "renorm", "use_mask"), list(product((False, True), repeat=3)))
def test_batch_normalization_with_strategy(tf_keras: Any, synchronized: bool, renorm: bool, use_mask: bool) -> None:
    """Of ``layers/normalization/batch_normalization_dtensor_test.py``, with the one replica that there is."""
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy(["CPU:0"])

    class Masked(tf_keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.norm = tf_keras.layers.BatchNormalization(synchronized=synchronized, renorm=renorm)

        def call(self, inputs: Any, training: Any = None) -> Any:
            x, mask = inputs
            return self.norm(x, training=training, mask=mask if use_mask else None)

    mask, signature = np.array([[True, True, False]] * 4), [((4, 3, 5), "float32"), ((4, 3), "bool")]
    with strategy.scope():
        model = Masked()
        model([uniform(4, 3, 5), mask], training=False)
    for training in (False, True):
        _, run = export(model, training=training, signature=signature)
        step = tf.function(lambda x, mode=training: model(x, training=mode))
        for number in range(3):
            x = uniform(4, 3, 5, seed=number)
            close(run(x, mask)[0], strategy.run(step, args=([tf.constant(x), tf.constant(mask)],)))
            for name, value in run.updated.items():
                close(value, variable_values(model)[name], name)
    assert len(run.updated) == (5 if renorm else 2)
