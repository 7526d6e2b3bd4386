"""Plan where a cell can vanish: nothing is edited here.

Backward, a cell goes through layout ops into the linear op that made its value. Forward, it goes through layout ops
into every linear op that reads its result; if padding stops the shift there, the scale goes alone and ``x + t/s``
stays. A plan is complete, computed, judged and checked, or it is a refusal.
"""

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from bnpass.errors import Refusal, RefusalId
from bnpass.folding.absorb import Absorption, Numbers, compute
from bnpass.folding.cells import Cell, carry_back, carry_on
from bnpass.folding.path_check import Way, check_way
from bnpass.folding.recognize import Site
from bnpass.folding.rules import CARRIERS, LINEAR
from bnpass.folding.rules.layout import Direction, Step
from bnpass.graph.nodes import Scope, blocked_use, described, is_standard, label
from bnpass.graph.shapes import Shapes
from bnpass.semantics.affine import Affine

HELD_BYTES = 128 << 20
"""New weights up to this size in all are held; beyond it time is paid for memory."""


@dataclass(frozen=True, eq=False)
class Target:
    """A linear op that will take an affine in, with the numbers it comes to.

    Attributes:
        absorption: The op and all it has taken in then.
        numbers: Its bias, and what has to be added behind an op without a bias slot.
        copies: Bytes of a shared weight that has to be cloned.
    """

    absorption: Absorption
    numbers: Numbers
    copies: int

    @property
    def node(self) -> ir.Node:
        """The linear op."""
        return self.absorption.linear.node

    @property
    def cost(self) -> int:
        """Operations per element that it leaves behind: an Add, where there is no bias slot."""
        return int(self.numbers.shift is not None)


@dataclass(frozen=True, eq=False)
class Plan:
    """What is to become of a cell.

    Attributes:
        cell: The cell.
        targets: The linear ops that take it in.
        side: ``output`` or ``input`` of the linear ops.
        stays: The affine that takes its place; None if nothing has to.
    """

    cell: Cell
    targets: tuple[Target, ...]
    side: str
    stays: Affine | None = None


@dataclass
class Ledger:
    """What was committed so far.

    Attributes:
        budget: Bytes that copies of shared weights may still add.
        memory: Bytes of new weights that may still be held until they are written; others are computed twice.
        absorbed: What each linear op has taken in.
    """

    budget: int
    memory: int = HELD_BYTES
    absorbed: dict[ir.Node, Absorption] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Planner:
    """Plans for the cells of one scope."""

    scope: Scope
    shapes: Shapes
    ledger: Ledger

    def backward(self, cell: Cell) -> Plan | Refusal:
        """Plan a cell into the linear op before it."""
        reached = self._producer(cell)
        if isinstance(reached, Refusal):
            return reached
        absorption, carriers, affine = reached
        planned = absorption.behind(affine)
        target = planned if isinstance(planned, Refusal) else self._target(planned)
        if isinstance(target, Refusal):
            return target
        if target.cost >= cell.cost:
            return _no_gain(cell, f"it is the bias of {described(target.node)} already")
        way = Way((*carriers, *cell.path), cell.nodes, target.node.outputs[0], affine)
        refusal = check_way(way, self.scope, self.shapes, at_start=affine, tolerance=cell.tolerance)
        return refusal or self._within_budget(Plan(cell, (target,), "output"))

    def forward(self, cell: Cell, sites: dict[ir.Node, Site]) -> Plan | Refusal:
        """Plan a cell, or at least its scale, into every linear op behind it."""
        whole = self._readers(cell, cell.affine, None)
        if isinstance(whole, Refusal):
            split = self._split(cell) if whole.id is RefusalId.PADDING_BLOCKS_SHIFT else None
            return split or whole
        if sum(t.cost - _is_joined_later(t, sites) for t in whole.targets) >= cell.cost:
            return _no_gain(cell, f"the {len(whole.targets)} ops behind it would each need an Add")
        return whole

    def _split(self, cell: Cell) -> Plan | None:
        affine = cell.affine
        if cell.cost < 2 or not affine.has_scale or (affine.scale == 0).any():
            return None
        stays = Affine(np.ones_like(affine.scale), affine.shift / affine.scale)
        found = self._readers(cell, Affine(affine.scale, np.zeros_like(affine.shift)), stays)
        return None if isinstance(found, Refusal) else found

    def _producer(self, cell: Cell) -> tuple[Absorption, tuple[ir.Node, ...], Affine] | Refusal:
        """Walk back to a linear op: return it, the layout ops behind it in graph order, the affine at its output."""
        value, carriers = cell.start, list[ir.Node]()
        while True:
            blocked = blocked_use(value)
            if blocked is not None:
                return blocked
            node = value.producer()
            if node is None:
                return _no_neighbour(cell, f"before it stands '{value.name}', which no node of this graph makes")
            if node.graph is not cell.graph:
                return _crosses(node, "before")
            if is_standard(node, *LINEAR):
                absorption = self._absorption(node)
                affine = carry_back(carriers[::-1], cell.affine, self.scope, self.shapes)
                if isinstance(absorption, Refusal):
                    return absorption
                return affine if isinstance(affine, Refusal) else (absorption, tuple(carriers[::-1]), affine)
            source = node.inputs[0] if node.inputs else None
            if not is_standard(node, *CARRIERS) or value is not node.outputs[0] or source is None:
                return Refusal(RefusalId.NONLINEAR_BETWEEN, label(node), f"{described(node)} stands before it")
            carriers.append(node)
            value = source

    def _readers(self, cell: Cell, affine: Affine, stays: Affine | None) -> Plan | Refusal:
        """Walk on to all linear ops behind a cell, to give them ``affine``, stated at the cell's start."""
        targets: list[Target] = []
        carried = carry_on([n for n in cell.path if n not in cell.nodes], affine, self.scope, self.shapes)
        if isinstance(carried, Refusal):
            return carried
        waiting = [(cell.end, carried, cell.path)]
        while waiting:
            value, here, path = waiting.pop(0)
            if value.is_graph_output():
                told = f"its result '{value.name}' is a graph output"
                return Refusal(RefusalId.PRODUCER_IS_GRAPH_OUTPUT, label(path[-1]), told)
            if not value.uses():
                return _no_neighbour(cell, f"nothing reads its result '{value.name}'")
            for node, index in value.uses():
                step = self._reader(cell, node, index, here)
                if isinstance(step, Affine):
                    waiting.append((node.outputs[0], step, (*path, node)))
                    continue
                if isinstance(step, Refusal):
                    return step
                way = Way(path, cell.nodes, cell.start, cell.affine)
                refusal = check_way(way, self.scope, self.shapes, at_start=stays, at_end=here, tolerance=cell.tolerance)
                if refusal is not None:
                    return refusal
                targets.append(step)
        return self._within_budget(Plan(cell, tuple(targets), "input", stays))

    def _reader(self, cell: Cell, node: ir.Node, index: int, here: Affine) -> Affine | Target | Refusal:
        """Ask one reader: a layout op carries the affine on, a linear op takes it in."""
        if node.graph is not cell.graph:
            return _crosses(node, "behind")
        if is_standard(node, *CARRIERS) and index == 0:
            return CARRIERS[node.op_type](Step(node, Direction.FORWARD, self.scope, self.shapes), here)
        if not is_standard(node, *LINEAR):
            return Refusal(RefusalId.NONLINEAR_BETWEEN, label(node), f"{described(node)} stands behind it")
        absorption = self._absorption(node)
        if isinstance(absorption, Refusal):
            return absorption
        if index != absorption.linear.data_index:
            return Refusal(RefusalId.UNSUPPORTED_OP, label(node), f"{described(node)} reads it as a weight or bias")
        planned = absorption.before(here)
        return planned if isinstance(planned, Refusal) else self._target(planned)

    def _absorption(self, node: ir.Node) -> Absorption | Refusal:
        """Return what a linear op has taken in so far, or why it takes nothing."""
        if node in self.ledger.absorbed:
            return self.ledger.absorbed[node]
        if len(node.outputs) != 1:
            return Refusal(RefusalId.UNSUPPORTED_OP, label(node), f"{described(node)} has more than one output")
        linear = LINEAR[node.op_type](node, self.scope)
        return linear if isinstance(linear, Refusal) else Absorption.of(linear)

    def _target(self, absorption: Absorption) -> Target | Refusal:
        """Compute the numbers of an absorption and what it costs in copies."""
        linear = absorption.linear
        numbers = compute(absorption, keep=linear.weight.nbytes <= self.ledger.memory)
        if isinstance(numbers, Refusal):
            return numbers
        if numbers.shift is not None and (linear.out_axis != -1 or numbers.shift.ndim > 1):
            data = linear.node.inputs[linear.data_index]
            rank = self.shapes.rank(data, self.scope) if data is not None else None
            if rank is None or rank < 2:
                told = f"{described(linear.node)} would need an Add behind it, but its data is not known to be a matrix"
                return Refusal(RefusalId.AXIS_NOT_PROVABLE, label(linear.node), told)
        shared = _is_shared(linear.node.inputs[linear.weight_index])
        return Target(absorption, numbers, linear.weight.nbytes if shared else 0)

    def _within_budget(self, plan: Plan) -> Plan | Refusal:
        """Refuse a plan whose copies of shared weights cost more than is left of the budget."""
        total = sum(t.copies for t in plan.targets)
        if total <= self.ledger.budget:
            return plan
        node = next(t.node for t in plan.targets if t.copies)
        told = (
            f"the weight of {described(node)} is shared, and copies of {total} bytes are more than what is left of the "
            f"clone budget ({self.ledger.budget})"
        )
        return Refusal(RefusalId.CLONE_BUDGET, label(node), told)


def _is_shared(value: ir.Value | None) -> bool:
    """Whether a weight, or a constant that it is rearranged from, is read by others and so stays beside its copy."""
    while value is not None:
        if len(value.uses()) > 1:
            return True
        node = value.producer()
        value = node.inputs[0] if node is not None and node.inputs else None
    return False


def _is_joined_later(target: Target, sites: dict[ir.Node, Site]) -> int:
    """Return 1 if behind an op without a bias slot an affine waits that the next round joins with the new Add."""
    if target.numbers.shift is None:
        return 0
    output = target.node.outputs[0]
    return int(blocked_use(output) is None and any(u.node in sites for u in output.uses()))


def _no_gain(cell: Cell, why: str) -> Refusal:
    return Refusal(RefusalId.NO_GAIN, label(cell.sites[0].node), why)


def _no_neighbour(cell: Cell, why: str) -> Refusal:
    return Refusal(RefusalId.NO_LINEAR_NEIGHBOUR, label(cell.sites[0].node), why)


def _crosses(node: ir.Node, where: str) -> Refusal:
    told = f"{described(node)} {where} it stands in another graph or body"
    return Refusal(RefusalId.CROSSES_SCOPE, label(node), told)
