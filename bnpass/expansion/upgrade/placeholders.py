"""Placeholders: nodes of a foreign domain that stand for what the version converter must not see."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from bnpass.graph.nodes import label
from bnpass.ops import DOMAIN

PLACEHOLDER = f"{DOMAIN}.placeholder"
"""The domain of placeholders, version 1."""
_SMALL_BYTES = 1024
_PLAIN = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL})


@dataclass(frozen=True)
class _Initializer:
    tensor: ir.TensorProtocol
    metadata: dict[str, str]


class Placeholders:
    """What was taken out of a model, by number."""

    def __init__(self) -> None:
        self._kept: list[_Initializer | ir.Attr | None] = []
        self._defaults: dict[str, ir.TensorProtocol] = {}

    def put_node(self, node: ir.Node) -> int:
        """Put a placeholder with the same inputs and outputs where a node stands; return its number."""
        swap(node, self._placeholder(None, node.inputs, node.outputs, name=node.name))
        return len(self._kept) - 1

    def put_tensors(self, graph: ir.Graph) -> None:
        """Put placeholders where a graph has tensors that are large or lie in files: initializers and Constants."""
        for value in list(graph.initializers.values()):
            if value.const_value is not None and not _is_small(value.const_value):
                self._put_initializer(graph, value, value.const_value)
        for node in list(graph):
            attribute = node.attributes.get("value")
            if node.domain == "" and node.op_type == "Constant" and attribute is not None and not attribute.is_ref():
                self._put_constant(node, attribute)

    def take_back(self, graphs: Sequence[ir.Graph]) -> dict[int, ir.Node]:
        """Put the tensors back; return the placeholders that stand for nodes, by number.

        Args:
            graphs: The main graph and all its subgraphs.

        Raises:
            LookupError: A placeholder is gone.
        """
        found = {n.attributes.get_int("number", -1): n for graph in graphs for n in graph if n.domain == PLACEHOLDER}
        if len(found) != len(self._kept):
            raise LookupError(f"{len(self._kept) - len(found)} nodes are gone")
        for number, node in found.items():
            kept = self._kept[number]
            if kept is not None and node.graph is not None:
                _restore(node.graph, node, kept)
        for value in graphs[0].inputs:
            if value.name in self._defaults:
                value.const_value = self._defaults[value.name]
                graphs[0].register_initializer(value)
        return {number: node for number, node in found.items() if self._kept[number] is None}

    def _put_initializer(self, graph: ir.Graph, value: ir.Value, tensor: ir.TensorProtocol) -> None:
        name = str(value.name)
        if value.is_graph_input():
            self._defaults[name] = tensor
        else:
            node = self._placeholder(_Initializer(tensor, dict(value.metadata_props)), [], [value])
            node.outputs[0].dtype, node.outputs[0].shape = tensor.dtype, ir.Shape(tensor.shape.numpy())
            value.replace_all_uses_with(node.outputs[0], replace_graph_outputs=True)
            _prepend(graph, node)
        graph.initializers.pop(name)

    def _put_constant(self, node: ir.Node, attribute: ir.Attr) -> None:
        tensor = attribute.as_tensor()
        if _is_small(tensor):
            return
        node.outputs[0].dtype, node.outputs[0].shape = tensor.dtype, ir.Shape(tensor.shape.numpy())
        swap(node, self._placeholder(attribute, [], node.outputs, name=node.name))

    def _placeholder(
        self,
        kept: _Initializer | ir.Attr | None,
        inputs: Iterable[ir.Value | None],
        outputs: Sequence[ir.Value],
        name: str | None = None,
    ) -> ir.Node:
        number = len(self._kept)
        self._kept.append(kept)
        new = [ir.Value() for _ in outputs]
        for old, value in zip(outputs, new, strict=True):
            _copy_facts(old, value)
        attribute = ir.AttrInt64("number", number)
        return ir.Node(PLACEHOLDER, "Placeholder", inputs, [attribute], outputs=new, name=name)


def _restore(graph: ir.Graph, node: ir.Node, kept: _Initializer | ir.Attr) -> None:
    """Put an initializer or a Constant where its placeholder stands."""
    old = node.outputs[0]
    if isinstance(kept, ir.Attr):
        swap(node, ir.Node("", "Constant", [], [kept]))
        return
    value = ir.Value(name=old.name, type=old.type, shape=old.shape, const_value=kept.tensor)
    value.metadata_props.update(kept.metadata)
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    graph.register_initializer(value)


def swap(node: ir.Node, other: ir.Node) -> None:
    """Put another node with as many outputs in the place of a node; values keep their names and all else."""
    if node.graph is None:
        raise ValueError(f"node '{label(node)}' is in no graph")
    for old, new in zip(node.outputs, other.outputs, strict=True):
        _copy_facts(old, new)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    other.name, other.doc_string = node.name, node.doc_string
    other.metadata_props.update(node.metadata_props)
    node.graph.insert_before(node, other)
    node.graph.remove(node, safe=True)


def _is_small(tensor: ir.TensorProtocol) -> bool:
    return not isinstance(tensor, ir.ExternalTensor) and tensor.dtype in _PLAIN and tensor.nbytes <= _SMALL_BYTES


def _copy_facts(old: ir.Value, new: ir.Value) -> None:
    new.name, new.type, new.shape = old.name, old.type, old.shape
    new.metadata_props.update(old.metadata_props)
    new.doc_string = old.doc_string


def _prepend(graph: ir.Graph, node: ir.Node) -> None:
    first = next(iter(graph), None)
    if first is None:
        graph.append(node)
    else:
        graph.insert_before(first, node)
