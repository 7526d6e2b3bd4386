"""Adjustments that both sides know by name: (a, c) from the shape of the input.

All factors are multiples of 1/64 and small, so every floating point type holds them exactly and TensorFlow may
compute them in its graph.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

NAMES = ("channel", "sample", "mixed", "scalar")
_STEP = 1 / 64


def _ramp(arrays: Any, shape: Any, rank: int, along: Sequence[int], dtype: Any) -> Any:
    """Return 0, 1, 2, … in 64ths along some axes, and length 1 along the others."""
    length: Any = 1
    for axis in along:
        length = length * shape[axis]
    target = [shape[axis] if axis in along else 1 for axis in range(rank)]
    return arrays.reshape(arrays.cast(arrays.arange(length), dtype) * _STEP, target)


def adjustment(name: str, axes: Sequence[int], rank: int, arrays: Any, dtype: Any) -> Callable[[Any], tuple[Any, Any]]:
    """Return the adjustment of that name.

    Args:
        name: One of ``NAMES``.
        axes: The channel axes.
        rank: The rank of the input: the shape itself may be a tensor, whose length no one knows.
        arrays: What has ``arange``, ``cast`` and ``reshape``: NumPy's below, or TensorFlow's.
        dtype: The type of the factors.
    """

    def adjust(shape: Any) -> tuple[Any, Any]:
        channel = _ramp(arrays, shape, rank, axes, dtype) if name in {"channel", "mixed"} else 0
        sample = _ramp(arrays, shape, rank, [0], dtype) if name in {"sample", "mixed"} else 0
        if name == "channel":
            return 1 + channel, channel - 0.25
        if name == "sample":
            return 1 - sample, sample + 0.125
        if name == "mixed":
            return 1 + channel, sample - 0.25
        one = arrays.cast(arrays.arange(2), dtype)[1]
        return one * 1.25, one * -0.5

    return adjust


class NumPy:
    """The three functions of NumPy."""

    arange = staticmethod(np.arange)
    reshape = staticmethod(np.reshape)

    @staticmethod
    def cast(values: Any, dtype: Any) -> Any:
        """Return the values in another type."""
        return np.asarray(values).astype(dtype)
