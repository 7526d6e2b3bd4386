"""How matched graphs differ: nodes without a counterpart, attributes, and what reads what."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest

import onnx_ir as ir

from bnpass.comparison.facts import matched
from bnpass.comparison.pairs import Pairs
from bnpass.comparison.prints import Prints, graphs_in, operands, results
from bnpass.comparison.result import ChangedNode, ChangedWeight, OnlyNode, Renamed
from bnpass.comparison.weights import changed_tensor
from bnpass.graph.nodes import described, label

_ABSENT = "nothing"
_LONG = 120
"""Characters of the value of an attribute."""


@dataclass(frozen=True)
class Changes:
    """Lists differences of matched graphs.

    Attributes:
        pairs: What is matched.
        exact: The prints of both models.
    """

    pairs: Pairs
    exact: Prints

    def only(self) -> Iterator[OnlyNode]:
        """Yield the nodes without a counterpart, those of the first model first."""
        for where, a, _ in self.pairs.graphs:
            yield from (OnlyNode("a", where, label(n), n.op_type) for n in a if n not in self.pairs.nodes)
        for where, _, b in self.pairs.graphs:
            yield from (OnlyNode("b", where, label(n), n.op_type) for n in b if n not in self.pairs.taken)

    def changed(self) -> Iterator[ChangedNode]:
        """Yield what is not the same about counterparts."""
        for where, a, b in self.pairs.graphs:
            for x, y in self._unlike(a):
                for what, before, after in self._of(x, y):
                    yield ChangedNode(where, label(x), x.op_type, what, before, after)
            for what, before, after in self._ends(where, a, b):
                yield ChangedNode(where, "", "", what, before, after)

    def tensors(self) -> Iterator[ChangedWeight]:
        """Yield the tensors of attributes that changed."""
        for _, a, _ in self.pairs.graphs:
            for x, y in self._unlike(a):
                for name in x.attributes:
                    both = _tensors(x.attributes[name], y.attributes.get(name))
                    if both is not None and self._differ(x, y, name):
                        yield changed_tensor(f"{label(x)}.{name}", *both)

    def _unlike(self, a: ir.Graph) -> Iterator[tuple[ir.Node, ir.Node]]:
        """Yield the counterparts in a graph that are not the same in all that goes in."""
        for x in a:
            y = self.pairs.nodes.get(x)
            if y is not None and self.exact.nodes[x] != self.exact.nodes[y]:
                yield x, y

    def renamed(self) -> Iterator[Renamed]:
        """Yield counterparts with other names."""
        for x, y in self.pairs.nodes.items():
            if (x.name or "") != (y.name or ""):
                yield Renamed("node", x.name or "", y.name or "")
        for v, w in self.pairs.values.items():
            inside = not v.is_graph_input() and not v.is_graph_output()
            if inside and (v.name or "") != (w.name or ""):
                yield Renamed("value", v.name or "", w.name or "")
        for v, w in self.pairs.weights.items():
            if v.name != w.name:
                yield Renamed("weight", str(v.name), str(w.name))

    def _of(self, x: ir.Node, y: ir.Node) -> Iterator[tuple[str, str, str]]:
        for name in sorted({*x.attributes, *y.attributes}):
            old, new = x.attributes.get(name), y.attributes.get(name)
            if _tensors(old, new) is None and not _graphs_match(x, y, name) and self._differ(x, y, name):
                yield f"attribute {name}", _told(old), _told(new)
        for place, (v, w) in enumerate(zip_longest(operands(x), operands(y))):
            if not self._same(v, w):
                yield f"input {place}", self._source(v), self._source(w)
        if results(x) != results(y):
            yield "outputs", str(sum(results(x))), str(sum(results(y)))

    def _ends(self, where: str, a: ir.Graph, b: ir.Graph) -> Iterator[tuple[str, str, str]]:
        """Yield what a graph takes and gives in another way; of the main one, callers know the rest by name."""
        if where and len(a.inputs) != len(b.inputs):
            yield "inputs", str(len(a.inputs)), str(len(b.inputs))
        ends: Iterable[tuple[ir.Value | None, ir.Value | None]]
        ends = zip_longest(a.outputs, b.outputs) if where else matched(a.outputs, b.outputs)
        for place, (v, w) in enumerate(ends):
            if not self._same(v, w):
                called = f"output {place}" if where or v is None else f"output '{v.name}'"
                yield called, self._source(v), self._source(w)

    def _same(self, v: ir.Value | None, w: ir.Value | None) -> bool:
        """Whether two values are counterparts; what differs about them is told where they come from."""
        if v is None or w is None:
            return v is w
        if self.pairs.values.get(v) is w or self.pairs.weights.get(v) is w:
            return True
        return self.exact.values[v] == self.exact.values[w]

    def _differ(self, x: ir.Node, y: ir.Node, name: str) -> bool:
        old, new = x.attributes.get(name), y.attributes.get(name)
        return old is None or new is None or self.exact.attribute(old) != self.exact.attribute(new)

    def _source(self, value: ir.Value | None) -> str:
        if value is None:
            return _ABSENT
        node = value.producer()
        if node is not None:
            return f"'{value.name}' of {described(node)}"
        return f"weight '{value.name}'" if value.is_initializer() else f"input '{value.name}'"


def _tensors(old: ir.Attr | None, new: ir.Attr | None) -> tuple[ir.TensorProtocol, ir.TensorProtocol] | None:
    """Return the tensors of two attributes; None if they are not both tensors."""
    both = [a for a in (old, new) if a is not None and a.type is ir.AttributeType.TENSOR and not a.is_ref()]
    return (both[0].as_tensor(), both[1].as_tensor()) if len(both) == 2 else None


def _graphs_match(x: ir.Node, y: ir.Node, name: str) -> bool:
    """Whether both attributes are graphs, as many: they are compared node by node."""
    ours, theirs = ([key for key in graphs_in(n) if key.split("[")[0] == name] for n in (x, y))
    return bool(ours) and ours == theirs


def _told(attribute: ir.Attr | None) -> str:
    if attribute is None:
        return _ABSENT
    if attribute.is_ref():
        return f"reference to {attribute.ref_attr_name}"
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return "graph" if attribute.type is ir.AttributeType.GRAPH else f"{len(attribute.as_graphs())} graphs"
    if attribute.type is ir.AttributeType.TENSOR:
        return "tensor"
    text = repr(list(attribute.value) if isinstance(attribute.value, tuple) else attribute.value)
    return text if len(text) <= _LONG else f"{text[: _LONG - 1]}…"
