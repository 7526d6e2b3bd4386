"""A linear map of one value, ``y = W*x + b``, and the two ways in which such maps become one.

    sum      (W₁*x + b₁) + (W₂*x + b₂)  =  (W₁ + W₂)*x + (b₁ + b₂)        windows of one stride and reach
    chain    W₂*(W₁*x + b₁) + b₂        =  (W₂W₁)*x + (b₂ + Σ W₂·b₁)      one of the two windows is a point

Groups: with g = gcd(g₁, g₂), each group of the result holds whole groups of both, as blocks on its diagonal. In a
chain, the shift b₁ does not reach the zeros that W₂ pads with, so there it has to be absent.

Weights stream by in rows of output channels, wide: what is added up is not rounded before.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from bnpass.folding.window import Window, is_padded, is_pointwise, joined, pointwise, taps_of
from bnpass.semantics.affine import BLOCK_ELEMENTS, Array, wide

Rows = Callable[[slice], tuple[Array, Array]]
"""Weights ``[rows, inputs of a group, taps…]`` and bias ``[rows]`` of some output channels, wide."""


@dataclass(frozen=True, eq=False)
class Branch:
    """One linear map.

    Attributes:
        data: The value x.
        nodes: The nodes that it stands for, the one that reads x first; none for x itself.
        channels: Numbers of output and input channels.
        group: Number of groups.
        window: Which inputs an output reads.
        work: Multiply-adds for each output position that the nodes cost as they are.
        dtype: The type of its weights; None if it has none.
        has_bias: Whether b is there.
        opened: Gives the rows of W and b for a while.
    """

    data: ir.Value
    nodes: tuple[ir.Node, ...]
    channels: tuple[int, int]
    group: int
    window: Window
    work: int
    dtype: ir.DataType | None
    has_bias: bool
    opened: Callable[[], AbstractContextManager[Rows]]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of W: [output channels, inputs of a group, taps…]."""
        return (self.channels[0], self.channels[1] // self.group, *taps_of(self.window))

    @property
    def weights(self) -> int:
        """Number of weights, which is that of the multiply-adds of one op in place of the nodes."""
        return math.prod(self.shape)

    def blocks(self) -> Iterator[slice]:
        """Cut the output channels into pieces whose weights stay in the cache."""
        step = max(1, BLOCK_ELEMENTS // max(1, math.prod(self.shape[1:])))
        for start in range(0, self.channels[0], step):
            yield slice(start, min(start + step, self.channels[0]))


def diagonal(data: ir.Value, nodes: tuple[ir.Node, ...], rank: int, scale: Array, shift: Array | None = None) -> Branch:
    """Return ``scale·x + shift`` per channel, both of them wide vectors, as a depthwise map with one tap."""
    channels = scale.size
    terms = np.zeros(channels, scale.dtype) if shift is None else shift

    @contextmanager
    def opened() -> Iterator[Rows]:
        yield lambda rows: (scale[rows].reshape(-1, *(1,) * (rank + 1)), terms[rows])

    return Branch(
        data=data,
        nodes=nodes,
        channels=(channels, channels),
        group=channels,
        window=pointwise(rank),
        work=0,
        dtype=None,
        has_bias=shift is not None,
        opened=opened,
    )


def negative(branch: Branch) -> Branch:
    """Return ``-W*x - b``."""

    @contextmanager
    def opened() -> Iterator[Rows]:
        with branch.opened() as each:

            def rows(here: slice) -> tuple[Array, Array]:
                W, b = each(here)
                return -W, -b

            yield rows

    return replace(branch, opened=opened)


def chain(first: Branch, second: Branch) -> Branch | None:
    """Return the second map behind the first as one; None if no such map is exactly that."""
    if first.channels[0] != second.channels[1] or not _agree(first.dtype, second.dtype):
        return None
    if len(first.window) != len(second.window):
        return None
    blocked = not is_pointwise(first.window) or (first.has_bias and is_padded(second.window))
    if blocked and not is_pointwise(second.window):
        return None
    # positions that only padding made were none of the first map's
    longer = any(axis.reach > 0 for axis in second.window)
    return Branch(
        data=first.data,
        nodes=first.nodes + second.nodes,
        channels=(second.channels[0], first.channels[1]),
        group=math.gcd(first.group, second.group),
        window=first.window if is_pointwise(second.window) else second.window,
        work=second.work + (0 if longer else first.work),
        dtype=first.dtype or second.dtype,
        has_bias=first.has_bias or second.has_bias,
        opened=lambda: _chained(first, second),
    )


@contextmanager
def _chained(first: Branch, second: Branch) -> Iterator[Rows]:
    group = math.gcd(first.group, second.group)
    per_group, per_out = first.channels[0] // group, second.channels[0] // group
    with first.opened() as one, second.opened() as two:
        whole = slice(0, first.channels[0])
        W1, b1 = one(whole)
        W1 = _widened(W1, whole, first, group)
        taps = max(W1.shape[2:], taps_of(second.window), key=math.prod)

        def rows(here: slice) -> tuple[Array, Array]:
            W2, b2 = two(here)
            W2 = _widened(W2, here, second, group)
            W = np.empty((len(W2), W1.shape[1], *taps), np.result_type(W1, W2))
            b = b2.astype(W.dtype)
            for g in range(here.start // per_out, (here.stop - 1) // per_out + 1):
                part = slice(max(0, g * per_out - here.start), (g + 1) * per_out - here.start)
                inner = slice(g * per_group, (g + 1) * per_group)
                W[part] = _product(W2[part], W1[inner])
                b[part] += W2[part].sum(axis=tuple(range(2, W2.ndim))) @ b1[inner]
            return W, b

        yield rows


def _product(W2: Array, W1: Array) -> Array:
    """Return ``Σ W2[m, j, k]·W1[j, c, l]``; k or l has one element."""
    count, inner = W2.shape[:2]
    if math.prod(W2.shape[2:]) == 1:
        return (W2.reshape(count, inner) @ W1.reshape(inner, -1)).reshape(count, *W1.shape[1:])
    taps = W2.shape[2:]
    moved = np.moveaxis(W2.reshape(count, inner, -1), 1, 2).reshape(-1, inner)  # [rows·taps, inner], for one product
    product = (moved @ W1.reshape(inner, -1)).reshape(count, -1, W1.shape[1])
    return np.moveaxis(product, 1, 2).reshape(count, W1.shape[1], *taps)


def total(branches: Sequence[Branch], nodes: tuple[ir.Node, ...]) -> Branch:
    """Return the sum of maps of one value whose windows have one stride and reach; ``nodes`` is what it stands for."""
    window, group = branches[0].window, branches[0].group
    for branch in branches[1:]:
        window, group = joined(window, branch.window), math.gcd(group, branch.group)
    dtype = next((b.dtype for b in branches if b.dtype is not None), None)
    kind = wide(np.dtype(np.float64) if dtype is None else dtype.numpy())
    return Branch(
        data=branches[0].data,
        nodes=nodes,
        channels=branches[0].channels,
        group=group,
        window=window,
        work=sum(b.work for b in branches),
        dtype=dtype,
        has_bias=any(b.has_bias for b in branches),
        opened=lambda: _added(branches, window, group, kind),
    )


@contextmanager
def _added(branches: Sequence[Branch], window: Window, group: int, kind: np.dtype[Any]) -> Iterator[Rows]:
    shape = (branches[0].channels[1] // group, *taps_of(window))
    with ExitStack() as stack:
        each = [stack.enter_context(b.opened()) for b in branches]

        def rows(here: slice) -> tuple[Array, Array]:
            count = here.stop - here.start
            W, b = np.zeros((count, *shape), kind), np.zeros(count, kind)
            for branch, of in zip(branches, each, strict=True):
                part, shift = of(here)
                places = tuple(a.place_of(p) for a, p in zip(window, branch.window, strict=True))
                W[(slice(None), slice(None), *places)] += _widened(part, here, branch, group)
                b += shift
            return W, b

        yield rows


def _widened(W: Array, here: slice, branch: Branch, group: int) -> Array:
    """Lay the rows of a map with more groups into those of one with ``group``: zeros beside its blocks."""
    ratio, per_in = branch.group // group, branch.channels[1] // branch.group
    if ratio == 1:
        return W
    count = here.stop - here.start
    result = np.zeros((count, ratio * per_in, *W.shape[2:]), W.dtype)
    own = np.arange(here.start, here.stop) // (branch.channels[0] // branch.group) % ratio
    columns = own[:, None] * per_in + np.arange(per_in)
    result[np.arange(count)[:, None], columns] = W
    return result


def _agree(a: ir.DataType | None, b: ir.DataType | None) -> bool:
    return a is None or b is None or a is b
