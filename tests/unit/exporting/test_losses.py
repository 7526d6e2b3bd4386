"""Regularization comes out of a training export as one number, the one of Keras."""

from typing import Any

import numpy as np
import pytest

from bnpass.exporting.errors import ExportError
from tests.unit.exporting.running import KERAS, QUIET, keras_of, run, sequence, session, trained

pytestmark = [pytest.mark.keras, QUIET]

LOSS = "regularization_loss"
SHAPE = (6, 6, 3)
X = np.random.default_rng(0).uniform(-1, 1, (4, *SHAPE)).astype(np.float32)


def own(keras: Any) -> Any:
    import tensorflow as tf

    class Cubes(keras.regularizers.Regularizer):
        def __call__(self, w: Any) -> Any:
            return 0.1 * tf.reduce_sum(tf.abs(w) ** 3)

    return Cubes()


def adding(keras: Any) -> Any:
    import tensorflow as tf

    class Adding(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            self.add_loss(0.3 * tf.reduce_mean(x * x))
            return x

    return Adding()


def nested(keras: Any) -> Any:
    return sequence(
        keras, SHAPE, keras.layers.Dense(4, kernel_regularizer="l2"), keras.layers.Dense(3, bias_regularizer="l1")
    )


CASES: dict[str, Any] = {
    "L1": lambda k: [k.layers.Conv2D(3, 3, kernel_regularizer="l1")],
    "L2 twice": lambda k: [k.layers.Conv2D(3, 3, kernel_regularizer="l2", bias_regularizer="l2")],
    "L1L2": lambda k: [k.layers.SeparableConv2D(3, 3, depthwise_regularizer=k.regularizers.L1L2(0.1, 0.2))],
    "batch normalization": lambda k: [k.layers.BatchNormalization(gamma_regularizer="l2", beta_regularizer="l1")],
    "rows": lambda k: [k.layers.Dense(5, kernel_regularizer=k.regularizers.OrthogonalRegularizer(0.1, "rows"))],
    "columns": lambda k: [k.layers.Dense(5, kernel_regularizer=k.regularizers.OrthogonalRegularizer(0.1, "columns"))],
    "own class": lambda k: [k.layers.Dense(5, kernel_regularizer=own(k))],
    "own callable": lambda k: [k.layers.Dense(5, kernel_regularizer=lambda w: 2 * own(k)(w))],
    "activity": lambda k: [k.layers.Dense(5, activity_regularizer="l2"), k.layers.BatchNormalization()],
    "activity layer": lambda k: [k.layers.ActivityRegularization(0.1, 0.2)],
    "add_loss": lambda k: [adding(k)],
    "nested": lambda k: [nested(k), k.layers.Dense(2, kernel_regularizer="l1")],
    "mixed_float16": lambda k: [k.layers.Dense(5, kernel_regularizer="l2", dtype="mixed_float16")],
    "mixed_bfloat16": lambda k: [k.layers.Dense(5, kernel_regularizer="l2", dtype="mixed_bfloat16")],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", KERAS)
def test_the_loss_is_that_of_keras(name: str, case: str) -> None:
    keras = keras_of(name)
    model = sequence(keras, SHAPE, *CASES[case](keras))
    ready = session(trained(model).model)
    found = run(ready, {ready.get_inputs()[0].name: X})[LOSS]
    model(X, training=True)
    expected = sum(float(part) for part in model.losses)
    assert found.shape == ()
    assert found.dtype == np.float32
    assert found == pytest.approx(expected, rel=1e-5)  # sums of some hundred numbers of float32, in another order


@pytest.mark.parametrize("name", KERAS)
def test_the_loss_follows_the_weights_that_are_fed(name: str) -> None:
    keras = keras_of(name)
    exported = trained(sequence(keras, (3,), keras.layers.Dense(2, kernel_regularizer=keras.regularizers.L2(0.5))))
    ready = session(exported.model)
    kernel = next(s.input for s in exported.state if s.input.endswith("kernel"))
    feeds = {ready.get_inputs()[0].name: np.zeros((1, 3), np.float32), kernel: np.full((3, 2), 2, np.float32)}
    assert run(ready, feeds)[LOSS] == 0.5 * 6 * 4


@pytest.mark.parametrize("name", KERAS)
def test_a_model_without_regularization_has_no_loss(name: str) -> None:
    keras = keras_of(name)
    assert [port.name for port in trained(sequence(keras, (3,), keras.layers.Dense(2))).traced.outputs] != [LOSS]
    assert LOSS not in [
        value.name for value in trained(sequence(keras, (3,), keras.layers.Dense(2))).model.graph.outputs
    ]


def test_a_loss_that_is_no_number_is_summed_in_keras_3_and_refused_in_tf_keras() -> None:
    keras = keras_of("keras")
    model = sequence(keras, (3,), keras.layers.Dense(2, kernel_regularizer=lambda w: w * w))
    ready = session(trained(model).model)
    found = run(ready, {ready.get_inputs()[0].name: np.zeros((1, 3), np.float32)})[LOSS]
    assert found == pytest.approx(float(np.square(model.weights[0].numpy()).sum()), rel=1e-6)
    keras = keras_of("tf_keras")
    with pytest.raises(ExportError, match=r"is no number but has the shape \(3, 2\)"):
        trained(sequence(keras, (3,), keras.layers.Dense(2, kernel_regularizer=lambda w: w * w)))
