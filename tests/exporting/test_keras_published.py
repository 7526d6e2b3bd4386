"""The layers of Keras 3's published test of batch normalization, rebuilt from what they say, trained and exported.

Read for it: ``batch_normalization_test.py`` of Keras 3. What has no counterpart in an export is left out: numbers that
are refused (``test_renorm_invalid_clipping_keys``, all but the ends of ``test_invalid_momentum``).
"""

from typing import Any

import numpy as np
import pytest

from tests.exporting.live import close, export, make_lively, variable_values
from tests.exporting.published import TRAINED_MARKS, batches, fitted, holds, is_standard, of_one_layer, uniform, wide
from tests.exporting.structures import has_calls

pytestmark = TRAINED_MARKS

CLIPPING = {"rmin": 0.3, "rmax": 3.0, "dmax": 5.0}
BOTH = {"beta_regularizer": "l2", "gamma_regularizer": "l2"}
VECTOR, IMAGE = (2, 3), (2, 4, 4, 3)


@pytest.fixture
def keras() -> Any:
    import keras

    return keras


def masked(layer: Any, x: Any, mask: Any) -> Any:
    """Return a model that hands its second input on as a mask."""
    import keras

    class Masked(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.norm = layer

        def call(self, inputs: Any, training: Any = None) -> Any:
            values, mask = inputs
            return self.norm(values, training=training, mask=mask)

    model = Masked()
    model([x, mask], training=False)
    return model


@pytest.mark.parametrize(
    ("arguments", "shape", "state"),
    [
        ({"center": True, "scale": True}, VECTOR, 4),
        ({"center": False, "scale": False}, VECTOR, 2),
        (BOTH, IMAGE, 4),
        ({"renorm": True}, VECTOR, 7),
        ({"renorm": True, "renorm_clipping": CLIPPING}, IMAGE, 7),
    ],
    ids=["vector", "bare vector", "regularized image", "renorm vector", "renorm image"],
)
def test_bn_basics_and_renorm_basics(keras: Any, arguments: dict[str, Any], shape: tuple[int, ...], state: int) -> None:
    model = of_one_layer(keras, keras.layers.BatchNormalization(**arguments), *shape[1:])
    held = holds(fitted(model, wide(*shape), epochs=2), *batches(*shape))
    assert len(held.run.pairs) == state
    assert ("regularization_loss" in held.run.outputs) == (arguments is BOTH)


@pytest.mark.parametrize("variance", ["zeros", "ones"])
@pytest.mark.parametrize("mean", ["zeros", "ones"])
@pytest.mark.parametrize("shape", [(5, 2, 3), (5, 3, 3, 2)], ids=str)
@pytest.mark.parametrize("axis", [-1, 1])
def test_correctness(keras: Any, axis: int, shape: tuple[int, ...], mean: str, variance: str) -> None:
    """Without memory, and on its own output: the last batch is all that counts, in inference too."""
    given = keras.Input(shape[1:])
    layer = keras.layers.BatchNormalization(
        axis=axis, momentum=0.0, moving_mean_initializer=mean, moving_variance_initializer=variance
    )
    once, x = keras.Model(given, layer(given)), wide(*shape)
    thrice = keras.Model(given, layer(layer(layer(given))))
    exported, run = export(thrice, training=True)
    has_calls((exported, exported), 3)
    (y,) = run(x)
    close(y, thrice(x, training=True))
    is_standard(y, layer, 1e-3, axis=axis)
    for name, value in run.updated.items():
        close(value, variable_values(thrice)[name], name)
        np.testing.assert_allclose(value, 1 if "variance" in name else 0, atol=1e-3)
    (y,) = holds(once, x).run(x)
    (after,) = export(once, training=False)[1](x)
    np.testing.assert_allclose(y, after, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(5, 2, 3), (5, 3, 3, 2)], ids=str)
def test_correctness_of_masks(keras: Any, shape: tuple[int, ...]) -> None:
    """In inference a mask makes no difference, in training it does."""
    given, layer = keras.Input(shape[1:]), keras.layers.BatchNormalization(momentum=0.0)
    models = keras.Model(given, layer(given)), keras.Model(given, layer(keras.layers.Masking()(given)))
    make_lively(models[0])
    x = wide(*shape)
    x[:, 1] = 0
    plain, with_mask = (export(model, training=False)[1](x)[0] for model in models)
    np.testing.assert_array_equal(plain, with_mask)
    plain, with_mask = (holds(model, x).run(x)[0] for model in models)
    assert not np.allclose(plain, with_mask)


@pytest.mark.parametrize("synchronized", [False, True])
def test_input_fully_masked(keras: Any, synchronized: bool) -> None:
    layer = keras.layers.BatchNormalization(scale=False, center=False, synchronized=synchronized)
    x, mask = np.zeros((4, 5), np.float32), np.zeros(4, np.float32)
    held = holds(masked(layer, x, mask), [x, mask], signature=[(x.shape, "float32"), (mask.shape, "float32")])
    np.testing.assert_array_equal(held.run(x, mask)[0], 0)


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
def test_batchnorm_ignore_masked_values(keras: Any, value: float) -> None:
    given = keras.Input((None, 2))
    seen = keras.layers.Masking(mask_value=value)(given)
    model = keras.Model(given, keras.layers.BatchNormalization(momentum=0.0)(seen))
    x = np.array([[[1, 5], [2, 5], [value, value], [value, value]]] * 10, np.float32)
    held = holds(fitted(model, x, epochs=5, batch=10), x)
    np.testing.assert_allclose(held.moved("moving_mean"), [1.5, 5], rtol=1e-6)
    np.testing.assert_allclose(held.moved("moving_variance"), [0.25, 0], rtol=1e-6, atol=2e-6)


def test_trainable_behavior(keras: Any) -> None:
    layer = keras.layers.BatchNormalization(axis=-1, momentum=0.8, epsilon=1e-7)
    model, x = of_one_layer(keras, layer, 4, 4, 3), wide(200, 4, 4, 3)
    layer.trainable = False
    frozen = holds(model, x)
    assert frozen.run.updated == {}
    np.testing.assert_allclose(frozen.run(x)[0], x, rtol=1e-6)
    layer.trainable = True
    thawed = holds(model, *[x] * 10)
    is_standard(thawed.run(x)[0], layer, 1e-3)


def test_large_value_within_autocast_scope(keras: Any) -> None:
    """A variance that float16 does not hold, of a layer that computes in it."""
    layer = keras.layers.BatchNormalization(dtype="mixed_float16")
    model = of_one_layer(keras, layer, 4, 4, 3)
    layer.moving_variance.assign(np.full(3, 70000.0))
    _, run = export(model, training=False)
    x = wide(2, 4, 4, 3)
    (y,) = run(x)
    close(y, model(x, training=False))
    np.testing.assert_allclose(y, x / np.sqrt(70000), rtol=2e-3, atol=1e-6)


def test_masked_broadcast_normalization(keras: Any) -> None:
    """A mask of length 1 counts for the whole axis."""
    layer = keras.layers.BatchNormalization(axis=-1, momentum=0.0, epsilon=1e-3)
    x, mask = np.ones((1, 2, 3, 4), np.float32), np.ones((1, 2, 1), np.float32)
    held = holds(masked(layer, x, mask), [x, mask], signature=[(x.shape, "float32"), (mask.shape, "float32")])
    np.testing.assert_allclose(held.run(x, mask)[0], 0, atol=1e-5)
    np.testing.assert_allclose(held.moved("moving_mean"), 1, atol=1e-6)
    np.testing.assert_allclose(held.moved("moving_variance"), 0, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_invalid_momentum_but_for_its_ends(keras: Any, momentum: float) -> None:
    model = of_one_layer(keras, keras.layers.BatchNormalization(momentum=momentum), 4)
    make_lively(model)
    before = [value for name, value in variable_values(model).items() if name.endswith("moving_mean")]
    held = holds(model, *batches(8, 4))
    assert np.array_equal(held.moved("moving_mean"), before[0]) == (momentum == 1)


def test_renorm_stddev_initializer(keras: Any) -> None:
    start = keras.initializers.Constant(4.0)
    model = of_one_layer(keras, keras.layers.BatchNormalization(renorm=True, moving_variance_initializer=start), 5)
    exported, run = export(model, training=True)
    begins = {v.name: v.const_value.numpy() for v in exported.model.graph.inputs if v.const_value is not None}
    deviations = [begins[pair["input"]] for pair in run.pairs if pair["variable"].endswith("stddev")]
    assert len(deviations) == 2
    np.testing.assert_allclose(deviations, 2, rtol=1e-6)
    holds(model, wide(2, 5))


def test_renorm_inference(keras: Any) -> None:
    layers = [keras.layers.BatchNormalization(renorm=renorm) for renorm in (False, True)]
    models, rng = [of_one_layer(keras, layer, 10) for layer in layers], np.random.default_rng(0)
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        value = np.abs(rng.normal(size=10))
        for layer in layers:
            getattr(layer, name).assign(value)
    x = rng.normal(size=(4, 10)).astype(np.float32)
    plain, renormalized = (export(model, training=False)[1](x)[0] for model in models)
    np.testing.assert_array_equal(plain, renormalized)
    for model in models:
        holds(model, x)


def test_renorm_correctness(keras: Any) -> None:
    layer = keras.layers.BatchNormalization(
        axis=-1, epsilon=1e-3, momentum=0.9, renorm=True, renorm_momentum=0.8
    )  # fmt: skip
    model, rng = of_one_layer(keras, layer, 3), np.random.default_rng(0)
    start = {name: rng.normal(size=3) for name in ("moving_mean", "renorm_mean", "beta")}
    start |= {name: rng.uniform(0.5, 1.5, 3) for name in ("moving_variance", "renorm_stddev", "gamma")}
    start["moving_stddev"] = np.sqrt(start["moving_variance"])
    for name, value in start.items():
        getattr(layer, name).assign(value)
    x = np.array([[4, 6, 2], [8, -2, 5], [6, 4, 3]], np.float32)
    _, run = export(model, training=True)
    (y,) = run(x)
    mean, deviation = x.mean(0), np.sqrt(x.var(0) + 1e-3)
    r, d = deviation / start["renorm_stddev"], (mean - start["renorm_mean"]) / start["renorm_stddev"]
    np.testing.assert_allclose(y, ((x - mean) / deviation * r + d) * start["gamma"] + start["beta"], atol=1e-5)
    moved = {name.rpartition("/")[2]: value for name, value in run.updated.items()}
    wanted = {
        "moving_mean": 0.9 * start["moving_mean"] + 0.1 * mean,
        "moving_stddev": 0.9 * start["moving_stddev"] + 0.1 * deviation,
        "renorm_mean": 0.8 * start["renorm_mean"] + 0.2 * mean,
        "renorm_stddev": 0.8 * start["renorm_stddev"] + 0.2 * deviation,
    }
    wanted["moving_variance"] = wanted["moving_stddev"] ** 2 - 1e-3
    assert set(moved) == set(wanted)
    for name, value in moved.items():
        np.testing.assert_allclose(value, wanted[name], atol=1e-5, err_msg=name)
    holds(model, x, uniform(3, 3))


def test_serialization(keras: Any) -> None:
    layer = keras.layers.BatchNormalization(renorm=True, renorm_clipping=CLIPPING, renorm_momentum=0.95)
    again = keras.layers.BatchNormalization.from_config(layer.get_config())
    first, second = (holds(of_one_layer(keras, one, 4), *batches(6, 4)) for one in (layer, again))
    for name in ("renorm_mean", "moving_stddev"):
        np.testing.assert_array_equal(first.moved(name), second.moved(name))
