"""Random layers draw from the distributions of Keras, anew in every run, and leave no state in the graph."""

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from bnpass.exporting.errors import ExportError
from bnpass.exporting.model import export_model
from bnpass.exporting.options import ExportOptions
from bnpass.exporting.random_ops import _ABOVE, _BELOW, _HALF, dropout_seed, seed_of
from tests.unit.exporting.running import KERAS, QUIET, first, keras_of, nodes, run, sequence, session, trained

pytestmark = [pytest.mark.keras, QUIET]

SHAPE = (16, 16, 4)
RUNS = 32
X = np.random.default_rng(0).uniform(0.5, 1.5, (32, *SHAPE)).astype(np.float32)
DRAWING = ("RandomUniform", "RandomUniformLike", "RandomNormal", "RandomNormalLike", "Dropout")


def layer(keras: Any, function: Any) -> Any:
    class Own(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return function(x)

    return Own()


LAYERS = {
    "dropout": lambda k: k.layers.Dropout(0.4),
    "dropout with a seed": lambda k: k.layers.Dropout(0.4, seed=3),
    "noise_shape": lambda k: k.layers.Dropout(0.4, noise_shape=(None, 1, 1, 4)),
    "spatial": lambda k: k.layers.SpatialDropout2D(0.4),
    "noise": lambda k: k.layers.GaussianNoise(0.5),
    "gaussian dropout": lambda k: k.layers.GaussianDropout(0.4),
    "alpha": lambda k: k.layers.AlphaDropout(0.4),
    "contrast": lambda k: k.layers.RandomContrast(0.5),
    "brightness": lambda k: k.layers.RandomBrightness(0.5, value_range=(0.0, 2.0)),
    "crop": lambda k: k.layers.RandomCrop(8, 8),
}
"""A layer has a ReLU before it: ONNX Runtime takes no node away that reads an input of the graph."""


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", KERAS)
def test_a_random_layer_draws_what_keras_draws(name: str, kind: str) -> None:
    keras = keras_of(name)
    keras.utils.set_random_seed(0)  # the same draws, and so the same verdict, each time
    model = sequence(keras, SHAPE, keras.layers.ReLU(), LAYERS[kind](keras))
    exported = trained(model)
    ready = session(exported.model)
    assert [i.name for i in ready.get_inputs()] == [exported.model.graph.inputs[0].name]
    assert len(ready.get_outputs()) == 1
    ours = np.stack([first(ready, X) for _ in range(RUNS)])
    theirs = np.stack([np.asarray(model(X, training=True)) for _ in range(RUNS)])
    assert ours.shape == theirs.shape
    assert ours.std(0).max() > 0  # another draw in every run
    # some layers draw once for a whole batch: the means of such draws differ by about 1/6 of their deviation
    assert abs(ours.mean() - theirs.mean()) < 0.25 * max(theirs.std(), 0.1)
    assert ours.std() == pytest.approx(theirs.std(), rel=0.2)


@pytest.mark.parametrize(("shape", "together"), [((None, 1, 1, 4), (1, 2)), ((None, 16, 1, 1), (2, 3))])
@pytest.mark.parametrize("name", KERAS)
def test_a_noise_shape_is_dropped_as_a_whole(name: str, shape: tuple[int, ...], together: tuple[int, int]) -> None:
    keras = keras_of(name)
    ready = session(trained(sequence(keras, SHAPE, keras.layers.Dropout(0.5, noise_shape=shape))).model)
    dropped = first(ready, X) == 0
    assert (dropped.all(together) == dropped.any(together)).all()
    assert 0.3 < dropped.mean() < 0.7


@pytest.mark.parametrize("name", KERAS)
def test_a_spatial_dropout_of_tf_keras_is_no_plain_one(name: str) -> None:
    keras = keras_of(name)
    dropped = first(session(trained(sequence(keras, SHAPE, keras.layers.SpatialDropout2D(0.5))).model), X) == 0
    assert (dropped.all((1, 2)) == dropped.any((1, 2))).all()
    assert dropped.any()


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("name", KERAS)
def test_dropout_survives_the_optimizer_of_onnx_runtime(name: str, policy: str) -> None:
    keras = keras_of(name)
    layers = [
        keras.layers.ReLU(),
        keras.layers.Dropout(0.4, dtype=policy),
        keras.layers.Activation("linear", dtype="float32"),
    ]
    y = first(session(trained(sequence(keras, SHAPE, *layers)).model), X)
    assert (y == 0).mean() == pytest.approx(0.4, abs=0.02)
    kept = y[y != 0] / X[y != 0]
    # in 16 bits X is rounded, and the product
    assert np.abs(kept * 0.6 - 1).max() < {"float32": 1e-6, "mixed_float16": 2**-9, "mixed_bfloat16": 2**-6}[policy]


@pytest.mark.parametrize("name", KERAS)
def test_a_dropout_of_rate_0_is_nothing(name: str) -> None:
    keras = keras_of(name)
    exported = trained(sequence(keras, SHAPE, keras.layers.Dropout(0)))
    assert not nodes(exported.model, DRAWING)
    assert (first(session(exported.model), X) == X).all()


def test_a_dropout_of_tf_keras_asks_a_tensor_whether_it_trains() -> None:
    keras = keras_of("tf_keras")
    import tensorflow as tf

    drop = keras.layers.Dropout(0.5)
    ready = session(trained(sequence(keras, SHAPE, layer(keras, lambda x: drop(x, training=x[0, 0, 0, 0] > 1)))).model)
    low, high = X.copy(), X.copy()
    low[0, 0, 0, 0], high[0, 0, 0, 0] = 0.5, 1.5
    assert tf.__version__
    assert (first(ready, low) == low).all()
    assert (first(ready, high) == 0).mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("training", [False, True])
def test_noise_of_no_seed_is_not_frozen(training: bool) -> None:
    keras = keras_of("keras")
    model = sequence(
        keras, SHAPE, layer(keras, lambda x: x + keras.random.normal((16, 16, 4)) + keras.random.normal((16, 16, 4)))
    )
    ready = session(export_model(model, ExportOptions(training=training)).model)
    noise = np.stack([first(ready, X[:1]) - X[:1] for _ in range(4)])
    assert noise.std() == pytest.approx(2**0.5, rel=0.1)
    assert np.abs(np.corrcoef(noise.reshape(4, -1)) - np.eye(4)).max() < 0.2


def test_noise_of_a_constant_seed_is_refused() -> None:
    keras = keras_of("keras")
    import tensorflow as tf

    model = sequence(keras, SHAPE, layer(keras, lambda x: x + keras.random.normal(tf.shape(x), seed=3)))
    with pytest.raises(ExportError, match="constant seed, so it draws the same numbers in every call"):
        trained(model)


def test_a_random_op_without_counterpart_is_refused_with_its_layer() -> None:
    keras = keras_of("tf_keras")
    import tensorflow as tf

    model = sequence(keras, (4,), layer(keras, lambda x: x + tf.random.gamma(tf.shape(x)[:1], 2.0)[:, None]))
    with pytest.raises(ExportError, match=r"op RandomGamma of 'sequential\w*/own"):
        trained(model)
    model = sequence(keras, (4,), layer(keras, lambda x: tf.random.shuffle(x)))  # noqa: PLW0108
    with pytest.raises(ExportError, match="random op RandomShuffle of"):
        trained(model)


@pytest.mark.parametrize("name", KERAS)
def test_every_draw_has_a_seed_of_its_own_that_the_options_decide(name: str) -> None:
    keras = keras_of(name)
    layers = [
        keras.layers.GaussianNoise(1.0),
        keras.layers.GaussianNoise(1.0),
        keras.layers.Dropout(0.5),
        keras.layers.Dropout(0.5),
    ]
    model = sequence(keras, SHAPE, *layers)

    def seeds(seed: int) -> list[object]:
        return [node.attributes["seed"].value for node in nodes(trained(model, seed=seed).model, DRAWING)]

    assert len(set(seeds(0))) == 4
    assert seeds(0) == seeds(0)
    assert not set(seeds(0)) & set(seeds(1))


@pytest.mark.parametrize("name", KERAS)
def test_masks_of_neighbouring_seeds_are_not_alike(name: str) -> None:
    keras = keras_of(name)

    def mask(seed: int) -> np.ndarray:
        return first(session(trained(sequence(keras, SHAPE, keras.layers.Dropout(0.5, seed=seed))).model), X) == 0

    masks = np.stack([mask(seed).ravel() for seed in (1, 2, 3)])
    assert np.abs(np.corrcoef(masks) - np.eye(3)).max() < 0.02  # 0.34 for 1 and 3, as they are


def test_a_layer_called_twice_draws_twice() -> None:
    keras = keras_of("keras")
    noise, x = keras.layers.GaussianNoise(1.0), keras.Input(SHAPE)
    y = first(session(trained(keras.Model(x, keras.layers.Subtract()([noise(x), noise(x)]))).model), X)
    assert y.std() == pytest.approx(2**0.5, rel=0.05)


def test_no_two_seeds_of_a_model_are_equal_or_neighbours() -> None:
    for seed in (0, 1, 12345):
        drawn = [seed_of(seed, number) for number in range(1, 2000)] + [dropout_seed(seed, n) for n in range(1, 2000)]
        assert len(set(drawn)) == len(drawn)
        assert all(float(np.float32(value)) == value < 2**31 for value in drawn)
        assert np.median(np.abs(np.diff(drawn))) > 2**24


@pytest.mark.parametrize("name", KERAS)
def test_whole_numbers_fall_on_each_of_their_values_alike(name: str) -> None:
    keras = keras_of(name)
    import tensorflow as tf

    def draw(x: Any) -> Any:
        whole = (
            keras.random.randint(tf.shape(x), -2, 3)
            if name == "keras"
            else tf.random.uniform(tf.shape(x), -2, 3, tf.int32)
        )
        return x * 0 + tf.cast(whole, tf.float32)

    y = first(session(trained(sequence(keras, SHAPE, layer(keras, draw))).model), X)
    values, counts = np.unique(y, return_counts=True)
    assert values.tolist() == [-2, -1, 0, 1, 2]
    assert np.abs(counts / y.size - 0.2).max() < 0.01


def test_the_quantile_of_a_truncated_normal_is_right_to_nine_digits() -> None:
    q = np.linspace(-_HALF, _HALF, 10001)
    found = q * np.polyval(_ABOVE[::-1], q * q) / np.polyval(_BELOW[::-1], q * q)
    normal = NormalDist()
    assert normal.cdf(2) - 0.5 == _HALF
    assert np.abs(found - [normal.inv_cdf(0.5 + a) for a in q]).max() < 2e-9


@pytest.mark.parametrize("name", KERAS)
def test_a_truncated_normal_is_no_clipped_one(name: str) -> None:
    keras = keras_of(name)
    import tensorflow as tf

    draw = keras.random.truncated_normal if name == "keras" else tf.random.truncated_normal
    ready = session(trained(sequence(keras, SHAPE, layer(keras, lambda x: x * 0 + draw(tf.shape(x))))).model)
    y = np.sort(first(ready, X).ravel().astype(np.float64))
    normal = NormalDist()
    low, high = normal.cdf(-2), normal.cdf(2)
    cdf = np.array([(normal.cdf(v) - low) / (high - low) for v in y[::16]])
    assert -2 <= y[0] < y[-1] <= 2
    assert np.abs(cdf - np.arange(y.size)[::16] / y.size).max() < 1.95 / y.size**0.5  # Kolmogorov, 0.1 %


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_uniform_numbers_of_other_types_stay_below_1(dtype: str) -> None:
    keras = keras_of("tf_keras")
    import tensorflow as tf

    def draw(x: Any) -> Any:
        return x * 0 + tf.cast(tf.random.uniform(tf.shape(x), dtype=dtype), tf.float32)

    y = np.concatenate(
        [first(session(trained(sequence(keras, SHAPE, layer(keras, draw))).model), X).ravel() for _ in range(1)]
    )
    step = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float64": 2.0**-40}[dtype]
    assert 0 <= y.min() < y.max() < 1
    assert (np.floor(y.astype(np.float64) / step) * step == y).all()
    assert y.mean() == pytest.approx(0.5, abs=0.01)


def test_an_adjustment_of_batch_normalization_is_drawn() -> None:
    keras = keras_of("tf_keras")
    import tensorflow as tf
    from tf_keras.src.layers.normalization.batch_normalization_v1 import BatchNormalization

    def adjustment(shape: Any) -> Any:
        lengths = tf.concat([shape[:1], [1, 1], shape[-1:]], 0)
        return tf.random.uniform(lengths, 0.5, 1.5), tf.random.uniform(lengths, -0.1, 0.1)

    model = keras.Sequential([keras.layers.Input(SHAPE), BatchNormalization(adjustment=adjustment)])
    ready = session(trained(model).model)
    name = ready.get_inputs()[0].name
    a, b = (run(ready, {name: X}) for _ in range(2))
    y, mean, _ = a
    deviations = a[y].std((1, 2)) / X.std((1, 2)) * X.std((0, 1, 2))
    assert 0.45 < deviations.min() < 0.6
    assert 1.4 < deviations.max() < 1.55
    assert (a[y] != b[y]).any()
    assert (a[mean] == b[mean]).all()


@pytest.mark.parametrize("name", KERAS)
def test_inference_draws_nothing(name: str) -> None:
    keras = keras_of(name)
    model = sequence(keras, SHAPE, keras.layers.Dropout(0.5), keras.layers.GaussianNoise(1.0))
    assert not nodes(export_model(model, ExportOptions()).model, DRAWING)
