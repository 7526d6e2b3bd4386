"""The numbers that replicas reduce: every process and the test draw the same ones."""

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

TYPES = tuple(np.dtype(kind) for kind in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int64))
SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (3, 43), (4097,))
REDUCTIONS = ("sum", "mean", "max", "min")

_RARE = ((0.0, 0.20), (-0.0, 0.15), (np.inf, 0.010), (-np.inf, 0.007), (np.nan, 0.004), (-np.nan, 0.002))
"""Special values, each with the number below which a uniform draw puts it in the place of an ordinary one."""


def cases() -> list[tuple[np.dtype[Any], tuple[int, ...], str]]:
    """Return every (type, shape, reduction) that is defined."""
    return [
        (kind, shape, reduction)
        for kind in TYPES
        for shape in SHAPES
        for reduction in REDUCTIONS
        if not (kind == np.int64 and reduction == "mean")
    ]


def draw(kind: np.dtype[Any], shape: tuple[int, ...], rank: int) -> NDArray[Any]:
    """Return what a replica holds: numbers of many sizes, some zeros of both signs, infinities and NaNs."""
    random = np.random.default_rng([TYPES.index(kind), len(shape), rank])
    if kind == np.int64:
        return random.integers(-(2**40), 2**40, shape)
    values = np.asarray(random.standard_normal(shape) * 10.0 ** random.integers(-3, 4, shape))
    rare = random.random(shape)
    for value, below in _RARE:
        values = np.where(rare < below, value, values)
    if values.size > 2:  # NaNs of both signs, which an addition of processors does not treat alike
        values.flat[0] = np.copysign(np.nan, rank % 2 - 0.5)
        values.flat[1] = np.copysign(np.inf, rank % 2 - 0.5)
    with np.errstate(over="ignore"):
        return values.astype(kind)
