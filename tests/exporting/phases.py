"""Layers whose mode is handed on to them, as the published test of ``tf.layers`` does it, live and exported."""

from typing import Any

import numpy as np
import pytest

from tests.exporting.live import close, export, state_agrees, variable_values
from tests.exporting.published import class_of
from tests.exporting.stepping import Array
from tests.exporting.structures import norms

of_both = pytest.mark.parametrize("version", ["V1", "tf.layers"])


def layer_of(version: str, **arguments: Any) -> Any:
    """Return a layer; a number stands for an initializer that gives it."""
    keras, batch_normalization = class_of(version)
    given = [name for name, value in arguments.items() if name.endswith("_initializer") and isinstance(value, float)]
    return batch_normalization(**arguments | {name: keras.initializers.Constant(arguments[name]) for name in given})


def handing(layer: Any, *shape: int | None, tensor: bool = False, dtype: str = "float32") -> Any:
    """Return a model that hands its mode on to a layer: its own, or its second input."""
    import tensorflow as tf
    import tf_keras

    class Handing(tf_keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(dtype=dtype)  # it casts what it is given
            self.norm = layer

        def call(self, inputs: Any, training: Any = None) -> Any:
            x, mode = inputs if tensor else (inputs, training)
            return self.norm(x, training=mode)

    model, x = Handing(), tf.zeros([n or 1 for n in shape], dtype)
    model([x, tf.constant(False)]) if tensor else model(x, training=False)
    return model


class Phases:
    """A layer whose mode is a tensor, live and exported; each call is a step of both, and they agree."""

    def __init__(self, layer: Any, shape: tuple[int, ...], *, off: float = 1) -> None:
        import tensorflow as tf

        self._model = handing(layer, *shape, tensor=True)
        self._live = tf.function(self._model, autograph=False)
        signature = [((None, *shape[1:]), "float32"), ((), "bool")]
        exported, self._run = export(self._model, training=True, signature=signature)
        assert len(norms(exported.model)) == 2, "one for each mode"
        self._before, self._off = variable_values(self._model), off

    def __call__(self, x: Array, training: bool) -> Array:
        import tensorflow as tf

        (y,) = self._run(x, np.array(training))
        close(y / self._off, np.asarray(self._live([tf.constant(x), tf.constant(training)])) / np.float32(self._off))
        state_agrees(self._run, self._before, variable_values(self._model))
        return y

    def statistics(self) -> list[Array]:
        """Return the statistics that were moved, by name."""
        return [value for _, value in sorted(self._run.updated.items())]
