"""Nodes of a GraphDef by name, and what their inputs refer to."""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from bnpass.exporting.errors import ExportError, first_line


def node_of(reference: str) -> str:
    """Return the node that an input or a tensor belongs to."""
    return reference.lstrip("^").split(":")[0]


def is_control(reference: str) -> bool:
    """Whether an input only orders nodes."""
    return reference.startswith("^")


def tensor_of(reference: str) -> str:
    """Return an input, or a name that a person wrote, as the name of a tensor."""
    return reference if ":" in reference else f"{reference}:0"


def by_name(graph_def: Any) -> dict[str, Any]:  # noqa: ANN401  untyped protobufs
    """Return the nodes of a graph."""
    return {node.name: node for node in graph_def.node}


def attribute(node: Any, name: str) -> Any:  # noqa: ANN401
    """Return an attribute, empty where there is none; to look it up in the node itself would write it there."""
    return node.attr[name] if name in node.attr else attr_value()


def attr_value() -> Any:  # noqa: ANN401
    """Return an attribute without a value."""
    from tensorflow.core.framework import attr_value_pb2

    return attr_value_pb2.AttrValue()


def pruned(graph_def: Any, tensors: Iterable[str]) -> Any:  # noqa: ANN401
    """Return what some tensors depend on.

    Raises:
        ExportError: One of them is not there, or a node that it needs.
    """
    nodes = by_name(graph_def)
    if len(nodes) != len(graph_def.node):
        twice = Counter(node.name for node in graph_def.node).most_common(1)[0][0]
        raise ExportError(f"the graph has two nodes '{twice}'")
    waiting = list(dict.fromkeys(node_of(t) for t in tensors))
    for name in waiting:
        if name not in nodes:
            raise ExportError(f"the graph has no node '{name}'")
    kept = set(waiting)
    while waiting:
        reader = waiting.pop()
        for name in (node_of(reference) for reference in nodes[reader].input):
            if name not in nodes:
                raise ExportError(f"'{reader}' reads '{name}', which the graph does not have")
            if name not in kept:
                kept.add(name)
                waiting.append(name)
    found = type(graph_def)()
    found.versions.CopyFrom(graph_def.versions)
    found.library.CopyFrom(graph_def.library)
    found.node.extend(node for node in graph_def.node if node.name in kept)
    return found


def ancestors(
    names: Iterable[str], nodes: Mapping[str, Any], *, control: bool, up_to: Collection[str] = ()
) -> set[str]:
    """Return nodes and those that they depend on, by value or also by order, and not what some of these depend on."""
    seen = set(names)
    waiting = [name for name in seen if name not in up_to]
    while waiting:
        for reference in nodes[waiting.pop()].input:
            found = node_of(reference)
            if found not in seen and (control or not is_control(reference)):
                seen.add(found)
                if found not in up_to:
                    waiting.append(found)
    return seen


def behind(graph_def: Any, names: Iterable[str], *, control: bool) -> set[str]:  # noqa: ANN401
    """Return nodes and those that depend on them, by value or also by order."""
    readers: dict[str, list[str]] = defaultdict(list)
    for node in graph_def.node:
        for reference in node.input:
            if control or not is_control(reference):
                readers[node_of(reference)].append(node.name)
    seen = set(names)
    waiting = list(seen)
    while waiting:
        for reader in readers[waiting.pop()]:
            if reader not in seen:
                seen.add(reader)
                waiting.append(reader)
    return seen


def rename_tensors(nodes: Iterable[Any], names: dict[str, str]) -> None:
    """Let nodes read other tensors."""
    for node in nodes:
        for i, reference in enumerate(node.input):
            if not is_control(reference) and tensor_of(reference) in names:
                node.input[i] = names[tensor_of(reference)]


def followed(names: dict[str, str]) -> dict[str, str]:
    """Return names of tensors that lead to their ends: none of them is a name again."""
    found = {}
    for name, target in names.items():
        seen = {name}
        while target in names and target not in seen:
            seen.add(target)
            target = names[target]
        found[name] = target
    return found


def set_identity(node: Any, source: str) -> None:  # noqa: ANN401
    """Make a node with an attribute T the Identity of a tensor; it stays behind what it comes after."""
    dtype = attribute(node, "T").type
    node.op = "Identity"
    node.input[:] = [source, *(reference for reference in node.input if is_control(reference))]
    node.attr.clear()
    node.attr["T"].type = dtype


def free_name(graph_def: Any, name: str) -> str:  # noqa: ANN401
    """Return a name that no node has, as close to another one as can be."""
    taken = {node.name for node in graph_def.node}
    while name in taken:
        name += "_"
    return name


def add_integer(graph_def: Any, name: str, value: int) -> str:  # noqa: ANN401
    """Add a constant of int32 to a graph; return its tensor."""
    from tensorflow.core.framework import types_pb2
    from tensorflow.python.framework import tensor_util

    constant = graph_def.node.add(name=name, op="Const")
    constant.attr["dtype"].type = types_pb2.DT_INT32
    constant.attr["value"].tensor.CopyFrom(tensor_util.make_tensor_proto(value, dtype="int32", shape=[]))
    return f"{name}:0"


def imported(graph_def: Any) -> Any:  # noqa: ANN401
    """Return a graph, in which TensorFlow has worked out types and shapes."""
    import tensorflow as tf

    with tf.Graph().as_default() as graph, in_one_line("the graph is not one of TensorFlow"):
        tf.import_graph_def(graph_def, name="")
    return graph


@contextlib.contextmanager
def in_one_line(what: str) -> Iterator[None]:
    """Let what TensorFlow raises about a graph be an ExportError of one line."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]

    kinds = (tf.errors.OpError, ValueError, TypeError, LookupError, RuntimeError, OSError, DecodeError, EncodeError)
    try:
        yield
    except ExportError as error:
        if str(error).isprintable():
            raise
        raise ExportError(_printable(str(error))) from error
    except kinds as error:
        raise ExportError(_printable(f"{what}: {first_line(error)}")) from error


def _printable(text: str) -> str:
    """Return a text with escapes for what a name in a file may hold to break or colour a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
