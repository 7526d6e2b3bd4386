"""A graph of TensorFlow becomes a frozen one, in which a marker stands for each batch normalization."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bnpass.exporting.capture.calls import TOKEN, Calls
from bnpass.exporting.errors import ExportError
from bnpass.exporting.graphs import ends, refusals
from bnpass.exporting.graphs.collected import Collected, of_graph
from bnpass.exporting.graphs.facts import Facts
from bnpass.exporting.graphs.flat import Flat, with_constants, with_state
from bnpass.exporting.graphs.found import Found
from bnpass.exporting.graphs.mode import bind
from bnpass.exporting.graphs.proto import imported, in_one_line, node_of, pruned
from bnpass.exporting.graphs.recognize import recognized
from bnpass.exporting.graphs.replace import replaced
from bnpass.exporting.ports import Port
from bnpass.exporting.trace import Origin, Traced

Tensors = Sequence[str] | None
"""Names of tensors, or of ops of which the first result is meant; None to find them."""


def trace_graph_def(
    graph_def: Any,  # noqa: ANN401  untyped protobufs
    inputs: Tensors = None,
    outputs: Tensors = None,
    *,
    training: bool = False,
) -> Traced:
    """Trace a GraphDef without variables.

    Args:
        graph_def: It is not changed.
        inputs: Its inputs; by default the placeholders without a default.
        outputs: Its outputs; by default what depends on an input and is read by nothing.
        training: What a placeholder that says `training` is bound to. Batch normalization that has a mode of its own
            keeps it.

    Raises:
        ExportError: Something cannot be exported; node and op are named.
    """
    collected = Collected() if training else None
    return _trace(graph_def, None, inputs, outputs, collected)


def trace_graph(
    graph: Any,  # noqa: ANN401  of TensorFlow, as the session
    session: Any,  # noqa: ANN401
    inputs: Tensors = None,
    outputs: Tensors = None,
    *,
    training: bool = False,
) -> Traced:
    """Trace a live graph with the values that its variables have in a session.

    Args:
        graph: A ``tf.Graph``; it is not changed.
        session: One of this graph, with its variables initialized.
        inputs: As in ``trace_graph_def``.
        outputs: As in ``trace_graph_def``.
        training: As in ``trace_graph_def``. In training the variables are inputs, and those that a step updates are
            outputs: what is in UPDATE_OPS and what the outputs run.

    Raises:
        ExportError: Something cannot be exported; node and op are named.
    """
    collected = of_graph(graph) if training else None
    return _trace(graph.as_graph_def(), session, inputs, outputs, collected)


def _trace(
    graph_def: Any,  # noqa: ANN401
    session: Any,  # noqa: ANN401
    inputs: Tensors,
    outputs: Tensors,
    collected: Collected | None,
) -> Traced:
    copy = type(graph_def)()
    copy.CopyFrom(graph_def)
    with in_one_line("the graph cannot be read"):
        bound = bind(copy, training=collected is not None)
        read = [name for name in inputs or () if node_of(name) not in bound]
        if inputs is None:
            read = ends.find_inputs(copy)
        if outputs is None:
            outputs = ends.find_outputs(copy, read, collected.updates if collected else ())
        return trace_ends(copy, session, ends.named(read), ends.named(outputs), collected)


def trace_ends(
    graph_def: Any,  # noqa: ANN401
    session: Any,  # noqa: ANN401
    inputs: ends.Names,
    outputs: ends.Names,
    collected: Collected | None = None,
) -> Traced:
    """Trace a graph whose mode is bound and whose inputs and outputs have names.

    Args:
        graph_def: It is changed.
        session: Holds the values of its variables; None if it has none.
        inputs: Tensors by the names that they are to have.
        outputs: As inputs.
        collected: In training, what the graph says of its variables.

    Raises:
        ExportError: Something cannot be exported; node and op are named.
    """
    if not outputs:
        raise ExportError("the graph has no outputs")
    if collected is None or session is None:
        flat = with_constants(graph_def, session, inputs, outputs)
    else:
        flat = with_state(graph_def, session, inputs, outputs, collected)
    graph = imported(flat.graph_def)
    updated = tuple(one.output for one in flat.state if one.output)
    tensors = tuple(port.tensor for port in (*flat.outputs, *updated))
    facts = Facts(graph, frozenset(tensors), frozenset(one.name for one in flat.state))
    found = recognized(facts)
    _check_outside(found, facts)
    calls = Calls()
    with in_one_line("batch normalization cannot be replaced"):
        marked, names = replaced(graph, found, calls)
    moved = {tensor: names.get(tensor, tensor) for tensor in tensors}
    given = [port.tensor for port in (*flat.inputs, *(one.input for one in flat.state))]
    final = _optimized(pruned(marked, moved.values()), given, list(moved.values()))
    _check_counts(final, calls)
    notes = (*flat.notes, *_notes(flat, is_training=collected is not None))
    return Traced(
        final,
        flat.inputs,
        tuple(replace(port, tensor=moved[port.tensor]) for port in flat.outputs),
        tuple(replace(one, output=one.output and _moved(one.output, moved)) for one in flat.state),
        calls,
        Origin(flat.graph_def, tensors, notes),
    )


def _moved(port: Port, names: Mapping[str, str]) -> Port:
    return replace(port, tensor=names[port.tensor])


def _notes(flat: Flat, *, is_training: bool) -> list[str]:
    """Say what a reader of a training export would look for in vain."""
    if not is_training:
        return []
    if not flat.state:
        return ["the graph has no variables: its weights are constants, and no statistics come out"]
    if not any(one.output for one in flat.state):
        return ["the graph updates none of its variables: none of its ops is in UPDATE_OPS, and its outputs run none"]
    return []


def _optimized(graph_def: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Any:  # noqa: ANN401
    """Let TensorFlow fold constants, as tf2onnx expects it."""
    import tensorflow as tf
    from tf2onnx import tf_loader

    present = {node.name for node in graph_def.node}
    read = [name for name in inputs if node_of(name) in present]
    with tf.Graph().as_default(), in_one_line("the graph cannot be prepared for the conversion"):
        return tf_loader.tf_optimize(read, list(dict.fromkeys(outputs)), graph_def)


def _check_outside(found: Sequence[Found], facts: Facts) -> None:
    """Refuse batch normalization behind a Switch: tf2onnx would take what stands for it into another graph."""
    for norm in found:
        if facts.is_inside(norm.X):
            raise ExportError(f"batch normalization '{norm.name}' is behind a Switch, in a loop or a branch that is "
                              "not decided")  # fmt: skip


def _check_counts(graph_def: Any, calls: Calls) -> None:  # noqa: ANN401
    """Make sure that every batch normalization has its marker."""
    tokens = [node.attr["token"].s.decode() for node in graph_def.node if node.op == "PyFuncStateless"]
    if sorted(tokens) != sorted(f"{TOKEN}{i}" for i in range(len(calls.records))):
        raise ExportError(f"{len(calls.records)} batch normalizations were recognised, and {len(tokens)} are left")
    left = next((node for node in graph_def.node if node.op in refusals.FUSED), None)
    if left is not None:
        raise ExportError(f"'{left.name}' ({left.op}) was not recognised")
