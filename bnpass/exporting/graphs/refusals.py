"""What no export can hold, found before anything of it could be run or lost without a word."""

import re
from collections.abc import Collection, Iterator
from typing import Any

from bnpass.exporting.errors import ExportError

_PYTHON = ("PyFunc", "PyFuncStateless", "EagerPyFunc")
_FILES = re.compile(
    r"ReadFile|WriteFile|MatchingFiles|Restore(V2|Slice)?|Save(V2|Slices)?|MergeV2Checkpoints"
    r"|\w*Reader(V2)?|\w*Dataset(V\d)?|InitializeTableFromTextFile(V2)?|DebugIdentity\w*|Print(V2)?"
)
FUSED = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
_LOOPS_AND_BRANCHES = ("If", "StatelessIf", "Case", "StatelessCase", "While", "StatelessWhile")


def check_ops(graph_def: Any) -> None:  # noqa: ANN401  untyped protobufs
    """Refuse ops that call Python, or read or write files: folding constants would run them.

    Raises:
        ExportError: The node is named.
    """
    for node in _all_nodes(graph_def):
        if node.op in _PYTHON:
            raise ExportError(f"'{node.name}' ({node.op}) calls Python (tf.py_function), which ONNX cannot")
        if _FILES.fullmatch(node.op):
            raise ExportError(f"'{node.name}' ({node.op}) reads or writes files, which a model in ONNX does not")


def inner_graphs(graph_def: Any) -> Iterator[tuple[Any, Any]]:  # noqa: ANN401
    """Return the nodes that hold graphs of their own, loops and branches, each with its functions."""
    functions = {function.signature.name: function for function in graph_def.library.function}
    for node in graph_def.node:
        if node.op in _LOOPS_AND_BRANCHES:
            for function in _functions_of(node, functions, set()):
                yield node, function


def _functions_of(node: Any, functions: dict[str, Any], seen: set[str]) -> Iterator[Any]:  # noqa: ANN401
    for value in node.attr.values():
        for name in (value.func.name, *(func.name for func in value.list.func)):
            if name in functions and name not in seen:
                seen.add(name)
                yield functions[name]
                for inner in functions[name].node_def:
                    yield from _functions_of(inner, functions, seen)


def _all_nodes(graph_def: Any) -> Iterator[Any]:  # noqa: ANN401
    yield from graph_def.node
    for _, function in inner_graphs(graph_def):
        yield from function.node_def


def check_placeholders(graph_def: Any, inputs: Collection[str]) -> None:  # noqa: ANN401
    """Refuse placeholders that are no inputs.

    Raises:
        ExportError: The node is named.
    """
    for node in graph_def.node:
        if node.op.startswith("Placeholder") and node.name not in inputs:
            raise ExportError(f"the outputs depend on '{node.name}' ({node.op}), which is not among the inputs")
