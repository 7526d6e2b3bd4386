"""Carry plans out: take cells out of the graph and give their affines to the linear ops, or write them cheaper."""

from dataclasses import dataclass, replace

import onnx_ir as ir

from bnpass.errors import Refusal
from bnpass.folding.absorb import Absorption
from bnpass.folding.cells import Cell, carry_on
from bnpass.folding.costs import Costs
from bnpass.folding.lower import cheapest, host_of, into_arithmetic, into_batch_norm, into_host
from bnpass.folding.plan import Ledger, Plan, Target
from bnpass.folding.quantized.write import write_bias, write_weight
from bnpass.folding.recognize import Site
from bnpass.folding.result import Folded
from bnpass.folding.rewriting import carry_out as write_carriers
from bnpass.folding.write import Writer, trimmed
from bnpass.graph.nodes import Scope, bypass, label
from bnpass.graph.shapes import Shapes
from bnpass.semantics.affine import Affine, limits_of


@dataclass(frozen=True, eq=False)
class Committer:
    """Edits one scope.

    Attributes:
        scope: The scope.
        shapes: What is known about shapes.
        ledger: Where commitments are recorded.
        writer: Puts constants and nodes into the model.
        sites: The affines of the scope, kept up to date.
        costs: Of the target.
    """

    scope: Scope
    shapes: Shapes
    ledger: Ledger
    writer: Writer
    sites: dict[ir.Node, Site]
    costs: Costs

    def carry_out(self, plan: Plan) -> Folded | None:
        """Carry a plan out; None, and nothing is changed, if what should stay cannot be written."""
        names, batch_norms = plan.cell.labels, plan.cell.batch_norms
        new: list[Site] = []
        if plan.stays is None:
            for site in plan.cell.sites:
                bypass(site.node, site.data)
        else:
            written = into_arithmetic(plan.cell, plan.stays, self._dtype(plan.cell), self.writer, self.scope)
            if isinstance(written, Refusal):
                return None
            new = written
        self._exchange(plan.cell, new)
        write_carriers(plan.edits, self.writer, self.shapes, self.scope)
        for target in plan.targets:
            self._give(target)
        into = (*(s.node for s in new), *(t.node for t in plan.targets))
        rounding = tuple(t.numbers.units.rounding for t in plan.targets if t.numbers.units is not None)
        return Folded(names, tuple(label(node) for node in into), plan.side, batch_norms, rounding)

    def join(self, cell: Cell) -> Folded | None:
        """Write a cell in its cheapest form; None, and nothing is changed, if that cannot be."""
        names, batch_norms = cell.labels, cell.batch_norms
        host, kind = host_of(cell), cheapest(cell, self.costs, self.scope).kind
        if kind == "batch_norm":
            new = into_batch_norm(cell, self.writer, self.scope)
        elif kind == "arithmetic" or host is None:
            new = into_arithmetic(cell, cell.affine, self._dtype(cell), self.writer, self.scope)
        else:
            at_host = carry_on(cell.carriers_before(host), cell.affine, self.scope, self.shapes)
            if isinstance(at_host, Refusal):
                return None
            new = into_host(cell, host, at_host, self.writer, self.scope)
        if isinstance(new, Refusal):
            return None
        self._exchange(cell, new)
        gone = batch_norms[1:] if any(s.is_batch_norm for s in new) else batch_norms
        return Folded(names, tuple(label(s.node) for s in new), "joined", gone)

    def _dtype(self, cell: Cell) -> ir.DataType | None:
        return cell.sites[0].dtype or self.shapes.dtype(cell.start, self.scope)

    def _exchange(self, cell: Cell, new: list[Site]) -> None:
        for site in new:
            self.shapes.note_alike(site.node.outputs[0], site.data)
        for site in cell.sites:
            del self.sites[site.node]
        self.sites.update({site.node: site for site in new})

    def _give(self, target: Target) -> None:
        self.ledger.budget -= target.copies
        self.ledger.absorbed[target.node] = replace(target.absorption, is_written=True)
        if target.numbers.weight is not None:
            self.ledger.memory -= target.numbers.weight.nbytes
        linear, numbers = target.absorption.linear, target.numbers
        if numbers.integers is None:
            self.writer.weight(target.absorption, numbers.weight, self.scope)
        else:
            write_weight(linear, numbers.integers, self.writer, self.scope)
        self.writer.bias(target.absorption, numbers, self.scope)
        if numbers.units is not None and linear.bias is not None:
            write_bias(linear, linear.bias.index, numbers.units, self.writer, self.scope)
        self._add_behind(target)
        if target.map is not None:
            node, dtype = target.node, target.absorption.linear.weight.dtype
            add = self.writer.node_behind("Add", node.outputs[0], target.map, dtype, f"{label(node)}/Add", self.scope)
            self.shapes.note_alike(add.outputs[0], node.outputs[0])

    def _add_behind(self, target: Target) -> None:
        """Put the shift of an op without a bias slot into one Add right behind it."""
        absorption, shift, node = target.absorption, target.numbers.shift, target.node
        if shift is None:
            return
        linear, zero = absorption.linear, absorption.out.shift[:1] * 0
        # the Add carries the shifts from now on, exactly, so the op itself forgets them
        self.ledger.absorbed[node] = Absorption(
            linear, Affine(absorption.into.scale, zero), Affine(absorption.out.scale, zero)
        )
        dtype = linear.weight.dtype
        exact = shift[..., None, :] if linear.out_axis == -1 else shift[..., :, None]
        add = self.writer.node_behind("Add", node.outputs[0], exact, dtype, f"{label(node)}/Add", self.scope)
        self.shapes.note_alike(add.outputs[0], node.outputs[0])
        rank = self.shapes.rank(node.outputs[0], self.scope)
        exact = trimmed(exact)
        if rank is not None and exact.ndim <= rank and sum(d != 1 for d in exact.shape) <= 1:
            placed = exact.reshape((1,) * (rank - exact.ndim) + exact.shape)
            affine = Affine(placed.dtype.type(1).reshape(()), placed)
            self.sites[add] = Site(add, 0, affine, dtype, rounding=limits_of(dtype.numpy()).eps)
