"""Merge the linear ops of one scope: structural re-parameterization, without the source code of the model.

    parallel     Conv(x) + Conv(x) + BatchNormalization(x) + AveragePool(x) + x     one Conv; likewise Conv(x) - x
    sequential   Conv(Conv(x)) with one kernel of 1, Gemm(Gemm(x))                  one Conv, one Gemm

Nodes are visited in graph order, so that what a merge makes can be merged with what comes behind it. A merge is
computed, judged and checked before the graph is touched, and it never multiplies more often than what it replaces.
"""

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from bnpass.errors import Refusal, RefusalId
from bnpass.folding.merging.branch import Branch, chain
from bnpass.folding.merging.check import MergeCheck, Run
from bnpass.folding.merging.commit import become, strike
from bnpass.folding.merging.numbers import Numbers, compute
from bnpass.folding.merging.padding import take_padding
from bnpass.folding.merging.reader import Reader
from bnpass.folding.merging.result import Merged, Merging
from bnpass.folding.merging.sums import Group, Sum, choose, find_sum
from bnpass.folding.plan import Ledger
from bnpass.folding.recognize import Site
from bnpass.folding.rules import conv
from bnpass.folding.window import attributes_of
from bnpass.folding.write import Writer
from bnpass.graph.batch_norm import is_batch_norm
from bnpass.graph.constants import Constant, find_float
from bnpass.graph.nodes import Scope, is_standard, label, nodes_of, operand
from bnpass.graph.shapes import Shapes

_PRODUCTS = ("Conv", "Gemm")


def merge(
    scope: Scope,
    shapes: Shapes,
    ledger: Ledger,
    writer: Writer,
    sites: MutableMapping[ir.Node, Site] | None = None,
    is_selected: Callable[[ir.Node], bool] = lambda _: True,
) -> Merging:
    """Merge sums and chains of linear ops of a scope, in place.

    Args:
        scope: The scope.
        shapes: What is known about shapes.
        ledger: What linear ops have taken in so far; merged ones are recorded there with their exact numbers.
        writer: Puts constants into the model.
        sites: The affines of the scope, without those that are gone then; None to recognize them.
        is_selected: Whether a node may be touched.

    Returns:
        What was merged, and which sums could have been less and why they stay.

    Raises:
        VerificationError: A merge failed its local check, which is a bug in bnpass; the graph was not touched by it.
    """
    reader = Reader(scope, shapes, ledger.absorbed, sites, is_selected)
    return _Merger(scope, reader, ledger, writer, sites).run()


@dataclass(frozen=True, eq=False)
class _Plan:
    """One op in place of several nodes.

    Attributes:
        branch: The map that it is.
        host: The node that becomes it.
        attributes: Its attributes.
        numbers: Its numbers.
        copies: Bytes of old weights that stay because others read them.
    """

    branch: Branch
    host: ir.Node
    attributes: tuple[ir.Attr, ...]
    numbers: Numbers
    copies: int


@dataclass(frozen=True, eq=False)
class _Merger:
    scope: Scope
    reader: Reader
    ledger: Ledger
    writer: Writer
    sites: MutableMapping[ir.Node, Site] | None
    done: Merging = field(default_factory=Merging)
    adders: dict[ir.Node, bool] = field(default_factory=dict)

    def run(self) -> Merging:
        """Visit every node."""
        for node in nodes_of(self.scope):
            if node.graph is None:
                continue
            if is_standard(node, *_PRODUCTS):
                self._take_padding(node)
                self._follow(node)
            elif self._adds(node, "Sub") or (self._is_adder(node) and not self._is_inner(node)):
                for host in self._add_up(node):
                    self._follow(host)
        return self.done

    # --- sums ---------------------------------------------------------------------------------------------------

    def _is_adder(self, node: ir.Node) -> bool:
        if node not in self.adders:
            self.adders[node] = self._adds(node, "Add", "Sum")
        return self.adders[node]

    def _adds(self, node: ir.Node, *op_types: str) -> bool:
        """Whether a node adds values up, all of them computed and in the order that pleases, or takes one away."""
        if not is_standard(node, *op_types) or not self.reader.is_selected(node) or len(node.outputs) != 1:
            return False
        if len(node.inputs) < 2 or any(v is None for v in node.inputs):
            return False
        if self.scope.opset < 7 and node.attributes.get_int("broadcast", 0) != 0:
            return False
        return self.reader.site(node) is None

    def _is_inner(self, node: ir.Node) -> bool:
        """Whether a node adds up for another adder alone."""
        if not self._is_adder(node) or self.reader.is_shared(node.outputs[0]) or not node.outputs[0].uses():
            return False
        (use,) = node.outputs[0].uses()
        return use.node.graph is node.graph and self._is_adder(use.node)

    def _add_up(self, root: ir.Node) -> list[ir.Node]:
        """Merge what can be of one sum; return the nodes that hold it now."""
        found = find_sum(root, self._is_inner)
        choice = choose(found, lambda value: self.reader.branch(value, root.graph))
        plans: list[tuple[Group, _Plan]] = []
        for group in choice.groups:
            signed = [(b, a.sign) for a, b in zip(group.addends, group.branches, strict=True)]
            plan = self._planned(group.merged, _host_of(group), signed)
            if isinstance(plan, Refusal):
                choice.refusals.append(plan)
            else:
                self._reserve(plan)
                plans.append((group, plan))
        if choice.refusals:
            self.done.refused[root] = choice.refusals[0]
        if plans:
            self._commit_sum(found, plans)
        return [plan.host for _, plan in plans]

    def _commit_sum(self, found: Sum, plans: Sequence[tuple[Group, _Plan]]) -> None:
        struck = [a for group, plan in plans for a in group.addends if a.value is not plan.host.outputs[0]]
        named = [_named_after(group, plan.host) for group, plan in plans]
        told = [[label(n) for n in g.merged.nodes if n is not node] for (g, _), node in zip(plans, named, strict=True)]
        told[0] += strike(found, struck)
        for (_, plan), node, labels in zip(plans, named, told, strict=True):
            norms = _norms(plan)
            self._commit(plan, node.name)
            self.done.merged.append(Merged(tuple(labels), label(plan.host), norms, "parallel", plan.numbers.error))

    # --- padding ------------------------------------------------------------------------------------------------

    def _take_padding(self, node: ir.Node) -> None:
        """Let a Conv pad for itself."""
        if not is_standard(node, "Conv") or not self.reader.is_selected(node):
            return
        pad = take_padding(node, self.scope, self.reader.is_selected)
        if pad is not None:
            self._see_padding(node)
            self.done.merged.append(Merged((label(pad),), label(node), (), "padding", 0.0))

    def _see_padding(self, node: ir.Node) -> None:
        """Bring what a Conv has taken in up to date: from now on it pads, and what it took in before did not."""
        absorption, linear = self.ledger.absorbed.get(node), conv.describe(node, self.scope)
        if absorption is None or isinstance(linear, Refusal):
            return
        if absorption.into.has_shift:  # also of the zeros around: the numbers as they stand say it
            del self.ledger.absorbed[node]
        else:
            padded = replace(absorption.linear, shift_at_input=linear.shift_at_input)
            self.ledger.absorbed[node] = replace(absorption, linear=padded)

    # --- chains -------------------------------------------------------------------------------------------------

    def _follow(self, node: ir.Node) -> None:
        """Merge a product with the one before it, as long as there is one."""
        while (whole := self._with_the_one_before(node)) is not None:
            plan = self._planned(whole, node, [(whole, 1)])
            if isinstance(plan, Refusal):
                return
            self._reserve(plan)
            labels, norms = tuple(label(n) for n in whole.nodes if n is not node), _norms(plan)
            self._commit(plan, node.name)
            self.done.merged.append(Merged(labels, label(node), norms, "sequential", plan.numbers.error))

    def _with_the_one_before(self, node: ir.Node) -> Branch | None:
        second = self.reader.one(node)
        before = second.data.producer() if second is not None else None
        if second is None or before is None or before.graph is not node.graph or self.reader.is_shared(second.data):
            return None
        first = self.reader.one(before) if is_standard(before, node.op_type) else None
        whole = chain(first, second) if first is not None else None
        return whole if whole is not None and whole.weights <= whole.work else None

    # --- both ---------------------------------------------------------------------------------------------------

    def _planned(self, branch: Branch, host: ir.Node, parts: Sequence[tuple[Branch, int]]) -> _Plan | Refusal:
        """Compute, judge and check what a map, of parts with signs, comes to as one op."""
        dtype, where, attributes = branch.dtype, label(host), attributes_of(branch.window, branch.group)
        if dtype is None:
            return Refusal(RefusalId.DTYPE_WOULD_LOSE_PRECISION, where, f"the type of '{branch.data.name}' is unknown")
        copies = _copies(branch, self.scope)
        if copies > self.ledger.budget:
            told = f"copies of {copies} bytes of shared weights are more than the clone budget ({self.ledger.budget})"
            return Refusal(RefusalId.CLONE_BUDGET, where, told)
        check = MergeCheck(
            [Run(part.nodes, sum(self._is_rounded(n) for n in part.nodes), sign) for part, sign in parts],
            {a.name: a for a in attributes},
            branch.shape,
            branch.channels[1],
            self.reader.lengths(branch.data) if any(axis.stride > 1 for axis in branch.window) else (),
            dtype.numpy(),
            self.scope,
            where,
        )
        numbers = compute(branch, dtype, self.ledger.memory, check, where)
        return numbers if isinstance(numbers, Refusal) else _Plan(branch, host, attributes, numbers, copies)

    def _is_rounded(self, node: ir.Node) -> bool:
        """Whether a node stores numbers that are rounded ones of those that are computed with."""
        site = self.sites.get(node) if self.sites is not None else None
        return node in self.ledger.absorbed or (site is not None and site.rounding > 0)

    def _reserve(self, plan: _Plan) -> None:
        self.ledger.budget -= plan.copies
        self.ledger.memory -= plan.numbers.held

    def _commit(self, plan: _Plan, name: str | None) -> None:
        """Let the host become the op, and remove the other nodes."""
        for node in plan.branch.nodes:
            self.ledger.absorbed.pop(node, None)
            if self.sites is not None:
                self.sites.pop(node, None)
        plan.host.name = name
        absorbed = self.ledger.absorbed
        become(plan.host, plan.branch, plan.attributes, plan.numbers, self.writer, self.scope, absorbed)
        self.reader.look_again(plan.branch.data)


def _norms(plan: _Plan) -> tuple[str, ...]:
    """Return how the batch normalizations of a plan are addressed."""
    return tuple(label(node) for node in plan.branch.nodes if is_batch_norm(node))


def _host_of(group: Group) -> ir.Node:
    """Return the last node of the most costly branch, of one that ends in a product if there is one."""
    working = [b for b in group.branches if b.work]
    return max(working, key=lambda b: (b.nodes[-1].op_type in _PRODUCTS, b.work)).nodes[-1]


def _named_after(group: Group, host: ir.Node) -> ir.Node:
    """Return the node whose name the merged op gets: the host, or a product if the host is none."""
    products = [n for n in group.merged.nodes if n.op_type in _PRODUCTS and n.name]
    return host if host.op_type in _PRODUCTS or not products else products[0]


def _copies(branch: Branch, scope: Scope) -> int:
    """Return the bytes of old weights that stay because other nodes read them."""
    nodes = set(branch.nodes)
    weights = dict.fromkeys(operand(n, 1) for n in branch.nodes if is_standard(n, *_PRODUCTS))
    found = [find_float(v, scope) for v in weights if _is_read_beside(v, nodes)]
    return sum(c.nbytes for c in found if isinstance(c, Constant))


def _is_read_beside(value: ir.Value | None, readers: set[ir.Node]) -> bool:
    """Whether a weight, or a constant that it is rearranged from, is read by others."""
    while value is not None:
        if any(use.node not in readers for use in value.uses()):
            return True
        node = value.producer()
        readers = {node} if node is not None else set()
        value = node.inputs[0] if node is not None and node.inputs else None
    return False
