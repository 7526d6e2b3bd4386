"""Fingerprints of nodes and values, from what goes in down to what comes out.

    print(node)  = hash(op, prints of its inputs, attributes with the prints of their graphs, which outputs it has)
    print(value) = hash(print of its node, position)

Names inside a graph and the order of nodes do not enter, so two graphs with the same prints of all nodes compute the
same from the same constants, up to which of several copies of one computation somebody reads. One pass, one hash for
each node. What constants are worth is asked of the caller: their bits, or their shapes alone.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from bnpass.errors import ModelError
from bnpass.graph.nodes import label

Content = Callable[[ir.TensorProtocol], bytes]

_TYPE = ir.AttributeType


def combined(*parts: bytes | str | int) -> bytes:
    """Return a hash of parts, which cannot run into each other."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


def operator(node: ir.Node) -> tuple[str, str, str]:
    """Return the identity of a node's op; the default domain has two spellings."""
    return ("" if node.domain == "ai.onnx" else node.domain, node.op_type, node.overload)


def operands(node: ir.Node) -> list[ir.Value | None]:
    """Return the inputs without those at the end that are left out."""
    found = [None if value is not None and value.name == "" else value for value in node.inputs]
    while found and found[-1] is None:
        found.pop()
    return found


def graphs_in(node: ir.Node) -> dict[str, ir.Graph]:
    """Return the subgraphs of a node, by attribute and place."""
    found = {}
    for name, attribute in sorted(node.attributes.items()):
        if attribute.is_ref() or attribute.value is None:
            continue
        if attribute.type is _TYPE.GRAPH:
            found[name] = attribute.as_graph()
        elif attribute.type is _TYPE.GRAPHS:
            found |= {f"{name}[{place}]": graph for place, graph in enumerate(attribute.as_graphs())}
    return found


def results(node: ir.Node) -> list[bool]:
    """Return which outputs a node has, without those at the end that are left out."""
    found = [value.name != "" for value in node.outputs]
    while found and not found[-1]:
        found.pop()
    return found


@dataclass
class Prints:
    """The fingerprints of a graph and all that is in it.

    Attributes:
        content: What a constant is worth.
        values: The prints of values; inputs have them from the beginning.
        nodes: The prints of nodes.
        own: What nodes have without what is computed before them: constants and attributes; None for nothing.
    """

    content: Content
    values: dict[ir.Value, bytes] = field(default_factory=dict)
    nodes: dict[ir.Node, bytes] = field(default_factory=dict)
    own: dict[ir.Node, bytes | None] = field(default_factory=dict)

    def add(self, graph: ir.Graph, depth: int = 0) -> bytes:
        """Compute the prints of a graph; those of its inputs are known or are their places.

        Args:
            graph: The graph.
            depth: In how many others it stands.

        Returns:
            The print of the whole.

        Raises:
            ModelError: A node stands before one that it reads.
        """
        for place, value in enumerate(graph.inputs):
            self.values.setdefault(value, combined("input", depth, place))
        for value in graph.initializers.values():
            self.values.setdefault(value, self.constant(value))
        prints = [self._node(node, depth) for node in graph]
        return combined(*(self._value(v, "graph output") for v in graph.outputs), "nodes", *sorted(prints))

    def constant(self, value: ir.Value) -> bytes:
        """Return the print of an initializer."""
        return combined("constant", b"" if value.const_value is None else self.content(value.const_value))

    def _node(self, node: ir.Node, depth: int) -> bytes:
        inputs = [self._value(value, label(node)) for value in operands(node)]
        attributes = [self.attribute(attribute, depth) for _, attribute in sorted(node.attributes.items())]
        found = combined(*operator(node), "in", *inputs, "with", *attributes, "out", *results(node))
        self.nodes[node], self.own[node] = found, self._own(node, inputs, attributes)
        for place, value in enumerate(node.outputs):
            self.values[value] = combined(found, place)
        return found

    def _own(self, node: ir.Node, inputs: list[bytes], attributes: list[bytes]) -> bytes | None:
        read = zip(operands(node), inputs, strict=True)
        constants = [found if value is not None and value.is_initializer() else b"" for value, found in read]
        plain = [] if graphs_in(node) else attributes  # what is in a graph may read what is computed
        return combined(*constants, "with", *plain) if any(constants) or plain else None

    def attribute(self, attribute: ir.Attr, depth: int = 0) -> bytes:
        """Return the print of an attribute; of graphs with all that is in them."""
        return combined(attribute.name, attribute.type.name, *self._of(attribute, depth))

    def _of(self, attribute: ir.Attr, depth: int) -> Iterator[bytes | str | int]:
        if attribute.is_ref():
            yield from ("reference", attribute.ref_attr_name or "")
        elif attribute.value is None:
            return
        elif attribute.type is _TYPE.GRAPH:
            yield self.add(attribute.as_graph(), depth + 1)
        elif attribute.type is _TYPE.GRAPHS:
            yield from [self.add(graph, depth + 1) for graph in attribute.as_graphs()]
        elif attribute.type is _TYPE.TENSOR:
            yield self.content(attribute.as_tensor())
        elif attribute.type is _TYPE.TENSORS:
            yield from map(self.content, attribute.as_tensors())
        elif attribute.type in (_TYPE.FLOAT, _TYPE.FLOATS):
            with np.errstate(over="ignore"):
                yield np.asarray(attribute.value, np.float64).astype(np.float32).tobytes()  # as it is saved, every bit
        else:
            yield repr(attribute.value)

    def _value(self, value: ir.Value | None, reader: str) -> bytes:
        if value is None:
            return b"absent"
        if value not in self.values:
            raise ModelError(f"'{reader}' reads '{value.name}' before it is produced: not in topological order")
        return self.values[value]
