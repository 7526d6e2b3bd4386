"""Layout ops carry an affine without changing a number: they only move its axes.

    y = op(s·x + t) = op(s)·op(x) + op(t)      scale and shift are rearranged as the value is

Backward the inverse move is made. Transpose, Squeeze and Unsqueeze say their axes; Reshape and Flatten keep those
groups of axes whose products are proved equal (``semantics.regroup``). A Cast carries an affine only towards the
type that holds more: folding it across into a narrower one would round what was not rounded.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from bnpass.errors import Refusal, RefusalId
from bnpass.folding.linear import refuse
from bnpass.folding.rules.carrier import Direction, Step, not_proved, uniform
from bnpass.graph.constants import find, integer_argument
from bnpass.graph.nodes import operand
from bnpass.graph.shapes import Dims
from bnpass.semantics.affine import Affine, Array
from bnpass.semantics.regroup import regroup

_WIDER = {
    ir.DataType.FLOAT16: {ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE},
    ir.DataType.BFLOAT16: {ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE},
    ir.DataType.FLOAT: {ir.DataType.FLOAT, ir.DataType.DOUBLE},
    ir.DataType.DOUBLE: {ir.DataType.DOUBLE},
}


def identity(step: Step, affine: Affine) -> Affine | Refusal:
    """Identity changes nothing."""
    del step
    return affine


def dropout(step: Step, affine: Affine) -> Affine | Refusal:
    """Dropout in inference mode is Identity, as long as nobody reads its mask."""
    node = step.node
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return refuse(node, "has a mask that is used", RefusalId.NONLINEAR_BETWEEN)
    trains = step.scope.opset < 7 and not node.attributes.get_int("is_test", 0)
    mode = operand(node, 2)
    if mode is not None:
        known = find(mode, step.scope)
        trains = isinstance(known, Refusal) or any(known.integers())
    if trains:
        return refuse(node, "is or may be in training mode", RefusalId.NONLINEAR_BETWEEN)
    return affine


def cast(step: Step, affine: Affine) -> Affine | Refusal:
    """Cast carries towards the wider float type."""
    source, target = step.node.inputs[0], step.node.outputs[0]
    before = step.shapes.dtype(source, step.scope) if source is not None else None
    to = step.node.attributes.get("to")
    known = to is not None and to.value in [t.value for t in _WIDER]
    after = ir.DataType(to.as_int()) if to is not None and known else target.dtype
    here, there = (before, after) if step.direction is Direction.FORWARD else (after, before)
    if here is None or there is None or there not in _WIDER.get(here, ()):
        told = f"{before.name if before else 'unknown'} to {after.name if after else 'unknown'}"
        return refuse(
            step.node,
            f"converts {told}: the affine would move to the narrower type",
            RefusalId.DTYPE_WOULD_LOSE_PRECISION,
        )
    return affine


def transpose(step: Step, affine: Affine) -> Affine | Refusal:
    """Transpose permutes the axes; without ``perm`` it reverses them."""
    rank = max(affine.scale.ndim, affine.shift.ndim)
    perm = step.node.attributes.get_ints("perm", tuple(reversed(range(rank))))
    if rank and sorted(perm) != list(range(rank)):
        return not_proved(step, f"permutes {list(perm)}, which does not fit rank {rank}")
    order = perm if step.direction is Direction.FORWARD else np.argsort(perm)
    return _each(affine, lambda a: np.transpose(a, order), step)


def unsqueeze(step: Step, affine: Affine) -> Affine | Refusal:
    """Unsqueeze adds axes of length 1."""
    return _axes_of_one(step, affine, adds=step.direction is Direction.FORWARD)


def squeeze(step: Step, affine: Affine) -> Affine | Refusal:
    """Squeeze takes axes of length 1 away."""
    return _axes_of_one(step, affine, adds=step.direction is Direction.BACKWARD)


def _axes_of_one(step: Step, affine: Affine, *, adds: bool) -> Affine | Refusal:
    axes = integer_argument(step.node, "axes", step.scope)
    if not axes:  # whether none are all of length 1, runtimes do not agree
        return not_proved(step, "does not say its axes by a constant")
    return _each(affine, lambda a: np.expand_dims(a, axes) if adds else np.squeeze(a, axes), step)


def reshape(step: Step, affine: Affine) -> Affine | Refusal:
    """Reshape keeps the groups of axes whose products are proved equal."""
    return _regrouped(step, affine, _reshaped_dims)


def flatten(step: Step, affine: Affine) -> Affine | Refusal:
    """Flatten merges the axes before and from ``axis`` on."""
    return _regrouped(step, affine, _flattened_dims)


def _regrouped(step: Step, affine: Affine, target: Callable[[Step, Dims], Dims | None]) -> Affine | Refusal:
    if affine.is_uniform:
        return uniform(affine)
    source = step.node.inputs[0]
    old = step.shapes.dims(source, step.scope) if source is not None else None
    new = target(step, old) if old is not None else None
    if old is None or new is None:
        return not_proved(step, "has an input or output shape that is not known")
    here, there = (old, new) if step.direction is Direction.FORWARD else (new, old)
    scale, shift = regroup(affine.scale, here, there), regroup(affine.shift, here, there)
    if scale is None or shift is None:
        told = f"{_told(old)} to {_told(new)}"
        return not_proved(step, f"goes from {told}: the channel axis is not proved to stay one")
    return Affine(scale, shift)


def _reshaped_dims(step: Step, old: Dims) -> Dims | None:
    declared = step.shapes.dims(step.node.outputs[0], step.scope)
    shape = integer_argument(step.node, "shape", step.scope)
    if shape is None:
        return declared
    keeps_zero = bool(step.node.attributes.get_int("allowzero", 0))
    asked: Dims = tuple(
        None if d == -1 else old[i] if d == 0 and not keeps_zero and i < len(old) else d for i, d in enumerate(shape)
    )
    if declared is None or len(declared) != len(asked):
        return asked
    return tuple(d if d is not None else known for d, known in zip(asked, declared, strict=True))


def _flattened_dims(step: Step, old: Dims) -> Dims | None:
    axis = step.node.attributes.get_int("axis", 1)
    axis = axis + len(old) if axis < 0 else axis
    return (_product(old[:axis]), _product(old[axis:]))


def _product(dims: Dims) -> int | str | None:
    if len(dims) == 1:
        return dims[0]
    total = 1
    for d in dims:
        if not isinstance(d, int):
            return None
        total *= d
    return total


def _each(affine: Affine, move: Callable[[Array], Array], step: Step) -> Affine | Refusal:
    if affine.is_uniform:
        return uniform(affine)
    try:
        scale, shift = (a if a.ndim == 0 else move(a) for a in (affine.scale, affine.shift))
    except ValueError as error:
        return not_proved(step, f"does not fit the shape of the affine ({error})")
    return Affine(scale, shift)


def _told(dims: Dims) -> str:
    return "[" + ", ".join("?" if d is None else str(d) for d in dims) + "]"
