"""Numbers that a case is given by name instead of having them drawn: those that published tests are about."""

from collections.abc import Callable

import numpy as np

from tests.conformance.layers.cases import Array

Shape = tuple[int, ...]


def _ramp(shape: Shape, replica: int) -> Array:
    return np.arange(np.prod(shape)).reshape(shape) + 100.0 * replica


def _alternating(low: float, high: float) -> Callable[[Shape, int], Array]:
    """Return data of which every second sample is low, and the others high."""

    def alternate(shape: Shape, _: int) -> Array:
        odd = np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)) % 2
        return np.broadcast_to(np.where(odd == 0, low, high), shape)

    return alternate


def _padded(value: float) -> Callable[[Shape, int], Array]:
    """Return two positions with numbers in each sample, and padding behind them."""

    def pad(shape: Shape, _: int) -> Array:
        values = np.full(shape, value)
        values[:, 0], values[:, 1] = [1.0, 5.0], [2.0, 5.0]
        return values

    return pad


DATA: dict[str, Callable[[Shape, int], Array]] = {
    "zeros": lambda shape, _: np.zeros(shape),
    "ones": lambda shape, _: np.ones(shape),
    "halves": lambda shape, _: np.full(shape, 0.5),
    "ramp": _ramp,
    "0 and 2": _alternating(0.0, 2.0),
    "-1000 and 1000": _alternating(-1000.0, 1000.0),
    "padded with 0": _padded(0.0),
    "padded with 0.1": _padded(0.1),
    "padded with 1": _padded(1.0),
}
"""By shape and replica."""

MASKS: dict[str, Callable[[Shape], Array]] = {
    "two positions": lambda outer: np.broadcast_to((np.arange(outer[1]) < 2) * 1.0, outer),
    "all, of length 1": lambda outer: np.ones((*outer[:-1], 1)),
}
"""By the shape of the input without its last axis."""
