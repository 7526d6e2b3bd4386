"""Plan where a cell can vanish: nothing is edited here.

Backward, a cell goes through carriers into the linear ops that make its value. Forward, it goes through carriers into
every linear op that reads its result. Where the whole affine cannot go, its scale or its shift may go alone, and the
other one stays. A plan is complete, computed, judged and checked, or it is a refusal.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from bnpass.errors import Refusal, RefusalId
from bnpass.folding.absorb import Absorption, Numbers, compute
from bnpass.folding.carrier_check import check_carrier
from bnpass.folding.cells import Cell, carry_on
from bnpass.folding.costs import Costs
from bnpass.folding.linear import Linear
from bnpass.folding.path_check import Way, check_way
from bnpass.folding.quantized import numbers as quantized
from bnpass.folding.quantized.stored import Dequantized
from bnpass.folding.recognize import Site
from bnpass.folding.region import Region, Walk
from bnpass.folding.rewriting import Edits, edits_of
from bnpass.folding.rules import LINEAR
from bnpass.folding.spatial import spatial_bias
from bnpass.graph.nodes import Scope, blocked_use, described, label
from bnpass.graph.shapes import Shapes
from bnpass.semantics.affine import Affine, Array

HELD_BYTES = 128 << 20
"""New weights up to this size in all are held; beyond it time is paid for memory."""


@dataclass(frozen=True, eq=False)
class Target:
    """A linear op that will take an affine in, with the numbers it comes to.

    Attributes:
        absorption: The op and all it has taken in then.
        numbers: Its bias, and what has to be added behind an op without a bias slot.
        copies: Bytes of a shared weight that has to be cloned.
        map: What has to be added behind it, for each position: a shift before a padded Conv.
    """

    absorption: Absorption
    numbers: Numbers
    copies: int
    map: Array | None = None

    @property
    def node(self) -> ir.Node:
        """The linear op."""
        return self.absorption.linear.node


@dataclass(frozen=True, eq=False)
class Plan:
    """What is to become of a cell.

    Attributes:
        cell: The cell.
        targets: The linear ops that take it in.
        side: ``output`` or ``input`` of the linear ops.
        edits: What carriers on the way become.
        left: Operations per element of the cell that are left: of what stays, of Adds and carriers.
        stays: The affine that takes its place; None if nothing has to.
    """

    cell: Cell
    targets: tuple[Target, ...]
    side: str
    edits: Edits
    left: float
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
class _Part:
    """The part of an affine that travels, and what stays; both as affines of the cell's start."""

    travels: Affine
    stays: Affine


@dataclass(frozen=True, eq=False)
class Planner:
    """Plans for the cells of one scope.

    Attributes:
        scope: The scope.
        shapes: What is known about shapes.
        ledger: What was committed so far.
        costs: Of the target.
        sites: The affines of the scope, kept up to date.
        is_selected: Whether a node may be changed.
        positions: The place of each node in graph order.
    """

    scope: Scope
    shapes: Shapes
    ledger: Ledger
    costs: Costs
    sites: Mapping[ir.Node, Site]
    is_selected: Callable[[ir.Node], bool]
    positions: Mapping[ir.Node, int]

    def backward(self, cell: Cell) -> Plan | Refusal:
        """Plan a cell into the linear ops before it."""
        return self._backward(cell, None)

    def forward(self, cell: Cell) -> Plan | Refusal:
        """Plan a cell into every linear op behind it."""
        return self._forward(cell, None)

    def part(self, cell: Cell) -> Plan | None:
        """Plan what leaves the least of a cell that cannot go whole: scale or shift alone, or maps."""
        ahead = [self._forward(cell, part) for part in _parts_ahead(cell)]
        behind = [self._backward(cell, part) for part in _parts_behind(cell)]
        plans = [plan for plan in (*ahead, *behind, self._mapped(cell)) if isinstance(plan, Plan)]
        return min(plans, key=lambda plan: plan.left, default=None)

    def _backward(self, cell: Cell, part: _Part | None) -> Plan | Refusal:
        region = self._walk(cell).backward(cell.start, part.travels if part else cell.affine)
        if isinstance(region, Refusal):
            return region
        way = Way(cell.path, cell.nodes, cell.start, cell.affine)
        refusal = check_way(way, self.scope, self.shapes, at_start=cell.affine, tolerance=cell.tolerance)
        return refusal or self._plan(cell, region, "output", part)

    def _mapped(self, cell: Cell) -> Plan | Refusal:
        """Plan a cell forward, with a constant map behind each padded Conv that would need one.

        A map is read and kept: it has to halve the work at least.
        """
        plan = self._forward(cell, None, maps=True)
        worth = isinstance(plan, Refusal) or 2 * plan.left <= self.costs.of_sites(cell.sites)
        return plan if worth else _no_gain(cell, "the maps of the padded ops behind it would cost nearly as much")

    def _forward(self, cell: Cell, part: _Part | None, *, maps: bool = False) -> Plan | Refusal:
        stays, travels = (part.stays, part.travels) if part else (None, cell.affine)
        if not cell.end.uses() and not cell.end.is_graph_output():
            told = f"nothing reads its result '{cell.end.name}'"
            return Refusal(RefusalId.NO_LINEAR_NEIGHBOUR, label(cell.sites[0].node), told)
        carried = carry_on([n for n in cell.path if n not in cell.nodes], travels, self.scope, self.shapes)
        if isinstance(carried, Refusal):
            return carried
        region = self._walk(cell, maps=maps).forward(cell.end, carried)
        if isinstance(region, Refusal):
            return region
        way = Way(cell.path, cell.nodes, cell.start, cell.affine)
        refusal = check_way(way, self.scope, self.shapes, at_start=stays, at_end=carried, tolerance=cell.tolerance)
        return refusal or self._plan(cell, region, "input", part)

    def _walk(self, cell: Cell, *, maps: bool = False) -> Walk:
        ways = (self._position, self._linear, self._may_change)
        return Walk(cell.graph, self.scope, self.shapes, *ways, maps=maps)

    def _position(self, node: ir.Node) -> int:
        return self.positions.get(node, len(self.positions))

    def _may_change(self, node: ir.Node) -> bool:
        return node not in self.sites and self.is_selected(node)

    def _linear(self, node: ir.Node) -> Linear | Refusal:
        absorption = self._absorption(node)
        return absorption if isinstance(absorption, Refusal) else absorption.linear

    def _plan(self, cell: Cell, region: Region, side: str, part: _Part | None) -> Plan | Refusal:
        """Compute, judge and check where a cell goes."""
        if not region.targets and not region.operands and part is not None:
            return _no_gain(cell, "no op would take it in")
        targets: list[Target] = []
        for node in region.targets:
            target = self._target(node, region)
            if isinstance(target, Refusal):
                return target
            targets.append(target)
        stays = part.stays if part else None
        left = self._left(cell, targets, region, stays, side)
        if left >= self.costs.of_sites(cell.sites):
            return _no_gain(cell, _costs(targets, region, side))
        for carried in region.carriers.values():
            constants = {index: affine for (node, index), affine in region.operands.items() if node is carried.node}
            refusal = check_carrier(carried, self.scope, self.shapes, constants)
            if refusal is not None:
                return refusal
        edits = edits_of(region, self.scope, self.shapes)
        if isinstance(edits, Refusal):
            return edits
        return self._within_budget(Plan(cell, tuple(targets), side, edits, left, stays))

    def _left(self, cell: Cell, targets: list[Target], region: Region, stays: Affine | None, side: str) -> float:
        """Return what is left to compute, in operations per element of the cell."""
        left = self._extra(region)
        for target in targets:
            if target.map is not None:
                left += self._ratio(target.node.outputs[0], cell.start)
            elif target.numbers.shift is not None and not (side == "input" and _is_joined_later(target, self.sites)):
                left += self.costs.bias * self._ratio(target.node.outputs[0], cell.start)
        if stays is None or self._vanishes(cell, stays, ahead=side == "output"):
            return left
        return left + self.costs.of_affine(stays, as_batch_norm=False)

    def _extra(self, region: Region) -> float:
        return sum(self.costs.of_rewrite(carried.rewrite) for carried in region.carriers.values())

    def _vanishes(self, cell: Cell, stays: Affine, *, ahead: bool) -> bool:
        """Whether what stays of an affine can go the other way, in the next round, and leave nothing."""
        walk = self._walk(cell)
        if not ahead:
            region = walk.backward(cell.start, stays)
        else:
            carried = carry_on([n for n in cell.path if n not in cell.nodes], stays, self.scope, self.shapes)
            region = carried if isinstance(carried, Refusal) else walk.forward(cell.end, carried)
        if isinstance(region, Refusal) or self._extra(region):
            return False
        linear = [self._linear(node) for node in region.targets]
        return not any(isinstance(one, Refusal) or (one.bias is None and stays.has_shift) for one in linear)

    def _ratio(self, value: ir.Value, other: ir.Value) -> float:
        """Return how many elements a value has for one of another; 1 if that is not known."""
        here, there = self._elements(value), self._elements(other)
        return here / there if here and there else 1.0

    def _elements(self, value: ir.Value) -> int | None:
        """Return how many elements a value has for each sample; None if that is not known."""
        dims = self.shapes.near(value, self.scope) or (None, None)
        known = [d for d in dims[1:] if isinstance(d, int)]
        return math.prod(known) if len(known) == len(dims) - 1 else None

    def _absorption(self, node: ir.Node) -> Absorption | Refusal:
        """Return what a linear op has taken in so far, or why it takes nothing."""
        if node in self.ledger.absorbed:
            return self.ledger.absorbed[node]
        if len(node.outputs) != 1:
            return Refusal(RefusalId.UNSUPPORTED_OP, label(node), f"{described(node)} has more than one output")
        linear = LINEAR[node.op_type](node, self.scope)
        return linear if isinstance(linear, Refusal) else Absorption.of(linear)

    def _target(self, node: ir.Node, region: Region) -> Target | Refusal:
        """Compute the numbers of an absorption and what it costs in copies."""
        absorption = self._absorption(node)
        for affine, take in ((region.into.get(node), Absorption.before), (region.out.get(node), Absorption.behind)):
            if affine is not None and not isinstance(absorption, Refusal):
                absorption = take(absorption, affine)
        if isinstance(absorption, Refusal):
            return absorption
        linear = absorption.linear
        found = self._map(node, region)
        if isinstance(found, Refusal):
            return found
        if found is not None and (found == _first(found)).all():  # no position differs: it is a bias
            taken = absorption.behind(Affine(np.ones(()), _first(found)[None]))
            if isinstance(taken, Refusal):
                return taken
            absorption, found = taken, None
        if isinstance(linear.weight, Dequantized):
            numbers = quantized.compute(absorption, linear.weight, self.scope.opset)
        else:
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
        return Target(absorption, numbers, linear.weight.nbytes if shared else 0, found)

    def _map(self, node: ir.Node, region: Region) -> Array | Refusal | None:
        """Return what a padded Conv needs behind it, if it has to take a shift."""
        shift, absorption = region.maps.get(node), self._absorption(node)
        if shift is None or isinstance(absorption, Refusal):
            return None
        linear = absorption.linear
        vector = shift.vector(linear.data_axis, linear.layout.in_channels)
        if vector is None:
            told = f"{described(node)} is owed an affine that does not vary over its channels"
            return Refusal(RefusalId.AXIS_NOT_PROVABLE, label(node), told)
        return spatial_bias(absorption, vector.shift, self.scope, self.shapes)

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


def _parts_ahead(cell: Cell) -> list[_Part]:
    """Return how an affine parts going forward: s·(x + t/s), the scale going on; or (s·x) + t, the shift."""
    affine = cell.affine
    if not (affine.has_scale and affine.has_shift):
        return []
    scale, shift = affine.only_scale, affine.only_shift
    parts = [_Part(shift, scale)]
    if (affine.scale != 0).all():
        parts.insert(0, _Part(scale, replace(shift, shift=affine.shift / affine.scale)))
    return parts


def _parts_behind(cell: Cell) -> list[_Part]:
    """Return how an affine parts going backward: the scale first, then (s·x) + t; or the shift, then s·(x + t/s)."""
    affine = cell.affine
    if not (affine.has_scale and affine.has_shift):
        return []
    scale, shift = affine.only_scale, affine.only_shift
    parts = [_Part(scale, shift)]
    if (affine.scale != 0).all():
        parts.append(_Part(replace(shift, shift=affine.shift / affine.scale), scale))
    return parts


def _first(found: Array) -> Array:
    """Return the first position of a map, with its axes."""
    return found.reshape(len(found), -1)[:, :1].reshape(-1, *(1,) * (found.ndim - 1))


def _is_shared(value: ir.Value | None) -> bool:
    """Whether a weight, or a constant that it is rearranged from, is read by others and so stays beside its copy."""
    while value is not None:
        if len(value.uses()) > 1:
            return True
        node = value.producer()
        value = node.inputs[0] if node is not None and node.inputs else None
    return False


def _is_joined_later(target: Target, sites: Mapping[ir.Node, Site]) -> bool:
    """Whether behind an op without a bias slot an affine waits that the next round joins with the new Add."""
    output = target.node.outputs[0]
    return blocked_use(output) is None and any(use.node in sites for use in output.uses())


def _costs(targets: list[Target], region: Region, side: str) -> str:
    """Say what would be left in place of an affine."""
    clipped = next((c.node for c in region.carriers.values() if Costs.of_rewrite(c.rewrite)), None)
    if clipped is not None:
        return f"{described(clipped)} would need bounds for each channel, Max and Min, which cost as much"
    if side == "output" and targets:
        return f"it is the bias of {described(targets[0].node)} already"
    return f"the {len(targets)} ops behind it would each need an Add"


def _no_gain(cell: Cell, why: str) -> Refusal:
    return Refusal(RefusalId.NO_GAIN, label(cell.sites[0].node), why)
