"""The variables of a model while it is traced in training: read from a table, written to it.

Every weight is then an input of the graph and every updated one an output, whatever layer it belongs to, and a layer
that is called twice reads what its first call has written.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

from bnpass.exporting.errors import ExportError


class StateTable:
    """The values of variables during a trace.

    Args:
        variables: Of Keras or TensorFlow.
        values: What each of them holds when the trace begins.
    """

    def __init__(self, variables: Sequence[Any], values: Sequence[Any]) -> None:
        self._graph = None if not values else values[0].graph
        self._values = {id(plain(v)): value for v, value in zip(variables, values, strict=True)}
        self._first = dict(self._values)

    def holds(self, variable: Any) -> bool:  # noqa: ANN401
        """Whether a variable is in the table."""
        return id(plain(variable)) in self._values

    def get(self, variable: Any) -> Any:  # noqa: ANN401
        """Return the value of a variable now."""
        return self._values[id(plain(variable))]

    def put(self, variable: Any, value: Any) -> None:  # noqa: ANN401
        """Give a variable a new value, of its own type."""
        import tensorflow as tf

        known = plain(variable)
        new = tf.ensure_shape(tf.cast(value, known.dtype), known.shape)
        if new.graph is not self._graph:
            raise ExportError(f"variable '{known.name}' is changed inside of a loop or branch, which is not exported")
        self._values[id(known)] = new

    def updated(self, variable: Any) -> Any | None:  # noqa: ANN401
        """Return the new value of a variable; None if nothing has changed it."""
        key = id(plain(variable))
        return None if self._values[key] is self._first[key] else self._values[key]

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """Let all reads and writes of the variables go to the table."""
        import tensorflow as tf
        from tensorflow.python.ops.resource_variable_ops import BaseResourceVariable as Base

        read, sparse, gather = Base._read_variable_op, Base.sparse_read, Base.gather_nd  # noqa: SLF001
        table = self

        def reading(variable: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            return table.get(variable) if table.holds(variable) else read(variable, *args, **kwargs)

        def gathering(variable: Any, indices: Any, name: str | None = None) -> Any:  # noqa: ANN401
            if not table.holds(variable):
                return sparse(variable, indices, name=name)
            return tf.gather(table.get(variable), indices, name=name)

        def gathering_nd(variable: Any, indices: Any, name: str | None = None) -> Any:  # noqa: ANN401
            if not table.holds(variable):
                return gather(variable, indices, name=name)
            return tf.gather_nd(table.get(variable), indices, name=name)

        def writing(change: str) -> Any:  # noqa: ANN401
            original = getattr(Base, change)

            def write(variable: Any, value: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
                if not table.holds(variable):
                    return original(variable, value, *args, **kwargs)
                value = tf.cast(value, variable.dtype)
                old = table.get(variable) if change != "assign" else None
                new = value if old is None else old + value if change == "assign_add" else old - value
                table.put(variable, new)
                return table.get(variable)

            return write

        changes = {name: writing(name) for name in ("assign", "assign_add", "assign_sub")}
        with mock.patch.multiple(
            Base, _read_variable_op=reading, sparse_read=gathering, gather_nd=gathering_nd, **changes
        ):
            yield


def plain(variable: Any) -> Any:  # noqa: ANN401
    """Return the variable of TensorFlow inside of one of Keras, of mixed precision, or of several replicas."""
    while True:
        if hasattr(variable, "_primary"):  # of a tf.distribute strategy
            variable = variable._primary  # noqa: SLF001
        elif type(variable).__module__.startswith("keras.") and hasattr(variable, "_value"):
            variable = variable._value  # noqa: SLF001
        elif type(variable).__name__ == "AutoCastVariable" or hasattr(variable, "_cast_dtype"):
            variable = variable._variable  # noqa: SLF001
        else:
            return variable
