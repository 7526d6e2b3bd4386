"""Types, modes and synchronization of layers are what they are in the live model."""

from collections import Counter
from typing import Any

import numpy as np

from tests.exporting.live import agrees, close, export, infers_alike, make_lively, trains_alike, variable_values
from tests.exporting.structures import IMAGE, MARKS, X, convolutional, has_calls, norms

pytestmark = MARKS


def test_mixed_precision(keras: Any) -> None:
    layers, x = keras.layers, keras.Input((4, 4, 3))
    given = x
    for _ in range(2):
        x = layers.Conv2D(4, 2, dtype="mixed_float16")(x)
        x = layers.BatchNormalization(dtype="mixed_float16")(x)
        x = layers.ReLU(dtype="mixed_float16")(x)
    has_calls(agrees(keras.Model(given, x), IMAGE), 2)


def test_double_precision(keras: Any) -> None:
    layers, x = keras.layers, keras.Input((5, 6), dtype="float64")
    given = x
    for _ in range(2):  # of float64, ONNX Runtime has no Conv
        x = layers.Dense(4, dtype="float64")(x)
        x = layers.BatchNormalization(dtype="float64")(x)
        x = layers.ReLU(dtype="float64")(x)
    has_calls(agrees(keras.Model(given, x), np.zeros((4, 5, 6))), 2)


def test_batch_normalization_of_half_precision_on_float32_inputs(keras: Any) -> None:
    given = keras.Input((6,))
    model = keras.Model(given, keras.layers.BatchNormalization(dtype="mixed_float16")(given))
    has_calls(agrees(model, X), 1)


def test_a_model_that_is_not_trainable(keras: Any) -> None:
    model = keras.Sequential([keras.layers.Input((4, 4, 3)), *convolutional(keras)])
    model.trainable = False
    make_lively(model)
    infers_alike(model, IMAGE)
    exported, run = trains_alike(model, IMAGE)
    assert run.updated == {}
    assert Counter(node.op_type for node in norms(exported.model)) == {"BatchNormalization": 2}


def test_a_call_that_always_trains(keras: Any) -> None:
    given = keras.Input((6,))
    model = keras.Model(given, keras.layers.BatchNormalization()(given, training=True))
    make_lively(model)
    for training in (False, True):
        _, run = export(model, training=training)
        x = np.random.default_rng(0).normal(size=X.shape).astype(np.float32)
        close(run(x)[0], model(x, training=training))


def test_a_call_that_never_trains(keras: Any) -> None:
    given = keras.Input((6,))
    model = keras.Model(given, keras.layers.BatchNormalization()(given, training=False))
    make_lively(model)
    infers_alike(model, X)
    _, run = trains_alike(model, X)
    assert (run.updated == {}) == (keras.__name__ == "tf_keras"), "in Keras 3 the model has the last word"


def test_the_mode_as_an_input_of_the_model(tf_keras: Any) -> None:
    import tensorflow as tf

    x, mode = tf_keras.Input((6,), name="x"), tf_keras.Input(type_spec=tf.TensorSpec((), tf.bool), name="mode")
    norm = tf_keras.layers.BatchNormalization(momentum=0.5)
    model = tf_keras.Model([x, mode], norm(x, training=mode))
    make_lively(model)
    exported, run = export(model, training=True)
    assert [node.op_type for node in exported.model.graph].count("If") == 1
    assert len(norms(exported.model)) == 2, "one for each mode"
    for step, training in enumerate((True, False, True)):
        batch = np.random.default_rng(step).normal(2, 3, X.shape).astype(np.float32)
        (y,) = run(batch, np.array(training))
        close(y, model([batch, tf.constant(training)]))
        for name, value in run.updated.items():
            close(value, variable_values(model)[name], name)


def test_synchronized_layers(keras: Any) -> None:
    model = keras.Sequential([keras.layers.Input((4, 4, 3)), *convolutional(keras, synchronized=True)])
    exported = agrees(model, IMAGE)
    has_calls(exported, 2)
    groups = {node.attributes["group"].as_string() for node in norms(exported[1].model)}
    assert groups == {"world"}


def test_a_call_whose_result_nobody_reads_still_updates_its_statistics(keras: Any) -> None:
    class Watching(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.watched = keras.layers.BatchNormalization(), keras.layers.BatchNormalization()

        def call(self, inputs: Any, training: Any = None) -> Any:
            self.watched(inputs, training=training)
            return self.norm(inputs, training=training)

    model = Watching()
    model(X)
    inference, training = agrees(model, X)
    assert (len(norms(inference.model)), len(inference.assembled.unused)) == (1, 1)
    assert (len(norms(training.model)), len(training.assembled.unused)) == (2, 0)
