"""Read linear maps off a graph: Conv, Gemm, AveragePool, affines per channel, and chains of them.

    AveragePool   a depthwise Conv whose weights are all 1/(taps of the window), if zeros of padding are counted
    affine        a depthwise Conv with one tap

A chain is read backward as long as its values have no other reader: branches part from a value that several read.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from bnpass.errors import Refusal
from bnpass.folding.absorb import Absorption
from bnpass.folding.linear import Linear
from bnpass.folding.merging.branch import Branch, Rows, chain, diagonal
from bnpass.folding.quantized.stored import Dequantized
from bnpass.folding.recognize import Site, recognize
from bnpass.folding.rules import conv, gemm
from bnpass.folding.window import Window, is_padded, window_of
from bnpass.graph.constants import Constant, find
from bnpass.graph.nodes import Scope, is_standard, operand
from bnpass.graph.shapes import Shapes
from bnpass.semantics.affine import Array, WeightFold, WeightLayout, wide

MAX_CHAIN = 8
"""Longest chain that is read as one map."""

MAX_POOL_TAPS = 1 << 10
"""Largest window of a pool that becomes weights: a file may claim any."""

MAX_STRIDE, MAX_STEP = 1 << 12, 1 << 30
"""Largest stride, and largest dilation or padding: a file may claim any, the check tries as many lengths as a stride is
long, and positions have to be integers of 64 bits."""


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads the maps of one scope.

    Attributes:
        scope: The scope.
        shapes: What is known about shapes.
        absorbed: What each linear op has taken in so far.
        sites: The affines of the scope; None to recognize them here.
        is_selected: Whether a node may be touched.
    """

    scope: Scope
    shapes: Shapes
    absorbed: Mapping[ir.Node, Absorption]
    sites: Mapping[ir.Node, Site] | None
    is_selected: Callable[[ir.Node], bool]
    _frames: dict[ir.Value, tuple[int, int] | None] = field(default_factory=dict)
    _shared: set[ir.Value] = field(default_factory=set)  # a value may have a hundred thousand readers: count them once

    def is_shared(self, value: ir.Value) -> bool:
        """Whether a value is read more than once, or a graph output."""
        if value in self._shared:
            return True
        shared = value.is_graph_output() or len(value.uses()) > 1
        if shared:
            self._shared.add(value)
        return shared

    def look_again(self, value: ir.Value) -> None:
        """Forget how often a value is read, which has become less."""
        self._shared.discard(value)

    def site(self, node: ir.Node) -> Site | None:
        """Return the affine that a node is, if it is one."""
        if self.sites is not None:
            return self.sites.get(node)
        found = recognize(node, self.scope, self.shapes)
        return found if isinstance(found, Site) else None

    def branch(self, value: ir.Value, graph: ir.Graph | None) -> Branch | None:
        """Return the map whose result is ``value``, from as far back as one reader follows the other; None if none."""
        found: Branch | None = None
        for _ in range(MAX_CHAIN):
            node = value.producer()
            if node is None or node.graph is not graph or self.is_shared(value):
                break
            one = self.one(node)
            whole = one if one is None or found is None else chain(one, found)
            if whole is None:
                break
            found, value = whole, whole.data
        return found

    def one(self, node: ir.Node) -> Branch | None:
        """Return the map that a single node is, if it is one."""
        if not self.is_selected(node) or len([v for v in node.outputs if v.name]) != 1:
            return None
        if is_standard(node, "Conv"):
            return self._conv(node)
        if is_standard(node, "Gemm"):
            return self._gemm(node)
        if is_standard(node, "AveragePool"):
            return self._pool(node)
        site = self.site(node)
        return None if site is None else self._affine(site)

    def _absorption(self, node: ir.Node, describe: Callable[[ir.Node, Scope], Linear | Refusal]) -> Absorption | None:
        absorption = self.absorbed.get(node)
        linear = describe(node, self.scope) if absorption is None else absorption.linear
        if isinstance(linear, Refusal) or isinstance(linear.weight, Dequantized):  # whose integers do not add up
            return None
        return absorption or Absorption.of(linear)

    def _conv(self, node: ir.Node) -> Branch | None:
        absorption = self._absorption(node, conv.describe)
        data = operand(node, 0)
        if absorption is None or data is None:
            return None
        shape, fold = absorption.linear.weight.shape, absorption.fold
        kernel = shape[2:]
        window = self._window(node, kernel)
        if window is None:
            return None
        has_bias = _has_bias(absorption)
        if has_bias is None or (fold.into.has_shift and is_padded(window)):
            return None
        return Branch(
            data=data,
            nodes=(node,),
            channels=(shape[0], shape[1] * fold.layout.view[0]),
            group=fold.layout.view[0],
            window=window,
            work=math.prod(shape),
            dtype=absorption.linear.weight.dtype,
            has_bias=has_bias,
            opened=lambda: _opened(absorption, fold, transposed=False),
        )

    def lengths(self, data: ir.Value) -> tuple[int | None, ...]:
        """Return what is known of the lengths of an image."""
        dims = self.shapes.dims(data, self.scope) or ()
        return tuple(d if isinstance(d, int) else None for d in dims[2:])

    def _window(self, node: ir.Node, kernel: tuple[int, ...]) -> Window | None:
        """Return the window of a Conv or pool; None if it is not known, or reaches farther than the check goes."""
        window = window_of(node, kernel, self._lengths(node)) if kernel else None
        if window is None or any(axis.stride > MAX_STRIDE or max(axis.step, *axis.pads) > MAX_STEP for axis in window):
            return None
        return window

    def _lengths(self, node: ir.Node) -> tuple[int | None, ...]:
        """Return the same for what a node reads, if it matters: a stride leaves positions out."""
        data, strides = operand(node, 0), node.attributes.get_ints("strides", ())
        return self.lengths(data) if data is not None and any(stride > 1 for stride in strides) else ()

    def _gemm(self, node: ir.Node) -> Branch | None:
        """A Gemm of an activation by rows and constant weights at its right."""
        if self.scope.opset < 7 or node.attributes.get_int("transA", 0) != 0:
            return None
        absorption = self._absorption(node, gemm.describe)
        if absorption is None or absorption.linear.weight_index != 1:
            return None
        data, linear = operand(node, 0), absorption.linear
        inner, outer = linear.layout.in_channels, linear.layout.out_channels
        has_bias = _has_bias(absorption)
        if data is None or has_bias is None:
            return None
        stands = linear.bias.value if linear.bias is not None else None
        if isinstance(stands, np.ndarray) and stands.ndim == 2 and stands.shape[0] != 1:
            return None  # a C that differs from row to row
        fold = replace(absorption.fold, layout=WeightLayout((1, outer, inner, 1), (0, 1), (0, 2)))
        transposed = not node.attributes.get_int("transB", 0)
        return Branch(
            data=data,
            nodes=(node,),
            channels=(outer, inner),
            group=1,
            window=(),
            work=inner * outer,
            dtype=linear.weight.dtype,
            has_bias=has_bias,
            opened=lambda: _opened(absorption, fold, transposed=transposed),
        )

    def _pool(self, node: ir.Node) -> Branch | None:
        kernel, data = tuple(node.attributes.get_ints("kernel_shape", ())), operand(node, 0)
        window = self._window(node, kernel)
        if data is None or window is None or math.prod(kernel) > MAX_POOL_TAPS:
            return None
        flag = node.attributes.get_int
        if flag("ceil_mode", 0) and any(axis.stride > 1 for axis in window):
            return None  # a window may hang over the end, and runtimes do not agree on what it divides by
        if any(d != 1 for d in node.attributes.get_ints("dilations", ())):
            return None
        says_padding = node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
        if is_padded(window) and not (flag("count_include_pad", 0) and says_padding):
            return None
        frame = self._frame(data)
        if frame is None or frame[1] != len(kernel):
            return None
        channels, taps = frame[0], math.prod(kernel)
        dtype = self.shapes.dtype(data, self.scope)
        if dtype is None:
            return None
        share = 1 / wide(dtype.numpy()).type(taps)

        @contextmanager
        def opened() -> Iterator[Rows]:
            yield lambda rows: (
                np.full((rows.stop - rows.start, 1, *kernel), share),
                np.zeros(rows.stop - rows.start, share.dtype),
            )

        return Branch(
            data=data,
            nodes=(node,),
            channels=(channels, channels),
            group=channels,
            window=window,
            work=channels * taps,
            dtype=dtype,
            has_bias=False,
            opened=opened,
        )

    def _affine(self, site: Site) -> Branch | None:
        affine = site.affine
        if affine.is_uniform:
            frame = self._frame(site.data)
        else:
            shape = np.broadcast_shapes(affine.scale.shape, affine.shift.shape)
            frame = (shape[1], len(shape) - 2) if affine.axes == (1,) else None
        if frame is None:
            return None
        vector = affine.vector(1, frame[0])
        if vector is None:
            return None
        scale, shift = (np.broadcast_to(v, frame[0]).astype(affine.scale.dtype) for v in (vector.scale, vector.shift))
        return diagonal(site.data, (site.node,), frame[1], scale, shift if vector.has_shift else None)

    def _frame(self, value: ir.Value) -> tuple[int, int] | None:
        """Return number of channels and spatial rank of a value, if known."""
        if value not in self._frames:
            self._frames[value] = self._framed(value)
        return self._frames[value]

    def _framed(self, value: ir.Value) -> tuple[int, int] | None:
        for node, index in value.uses():
            if index == 0 and is_standard(node, "Conv") and (weight := operand(node, 1)) is not None:
                found = find(weight, self.scope)
                if isinstance(found, Constant) and len(found.shape) > 2:
                    return found.shape[1] * node.attributes.get_int("group", 1), len(found.shape) - 2
        dims = self.shapes.dims(value, self.scope)
        return (dims[1], len(dims) - 2) if dims is not None and len(dims) > 1 and isinstance(dims[1], int) else None


def _has_bias(absorption: Absorption) -> bool | None:
    """Return whether an op adds something; None if that is not constant."""
    slot, fold = absorption.linear.bias, absorption.fold
    stands = slot.value if slot is not None else None
    if isinstance(stands, Refusal):
        return None
    return stands is not None or fold.into.has_shift or fold.out.has_shift


@contextmanager
def _opened(absorption: Absorption, fold: WeightFold, *, transposed: bool) -> Iterator[Rows]:
    """Give the rows of a linear op as it would be with all it has taken in, were nothing rounded."""
    slot, kind = absorption.linear.bias, wide(fold.dtype)
    stands = slot.value if slot is not None else None
    gain = slot.gain if slot is not None else 1.0
    with absorption.linear.weight.reading() as stored:
        weight = stored.T if transposed else stored
        whole = absorption.fold.bias(stands if isinstance(stands, np.ndarray) else None, stored, gain)
        bias: Array = np.broadcast_to(whole, (*whole.shape[:-1], fold.layout.out_channels)).reshape(-1).astype(kind)

        def rows(here: slice) -> tuple[Array, Array]:
            W = fold.rows(weight, here)
            return (W if gain == 1 else W * kind.type(gain)), bias[here]

        yield rows
