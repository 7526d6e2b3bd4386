"""Variables become constants of the values that a session holds."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

from bnpass.exporting.errors import ExportError
from bnpass.exporting.graphs.proto import ancestors, by_name, in_one_line, is_control, node_of

VARIABLES = ("VarHandleOp", "VariableV2", "Variable")
_WRITES = re.compile(
    r"Assign(Add|Sub)?(VariableOp)?|Resource(Sparse)?Apply\w+|Resource(Scatter|StridedSliceAssign)\w*"
    r"|(Sparse)?Apply[A-Z]\w+|Scatter(Nd)?(Update|Add|Sub|Mul|Div|Min|Max)"
)
_READS = ("ReadVariableOp", "ResourceGather", "ResourceGatherNd")
_THROUGH = ("Identity", "Enter", "RefEnter", "Switch", "RefSwitch")


def frozen(graph_def: Any, session: Any, outputs: Sequence[str]) -> Any:  # noqa: ANN401
    """Return a graph with constants for its variables.

    Args:
        graph_def: Without calls of functions.
        session: Holds the values; None if there is none.
        outputs: The tensors that are wanted.

    Raises:
        ExportError: A variable has no value, is read after it was changed, or there is no session.
    """
    variable = next((node for node in graph_def.node if node.op in VARIABLES), None)
    if variable is None:
        return graph_def
    if session is None:
        raise ExportError(f"'{variable.name}' ({variable.op}) is a variable: freeze the graph, or give its session")
    for node in graph_def.node:
        if is_write(node):
            raise ExportError(f"'{node.name}' ({node.op}) changes a variable, and an output shows it")
    from tensorflow.python.framework import convert_to_constants
    from tensorflow.python.util import deprecation

    with in_one_line("the variables cannot be made constants"), deprecation.silence(), plain_errors():
        return convert_to_constants.convert_variables_to_constants_from_session_graph(
            session, graph_def, list(dict.fromkeys(node_of(name) for name in outputs))
        )


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Keep TensorFlow from searching its errors for names of nodes: a name in a file can make that take for ever."""
    from tensorflow.python.framework import error_interpolation

    with mock.patch.object(error_interpolation, "interpolate_graph", lambda message, _graph: message):
        yield


def is_write(node: Any) -> bool:  # noqa: ANN401
    """Whether a node changes a variable."""
    return _WRITES.fullmatch(node.op) is not None


def check_order(graph_def: Any, outputs: Sequence[str]) -> None:  # noqa: ANN401
    """Refuse variables that are read behind a change of them: the constant would be the old value.

    Args:
        graph_def: With its control inputs.
        outputs: The tensors that are wanted; what they do not depend on by value may be in any order.

    Raises:
        ExportError: The node that reads is named.
    """
    nodes = by_name(graph_def)
    writes = {node.name: handle for node in graph_def.node if is_write(node) and (handle := _handle(node, nodes))}
    if not writes:
        return
    for name in ancestors([node_of(output) for output in outputs], nodes, control=False):
        node = nodes[name]
        handle = _handle(node, nodes) if _is_read(node, nodes) else ""
        if handle in writes.values():
            before = ancestors([name], nodes, control=True)
            if any(write in before for write, changed in writes.items() if changed == handle):
                raise ExportError(f"'{name}' ({node.op}) reads variable '{handle}' after the graph has changed it")


def _is_read(node: Any, nodes: dict[str, Any]) -> bool:  # noqa: ANN401
    direct = any(nodes[node_of(r)].op in ("VariableV2", "Variable") for r in node.input if node_of(r) in nodes)
    return (node.op in _READS or direct) and not is_write(node)


def _handle(node: Any, nodes: dict[str, Any]) -> str:  # noqa: ANN401
    """Return the variable that a node reads or changes."""
    while node.op not in VARIABLES:
        data = [reference for reference in node.input if not is_control(reference)]
        if not data or node_of(data[0]) not in nodes:
            return ""
        node = nodes[node_of(data[0])]
        if node.op not in (*VARIABLES, *_THROUGH):
            return ""
    return str(node.name)
