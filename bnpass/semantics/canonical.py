"""The canonical form of a layer's values: [b, G, S, C].

C counts the channels (all channel axes in one), S the other positions of a sample, and the batch is split into G
ghost batches of b samples each: sample n belongs to ghost batch n mod G. Statistics are taken over axes 0 and 2.
"""

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
REDUCED = (0, 2)
"""The axes of the canonical form over which statistics are taken."""


@dataclass(frozen=True)
class Canonical:
    """The way from a value to its canonical form and back.

    Attributes:
        shape: Shape of the value.
        axes: Its channel axes, ascending.
        virtual_batch_size: Samples in a ghost batch; 0 for one batch that holds them all.

    Raises:
        ValueError: The batch cannot be divided into ghost batches.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    virtual_batch_size: int = 0

    def __post_init__(self) -> None:
        if self.virtual_batch_size and (0 in self.axes or self.shape[0] % self.virtual_batch_size):
            raise ValueError(f"virtual_batch_size {self.virtual_batch_size} does not divide the batch {self.shape[0]}")

    @property
    def groups(self) -> int:
        """The number G of ghost batches."""
        return self.shape[0] // self.virtual_batch_size if self.virtual_batch_size else 1

    @property
    def channels(self) -> int:
        """The number C of channels."""
        return prod(self.shape[axis] for axis in self.axes)

    @property
    def elements(self) -> int:
        """The number of elements per channel and ghost batch; 0 where there is no ghost batch."""
        return (self.virtual_batch_size or self._batch) * self._positions if self.groups else 0

    def pack(self, value: Array) -> Array:
        """Return a value, or what broadcasts against it, as [b, G, S, C] in float64."""
        full = np.broadcast_to(np.asarray(value, np.float64), self.shape)
        samples = self.virtual_batch_size or self._batch
        return full.transpose(self._order).reshape(samples, self.groups, self._positions, self.channels)

    def unpack(self, packed: Array) -> Array:
        """Return [b, G, S, C] as a value of the original shape."""
        return packed.reshape([self.shape[i] for i in self._order]).transpose(np.argsort(self._order))

    @property
    def _order(self) -> tuple[int, ...]:
        return (*(i for i in range(len(self.shape)) if i not in self.axes), *self.axes)

    @property
    def _batch(self) -> int:
        return 1 if 0 in self.axes else self.shape[0]

    @property
    def _positions(self) -> int:
        return prod(n for i, n in enumerate(self.shape) if i not in (0, *self.axes))
