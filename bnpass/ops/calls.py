"""Write a node of the domain ``bnpass``: every slot and every attribute, with the types and shapes of its outputs.

C is the number of channels. Statistics have shape [C], or [G, C] where the batch is divided into G ghost batches.
"""

from dataclasses import dataclass

import onnx_ir as ir

from bnpass.ops import DOMAIN
from bnpass.ops.emit import Emit

DOUBLE = ir.DataType.DOUBLE

TYPES = {
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "float32": ir.DataType.FLOAT,
    "float64": ir.DataType.DOUBLE,
}
"""Element types by the names that ``semantics`` has for them."""


@dataclass(frozen=True)
class BatchNorm:
    """Outputs of ``SyncBatchNormalization``; without updates the running ones are left out."""

    Y: ir.Value
    running_mean: ir.Value | None
    running_var: ir.Value | None
    saved_mean: ir.Value
    saved_inv_std: ir.Value
    count: ir.Value


@dataclass(frozen=True)
class Moments:
    """Outputs of ``SyncBatchMoments``."""

    mean: ir.Value
    var: ir.Value
    count: ir.Value


@dataclass(frozen=True)
class Grad:
    """Outputs of ``SyncBatchNormalizationGrad``."""

    dX: ir.Value
    dscale: ir.Value
    dB: ir.Value


def batch_norm(
    op: Emit,
    X: ir.Value,
    scale: ir.Value,
    B: ir.Value,
    input_mean: ir.Value,
    input_var: ir.Value,
    *,
    axis: int,
    epsilon: float,
    momentum: float,
    training: bool,
    updates: bool = False,
    group: str = "",
    running_var_correction: int = 0,
    virtual_batch_size: int = 0,
) -> BatchNorm:
    """Write a SyncBatchNormalization.

    Args:
        op: Where it is written.
        X: The data, of known type.
        scale: [C].
        B: [C].
        input_mean: [C]; in inference mode with ghost batches [G, C].
        input_var: As ``input_mean``.
        axis: The channel axis of X.
        epsilon: Added to the variance.
        momentum: The fraction kept of the running statistics.
        training: Normalize with the statistics of the batch.
        updates: Whether the running statistics come out; in training only.
        group: The replicas that share statistics.
        running_var_correction: ddof of the moving variance.
        virtual_batch_size: Samples in a ghost batch; 0 for none.
    """
    outputs = op.many(
        "SyncBatchNormalization",
        [X, scale, B, input_mean, input_var, None],
        ["Y", *(["running_mean", "running_var"] if updates else ["", ""]), "saved_mean", "saved_inv_std", "count"],
        domain=DOMAIN,
        axis=axis,
        epsilon=float(epsilon),
        momentum=float(momentum),
        training_mode=int(training),
        group=group,
        running_var_correction=running_var_correction,
        virtual_batch_size=virtual_batch_size,
        collective_id=0,
    )
    Y, running_mean, running_var, saved_mean, saved_inv_std, count = outputs
    statistics = _statistics_shape(scale, virtual_batch_size)
    typed(Y, X.dtype, X.shape)
    if updates:
        typed(running_mean, input_mean.dtype, input_mean.shape)
        typed(running_var, input_var.dtype, input_var.shape)
    typed(saved_mean, DOUBLE, statistics)
    typed(saved_inv_std, DOUBLE, statistics)
    typed(count, DOUBLE, ir.Shape([]))
    return BatchNorm(
        Y, running_mean if updates else None, running_var if updates else None, saved_mean, saved_inv_std, count
    )


def batch_norm_grad(
    op: Emit,
    dY: ir.Value,
    X: ir.Value,
    scale: ir.Value,
    saved_mean: ir.Value,
    saved_inv_std: ir.Value,
    count: ir.Value,
    *,
    axis: int,
    group: str = "",
    virtual_batch_size: int = 0,
) -> Grad:
    """Write a SyncBatchNormalizationGrad: with ``count`` 0 the statistics are constants, as in inference."""
    dX, dscale, dB = op.many(
        "SyncBatchNormalizationGrad",
        [dY, X, scale, saved_mean, saved_inv_std, count, None],
        ["dX", "dscale", "dB"],
        domain=DOMAIN,
        axis=axis,
        group=group,
        virtual_batch_size=virtual_batch_size,
        collective_id=0,
    )
    typed(dX, X.dtype, X.shape)
    for gradient in (dscale, dB):
        typed(gradient, scale.dtype, scale.shape)
    return Grad(dX, dscale, dB)


def moments(
    op: Emit, X: ir.Value, *, axis: int, channels: int, group: str = "", virtual_batch_size: int = 0
) -> Moments:
    """Write a SyncBatchMoments: mean and population variance, and the elements per channel and ghost batch."""
    mean, var, count = op.many(
        "SyncBatchMoments",
        [X, None],
        ["mean", "var", "count"],
        domain=DOMAIN,
        axis=axis,
        group=group,
        virtual_batch_size=virtual_batch_size,
        collective_id=0,
    )
    shape = ir.Shape([None, channels] if virtual_batch_size else [channels])
    typed(mean, DOUBLE, shape)
    typed(var, DOUBLE, shape)
    typed(count, DOUBLE, ir.Shape([]))
    return Moments(mean, var, count)


def all_reduce(op: Emit, X: ir.Value, *, group: str) -> ir.Value:
    """Write an AllReduce: the sum over the replicas of a group."""
    Y = op("AllReduce", X, None, name="total", domain=DOMAIN, group=group, reduction="sum", collective_id=0)
    return typed(Y, X.dtype, X.shape)


def typed(value: ir.Value, dtype: ir.DataType | None, shape: ir.Shape | None = None) -> ir.Value:
    """Say what a value is, as far as it is known, and return it."""
    if dtype is not None:
        value.dtype = dtype
    if shape is not None:
        value.shape = ir.Shape(shape)
    return value


def _statistics_shape(scale: ir.Value, virtual_batch_size: int) -> ir.Shape | None:
    if scale.shape is None:
        return None
    return ir.Shape([None, *scale.shape] if virtual_batch_size else scale.shape)
