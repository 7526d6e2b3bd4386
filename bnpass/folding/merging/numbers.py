"""Compute, judge and check the numbers of a merged op, before anything is edited.

The exact weights stream by once: rounded, compared with what the old nodes make of the same numbers, and held as long
as there is room. What is not held is computed again from the old weights, when the file is written or when an affine
is folded into the op later.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bnpass.errors import Refusal, RefusalId
from bnpass.folding.merging.branch import Branch
from bnpass.folding.merging.check import MergeCheck
from bnpass.folding.window import taps_of
from bnpass.semantics.affine import Array, limits_of, round_once, wide


@dataclass(frozen=True, eq=False)
class Numbers:
    """What a map comes to as one op.

    Attributes:
        weight: The weight as it will be written, [output channels, inputs of a group, taps…].
        exact: The same, not rounded: numbers held wide, or a tensor that computes them again.
        bias: The bias as it will be written; None if there is none.
        exact_bias: The same, wide.
        error: Largest deviation of the local check, relative to what rounding permits; at most 1.
        held: Bytes of numbers that are held.
    """

    weight: ir.Tensor[Any] | ir.LazyTensor
    exact: Array | ir.TensorProtocol
    bias: Array | None
    exact_bias: Array | None
    error: float
    held: int


def compute(merged: Branch, dtype: ir.DataType, memory: int, check: MergeCheck, where: str) -> Numbers | Refusal:
    """Compute the numbers of a merged op.

    Args:
        merged: The map.
        dtype: The type of its weights.
        memory: Bytes that may be held.
        check: The local check.
        where: The label of the node it is to become.

    Raises:
        VerificationError: The local check fails, which is a bug in bnpass.
    """
    stored = dtype.numpy()
    kind = wide(stored)
    needed = merged.weights * (stored.itemsize + kind.itemsize)
    keep = needed <= memory
    exact = np.empty(merged.shape, kind) if keep else None
    weight = np.empty(merged.shape, stored) if keep else None
    biases: list[Array] = []
    with merged.opened() as rows:
        for here in merged.blocks():
            with np.errstate(over="ignore", invalid="ignore"):
                W, b = rows(here)
            rounded = round_once(W, stored)
            refusal = _judge(W, rounded, where, "weight") or _lost(W, rounded, where)
            if refusal is not None:
                return refusal
            check.add(rounded)
            biases.append(b.astype(kind))
            if exact is not None and weight is not None:
                exact[here], weight[here] = W, rounded
    exact_bias = np.concatenate(biases) if merged.has_bias else None
    bias = None if exact_bias is None else round_once(exact_bias, stored)
    if exact_bias is not None and bias is not None:
        refusal = _judge(exact_bias, bias, where, "bias")
        if refusal is not None:
            return refusal
    error = check.finish(bias)
    if exact is not None and weight is not None:
        return Numbers(ir.Tensor(weight, dtype=dtype), exact, bias, exact_bias, error, needed)
    return Numbers(_again(merged, dtype, stored), _again(merged, ir.DataType.DOUBLE, kind), bias, exact_bias, error, 0)


def _again(merged: Branch, dtype: ir.DataType, kind: np.dtype[Any]) -> ir.LazyTensor:
    """Return the weight as a tensor that computes itself; float64 is the widest that there is of these."""
    stored = np.dtype(np.float64) if dtype is ir.DataType.DOUBLE else kind

    def compute_again() -> ir.TensorProtocol:
        result = np.empty(merged.shape, stored)
        with merged.opened() as rows:
            for here in merged.blocks():
                result[here] = round_once(rows(here)[0], stored)
        return ir.Tensor(result, dtype=dtype)

    shape = ir.Shape((*merged.shape[:2], *taps_of(merged.window)))
    return ir.LazyTensor(compute_again, dtype, shape)


def _judge(exact: Array, rounded: Array, where: str, what: str) -> Refusal | None:
    if np.isfinite(rounded).all():
        return None
    if not np.isfinite(exact).all():
        return Refusal(RefusalId.INVALID_STATISTICS, where, f"the merged {what} would contain NaN or infinity")
    return Refusal(RefusalId.WOULD_OVERFLOW, where, f"the merged {what} would be beyond the range of {rounded.dtype}")


def _lost(exact: Array, rounded: Array, where: str) -> Refusal | None:
    """Refuse if a whole output channel would sink into subnormal numbers and lose its digits there."""
    limits = limits_of(rounded.dtype)
    peak = np.abs(exact).reshape(len(exact), -1).max(axis=1)
    small = (peak < limits.smallest_normal) & (peak > 0)
    if not small.any():
        return None
    gap = np.abs(rounded[small].astype(exact.dtype) - exact[small]).reshape(int(small.sum()), -1).max(axis=1)
    if not (gap > limits.eps * peak[small]).any():
        return None
    told = f"the merged weight would be too small for {rounded.dtype} in some channel"
    return Refusal(RefusalId.DTYPE_WOULD_LOSE_PRECISION, where, told)
