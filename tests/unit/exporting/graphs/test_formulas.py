"""Batch normalization that is written out in ops is recognised, in every form that TensorFlow writes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.unit.exporting.graphs.models import agree, built, ops
from tests.unit.exporting.graphs.models import vectors as numbers

pytestmark = pytest.mark.keras

C = 5
EPSILON = 1e-3


def vectors(channels: int, dtype: Any = "float32", shape: Any = None) -> list[Any]:
    """Return mean, var, offset and scale as constants of a graph: NumPy would add epsilon to var itself."""
    import tensorflow as tf

    return [tf.constant(v.reshape(shape or [channels])) for v in numbers(channels, dtype)]


def batch_normalization(x: Any, axis: int = -1, *, offset: bool = True, scale: bool = True, dtype: str = "") -> Any:
    import tensorflow as tf

    shape = [1] * x.shape.rank
    shape[axis] = x.shape[axis]
    mean, var, B, gamma = vectors(int(x.shape[axis]), dtype or x.dtype.as_numpy_dtype, shape)
    return tf.nn.batch_normalization(x, mean, var, B if offset else None, gamma if scale else None, EPSILON)


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("offset", [True, False])
def test_scale_and_offset_may_be_missing(offset: bool, scale: bool) -> None:
    agree(built(lambda x: batch_normalization(x, offset=offset, scale=scale), [None, 4, C]))


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_channels_come_last_at_any_rank(rank: int) -> None:
    exported = agree(built(batch_normalization, [None, *range(2, rank), C]))
    assert ops(exported)["BatchNormalization"] == 1
    assert ops(exported)["Mul"] == ops(exported)["Add"] == 0


@pytest.mark.parametrize(("rank", "axis"), [(2, 0), (3, 0), (3, 1), (4, 1), (4, 2), (5, 1), (5, 3)])
def test_channels_can_be_any_axis(rank: int, axis: int) -> None:
    shape = [2, 3, 4, 2, 3][:rank]
    shape[axis] = C
    agree(built(lambda x: batch_normalization(x, axis), shape))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_type_keeps_its_precision(dtype: str) -> None:
    agree(built(batch_normalization, [None, 4, C], dtype), bound=2**-8 if dtype == "float16" else None)


@pytest.mark.parametrize("training", [False, True])
def test_bfloat16_is_recognised_too(training: bool) -> None:
    def write(x: Any) -> Any:
        import tensorflow as tf

        x = tf.cast(x, "bfloat16")
        mean, var, B, gamma = (tf.cast(v, "bfloat16") for v in vectors(C))
        if training:
            mean, var = tf.nn.moments(x, [0, 1])
        return tf.cast(tf.nn.batch_normalization(x, mean, var, B, gamma, EPSILON), "float32")

    # TensorFlow itself rounds to 8 bits after each of its operations
    agree(built(write, [None, 4, C]), bound=2**-5)


def test_float16_can_be_normalized_in_float32_between_two_casts() -> None:
    import tensorflow as tf

    agree(built(lambda x: tf.cast(batch_normalization(tf.cast(x, "float32")), "float16"), [None, 4, C], "float16"))


def test_float16_can_have_parameters_in_float32() -> None:
    # TensorFlow itself rounds inv, x·inv and the shift to 16 bits
    agree(built(lambda x: batch_normalization(x, dtype="float32"), [None, 4, C], "float16"), bound=2**-8)


def test_several_channel_axes_are_one_batch_normalization() -> None:
    import tensorflow as tf

    def write(x: Any) -> Any:
        return tf.nn.batch_normalization(x, *vectors(12, shape=[1, 3, 1, 4]), EPSILON)

    agree(built(write, [None, 3, 2, 4]))


def test_one_channel_is_on_the_last_axis_of_length_1() -> None:
    agree(built(lambda x: batch_normalization(x, 3), [None, 4, 4, 1]))
    agree(built(lambda x: batch_normalization(x, 1), [None, 1, 4, 4]))


def centred(x: Any, m: Any, v: Any, b: Any, g: Any) -> Any:
    import tensorflow as tf

    return (x - m) * tf.math.rsqrt(v + EPSILON) * g + b


def divided(x: Any, m: Any, v: Any, b: Any, g: Any) -> Any:
    import tensorflow as tf

    return g * ((x - m) / tf.sqrt(v + EPSILON)) + b


def divided_scale(x: Any, m: Any, v: Any, b: Any, g: Any) -> Any:
    import tensorflow as tf

    return b + (x - m) * (g / tf.sqrt(EPSILON + v))


def bias_added(x: Any, m: Any, v: Any, b: Any, g: Any) -> Any:
    import tensorflow as tf

    return tf.nn.bias_add(g * ((x - m) * (1 / tf.sqrt(v + EPSILON))), b)


def twice_written(x: Any, m: Any, v: Any, b: Any, g: Any) -> Any:
    import tensorflow as tf

    return x * (g * tf.math.rsqrt(v + EPSILON)) + (b - m * (g * tf.math.rsqrt(v + EPSILON)))


def subtracted(x: Any, m: Any, v: Any, _b: Any, g: Any) -> Any:
    import tensorflow as tf

    inv = tf.math.rsqrt(v + EPSILON) * g
    return x * inv - m * inv


def powered(x: Any, m: Any, v: Any, b: Any, g: Any) -> Any:
    import tensorflow as tf

    return (x - m) * tf.pow(v + EPSILON, -0.5) * g + b


def reciprocal(x: Any, m: Any, v: Any, *_: Any) -> Any:
    import tensorflow as tf

    return (x - m) * tf.math.reciprocal(tf.sqrt(v + EPSILON))


def wrapped(x: Any, m: Any, v: Any, b: Any, g: Any) -> Any:
    import tensorflow as tf

    m, v, b, g = (tf.identity(tf.reshape(tf.identity(t), [1, 1, C])) for t in (m, v, b, g))
    return tf.nn.batch_normalization(x, m, v, b, g, tf.identity(EPSILON))


@pytest.mark.parametrize(
    "form",
    [centred, divided, divided_scale, bias_added, twice_written, subtracted, powered, reciprocal, wrapped],
    ids=lambda f: f.__name__,
)
def test_forms_that_people_write_are_recognised(form: Callable[..., Any]) -> None:
    exported = agree(built(lambda x: form(x, *vectors(C)), [None, 4, C]))
    counted = ops(exported)
    assert counted["BatchNormalization"] == 1
    assert not {"Mul", "Add", "Sub", "Div"} & set(counted)


def test_a_layer_that_is_called_twice_is_recognised_twice() -> None:
    def write(x: Any) -> Any:
        import tensorflow as tf

        mean, var, B, gamma = vectors(C)
        inv = tf.math.rsqrt(var + EPSILON) * gamma
        shift = B - mean * inv
        y = tf.nn.relu(x * inv + shift)
        return y * inv + shift

    agree(built(write, [None, 4, C]), norm_count=2)


def test_one_that_reads_another_one_is_recognised() -> None:
    def write(x: Any) -> Any:
        return batch_normalization(batch_normalization(x)), batch_normalization(x, offset=False)

    agree(built(write, [None, 4, C]), norm_count=3)


def test_the_input_may_be_given_as_the_output_of_another_op() -> None:
    import tensorflow as tf

    agree(built(lambda x: tf.nn.relu(batch_normalization(tf.nn.relu(x))) + x, [None, 3, 3, C]))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("keepdims", [True, False])
def test_statistics_of_the_batch_make_a_training_batch_normalization(keepdims: bool, dtype: str) -> None:
    def write(x: Any) -> Any:
        import tensorflow as tf

        mean, var = tf.nn.moments(x, [0, 1, 2], keepdims=keepdims)
        _, _, B, gamma = vectors(C, dtype, [1, 1, 1, C] if keepdims else None)
        return tf.nn.batch_normalization(x, mean, var, B, gamma, EPSILON)

    exported = agree(built(write, [None, 3, 4, C], dtype), bound=2**-7 if dtype == "float16" else 2**-19)
    counted = ops(exported)
    assert counted["SyncBatchNormalization"] == 1
    assert counted["ReduceMean"] == 0
    (node,) = [n for n in exported.model.graph if n.op_type == "SyncBatchNormalization"]
    assert node.attributes["training_mode"].as_int() == 1


def test_statistics_of_the_batch_that_are_used_elsewhere_are_kept() -> None:
    def write(x: Any) -> Any:
        import tensorflow as tf

        mean, var = tf.nn.moments(x, [0, 2, 3], keepdims=True)
        y = tf.nn.batch_normalization(x, mean, var, None, None, EPSILON)
        return y, tf.squeeze(mean) * 0.1, tf.squeeze(var) * 0.1

    agree(built(write, [None, C, 3, 4]), bound=2**-19)


def test_reduce_variance_is_known_too() -> None:
    def write(x: Any) -> Any:
        import tensorflow as tf

        return (x - tf.reduce_mean(x, 0)) / tf.sqrt(tf.math.reduce_variance(x, 0) + EPSILON)

    agree(built(write, [None, C], size=16), bound=2**-19)


def test_epsilon_is_taken_as_it_is() -> None:
    def write(x: Any) -> Any:
        import tensorflow as tf

        mean, var, B, gamma = vectors(C)
        return tf.nn.batch_normalization(x, mean, var * 1e-3, B, gamma, 0.25)

    exported = agree(built(write, [None, C]))
    (node,) = [n for n in exported.model.graph if n.op_type == "BatchNormalization"]
    assert node.attributes["epsilon"].as_float() == np.float32(0.25)
