"""Variables become constants of the values that a session holds."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from bnpass.export.errors import ExportError
from bnpass.export.graphs.proto import by_name, in_one_line, is_control, node_of

VARIABLES = ("VarHandleOp", "VariableV2", "Variable")
_WRITES = re.compile(
    r"Assign(Add|Sub)?(VariableOp)?|Resource(Sparse)?Apply\w+|Resource(Scatter|StridedSliceAssign)\w*"
    r"|(Sparse)?Apply[A-Z]\w+|Scatter(Nd)?(Update|Add|Sub|Mul|Div|Min|Max)"
)
_READS = ("ReadVariableOp", "ResourceGather", "ResourceGatherNd")
_THROUGH = ("Identity", "Enter", "RefEnter", "Switch", "RefSwitch")


def has_variables(graph_def: Any) -> bool:  # noqa: ANN401  untyped protobufs
    return any(node.op in VARIABLES for node in graph_def.node)


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

    with in_one_line("the variables cannot be made constants"):
        return convert_to_constants.convert_variables_to_constants_from_session_graph(
            session, graph_def, list(dict.fromkeys(node_of(name) for name in outputs))
        )


def is_write(node: Any) -> bool:  # noqa: ANN401
    """Whether a node changes a variable."""
    return _WRITES.fullmatch(node.op) is not None


def check_order(graph_def: Any) -> None:  # noqa: ANN401
    """Refuse variables that are read behind a change of them: the constant would be the old value.

    Raises:
        ExportError: The node that reads is named.
    """
    nodes = by_name(graph_def)
    writes = {node.name: handle for node in graph_def.node if is_write(node) and (handle := _handle(node, nodes))}
    if not writes:
        return
    for node in graph_def.node:
        handle = _handle(node, nodes) if _is_read(node, nodes) else ""
        if handle in writes.values():
            before = _ancestors(node.name, nodes)
            if any(name in before for name, changed in writes.items() if changed == handle):
                raise ExportError(f"'{node.name}' ({node.op}) reads variable '{handle}' after the graph has changed it")


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


def _ancestors(name: str, nodes: dict[str, Any]) -> set[str]:
    seen, waiting = {name}, [name]
    while waiting:
        for found in _inputs(nodes[waiting.pop()]):
            if found not in seen and found in nodes:
                seen.add(found)
                waiting.append(found)
    return seen


def _inputs(node: Any) -> Iterator[str]:  # noqa: ANN401
    return (node_of(reference) for reference in node.input)
