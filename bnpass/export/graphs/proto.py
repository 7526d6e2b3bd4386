"""Nodes of a GraphDef by name, and what their inputs refer to."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from bnpass.export.errors import ExportError

CALLS = ("PartitionedCall", "StatefulPartitionedCall")


def node_of(reference: str) -> str:
    """Return the node that an input or a tensor belongs to."""
    return reference.lstrip("^").split(":")[0]


def is_control(reference: str) -> bool:
    return reference.startswith("^")


def tensor_of(reference: str) -> str:
    """Return an input, or a name that a person wrote, as the name of a tensor."""
    return reference if ":" in reference else f"{reference}:0"


def by_name(graph_def: Any) -> dict[str, Any]:  # noqa: ANN401  untyped protobufs
    return {node.name: node for node in graph_def.node}


def pruned(graph_def: Any, tensors: Iterable[str]) -> Any:  # noqa: ANN401
    """Return what some tensors depend on.

    Raises:
        ExportError: One of them is not there, or a node that it needs.
    """
    import tensorflow as tf

    names = {node.name for node in graph_def.node}
    wanted = list(dict.fromkeys(node_of(t) for t in tensors))
    for name in wanted:
        if name not in names:
            raise ExportError(f"the graph has no node '{name}'")
    for node in graph_def.node:
        for reference in node.input:
            if node_of(reference) not in names:
                raise ExportError(f"'{node.name}' reads '{node_of(reference)}', which the graph does not have")
    return tf.compat.v1.graph_util.extract_sub_graph(graph_def, wanted)


def rename_tensors(nodes: Iterable[Any], names: dict[str, str]) -> None:
    """Let nodes read other tensors."""
    for node in nodes:
        for i, reference in enumerate(node.input):
            if not is_control(reference) and tensor_of(reference) in names:
                node.input[i] = names[tensor_of(reference)]


def set_identity(node: Any, source: str) -> None:  # noqa: ANN401
    """Make a node with an attribute T the Identity of a tensor."""
    dtype = node.attr["T"].type
    node.op = "Identity"
    node.input[:] = [source]
    node.attr.clear()
    node.attr["T"].type = dtype


@contextlib.contextmanager
def in_one_line(what: str) -> Iterator[None]:
    """Let what TensorFlow raises about a graph be an ExportError of one line."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError, EncodeError

    try:
        yield
    except ExportError:
        raise
    except (
        tf.errors.OpError,
        ValueError,
        TypeError,
        KeyError,
        RuntimeError,
        OSError,
        DecodeError,
        EncodeError,
    ) as error:
        lines = str(error).strip().splitlines()
        raise ExportError(f"{what}: {lines[0] if lines else type(error).__name__}") from error
