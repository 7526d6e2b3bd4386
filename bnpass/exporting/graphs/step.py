"""What a step of training runs besides its outputs: updates and losses. What of it cannot be exported is said."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bnpass.exporting.errors import ExportError
from bnpass.exporting.graphs.collected import Collected
from bnpass.exporting.graphs.proto import ancestors, behind, by_name, free_name, imported, node_of, pruned
from bnpass.exporting.graphs.state import ASSIGNS

_LISTED = 3
"""Names in a note; there may be hundreds."""


@dataclass(frozen=True)
class Step:
    """A step of training, of a flat graph.

    Attributes:
        updates: Nodes that are run besides the outputs.
        losses: Tensors whose sum is the regularization loss.
        notes: What is left out, and why.
    """

    updates: tuple[str, ...]
    losses: tuple[str, ...]
    notes: tuple[str, ...]


def writes_of_inputs(graph_def: Any, inputs: Sequence[str]) -> list[str]:  # noqa: ANN401  untyped protobufs
    """Return the nodes that write to variables what they make of inputs."""
    after = behind(graph_def, [node_of(tensor) for tensor in inputs], control=False)
    return [node.name for node in graph_def.node if node.op in ASSIGNS and node.name in after]


def step_of(
    graph_def: Any,  # noqa: ANN401
    inputs: Sequence[str],
    outputs: Sequence[str],
    collected: Collected,
    writes: Sequence[str],
) -> Step:
    """Choose what a step runs.

    Args:
        graph_def: Without calls of functions and decided branches.
        inputs: Tensors.
        outputs: Tensors.
        collected: What the graph says.
        writes: Nodes that write what they make of inputs; what of them is not run, is said.
    """
    nodes, notes = by_name(graph_def), []
    given = {node_of(tensor) for tensor in inputs}
    others = {node.name for node in graph_def.node if node.op.startswith("Placeholder")} - given

    unfed = behind(graph_def, others, control=True)

    def is_fed(name: str, what: str) -> bool:
        if name in unfed:
            missing = min(others & ancestors([name], nodes, control=True))
            notes.append(f"{what} '{name}' depends on '{missing}', which is not among the inputs: it is left out")
        return name not in unfed

    updates = tuple(name for name in collected.updates if name in nodes and is_fed(name, "update"))
    losses = tuple(tensor for tensor in collected.losses if node_of(tensor) in nodes)
    if not all(is_fed(node_of(tensor), "regularization loss") for tensor in losses):
        losses = ()
    run = ancestors([*map(node_of, (*outputs, *losses)), *updates], nodes, control=True)
    left = [name for name in writes if name in nodes and name not in run and name not in collected.updates]
    notes += _left_out(left, "changes a variable, but is neither in UPDATE_OPS nor run by an output: it is left out")
    notes += _left_out(collected.elsewhere, "is in UPDATE_OPS, but inside of a branch, where nothing can run it")
    return Step(updates, losses, tuple(notes))


def _left_out(names: Sequence[str], why: str) -> list[str]:
    notes = [f"'{name}' {why}" for name in names[:_LISTED]]
    return notes + [f"and so are {len(names) - _LISTED} more"] * (len(names) > _LISTED)


def add_sum(graph_def: Any, losses: Sequence[str], name: str) -> str:  # noqa: ANN401
    """Add the sum of losses to a graph, a number of float32; return its tensor.

    Raises:
        ExportError: A loss is no number.
    """
    import tensorflow as tf

    graph = imported(pruned(graph_def, losses))
    terms = []
    for loss in (graph.get_tensor_by_name(tensor) for tensor in losses):
        if loss.shape.rank != 0 or not loss.dtype.is_floating:
            raise ExportError(f"regularization loss '{loss.name}' is no number but has the shape {loss.shape}")
        cast = graph_def.node.add(name=free_name(graph_def, f"{name}/term"), op="Cast", input=[loss.name])
        cast.attr["SrcT"].type, cast.attr["DstT"].type = loss.dtype.as_datatype_enum, tf.float32.as_datatype_enum
        terms.append(f"{cast.name}:0")
    total = graph_def.node.add(name=free_name(graph_def, name), op="AddN", input=terms)
    total.attr["N"].i, total.attr["T"].type = len(terms), tf.float32.as_datatype_enum
    return f"{total.name}:0"
