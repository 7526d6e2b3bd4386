"""Whatever a model is made of, and wherever batch normalization stands in it: a node per call, and the same numbers."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bnpass.exporting.model import Exported
from bnpass.ops import DOMAIN
from tests.conformance.layers.oracle.batches import ROOT
from tests.exporting.live import agrees, close, export, flat, infers_alike, make_lively, trains_alike, variable_values

pytestmark = [
    pytest.mark.keras,
    # of TensorFlow, tf_keras and tf2onnx themselves, which nobody here can heed
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

NORMS = {"BatchNormalization", "SyncBatchNormalization"}
X = np.zeros((4, 6), np.float32)
IMAGE = np.zeros((3, 4, 4, 3), np.float32)


@pytest.fixture(params=["keras", "tf_keras"])
def keras(request: pytest.FixtureRequest) -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    if request.param == "keras":
        import keras
    else:
        import tf_keras as keras
    return keras


@pytest.fixture
def tf_keras() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    import tf_keras

    return tf_keras


def norms(model: ir.Model) -> list[ir.Node]:
    """Return the nodes that normalize, of the graph and its subgraphs; bodies of functions are not looked at."""
    return [node for node in ir.traversal.RecursiveGraphIterator(model.graph) if node.op_type in NORMS]


def has_calls(exported: tuple[Exported, Exported], calls: int) -> None:
    """Assert that there is one node per call, in both exports, and no op that is neither ONNX's nor ours."""
    for one in exported:
        assert len(norms(one.model)) == calls == one.assembled.norms
        assert {node.domain for node in one.model.graph.all_nodes()} <= {"", DOMAIN}


def convolutional(keras: Any, **arguments: Any) -> list[Any]:
    """Return layers for images of 4 x 4 pixels: convolution and batch normalization, twice."""
    layers = keras.layers
    return [
        layers.Conv2D(4, 3, padding="same"),
        layers.BatchNormalization(**arguments),
        layers.ReLU(),
        layers.DepthwiseConv2D(2),
        layers.BatchNormalization(**arguments),
        layers.GlobalAveragePooling2D(),
        layers.Dense(2),
    ]


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


def test_weights_go_in_as_the_metadata_say(keras: Any) -> None:
    model = keras.Sequential([keras.layers.Input((4, 4, 3)), *convolutional(keras)])
    _, run = export(model, training=True)
    make_lively(model, seed=7)
    values, feeds = variable_values(model), {}
    for pair in run.pairs:
        value, order = values[pair["variable"]], pair["permutation"]
        feeds[pair["input"]] = value if order is None else np.ascontiguousarray(np.transpose(value, order))
    assert any(pair["permutation"] for pair in run.pairs), "a convolution has its kernel in another layout"
    x = np.random.default_rng(0).normal(size=IMAGE.shape).astype(np.float32)
    (y,) = run(**{run.inputs[0]: x}, **feeds)
    close(y, model(x, training=True))


def test_regularization_is_an_output_of_a_training_export(keras: Any) -> None:
    penalty = keras.regularizers.L1L2(0.1, 0.2)
    norm = keras.layers.BatchNormalization(gamma_regularizer=penalty, beta_regularizer=penalty)
    model = keras.Sequential([keras.layers.Input((6,)), norm])
    make_lively(model)
    _, run = export(model, training=True)
    assert run.outputs[-1] == "regularization_loss"
    _, loss = run(X)
    model(X, training=True)
    close(loss, np.float32(sum(float(part) for part in model.losses)))


def test_an_export_leaves_the_live_model_as_it_was(keras: Any) -> None:
    model = keras.Sequential([keras.layers.Input((4, 4, 3)), *convolutional(keras)])
    make_lively(model)
    before = variable_values(model)
    calls = (keras.layers.BatchNormalization.call, type(model.layers[1]).call)
    for training in (False, True):
        export(model, training=training)
    after = variable_values(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert (keras.layers.BatchNormalization.call, type(model.layers[1]).call) == calls
    assert flat(model(IMAGE, training=False))[0].shape == (3, 2)


@pytest.mark.parametrize("training", [False, True])
def test_the_same_model_gives_the_same_bytes(keras: Any, training: bool) -> None:
    model = keras.Sequential([keras.layers.Input((4, 4, 3)), *convolutional(keras)])
    first, second = (ir.to_proto(export(model, training=training)[0].model) for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_the_bytes_do_not_depend_on_the_process() -> None:
    digests = set()
    for seed in ("0", "1"):
        script = Path(__file__).with_name("export_bytes.py")
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        run = subprocess.run(
            [sys.executable, str(script), "keras"], capture_output=True, text=True, check=False, env=environment
        )
        assert run.returncode == 0, run.stderr[-2000:]
        digests.add(run.stdout.split()[-1])
    assert len(digests) == 1
