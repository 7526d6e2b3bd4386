"""A live model of Keras becomes a frozen graph of TensorFlow, in which a marker stands for each batch normalization.

In inference the weights are constants. In training they are inputs, and what a step changes are outputs.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnpass.errors import BnpassError
from bnpass.exporting.capture.calls import Calls
from bnpass.exporting.capture.initializers import initializers
from bnpass.exporting.capture.interception import intercepted, norm_layers
from bnpass.exporting.capture.state import StateTable, plain
from bnpass.exporting.errors import ExportError, first_line
from bnpass.exporting.packages import package_of
from bnpass.exporting.ports import Port, State, unique
from bnpass.exporting.random_ops import generators, keyless
from bnpass.exporting.signature import InputSignature, signature_of

LOSS = "regularization_loss"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
"""What Keras puts around its messages for terminals."""


@dataclass(frozen=True)
class Origin:
    """A graph as it was before batch normalization was recognised in it.

    Attributes:
        graph_def: Without variables; it is run to compare the export with it.
        outputs: Its tensors, in the order of the outputs of the exported model: updated variables come last.
        notes: What is not in the export, and why.
    """

    graph_def: Any
    outputs: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Traced:
    """A frozen graph.

    Attributes:
        graph_def: With markers, without variables.
        inputs: Of the model.
        outputs: Of the model; in training the regularization loss is the last, where there is one.
        state: Its variables, in training; those that the graph reads.
        calls: What the markers stand for.
        origin: What it was, if it is no model of Keras.
    """

    graph_def: Any
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    state: tuple[State, ...]
    calls: Calls
    origin: Origin | None = None


def trace(model: Any, *, training: bool, signature: InputSignature | None = None) -> Traced:  # noqa: ANN401
    """Trace a model of Keras 3 or tf_keras.

    Raises:
        UsageError: The shapes of the inputs are not known.
        ExportError: Batch normalization cannot be intercepted, or the model does not trace.
    """
    import tensorflow as tf

    called = signature_of(model, signature)
    named = named_variables(model) if training else {}
    names, variables = list(named), list(named.values())
    calls, found = Calls(), _Found()
    autograph = tf.__internal__.autograph  # `if tensor:` in layers of tf_keras, which this makes graphs of
    convert, control = autograph.tf_convert, autograph.control_status_ctx

    def run(inputs: Sequence[Any], values: Sequence[Any]) -> Sequence[Any]:
        calls.records.clear()
        state = StateTable(variables, values) if training else None
        with intercepted(calls, state), state.in_force() if state else contextlib.nullcontext():
            outputs = convert(lambda packed: model(packed, training=training), control())(called.pack(inputs))
            loss = regularization_loss(model) if training else None
        found.has_loss = loss is not None
        found.names = _output_names(model, outputs)
        updates = {i: state.updated(v) for i, v in enumerate(variables)} if state else {}
        found.updated = [i for i, new in updates.items() if new is not None]
        losses = [] if loss is None else [loss]
        tensors = [*tf.nest.flatten(outputs), *losses, *(updates[i] for i in found.updated)]
        _check_dense(tensors)
        return [tf.identity(tensor) for tensor in tensors]

    specs = [tf.TensorSpec(plain(v).shape, plain(v).dtype) for v in variables]
    with _one_line(model, calls), generators():
        concrete = tf.function(run, autograph=False).get_concrete_function(list(called.specs), specs)
    _check_intercepted(model, calls)
    given, made = concrete.inputs[: len(called.specs) + len(specs)], concrete.outputs
    graph_def, kept = frozen(concrete, given, made)
    shown = found.names + [LOSS] * found.has_loss
    inputs = [_port(name, tensor) for name, tensor in zip(called.names, given, strict=False)]
    outputs = [_port(name, tensor) for name, tensor in zip(unique([*shown]), made, strict=False)]
    changed = dict(zip(found.updated, made[len(shown) :], strict=True))
    known = initializers(model) if training else {}
    state = [
        _state(name, variable, tensor, changed.get(i), known.get(id(plain(variable))))
        for i, (name, variable, tensor) in enumerate(zip(names, variables, given[len(inputs) :], strict=True))
        if tensor.name in kept or i in changed
    ]
    return Traced(graph_def, tuple(inputs), tuple(outputs), tuple(state), calls)


@contextlib.contextmanager
def _one_line(model: Any, calls: Calls) -> Iterator[None]:  # noqa: ANN401
    """Make one line of what a model raises when it is called; what is refused inside of it stays as it is."""
    try:
        yield
    except BnpassError as error:
        raise calls.refusal or error from error
    except Exception as error:
        if calls.refusal is not None:
            raise calls.refusal from error
        why = _COLOUR.sub("", first_line(error, but=("Exception encountered", "in user code", "File")))
        raise ExportError(f"'{model.name}' cannot be called as it is exported: {why}") from error


def regularization_loss(model: Any) -> Any:  # noqa: ANN401
    """Return the sum of the losses that a model has after its call, a number of float32; None if it has none.

    Raises:
        ExportError: A loss of tf_keras is no number; Keras 3 sums up such a one itself.
    """
    import tensorflow as tf

    losses = list(model.losses)
    for loss in losses:
        if loss.shape.rank != 0 and package_of(model) == "tf_keras":
            raise ExportError(f"a regularization loss of '{model.name}' is no number but has the shape {loss.shape}")
    return tf.add_n([tf.reduce_sum(tf.cast(loss, "float32")) for loss in losses]) if losses else None


@dataclass
class _Found:
    """What the trace itself finds out."""

    names: list[str] = field(default_factory=list)
    has_loss: bool = False
    updated: list[int] = field(default_factory=list)


def named_variables(model: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the variables of a model, each once, by the names that an export has for them."""
    variables = {id(plain(v)): v for v in model.variables}.values()
    return dict(zip(unique([_variable_name(v) for v in variables]), variables, strict=True))


def _variable_name(variable: Any) -> str:  # noqa: ANN401
    return str(getattr(variable, "path", None) or variable.name).split(":")[0]


def _output_names(model: Any, outputs: Any) -> list[str]:  # noqa: ANN401
    import tensorflow as tf

    flat = tf.nest.flatten(outputs)
    if isinstance(outputs, dict) and len(outputs) == len(flat):
        return [str(key) for key in sorted(outputs)]
    known = list(getattr(model, "output_names", None) or [])
    if len(known) == len(flat):
        return unique([str(name) for name in known])
    return [f"output_{i}" for i in range(len(flat))] if len(flat) > 1 else ["output"]


def _check_dense(tensors: Sequence[Any]) -> None:
    import tensorflow as tf

    for tensor in tensors:
        if not tf.is_tensor(tensor) or isinstance(tensor, tf.RaggedTensor | tf.SparseTensor):
            raise ExportError(f"an output is no dense tensor: {type(tensor).__name__}")


def _check_intercepted(model: Any, calls: Calls) -> None:  # noqa: ANN401
    missed = [layer.name for layer in norm_layers(model) if id(layer) not in calls.layers]
    if missed:
        raise ExportError(f"batch normalization '{missed[0]}' was not seen in the call of the model: it is not called, "
                          "or it was loaded without its layers")  # fmt: skip


def frozen(concrete: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> tuple[Any, set[str]]:  # noqa: ANN401
    """Freeze a function; return its graph, and the names of the inputs that it still reads."""
    from tf2onnx import tf_loader

    names = [t.name for t in outputs]
    graph_def = keyless(tf_loader.from_function(concrete, [t.name for t in inputs], names), names)
    read = {name.lstrip("^").split(":")[0] for node in graph_def.node for name in node.input}
    return graph_def, {t.name for t in inputs if t.name.split(":")[0] in read}


def _port(name: str, tensor: Any) -> Port:  # noqa: ANN401
    shape = None if tensor.shape.rank is None else tuple(tensor.shape.as_list())
    return Port(name, tensor.name, shape, tensor.dtype.name)


def _state(name: str, variable: Any, tensor: Any, new: Any, initializer: Mapping[str, Any] | None) -> State:  # noqa: ANN401
    """Return a variable as inputs and outputs of the exported model."""
    output = None if new is None else _port(f"{name}/updated", new)
    default = np.asarray(plain(variable).numpy())
    return State(name, _port(name, tensor), output, bool(variable.trainable), default, initializer)
