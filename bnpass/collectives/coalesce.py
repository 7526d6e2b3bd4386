"""Let collectives that could run at the same time share one message.

    y1 = AllReduce(x1)                y1, y2 = Split(AllReduce(Concat(x1, x2)))
    y2 = AllReduce(x2)      =>

An AllReduce works element by element, so what travels together is reduced to the same numbers as before. A message
costs latency more than bytes; a network with branches sends one per level instead of one per layer.

**What may be merged.** The level of a node is the largest number of collectives on a path that ends in it, itself
included. AllReduces of one level share a message if they agree in domain, group, reduction and element type, and in
what they come ``after``.

**Why no cycle arises.** An edge never leads to a lower level, and an edge into a collective leads to a higher one than
that it comes from. A cycle through merged nodes would leave a merged node, enter a merged node at a higher level, and
so on, and yet come back. That two nodes do not depend on each other is not enough: with A → D and C → B, the pairs
{A, B} and {C, D} are independent, and merged they wait for each other.

Each graph is done for itself: a message never crosses the border of a branch or a loop body. A node with collectives
in its subgraphs counts as many as the longest path in them.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from bnpass.collectives.nodes import (
    FOREIGN,
    Predecessors,
    bodies,
    collectives,
    group_of,
    is_collective,
    message_of,
    predecessors,
    require_readable,
    sort,
    text,
    topological,
    unused_prefix,
)
from bnpass.graph.nodes import operand, scopes
from bnpass.graph.shapes import Dims, Shapes
from bnpass.ops import DOMAIN
from bnpass.ops.emit import Attribute, Emit

__all__ = ["CoalesceResult", "coalesce"]

_ATTRIBUTES = frozenset({"group", "reduction", "collective_id"})


@dataclass(frozen=True)
class CoalesceResult:
    """What was done.

    Attributes:
        before: Collectives in the model, subgraphs included, each counted once however often it runs.
        after: The same, afterwards.
        depth: Collectives on the longest path: fewer cannot be, whatever is merged.
    """

    before: int
    after: int
    depth: int


def coalesce(model: ir.Model) -> CoalesceResult:
    """Merge AllReduces of the same level; to be called before :func:`bnpass.collectives.order.order`.

    Outputs of graphs keep their names, and so do the reduced values. Ids of merged collectives are 0: ``order`` sets
    them. Functions are left alone.

    Args:
        model: Changed in place; its graphs are in topological order afterwards.

    Returns:
        How many collectives there were and are.

    Raises:
        RefusedError: BN204: the model has collectives and is older than opset 14. BN206, BN207, BN208: a node cannot
            be read, or there is a cycle.

    Example:
        >>> model = ir.from_onnx_text('''<ir_version: 8, opset_import: ["": 17, "bnpass": 1]>
        ... g (double[2] a, double[3] b) => (double[2] c, double[3] d)
        ... { c = bnpass.AllReduce <group = "world"> (a)  d = bnpass.AllReduce <group = "world"> (b) }''')
        >>> coalesce(model)
        CoalesceResult(before=2, after=1, depth=1)
        >>> [node.op_type for node in model.graph]
        ['Concat', 'AllReduce', 'Constant', 'Split']
    """
    require_readable(model)
    found = list(collectives(model.graph))
    facts = _facts(model, found)
    merging = _Merging(facts, unused_prefix(model, "coalesced"))
    depth = merging.merge_in(model.graph)
    return CoalesceResult(len(found), sum(1 for _ in collectives(model.graph)), depth)


@dataclass(frozen=True)
class _Fact:
    """What is known of a message.

    Attributes:
        dtype: Its element type.
        dims: Its dimensions, as far as they are known; None if not even the rank is.
    """

    dtype: ir.DataType
    dims: Dims | None

    @property
    def length(self) -> int | None:
        """Elements of a vector, if known; None for what is no vector."""
        length = self.dims[0] if self.is_vector and self.dims else None
        return length if isinstance(length, int) else None

    @property
    def is_vector(self) -> bool:
        return self.dims is not None and len(self.dims) == 1


def _facts(model: ir.Model, found: Sequence[ir.Node]) -> dict[ir.Node, _Fact]:
    """Look at all AllReduces before any is changed; those of unknown type are left out."""
    shapes, scope = Shapes(model), next(scopes(model))
    facts = {}
    for node in found:
        if node.op_type != "AllReduce" or node.domain not in (DOMAIN, FOREIGN):
            continue
        message = message_of(node)
        shapes.note_alike(node.outputs[0], message)
        dtype = message.dtype or node.outputs[0].dtype or shapes.dtype(message, scope)
        if dtype is not None:
            facts[node] = _Fact(dtype, shapes.dims(message, scope))
    return facts


class _Merging:
    """One run over a model.

    Args:
        facts: The AllReduces that may be merged.
        prefix: What the names of new nodes and values begin with.
    """

    def __init__(self, facts: dict[ir.Node, _Fact], prefix: str) -> None:
        self._facts = facts
        self._prefix = prefix
        self._count = 0

    def merge_in(self, graph: ir.Graph) -> int:
        """Merge in a graph and its subgraphs; return the number of collectives on the longest path."""
        depths = {node: self._depth_inside(node) for node in graph}
        before = predecessors(graph)
        levels = _levels(before, depths)
        merged = False
        for members in self._classes(levels):
            self._merge(graph, members)
            merged = True
        if merged:
            sort(graph)
        return max(levels.values(), default=0)

    def _depth_inside(self, node: ir.Node) -> int:
        if is_collective(node):
            return 1
        return max((self.merge_in(body) for body in bodies(node)), default=0)

    def _classes(self, levels: dict[ir.Node, int]) -> Iterator[list[ir.Node]]:
        """Yield what shares a message, each in graph order."""
        classes: dict[Hashable, list[ir.Node]] = {}
        for node, level in levels.items():
            if node in self._facts and not node.attributes.keys() - _ATTRIBUTES:
                after = operand(node, 1)
                key = (
                    level,
                    node.domain,
                    group_of(node),
                    text(node, "reduction", "sum"),
                    self._facts[node].dtype,
                    after,
                )
                classes.setdefault(key, []).append(node)
        return (members for members in classes.values() if len(members) > 1)

    def _merge(self, graph: ir.Graph, members: Sequence[ir.Node]) -> None:
        """Write the shared collective in front of the last member: all messages are there by then."""
        self._count += 1
        op = Emit(f"{self._prefix}/{self._count}")
        facts = [self._facts[node] for node in members]
        messages = [message_of(node) for node in members]
        reduced = _all_reduce(op, members[0], _concatenated(op, messages, facts))
        parts = _parts(op, reduced, messages, facts)
        graph.insert_before(members[-1], op.nodes)
        for node, part in zip(members, parts, strict=True):
            _put_in_place(node.outputs[0], part)
        graph.remove(members, safe=True)


def _levels(before: Predecessors, depths: dict[ir.Node, int]) -> dict[ir.Node, int]:
    """Return the largest number of collectives on a path that ends in each node, in graph order."""
    levels: dict[ir.Node, int] = {}
    for node in topological(before):
        levels[node] = max((levels[one] for one in before[node]), default=0) + depths[node]
    return levels


def _concatenated(op: Emit, messages: Sequence[ir.Value], facts: Sequence[_Fact]) -> ir.Value:
    vectors = [
        message if fact.is_vector else op("Reshape", message, op.ints(-1), name="vector")
        for message, fact in zip(messages, facts, strict=True)
    ]
    message = op("Concat", *vectors, name="message", axis=0)
    lengths = [fact.length for fact in facts]
    message.type = ir.TensorType(facts[0].dtype)
    message.shape = ir.Shape([None if None in lengths else sum(n for n in lengths if n is not None)])
    return message


def _all_reduce(op: Emit, like: ir.Node, message: ir.Value) -> ir.Value:
    attributes: dict[str, Attribute] = {}
    inputs: list[ir.Value | None] = [message]
    if like.domain == DOMAIN:
        attributes = {
            "group": str(group_of(like)),
            "reduction": str(text(like, "reduction", "sum")),
            "collective_id": 0,
        }
        inputs.append(operand(like, 1))
    reduced = op("AllReduce", *inputs, name="reduced", domain=like.domain, **attributes)
    reduced.type, reduced.shape = message.type, message.shape
    return reduced


def _parts(op: Emit, reduced: ir.Value, messages: Sequence[ir.Value], facts: Sequence[_Fact]) -> list[ir.Value]:
    """Write the way back: one value for each message, of its shape."""
    lengths = [fact.length for fact in facts]
    known = [n for n in lengths if n is not None]
    sizes = op.ints(*known) if len(known) == len(lengths) else _sizes(op, messages)
    split = op.many("Split", [reduced, sizes], ["part"] * len(messages), axis=0)
    parts = []
    for part, message, fact in zip(split, messages, facts, strict=True):
        # allowzero: a dimension of 0 is one, and not "that of the input", which is a vector.
        whole = part if fact.is_vector else op("Reshape", part, op("Shape", message), name="part", allowzero=1)
        whole.type, whole.shape = ir.TensorType(fact.dtype), message.shape
        parts.append(whole)
    return parts


def _sizes(op: Emit, messages: Sequence[ir.Value]) -> ir.Value:
    one = op.ints(1)
    sizes = [op("Reshape", op("Size", message), one) for message in messages]
    return op("Concat", *sizes, name="sizes", axis=0)


def _put_in_place(old: ir.Value, new: ir.Value) -> None:
    """Let ``new`` stand wherever ``old`` stood, under its name."""
    name, shape, kind = old.name, old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = None
    if name:
        new.name = name
    if shape is not None:
        new.shape = shape
    if kind is not None:
        new.type = kind
