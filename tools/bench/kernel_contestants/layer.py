"""What is measured: a batch normalization of given numbers, forward and backward in training."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

EPSILON, MOMENTUM = 1e-3, 0.99
THREADS = 2
COPIED_BYTES = 256 << 20
"""By one memory copy: too much for any cache."""


class Layer(NamedTuple):
    """A layer and its numbers, float32.

    Attributes:
        shape: Of X, as [N, C, ...].
        layout: "NCHW", "NHWC", or "NC".
        folder: Where the files ``x`` and ``dy`` are; the first elements of each, read in the order of the layout, are
            X and dY.
    """

    shape: tuple[int, ...]
    layout: str
    folder: Path

    @property
    def elements(self) -> int:
        """Of X."""
        return math.prod(self.shape)

    @property
    def channels(self) -> int:
        """C."""
        return self.shape[1]

    @property
    def in_memory(self) -> tuple[int, ...]:
        """The shape in the order of the layout."""
        N, C, *spatial = self.shape
        return (N, *spatial, C) if self.layout == "NHWC" else self.shape

    @property
    def axis(self) -> int:
        """That of the channels in memory."""
        return len(self.shape) - 1 if self.layout == "NHWC" else 1

    @property
    def scale(self) -> list[float]:
        """[C]."""
        return [0.5 + c % 7 / 4 for c in range(self.channels)]

    @property
    def B(self) -> list[float]:  # noqa: N802  ONNX's name
        """[C]."""
        return [c % 5 / 2 - 1 for c in range(self.channels)]


class Pass(NamedTuple):
    """One direction of a layer, ready to run.

    Attributes:
        run: Compute it; what it returns is let go of after the time was taken.
        result: Compute it and return Y or dX, in the order of the layout, as something that has a buffer.
    """

    run: Callable[[], object]
    result: Callable[[], Any]
