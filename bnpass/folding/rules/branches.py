"""Ops that join values or take them apart.

    (s·p + t) + q      =  s·(p + q/s) + t        all branches must take the scale; one takes the shift
    (s·p)·q            =  s·(p·q)                a scale passes a product, a shift does not
    [A₁(p), A₂(q)]     =  [A₁, A₂]([p, q])       Concat, Split, Slice and Gather

Operands that broadcast are aligned from behind, and every axis that an affine varies over must be proved to be there.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bnpass.errors import Refusal
from bnpass.folding.rules.carrier import (
    Direction,
    Given,
    Passage,
    Step,
    argument,
    blocks,
    dims_of,
    fitted,
    is_given,
    not_proved,
    only,
    passed,
    rank_of,
    uniform,
)
from bnpass.graph.constants import Constant, find_float
from bnpass.graph.nodes import blocked_use, is_standard
from bnpass.semantics.affine import Affine, Array

_PRODUCERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def add(step: Step, given: Given) -> Passage | Refusal:
    """Add, Sub and Sum."""
    signs = [-1.0 if step.node.op_type == "Sub" and i == 1 else 1.0 for i in range(len(step.node.inputs))]
    if step.direction is Direction.FORWARD:
        return _sum_of_owed(step, given, signs)
    whole = only(step, given)
    return whole if isinstance(whole, Refusal) else _sum_wanted(step, whole, signs)


def _sum_of_owed(step: Step, given: Given, signs: Sequence[float]) -> Passage | Refusal:
    result = step.node.outputs[0]
    placed = _placed(step, given, result)
    if isinstance(placed, Refusal):
        return placed
    scale = next(iter(placed.values())).scale
    if any(not _equal(a.scale, scale) for a in placed.values()):
        return blocks(step, "adds values that would owe different scales")
    shift = sum((signs[i] * a.shift for i, a in placed.items()), np.zeros(()))
    others = [i for i in range(len(step.node.inputs)) if i not in given]
    wanted: dict[int, Affine] = {}
    if others and (scale != 1).any():
        if (scale == 0).any():
            return blocks(step, "adds a branch that cannot be divided by a scale of 0")
        found = _each(step, Affine(1 / scale, np.zeros(())), others)
        if isinstance(found, Refusal):
            return found
        wanted = found
    return Passage(inputs=wanted, outputs={0: Affine(scale, np.asarray(shift))})


def _sum_wanted(step: Step, whole: Affine, signs: Sequence[float]) -> Passage | Refusal:
    wanted: dict[int, Affine] = {}
    if whole.has_scale:
        found = _each(step, Affine(whole.scale, np.zeros(())), range(len(step.node.inputs)))
        if isinstance(found, Refusal):
            return found
        wanted = found
    if whole.has_shift:
        taker = _taker(step, whole)
        if isinstance(taker, Refusal):
            return taker
        index, shift = taker
        scale = wanted[index].scale if index in wanted else np.ones(())
        wanted[index] = Affine(scale, signs[index] * shift)
    return Passage(inputs=wanted)


def mul(step: Step, given: Given) -> Passage | Refusal:
    """Mul and Div of two values computed at run time."""
    if any(a.has_shift for a in given.values()):
        return blocks(step, "lets a scale pass, but no shift")
    divides = step.node.op_type == "Div"
    if step.direction is Direction.BACKWARD:
        whole = only(step, given)
        taker = whole if isinstance(whole, Refusal) else _taker(step, whole, among=[0] if divides else [0, 1])
        if isinstance(whole, Refusal) or isinstance(taker, Refusal):
            return whole if isinstance(whole, Refusal) else taker  # type: ignore[return-value]
        fit = fitted(step, whole, step.node.inputs[taker[0]])
        return fit if isinstance(fit, Refusal) else Passage(inputs={taker[0]: fit})
    placed = _placed(step, given, step.node.outputs[0])
    if isinstance(placed, Refusal):
        return placed
    scale = np.ones(())
    for index, affine in placed.items():
        if divides and index == 1 and (affine.scale == 0).any():
            return blocks(step, "would divide by a scale of 0")
        scale = scale / affine.scale if divides and index == 1 else scale * affine.scale
    return Passage(outputs={0: Affine(scale, np.zeros(()))})


def _placed(step: Step, given: Given, result: ir.Value) -> dict[int, Affine] | Refusal:
    """Return the affines of operands as affines of the result."""
    rank = rank_of(step, result)
    found: dict[int, Affine] = {}
    for index, affine in given.items():
        if affine.is_uniform:
            found[index] = uniform(affine)
            continue
        if rank is None:
            return not_proved(step, "has a result of unknown rank")
        fit = fitted(step, affine, result)
        if isinstance(fit, Refusal):
            return fit
        found[index] = fit
    return found


def _each(step: Step, affine: Affine, indices: Sequence[int] | range) -> dict[int, Affine] | Refusal:
    """Return an affine of the result for each of some operands."""
    found: dict[int, Affine] = {}
    for index in indices:
        fit = fitted(step, affine, step.node.inputs[index])
        if isinstance(fit, Refusal):
            return fit
        found[index] = fit
    return found


def _taker(step: Step, affine: Affine, among: Sequence[int] | None = None) -> tuple[int, Array] | Refusal:
    """Return the operand that an affine goes to, with its shift: one whose producer can take it in, if there is one."""
    refusal: Refusal | None = None
    found: list[tuple[int, int, Array]] = []
    for index in range(len(step.node.inputs)) if among is None else among:
        value = step.node.inputs[index]
        fit = fitted(step, affine, value)
        if isinstance(fit, Refusal) or value is None:
            refusal = fit if isinstance(fit, Refusal) else refusal
            continue
        found.append((_reluctance(step, value), index, fit.shift))
    if not found:
        return refusal or blocks(step, "has no operand that could take it")
    _, index, shift = min(found, key=lambda one: one[:2])
    return index, shift


def _reluctance(step: Step, value: ir.Value) -> int:
    """Return 0 for a constant, 1 for what a linear op makes for this reader alone, more for the rest."""
    if isinstance(find_float(value, step.scope), Constant):
        return 0
    if blocked_use(value) is not None:
        return 3
    producer = value.producer()
    return 1 if producer is not None and is_standard(producer, *_PRODUCERS) else 2


def _equal(a: Array, b: Array) -> bool:
    try:
        return bool((a == b).all())
    except ValueError:
        return False


def concat(step: Step, given: Given) -> Passage | Refusal:
    """Concat: the vectors are joined, or cut, as the values are."""
    node = step.node
    axis = _axis(step, given, "axis", None)
    if isinstance(axis, Refusal):
        return axis
    if step.direction is Direction.FORWARD:
        joined = _joined(step, [given.get(i) for i in range(len(node.inputs))], list(node.inputs), axis)
        return joined if isinstance(joined, Refusal) else Passage(outputs={0: joined})
    whole = only(step, given)
    if isinstance(whole, Refusal):
        return whole
    parts = _parts(step, whole, list(node.inputs), axis)
    return parts if isinstance(parts, Refusal) else Passage(inputs=dict(enumerate(parts)))


def split(step: Step, given: Given) -> Passage | Refusal:
    """Split: likewise, the other way round."""
    node = step.node
    axis = _axis(step, given, "axis", 0)
    if isinstance(axis, Refusal):
        return axis
    if step.direction is Direction.BACKWARD:
        joined = _joined(step, [given.get(i) for i in range(len(node.outputs))], list(node.outputs), axis)
        return joined if isinstance(joined, Refusal) else Passage(inputs={0: joined})
    whole = only(step, given)
    if isinstance(whole, Refusal):
        return whole
    parts = _parts(step, whole, list(node.outputs), axis)
    return parts if isinstance(parts, Refusal) else Passage(outputs=dict(enumerate(parts)))


def _axis(step: Step, given: Given, name: str, default: int | None) -> int | Refusal:
    """Return an axis counted from the front."""
    affine = next(iter(given.values()))
    axis = step.node.attributes.get_int(name, default)
    rank = max([affine.scale.ndim, affine.shift.ndim]) or rank_of(step, step.node.inputs[0])
    if axis is None or rank is None or not -rank <= axis < rank:
        return not_proved(step, "has an input of unknown rank" if rank is None else f"has no axis {axis}")
    return axis % rank


def _joined(
    step: Step, affines: Sequence[Affine | None], values: Sequence[ir.Value | None], axis: int
) -> Affine | Refusal:
    """Return the affine of a whole whose parts have some; those without any have the one that changes nothing."""
    known = [affine for affine in affines if affine is not None]
    if len(known) == len(affines) and axis not in known[0].axes and all(_alike(known[0], a) for a in known[1:]):
        return known[0]
    none = Affine(np.ones(()), np.zeros(()))
    scales, shifts = [], []
    for affine, value in zip(affines, values, strict=True):
        dims = dims_of(step, value)
        length = dims[axis] if dims is not None and axis < len(dims) else None
        if dims is None or not isinstance(length, int):
            return not_proved(step, f"has a part '{value.name if value else ''}' of unknown length on axis {axis}")
        one = affine or none
        scales.append(_stretched(one.scale, len(dims), axis, length))
        shifts.append(_stretched(one.shift, len(dims), axis, length))
    try:
        return Affine(_concatenated(scales, axis), _concatenated(shifts, axis))
    except ValueError:
        return not_proved(step, "joins affines that vary over different axes")


def _alike(a: Affine, b: Affine) -> bool:
    return _equal(a.scale, b.scale) and _equal(a.shift, b.shift)


def _stretched(array: Array, rank: int, axis: int, length: int) -> Array:
    """Return an array with its full length along one axis."""
    array = array.reshape((1,) * rank) if array.ndim == 0 else array
    shape = list(array.shape)
    shape[axis] = length
    return np.broadcast_to(array, shape)


def _concatenated(arrays: Sequence[Array], axis: int) -> Array:
    common = list(np.broadcast_shapes(*([1 if i == axis else n for i, n in enumerate(a.shape)] for a in arrays)))
    full = [np.broadcast_to(a, [a.shape[axis] if i == axis else n for i, n in enumerate(common)]) for a in arrays]
    return np.concatenate(full, axis)


def _parts(step: Step, whole: Affine, values: Sequence[ir.Value | None], axis: int) -> list[Affine] | Refusal:
    """Cut an affine into those of the parts."""
    if axis not in whole.axes:
        return [whole] * len(values)
    lengths: list[int] = []
    for value in values:
        dims = dims_of(step, value)
        length = dims[axis] if dims is not None and axis < len(dims) else None
        if not isinstance(length, int):
            return not_proved(step, f"has a part '{value.name if value else ''}' of unknown length on axis {axis}")
        lengths.append(length)
    if sum(lengths) != np.broadcast_shapes(whole.scale.shape, whole.shift.shape)[axis]:
        return not_proved(step, f"has parts of {sum(lengths)} channels in all")
    ends = np.cumsum(lengths)
    return [_picked(whole, axis, np.arange(end - n, end)) for n, end in zip(lengths, ends, strict=True)]


def _picked(affine: Affine, axis: int, indices: Array) -> Affine:
    """Return an affine of some channels."""

    def pick(array: Array) -> Array:
        return array if array.ndim == 0 or array.shape[axis] == 1 else array.take(indices, axis)

    return Affine(pick(affine.scale), pick(affine.shift))


def slice_(step: Step, given: Given) -> Passage | Refusal:
    """Slice with constant arguments."""
    affine = only(step, given)
    if isinstance(affine, Refusal):
        return affine
    starts, ends = argument(step, "starts", 1), argument(step, "ends", 2)
    axes, steps = argument(step, "axes", 3), argument(step, "steps", 4)
    if (
        starts is None
        or ends is None
        or (axes is None and is_given(step, "axes", 3))
        or (steps is None and is_given(step, "steps", 4))
    ):
        return not_proved(step, "does not say what it cuts by constants")
    axes = np.arange(len(starts)) if axes is None else axes
    steps = np.ones(len(starts), np.int64) if steps is None else steps
    if not len(axes) == len(starts) == len(ends) == len(steps):
        return not_proved(step, "names unequal numbers of axes, starts, ends and steps")
    rank = max(affine.scale.ndim, affine.shift.ndim)
    for axis, start, end, stride in zip(axes, starts, ends, steps, strict=True):
        position = int(axis) % rank if rank else 0
        if position not in affine.axes:
            continue
        window = slice(int(start), int(end), int(stride))
        moved = _along(step, affine, position, window)
        if isinstance(moved, Refusal):
            return moved
        affine = moved
    return passed(step, affine)


def gather(step: Step, given: Given) -> Passage | Refusal:
    """Gather of constant indices, each at most once: a choice or another order of channels."""
    affine = only(step, given)
    if isinstance(affine, Refusal):
        return affine
    indices = argument(step, "indices", 1)
    axis = _axis(step, given, "axis", 0)
    if isinstance(axis, Refusal):
        return axis
    if indices is None or indices.ndim != 1:
        return not_proved(step, "has indices that are no constant vector")
    if axis not in affine.axes:
        return passed(step, affine)
    moved = _along(step, affine, axis, indices)
    return moved if isinstance(moved, Refusal) else passed(step, moved)


def _along(step: Step, affine: Affine, axis: int, chosen: slice | Array) -> Affine | Refusal:
    """Carry an affine through a choice of channels; backward, those that are not chosen stay as they are."""
    if step.direction is Direction.FORWARD:
        length = np.broadcast_shapes(affine.scale.shape, affine.shift.shape)[axis]
        try:
            return _picked(affine, axis, np.arange(length)[chosen])
        except IndexError:
            return not_proved(step, "chooses channels that are not there")
    dims = dims_of(step, step.node.inputs[0])
    total = dims[axis] if dims is not None and axis < len(dims) else None
    if not isinstance(total, int):
        return not_proved(step, "has an input of unknown length")
    try:
        places = np.arange(total)[chosen]
    except IndexError:
        return not_proved(step, "chooses channels that are not there")
    if len(set(places.tolist())) != len(places):
        return blocks(step, "takes a channel twice, which cannot come out in two ways")

    def spread(array: Array, neutral: float) -> Array:
        if array.ndim == 0 or array.shape[axis] == 1:
            array = _stretched(array, len(dims or ()), axis, len(places))
        if array.shape[axis] != len(places):
            raise IndexError
        shape = list(array.shape)
        shape[axis] = total
        full = np.full(shape, neutral, array.dtype)
        full[(slice(None),) * axis + (places,)] = array
        return full

    try:
        return Affine(spread(affine.scale, 1.0), spread(affine.shift, 0.0))
    except IndexError:
        return not_proved(step, "gives another number of channels than the affine has")
