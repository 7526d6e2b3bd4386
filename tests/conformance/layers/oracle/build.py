"""Build the real layer of a case, set its variables, read them."""

from typing import Any

import numpy as np
import tensorflow as tf

from tests.conformance.layers.adjustments import adjustment
from tests.conformance.layers.cases import Array, Case
from tests.conformance.layers.exchange import Arrays, part
from tests.conformance.layers.oracle.classes import CLASSES

VARIABLES = (
    "gamma",
    "beta",
    "moving_mean",
    "moving_variance",
    "moving_stddev",
    "renorm_mean",
    "renorm_stddev",
)

_MIXED = {"float16": "mixed_float16", "bfloat16": "mixed_bfloat16"}


class TensorFlowArrays:
    """What ``adjustments.adjustment`` needs, in TensorFlow."""

    arange = staticmethod(tf.range)
    cast = staticmethod(tf.cast)
    reshape = staticmethod(tf.reshape)


def layer_class(api: str) -> Any:
    """Return the class behind a public name, and make sure that it is the one meant."""
    if api == "sync":
        found = tf.keras.layers.experimental.SyncBatchNormalization
    elif api == "tf1":
        found = tf.compat.v1.layers.BatchNormalization
    elif api == "keras_v1":
        found = tf.compat.v1.keras.layers.BatchNormalization
    elif api == "tf_keras":
        import tf_keras

        found = tf_keras.layers.BatchNormalization
    else:
        import keras

        found = keras.layers.BatchNormalization
    assert (found.__module__, found.__name__) == CLASSES[api], (found.__module__, found.__name__)
    return found


def internal_dtype(case: Case) -> Any:
    """Return the type of the arithmetic and of the parameters."""
    return tf.float64 if case.dtype == "float64" else tf.float32


def layer_arguments(case: Case) -> dict[str, Any]:
    """Return the arguments as the layer takes them: functions for names, tensors for clip values."""
    arguments = dict(case.arguments)
    if "adjustment" in arguments:
        arguments["adjustment"] = adjustment(
            arguments["adjustment"], case.axes, len(case.shape), TensorFlowArrays, internal_dtype(case)
        )
    if arguments.get("renorm_clipping"):
        arguments["renorm_clipping"] = {
            key: _clip(value, case.clip.get(key, 0.0), internal_dtype(case))
            for key, value in arguments["renorm_clipping"].items()
        }
    return arguments


def _clip(given: float | str, value: float, dtype: Any) -> Any:
    if given == "tensor":
        return tf.constant(value, dtype)
    if given == "variable":
        return tf.Variable(value, dtype=dtype, trainable=False)
    return given


def policy(case: Case) -> str:
    """Return the ``dtype`` argument: for Keras 3 the mixed policy, whose parameters are float32 as ours are."""
    if case.policy:
        return case.policy
    return _MIXED.get(case.dtype, case.dtype) if case.api == "keras3" else case.dtype


def new_layer(case: Case) -> Any:
    """Return the layer of a case, not built yet."""
    return layer_class(case.api)(dtype=policy(case), **layer_arguments(case))


def build_shape(case: Case) -> list[int | None]:
    """Return the shape to build for: the batch is unknown where the replicas differ in it."""
    first, *others = case.shares
    return [n if all(n == other[i] for other in others) else None for i, n in enumerate(first)]


def variables(layer: Any) -> dict[str, Any]:
    """Return the variables that the layer has, by name."""
    found = {name: getattr(layer, name, None) for name in VARIABLES}
    return {name: variable for name, variable in found.items() if variable is not None}


def set_start(layer: Any, arrays: Arrays) -> None:
    """Assign the given weights and statistics."""
    given = part(arrays, "start")
    for name, variable in variables(layer).items():
        variable.assign(given[name].reshape(variable.shape))


def raw(variable: Any) -> Any:
    """Return the tf.Variable inside a Keras 3 variable, or the variable itself."""
    return getattr(variable, "value", variable) if not isinstance(variable, tf.Variable) else variable


def trained(layer: Any) -> dict[str, Any]:
    """Return gamma and beta, as far as the layer has them."""
    return {name: raw(v) for name, v in variables(layer).items() if name in {"gamma", "beta"}}


def as_float64(value: Any) -> Array:
    """Return a tensor as float64."""
    return np.asarray(tf.cast(value, tf.float64))


def flat(value: Any) -> Array:
    """Return a variable as float64, [C]."""
    return as_float64(value).ravel()


def facts(layer: Any) -> dict[str, Any]:
    """Return what is worth knowing of a built layer."""
    return {
        "class": [type(layer).__module__, type(layer).__name__],
        "fused": getattr(layer, "fused", None),
        "types": {name: str(np.dtype(raw(v).dtype.as_numpy_dtype)) for name, v in variables(layer).items()},
        "layer_name": layer.name,
        "trainable_variables": [v.name for v in layer.trainable_variables],
    }
