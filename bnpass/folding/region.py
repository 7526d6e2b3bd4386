"""Follow an affine through carriers until every branch of it has vanished: nothing is edited, nothing computed here.

A value on the way ``owes`` an affine (who reads it must apply it: it was taken away before), or is ``wanted`` changed
(who makes it must apply it: it will be taken away behind). Who is owed to is asked in graph order, who something is
wanted of in reverse, so that an op is asked once, when all that reaches it is known.
"""

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from bnpass.errors import Refusal, RefusalId
from bnpass.folding.linear import Linear
from bnpass.folding.quantized.between import integers_between
from bnpass.folding.rules import CARRIERS, LINEAR
from bnpass.folding.rules.carrier import Direction, Passage, Rewrite, Step
from bnpass.graph.constants import Constant, find_float
from bnpass.graph.nodes import Scope, blocked_use, described, is_standard, label
from bnpass.graph.shapes import Shapes
from bnpass.semantics.affine import Affine

LIMIT = 256
"""Nodes that one affine may pass: a search of every affine must not see the whole graph."""


@dataclass(frozen=True, eq=False)
class Carried:
    """A carrier and what passes it.

    Attributes:
        node: The carrier.
        owed: What its inputs owe.
        wanted: What its inputs have to become.
        owes: What its outputs owe.
        becomes: What its outputs have to become.
        rewrite: Its new form, if it needs one.
    """

    node: ir.Node
    owed: Mapping[int, Affine] = field(default_factory=dict)
    wanted: Mapping[int, Affine] = field(default_factory=dict)
    owes: Mapping[int, Affine] = field(default_factory=dict)
    becomes: Mapping[int, Affine] = field(default_factory=dict)
    rewrite: Rewrite | None = None


@dataclass(eq=False)
class Region:
    """Where an affine goes.

    Attributes:
        into: Linear ops, with what their activation owes.
        out: Linear ops, with what their result has to become.
        carriers: What lies between.
        operands: Constants that change, by the node that reads them and its slot.
        maps: Padded Convs that take a shift as a constant map behind them, with that shift.
    """

    into: dict[ir.Node, Affine] = field(default_factory=dict)
    out: dict[ir.Node, Affine] = field(default_factory=dict)
    carriers: dict[ir.Node, Carried] = field(default_factory=dict)
    operands: dict[tuple[ir.Node, int], Affine] = field(default_factory=dict)
    maps: dict[ir.Node, Affine] = field(default_factory=dict)

    @property
    def targets(self) -> list[ir.Node]:
        """The linear ops, those first that were reached first."""
        return list(dict.fromkeys([*self.into, *self.out]))


class Walk:
    """One search.

    Args:
        graph: Where the affine stands; it does not leave it.
        scope: The scope of that graph.
        shapes: What is known about shapes.
        position: The place of a node in graph order.
        linear: A linear op, or why it takes nothing in.
        may_change: Whether a carrier may be passed: affines wait for their own turn, and some nodes are left alone.
        maps: Whether a padded Conv may take a shift as a map.
    """

    def __init__(
        self,
        graph: ir.Graph | None,
        scope: Scope,
        shapes: Shapes,
        position: Callable[[ir.Node], int],
        linear: Callable[[ir.Node], Linear | Refusal],
        may_change: Callable[[ir.Node], bool],
        *,
        maps: bool = False,
    ) -> None:
        self._graph, self._scope, self._shapes = graph, scope, shapes
        self._position, self._linear, self._may_change, self._maps = position, linear, may_change, maps
        self._owed: dict[ir.Value, Affine] = {}
        self._wanted: dict[ir.Value, Affine] = {}
        self._ahead: list[tuple[int, int, ir.Node]] = []
        self._behind: list[tuple[int, int, ir.Node]] = []
        self._asked = 0
        self.region = Region()

    def forward(self, value: ir.Value, affine: Affine) -> Region | Refusal:
        """Take an affine away in front of a value, and find all who read it a way to make up for that."""
        return self._owe(value, affine) or self._run() or self.region

    def backward(self, value: ir.Value, affine: Affine) -> Region | Refusal:
        """Take an affine away behind a value, whose only reader it was; find a way to have it made so."""
        return self._want(value, affine) or self._run() or self.region

    def _run(self) -> Refusal | None:
        while self._ahead or self._behind:
            _, _, node = heapq.heappop(self._ahead or self._behind)
            self._asked += 1
            if self._asked > LIMIT:
                return Refusal(RefusalId.NO_GAIN, label(node), f"it would have to pass more than {LIMIT} nodes")
            refusal = self._ask(node)
            if refusal is not None:
                return refusal
        return None

    def _owe(self, value: ir.Value, affine: Affine) -> Refusal | None:
        """Let a value owe an affine."""
        if value in self._wanted:
            return _two_ways(value)
        if value.is_graph_output():
            where = value.producer()
            told = f"its result '{value.name}' is a graph output"
            return Refusal(RefusalId.PRODUCER_IS_GRAPH_OUTPUT, label(where) if where else str(value.name), told)
        self._owed[value] = affine
        for node, _ in value.uses():
            if node.graph is not self._graph:
                return crosses(node, "behind")
            heapq.heappush(self._ahead, (self._position(node), len(self._owed), node))
        return None

    def _want(self, value: ir.Value, affine: Affine) -> Refusal | None:
        """Let a value become changed."""
        if value in self._owed or value in self._wanted:
            return _two_ways(value)
        blocked = blocked_use(value)
        if blocked is not None:
            return blocked
        node = value.producer()
        if node is None:
            told = f"before it stands '{value.name}', which no node of this graph makes"
            return Refusal(RefusalId.NO_LINEAR_NEIGHBOUR, str(value.name), told)
        if node.graph is not self._graph:
            return crosses(node, "before")
        self._wanted[value] = affine
        heapq.heappush(self._behind, (-self._position(node), len(self._wanted), node))
        return None

    def _ask(self, node: ir.Node) -> Refusal | None:
        """Ask an op that something has reached; it may have been asked before, by way of another input."""
        owed = {i: self._owed[v] for i, v in enumerate(node.inputs) if v is not None and v in self._owed}
        becomes = {i: self._wanted[v] for i, v in enumerate(node.outputs) if v in self._wanted}
        if is_standard(node, *LINEAR):
            return self._taken(node, owed, becomes)
        known = self.region.carriers.get(node)
        if known is not None:
            same = set(known.owed) == set(owed) and set(known.becomes) == set(becomes)
            return (
                None
                if same
                else Refusal(RefusalId.NONLINEAR_BETWEEN, label(node), f"{described(node)} is reached from two sides")
            )
        where = "before" if becomes else "behind"
        if not is_standard(node, *CARRIERS) or not self._may_change(node):
            told = f"{described(node)} stands {where} it"
            return integers_between(node, where) or Refusal(RefusalId.NONLINEAR_BETWEEN, label(node), told)
        if owed and becomes:
            return Refusal(RefusalId.NONLINEAR_BETWEEN, label(node), f"{described(node)} is reached from two sides")
        direction = Direction.FORWARD if owed else Direction.BACKWARD
        passage = CARRIERS[node.op_type](Step(node, direction, self._scope, self._shapes), owed or becomes)
        if isinstance(passage, Refusal):
            return integers_between(node, where) or passage
        rewrite = passage.rewrite
        self.region.carriers[node] = Carried(node, owed, passage.inputs, passage.outputs, becomes, rewrite)
        return self._onwards(node, passage)

    def _taken(self, node: ir.Node, owed: Mapping[int, Affine], becomes: Mapping[int, Affine]) -> Refusal | None:
        linear = self._linear(node)
        if isinstance(linear, Refusal):
            return linear
        index = linear.data_index
        if set(owed) - {index}:
            return Refusal(RefusalId.UNSUPPORTED_OP, label(node), f"{described(node)} reads it as a weight or bias")
        if owed and self._maps and owed[index].has_shift and linear.shift_at_input and node.op_type == "Conv":
            self.region.maps[node] = owed[index]
            self.region.into[node] = owed[index].only_scale
        elif owed:
            self.region.into[node] = owed[index]
        if becomes:
            self.region.out[node] = becomes[0]
        return None

    def _onwards(self, node: ir.Node, passage: Passage) -> Refusal | None:
        """Hand on what an op has let pass."""
        for index, affine in passage.outputs.items():
            value = node.outputs[index]
            if affine.has_scale or affine.has_shift:
                refusal = self._owe(value, affine)
                if refusal is not None:
                    return refusal
        for index, affine in passage.inputs.items():
            source = node.inputs[index]
            if source is None or not (affine.has_scale or affine.has_shift):
                continue
            if isinstance(find_float(source, self._scope), Constant):
                self.region.operands[node, index] = affine
                continue
            refusal = self._want(source, affine)
            if refusal is not None:
                return refusal
        return None


def _two_ways(value: ir.Value) -> Refusal:
    told = f"'{value.name}' would have to change in two ways"
    return Refusal(RefusalId.NONLINEAR_BETWEEN, str(value.name), told)


def crosses(node: ir.Node, where: str) -> Refusal:
    """Refuse: a node stands in another graph."""
    told = f"{described(node)} {where} it stands in another graph or body"
    return Refusal(RefusalId.CROSSES_SCOPE, label(node), told)
