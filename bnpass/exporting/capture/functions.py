"""Functions of TensorFlow that a model calls are traced as if their bodies stood in the model.

A function keeps what was traced of it: what it kept of the live model has no markers, and what it would keep of an
export is nothing that the live model could run. And a variable that is changed inside of a function is, as it is here,
changed in the model's own graph, where its new value can be an output.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock


@contextlib.contextmanager
def inlined() -> Iterator[None]:
    """Run the Python of every ``tf.function`` that is called, converted by AutoGraph where it would have been."""
    import numpy as np
    import tensorflow as tf
    from tensorflow.python.eager.polymorphic_function import autograph_util
    from tensorflow.python.eager.polymorphic_function.polymorphic_function import Function

    def tensor(value: Any) -> Any:  # noqa: ANN401
        return tf.convert_to_tensor(value) if isinstance(value, np.ndarray) else value

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        body = self._python_function
        if self._autograph:
            body = autograph_util.py_func_from_autograph(body, self._experimental_autograph_options)
        args, kwargs = tf.nest.map_structure(tensor, (args, kwargs))
        return body(*args, **kwargs)

    with mock.patch.object(Function, "__call__", call):
        yield
