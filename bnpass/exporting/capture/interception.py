"""The ``call`` of batch normalization, replaced while a model is traced: it writes a marker and records itself."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from bnpass.exporting.capture.calls import Calls, DropoutCall, NormCall
from bnpass.exporting.capture.functions import inlined
from bnpass.exporting.capture.layer import UPDATED, VARIABLES, api_of, clipping, resolved
from bnpass.exporting.capture.marker import mark
from bnpass.exporting.capture.state import StateTable
from bnpass.exporting.errors import ExportError
from bnpass.layers.modes import moved_by_training
from bnpass.semantics.resolved import Resolved

_NORMS = (
    ("keras.src.layers.normalization.batch_normalization", "BatchNormalization"),
    ("tf_keras.src.layers.normalization.batch_normalization", "BatchNormalizationBase"),
)
_DROPOUTS = (
    ("keras.src.layers.regularization.dropout", "Dropout"),
    ("tf_keras.src.layers.regularization.dropout", "Dropout"),
)


@contextlib.contextmanager
def intercepted(calls: Calls, state: StateTable | None = None) -> Iterator[None]:
    """Intercept every call of a batch-normalization layer, and of Dropout in training.

    Args:
        calls: Where the calls are recorded.
        state: Where statistics are read and written; None in inference.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(inlined())
        for module, name in _NORMS:
            if module in sys.modules:
                stack.enter_context(mock.patch.object(getattr(sys.modules[module], name), "call", _norm(calls, state)))
        for module, name in _DROPOUTS:
            if module in sys.modules and state is not None:
                owner = getattr(sys.modules[module], name)
                stack.enter_context(mock.patch.object(owner, "call", _dropout(calls, owner)))
        yield


def norm_layers(model: Any) -> list[Any]:  # noqa: ANN401
    """Return the batch-normalization layers inside of a model, each once."""
    bases = tuple(getattr(sys.modules[module], name) for module, name in _NORMS if module in sys.modules)
    inner = model._flatten_layers() if hasattr(model, "_flatten_layers") else [model]  # noqa: SLF001
    return list({id(layer): layer for layer in inner if isinstance(layer, bases)}.values())


def _norm(calls: Calls, state: StateTable | None) -> Callable[..., Any]:
    import tensorflow as tf

    def call(self: Any, inputs: Any, training: Any = None, mask: Any = None) -> Any:  # noqa: ANN401
        try:
            return _write(calls, state, self, inputs, training, mask)
        except ExportError as error:
            calls.refusal = error
            raise

    unconverted: Callable[..., Any] = tf.autograph.experimental.do_not_convert(call)
    return unconverted


def _write(calls: Calls, state: StateTable | None, layer: Any, X: Any, training: Any, mask: Any) -> Any:  # noqa: ANN401
    import tensorflow as tf

    if isinstance(X, tf.RaggedTensor | tf.SparseTensor) or X.shape.rank is None:
        raise ExportError(f"layer '{layer.name}': its input has no shape that is known to be dense")
    dtype = tf.as_dtype(layer.compute_dtype or X.dtype)
    X = X if X.dtype.is_floating and api_of(layer) == "keras3" else tf.cast(X, dtype)
    mode = _mode(layer, training)
    found = resolved(layer, tuple(X.shape.as_list()), X.dtype.name, training=mode is not False)
    active = found.uses_batch_statistics(mode is not False)
    operands = {"X": X, **_parameters(layer, found, state, active=active)}
    if active:
        operands |= _extras(layer, found, X, mask)
    if mode is None and active:
        operands["training"] = tf.cast(training, tf.bool)
    outputs = ("Y", *(moved_by_training(found) if active else ()))
    parameter = tf.as_dtype(found.parameter_dtype)
    kinds = [(X.dtype, X.shape), *((parameter, [found.channels]) for _ in outputs[1:])]
    record = NormCall(_path(layer), found, mode if active else False, tuple(operands), outputs)
    Y, *moved = mark(calls.add(layer, record), list(operands.values()), kinds)
    for name, value in zip(outputs[1:], moved, strict=True):
        _update(layer, name, value, state)
    return tf.cast(Y, dtype)


def _mode(layer: Any, training: Any) -> bool | None:  # noqa: ANN401
    """Return the mode of a call; None where a tensor decides."""
    import tensorflow as tf

    if api_of(layer) != "keras3":
        training = layer._get_training_value(training)  # noqa: SLF001
    if tf.is_tensor(training):
        known = tf.get_static_value(training)
        return None if known is None else bool(known)
    if isinstance(training, tf.Variable):
        return None
    return bool(training)


def _parameters(layer: Any, found: Resolved, state: StateTable | None, *, active: bool) -> dict[str, Any]:  # noqa: ANN401
    """Return scale, B and statistics as flat vectors of the type that the operators take."""
    import tensorflow as tf

    names = [name for name, has in (("scale", found.scale), ("B", found.center)) if has]
    names += ["input_mean", "input_var"]
    if active and found.renorm is not None:
        names += ["input_stddev", "renorm_mean", "renorm_stddev"]
    dtype, values = tf.as_dtype(found.parameter_dtype), {}
    for name in names:
        variable = getattr(layer, VARIABLES[name])
        value = state.get(variable) if state is not None and state.holds(variable) else tf.convert_to_tensor(variable)
        values[name] = tf.reshape(tf.cast(value, dtype), [found.channels])
    return values


def _extras(layer: Any, found: Resolved, X: Any, mask: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return what else a call in training reads: limits of renorm, a mask, an adjustment."""
    import tensorflow as tf

    dtype = tf.as_dtype(found.parameter_dtype)
    extras = {name: tf.reshape(tf.cast(limit, dtype), []) for name, limit in clipping(layer).items()}
    if mask is not None and found.mask_rule != "ignored":
        extras["mask"] = tf.cast(mask, tf.bool if found.mask_rule == "select" else X.dtype)
    if layer_adjustment := getattr(layer, "adjustment", None):
        a, c = layer_adjustment(tf.shape(X))
        extras |= {"adjust_scale": _broadcastable(a, X, dtype), "adjust_bias": _broadcastable(c, X, dtype)}
    return extras


def _broadcastable(value: Any, X: Any, dtype: Any) -> Any:  # noqa: ANN401
    """Return a factor or shift with as many axes as X."""
    import tensorflow as tf

    value = tf.cast(value, dtype)
    missing = X.shape.rank - value.shape.rank
    return tf.reshape(value, tf.concat([[1] * missing, tf.shape(value)], 0)) if missing else value


def _update(layer: Any, name: str, value: Any, state: StateTable | None) -> None:  # noqa: ANN401
    import tensorflow as tf

    if state is None:
        return
    variable = getattr(layer, UPDATED[name])
    state.put(variable, tf.reshape(value, tf.TensorShape(variable.shape)))


def _dropout(calls: Calls, owner: Any) -> Callable[..., Any]:  # noqa: ANN401
    import tensorflow as tf

    original, shape = owner.call, getattr(owner, "_get_noise_shape", None)  # of tf_keras: SpatialDropout has its own

    def call(self: Any, inputs: Any, training: Any = None) -> Any:  # noqa: ANN401
        plain = isinstance(self.rate, float | int) and self.noise_shape is None and tf.is_tensor(inputs)
        own = type(self).call is not unconverted or getattr(type(self), "_get_noise_shape", shape) is not shape
        if not plain or own or not 0 < self.rate < 1 or not isinstance(training, bool):
            return original(self, inputs, training=training)
        if not training:
            return inputs
        record = DropoutCall(_path(self), inputs.dtype.name, float(self.rate), getattr(self, "seed", None))
        token = calls.add(self, record)
        return mark(token, [inputs], [(inputs.dtype, inputs.shape)])[0]

    unconverted: Callable[..., Any] = tf.autograph.experimental.do_not_convert(call)
    return unconverted


def _path(layer: Any) -> str:  # noqa: ANN401
    """Return the name of a layer with the models that it is in, where Keras knows them."""
    return str(getattr(layer, "path", None) or layer.name)
