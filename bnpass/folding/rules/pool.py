"""Pools and reductions over other axes than that of the channels.

    mean(s·x + t)  =  s·mean(x) + t
    max(s·x + t)   =  s·max(x) + t           s ≥ 0; likewise min
    Σ(s·x + t)     =  s·Σx + n·t             n numbers are added up, which must be known if there is a shift

An average that counts zeros of padding does not pass a shift on; one that leaves them out does, and a maximum never
sees them.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from bnpass.errors import Refusal, RefusalId
from bnpass.folding.linear import refuse
from bnpass.folding.rules.carrier import (
    Direction,
    Given,
    Passage,
    Step,
    argument,
    blocks,
    dims_of,
    is_given,
    not_proved,
    only,
    passed,
    rank_of,
    varies_over,
)
from bnpass.folding.window import unfit_attribute, window_of
from bnpass.semantics.affine import Affine, Array

_CHANNELS = {0, 1}
"""The axes that a pool does not reduce."""


def max_pool(step: Step, given: Given) -> Passage | Refusal:
    """MaxPool, GlobalMaxPool."""
    affine = _of_channels(step, given)
    if isinstance(affine, Refusal):
        return affine
    if (affine.scale < 0).any():
        return blocks(step, "lets no negative scale pass")
    if any(v.uses() or v.is_graph_output() for v in step.node.outputs[1:]) and (affine.scale == 0).any():
        return blocks(step, "says where the largest numbers are, which a scale of 0 would hide")
    return passed(step, affine)


def average_pool(step: Step, given: Given) -> Passage | Refusal:
    """AveragePool, GlobalAveragePool."""
    affine = _of_channels(step, given)
    if isinstance(affine, Refusal):
        return affine
    attributes = step.node.attributes
    counts = attributes.get_int("count_include_pad", 0)
    padded = any(attributes.get_ints("pads", ())) or attributes.get_string("auto_pad", "NOTSET").startswith("SAME")
    padded |= bool(attributes.get_int("ceil_mode", 0))  # runtimes do not agree whether the overhang is counted then
    if affine.has_shift and counts and padded:
        return refuse(step.node, "averages over zeros of padding, which a shift does not reach",
                      RefusalId.PADDING_BLOCKS_SHIFT)  # fmt: skip
    return passed(step, affine)


def _of_channels(step: Step, given: Given) -> Affine | Refusal:
    affine = only(step, given)
    if isinstance(affine, Refusal):
        return affine
    if set(affine.axes) - _CHANNELS:
        return blocks(step, "reduces an axis over which the affine varies")
    if not step.node.op_type.startswith("Global") and _has_an_empty_window(step.node):
        return not_proved(step, "has a kernel_shape, pads, strides or dilations that make no sense")
    return affine


def _has_an_empty_window(node: ir.Node) -> bool:
    """Whether some window may see padding alone, or attributes do not fit each other: runtimes refuse such a pool."""
    kernel = tuple(node.attributes.get_ints("kernel_shape", ()))
    if not kernel or min(kernel) < 1 or unfit_attribute(node, kernel) is not None:
        return True
    window = window_of(node, kernel, ())  # None for SAME, which pads by less than the kernel
    return window is not None and any(max(axis.pads) > axis.last - axis.first for axis in window)


def reduce_mean(step: Step, given: Given) -> Passage | Refusal:
    """ReduceMean."""
    return _reduced(step, given)


def reduce_extreme(step: Step, given: Given) -> Passage | Refusal:
    """ReduceMax, ReduceMin."""
    if any((affine.scale < 0).any() for affine in given.values()):
        return blocks(step, "lets no negative scale pass")
    return _reduced(step, given)


def reduce_sum(step: Step, given: Given) -> Passage | Refusal:
    """ReduceSum."""
    affine = only(step, given)
    axes = _axes(step)
    if isinstance(affine, Refusal) or isinstance(axes, Refusal):
        return affine if isinstance(affine, Refusal) else axes  # type: ignore[return-value]
    count = 1.0
    if affine.has_shift:
        dims = dims_of(step, step.node.inputs[0])
        lengths = [dims[axis] for axis in axes] if dims is not None else [None]
        known = [n for n in lengths if isinstance(n, int) and n > 0]
        if len(known) != len(lengths):
            return not_proved(step, "adds up an unknown number of values, so the shift is not known")
        count = float(math.prod(known))
    factor = count if step.direction is Direction.FORWARD else 1 / count
    return _reduced(step, {0: Affine(affine.scale, affine.shift * factor)})


def _reduced(step: Step, given: Given) -> Passage | Refusal:
    affine, axes = only(step, given), _axes(step)
    if isinstance(affine, Refusal) or isinstance(axes, Refusal):
        return affine if isinstance(affine, Refusal) else axes  # type: ignore[return-value]
    flag = step.node.attributes.get_int("keepdims", 1)
    if flag not in (0, 1) or len(set(axes)) < len(axes):
        return not_proved(step, "has a keepdims or axes that make no sense")
    keeps = flag == 1
    if step.direction is Direction.FORWARD or keeps:
        if varies_over(affine, set(axes)):
            return blocks(step, "reduces an axis over which the affine varies")
        if keeps:
            return passed(step, affine)
        return passed(step, _each(affine, lambda array: np.squeeze(array, tuple(axes))))
    return passed(step, _each(affine, lambda array: np.expand_dims(array, tuple(axes))))


def _each(affine: Affine, move: Callable[[Array], Array]) -> Affine:
    scale, shift = (array if array.ndim == 0 else move(array) for array in (affine.scale, affine.shift))
    return Affine(scale, shift)


def _axes(step: Step) -> Sequence[int] | Refusal:
    """Return the axes that are reduced, counted from the front."""
    rank = rank_of(step, step.node.inputs[0])
    found = argument(step, "axes", 1)
    if rank is None or (found is None and is_given(step, "axes", 1)) or (found is not None and found.ndim != 1):
        return not_proved(step, "has an input of unknown rank, or axes that are no constant vector")
    if found is None or found.size == 0:
        return [] if step.node.attributes.get_int("noop_with_empty_axes", 0) else range(rank)
    return sorted(int(axis) % rank for axis in found)
