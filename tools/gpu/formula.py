"""Batch normalization in float64, straight from docs/operators.md: what kernels are judged by."""

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


def canonical(x: Array, axis: int, virtual_batch_size: int) -> Array:
    """Return x in double as [samples, groups, per, channels, inner]; statistics reduce the axes 0, 2 and 4."""
    axis %= x.ndim
    before, after = x.shape[1:axis], x.shape[axis + 1 :]
    batch = x.shape[0] if axis > 0 else 1
    samples = virtual_batch_size or batch
    shape = (samples, batch // samples, *(int(np.prod(part)) for part in (before, x.shape[axis : axis + 1], after)))
    return x.astype(np.float64).reshape(shape)


@dataclass(frozen=True)
class Forward:
    """mean, var, inv_std: [groups, channels]; Y and away = x - mean in canonical shape; running vectors: [channels]."""

    mean: Array
    var: Array
    inv_std: Array
    count: float
    away: Array
    Y: Array
    running_mean: Array
    running_var: Array


@dataclass(frozen=True)
class Parameters:
    """The vectors of a layer, [channels], and its numbers."""

    scale: Array
    B: Array
    input_mean: Array
    input_var: Array
    epsilon: float = 1e-3
    momentum: float = 0.9
    correction: int = 1


def spread(vector: Array) -> Array:
    """Return statistics [groups, channels] in a shape that goes with canonical values."""
    return vector[None, :, None, :, None]


def forward(x: Array, axis: int, virtual_batch_size: int, layer: Parameters) -> Forward:
    values = canonical(x, axis, virtual_batch_size)
    mean = values.mean((0, 2, 4))
    away = values - spread(mean)
    mean = mean + away.mean((0, 2, 4))  # what the first sum has lost
    away = values - spread(mean)
    var = (away**2).mean((0, 2, 4))
    inv_std = 1 / np.sqrt(var + layer.epsilon)
    count = float(values.shape[0] * values.shape[2] * values.shape[4])
    m = layer.momentum
    unbiased = count / max(count - layer.correction, 1.0)
    return Forward(
        mean,
        var,
        inv_std,
        count,
        away,
        spread(layer.scale * inv_std) * away + spread(layer.B[None]),
        m * layer.input_mean + (1 - m) * mean.mean(0),
        m * layer.input_var + (1 - m) * unbiased * var.mean(0),
    )


@dataclass(frozen=True)
class Backward:
    """Sums: [groups, channels]; size_* are the sums of the magnitudes, for bounds; dX: canonical."""

    sum_dY: Array
    sum_dYX: Array
    size_dY: Array
    size_dYX: Array
    factor: Array
    shift: Array
    slope: Array
    dX: Array
    dscale: Array
    dB: Array


def backward(
    dy: Array, x: Array, mean: Array, inv_std: Array, count: float, scale: Array, axis: int, virtual_batch_size: int
) -> Backward:
    g, away = canonical(dy, axis, virtual_batch_size), canonical(x, axis, virtual_batch_size) - spread(mean)
    sums = [part.sum((0, 2, 4)) for part in (g, g * away, np.abs(g), np.abs(g * away))]
    factor = scale * inv_std
    shift = sums[0] / count if count else np.zeros_like(mean)
    slope = inv_std**2 * sums[1] / count if count else np.zeros_like(mean)
    return Backward(
        *sums,
        factor,
        shift,
        slope,
        spread(factor) * (g - spread(shift) - spread(slope) * away),
        (inv_std * sums[1]).sum(0),
        sums[0].sum(0),
    )
