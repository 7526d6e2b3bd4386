"""Fold a model: plan, then commit, round by round.

Nodes that change nothing go before each round. In a round every cell is asked backward, in graph order. When none
goes, parallel and sequential linear ops are merged. When none merge, those that stay are asked forward, from the end of
the graph on; what stays then is joined into its cheapest form; and when nothing whole moves any more, parts do. All is
repeated until nothing changes, so that a second fold of the result finds nothing to do. Nothing is committed unless
less is left to compute than before.
"""

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass, field

import onnx_ir as ir

from bnpass.errors import Refusal, RefusalId
from bnpass.folding.cells import Cell, build
from bnpass.folding.commit import Committer
from bnpass.folding.costs import COSTS
from bnpass.folding.lower import cheapest
from bnpass.folding.merging.merger import merge
from bnpass.folding.merging.result import Merged
from bnpass.folding.options import FoldOptions
from bnpass.folding.path_check import Way, check_way
from bnpass.folding.plan import Ledger, Plan, Planner
from bnpass.folding.recognize import Site, recognize
from bnpass.folding.result import Folded
from bnpass.folding.write import Writer
from bnpass.graph.batch_norm import is_batch_norm
from bnpass.graph.idle import remove_idle
from bnpass.graph.kept import Kept
from bnpass.graph.nodes import Scope, drop_unread, label, nodes_of, scopes, unread_initializers
from bnpass.graph.shapes import Shapes

_OF_NUMBERS = frozenset({
    RefusalId.WOULD_OVERFLOW, RefusalId.INVALID_STATISTICS, RefusalId.DTYPE_WOULD_LOSE_PRECISION, RefusalId.CLONE_BUDGET
})  # fmt: skip
"""Reasons that do not go away when scale and shift part."""


@dataclass
class _Round:
    """What one pass over a scope found."""

    changed: bool = False
    refusals: dict[ir.Node, Refusal] = field(default_factory=dict)
    apart: list[Kept] = field(default_factory=list)


class Solver:
    """Folds one model in place.

    Attributes:
        folded: The affines that are gone, in the order in which they went.
        kept: Those that stayed, in graph order.
        merged: The linear ops that became one.
        apart: The sums that could not.
        idle: The nodes that changed nothing, and are gone.
        largest_error: Largest deviation of a local check, relative to what rounding permits.
    """

    def __init__(
        self, model: ir.Model, options: FoldOptions, progress: Callable[[str, float], None] | None = None
    ) -> None:
        self._model, self._options, self._progress = model, options, progress
        self._shapes, self._writer, self._ledger = Shapes(model), Writer(model), Ledger(options.clone_budget)
        self.folded: list[Folded] = []
        self.kept: list[Kept] = []
        self.merged: list[Merged] = []
        self.apart: list[Kept] = []
        self.idle: list[str] = []
        self.largest_error = 0.0

    def run(self) -> bool:
        """Fold every scope; return whether the model changed."""
        changed = False
        for scope in scopes(self._model):
            changed |= self._scope(scope)
        return changed

    def _scope(self, scope: Scope) -> bool:
        unread, changed = unread_initializers(scope.graph), self._remove_idle(scope)
        found = {n: recognize(n, scope, self._shapes) for n in nodes_of(scope) if self._is_selected(n)}
        sites = {n: s for n, s in found.items() if isinstance(s, Site)}
        refusals = {n: s for n, s in found.items() if isinstance(s, Refusal)}
        committer = Committer(scope, self._shapes, self._ledger, self._writer, sites, COSTS[self._options.target])
        while (last := self._round(committer)).changed:
            changed = True
            self._remove_idle(scope)
            self._look_again(scope, sites, refusals)
        self.apart += last.apart
        drop_unread(scope, unread)
        self._record_kept(scope, sites, {**refusals, **last.refusals})
        return changed

    def _remove_idle(self, scope: Scope) -> bool:
        gone = remove_idle(scope, self._shapes, self._is_selected)
        self.idle += gone
        return bool(gone)

    def _look_again(self, scope: Scope, sites: dict[ir.Node, Site], refusals: dict[ir.Node, Refusal]) -> None:
        """Recognize what could not be before: with an affine gone, the shape behind it may be known now."""
        for node in [n for n, r in refusals.items() if r.id is RefusalId.AXIS_NOT_PROVABLE]:
            found = recognize(node, scope, self._shapes) if node.graph is not None else None
            if isinstance(found, Site):
                del refusals[node]
                sites[node] = found

    def _round(self, committer: Committer) -> _Round:
        this, sites, scope = _Round(), committer.sites, committer.scope
        order = nodes_of(scope)
        positions = {node: position for position, node in enumerate(order)}
        planner = Planner(scope, self._shapes, self._ledger, committer.costs, sites, self._is_selected, positions)
        cells = build([n for n in order if n in sites], sites, scope, self._shapes)
        left: list[tuple[Cell, Plan | Refusal]] = []
        for number, cell in enumerate(cells):
            if self._progress is not None:
                self._progress("fold", number / len(cells))
            plan = planner.backward(cell)
            if isinstance(plan, Plan) and not plan.left and not plan.edits.chains:
                this.changed |= self._commit(plan, committer)
            else:
                left.append((cell, plan))
        if this.changed or self._merge(committer, this):
            return this
        waiting = [cell for cell, behind in reversed(left) if not self._onwards(cell, behind, planner, committer, this)]
        if not this.changed:  # parts of affines move only when no whole one can
            for cell in waiting:
                this.changed |= self._part(cell, planner, committer)
        return this

    def _onwards(
        self, cell: Cell, behind: Plan | Refusal, planner: Planner, committer: Committer, this: _Round
    ) -> bool:
        """Let a cell go where the least is left, or join it; return whether there is nothing else to try."""
        ahead = planner.forward(cell)
        plans = [plan for plan in (ahead, behind) if isinstance(plan, Plan)]
        best = min(plans, key=lambda plan: (plan.left, len(plan.edits.chains)), default=None)
        if (best is not None and self._commit(best, committer)) or self._join(cell, committer):
            this.changed = True
            return True
        refusals = [plan for plan in (behind, ahead) if isinstance(plan, Refusal)]
        if refusals:
            refusal = _both(*refusals) if len(refusals) > 1 else refusals[0]
            this.refusals.update({s.node: refusal for s in cell.sites})
        return any(refusal.id in _OF_NUMBERS for refusal in refusals)

    def _part(self, cell: Cell, planner: Planner, committer: Committer) -> bool:
        plan = planner.part(cell)
        return plan is not None and self._commit(plan, committer)

    def _merge(self, committer: Committer, this: _Round) -> bool:
        """Merge linear ops; return whether any were."""
        if not self._options.merge:
            return False
        done = merge(committer.scope, self._shapes, self._ledger, self._writer, committer.sites, self._is_selected)
        self.merged += done.merged
        self.largest_error = max([self.largest_error, *(one.error for one in done.merged)])
        this.apart = [Kept(label(n), n.op_type, r.id, r.node, r.reason) for n, r in done.refused.items()]
        this.changed |= bool(done.merged)
        return bool(done.merged)

    def _commit(self, plan: Plan, committer: Committer) -> bool:
        folded = committer.carry_out(plan)
        if folded is None:
            return False
        self.folded.append(folded)
        self.largest_error = max([self.largest_error, *(t.numbers.error for t in plan.targets)])
        return True

    def _join(self, cell: Cell, committer: Committer) -> bool:
        """Write a cell in its cheapest form, if that is cheaper than how it is spelled."""
        if cheapest(cell, committer.costs, committer.scope).cost >= committer.costs.of_sites(cell.sites):
            return False
        way = Way(cell.path, cell.nodes, cell.start, cell.affine)
        checked = check_way(way, committer.scope, self._shapes, at_start=cell.affine, tolerance=cell.tolerance)
        folded = committer.join(cell) if checked is None else None
        if folded is not None:
            self.folded.append(folded)
        return folded is not None

    def _is_selected(self, node: ir.Node) -> bool:
        names = [label(node), *(v.name for v in node.outputs if v.name)]

        def matches(patterns: tuple[str, ...]) -> bool:
            return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)

        return (not self._options.only or matches(self._options.only)) and not matches(self._options.exclude)

    def _record_kept(self, scope: Scope, sites: dict[ir.Node, Site], refusals: dict[ir.Node, Refusal]) -> None:
        for node in nodes_of(scope):
            refusal = refusals.get(node)
            if refusal is None and is_batch_norm(node):
                refusal = Refusal(RefusalId.NOT_SELECTED, label(node), "it was not selected")
            if refusal is not None and _is_reported(node, sites.get(node), refusal):
                self.kept.append(Kept(label(node), node.op_type, refusal.id, refusal.node, refusal.reason))


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
