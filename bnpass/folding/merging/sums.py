"""Find the sums of a graph, and choose which of their addends become one op.

A sum is a tree of Add and Sum whose inner values have no other reader, or one Sub. Its addends are grouped by the value
that they are linear maps of. Within a group only maps with equal channels, strides and reach can be added up, and one
op must not multiply more often than the ops it replaces: a depthwise branch is not drowned in a dense one. All are
tried first, then, from the most costly one on, each with those that make it no dearer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from bnpass.errors import Refusal, RefusalId
from bnpass.folding.merging.branch import Branch, diagonal, negative, total
from bnpass.graph.nodes import label

MAX_OPEN = 16
"""Most unfinished ops that a branch is tried with, so that many branches do not take quadratic time."""


@dataclass(frozen=True, eq=False)
class Sum:
    """A tree of additions.

    Attributes:
        adders: Its nodes, the last one of the graph first: each before those that it reads.
        addends: What is added up, in order: every operand that no adder of the tree makes.
    """

    adders: tuple[ir.Node, ...]
    addends: tuple["Addend", ...]

    @property
    def root(self) -> ir.Node:
        """The node that makes the sum."""
        return self.adders[0]


@dataclass(frozen=True, eq=False)
class Addend:
    """One operand of a sum: the slot of an adder, and what stands there."""

    adder: ir.Node
    index: int
    value: ir.Value

    @property
    def sign(self) -> int:
        """Whether it is added or taken away."""
        return -1 if self.adder.op_type == "Sub" and self.index == 1 else 1


@dataclass(frozen=True, eq=False)
class Group:
    """Addends that become one op.

    Attributes:
        addends: The addends, in the order of the sum.
        branches: Their maps, with their signs.
        merged: The sum of the maps.
    """

    addends: tuple[Addend, ...]
    branches: tuple[Branch, ...]
    merged: Branch


@dataclass
class Choice:
    """What can be done with one sum.

    Attributes:
        groups: The groups to merge.
        refusals: Why others stay apart, one for each value that several addends are maps of.
    """

    groups: list[Group] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


def find_sum(root: ir.Node, is_inner: Callable[[ir.Node], bool]) -> Sum:
    """Return the sum that ends at ``root``; ``is_inner`` tells of a node whether it is an inner adder of some sum."""
    adders: list[ir.Node] = []
    addends: list[Addend] = []
    waiting = [(root, 0, root.outputs[0])]
    while waiting:
        adder, index, value = waiting.pop()
        node = root if not adders else value.producer()
        if node is None or node.graph is not root.graph or (node is not root and not is_inner(node)):
            addends.append(Addend(adder, index, value))
            continue
        adders.append(node)
        operands = [(node, i, v) for i, v in enumerate(node.inputs) if v is not None]
        waiting.extend(reversed(operands))
    return Sum(tuple(adders), tuple(addends))


def choose(found: Sum, read: Callable[[ir.Value], Branch | None]) -> Choice:
    """Return which addends of a sum become one op."""
    choice = Choice()
    by_data: dict[ir.Value, list[tuple[Addend, Branch | None]]] = {}
    for addend in found.addends:
        branch = read(addend.value)
        by_data.setdefault(addend.value if branch is None else branch.data, []).append((addend, branch))
    for value, members in by_data.items():
        worker = next((b for _, b in members if b is not None and b.work), None)
        if worker is None or len(members) < 2:
            continue
        maps = [(a, b if b is not None else _itself(value, worker)) for a, b in members]
        pairs = [(a, b if a.sign > 0 else negative(b)) for a, b in maps]
        groups = _groups(pairs)
        choice.groups += groups
        if not groups:
            choice.refusals.append(_why_apart(found, value, [b for _, b in pairs]))
    return choice


def _itself(value: ir.Value, worker: Branch) -> Branch:
    """Return x as a map of itself."""
    return diagonal(value, (), len(worker.window), np.ones(worker.channels[1]))


def _groups(pairs: Sequence[tuple[Addend, Branch]]) -> list[Group]:
    classes: dict[object, list[tuple[Addend, Branch]]] = {}
    dtype = next((b.dtype for _, b in pairs if b.dtype is not None), None)
    for addend, branch in pairs:
        classes.setdefault((_kind(branch), branch.dtype or dtype), []).append((addend, branch))
    return [group for members in classes.values() for group in _of_class(members)]


def _kind(branch: Branch) -> object:
    """Return what has to be equal in maps that are added up."""
    return branch.channels, tuple((axis.stride, axis.reach) for axis in branch.window)


def _of_class(members: Sequence[tuple[Addend, Branch]]) -> list[Group]:
    if len(members) < 2:
        return []
    whole = total([b for _, b in members], ())
    if whole.weights <= whole.work:
        return [_group(members)]
    order = sorted(range(len(members)), key=lambda i: (-members[i][1].work, i))
    parts = [_Part((i,), members[i][1], members[i][1].work) for i in order]
    while len(joined := _joined(parts)) < len(parts):
        parts = joined
    chosen = [[members[i] for i in sorted(part.members)] for part in parts if len(part.members) > 1]
    return [_group(part) for part in chosen if any(b.work for _, b in part)]


@dataclass(frozen=True, eq=False)
class _Part:
    """Some members of a class, the map that they are together, and the multiply-adds it costs."""

    members: tuple[int, ...]
    whole: Branch
    work: int


def _joined(parts: Sequence[_Part]) -> list[_Part]:
    """Give each part, in order, to the first one before it with which it costs no more than apart."""
    result: list[_Part] = []
    for part in parts:
        for k, other in enumerate(result[-MAX_OPEN:], max(0, len(result) - MAX_OPEN)):
            whole = total([other.whole, part.whole], ())
            if whole.weights <= other.work + part.work:
                result[k] = _Part(other.members + part.members, whole, whole.weights)
                break
        else:
            result.append(part)
    return result


def _group(members: Sequence[tuple[Addend, Branch]]) -> Group:
    branches = tuple(b for _, b in members)
    nodes = tuple(dict.fromkeys(n for b in branches for n in b.nodes))
    return Group(tuple(a for a, _ in members), branches, total(branches, nodes))


def _why_apart(found: Sum, value: ir.Value, branches: Sequence[Branch]) -> Refusal:
    names = ", ".join(_named(b, value) for b in branches)
    where = label(found.root)
    if len({_kind(b) for b in branches}) == len(branches):
        told = f"the branches {names} over '{value.name}' differ in strides, padding or channels"
        return Refusal(RefusalId.BRANCHES_DO_NOT_FIT, where, told)
    told = f"one op for {names} would multiply more often than they do"
    return Refusal(RefusalId.WORK_WOULD_GROW, where, told)


def _named(branch: Branch, value: ir.Value) -> str:
    node = branch.nodes[-1] if branch.nodes else None
    return f"'{value.name}' itself" if node is None else f"{node.op_type} '{label(node)}'"
