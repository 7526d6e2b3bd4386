"""Which inputs an output position reads, axis by axis, and how such windows join.

    output o reads inputs o·stride + t,  t = first, first + step, …, last          first = -pad_begin
    there are ⌊(length - 1 + reach)/stride⌋ + 1 outputs                            reach = pads - dilation·(kernel - 1)

Equal stride and reach make equal lengths for every input, and then one window can hold the taps of both. Whether a
position is padding depends on o·stride + t alone, so zeros stay zeros. Where the length is known, the smallest reach
that gives as many outputs stands for all that do: a 3 x 3 kernel with one row of padding at the end and a point, both
with stride 2, give the same number of outputs for even lengths.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir


@dataclass(frozen=True)
class Axis:
    """The taps along one axis.

    Attributes:
        stride: Distance between outputs.
        first: Offset of the first tap, not positive.
        last: Offset of the last tap.
        step: Distance between taps; 0 if there is one.
        reach: All padding less the distance between first and last tap.
    """

    stride: int
    first: int
    last: int
    step: int
    reach: int

    @property
    def taps(self) -> int:
        """Number of taps."""
        return (self.last - self.first) // self.step + 1 if self.step else 1

    @property
    def pads(self) -> tuple[int, int]:
        """Padding at the begin and at the end; less than a stride too little reach makes no difference."""
        return -self.first, max(0, self.reach + self.last)

    def outputs(self, length: int) -> int:
        """Return the number of outputs for an input; less than 1 if the taps do not fit into it."""
        return (length - 1 + self.reach) // self.stride + 1

    @property
    def is_point(self) -> bool:
        """Whether each output reads the input at its own position."""
        return self == Axis(1, 0, 0, 0, 0)

    def settled(self, length: int | None) -> "Axis":
        """Return the axis with the smallest reach that gives as many outputs for an input of a known length."""
        if length is None or self.stride == 1:
            return self
        return replace(self, reach=self.stride * (self.outputs(length) - 1) - (length - 1))

    def joined(self, other: "Axis") -> "Axis":
        """Return the axis that holds the taps of both; they have one stride and reach."""
        first, last = min(self.first, other.first), max(self.last, other.last)
        step = math.gcd(self.step, other.step, self.first - other.first)
        return Axis(self.stride, first, last, step, self.reach)

    def place_of(self, part: "Axis") -> slice:
        """Return where the taps of an axis that was joined into this one lie among its own."""
        if not self.step:
            return slice(0, 1)
        begin = (part.first - self.first) // self.step
        end = (part.last - self.first) // self.step + 1
        return slice(begin, end, max(1, part.step // self.step))


Window = tuple[Axis, ...]
"""One Axis for each spatial axis; none for a matrix product."""


def pointwise(rank: int) -> Window:
    """Return the window of an op that reads each position alone."""
    return (Axis(1, 0, 0, 0, 0),) * rank


def is_pointwise(window: Window) -> bool:
    """Whether each output reads the input at its own position."""
    return all(axis.is_point for axis in window)


def is_padded(window: Window) -> bool:
    """Whether some output may read zeros around the input."""
    return any(any(axis.pads) for axis in window)


def taps_of(window: Window) -> tuple[int, ...]:
    """Return the shape of the kernel."""
    return tuple(axis.taps for axis in window)


def joined(a: Window, b: Window) -> Window:
    """Return the window that holds the taps of both."""
    return tuple(x.joined(y) for x, y in zip(a, b, strict=True))


def unfit_attribute(node: ir.Node, kernel: Sequence[int]) -> str | None:
    """Return the name of an attribute of a convolution or pool that does not fit a kernel; None if all do."""
    rank, ints = len(kernel), node.attributes.get_ints
    for name, length, least in (("pads", 2 * rank, 0), ("strides", rank, 1), ("dilations", rank, 1)):
        values = ints(name, (1,) * length)
        if len(values) != length or min(values, default=1) < least:
            return name
    return "kernel_shape" if tuple(ints("kernel_shape", ()) or kernel) != tuple(kernel) else None


def window_of(node: ir.Node, kernel: tuple[int, ...], lengths: Sequence[int | None]) -> Window | None:
    """Return the window of a convolution or pool over an input of these lengths.

    Returns:
        None if its padding is not known, or if its attributes do not fit its kernel.
    """
    rank = len(kernel)
    ints = node.attributes.get_ints
    pads = ints("pads", (0,) * 2 * rank)
    strides, dilations = (ints(name, (1,) * rank) for name in ("strides", "dilations"))
    if unfit_attribute(node, kernel) is not None or min(kernel, default=1) < 1:
        return None
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    axes: list[Axis] = []
    for a, (size, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True)):
        extent = dilation * (size - 1)
        length = lengths[a] if a < len(lengths) else None
        ends = _ends(auto_pad, (pads[a], pads[a + rank]), stride, extent, length)
        if ends is None:
            return None
        axis = Axis(stride, -ends[0], extent - ends[0], dilation if size > 1 else 0, sum(ends) - extent)
        axes.append(axis.settled(length))
    return tuple(axes)


def _ends(auto_pad: str, pads: tuple[int, int], stride: int, extent: int, length: int | None) -> tuple[int, int] | None:
    if auto_pad == "NOTSET":
        return pads
    if auto_pad == "VALID" or (auto_pad in ("SAME_UPPER", "SAME_LOWER") and extent == 0):
        return 0, 0
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER") or (stride != 1 and length is None):
        return None
    total = extent if length is None else max(0, (math.ceil(length / stride) - 1) * stride + extent + 1 - length)
    less, more = total // 2, total - total // 2
    return (less, more) if auto_pad == "SAME_UPPER" else (more, less)


def attributes_of(window: Window, group: int) -> tuple[ir.Attr, ...]:
    """Return the attributes of the op with this window: a Conv, or a Gemm with its weight the other way round."""
    if not window:
        return (ir.AttrInt64("transB", 1),)
    strides, dilations = tuple(a.stride for a in window), tuple(max(1, a.step) for a in window)
    pads = (*(a.pads[0] for a in window), *(a.pads[1] for a in window))
    lists = {
        "dilations": dilations if any(d != 1 for d in dilations) else (),
        "kernel_shape": taps_of(window),
        "pads": pads if any(pads) else (),
        "strides": strides if any(s != 1 for s in strides) else (),
    }
    groups = (ir.AttrInt64("group", group),) if group != 1 else ()
    return (*groups, *(ir.AttrInt64s(name, values) for name, values in lists.items() if values))
