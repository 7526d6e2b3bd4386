"""What lets an affine pass, though it is neither linear nor an affine itself, and what it takes.

    forward    f(A(x), …) = A'(f'(x, …))      its inputs owe affines; from now on its outputs do
    backward   A'(f(x, …)) = f'(A(x), …)      its outputs are to come out changed; so its inputs have to

f' is f, or what a ``Rewrite`` makes of it. A rule states its formula in its docstring and proves its conditions, or it
refuses; nothing is edited here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import onnx_ir as ir

from bnpass.errors import Refusal, RefusalId
from bnpass.folding.linear import refuse
from bnpass.graph.constants import Constant, find
from bnpass.graph.nodes import Scope, described, label, operand
from bnpass.graph.shapes import Dims, Shapes
from bnpass.semantics.affine import Affine, Array


class Direction(Enum):
    """The direction in which an affine travels through a carrier."""

    FORWARD = "forward"
    BACKWARD = "backward"


@dataclass(frozen=True)
class Step:
    """One passage through a carrier."""

    node: ir.Node
    direction: Direction
    scope: Scope
    shapes: Shapes


@dataclass(frozen=True, eq=False)
class Rewrite:
    """A new form of a carrier; all numbers are wide.

    Attributes:
        ops: A chain of ops with one constant operand (or none) that takes the place of the node; None: it stays.
        operands: Constants that change, by input slot.
    """

    ops: tuple[tuple[str, Array | None], ...] | None = None
    operands: Mapping[int, Array] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Passage:
    """What a carrier lets through.

    Attributes:
        inputs: What inputs have to become: all of them going backward; going forward, those that owe nothing.
        outputs: What outputs owe from now on, going forward.
        rewrite: The new form of the carrier, if it needs one.
    """

    inputs: Mapping[int, Affine] = field(default_factory=dict)
    outputs: Mapping[int, Affine] = field(default_factory=dict)
    rewrite: Rewrite | None = None


Given = Mapping[int, Affine]
"""Affines by input slot (forward) or by output (backward)."""
Rule = Callable[[Step, Given], Passage | Refusal]
Carry = Callable[[Step, Affine], Affine | Refusal]
"""The rule of an op with one input and one output that only moves axes."""


def single(carry: Carry) -> Rule:
    """Return the rule of an op through which one affine passes, between its first input and its first output."""

    def rule(step: Step, given: Given) -> Passage | Refusal:
        affine = only(step, given)
        carried = affine if isinstance(affine, Refusal) else carry(step, affine)
        return carried if isinstance(carried, Refusal) else passed(step, carried)

    return rule


def only(step: Step, given: Given) -> Affine | Refusal:
    """Return the affine of the first input or output; refuse if it is another one that has one."""
    if set(given) != {0}:
        return refuse(step.node, "reads it as an argument, not as its data", RefusalId.NONLINEAR_BETWEEN)
    return given[0]


def passed(step: Step, affine: Affine, rewrite: Rewrite | None = None) -> Passage:
    """Return the passage of one affine between the first input and the first output."""
    if step.direction is Direction.FORWARD:
        return Passage(outputs={0: affine}, rewrite=rewrite)
    return Passage(inputs={0: affine}, rewrite=rewrite)


def blocks(step: Step, why: str) -> Refusal:
    """Refuse: the affine does not pass this op."""
    return Refusal(RefusalId.NONLINEAR_BETWEEN, label(step.node), f"{described(step.node)} {why}")


def not_proved(step: Step, why: str) -> Refusal:
    """Refuse: shapes or arguments do not prove where the channels are."""
    return Refusal(RefusalId.AXIS_NOT_PROVABLE, label(step.node), f"{described(step.node)} {why}")


def dims_of(step: Step, value: ir.Value | None) -> Dims | None:
    """Return what is known of the dimensions of a value."""
    return None if value is None else step.shapes.dims(value, step.scope)


def rank_of(step: Step, value: ir.Value | None) -> int | None:
    """Return the rank of a value, if it is known."""
    return None if value is None else step.shapes.rank(value, step.scope)


def fitted(step: Step, affine: Affine, value: ir.Value | None) -> Affine | Refusal:
    """Return an affine for a value that broadcasts with the one it is stated for: axes are aligned from behind.

    Every axis that it varies over must be proved to have its length in the value.
    """
    if affine.is_uniform:
        return uniform(affine)
    rank = max(affine.scale.ndim, affine.shift.ndim)
    dims = dims_of(step, value)
    if dims is None:
        return not_proved(step, f"has an operand '{value.name if value else ''}' of unknown shape")
    shape = np.broadcast_shapes(affine.scale.shape, affine.shift.shape)
    lead = rank - len(dims)
    for axis, length in enumerate(shape):
        if length != 1 and (axis < lead or dims[axis - lead] != length):
            return not_proved(step, f"has an operand '{value.name if value else ''}' that is not known to have "
                                    f"{length} channels there")  # fmt: skip
    return Affine(_of_rank(affine.scale, len(dims)), _of_rank(affine.shift, len(dims)))


def _of_rank(array: Array, rank: int) -> Array:
    if array.ndim == 0:
        return array
    kept = array.shape[max(0, array.ndim - rank) :]
    return array.reshape((1,) * (rank - len(kept)) + kept)


def uniform(affine: Affine) -> Affine:
    """Return an affine of one number for all channels in its smallest shape."""
    return Affine(affine.scale.reshape(()), affine.shift.reshape(()))


def varies_over(affine: Affine, axes: range | set[int]) -> bool:
    """Whether an affine varies over one of some axes, counted from the front."""
    return any(axis in axes for axis in affine.axes)


def argument(step: Step, name: str, index: int | None) -> Array | None:
    """Return a constant argument: an attribute in early opsets, an input later; None if it is left out or not known."""
    attribute = step.node.attributes.get(name)
    if attribute is not None:
        return np.asarray(attribute.value)
    value = operand(step.node, index) if index is not None else None
    found = find(value, step.scope) if value is not None else None
    return found.argument() if isinstance(found, Constant) else None


def is_given(step: Step, name: str, index: int) -> bool:
    """Whether an argument is there, known or not."""
    return name in step.node.attributes or operand(step.node, index) is not None
