"""Mean and variance of the batch, as tf.nn.moments and tf.math.reduce_variance write them.

mean = Mean(x)      var = Mean((x - mean)²)       over the same constant axes, then reshaped as it may be
"""

from dataclasses import dataclass
from typing import Any

from bnpass.exporting.graphs.facts import array, peel, shape_of


@dataclass(frozen=True)
class _Mean:
    """A Mean over known axes.

    Attributes:
        x: What it is taken of.
        axes: Ascending, none negative.
    """

    x: Any
    axes: tuple[int, ...]


def batch_axes(mean: Any, var: Any, x: Any) -> tuple[int, ...] | None:  # noqa: ANN401  tensors of TensorFlow are untyped
    """Return the axes that mean and variance of x keep; None if these are not provably its mean and variance."""
    dtype = x.dtype.name
    first, second = _mean(mean, dtype), _mean(var, dtype)
    if first is None or second is None or first.axes != second.axes or not _is_wider(first.x, x):
        return None
    parts = _squared(second.x, dtype)
    if parts is None:
        return None
    fits = [(a, b) for a, b in (parts, parts[::-1]) if _is_wider(a, x) and _is_mean(b, first, dtype)]
    rank = x.shape.rank
    kept = tuple(i for i in range(rank) if i not in first.axes)
    return kept if fits and kept and first.axes else None


def _mean(tensor: Any, dtype: str) -> _Mean | None:  # noqa: ANN401
    op = peel(tensor, dtype, shapers=True).tensor.op
    if op.type != "Mean":
        return None
    axes, rank = array(op.inputs[1]), op.inputs[0].shape.rank
    if axes is None or rank is None:
        return None
    return _Mean(op.inputs[0], tuple(sorted({int(a) % rank for a in axes.reshape(-1)})))


def _squared(tensor: Any, dtype: str) -> tuple[Any, Any] | None:  # noqa: ANN401
    """Return a and b of (a - b)²."""
    op = peel(tensor, dtype).tensor.op
    if op.type == "SquaredDifference":
        return op.inputs[0], op.inputs[1]
    if op.type == "Square" or (op.type == "Mul" and op.inputs[0] is op.inputs[1]):
        inner = peel(op.inputs[0], dtype).tensor.op
        return (inner.inputs[0], inner.inputs[1]) if inner.type == "Sub" else None
    return None


def _is_mean(tensor: Any, mean: _Mean, dtype: str) -> bool:  # noqa: ANN401
    """Whether a tensor is that mean again, of a shape that broadcasts back along its axes."""
    again, shape, whole = _mean(tensor, dtype), shape_of(tensor), shape_of(mean.x)
    if again is None or shape is None or whole is None or again.axes != mean.axes or len(shape) > len(whole):
        return False
    if peel(again.x, dtype).tensor.name != peel(mean.x, dtype).tensor.name:
        return False
    padded = (1,) * (len(whole) - len(shape)) + shape
    return all(n == (1 if i in mean.axes else whole[i]) and n is not None for i, n in enumerate(padded))


def _is_wider(tensor: Any, x: Any) -> bool:  # noqa: ANN401
    """Whether a tensor is x, or x in a type that loses nothing of it."""
    wide = x.dtype.name
    return bool(peel(tensor, "float64").tensor.name == peel(x, "float64").tensor.name) and (
        tensor.dtype.size >= x.dtype.size or tensor.dtype.name == wide
    )
