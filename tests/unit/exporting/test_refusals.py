"""What cannot be exported is named in one line: the op and the layer that made it, or the layer alone."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import bnpass
from bnpass.errors import BnpassError, UsageError, VerificationError
from bnpass.exporting import assemble
from bnpass.exporting.errors import ExportError
from bnpass.exporting.model import export_model
from bnpass.exporting.options import ExportOptions
from tests.unit.exporting.running import QUIET

pytestmark = [pytest.mark.keras, QUIET]


def around(function: Any, package: Any = keras, name: str = "odd") -> Any:
    """Return a model of a batch normalization and a layer that calls a function."""

    class Odd(package.layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return function(x)

    given = package.Input((4, 4))
    return package.Model(given, Odd(name=name)(package.layers.BatchNormalization()(given)))


def refused(model: Any, **options: Any) -> str:
    with pytest.raises(BnpassError) as caught:
        export_model(model, ExportOptions(**options))
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_variance_that_only_tests_of_tf_keras_keep_is_refused() -> None:
    layer = tf_keras.layers.BatchNormalization(name="odd", fused=True)
    layer._bessels_correction_test_only = False
    model = tf_keras.Sequential([tf_keras.layers.Input((4, 4, 3)), layer])
    assert "layer 'odd'" in refused(model, training=True)


@pytest.mark.parametrize("package", [keras, tf_keras])
@pytest.mark.parametrize("training", [False, True])
def test_an_op_without_a_counterpart_is_named_with_its_layer(package: Any, training: bool) -> None:
    model = around(lambda x: tf.linalg.svd(x, compute_uv=False), package)
    text = refused(model, training=training)
    assert "Svd" in text
    assert "odd" in text


def test_python_in_the_graph_is_refused() -> None:
    text = refused(around(lambda x: tf.ensure_shape(tf.py_function(lambda v: v, [x], tf.float32), x.shape)))
    assert "EagerPyFunc" in text or "py_function" in text


def test_a_batch_normalization_that_is_not_called_is_named() -> None:
    class Half(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = (keras.layers.BatchNormalization(name=name) for name in ("used", "idle"))

        def call(self, x: Any, training: bool | None = None) -> Any:
            return self.used(x, training=training)

    model = Half()
    model.idle.build((None, 3))
    model(np.ones((2, 3), np.float32))
    assert "'idle' was not seen" in refused(model)


def test_a_layer_that_does_not_normalize_by_itself_is_named() -> None:
    class Own(keras.layers.BatchNormalization):  # type: ignore[misc]
        def call(self, inputs: Any, **_: Any) -> Any:
            return inputs * 2

    assert "'own' was not seen" in refused(keras.Sequential([keras.Input((3,)), Own(name="own")]))


def test_a_model_without_shapes_asks_for_them() -> None:
    class Plain(keras.Model):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return x

    with pytest.raises(UsageError, match="does not know the shapes of its inputs"):
        export_model(Plain(name="plain"), ExportOptions())
    assert export_model(Plain(), ExportOptions(signature=[((None, 3), "float32")])).model.graph.inputs[0].shape == (
        "N",
        3,
    )


def test_an_unknown_channel_size_is_refused() -> None:
    class Late(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.norm = keras.layers.BatchNormalization(name="late")

        def call(self, x: Any) -> Any:
            return self.norm(x)

    text = refused(Late(), signature=[((None, None), "float32")])
    assert "'late' cannot be called as it is exported" in text
    assert "fully-defined" in text


@pytest.mark.parametrize("package", [keras, tf_keras])
def test_grouped_and_compiled_convolutions_are_exported(package: Any) -> None:
    compiled = tf.function(tf.nn.relu, jit_compile=True)

    class Compiled(package.layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return compiled(x)

    layers = package.layers
    model = package.Sequential(
        [package.Input((8, 8, 4)), layers.Conv2D(8, 3, groups=2), layers.BatchNormalization(), Compiled()]
    )
    nodes = [node.op_type for node in export_model(model, ExportOptions()).model.graph]
    assert {"Conv", "BatchNormalization", "Relu"} <= set(nodes)


def test_a_lost_call_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from bnpass.exporting import model as module

    original = module.converted

    def losing(*arguments: Any) -> Any:
        found = original(*arguments)
        marker = next(node for node in found.graph if node.op_type == assemble.MARKER)
        assemble.ir.convenience.replace_all_uses_with(marker.outputs[0], marker.inputs[0], replace_graph_outputs=True)
        found.graph.remove(marker, safe=True)
        return found

    monkeypatch.setattr(module, "converted", losing)
    model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization(name="gone"), keras.layers.ReLU()])
    with pytest.raises(ExportError, match="has lost a call of batch normalization"):
        export_model(model, ExportOptions())


def test_a_wrong_export_is_never_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    original = assemble._standard

    def wrong(op: Any, layer: Any, inputs: Any) -> Any:
        values = original(op, layer, inputs)
        node = values["Y"].producer()
        node.attributes["epsilon"] = assemble.ir.AttrFloat32("epsilon", layer.epsilon * 1.05)
        return values

    monkeypatch.setattr(assemble, "_standard", wrong)
    model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()])
    with pytest.raises(VerificationError, match="The models differ"):
        bnpass.export(model)


@pytest.mark.parametrize("given", [3, "layers", np.ones(2), keras.layers.Dense])
def test_what_is_no_model_is_refused(given: Any) -> None:
    with pytest.raises(BnpassError):
        bnpass.export(given)
