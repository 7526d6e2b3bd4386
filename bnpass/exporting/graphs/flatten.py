"""A graph with functions and decided branches becomes one without: batch normalization then stands in one graph.

Nothing is computed on the way: constant folding would take the arithmetic that is to be recognised.
"""

from collections.abc import Sequence
from typing import Any

from bnpass.exporting.errors import ExportError
from bnpass.exporting.graphs.branches import decide
from bnpass.exporting.graphs.inline import inline_calls
from bnpass.exporting.graphs.proto import followed, is_control, pruned, rename_tensors, tensor_of

_FRAMES = ("Enter", "RefEnter", "Exit", "NextIteration", "LoopCond", "Switch", "Merge", "RefSwitch", "RefMerge")
_CONTROL_FLOW = ("If", "StatelessIf", "While", "StatelessWhile", "Case", "StatelessCase")
_DEPTH = 50


def flattened(graph_def: Any, keep: Sequence[str], besides: Sequence[str] = ()) -> Any:  # noqa: ANN401  untyped protobufs
    """Return a graph with its calls inlined and its decided branches taken.

    Args:
        graph_def: Changed in place.
        keep: The tensors that are wanted.
        besides: Nodes that are wanted too, unless they are in a branch that is not taken.

    Raises:
        ExportError: A call cannot be inlined; it is named.
    """
    _clean(graph_def)
    for _ in range(_DEPTH):
        present = {node.name for node in graph_def.node}
        graph_def = pruned(graph_def, [*keep, *(name for name in besides if name in present)])
        if decide(graph_def):
            continue
        if not inline_calls(graph_def):
            return graph_def
    raise ExportError(f"the graph calls functions deeper than {_DEPTH} levels, or one that calls itself")


def without_order(graph_def: Any) -> None:  # noqa: ANN401
    """Take away what changes no value: IdentityN, and control inputs, which loops of TensorFlow 1 alone need."""
    names = {
        f"{node.name}:{i}": tensor_of(reference)
        for node in graph_def.node
        if node.op == "IdentityN"
        for i, reference in enumerate(node.input)
        if not is_control(reference)
    }
    rename_tensors(graph_def.node, followed(names))
    if any(node.op in _FRAMES for node in graph_def.node):
        return
    for node in graph_def.node:
        node.input[:] = [reference for reference in node.input if not is_control(reference)]


def _clean(graph_def: Any) -> None:  # noqa: ANN401
    """Take away what keeps functions from being inlined, and what ties nodes to machines or to nodes that may go."""
    functions = graph_def.library.function
    for function in functions:
        for name in ("api_implements", "_XlaMustCompile", "_noinline"):
            function.attr.pop(name, None)
    for nodes in (graph_def.node, *(function.node_def for function in functions)):
        for node in nodes:
            node.device = ""
            for name in ("_class", "_XlaMustCompile", "_noinline", "_xla_compile_id"):
                node.attr.pop(name, None)
            if node.op in _CONTROL_FLOW:
                node.attr["_lower_using_switch_merge"].b = False
