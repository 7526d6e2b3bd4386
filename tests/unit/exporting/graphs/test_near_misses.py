"""What looks like batch normalization and is not stays as it is: its numbers are right, and it has no node."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.exporting.graphs.models import agree, built
from tests.unit.exporting.graphs.test_formulas import vectors

pytestmark = pytest.mark.keras

C = 5
EPSILON = 1e-3


def other_variance(x: Any) -> Any:
    import tensorflow as tf

    m, v, b, g = vectors(C)
    return x * (tf.math.rsqrt(v + EPSILON) * g) + (b - m * (tf.math.rsqrt(v + 2 * EPSILON) * g))


def other_scale(x: Any) -> Any:
    import tensorflow as tf

    m, v, b, g = vectors(C)
    inv = tf.math.rsqrt(v + EPSILON)
    return x * (inv * g) + (b - m * (inv * (g + 1)))


def added_mean(x: Any) -> Any:
    import tensorflow as tf

    m, v, b, g = vectors(C)
    inv = tf.math.rsqrt(v + EPSILON) * g
    return x * inv + (b + m * inv)


def swapped_difference(x: Any) -> Any:
    import tensorflow as tf

    m, v, b, g = vectors(C)
    inv = tf.math.rsqrt(v + EPSILON) * g
    return x * inv + (m * inv - b)


def epsilon_of_channels(x: Any) -> Any:
    import tensorflow as tf

    m, v, b, g = vectors(C)
    inv = tf.math.rsqrt(v + tf.fill([C], EPSILON)) * g
    return x * inv + (b - m * inv)


def epsilon_of_one_axis(x: Any) -> Any:
    import tensorflow as tf

    m, v, b, g = vectors(C)
    inv = tf.math.rsqrt(v + tf.constant([EPSILON])) * g
    return x * inv + (b - m * inv)


def product_used_elsewhere(x: Any) -> Any:
    import tensorflow as tf

    m, v, b, g = vectors(C)
    inv = tf.math.rsqrt(v + EPSILON) * g
    product = x * inv
    return product + (b - m * inv), product


def difference_used_elsewhere(x: Any) -> Any:
    import tensorflow as tf

    m, v, b, g = vectors(C)
    difference = x - m
    return difference / tf.sqrt(v + EPSILON) * g + b, tf.nn.relu(difference)


def scale_along_another_axis(x: Any) -> Any:
    import tensorflow as tf

    m, v, b, _ = vectors(C)
    return tf.nn.batch_normalization(x, m, v, b, tf.reshape(vectors(C, "float32")[3], [C, 1]), EPSILON)


def vectors_that_widen_x(x: Any) -> Any:
    return batch_normalization_of(x[..., :1], C)


def batch_normalization_of(x: Any, channels: int) -> Any:
    import tensorflow as tf

    return tf.nn.batch_normalization(x, *vectors(channels), EPSILON)


def scalars(x: Any) -> Any:
    import tensorflow as tf

    return tf.nn.batch_normalization(x, *(tf.constant(n) for n in (0.5, 2.0, 1.0, 3.0)), EPSILON)


def rounded_in_between(x: Any) -> Any:
    import tensorflow as tf

    m, v, b, g = vectors(C)
    inv = tf.cast(tf.cast(tf.math.rsqrt(v + EPSILON) * g, "float16"), "float32")
    return x * inv + (b - m * inv)


def no_root(x: Any) -> Any:
    m, v, b, g = vectors(C)
    return (x - m) / (v + EPSILON) * g + b


def rank_that_grows(x: Any) -> Any:
    import tensorflow as tf

    return tf.nn.batch_normalization(x, *vectors(C, shape=[1, 1, 1, C]), EPSILON)


FORMS = [
    *(other_variance, other_scale, added_mean, swapped_difference, epsilon_of_channels, epsilon_of_one_axis),
    *(product_used_elsewhere, difference_used_elsewhere, scale_along_another_axis, vectors_that_widen_x, scalars),
    *(rounded_in_between, no_root, rank_that_grows),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_is_left_as_it_is(form: Callable[[Any], Any]) -> None:
    agree(built(form, [None, C, C]), norm_count=0, bound=2**-19)


def of_another_value(x: Any) -> Any:
    import tensorflow as tf

    mean, var = tf.nn.moments(tf.nn.relu(x), [0, 1])
    return tf.nn.batch_normalization(x, mean, var, None, None, EPSILON)


def of_two_values(x: Any) -> Any:
    import tensorflow as tf

    mean, _ = tf.nn.moments(x, [0, 1])
    _, var = tf.nn.moments(x * x, [0, 1])
    return tf.nn.batch_normalization(x, mean, var, None, None, EPSILON)


def over_other_axes(x: Any) -> Any:
    import tensorflow as tf

    mean, _ = tf.nn.moments(x, [0, 1], keepdims=True)
    _, var = tf.nn.moments(x, [0, 2], keepdims=True)
    return tf.nn.batch_normalization(x, mean, var, None, None, EPSILON)


def variance_around_another_mean(x: Any) -> Any:
    import tensorflow as tf

    mean = tf.reduce_mean(x, [0, 1])
    var = tf.reduce_mean(tf.math.squared_difference(x, 2 * mean), [0, 1])
    return tf.nn.batch_normalization(x, mean, var, None, None, EPSILON)


def mean_of_the_batch_alone(x: Any) -> Any:
    import tensorflow as tf

    return tf.nn.batch_normalization(x, tf.reduce_mean(x, [0, 1]), vectors(C)[1], None, None, EPSILON)


def of_each_sample(x: Any) -> Any:
    import tensorflow as tf

    mean, var = tf.nn.moments(x, [1], keepdims=True)
    return tf.nn.batch_normalization(x, mean, var, *vectors(C)[2:], EPSILON)


def of_each_position(x: Any) -> Any:
    import tensorflow as tf

    mean, var = tf.nn.moments(x, [2], keepdims=True)
    return tf.nn.batch_normalization(x, mean, var, *vectors(C)[2:], EPSILON)


def of_everything(x: Any) -> Any:
    import tensorflow as tf

    mean, var = tf.nn.moments(x, [0, 1, 2])
    return tf.nn.batch_normalization(x, mean, var, None, None, EPSILON)


def turned_statistics(x: Any) -> Any:
    import tensorflow as tf

    mean, var = tf.nn.moments(x, [0, 2])
    return tf.nn.batch_normalization(x, mean, var, None, None, EPSILON)


def inv_used_elsewhere(x: Any) -> Any:
    import tensorflow as tf

    mean, var = tf.nn.moments(x, [0, 1])
    inv = tf.math.rsqrt(var + EPSILON)
    return x * inv - mean * inv, inv


BATCH_FORMS = [
    *(of_another_value, of_two_values, over_other_axes, variance_around_another_mean, mean_of_the_batch_alone),
    *(of_each_sample, of_each_position, of_everything, turned_statistics, inv_used_elsewhere),
]


@pytest.mark.parametrize("form", BATCH_FORMS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("batch", [None, C])
def test_statistics_that_are_not_those_of_the_batch_are_left(form: Callable[[Any], Any], batch: int | None) -> None:
    agree(built(form, [batch, C, C], size=C), norm_count=0, bound=2**-18)


def test_a_channel_axis_of_unknown_length_is_left() -> None:
    agree(built(lambda x: batch_normalization_of(x, C), [None, None], size=C), norm_count=0, bound=2**-19)
