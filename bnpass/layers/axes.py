"""One channel axis for a layer that has several.

    X [d0, …, dn]  →  x with one axis of C = product of the channel axes, row-major  →  Y [d0, …, dn]

Channel axes that are neighbours are joined where they stand. Others move to the end first, and the rest keeps its
order, so that a batch axis that is no channel axis stays in front: ghost batches count on it.
"""

from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from bnpass.errors import UsageError
from bnpass.ops.calls import typed
from bnpass.ops.emit import Emit
from bnpass.semantics.resolved import Resolved

Dims = tuple[int | None, ...]


@dataclass(frozen=True)
class ChannelAxis:
    """The way to one channel axis and back.

    Attributes:
        axes: The channel axes of X, ascending.
        order: The permutation that comes first; None where nothing has to move.
        outer: The shape after it.
        first: Where the channel axes stand in ``outer``, and the one channel axis afterwards.
        rank: Number of axes afterwards.
    """

    axes: tuple[int, ...]
    order: tuple[int, ...] | None
    outer: Dims
    first: int
    rank: int

    @classmethod
    def of(cls, layer: Resolved) -> "ChannelAxis":
        """Return the way for a layer.

        Raises:
            UsageError: It has several channel axes and no channels.
        """
        axes, shape = layer.axes, layer.input_shape
        rank, count = len(shape), len(layer.axes)
        if count > 1 and layer.channels == 0:
            raise UsageError(f"axes {axes} of shape {shape} hold no channels, so they cannot be joined")
        behind = shape[axes[-1] + 1 :]
        if count == 1 or (axes == tuple(range(axes[0], axes[0] + count)) and all(behind)):
            return cls(axes, None, shape, axes[0], rank - count + 1)
        order = (*(i for i in range(rank) if i not in axes), *axes)
        stays = order == tuple(range(rank))
        return cls(axes, None if stays else order, tuple(shape[i] for i in order), rank - count, rank - count + 1)

    @property
    def channels(self) -> int:
        """The number C of channels."""
        return prod(n or 0 for n in self._joined)

    @property
    def others(self) -> tuple[int, ...]:
        """All axes but the channel axis, afterwards."""
        return tuple(i for i in range(self.rank) if i != self.first)

    def enter(self, op: Emit, X: ir.Value) -> ir.Value:
        """Write the way there; X is of known type."""
        if len(self.axes) == 1:
            return X
        x = X if self.order is None else op("Transpose", X, name="channels_last", perm=self.order)
        joined = (*self._before, self.channels, *self._behind)
        x = op("Reshape", x, op.ints(*self._spelled(joined)), name="one_channel_axis")
        return typed(x, X.dtype, ir.Shape(joined))

    def leave(self, op: Emit, y: ir.Value) -> ir.Value:
        """Write the way back; y is of known type."""
        if len(self.axes) == 1:
            return y
        Y = op("Reshape", y, op.ints(*self._spelled(self.outer)), name="all_channel_axes")
        shape = list(self.outer)
        if self.order is not None:
            typed(Y, y.dtype, ir.Shape(shape))
            back = sorted(range(len(self.order)), key=self.order.__getitem__)
            Y, shape = op("Transpose", Y, name="axes_in_place", perm=back), [shape[i] for i in back]
        return typed(Y, y.dtype, ir.Shape(shape))

    def along(self, op: Emit, vector: ir.Value) -> ir.Value:
        """Write a vector [C] so that it broadcasts against what ``enter`` returns."""
        behind = self.rank - 1 - self.first
        if behind == 0:
            return vector
        shape = [self.channels, *[1] * behind]
        return typed(op("Reshape", vector, op.ints(-1, *shape[1:]), name="along"), vector.dtype, ir.Shape(shape))

    def along_all(self, op: Emit, vector: ir.Value) -> ir.Value:
        """Write a vector [C] so that it broadcasts against X itself."""
        rank = len(self.outer)
        if self.axes == (rank - 1,):
            return vector
        sizes = iter(self._joined)
        shape = [next(sizes) or 0 if i in self.axes else 1 for i in range(self.axes[0], rank)]
        spelled = [-1 if len(self.axes) == 1 and n != 1 else n for n in shape]
        return typed(op("Reshape", vector, op.ints(*spelled), name="along"), vector.dtype, ir.Shape(shape))

    @property
    def _before(self) -> Dims:
        return self.outer[: self.first]

    @property
    def _joined(self) -> Dims:
        return self.outer[self.first : self.first + len(self.axes)]

    @property
    def _behind(self) -> Dims:
        return self.outer[self.first + len(self.axes) :]

    def _spelled(self, shape: Dims) -> tuple[int, ...]:
        """For Reshape: 0 copies a length, which serves those in front, known or not, empty or not."""
        return (*(0 for _ in self._before), *(n or 0 for n in shape[self.first :]))
