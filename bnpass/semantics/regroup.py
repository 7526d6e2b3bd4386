"""Carry a per-axis array through a row-major reshape, only where it is proved.

A reshape from ``old`` to ``new`` dimensions keeps groups of neighbouring axes apart when the products
of the dimensions agree group by group. Dimensions are ints, names (equal names are equal numbers) or
None (unknown). Equal lengths elsewhere prove nothing and are not looked at.
"""

import math
from collections.abc import Sequence

import numpy as np

from bnpass.semantics.affine import Array

Dim = int | str | None
Group = tuple[range, range]


def groups(old: Sequence[Dim], new: Sequence[Dim]) -> list[Group] | None:
    """Split old and new axes into groups with equal products, finest first; None if nothing can be proved."""
    if 0 in old or 0 in new:
        return None
    front = 0
    while front < min(len(old), len(new)) and old[front] is not None and old[front] == new[front]:
        front += 1
    found: list[Group] = [(range(i, i + 1), range(i, i + 1)) for i in range(front)]
    tail: list[Group] = []
    i, j = len(old), len(new)
    while (group := _last_group(old[front:i], new[front:j])) is not None:
        a, b = group
        tail.append((range(i - a, i), range(j - b, j)))
        i, j = i - a, j - b
    if i > front or j > front:
        found.append((range(front, i), range(front, j)))
    return found + tail[::-1]


def _last_group(old: Sequence[Dim], new: Sequence[Dim]) -> tuple[int, int] | None:
    """Return how many trailing axes on either side have the same, statically known product."""
    if not old or not new:
        return None
    a = b = 1
    i, j = len(old) - 1, len(new) - 1
    left, right = old[i], new[j]
    while isinstance(left, int) and isinstance(right, int):
        if left == right:
            return a, b
        if left < right:
            if i == 0:
                return None
            i, a = i - 1, a + 1
            step = old[i]
            left = left * step if isinstance(step, int) else None
        else:
            if j == 0:
                return None
            j, b = j - 1, b + 1
            step = new[j]
            right = right * step if isinstance(step, int) else None
    return None


def regroup(array: Array, old: Sequence[Dim], new: Sequence[Dim]) -> Array | None:
    """Return ``array`` (rank of ``old``, axes of length 1 or full) as it lies after the reshape to ``new``.

    Returns:
        The array with the rank of ``new``; axes along which it does not vary have length 1. None if the
        axes it varies over cannot be proved to stay together.
    """
    if array.ndim == 0:
        return array
    proved = groups(old, new)
    if proved is None or array.ndim != len(old):
        return None
    before: list[int] = []
    after: list[int] = []
    for old_axes, new_axes in proved:
        if all(array.shape[a] == 1 for a in old_axes):
            before += [1] * len(old_axes)
            after += [1] * len(new_axes)
        elif len(old_axes) == len(new_axes) == 1:
            before.append(array.shape[old_axes[0]])
            after.append(array.shape[old_axes[0]])
        else:
            from_dims = [d for a in old_axes if isinstance(d := old[a], int)]
            to_dims = [d for a in new_axes if isinstance(d := new[a], int)]
            if len(from_dims) != len(old_axes) or len(to_dims) != len(new_axes):
                return None
            fits = all(n in (1, d) for n, d in zip((array.shape[a] for a in old_axes), from_dims, strict=True))
            if not fits or math.prod(from_dims) != math.prod(to_dims):  # a file may claim any shape
                return None
            before += from_dims
            after += to_dims
    return _without_constant_axes(np.broadcast_to(array, before).reshape(after))


def _without_constant_axes(array: Array) -> Array:
    for axis in range(array.ndim):
        first = array.take([0], axis=axis)
        if array.shape[axis] > 1 and bool((array == first).all()):
            array = first
    return array
