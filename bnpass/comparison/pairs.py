"""Which node of one model is which of another.

Prints decide what is the same. What is left is matched only to be able to say *how* it differs, surest first:

1. the same in all that goes in, weights included; then with other weights of the same shapes;
2. alone in both with its own weights and attributes, whatever goes in;
3. the only one of its op, weights or name that reads, or is read by, what is matched already; again after each step;
4. the same name, of the node or of its first output;
5. alone in both with its op, attributes and shapes.

Each step looks at a node once for each value it reads, and matches are never taken back: near-linear.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

from bnpass.comparison.prints import Prints, graphs_in, operands, operator
from bnpass.graph.nodes import label

Key = Callable[[ir.Node], Hashable]


@dataclass
class Pairs:
    """Counterparts, from the first model to the second and back.

    Attributes:
        nodes: Nodes.
        values: Inputs of graphs and outputs of nodes.
        weights: Initializers.
        graphs: Graphs, with what the first is called; the main one, the bodies of functions, and subgraphs.
        taken: What of the second model is a counterpart of something.
        taken_weights: Its initializers that are; those with defaults are inputs besides.
    """

    nodes: dict[ir.Node, ir.Node] = field(default_factory=dict)
    values: dict[ir.Value, ir.Value] = field(default_factory=dict)
    weights: dict[ir.Value, ir.Value] = field(default_factory=dict)
    graphs: list[tuple[str, ir.Graph, ir.Graph]] = field(default_factory=list)
    taken: set[ir.Node | ir.Value] = field(default_factory=set)
    taken_weights: set[ir.Value] = field(default_factory=set)

    def add_values(self, a: ir.Value, b: ir.Value) -> None:
        """Note that two values are counterparts, unless one of them has another one."""
        if a not in self.values and b not in self.taken:
            self.values[a] = b
            self.taken.add(b)

    def add_nodes(self, a: ir.Node, b: ir.Node) -> None:
        """Note that two nodes are counterparts, and so are their outputs."""
        self.nodes[a] = b
        self.taken.add(b)
        for x, y in zip(a.outputs, b.outputs, strict=False):
            self.add_values(x, y)

    def add_weights(self, a: ir.Value, b: ir.Value) -> None:
        """Note that two initializers are counterparts, unless one of them has another one."""
        if a not in self.weights and b not in self.taken_weights:
            self.weights[a] = b
            self.taken_weights.add(b)


@dataclass(frozen=True)
class Matcher:
    """Matches graphs.

    Attributes:
        pairs: What is matched; it grows.
        exact: The prints of both models, with every bit of the constants.
        shapes: The same with the types and shapes of constants alone.
    """

    pairs: Pairs
    exact: Prints
    shapes: Prints

    def match(self, where: str, a: ir.Graph, b: ir.Graph) -> None:
        """Match two graphs whose inputs are matched, and the subgraphs of what is matched in them.

        Args:
            where: What to call the first.
            a: The first.
            b: The second.
        """
        self.pairs.graphs.append((where, a, b))
        left, right = list(a), list(b)
        self._by_class(self.exact, left, right)
        self._by_class(self.shapes, left, right, only_even=True)
        self._alone(self.exact.own.__getitem__, left, right)
        self._spread(left, a, b)
        for key in (_name, _first_output):
            self._alone(key, left, right)
        self._spread(left, a, b)
        self._alone(self.shapes.own.__getitem__, left, right)
        self._spread(left, a, b)
        for x in left:
            if x in self.pairs.nodes:
                self._match_inside(where, x, self.pairs.nodes[x])

    def _match_inside(self, where: str, a: ir.Node, b: ir.Node) -> None:
        inside = graphs_in(b)
        for attribute, x in graphs_in(a).items():
            y = inside.get(attribute)
            if y is not None:
                for inner, other in zip(x.inputs, y.inputs, strict=False):
                    self.pairs.add_values(inner, other)
                place = f"{a.op_type} '{label(a)}' {attribute}"
                self.match(f"{where}, {place}" if where else place, x, y)

    def _is_free(self, node: ir.Node) -> bool:
        return node not in self.pairs.nodes and node not in self.pairs.taken

    def _free(self, nodes: Iterable[ir.Node]) -> list[ir.Node]:
        return [node for node in nodes if self._is_free(node)]

    def _by_class(self, prints: Prints, left: list[ir.Node], right: list[ir.Node], *, only_even: bool = False) -> None:
        """Match what has the same print: the same names first, the others in their order, if there are as many."""
        theirs = self._grouped(prints.nodes.__getitem__, right)
        for found, same in self._grouped(prints.nodes.__getitem__, left).items():
            for key in (_first_output, _name):  # copies of one computation may be told apart by an output of the graph
                self._alone(key, same, theirs.get(found, []))
            xs, ys = self._free(same), self._free(theirs.get(found, []))
            if not only_even or len(xs) == len(ys):
                for x, y in zip(xs, ys, strict=False):
                    self.pairs.add_nodes(x, y)

    def _alone(self, key: Key, left: Iterable[ir.Node], right: Iterable[ir.Node]) -> None:
        """Match what is the only one with its op and key on either side; ``None`` is no key."""
        theirs = self._grouped(key, right)
        for found, xs in self._grouped(key, left).items():
            ys = theirs.get(found, [])
            if len(xs) == len(ys) == 1:
                self.pairs.add_nodes(xs[0], ys[0])

    def _grouped(self, key: Key, nodes: Iterable[ir.Node]) -> dict[Hashable, list[ir.Node]]:
        groups: dict[Hashable, list[ir.Node]] = defaultdict(list)
        for node in self._free(nodes):
            if (found := key(node)) is not None:
                groups[operator(node), found].append(node)
        return groups

    def _spread(self, left: list[ir.Node], a: ir.Graph, b: ir.Graph) -> None:
        """Match neighbours of what is matched, until there is none left that is the only one of its kind."""
        read = dict.fromkeys(value for node in left for value in operands(node) if value in self.pairs.values)
        waiting = deque(node for node in left if node in self.pairs.nodes)
        for value in read:  # inputs, and what comes from around the graph
            if value is not None and (value.producer() is None or value.graph is not a):
                waiting += self._readers(value, a, b)
        seen: set[ir.Node] = set()
        while waiting:
            x = waiting.popleft()
            if x not in seen:
                seen.add(x)
                for value in x.outputs:
                    waiting += self._readers(value, a, b)
                waiting += self._producers(x, a, b)

    def _readers(self, value: ir.Value, a: ir.Graph, b: ir.Graph) -> list[ir.Node]:
        """Match the readers of a matched value that alone read it in their way; return those of the first model."""
        theirs = self._by_slot(self.pairs.values[value], b) if value in self.pairs.values else {}
        found: list[ir.Node] = []
        for slot, xs in self._by_slot(value, a).items() if theirs else ():
            ys = theirs.get(slot, [])
            if len(xs) == len(ys) == 1:
                xs, ys = self._free(xs), self._free(ys)
                found += xs if xs and ys else []
                for x, y in zip(xs, ys, strict=False):
                    self.pairs.add_nodes(x, y)
            elif ys:
                for key in (self.exact.own.__getitem__, _name, self.shapes.own.__getitem__, _first_output):
                    self._alone(key, xs, ys)
                found += [x for x in xs if x in self.pairs.nodes]
        return found

    def _by_slot(self, value: ir.Value, graph: ir.Graph) -> dict[Hashable, list[ir.Node]]:
        slots: dict[Hashable, list[ir.Node]] = defaultdict(list)
        for node, slot in value.uses():
            if node.graph is graph and self._is_free(node):
                slots[operator(node), slot].append(node)
        return slots

    def _producers(self, x: ir.Node, a: ir.Graph, b: ir.Graph) -> list[ir.Node]:
        """Match what two matched nodes read at the same places; return the producers in the first model."""
        found = []
        for v, w in zip(operands(x), operands(self.pairs.nodes[x]), strict=False):
            p, q = (None if value is None else value.producer() for value in (v, w))
            if v is None or w is None or p is None or q is None or p.graph is not a or q.graph is not b:
                continue
            if v.index() == w.index() and operator(p) == operator(q) and self._is_free(p) and self._is_free(q):
                self.pairs.add_nodes(p, q)
                found.append(p)
        return found


def _name(node: ir.Node) -> Hashable:
    return node.name or None


def _first_output(node: ir.Node) -> Hashable:
    return next((value.name for value in node.outputs if value.name), None)
