"""A graph of TensorFlow becomes a frozen one, in which a marker stands for each batch normalization."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bnpass.exporting.capture.calls import TOKEN, Calls
from bnpass.exporting.errors import ExportError
from bnpass.exporting.graphs import ends, refusals
from bnpass.exporting.graphs.facts import Facts
from bnpass.exporting.graphs.flatten import flattened, without_order
from bnpass.exporting.graphs.found import Found
from bnpass.exporting.graphs.freeze import check_order, frozen
from bnpass.exporting.graphs.mode import bind
from bnpass.exporting.graphs.proto import in_one_line, node_of, pruned
from bnpass.exporting.graphs.recognize import recognized, suspected
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
    return _trace(graph_def, None, inputs, outputs, training=training)


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
        training: As in ``trace_graph_def``.

    Raises:
        ExportError: Something cannot be exported; node and op are named.
    """
    return _trace(graph.as_graph_def(), session, inputs, outputs, training=training)


def _trace(graph_def: Any, session: Any, inputs: Tensors, outputs: Tensors, *, training: bool) -> Traced:  # noqa: ANN401
    copy = type(graph_def)()
    copy.CopyFrom(graph_def)
    with in_one_line("the graph cannot be read"):
        bound = bind(copy, training=training)
        read = [name for name in inputs or () if node_of(name) not in bound]
        if inputs is None:
            read = ends.find_inputs(copy)
        if outputs is None:
            outputs = ends.find_outputs(copy, read)
        return trace_ends(copy, session, ends.named(read), ends.named(outputs))


def trace_ends(graph_def: Any, session: Any, inputs: ends.Names, outputs: ends.Names) -> Traced:  # noqa: ANN401
    """Trace a graph whose mode is bound and whose inputs and outputs have names.

    Args:
        graph_def: It is changed.
        session: Holds the values of its variables; None if it has none.
        inputs: Tensors by the names that they are to have.
        outputs: As inputs.

    Raises:
        ExportError: Something cannot be exported; node and op are named.
    """
    if not outputs:
        raise ExportError("the graph has no outputs")
    flat, given = _flat(graph_def, session, inputs, outputs)
    graph = _imported(flat)
    made = ends.ports(graph, outputs)
    facts = Facts(graph, frozenset(outputs.values()))
    found = recognized(facts)
    _check_outside(found, facts)
    calls = Calls()
    with in_one_line("batch normalization cannot be replaced"):
        marked, names = replaced(graph, found, calls)
    moved = tuple(replace(port, tensor=names.get(port.tensor, port.tensor)) for port in made)
    marked = pruned(marked, [port.tensor for port in moved])
    final = _optimized(marked, [port.tensor for port in given], [port.tensor for port in moved])
    _check_counts(final, calls)
    return Traced(final, given, moved, (), calls, Origin(flat, tuple(port.tensor for port in made)))


def _flat(graph_def: Any, session: Any, inputs: ends.Names, outputs: ends.Names) -> tuple[Any, tuple[Port, ...]]:  # noqa: ANN401
    """Return a graph without functions and variables, and its inputs."""
    given = ends.ports(_imported(pruned(graph_def, inputs.values())), inputs)
    ends.cut(graph_def, given)
    ends.take_defaults(graph_def)
    flat = flattened(graph_def, list(outputs.values()))
    check_order(flat, list(outputs.values()))
    without_order(flat)
    flat = pruned(flat, outputs.values())
    refusals.check_ops(flat)
    _check_inner(flat)
    flat = pruned(frozen(flat, session, list(outputs.values())), outputs.values())
    refusals.check_placeholders(flat, [node_of(tensor) for tensor in inputs.values()])
    return flat, given


def _imported(graph_def: Any) -> Any:  # noqa: ANN401
    """Return a graph, in which TensorFlow has worked out types and shapes."""
    import tensorflow as tf

    with tf.Graph().as_default() as graph, in_one_line("the graph is not one of TensorFlow"):
        tf.import_graph_def(graph_def, name="")
    return graph


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


def _check_inner(flat: Any) -> None:  # noqa: ANN401
    """Refuse batch normalization in a loop or a branch that is not decided: it would be lost there."""
    from tensorflow.python.framework import function_def_to_graph

    inner_graphs = list(refusals.inner_graphs(flat))
    graph = _imported(flat if inner_graphs else type(flat)())
    for node, function in inner_graphs:
        with graph.as_default(), in_one_line(f"'{node.name}' ({node.op}) cannot be looked into"):
            inner = function_def_to_graph.function_def_to_graph(function)
        name = suspected(Facts(inner, frozenset(t.name for t in inner.outputs)))
        if name is not None:
            raise ExportError(f"batch normalization '{name}' is inside of '{node.name}' ({node.op}), "
                              "a loop or a branch that is not decided")  # fmt: skip


def _check_counts(graph_def: Any, calls: Calls) -> None:  # noqa: ANN401
    """Make sure that every batch normalization has its marker."""
    tokens = [node.attr["token"].s.decode() for node in graph_def.node if node.op == "PyFuncStateless"]
    if sorted(tokens) != sorted(f"{TOKEN}{i}" for i in range(len(calls.records))):
        raise ExportError(f"{len(calls.records)} batch normalizations were recognised, and {len(tokens)} are left")
    left = next((node for node in graph_def.node if node.op in refusals.FUSED), None)
    if left is not None:
        raise ExportError(f"'{left.name}' ({left.op}) was not recognised")
