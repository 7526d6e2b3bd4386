"""Nodes in a row, evaluated at single output positions, from their attributes and stored numbers, as ONNX defines them.

Nothing that merging believes about windows, groups or chains is used here: it is what merging is checked against. The
input is ±1 at random at every position. With each value travels the sum of the magnitudes that it is made of.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnpass.errors import VerificationError
from bnpass.graph.constants import Constant, broadcast_operand, find_float
from bnpass.graph.nodes import Scope, label, operand
from bnpass.semantics.affine import BLOCK_ELEMENTS, Array

PERIOD = 1021
"""The input repeats after so many positions; a prime, so that no stride meets it."""

_COEFFICIENTS = (1, 31, 173, 331)
"""How far one step along each axis moves in the input."""

Positions = NDArray[np.int64]
"""Positions in a value, [points, spatial axes]."""

Lengths = tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """The attributes of a convolution or pool, as ONNX reads them.

    Attributes:
        kernel: Length of the kernel along each axis.
        strides: Stride along each axis.
        dilations: Dilation along each axis.
        pads: Begins, then ends.
        auto_pad: How ``pads`` is to be read.
    """

    kernel: Lengths
    strides: Lengths
    dilations: Lengths
    pads: Lengths
    auto_pad: str = "NOTSET"

    @classmethod
    def of(cls, attributes: Mapping[str, ir.Attr], kernel: Sequence[int]) -> "Form":
        """Read the attributes of a node with this kernel."""

        def ints(name: str, default: Lengths) -> Lengths:
            return (tuple(attributes[name].as_ints()) if name in attributes else ()) or default

        ones = (1,) * len(kernel)
        auto_pad = attributes["auto_pad"].as_string() if "auto_pad" in attributes else "NOTSET"
        return cls(
            tuple(kernel), ints("strides", ones), ints("dilations", ones), ints("pads", (0, 0) * len(ones)), auto_pad
        )

    def placed(self, lengths: Lengths) -> tuple[Lengths, Lengths]:
        """Return the padding at the begins, and the lengths of the output."""
        begins, out = [], []
        for a, length in enumerate(lengths):
            extent = (self.kernel[a] - 1) * self.dilations[a] + 1
            begin, end = self.pads[a], self.pads[a + len(lengths)]
            if self.auto_pad == "VALID":
                begin = end = 0
            elif self.auto_pad != "NOTSET":
                wanted = -(-length // self.strides[a])
                added = max(0, (wanted - 1) * self.strides[a] + extent - length)
                begin = added // 2 if self.auto_pad == "SAME_UPPER" else added - added // 2
                end = added - begin
            begins.append(begin)
            out.append((length + begin + end - extent) // self.strides[a] + 1)
        return tuple(begins), tuple(out)

    def reads(self, at: Positions, lengths: Lengths) -> tuple[Positions, NDArray[np.bool_]]:
        """Return what is read for each output position, [points, taps, axes], and which of it is no padding."""
        rank, begins = len(self.kernel), self.placed(lengths)[0]
        taps = np.array(list(np.ndindex(*self.kernel)), np.int64).reshape(math.prod(self.kernel), rank)
        where = at[:, None, :] * np.array(self.strides, np.int64)
        where = where + taps * np.array(self.dilations, np.int64) - np.array(begins, np.int64)
        return where, np.asarray(((where >= 0) & (where < np.array(lengths, np.int64))).all(axis=2))


class Definition:
    """Evaluates nodes on one random input.

    Args:
        channels: Channels of the input.
        kind: The type to compute in.
        scope: Where the nodes stand.
    """

    def __init__(self, channels: int, kind: np.dtype[Any], scope: Scope) -> None:
        self._kind, self._scope = kind, scope
        self._signs = np.random.default_rng(0).choice(np.array([-1, 1], np.int8), (channels, PERIOD))

    def lengths(self, nodes: Sequence[ir.Node], lengths: Lengths) -> Lengths:
        """Return the lengths of the result of nodes in a row, given those of the input."""
        for node in nodes:
            form = self._form(node)
            lengths = lengths if form is None else form.placed(lengths)[1]
        return lengths

    def run(self, nodes: Sequence[ir.Node], at: Positions, lengths: Lengths) -> tuple[Array, Array]:
        """Return the result of nodes in a row at some positions, and its sum of magnitudes: [channels, points]."""
        if not nodes:
            index = (at * np.array(_COEFFICIENTS[: at.shape[1]], np.int64)).sum(axis=1) % PERIOD
            x = self._signs[:, index].astype(self._kind)
            return x, np.abs(x)
        node, before = nodes[-1], nodes[:-1]
        form = self._form(node)
        if form is None:
            return self._affine(node, *self.run(before, at, lengths), len(lengths) + 2)
        x, reach = self.windows(form, before, at, lengths)
        if node.op_type == "AveragePool":
            return self._pool(node, form, x, reach, form.reads(at, self.lengths(before, lengths))[1])
        return self._linear(node, x, reach)

    def windows(self, form: Form, before: Sequence[ir.Node], at: Positions, lengths: Lengths) -> tuple[Array, Array]:
        """Return what a window reads of the result of nodes, zeros where it is padding: [channels, points, taps]."""
        inner = self.lengths(before, lengths)
        where, inside = form.reads(at, inner)
        clipped = np.clip(where, 0, np.array(inner, np.int64) - 1).reshape(inside.size, len(inner))
        shape = (-1, *inside.shape)
        x, reach = self.run(before, clipped, lengths)
        return x.reshape(shape) * inside, reach.reshape(shape) * inside

    def _form(self, node: ir.Node) -> Form | None:
        """Return the attributes of an op with a window; None of one that takes every position alone."""
        match node.op_type:
            case "Conv":
                return Form.of(node.attributes, self._constant(node, 1).shape[2:])
            case "AveragePool":
                return Form.of(node.attributes, node.attributes.get_ints("kernel_shape", ()))
            case "Gemm":
                return Form((), (), (), ())
            case _:
                return None

    def _constant(self, node: ir.Node, index: int) -> Constant:
        found = find_float(operand(node, index), self._scope)
        if not isinstance(found, Constant):
            raise VerificationError(f"local check failed at '{label(node)}': its numbers are not constant")
        return found

    def _numbers(self, node: ir.Node, index: int) -> Array:
        return self._constant(node, index).array().astype(self._kind)

    def _pool(
        self, node: ir.Node, form: Form, x: Array, reach: Array, inside: NDArray[np.bool_]
    ) -> tuple[Array, Array]:
        counts_zeros = node.attributes.get_int("count_include_pad", 0)
        count = np.full(len(inside), math.prod(form.kernel)) if counts_zeros else inside.sum(axis=1)
        return x.sum(axis=2) / count, reach.sum(axis=2) / count

    def _linear(self, node: ir.Node, x: Array, reach: Array) -> tuple[Array, Array]:
        gemm = node.op_type == "Gemm"
        factor = node.attributes.get_float
        alpha, beta = (self._kind.type(np.float32(factor(n, 1.0) if gemm else 1.0)) for n in ("alpha", "beta"))
        with self._constant(node, 1).reading() as stored:
            weight = stored.T if gemm and not node.attributes.get_int("transB", 0) else stored
            product = Product(x, reach, node.attributes.get_int("group", 1), len(weight), self._kind)
            step = max(1, BLOCK_ELEMENTS // max(1, weight[0].size))
            for start in range(0, len(weight), step):
                product.add(weight[start : start + step])
        y, size = product.result()
        y, size = alpha * y, abs(alpha) * size
        if operand(node, 2) is None or (gemm and beta == 0):
            return y, size
        b = beta * np.broadcast_to(self._numbers(node, 2), (1, len(y)) if gemm else (len(y),)).reshape(-1, 1)
        return y + b, size + np.abs(b)

    def _affine(self, node: ir.Node, x: Array, reach: Array, rank: int) -> tuple[Array, Array]:
        if node.op_type == "Neg":
            return -x, reach
        if node.op_type in ("BatchNormalization", "SyncBatchNormalization"):
            scale, B, mean, var = (self._numbers(node, i)[:, None] for i in range(1, 5))
            default = 1e-3 if node.domain == "bnpass" else 1e-5
            deviation = np.sqrt(var + self._kind.type(np.float32(node.attributes.get_float("epsilon", default))))
            far = (reach + np.abs(mean)) / deviation * np.abs(scale) + np.abs(B)
            return (x - mean) / deviation * scale + B, far
        first = isinstance(find_float(operand(node, 0), self._scope), Constant)
        c = self._along_channels(node, 0 if first else 1, rank)
        match node.op_type:
            case "Mul":
                return x * c, reach * np.abs(c)
            case "Div":
                return x / c, reach / np.abs(c)
            case "Add":
                return x + c, reach + np.abs(c)
            case _:
                return (c - x if first else x - c), reach + np.abs(c)

    def _along_channels(self, node: ir.Node, index: int, rank: int) -> Array:
        """Return a constant operand as a column over the channels, axis 1."""
        array = self._numbers(node, index)
        placed = broadcast_operand(node, array, rank, self._scope) if index else array
        shape = () if placed is None else (1,) * (rank - placed.ndim) + placed.shape
        if placed is None or len(shape) != rank or placed.size != shape[1]:
            raise VerificationError(f"local check failed at '{label(node)}': its constant does not lie along axis 1")
        return placed.reshape(-1, 1)


class Product:
    """``Σ W·x`` of windows, as rows of the weight stream by.

    Args:
        x: What the windows read: [channels, points, taps].
        reach: The magnitudes it is made of, likewise.
        group: Number of groups.
        rows: Number of output channels.
        kind: The type to compute in.
    """

    def __init__(self, x: Array, reach: Array, group: int, rows: int, kind: np.dtype[Any]) -> None:
        self._x, self._reach = (_by_group(a, group) for a in (x, reach))
        self._per_group, self._kind = rows // group, kind
        self._y: list[Array] = []
        self._size: list[Array] = []
        self._row = 0

    def add(self, weight: Array) -> None:
        """Take in the weights of the next output channels, [rows, inputs of a group, taps…]."""
        W = weight.reshape(len(weight), -1).astype(self._kind)
        group = np.arange(self._row, self._row + len(W)) // self._per_group
        self._row += len(W)
        for a, x, results in ((W, self._x, self._y), (np.abs(W), self._reach, self._size)):
            if group[0] == group[-1]:
                results.append(a @ x[group[0]].T)
            else:
                results.append((x[group] @ a[:, :, None])[:, :, 0])

    def result(self) -> tuple[Array, Array]:
        """Return the sums and the sums of magnitudes, [output channels, points]."""
        return np.concatenate(self._y), np.concatenate(self._size)


def _by_group(x: Array, group: int) -> Array:
    """Bring [channels, points, taps] to [groups, points, inputs of a group · taps]."""
    channels, points, taps = x.shape
    return x.reshape(group, channels // group, points, taps).swapaxes(1, 2).reshape(group, points, -1)
