"""Join neighbouring affines into cells: what folds together is rounded together.

A cell is a run of affine nodes, with layout ops between them, in which every value is read once. All of them are
stated as one affine of the value the run starts from. A run ends where the next affine varies over another axis,
because no linear op could take both in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from bnpass.errors import Refusal
from bnpass.folding.path_check import TOLERANCE
from bnpass.folding.recognize import Site
from bnpass.folding.rules import LAYOUT
from bnpass.folding.rules.carrier import Direction, Step
from bnpass.graph.nodes import Scope, blocked_use, is_standard, label
from bnpass.graph.shapes import Shapes
from bnpass.semantics.affine import Affine


@dataclass(frozen=True, eq=False)
class Cell:
    """A run of affines.

    Attributes:
        sites: The affine nodes, in order.
        path: The same with the layout ops between them.
        parts: Each of them as an affine of ``start``; wide.
        affine: All of them as one.
    """

    sites: tuple[Site, ...]
    path: tuple[ir.Node, ...]
    parts: tuple[Affine, ...]
    affine: Affine

    @property
    def start(self) -> ir.Value:
        """The value the first affine is applied to."""
        return self.sites[0].data

    @property
    def end(self) -> ir.Value:
        """The result of the last affine."""
        return self.sites[-1].node.outputs[0]

    @property
    def graph(self) -> ir.Graph | None:
        """The graph it stands in."""
        return self.sites[0].node.graph

    def carriers_before(self, site: Site) -> list[ir.Node]:
        """Return the layout ops between the start and one of the affines."""
        return [n for n in self.path[: self.path.index(site.node)] if n not in self.nodes]

    @property
    def nodes(self) -> frozenset[ir.Node]:
        """The affine nodes."""
        return frozenset(s.node for s in self.sites)

    @property
    def labels(self) -> tuple[str, ...]:
        """How the affine nodes are addressed."""
        return tuple(label(s.node) for s in self.sites)

    @property
    def batch_norms(self) -> tuple[str, ...]:
        """How those that are batch normalizations are addressed."""
        return tuple(label(s.node) for s in self.sites if s.is_batch_norm)

    @property
    def tolerance(self) -> float:
        """What the nodes may deviate from the affine: more where bnpass itself has rounded before."""
        return max([TOLERANCE, *(4 * s.rounding for s in self.sites)])

    @property
    def start_may_be_output(self) -> bool:
        """Whether the start can become the graph output that the end is: made in this graph, and not one already."""
        producer = self.start.producer()
        return producer is not None and producer.graph is self.graph and not self.start.is_graph_output()


def carrier_behind(value: ir.Value) -> ir.Node | None:
    """Return the layout op that is the only reader of ``value``, if there is one."""
    if blocked_use(value) is not None or not value.uses():
        return None
    (use,) = value.uses()
    return use.node if use.idx == 0 and is_standard(use.node, *LAYOUT) else None


def carry_back(nodes: Sequence[ir.Node], affine: Affine, scope: Scope, shapes: Shapes) -> Affine | Refusal:
    """Bring an affine of the last node's output before the first; the first refusal met on the way back."""
    for node in reversed(nodes):
        carried = LAYOUT[node.op_type](Step(node, Direction.BACKWARD, scope, shapes), affine)
        if isinstance(carried, Refusal):
            return carried
        affine = carried
    return affine


def carry_on(nodes: Sequence[ir.Node], affine: Affine, scope: Scope, shapes: Shapes) -> Affine | Refusal:
    """Bring an affine of the first node's input behind the last; the first refusal met on the way."""
    for node in nodes:
        carried = LAYOUT[node.op_type](Step(node, Direction.FORWARD, scope, shapes), affine)
        if isinstance(carried, Refusal):
            return carried
        affine = carried
    return affine


def build(order: Sequence[ir.Node], sites: Mapping[ir.Node, Site], scope: Scope, shapes: Shapes) -> list[Cell]:
    """Return the cells of a scope, in topological order of their first nodes."""
    cells: list[Cell] = []
    taken: set[ir.Node] = set()
    for node in order:
        site = sites.get(node)
        if site is None or node in taken:
            continue
        cell = _extend(site, sites, scope, shapes)
        taken.update(s.node for s in cell.sites)
        cells.append(cell)
    return cells


def _extend(first: Site, sites: Mapping[ir.Node, Site], scope: Scope, shapes: Shapes) -> Cell:
    cell = Cell((first,), (first.node,), (first.affine,), first.affine)
    carriers: list[ir.Node] = []  # all layout ops since the start: affines between them change no axis
    pending: list[ir.Node] = []  # those behind the last affine
    value = cell.end
    while True:
        if (carrier := carrier_behind(value)) is not None and carrier.graph is cell.graph:
            pending.append(carrier)
            value = carrier.outputs[0]
            continue
        joined = _join(cell, value, carriers + pending, pending, sites, scope, shapes)
        if joined is None:
            return cell
        cell, carriers, pending = joined, carriers + pending, []
        value = cell.end


def _join(
    cell: Cell,
    value: ir.Value,
    carriers: list[ir.Node],
    pending: list[ir.Node],
    sites: Mapping[ir.Node, Site],
    scope: Scope,
    shapes: Shapes,
) -> Cell | None:
    if blocked_use(value) is not None or not value.uses():
        return None
    (use,) = value.uses()
    site = sites.get(use.node)
    if site is None or site.data is not value or use.node.graph is not cell.graph:
        return None
    carried = carry_back(carriers, site.affine, scope, shapes)
    if isinstance(carried, Refusal):
        return None
    try:
        whole = cell.affine.then(carried)
    except ValueError:  # lengths that do not fit each other: no valid model, and no run of affines
        return None
    if len(whole.axes) > 1 or not (whole.is_moderate and carried.is_moderate):
        return None
    return Cell((*cell.sites, site), (*cell.path, *pending, site.node), (*cell.parts, carried), whole)
