"""Ops that repeat, interpolate, pad or rearrange positions.

    pad(s·x + t, v)   =  s·pad(x, (v − t)/s) + t       what is copied from x passes everything
    resize(s·x + t)   =  s·resize(x) + t               the weights of every position add up to 1

DepthToSpace gives b² channels one place: they must have the same affine. SpaceToDepth gives one channel b² places.
"""

import numpy as np

from bnpass.errors import Refusal, RefusalId
from bnpass.folding.linear import refuse
from bnpass.folding.rules.carrier import (
    Direction,
    Given,
    Passage,
    Rewrite,
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
)
from bnpass.semantics.affine import Affine, Array

MAX_CHANNELS = 1 << 24
"""Most channels that blocks may become: a file may claim any blocksize."""

_VALUE_IS_INPUT = 11
"""The first opset whose Pad has pads and value as inputs."""


def pad(step: Step, given: Given) -> Passage | Refusal:
    """Pad in every mode; a constant value moves with a uniform affine, and 0 stays 0 if nothing is shifted."""
    affine = only(step, given)
    if isinstance(affine, Refusal):
        return affine
    padded = _padded_axes(step)
    if isinstance(padded, Refusal):
        return padded
    if padded & set(affine.axes):
        return blocks(step, "pads the axis of the channels")
    if step.node.attributes.get_string("mode", "constant") != "constant" or not padded:
        return passed(step, affine)
    value = argument(step, "value", 2)
    if value is None:
        if is_given(step, "value", 2):
            return blocks(step, "pads with a value that is not constant")
        value = np.zeros(())
    return _with_value(step, affine, value.reshape(()).astype(np.float64))


def _with_value(step: Step, affine: Affine, value: Array) -> Passage | Refusal:
    s, t = affine.scale, affine.shift
    if step.direction is Direction.FORWARD and (s == 0).any():
        return blocks(step, "would pad a channel of scale 0 with another constant")
    with np.errstate(over="ignore"):
        moved = np.asarray((value - t) / s if step.direction is Direction.FORWARD else s * value + t)
    if (moved == value).all():
        return passed(step, affine)
    if not (moved == moved.reshape(-1)[0]).all() or step.scope.opset < _VALUE_IS_INPUT:
        return refuse(step.node, f"pads with {float(value):g}, which would have to differ between channels",
                      RefusalId.PADDING_BLOCKS_SHIFT)  # fmt: skip
    return passed(step, affine, Rewrite(operands={2: moved.reshape(-1)[0].reshape(())}))


def _padded_axes(step: Step) -> set[int] | Refusal:
    pads, rank = argument(step, "pads", 1), rank_of(step, step.node.inputs[0])
    axes = argument(step, "axes", 3)
    if pads is None or rank is None or (axes is None and is_given(step, "axes", 3)):
        return not_proved(step, "does not say by constants what it pads")
    chosen = np.arange(rank) if axes is None else axes % rank
    if len(pads) != 2 * len(chosen):
        return not_proved(step, "has pads that do not fit its axes")
    both = np.asarray(pads).reshape(2, -1)
    return {int(axis) for axis, used in zip(chosen, (both != 0).any(axis=0), strict=True) if used}


def resize(step: Step, given: Given) -> Passage | Refusal:
    """Resize and Upsample of other axes than that of the channels."""
    affine = only(step, given)
    if isinstance(affine, Refusal):
        return affine
    if step.node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return blocks(step, "fills what lies outside with a value of its own")
    before, after = dims_of(step, step.node.inputs[0]), dims_of(step, step.node.outputs[0])
    for axis in affine.axes:
        if before is None or after is None or len(after) <= axis or before[axis] is None or before[axis] != after[axis]:
            return not_proved(step, "is not known to leave the axis of the channels as it is")
    return passed(step, affine)


def expand(step: Step, given: Given) -> Passage | Refusal:
    """Expand: what is repeated has the same affine everywhere."""
    affine = only(step, given)
    if isinstance(affine, Refusal):
        return affine
    forward = step.direction is Direction.FORWARD
    fit = fitted(step, affine, step.node.outputs[0] if forward else step.node.inputs[0])
    return fit if isinstance(fit, Refusal) else passed(step, fit)


def depth_to_space(step: Step, given: Given) -> Passage | Refusal:
    """DepthToSpace."""
    return _rearranged(step, given, gathers=step.direction is Direction.FORWARD)


def space_to_depth(step: Step, given: Given) -> Passage | Refusal:
    """SpaceToDepth, which has its blocks in front, as DepthToSpace in its mode DCR."""
    return _rearranged(step, given, gathers=step.direction is Direction.BACKWARD)


def _rearranged(step: Step, given: Given, *, gathers: bool) -> Passage | Refusal:
    """Carry a vector of channels; ``gathers``: b² channels become one."""
    affine = only(step, given)
    if isinstance(affine, Refusal):
        return affine
    if affine.is_uniform:
        return passed(step, affine)
    if affine.axes != (1,):
        return blocks(step, "moves axes over which the affine varies")
    count = step.node.attributes.get_int("blocksize", 0) ** 2
    if count < 1 or (not gathers and max(affine.scale.size, affine.shift.size) * count > MAX_CHANNELS):
        return not_proved(step, "has a blocksize that makes no sense")
    block_axis = 1 if step.node.attributes.get_string("mode", "DCR") == "CRD" else 0
    moved = [_block(array, count, block_axis, gathers=gathers) for array in (affine.scale, affine.shift)]
    scale, shift = moved
    if scale is None or shift is None:
        return blocks(step, "gives channels with different affines one place")
    return passed(step, Affine(scale, shift))


def _block(array: Array, count: int, block_axis: int, *, gathers: bool) -> Array | None:
    """Return a vector of channels behind the op; None if the channels of a block differ, or do not divide."""
    if array.size == 1:
        return array
    channels = array.reshape(-1)
    if gathers:
        if channels.size % count:
            return None
        shape = (count, -1) if block_axis == 0 else (-1, count)
        blocks_of = np.moveaxis(channels.reshape(shape), block_axis, 0)
        result = blocks_of[0] if (blocks_of == blocks_of[0]).all() else None
    else:
        result = np.tile(channels, count) if block_axis == 0 else np.repeat(channels, count)
    return None if result is None else result.reshape(1, -1, *(1,) * (array.ndim - 2))
