"""Local check of a merge: the nodes as they stand against the one op that is to replace them, in float64.

They are compared at a few output positions, at both borders and between them. Permitted is one rounding of every new
weight, one of every old number that is a rounded one itself, and what float64 adds: the bound is the sum of
magnitudes. The lengths of the outputs are compared too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bnpass.errors import VerificationError
from bnpass.folding.merging.definition import Definition, Form, Lengths, Positions, Product
from bnpass.graph.nodes import Scope
from bnpass.semantics.affine import Array, limits_of, wide

TINY = 1e-300
"""Keeps 0/0 out of the ratio of two exact zeros."""


@dataclass(frozen=True, eq=False)
class Run:
    """Nodes in a row, the first of which reads the input; none for the input itself.

    Attributes:
        nodes: The nodes.
        roundings: How many of them store numbers that are rounded ones themselves.
        sign: -1 if their result is taken away.
    """

    nodes: tuple[ir.Node, ...]
    roundings: int
    sign: int = 1


class MergeCheck:
    """Evaluates the old nodes at once, and the new op as its weight streams by.

    Args:
        runs: What is added up.
        attributes: The attributes of the new op.
        shape: The shape of its weight: [output channels, inputs of a group, taps…].
        channels: Channels of the input.
        known: Lengths of the input along each axis, None where they are not known; empty if none matters.
        dtype: The type of its weight.
        scope: Where the nodes stand.
        where: The label of the new op.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        attributes: Mapping[str, ir.Attr],
        shape: tuple[int, ...],
        channels: int,
        known: Sequence[int | None],
        dtype: np.dtype[Any],
        scope: Scope,
        where: str,
    ) -> None:
        self._where, self._dtype, self._kind = where, dtype, wide(dtype)
        form, out = Form.of(attributes, shape[2:]), shape[0]
        group = attributes["group"].as_int() if "group" in attributes else 1
        old = Definition(channels, self._kind, scope)
        fixed = tuple(known) or (None,) * len(form.kernel)
        lengths = tuple(b if a is None else a for a, b in zip(fixed, _enough(form), strict=True))
        self._same_lengths(old, runs, form, lengths, fixed)
        at = _borders_and_middle(form.placed(lengths)[1])
        self._value, self._reach, self._slack = (np.zeros((out, len(at)), self._kind) for _ in range(3))
        with np.errstate(over="ignore", invalid="ignore"):  # judged where the result is
            for run in runs:
                value, reach = old.run(run.nodes, at, lengths)
                self._value += run.sign * value
                self._reach += reach
                self._slack += run.roundings * reach
            self._new = Product(*old.windows(form, (), at, lengths), group, out, self._kind)
        self._taps = math.prod(shape[1:])
        self._roundings = 1 + sum(run.roundings for run in runs)

    def _same_lengths(
        self, old: Definition, runs: Sequence[Run], form: Form, lengths: Lengths, fixed: Sequence[int | None]
    ) -> None:
        for more in range(max((1, *form.strides)) + 1):
            here = tuple(n + more if known is None else n for n, known in zip(lengths, fixed, strict=True))
            if any(old.lengths(run.nodes, here) != form.placed(here)[1] for run in runs):
                raise VerificationError(self._told("would have an output of another length"))

    def add(self, weight: Array) -> None:
        """Take in the weights of the next output channels, as they will be stored: [rows, inputs, taps…]."""
        self._new.add(weight)

    def finish(self, bias: Array | None) -> float:
        """Compare, with the bias as it will be stored.

        Returns:
            The largest deviation in units of what is permitted.

        Raises:
            VerificationError: It is more than permitted, which is a bug in bnpass.
        """
        y, magnitude = self._new.result()
        b = np.zeros((1, 1), self._kind) if bias is None else bias.astype(self._kind)[:, None]
        limits = limits_of(self._dtype)
        rounding = limits.eps / 2 * (magnitude + np.abs(b) + self._slack)
        underflow = limits.smallest_subnormal * (self._taps + 1) * self._roundings
        reach = magnitude + np.abs(b) + self._reach
        noise = limits_of(self._kind).eps * (64 + math.sqrt(self._taps * len(y))) * reach
        gap = np.abs(y + b - self._value)
        ratio = float(np.max(gap / (1.01 * rounding + underflow + noise + TINY), initial=0.0))
        if not ratio <= 1:
            raise VerificationError(self._told(f"deviates {ratio:.3g} times what rounding permits"))
        return ratio

    def _told(self, what: str) -> str:
        return f"local check failed at '{self._where}': the merged op {what}; nothing was written, please report this"


def _enough(form: Form) -> Lengths:
    """Return lengths of an input in which some output reads no padding, different along each axis."""
    axes = zip(form.kernel, form.dilations, form.strides, strict=True)
    return tuple((k - 1) * d + 2 * s + 2 + a for a, (k, d, s) in enumerate(axes))


def _borders_and_middle(out: Lengths) -> Positions:
    points = [[0] * len(out), [n // 2 for n in out], [n - 1 for n in out]]
    return np.array(points, np.int64).reshape(3, len(out))
