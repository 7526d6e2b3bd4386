"""The inputs and outputs of a graph: as they are named, or as they are found.

Found are the placeholders without a default, and the tensors that depend on them and that nothing reads.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bnpass.exporting.errors import ExportError
from bnpass.exporting.graphs.freeze import VARIABLES, is_write
from bnpass.exporting.graphs.proto import attribute, behind, by_name, is_control, node_of, set_identity, tensor_of
from bnpass.exporting.ports import Port, unique

_PLACEHOLDERS = ("Placeholder", "PlaceholderV2")
_NO_RESULTS = ("NoOp", "Assert", "Const", "IsVariableInitialized", "VarIsInitializedOp")

Names = Mapping[str, str]
"""Tensors by the names that they have in the exported model."""


def named(tensors: Sequence[str]) -> dict[str, str]:
    """Return tensors by names: those of their ops, numbered where they are several of one op.

    Raises:
        ExportError: A tensor is named twice, or by what cannot be a tensor.
    """
    full = [tensor_of(t) for t in tensors]
    for tensor in full:
        node, _, index = tensor.partition(":")
        if not node or tensor.startswith("^") or not index.isdecimal():
            raise ExportError(f"'{tensor}' is not the name of a tensor")
        if full.count(tensor) > 1:
            raise ExportError(f"'{tensor}' is named twice")
    names = [t.removesuffix(":0").replace(":", "_") for t in full]
    return dict(zip(unique(names), full, strict=True))


def find_inputs(graph_def: Any) -> list[str]:  # noqa: ANN401  untyped protobufs
    """Return the placeholders without a default."""
    return [f"{node.name}:0" for node in graph_def.node if node.op in _PLACEHOLDERS]


def find_outputs(graph_def: Any, inputs: Sequence[str], but: Sequence[str] = ()) -> list[str]:  # noqa: ANN401
    """Return the tensors that depend on an input and that nothing reads; of a FusedBatchNorm its first.

    Args:
        graph_def: The graph.
        inputs: Tensors.
        but: Nodes that are no outputs.

    Raises:
        ExportError: There is none.
    """
    given = {node_of(name) for name in inputs}
    after = behind(graph_def, given, control=False) - given - set(but)
    read = {tensor_of(r) for n in graph_def.node for r in n.input if not is_control(r)}
    nodes_read = {node_of(tensor) for tensor in read}
    found = []
    for node in graph_def.node:
        ends = node.name in after and node.name not in nodes_read and node.op not in (*_NO_RESULTS, *VARIABLES)
        if ends and not is_write(node) and not node.op.endswith(("Summary", "SummaryV2")):
            count = 1 if node.op.startswith("FusedBatchNorm") else _width(node)
            found += [f"{node.name}:{i}" for i in range(count)]
    if not found:
        raise ExportError("the graph has no output that depends on an input: name its outputs")
    return found


def _width(node: Any) -> int:  # noqa: ANN401
    """Return the number of outputs of a node; 0 of one whose op is not known."""
    from tensorflow.python.framework import op_def_registry

    op = op_def_registry.get(node.op)
    count = 0
    for output in op.output_arg if op is not None else ():
        lengths = attribute(node, output.type_list_attr).list.type if output.type_list_attr else None
        count += (
            len(lengths) if lengths is not None else attribute(node, output.number_attr).i if output.number_attr else 1
        )
    return count


def cut(graph_def: Any, inputs: Sequence[Port]) -> None:  # noqa: ANN401
    """Make placeholders of the inputs that are none; the graph is changed in place.

    Raises:
        ExportError: An input is one of several results of an op.
    """
    import tensorflow as tf

    nodes = by_name(graph_def)
    for port in inputs:
        node = nodes[node_of(port.tensor)]
        if node.op in _PLACEHOLDERS:
            continue
        if _width(node) != 1:
            raise ExportError(f"'{port.tensor}' ({node.op}) is one of several results, and cannot be an input")
        node.op = "Placeholder"
        del node.input[:]
        node.attr.clear()
        node.attr["dtype"].type = tf.as_dtype(port.dtype).as_datatype_enum
        node.attr["shape"].shape.CopyFrom(tf.TensorShape(port.shape).as_proto())


def take_defaults(graph_def: Any) -> None:  # noqa: ANN401
    """Let placeholders that are no inputs be their defaults; the graph is changed in place."""
    for node in graph_def.node:
        if node.op == "PlaceholderWithDefault":
            node.attr["T"].type = attribute(node, "dtype").type
            set_identity(node, node.input[0])


def ports(graph: Any, tensors: Names) -> tuple[Port, ...]:  # noqa: ANN401
    """Return the ends of a graph as it is described to the caller.

    Raises:
        ExportError: A tensor is not there, or is of a type that ONNX lacks.
    """
    return tuple(_port(name, _tensor(graph, tensor)) for name, tensor in tensors.items())


def _tensor(graph: Any, name: str) -> Any:  # noqa: ANN401
    try:
        return graph.get_tensor_by_name(name)
    except (KeyError, ValueError) as error:
        raise ExportError(f"the graph has no tensor '{name}'") from error


def _port(name: str, tensor: Any) -> Port:  # noqa: ANN401
    if not (tensor.dtype.is_floating or tensor.dtype.is_integer or tensor.dtype.is_bool) or tensor.dtype.is_quantized:
        raise ExportError(f"'{tensor.name}' is of type {tensor.dtype.name}, which is not exported")
    shape = None if tensor.shape.rank is None else tuple(tensor.shape.as_list())
    return Port(name, tensor.name, shape, tensor.dtype.name)
