"""SavedModels of TensorFlow 2: modules, and models of Keras without their layers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnpass.exporting.errors import ExportError
from bnpass.exporting.graphs import trace_saved_model
from bnpass.exporting.model import Exported, finish
from bnpass.exporting.options import ExportOptions
from tests.unit.exporting.graphs.models import close, norms, ops, run, vectors

pytestmark = pytest.mark.keras

C = 3


def module() -> Any:
    """Return a module with a mode that is an input: it updates its averages in training, in a branch."""
    import tensorflow as tf

    class Norm(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.var, self.B, self.scale = (tf.Variable(v) for v in vectors(C))

        def norm(self, x: Any, training: Any) -> Any:
            def of_batch() -> Any:
                y, mean, var = tf.compat.v1.nn.fused_batch_norm(x, self.scale, self.B, is_training=True)
                self.mean.assign_sub((self.mean - mean) * 0.1)
                self.var.assign_sub((self.var - var) * 0.1)
                return y

            return tf.cond(
                training,
                of_batch,
                lambda: tf.nn.batch_normalization(x, self.mean, self.var, self.B, self.scale, 1e-3),
            )

    made = Norm()
    signature = [tf.TensorSpec([None, 4, 4, C], name="x"), tf.TensorSpec([], tf.bool, name="use_batch")]
    made.run = tf.function(lambda x, use_batch: {"out": made.norm(x, use_batch)}, input_signature=signature)
    signature = [tf.TensorSpec([None, 4, 4, C], name="x"), tf.TensorSpec([], tf.bool, name="training")]
    made.step = tf.function(
        lambda x, training: {"out": made.norm(x, training), "again": made.norm(x + 1, training)},
        input_signature=signature,
    )
    return made


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tensorflow as tf

    made = module()
    folder = tmp_path_factory.mktemp("modules") / "module"
    tf.saved_model.save(made, str(folder), signatures={"run": made.run, "step": made.step})
    return folder


def data(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype("f")


@pytest.mark.parametrize("training", [False, True])
def test_the_mode_is_bound_and_the_updates_in_its_branch_go(saved: Path, training: bool) -> None:
    import tensorflow as tf

    traced = trace_saved_model(saved, "step", training=training)
    exported = finish(traced, ExportOptions())
    assert [p.name for p in traced.inputs] == ["x"]
    X = data(2, 4, 4, C)
    want = tf.saved_model.load(str(saved)).signatures["step"](x=X, training=tf.constant(training))
    got = dict(zip([p.name for p in traced.outputs], run(exported, {"x": X}), strict=False))
    assert norms(exported) == 2
    for name in ("out", "again"):
        close(got[name], want[name].numpy(), 2**-18)


def test_a_boolean_by_another_name_is_refused_with_its_branch(saved: Path) -> None:
    with pytest.raises(ExportError, match=r"^batch normalization '.*' is inside of '.*cond' \(If\), "):
        trace_saved_model(saved, "run")


def test_the_signature_has_to_be_named_if_there_are_several(saved: Path) -> None:
    with pytest.raises(ExportError, match="has no signature 'serving_default'; it has 'run', 'step'"):
        trace_saved_model(saved)


def keras_model(keras: Any) -> Any:
    """Return a model of a class of its own: reloaded, it has no layers."""
    layers = keras.layers

    class Net(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = layers.Conv2D(4, 3), layers.BatchNormalization(name="bn")
            self.flat, self.dense = layers.Flatten(), layers.Dense(5)
            self.bn2, self.odd = layers.BatchNormalization(name="bn2", scale=False), layers.BatchNormalization(axis=2)

        def call(self, x: Any, training: bool | None = None) -> Any:
            x = self.odd(self.bn(self.conv(x), training=training), training=training)
            return self.bn2(self.dense(self.flat(x)), training=training)

    model = Net()
    model(data(2, 6, 6, C))
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.2, 1, w.shape).astype("f") for w in model.get_weights()])
    return model


def check(folder: Path, model: Any) -> Exported:
    traced = trace_saved_model(folder)
    exported = finish(traced, ExportOptions())
    X = data(3, 6, 6, C)
    want = np.asarray(model(X, training=False))
    close(run(exported, {traced.inputs[0].name: X})[0], want, 2**-19)
    assert norms(exported) == exported.assembled.norms == 3
    return exported


def test_a_model_of_tf_keras_without_its_layers_is_recognised(tmp_path: Path) -> None:
    import tensorflow as tf
    import tf_keras

    model = keras_model(tf_keras)
    model.predict(data(2, 6, 6, C), verbose=0)
    tf.saved_model.save(model, str(tmp_path / "model"))
    exported = check(tmp_path / "model", model)
    assert {name.split("/")[-1] for name in exported.assembled.layers} >= {"bn", "bn2"}


def test_a_model_of_keras_3_that_was_exported_is_recognised(tmp_path: Path) -> None:
    import keras

    model = keras_model(keras)
    model.export(str(tmp_path / "model"), verbose=False)
    exported = check(tmp_path / "model", model)
    assert ops(exported)["Rsqrt"] == 0
