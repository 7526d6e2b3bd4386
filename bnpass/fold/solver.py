"""Find each affine a place to vanish: plan, then commit.

Round by round, over cells in topological order: backward through layout ops into the linear op that made the value,
for all cells; then, from the end of the graph, forward through layout ops into every linear op that reads it; then
what stays is joined into its cheapest form. A plan is complete, computed and checked before the first edit. Rounds
are repeated until nothing changes, so that a second fold of the result finds nothing to do.

A plan is committed only if fewer operations per element are left than before.
"""

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from bnpass.errors import Refusal, RefusalId
from bnpass.fold.absorb import Absorption, Numbers, compute
from bnpass.fold.cells import Cell, build, carry_back
from bnpass.fold.graph import Scope, blocked_use, bypass, is_standard, label, scopes
from bnpass.fold.linear import Linear
from bnpass.fold.lower import cost_of, host_of, lower
from bnpass.fold.options import FoldOptions
from bnpass.fold.path_check import TOLERANCE, Way, check_way
from bnpass.fold.recognize import Site, is_batch_norm, recognize
from bnpass.fold.result import Folded, Kept
from bnpass.fold.rules import CARRIERS, LINEAR
from bnpass.fold.rules.layout import Step
from bnpass.fold.rules.layout import Way as Direction
from bnpass.fold.shapes import Shapes
from bnpass.fold.write import Writer, is_private
from bnpass.semantics.affine import Affine, limits_of


@dataclass(frozen=True, eq=False)
class Target:
    """A linear op that will take an affine in, with the numbers it comes to."""

    absorption: Absorption
    numbers: Numbers
    copies: int = 0
    """Bytes of a shared weight that has to be cloned."""


@dataclass
class _Round:
    """What one pass over a scope found."""

    changed: bool = False
    refusals: dict[ir.Node, Refusal] = field(default_factory=dict)


class Solver:
    """Folds one model in place."""

    def __init__(
        self, model: ir.Model, options: FoldOptions, progress: Callable[[str, float], None] | None = None
    ) -> None:
        self._model, self._options, self._progress = model, options, progress
        self._shapes = Shapes(model)
        self._writer = Writer(model)
        self._absorbed: dict[ir.Node, Absorption] = {}
        self._budget = options.clone_budget
        self.folded: list[Folded] = []
        self.kept: list[Kept] = []
        self.largest_error = 0.0

    def run(self) -> bool:
        """Fold every scope; return whether the model changed."""
        changed = False
        for scope in scopes(self._model):
            changed |= self._scope(scope)
        return changed

    def _scope(self, scope: Scope) -> bool:
        nodes = _nodes(scope)
        found = {n: recognize(n, scope, self._shapes) for n in nodes if self._is_selected(n)}
        sites = {n: s for n, s in found.items() if isinstance(s, Site)}
        refusals = {n: s for n, s in found.items() if isinstance(s, Refusal)}
        rounds = 0
        while (last := self._round(scope, sites)).changed:
            rounds += 1
        self._record_kept(scope, sites, {**refusals, **last.refusals})
        return rounds > 0

    def _round(self, scope: Scope, sites: dict[ir.Node, Site]) -> _Round:
        this = _Round()
        cells = build([n for n in _nodes(scope) if n in sites], sites, scope, self._shapes)
        left: list[tuple[Cell, Refusal]] = []
        for number, cell in enumerate(cells):
            if self._progress is not None:
                self._progress("fold", number / len(cells))
            behind = self._backward(cell, scope, sites)
            if behind is None:
                this.changed = True
            else:
                left.append((cell, behind))
        for cell, behind in reversed(left):
            ahead = self._forward(cell, scope, sites)
            if ahead is None or self._join(cell, scope, sites):
                this.changed = True
            else:
                this.refusals.update({s.node: _both(behind, ahead) for s in cell.sites})
        return this

    # --- backward -----------------------------------------------------------------------------------------------

    def _backward(self, cell: Cell, scope: Scope, sites: dict[ir.Node, Site]) -> Refusal | None:
        """Fold a cell into the linear op before it, or say why not."""
        reached = self._producer(cell, scope)
        if isinstance(reached, Refusal):
            return reached
        absorption, carriers, affine = reached
        planned = absorption.behind(affine)
        target = planned if isinstance(planned, Refusal) else self._priced(planned, scope)
        if isinstance(target, Refusal):
            return target
        if (refusal := self._over_budget([target])) is not None:
            return refusal
        if _left_behind(target) >= cell.cost:
            return Refusal(
                RefusalId.NO_GAIN,
                label(cell.sites[0].node),
                f"it is the bias of {_name(absorption.linear.node)} already",
            )
        start = absorption.linear.node.outputs[0]
        way = Way([*carriers, *cell.path], _affines(cell), start, affine)
        refusal = check_way(way, scope, self._shapes, at_start=affine, tolerance=_tolerance(cell))
        if refusal is not None:
            return refusal
        self._carry_out(cell, [target], "output", scope, sites)
        return None

    def _producer(self, cell: Cell, scope: Scope) -> tuple[Absorption, list[ir.Node], Affine] | Refusal:
        """Walk back through layout ops to a linear op; return it, the ops in graph order, and the affine there."""
        value, carriers = cell.start, list[ir.Node]()
        while True:
            blocked = blocked_use(value)
            if blocked is not None:
                return blocked
            node = value.producer()
            if node is None:
                return _no_neighbour(cell, f"before it stands '{value.name}', which no node of this graph makes")
            if node.graph is not cell.graph:
                return Refusal(
                    RefusalId.CROSSES_SCOPE,
                    label(node),
                    f"{_name(node)} before it stands in another graph or body",
                )
            if is_standard(node, *LINEAR):
                linear = self._linear(node, scope)
                if isinstance(linear, Refusal):
                    return linear
                affine = carry_back(carriers, cell.affine, scope, self._shapes)
                return affine if isinstance(affine, Refusal) else (linear, carriers, affine)
            source = node.inputs[0] if node.inputs else None
            if not is_standard(node, *CARRIERS) or value is not node.outputs[0] or source is None:
                return Refusal(RefusalId.NONLINEAR_BETWEEN, label(node), f"{_name(node)} stands before it")
            carriers.insert(0, node)
            value = source

    # --- forward ------------------------------------------------------------------------------------------------

    def _forward(self, cell: Cell, scope: Scope, sites: dict[ir.Node, Site]) -> Refusal | None:
        """Fold a cell into every linear op behind it, or at least its scale, or say why not."""
        whole = self._into_readers(cell, cell.affine, scope)
        if not isinstance(whole, Refusal):
            left = sum(_left_behind(t) - self._bias_waits(t, sites) for t in whole)
            if left >= cell.cost:
                return Refusal(
                    RefusalId.NO_GAIN,
                    label(cell.sites[0].node),
                    f"{len(whole)} ops behind it would each need an Add",
                )
            self._carry_out(cell, whole, "input", scope, sites)
            return None
        if whole.id is RefusalId.PADDING_BLOCKS_SHIFT and self._split(cell, scope, sites):
            return None
        return whole

    def _split(self, cell: Cell, scope: Scope, sites: dict[ir.Node, Site]) -> bool:
        """Send the scale on and leave ``x + t/s``, where only the shift is stopped by padding."""
        affine = cell.affine
        if cell.cost < 2 or not affine.has_scale or (affine.scale == 0).any():
            return False
        stays = Affine(np.ones_like(affine.scale), affine.shift / affine.scale)
        targets = self._into_readers(cell, Affine(affine.scale, affine.shift * 0), scope, stays=stays)
        if isinstance(targets, Refusal):
            return False
        names, batch_norms = _labels(cell), _batch_norms(cell)
        new = lower(cell, stays, self._writer, scope)
        if isinstance(new, Refusal):
            return False
        self._exchange(cell, new, sites)
        for target in targets:
            self._commit(target, scope, sites)
        into = tuple(label(node) for node in (*(s.node for s in new), *(_node_of(t) for t in targets)))
        self.folded.append(Folded(names, into, "input", batch_norms))
        return True

    def _into_readers(
        self, cell: Cell, affine: Affine, scope: Scope, *, stays: Affine | None = None
    ) -> list[Target] | Refusal:
        """Plan an affine of the cell's start for every linear op that is reached from its end."""
        targets: list[Target] = []
        carried = _carry_on([n for n in cell.path if n not in _affines(cell)], affine, scope, self._shapes)
        if isinstance(carried, Refusal):
            return carried
        waiting = [(cell.end, carried, list(cell.path))]
        while waiting:
            value, here, path = waiting.pop(0)
            if value.is_graph_output():
                return Refusal(
                    RefusalId.PRODUCER_IS_GRAPH_OUTPUT,
                    label(path[-1]),
                    f"its result '{value.name}' is a graph output",
                )
            if not value.uses():
                return _no_neighbour(cell, f"nothing reads its result '{value.name}'")
            for node, index in value.uses():
                step = self._reader(cell, node, index, here, scope)
                if isinstance(step, Refusal):
                    return step
                if isinstance(step, Affine):
                    waiting.append((node.outputs[0], step, [*path, node]))
                    continue
                way = Way(path, _affines(cell), cell.start, cell.affine)
                refusal = check_way(way, scope, self._shapes, at_start=stays, at_end=here, tolerance=_tolerance(cell))
                if refusal is not None:
                    return refusal
                targets.append(step)
        return self._over_budget(targets) or targets

    def _reader(self, cell: Cell, node: ir.Node, index: int, here: Affine, scope: Scope) -> Affine | Target | Refusal:
        """Ask one reader: a layout op carries the affine on, a linear op takes it in."""
        if node.graph is not cell.graph:
            return Refusal(
                RefusalId.CROSSES_SCOPE,
                label(node),
                f"{_name(node)} behind it stands in another graph or body",
            )
        if is_standard(node, *CARRIERS) and index == 0:
            return CARRIERS[node.op_type](Step(node, Direction.FORWARD, scope, self._shapes), here)
        if not is_standard(node, *LINEAR):
            return Refusal(RefusalId.NONLINEAR_BETWEEN, label(node), f"{_name(node)} stands behind it")
        absorption = self._linear(node, scope)
        if isinstance(absorption, Refusal):
            return absorption
        if index != absorption.linear.data_index:
            return Refusal(RefusalId.UNSUPPORTED_OP, label(node), f"{_name(node)} reads it as a weight or bias")
        planned = absorption.before(here)
        return planned if isinstance(planned, Refusal) else self._priced(planned, scope)

    def _bias_waits(self, target: Target, sites: dict[ir.Node, Site]) -> int:
        """Return 1 if behind an op without a bias slot an affine waits that the next round joins with the new Add."""
        if target.numbers.shift is None:
            return 0
        output = target.absorption.linear.node.outputs[0]
        return int(blocked_use(output) is None and any(u.node in sites for u in output.uses()))

    # --- what stays ---------------------------------------------------------------------------------------------

    def _join(self, cell: Cell, scope: Scope, sites: dict[ir.Node, Site]) -> bool:
        """Write a cell in its cheapest form, if that is cheaper than how it is spelled."""
        if cost_of(cell.affine, as_batch_norm=host_of(cell) is not None) >= cell.cost:
            return False
        if not cost_of(cell.affine) and cell.end.is_graph_output() and not _may_be_output(cell):
            return False
        way = Way(cell.path, _affines(cell), cell.start, cell.affine)
        if check_way(way, scope, self._shapes, at_start=cell.affine, tolerance=_tolerance(cell)) is not None:
            return False
        names, batch_norms = _labels(cell), _batch_norms(cell)
        new = lower(cell, cell.affine, self._writer, scope, host=host_of(cell))
        if isinstance(new, Refusal):
            return False
        self._exchange(cell, new, sites)
        into = tuple(label(s.node) for s in new)
        self.folded.append(Folded(names, into, "joined", batch_norms[1:] if new else batch_norms))
        return True

    # --- plan and commit ----------------------------------------------------------------------------------------

    def _linear(self, node: ir.Node, scope: Scope) -> Absorption | Refusal:
        """Return what a linear op has taken in so far, or why it takes nothing."""
        if node in self._absorbed:
            return self._absorbed[node]
        if len(node.outputs) != 1:
            return Refusal(RefusalId.UNSUPPORTED_OP, label(node), f"{_name(node)} has more than one output")
        linear: Linear | Refusal = LINEAR[node.op_type](node, scope)
        return linear if isinstance(linear, Refusal) else Absorption.of(linear)

    def _priced(self, absorption: Absorption, scope: Scope) -> Target | Refusal:
        """Compute the numbers of a plan and what it costs in copies."""
        linear = absorption.linear
        numbers = compute(absorption)
        if isinstance(numbers, Refusal):
            return numbers
        if numbers.shift is not None and (linear.out_axis != -1 or numbers.shift.ndim > 1):
            data = linear.node.inputs[linear.data_index]
            rank = self._shapes.rank(data, scope) if data is not None else None
            if rank is None or rank < 2:
                return Refusal(
                    RefusalId.AXIS_NOT_PROVABLE,
                    label(linear.node),
                    f"{_name(linear.node)} would need an Add behind it, but the rank of its data is not known to be 2",
                )
        value = linear.node.inputs[linear.weight_index]
        shared = value is not None and len(value.uses()) > 1 and not is_private(value, scope)
        return Target(absorption, numbers, linear.weight.nbytes if shared else 0)

    def _over_budget(self, targets: list[Target]) -> Refusal | None:
        """Refuse a plan whose copies of shared weights cost more than is left of the budget."""
        total = sum(t.copies for t in targets)
        if total <= self._budget:
            return None
        node = next(_node_of(t) for t in targets if t.copies)
        return Refusal(
            RefusalId.CLONE_BUDGET,
            label(node),
            f"the weight of {_name(node)} is shared, and copies of {total} bytes are more than what is left of the "
            f"clone budget ({self._budget})",
        )

    def _commit(self, target: Target, scope: Scope, sites: dict[ir.Node, Site]) -> None:
        absorption = target.absorption
        self._budget -= target.copies
        self._absorbed[_node_of(target)] = absorption
        self._writer.weight(absorption, scope)
        self._writer.bias(absorption, target.numbers, scope)
        if target.numbers.shift is not None:
            self._add_behind(target, scope, sites)
        self.largest_error = max(self.largest_error, target.numbers.error)

    def _add_behind(self, target: Target, scope: Scope, sites: dict[ir.Node, Site]) -> None:
        """Put the shift of an op without a bias slot into one Add right behind it."""
        absorption, shift = target.absorption, target.numbers.shift
        linear, node = absorption.linear, absorption.linear.node
        if shift is None:
            return
        zero = absorption.out.shift[:1] * 0
        # the Add carries these shifts from now on, exactly, so the op itself forgets them
        self._absorbed[node] = Absorption(
            linear, Affine(absorption.into.scale, zero), Affine(absorption.out.scale, zero)
        )
        exact = shift[..., None, :] if linear.out_axis == -1 else shift[..., :, None]
        add = self._writer.node_behind("Add", node.outputs[0], exact, linear.weight.dtype, f"{label(node)}/Add", scope)
        rank = self._shapes.rank(node.outputs[0], scope)
        if rank is not None and exact.ndim == 2:
            placed = exact.reshape((1,) * (rank - 2) + exact.shape)
            affine = Affine(placed.dtype.type(1).reshape(()), placed)
            sites[add] = Site(add, 0, affine, linear.weight.dtype, rounding=limits_of(linear.weight.dtype.numpy()).eps)

    def _carry_out(
        self, cell: Cell, targets: list[Target], side: str, scope: Scope, sites: dict[ir.Node, Site]
    ) -> None:
        """Take a cell out of the graph and give its affine to the targets."""
        names, batch_norms = _labels(cell), _batch_norms(cell)
        for site in cell.sites:
            del sites[site.node]
            bypass(site.node, site.data)
        for target in targets:
            self._commit(target, scope, sites)
        self.folded.append(Folded(names, tuple(label(_node_of(t)) for t in targets), side, batch_norms))

    @staticmethod
    def _exchange(cell: Cell, new: list[Site], sites: dict[ir.Node, Site]) -> None:
        for site in cell.sites:
            del sites[site.node]
        sites.update({site.node: site for site in new})

    # --- the record ---------------------------------------------------------------------------------------------

    def _is_selected(self, node: ir.Node) -> bool:
        names = [label(node), *(v.name for v in node.outputs if v.name)]

        def matches(patterns: tuple[str, ...]) -> bool:
            return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)

        return (not self._options.only or matches(self._options.only)) and not matches(self._options.exclude)

    def _record_kept(self, scope: Scope, sites: dict[ir.Node, Site], refusals: dict[ir.Node, Refusal]) -> None:
        for node in _nodes(scope):
            refusal = refusals.get(node)
            if refusal is None and is_batch_norm(node):
                refusal = Refusal(RefusalId.NOT_SELECTED, label(node), "it was not selected")
            if refusal is None or not _is_reported(node, sites.get(node), refusal):
                continue
            self.kept.append(Kept(label(node), node.op_type, refusal.id, refusal.node, refusal.reason))


def _nodes(scope: Scope) -> list[ir.Node]:
    return list(ir.traversal.RecursiveGraphIterator(scope.graph))


def _affines(cell: Cell) -> frozenset[ir.Node]:
    return frozenset(s.node for s in cell.sites)


def _may_be_output(cell: Cell) -> bool:
    """Whether the start of a cell can become the graph output that its end is: made here, and not one already."""
    producer = cell.start.producer()
    return producer is not None and producer.graph is cell.graph and not cell.start.is_graph_output()


def _labels(cell: Cell) -> tuple[str, ...]:
    return tuple(label(s.node) for s in cell.sites)


def _batch_norms(cell: Cell) -> tuple[str, ...]:
    return tuple(label(s.node) for s in cell.sites if s.is_batch_norm)


def _node_of(target: Target) -> ir.Node:
    return target.absorption.linear.node


def _carry_on(nodes: list[ir.Node], affine: Affine, scope: Scope, shapes: Shapes) -> Affine | Refusal:
    """Bring an affine of the first node's input behind the last."""
    for node in nodes:
        carried = CARRIERS[node.op_type](Step(node, Direction.FORWARD, scope, shapes), affine)
        if isinstance(carried, Refusal):
            return carried
        affine = carried
    return affine


def _left_behind(target: Target) -> int:
    """Operations per element that a linear op without a bias slot leaves behind it."""
    return int(target.numbers.shift is not None)


def _tolerance(cell: Cell) -> float:
    """Return what the nodes of a cell may deviate from its affine: more where bnpass itself has rounded before."""
    return max([TOLERANCE, *(4 * s.rounding for s in cell.sites)])


def _no_neighbour(cell: Cell, why: str) -> Refusal:
    return Refusal(RefusalId.NO_LINEAR_NEIGHBOUR, label(cell.sites[0].node), why)


def _name(node: ir.Node) -> str:
    return f"{node.op_type} '{label(node)}'"


def _is_reported(node: ir.Node, site: Site | None, refusal: Refusal) -> bool:
    """Scalars are no per-channel affines, and the Add that is a MatMul's bias is none that stayed."""
    if is_batch_norm(node):
        return True
    if site is not None and site.affine.is_uniform:
        return False
    return refusal.id is not RefusalId.NO_GAIN


def _both(behind: Refusal, ahead: Refusal) -> Refusal:
    """Join the reasons of the two directions under the id that says more."""
    if behind.id is RefusalId.NO_GAIN:
        return behind
    lead = ahead if behind.id is RefusalId.NO_LINEAR_NEIGHBOUR else behind
    return Refusal(lead.id, lead.node, f"{behind.reason}; {ahead.reason}")
