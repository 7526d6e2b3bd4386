"""Local check of one linear op: the op with its affines before against the op after, in float64.

The op is evaluated here from the stored weight and the attributes of the node alone, as ONNX defines it and not as
``rules`` describe it: what is checked must not check itself. One output point is enough, with every tap in play:

    rows are outputs   y[r]    = Σ_q W[r, q]·x[g(r), q]      Conv, MatMul and Gemm with outputs in rows
    rows are inputs    y[g, q] = Σ_r x[r]·W[r, q]            ConvTranspose, MatMul and Gemm with inputs in rows

with x = ±1 at random, so that the sum of magnitudes, which bounds the error, is the sum of |W'|. Taps that read
padding are masked. Permitted is one rounding of every weight and of the bias, and what float64 adds.
"""

import math
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnpass.errors import VerificationError
from bnpass.graph.nodes import label
from bnpass.semantics.affine import Affine, Array, limits_of, wide

TINY = 1e-300
"""Keeps 0/0 out of the ratio of two exact zeros."""


class LinearCheck:
    """Evaluates old and new weights as they stream by.

    Args:
        node: The op.
        weight_index: Input slot of the weight.
        shape: Stored shape of the weight.
        into: Affine of the activation, as vectors over input channels or of length 1.
        out: Affine of the result, as vectors over output channels or of length 1.
        dtype: Type of the stored weight.
    """

    def __init__(
        self,
        node: ir.Node,
        weight_index: int,
        shape: tuple[int, ...],
        into: Affine,
        out: Affine,
        dtype: np.dtype[Any],
    ) -> None:
        self._node, self._into, self._out, self._dtype = node, into, out, dtype
        self._kind = wide(dtype)
        self._groups, self._taps, self._rows_are_outputs = _structure(node, weight_index, shape)
        self._rows, self._columns = _matrix(node, shape)
        rng = np.random.default_rng(0)
        signs = np.array([-1, 1], self._kind)
        if self._rows_are_outputs:
            mask = np.tile(_mask(node, shape), self._columns // self._taps)
            x = rng.choice(signs, (self._groups, self._columns))
            self._x_new, self._x_old = x * mask, self._applied(x) * mask
            results: tuple[int, ...] = (self._rows,)
        else:
            self._x_new = rng.choice(signs, self._rows)
            self._x_old = self._applied(self._x_new)
            results = (self._groups, self._columns)
        self._y_old, self._y_new = np.zeros(results, self._kind), np.zeros(results, self._kind)
        self._reach = np.zeros(results)  # Σ |W|·|x| of the old op, where its shift makes it larger than the new one's
        self._magnitude, self._peak = np.zeros(results), np.zeros(results)
        self._offset = 0

    @property
    def channel_peak(self) -> Array:
        """Largest |W'| of each output channel."""
        return np.asarray(self._by_channel(self._peak).max(axis=1))

    def _applied(self, x: Array) -> Array:
        """Apply the input affine to the activations of one output point."""
        if self._into.is_uniform:
            return np.asarray(self._into.scale * x + self._into.shift)
        scale, shift = (np.broadcast_to(v, self._in_channels).copy() for v in (self._into.scale, self._into.shift))
        if not self._rows_are_outputs:
            scale, shift = (np.tile(v, self._rows // v.size) for v in (scale, shift))
        elif self._node.op_type != "MatMul":
            scale, shift = (np.repeat(v, self._taps).reshape(x.shape) for v in (scale, shift))
        return np.asarray(scale * x + shift)

    @property
    def _in_channels(self) -> int:
        return max(self._into.scale.size, self._into.shift.size)

    def add(self, old: Array, new: Array) -> None:
        """Take in the next piece of the weight, in storage order: whole rows, or part of one."""
        row, column = divmod(self._offset, self._columns)
        width = min(self._columns - column, old.size)
        rows = old.size // width
        self._offset += old.size
        here = (slice(row, row + rows), slice(column, column + width))
        w_old = old.reshape(rows, width).astype(self._kind)
        w_new = new.reshape(rows, width)
        magnitude = np.abs(w_new if w_new.dtype.itemsize > 2 else w_new.astype(np.float32))
        with np.errstate(over="ignore", invalid="ignore"):  # infinities are judged by the peak
            self._multiply(self._y_old, w_old, self._x_old, here)
            self._multiply(self._y_new, w_new.astype(self._kind), self._x_new, here)
            if self._into.has_shift:
                self._multiply(self._reach, np.abs(w_old).astype(np.float64), np.abs(self._x_old), here)
            self._record(magnitude, here)

    def _multiply(self, y: Array, w: Array, x: Array, here: tuple[slice, slice]) -> None:
        rows, columns = here
        group = self._group_of(rows)
        one_group = group[0] == group[-1]
        if self._rows_are_outputs:
            y[rows] += w @ x[group[0], columns] if one_group else (w * x[group, columns]).sum(axis=1)
        elif one_group:
            y[group[0], columns] += x[rows] @ w
        else:
            np.add.at(y[:, columns], group, x[rows, None] * w)

    def _record(self, magnitude: Array, here: tuple[slice, slice]) -> None:
        rows, columns = here
        if self._rows_are_outputs:
            self._peak[rows] = np.maximum(self._peak[rows], magnitude.max(axis=1))
            self._magnitude[rows] += magnitude.sum(axis=1)
            return
        group = self._group_of(rows)
        if group[0] == group[-1]:
            peak = self._peak[group[0], columns]
            np.maximum(peak, magnitude.max(axis=0), out=peak)
            self._magnitude[group[0], columns] += magnitude.sum(axis=0)
        else:
            np.maximum.at(self._peak[:, columns], group, magnitude)
            np.add.at(self._magnitude[:, columns], group, magnitude)

    def _group_of(self, rows: slice) -> NDArray[np.intp]:
        return np.arange(rows.start, rows.stop) * self._groups // self._rows

    def finish(self, bias_old: Array, bias_new: Array, gain: float, factor: float, slack: Array | float = 0.0) -> float:
        """Compare.

        Args:
            bias_old: What the op added before: [output channels], [1] or [output channels, points].
            bias_new: What it adds now, likewise.
            gain: Factor of the product (Gemm's alpha).
            factor: Factor with which the stored bias is in ``bias_new`` (Gemm's beta).
            slack: What else the new bias may be off, like it: half a unit of a quantized one.

        Returns:
            The largest deviation in units of what is permitted.

        Raises:
            VerificationError: It is more than permitted, which is a bug in bnpass.
        """
        scale, shift, b_old, b_new = (
            v if v.ndim == 2 else v[:, None] for v in (self._out.scale, self._out.shift, bias_old, bias_new)
        )
        y_old, y_new, magnitude, reach = (
            self._by_channel(y) for y in (self._y_old, self._y_new, self._magnitude, self._reach)
        )
        before = scale * (gain * y_old + b_old) + shift
        after = gain * y_new + b_new
        limits = limits_of(self._dtype)
        rounding = limits.eps / 2 * (abs(gain) * magnitude + np.abs(b_new))
        taps = abs(gain) * self._columns * self._rows / max(1, y_new.shape[0])
        underflow = limits.smallest_subnormal * (taps + abs(factor))
        reach = abs(gain) * (magnitude + np.abs(scale) * reach) + np.abs(scale * b_old) + np.abs(shift) + np.abs(b_new)
        noise = limits_of(self._kind).eps * (64 + math.sqrt(self._columns * self._rows)) * reach
        slack = np.asarray(slack).reshape(-1, 1)
        allowed = 1.01 * (rounding + slack) + underflow + noise + TINY
        ratio = float(np.max(np.abs(after - before) / allowed, initial=0.0))
        if not ratio <= 1 or not self._gaps_agree(b_old, b_new):
            raise VerificationError(
                f"local check failed at {self._node.op_type} '{label(self._node)}': the op after the fold deviates "
                f"{ratio:.3g} times what rounding permits; nothing was written, please report this"
            )
        return ratio

    def _by_channel(self, y: Array) -> Array:
        """Bring results to [output channels, points]."""
        if self._node.op_type == "MatMul":
            return y.reshape(self._groups, -1).T
        return y.reshape(-1, 1) if self._rows_are_outputs else y.reshape(-1, self._taps)

    def _gaps_agree(self, b_old: Array, b_new: Array) -> bool:
        """Between the strides of a ConvTranspose the output is the bias alone: no shift of the input arrives there."""
        ints = self._node.attributes.get_ints
        has_gaps = any(s > 1 for s in ints("strides", ())) or any(ints("output_padding", ()))
        if self._node.op_type != "ConvTranspose" or not self._into.has_shift or not has_gaps:
            return True
        return bool(np.array_equal(self._out.scale * b_old.ravel() + self._out.shift, b_new.ravel()))


def _structure(node: ir.Node, weight_index: int, shape: tuple[int, ...]) -> tuple[int, int, bool]:
    """Return groups, taps per channel, and whether the rows of the stored weight are outputs."""
    flag = node.attributes.get_int
    is_right = weight_index == 1
    match node.op_type:
        case "Conv":
            return flag("group", 1), math.prod(shape[2:]), True
        case "ConvTranspose":
            return flag("group", 1), math.prod(shape[2:]), False
        case "Gemm":
            return 1, 1, bool(flag("transB", 0)) if is_right else not flag("transA", 0)
        case _:
            return math.prod(shape[:-2]), 1, not is_right


def _matrix(node: ir.Node, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return rows and columns of the stored weight as one matrix."""
    if node.op_type in ("Conv", "ConvTranspose"):
        return shape[0], math.prod(shape[1:])
    return math.prod(shape[:-1]), shape[-1]


def _mask(node: ir.Node, shape: tuple[int, ...]) -> Array:
    """Return which taps of one channel read data at the first output point: 1 data, 0 padding."""
    if node.op_type != "Conv":
        return np.ones(1)
    kernel = shape[2:]
    mask = np.ones(kernel)
    pads = node.attributes.get_ints("pads", ())
    dilations = node.attributes.get_ints("dilations", (1,) * len(kernel))
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    for axis, size in enumerate(kernel):
        begin = pads[axis] if auto_pad == "NOTSET" and len(pads) == 2 * len(kernel) else 0
        end = pads[axis + len(kernel)] if auto_pad == "NOTSET" and len(pads) == 2 * len(kernel) else 0
        if auto_pad.startswith("SAME") and size > 1:
            end = 1
        hidden = [i for i in range(size) if i * dilations[axis] < begin] or ([size - 1] if end else [])
        mask[(slice(None),) * axis + (hidden,)] = 0
    return mask.reshape(-1)
