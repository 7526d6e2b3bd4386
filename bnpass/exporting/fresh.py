"""Fresh values of the initializers in place of trained ones: a model is built a second time, from a seed."""

import contextlib
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnpass.exporting.capture.layer import axis_of
from bnpass.exporting.capture.state import plain
from bnpass.exporting.errors import ExportError, first_line
from bnpass.exporting.packages import package_of
from bnpass.exporting.signature import InputSignature, signature_of
from bnpass.exporting.trace import Traced, named_variables

_LENGTH = 32
"""Of axes whose length is not known, when a model is called to build it."""


def reinitialized(model: Any, traced: Traced, seed: int, signature: InputSignature | None = None) -> Traced:  # noqa: ANN401
    """Return a traced graph whose variables have fresh defaults; the model is left as it is.

    Args:
        model: What was traced.
        traced: Its graph, in training.
        seed: The same values for the same seed.
        signature: As for ``trace``.

    Raises:
        ExportError: The model cannot be built a second time.
    """
    fresh = _values(model, seed, signature)
    variables = named_variables(model)
    states = [(state, fresh.get(id(plain(variables[state.name])))) for state in traced.state]
    state = tuple(one if value is None else replace(one, default=value) for one, value in states)
    return replace(traced, state=state)


def _values(model: Any, seed: int, signature: InputSignature | None) -> dict[int, NDArray[Any]]:  # noqa: ANN401
    """Return the values of a model that is built anew, by the ids of the variables of the given one."""
    keras = sys.modules[str(package_of(model))]
    with _randomness_kept():
        keras.utils.set_random_seed(seed)
        try:
            twin = _twin(keras, model, signature)
        except Exception as error:
            raise ExportError(f"'{model.name}' cannot be built anew for fresh values: {first_line(error)}") from error
    old, new = [plain(v) for v in model.weights], [plain(v) for v in twin.weights]
    if [(v.shape, v.dtype) for v in old] != [(v.shape, v.dtype) for v in new]:
        raise ExportError(f"'{model.name}' has other weights when it is built anew, so it cannot have fresh values")
    return {id(a): np.array(b.numpy()) for a, b in zip(old, new, strict=True)}


def _twin(keras: Any, model: Any, signature: InputSignature | None) -> Any:  # noqa: ANN401
    """Build a model of the same layers, with weights of its own."""
    import tensorflow as tf

    twin = _copy(keras, model)
    if len(twin.weights) != len(model.weights):
        called = signature_of(model, signature)
        lengths = [[2 if i == 0 else _LENGTH if n is None else n for i, n in enumerate(s.shape)] for s in called.specs]
        twin(called.pack([tf.zeros(shape, s.dtype) for shape, s in zip(lengths, called.specs, strict=True)]))
    return twin


def _copy(keras: Any, layer: Any) -> Any:  # noqa: ANN401
    """Return a layer or model of the same arguments; models of layers are copied layer by layer."""
    graph = hasattr(layer, "_operations") or getattr(layer, "_is_graph_network", False)  # of Keras 3; of tf_keras
    if graph or isinstance(layer, keras.Sequential):
        return keras.models.clone_model(layer, clone_function=lambda inner: _copy(keras, inner))
    config = layer.get_config()
    if getattr(layer, "virtual_batch_size", None):  # its own axis has been counted in
        config["axis"] = axis_of(layer)
    return type(layer).from_config(config)


@contextlib.contextmanager
def _randomness_kept() -> Iterator[None]:
    """Leave the caller's random numbers as they were."""
    import tensorflow as tf
    from tensorflow.python.eager import context

    python, numpy, seed = random.getstate(), np.random.get_state(), context.global_seed()  # noqa: NPY002  Keras seeds it
    legacy = sys.modules.get("tf_keras.src.backend")
    own = vars(legacy._SEED_GENERATOR) if legacy else {}  # noqa: SLF001
    before = dict(own)
    try:
        yield
    finally:
        own.clear()
        own.update(before)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        tf.random.set_seed(seed)
