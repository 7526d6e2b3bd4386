"""Whatever a model is made of, and wherever batch normalization stands in it: a node per call, and the same numbers."""

from typing import Any

import numpy as np
import pytest

from tests.exporting.live import agrees, close, export, make_lively, variable_values
from tests.exporting.structures import IMAGE, MARKS, X, convolutional, has_calls, norms

pytestmark = MARKS


def test_a_sequential_model(keras: Any) -> None:
    model = keras.Sequential([keras.layers.Input((4, 4, 3)), *convolutional(keras)])
    has_calls(agrees(model, IMAGE), 2)


def test_a_sequential_model_that_was_built_by_its_first_call(keras: Any) -> None:
    model = keras.Sequential(convolutional(keras))
    model(IMAGE)
    has_calls(agrees(model, IMAGE), 2)


def test_a_functional_model_with_branches(keras: Any) -> None:
    given = keras.Input((4, 4, 3))
    a = keras.layers.Conv2D(4, 1)(given)
    b = keras.layers.BatchNormalization()(a)
    c = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3, padding="same")(keras.layers.ReLU()(b)))
    model = keras.Model(given, keras.layers.Concatenate()([keras.layers.Add()([a, c]), b]))
    has_calls(agrees(model, IMAGE), 2)


def test_a_subclassed_model(keras: Any) -> None:
    class Block(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.norm = keras.layers.Dense(5), keras.layers.BatchNormalization()

        def call(self, inputs: Any, training: Any = None) -> Any:
            return self.norm(self.dense(inputs), training=training) * 2.0

    model = Block()
    model(X)
    has_calls(agrees(model, X), 1)


def test_a_subclassed_model_with_a_given_signature(keras: Any) -> None:
    class Block(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.norm = keras.layers.BatchNormalization()

        def call(self, inputs: Any, training: Any = None) -> Any:
            a, b = inputs
            return self.norm(a, training=training) + b

    model = Block()
    model([X, X])
    has_calls(agrees(model, [X, X], signature=[((None, 6), "float32"), ((None, 6), "float32")]), 1)


def test_a_layer_that_is_called_twice_is_two_nodes_and_two_updates_in_order(keras: Any) -> None:
    shared = keras.layers.BatchNormalization(momentum=0.5)
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    model = keras.Model([a, b], [shared(a), shared(b)])
    exported = agrees(model, [X, X])
    has_calls(exported, 2)
    first, second = norms(exported[1].model)
    assert second.inputs[3].producer() is first, "the second call starts where the first ends"


def test_a_model_inside_of_a_model_inside_of_a_model(keras: Any) -> None:
    inner_given = keras.Input((5,))
    inner = keras.Model(inner_given, keras.layers.BatchNormalization()(inner_given), name="inner")
    middle = keras.Sequential([keras.layers.Input((6,)), keras.layers.Dense(5), inner], name="middle")
    given = keras.Input((6,))
    model = keras.Model(given, keras.layers.BatchNormalization(name="outer")(middle(given)))
    has_calls(agrees(model, X), 2)


def test_a_model_that_is_called_twice(keras: Any) -> None:
    inner = keras.Sequential([keras.layers.Input((6,)), keras.layers.Dense(6), keras.layers.BatchNormalization()])
    given = keras.Input((6,))
    model = keras.Model(given, inner(inner(given)))
    has_calls(agrees(model, X), 2)


def test_several_inputs_and_outputs(keras: Any) -> None:
    a, b = keras.Input((6,), name="left"), keras.Input((3,), name="right")
    norm = keras.layers.BatchNormalization()(keras.layers.Concatenate()([a, b]))
    model = keras.Model(
        [a, b], [keras.layers.Dense(2, name="first")(norm), keras.layers.Dense(3, name="second")(b), norm]
    )
    (inference, _) = exported = agrees(model, [X, X[:, :3]])
    has_calls(exported, 1)
    assert [value.name for value in inference.model.graph.inputs] == ["left", "right"]


def test_inputs_by_name(keras: Any) -> None:
    a, b = keras.Input((6,), name="z"), keras.Input((6,), name="a")
    model = keras.Model({"z": a, "a": b}, keras.layers.Subtract()([keras.layers.BatchNormalization()(a), b]))
    (inference, _) = exported = agrees(model, {"z": X, "a": X})
    has_calls(exported, 1)
    assert {value.name for value in inference.model.graph.inputs} == {"z", "a"}


def test_outputs_by_name(keras: Any) -> None:
    given = keras.Input((6,))
    norm = keras.layers.BatchNormalization()(given)
    model = keras.Model(given, {"z": norm, "a": keras.layers.Dense(2)(norm)})
    (inference, _) = exported = agrees(model, X)
    has_calls(exported, 1)
    assert [value.name for value in inference.model.graph.outputs] == ["a", "z"]


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_batches_of_any_size(keras: Any, batch: int) -> None:
    model = keras.Sequential([keras.layers.Input((None, None, 3)), *convolutional(keras)])
    make_lively(model)
    _, run = export(model, training=False)
    for height in (4, 6):
        x = np.random.default_rng(batch).normal(size=(batch, height, 5, 3)).astype(np.float32)
        (y,) = run(x)
        close(y, model(x, training=False))
    _, run = export(model, training=True)
    (y,) = run(x)
    close(y, model(x, training=True))


def test_a_layer_for_each_point_in_time(keras: Any) -> None:
    given = keras.Input((5, 6))
    model = keras.Model(given, keras.layers.TimeDistributed(keras.layers.BatchNormalization())(given))
    x = np.zeros((3, 5, 6), np.float32)
    inference, training = agrees(model, x)
    for one in (inference, training):
        assert len(norms(one.model)) == one.assembled.norms - len(one.assembled.unused)


def test_an_input_that_is_not_used(keras: Any) -> None:
    a, b = keras.Input((6,), name="used"), keras.Input((3,), name="not_used")
    model = keras.Model([a, b], keras.layers.BatchNormalization()(a))
    (inference, _) = exported = agrees(model, [X, X[:, :3]])
    has_calls(exported, 1)
    assert [value.name for value in inference.model.graph.inputs] == ["used", "not_used"]


def test_an_output_that_is_an_input(keras: Any) -> None:
    given = keras.Input((6,))
    model = keras.Model(given, [given, keras.layers.BatchNormalization()(given), given])
    has_calls(agrees(model, X), 1)


def test_an_output_twice(keras: Any) -> None:
    given = keras.Input((6,))
    norm = keras.layers.BatchNormalization()(given)
    has_calls(agrees(keras.Model(given, [norm, norm]), X), 1)


@pytest.mark.parametrize("autograph", [False, True])
def test_a_layer_that_is_called_in_a_function_of_tensorflow(keras: Any, autograph: bool) -> None:
    import tensorflow as tf

    class Compiled(keras.layers.Layer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.norm = keras.layers.BatchNormalization()

        def build(self, shape: Any) -> None:
            self.norm.build(shape)
            super().build(shape)

        @tf.function(autograph=autograph)
        def normalized(self, inputs: Any, training: Any) -> Any:
            return self.norm(inputs, training=training)

        def call(self, inputs: Any, training: Any = None) -> Any:
            return tf.function(lambda x: self.normalized(x, training) * 2, autograph=autograph)(inputs)

    given = keras.Input((6,))
    model = keras.Model(given, Compiled()(given))
    has_calls(agrees(model, X), 1)


def test_a_layer_inside_of_a_custom_layer(keras: Any) -> None:
    class Residual(keras.layers.Layer):  # type: ignore[misc]
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.dense, self.norms = keras.layers.Dense(6), [keras.layers.BatchNormalization() for _ in range(2)]

        def build(self, shape: Any) -> None:
            for layer in (self.dense, *self.norms):
                layer.build(shape)
            super().build(shape)

        def call(self, inputs: Any, training: Any = None) -> Any:
            first, second = self.norms
            return inputs + second(self.dense(first(inputs, training=training)), training=training)

    given = keras.Input((6,))
    model = keras.Model(given, Residual(name="one")(Residual(name="two")(given)))
    has_calls(agrees(model, X), 4)


def test_a_subclass_with_arguments_and_a_call_of_its_own(keras: Any) -> None:
    class Halved(keras.layers.BatchNormalization):  # type: ignore[misc]
        def __init__(self, **arguments: Any) -> None:
            super().__init__(momentum=0.7, epsilon=0.1, **arguments)

        def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
            return super().call(inputs, training=training, mask=mask) / 2

    given = keras.Input((6,))
    has_calls(agrees(keras.Model(given, Halved()(given)), X), 1)


def test_a_mask_from_an_embedding(keras: Any) -> None:
    given = keras.Input((5,), dtype="int32")
    embedded = keras.layers.Embedding(7, 4, mask_zero=True)(given)
    model = keras.Model(given, keras.layers.BatchNormalization()(embedded))
    words = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 0], [6, 1, 2, 0, 0]], np.int32)
    has_calls(agrees(model, words), 1)


def test_a_mask_from_values(keras: Any) -> None:
    given = keras.Input((5, 3))
    masked = keras.layers.Masking(0.0)(given)
    model = keras.Model(given, keras.layers.BatchNormalization(momentum=0.5)(keras.layers.Dense(4)(masked)))
    make_lively(model)
    x = np.random.default_rng(0).normal(size=(3, 5, 3)).astype(np.float32)
    x[:, 3:] = 0
    for training in (False, True):
        _, run = export(model, training=training)
        close(run(x)[0], model(x, training=training))
    for name, value in run.updated.items():
        close(value, variable_values(model)[name], name)
