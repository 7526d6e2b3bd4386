"""Models of mixed precision are exported with their types, and give what Keras gives."""

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from bnpass.exporting.bfloat16 import _Wide
from bnpass.exporting.model import export_model
from bnpass.exporting.options import ExportOptions
from tests.unit.exporting.running import KERAS, QUIET, first, keras_of, nodes, sequence, session, trained

pytestmark = [pytest.mark.keras, QUIET]

SHAPE = (12, 12, 3)
X = np.random.default_rng(0).uniform(-1, 1, (8, *SHAPE)).astype(np.float32)
ULP = {"mixed_bfloat16": 2**-7, "mixed_float16": 2**-10}
"""One unit in the last place of a number just above a power of two."""


@pytest.fixture(autouse=True)
def policies() -> Iterator[None]:
    yield
    keras_of("keras").config.set_dtype_policy("float32")
    keras_of("tf_keras").mixed_precision.set_global_policy("float32")


def under(name: str, policy: str) -> Any:
    keras = keras_of(name)
    (keras.config.set_dtype_policy if name == "keras" else keras.mixed_precision.set_global_policy)(policy)
    return keras


def convolutions(L: Any) -> list[Any]:
    return [
        L.Conv2D(4, 3),
        L.BatchNormalization(),
        L.ReLU(),
        L.MaxPool2D(),
        L.Conv2D(3, 3, padding="same", use_bias=False),
    ]


def depthwise(L: Any) -> list[Any]:
    return [L.DepthwiseConv2D(3, padding="same"), L.BatchNormalization(), L.LeakyReLU(), L.AveragePooling2D(2),
            L.Conv2DTranspose(3, 3, strides=2)]  # fmt: skip


def dense(L: Any) -> list[Any]:
    return [L.Flatten(), L.Dense(16, activation="relu"), L.BatchNormalization(), L.Dense(4), L.Activation("sigmoid")]


def pooled(L: Any) -> list[Any]:
    wide = [L.Conv2D(8, 3, activation="gelu"), L.BatchNormalization(), L.UpSampling2D(), L.ZeroPadding2D()]
    flat = [L.GlobalAveragePooling2D(), L.LayerNormalization(), L.Dense(4), L.Activation("softmax", dtype="float32")]
    return wide + flat


NETS = {"convolutions": convolutions, "depthwise": depthwise, "dense": dense, "pooled": pooled}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("policy", ULP)
@pytest.mark.parametrize("name", KERAS)
def test_a_model_gives_what_keras_gives(name: str, policy: str, net: str, training: bool) -> None:
    keras = under(name, policy)
    model = sequence(keras, SHAPE, *NETS[net](keras.layers))
    exported = export_model(model, ExportOptions(training=training))
    found = first(session(exported.model), X).astype(np.float32)
    expected = np.asarray(keras.ops.cast(model(X, training=training), "float32") if name == "keras" else
                          np.asarray(model(X, training=training)).astype(np.float32))  # fmt: skip
    # sums are rounded to 16 bits after other orders of addition: a neighbour here and there, passed on by a few layers
    assert np.abs(found - expected).max() <= 4 * ULP[policy] * np.abs(expected).max()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", KERAS)
def test_types_of_the_graph_are_those_of_keras(name: str, training: bool) -> None:
    keras = under(name, "mixed_bfloat16")
    model = sequence(keras, SHAPE, *convolutions(keras.layers))
    graph = export_model(model, ExportOptions(training=training)).model.graph
    types = {value.dtype for node in graph.all_nodes() for value in node.outputs}
    assert ir.DataType.BFLOAT16 in types
    assert ir.DataType.FLOAT16 not in types
    assert graph.outputs[0].dtype == ir.DataType.BFLOAT16
    assert all(value.dtype == ir.DataType.FLOAT for value in graph.inputs)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", KERAS)
def test_only_casts_layouts_and_batch_normalization_touch_bfloat16(name: str, net: str) -> None:
    keras = under(name, "mixed_bfloat16")
    exported = trained(sequence(keras, SHAPE, *NETS[net](keras.layers)))
    narrow = {
        node.op_type
        for node in exported.model.graph.all_nodes()
        if node.domain == ""
        and any(v is not None and v.dtype == ir.DataType.BFLOAT16 for v in (*node.inputs, *node.outputs))
    }
    assert narrow <= {"Cast", "Identity", "Transpose", "Reshape"}


@pytest.mark.parametrize("policy", ULP)
@pytest.mark.parametrize("name", KERAS)
def test_kernels_are_inputs_in_the_layout_of_onnx(name: str, policy: str) -> None:
    keras = under(name, policy)
    exported = trained(sequence(keras, SHAPE, *convolutions(keras.layers)))
    kernels = [state for state in exported.state if state.input.endswith("kernel")]
    assert [state.permutation for state in kernels] == [(3, 2, 0, 1)] * 2
    assert len(nodes(exported.model, ["Transpose"])) == 2  # of the data, on its way in and out


def test_a_sum_is_rounded_where_keras_rounds_it() -> None:
    keras = under("keras", "mixed_bfloat16")
    model = sequence(keras, (4,), keras.layers.Dense(1), keras.layers.Activation("linear", dtype="float32"))
    model.set_weights([np.array([[1], [1], [1], [1]], np.float32), np.array([2**-9], np.float32)])
    x = np.array([[1, 2**-8, 2**-9, 0], [1, 2**-7, 0, 0], [1 + 2**-8, 0, 0, 0]], np.float32)
    expected = np.asarray(model(x))
    found = first(session(export_model(model, ExportOptions()).model), x)
    assert (found == expected).all()
    assert (found != x.sum(1, keepdims=True) + 2**-9).any()


def test_a_cast_to_16_bits_and_back_is_kept() -> None:
    import tensorflow as tf

    keras = keras_of("tf_keras")
    x = np.array([[1 + 2**-20, 1 + 2**-9, 3.14159, 1e-3]], np.float32)
    for dtype in (tf.float16, tf.bfloat16):
        model = keras.Sequential(
            [keras.layers.Input((4,)), keras.layers.Lambda(lambda v, to=dtype: tf.cast(tf.cast(v, to), tf.float32))]
        )
        assert (first(session(export_model(model, ExportOptions()).model), x) == np.asarray(model(x))).all()
        assert (np.asarray(model(x)) != x).any()


def test_casts_that_change_nothing_are_left_out() -> None:
    keras = under("keras", "mixed_bfloat16")
    layers = [keras.layers.ReLU(), keras.layers.MaxPool2D(), keras.layers.Flatten(), keras.layers.Reshape((36, 3))]
    model = export_model(sequence(keras, SHAPE, *layers), ExportOptions()).model
    casts = [(node.inputs[0], node.outputs[0]) for node in nodes(model, ["Cast"])]
    rounding = [new.dtype for old, new in casts if old is not None and ir.DataType.BFLOAT16 in (old.dtype, new.dtype)]
    # the model's input to bfloat16, that to float32, and the output to bfloat16
    assert rounding == [ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.BFLOAT16]


@pytest.mark.parametrize("name", KERAS)
def test_weights_and_data_of_pure_bfloat16_stay_what_they_are(name: str) -> None:
    keras = under(name, "bfloat16")
    model = sequence(keras, (8,), keras.layers.Dense(4))
    exported = trained(model)
    kernel = next(value for value in exported.model.graph.inputs if (value.name or "").endswith("kernel"))
    assert {value.dtype for value in (*exported.model.graph.inputs[1:], *exported.model.graph.outputs)} == {
        ir.DataType.BFLOAT16
    }
    assert kernel.const_value is not None
    assert kernel.const_value.numpy().dtype == ml_dtypes.bfloat16
    session(exported.model)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("policy", ULP)
@pytest.mark.parametrize("name", KERAS)
def test_a_recurrent_layer_rounds_in_its_loop(name: str, policy: str, training: bool) -> None:
    keras = under(name, policy)
    model = sequence(keras, (6, 3), keras.layers.LSTM(4), keras.layers.Activation("linear", dtype="float32"))
    exported = export_model(model, ExportOptions(training=training))
    x = X[:, :6, 0]
    found, expected = first(session(exported.model), x), np.asarray(model(x, training=training))
    assert np.abs(found - expected).max() <= 4 * ULP[policy]  # of numbers below 1
    if policy == "mixed_bfloat16":
        loop = next(node for node in exported.model.graph if node.op_type == "Loop")
        body = loop.attributes["body"].as_graph()
        casts = [node.attributes["to"].as_int() for node in body if node.op_type == "Cast"]
        assert casts.count(ir.DataType.BFLOAT16) >= 10  # gates, states, products
        assert (expected == expected.astype(ml_dtypes.bfloat16).astype(np.float32)).all()
        assert (found == found.astype(ml_dtypes.bfloat16).astype(np.float32)).all()


def test_a_branch_takes_and_returns_bfloat16_numbers() -> None:
    import tensorflow as tf

    keras = under("tf_keras", "mixed_bfloat16")

    class Choosing(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return tf.cond(tf.reduce_sum(x) > 0, lambda: x * x + 1, lambda: x * x - 1 + x)

    model = keras.Sequential([keras.layers.Input((5,)), Choosing(), keras.layers.Activation("linear", dtype="float32")])
    ready = session(export_model(model, ExportOptions()).model)
    for x in (X[:, 0, :5, 0], -np.abs(X[:, 0, :5, 0]), np.abs(X[:, 0, :5, 0])):
        assert (first(ready, x) == np.asarray(model(x))).all()


def test_a_graph_without_bfloat16_is_not_written_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(_Wide, "__init__", refuse)
    keras = keras_of("keras")
    trained(sequence(keras, (4,), keras.layers.Dense(2)))
