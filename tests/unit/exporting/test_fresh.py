"""Fresh values come from the initializers of the layers, the same for the same seed, and leave the model as it is."""

import json
import random
from typing import Any

import numpy as np
import pytest

from bnpass.exporting.errors import ExportError
from bnpass.exporting.interface import STATE
from bnpass.exporting.model import Exported
from tests.unit.exporting.running import KERAS, QUIET, keras_of, sequence, trained

pytestmark = [pytest.mark.keras, QUIET]


def model_of(keras: Any) -> Any:
    L, constant = keras.layers, keras.initializers.Constant
    return sequence(
        keras, (8, 8, 3),
        L.Conv2D(16, 3, kernel_initializer=keras.initializers.RandomNormal(2.0, 0.01)),
        L.BatchNormalization(gamma_initializer="random_uniform", moving_variance_initializer=constant(4.0)),
        L.SeparableConv2D(4, 3),
        L.Flatten(),
        L.Dense(3, bias_initializer=constant(0.5), kernel_initializer="orthogonal"),
    )  # fmt: skip


def values(exported: Exported) -> dict[str, np.ndarray]:
    """Return the defaults of the inputs of a training export by the ends of their names."""
    found = {}
    for state in exported.state:
        value = exported.model.graph.initializers[state.input].const_value
        assert value is not None
        found["/".join(state.state.name.split("/")[-2:])] = value.numpy()
    return found


def ending(found: dict[str, Any], layer: str, variable: str) -> Any:
    return next(v for name, v in found.items() if name.startswith(layer) and name.endswith(f"/{variable}"))


@pytest.mark.parametrize("name", KERAS)
def test_values_are_drawn_from_the_initializers(name: str) -> None:
    found = values(trained(model_of(keras_of(name)), reinitialize=7))
    kernel, dense = ending(found, "conv2d", "kernel"), ending(found, "dense", "kernel")
    assert kernel.shape == (16, 3, 3, 3)  # in the layout of ONNX
    assert kernel.mean() == pytest.approx(2, abs=0.01)
    assert kernel.std() == pytest.approx(0.01, rel=0.3)
    np.testing.assert_allclose(dense.T @ dense, np.eye(3), atol=1e-5)
    assert (ending(found, "dense", "bias") == 0.5).all()
    assert np.abs(ending(found, "batch_normalization", "gamma")).max() <= 0.05
    assert (ending(found, "batch_normalization", "moving_variance") == 4).all()


@pytest.mark.parametrize("name", KERAS)
def test_the_seed_decides_and_the_model_stays(name: str) -> None:
    keras = keras_of(name)
    model = model_of(keras)
    before = [np.array(w.numpy()) for w in model.weights]
    state = random.getstate()
    a, b, c = (values(trained(model, reinitialize=seed)) for seed in (7, 7, 8))
    assert random.getstate() == state
    assert all((x == y).all() for x, y in zip(a.values(), b.values(), strict=True))
    assert (ending(a, "conv2d", "kernel") != ending(c, "conv2d", "kernel")).any()
    assert all((x == w.numpy()).all() for x, w in zip(before, model.weights, strict=True))


@pytest.mark.parametrize("name", KERAS)
def test_without_it_the_trained_values_are_exported(name: str) -> None:
    model = model_of(keras_of(name))
    kernel = np.array(model.weights[0].numpy())
    assert (ending(values(trained(model)), "conv2d", "kernel") == kernel.transpose(3, 2, 0, 1)).all()


def written(keras: Any, config: Any) -> Any:
    """Return a class of models whose ``get_config`` returns ``config``."""

    class Written(keras.Model):
        def __init__(self, units: int = 3, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.dense, self.norm = keras.layers.Dense(units), keras.layers.BatchNormalization()

        def call(self, x: Any, training: Any = None) -> Any:
            return self.norm(self.dense(x), training=training)

        def get_config(self) -> Any:
            return config

    return Written


SIGNATURE = [((None, 4), "float32")]


@pytest.mark.parametrize("name", KERAS)
def test_a_model_of_a_class_of_its_own_is_built_from_its_config(name: str) -> None:
    model = written(keras_of(name), {"units": 5})(5)
    model(np.zeros((2, 4), np.float32))
    found = values(trained(model, reinitialize=7, signature=SIGNATURE))
    kernel = ending(found, "dense", "kernel")
    assert kernel.shape == (4, 5)
    assert (kernel != model.dense.kernel.numpy()).any()


@pytest.mark.parametrize(("config", "message"), [
    ({"nothing": 1}, "cannot be built anew for fresh values: "),
    ({"units": 6}, "has other weights when it is built anew, so it cannot have fresh values"),
])  # fmt: skip
@pytest.mark.parametrize("name", KERAS)
def test_a_model_that_cannot_be_built_anew_is_refused_in_a_line(name: str, config: Any, message: str) -> None:
    model = written(keras_of(name), config)(5)
    model(np.zeros((2, 4), np.float32))
    with pytest.raises(ExportError, match=message) as caught:
        trained(model, reinitialize=7, signature=SIGNATURE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", KERAS)
def test_initializers_stand_in_the_metadata(name: str) -> None:
    lines = json.loads(trained(model_of(keras_of(name))).model.metadata_props[STATE])
    found = {"/".join(line["variable"].split("/")[-2:]): line["initializer"] for line in lines}
    normal, depthwise = ending(found, "conv2d", "kernel"), ending(found, "separable_conv2d", "depthwise_kernel")
    assert normal["class_name"] == "RandomNormal"
    assert normal["config"]["mean"] == 2.0
    assert depthwise["class_name"] == "GlorotUniform"
    assert ending(found, "batch_normalization", "moving_variance") == {
        "class_name": "Constant",
        "config": {"value": 4.0},
    }


@pytest.mark.parametrize("name", KERAS)
def test_a_variable_whose_layer_says_nothing_has_no_initializer(name: str) -> None:
    keras = keras_of(name)
    model = sequence(keras, (4, 3), keras.layers.LSTM(2))
    lines = json.loads(trained(model).model.metadata_props[STATE])
    found = {line["variable"].split("/")[-1]: line["initializer"] for line in lines}
    assert found["recurrent_kernel"]["class_name"].startswith("Orthogonal")
    assert found["bias"] is None  # zeros, but for the forget gate


@pytest.mark.parametrize("arguments", [{"virtual_batch_size": 4}, {"renorm": True}, {"axis": [1, 3]}], ids=str)
def test_batch_normalization_of_every_kind_is_built_anew(arguments: Any) -> None:
    keras = keras_of("tf_keras")
    from tf_keras.src.layers.normalization.batch_normalization_v1 import BatchNormalization

    norm = BatchNormalization(fused=False, gamma_initializer=keras.initializers.Constant(7.0), **arguments)
    model = sequence(keras, (5, 6, 3), norm)
    found = values(trained(model, reinitialize=1, signature=[((8, 5, 6, 3), "float32")]))
    gamma = ending(found, "batch_normalization", "gamma")
    assert (gamma == 7).all()
    assert gamma.shape == tuple(norm.gamma.shape)
    assert (norm.gamma.numpy() != 7).all()
