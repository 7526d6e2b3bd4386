"""A graph without functions and variables: these are constants, or in training what goes in and comes out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnpass.exporting.errors import ExportError
from bnpass.exporting.graphs import ends, refusals
from bnpass.exporting.graphs.collected import Collected
from bnpass.exporting.graphs.facts import Facts
from bnpass.exporting.graphs.flatten import flattened, without_order
from bnpass.exporting.graphs.freeze import check_order, frozen
from bnpass.exporting.graphs.proto import imported, in_one_line, node_of, pruned
from bnpass.exporting.graphs.recognize import suspected
from bnpass.exporting.graphs.state import Threaded, threaded
from bnpass.exporting.graphs.step import add_sum, step_of, writes_of_inputs
from bnpass.exporting.ports import Port, State, unique
from bnpass.exporting.trace import LOSS


@dataclass(frozen=True)
class Flat:
    """A graph that can be searched for batch normalization.

    Attributes:
        graph_def: The graph.
        inputs: Its inputs.
        outputs: Its outputs; the regularization loss is the last, where there is one.
        state: Its variables, in training.
        notes: What is left out, and why.
    """

    graph_def: Any
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    state: tuple[State, ...] = ()
    notes: tuple[str, ...] = ()


def with_constants(graph_def: Any, session: Any, inputs: ends.Names, outputs: ends.Names) -> Flat:  # noqa: ANN401
    """Make constants of the variables of a graph.

    Args:
        graph_def: It is changed.
        session: Holds the values of its variables; None if it has none.
        inputs: Tensors by the names that they are to have.
        outputs: As inputs.

    Raises:
        ExportError: Something cannot be exported; node and op are named.
    """
    given, wanted = _cut(graph_def, inputs), list(outputs.values())
    flat = flattened(graph_def, wanted)
    check_order(flat, wanted)
    flat = _checked(flat, wanted)
    flat = pruned(frozen(flat, session, wanted), wanted)
    refusals.check_placeholders(flat, [node_of(tensor) for tensor in inputs.values()])
    return Flat(flat, given, ends.ports(imported(flat), outputs))


def with_state(graph_def: Any, session: Any, inputs: ends.Names, outputs: ends.Names, collected: Collected) -> Flat:  # noqa: ANN401
    """Make inputs of the variables of a graph, and outputs of what a step writes to them; as ``with_constants``.

    Raises:
        ExportError: Something cannot be exported; node and op are named.
    """
    given, shown = _cut(graph_def, inputs), dict(outputs)
    writes = writes_of_inputs(graph_def, list(inputs.values()))
    besides = [*collected.updates, *map(node_of, collected.losses), *writes]
    flat = flattened(graph_def, list(outputs.values()), besides)
    step = step_of(flat, list(inputs.values()), list(outputs.values()), collected, writes)
    if step.losses:
        shown[unique([*shown, LOSS])[-1]] = add_sum(flat, step.losses, LOSS)
    wanted = list(shown.values())
    flat = pruned(flat, [*wanted, *step.updates])
    threads = threaded(flat, session, wanted, step.updates)
    flat = _checked(flat, [*wanted, *threads.updated.values()])
    variables = list(threads.defaults)
    refusals.check_placeholders(flat, [*map(node_of, inputs.values()), *variables])
    graph = imported(flat)
    state = _state(graph, threads, collected.trainable)
    notes = [f"several ops change variable '{name}' in no order: here they do so one after the other, as they stand in "
             "UPDATE_OPS" for name in threads.unordered]  # fmt: skip
    if collected.trainable is None and state:
        notes.append("the file does not say which variables are trainable: those of floats are that no step updates")
    return Flat(flat, given, ends.ports(graph, shown), state, (*step.notes, *notes))


def _cut(graph_def: Any, inputs: ends.Names) -> tuple[Port, ...]:  # noqa: ANN401
    """Let a graph begin at its inputs; return these."""
    given = ends.ports(imported(pruned(graph_def, inputs.values())), inputs)
    ends.cut(graph_def, given)
    ends.take_defaults(graph_def)
    return given


def _checked(graph_def: Any, wanted: Sequence[str]) -> Any:  # noqa: ANN401
    """Return a graph without what changes no value, if there is nothing in it that cannot be exported."""
    without_order(graph_def)
    flat = pruned(graph_def, wanted)
    refusals.check_ops(flat)
    _check_inner(flat)
    return flat


def _check_inner(flat: Any) -> None:  # noqa: ANN401
    """Refuse batch normalization in a loop or a branch that is not decided: it would be lost there."""
    from tensorflow.python.framework import function_def_to_graph

    inner_graphs = list(refusals.inner_graphs(flat))
    graph = imported(flat if inner_graphs else type(flat)())
    for node, function in inner_graphs:
        with graph.as_default(), in_one_line(f"'{node.name}' ({node.op}) cannot be looked into"):
            inner = function_def_to_graph.function_def_to_graph(function)
        name = suspected(Facts(inner, frozenset(t.name for t in inner.outputs)))
        if name is not None:
            raise ExportError(f"batch normalization '{name}' is inside of '{node.name}' ({node.op}), "
                              "a loop or a branch that is not decided")  # fmt: skip


def _state(graph: Any, threads: Threaded, trainable: frozenset[str] | None) -> tuple[State, ...]:  # noqa: ANN401
    """Return the variables that a graph still reads or writes.

    Where it is not said which are trainable, those are that hold floats and are not written.
    """
    read = {op.name for op in graph.get_operations()}
    found = []
    for name, default in threads.defaults.items():
        new = threads.updated.get(name)
        if name not in read and new is None:
            continue
        output = ends.ports(graph, {f"{name}/updated": new})[0] if new else None
        kind = np.dtype(default.dtype)
        by_gradient = name in trainable if trainable is not None else kind.kind not in "biu" and new is None
        port = Port(name, f"{name}:0", default.shape, kind.name)
        found.append(State(name, port, output, by_gradient, default))
    return tuple(found)
