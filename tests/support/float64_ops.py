"""Ops of the own float64 evaluator that neither multiply by weights nor normalize: pools, branches, resampling.

As everywhere in it, read from the operator specifications and written in NumPy. Every function takes a ``Judged`` and
says what becomes of its bounds: a mean is a weighted sum, a maximum has the largest size of its window.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from tests.support.float64_values import (
    Array,
    Attributes,
    Judged,
    bilinear,
    extreme,
    filled,
    moved,
    plain,
    stretched,
    summed,
    weighted,
)

Inputs = Sequence[Judged | None]


def required(inputs: Inputs, count: int) -> list[Judged]:
    """Return the first inputs, none of which may be left out."""
    found = [v for v in inputs[:count] if v is not None]
    if len(found) != count:
        raise ValueError("a required input is missing")
    return found


def _optional(inputs: Inputs, index: int) -> Judged | None:
    return inputs[index] if len(inputs) > index else None


def _integers(inputs: Inputs, attributes: Attributes, name: str, index: int) -> list[int] | None:
    """Return an argument that is an attribute in early opsets and an input later."""
    if attributes.get(name) is not None:
        return list(attributes[name])
    given = _optional(inputs, index)
    return None if given is None else [int(i) for i in given.value.reshape(-1)]


def axes_of(inputs: Inputs, attributes: Attributes, index: int = 1) -> tuple[int, ...] | None:
    """Return the axes of a node."""
    axes = _integers(inputs, attributes, "axes", index)
    return None if axes is None else tuple(axes)


# --- one number at a time -------------------------------------------------------------------------------------------


def activation(op_type: str, inputs: Inputs, attributes: Attributes) -> Judged:
    """Evaluate what bends at zero or at bounds."""
    (x,) = required(inputs, 1)
    match op_type:
        case "Relu":
            return replace(x, value=np.maximum(x.value, 0))
        case "Abs":
            return replace(x, value=np.abs(x.value))
        case "LeakyRelu":
            alpha = float(np.float32(attributes.get("alpha", 0.01)))
            return stretched(x, max(1.0, abs(alpha)), np.where(x.value < 0, alpha * x.value, x.value))
        case "HardSigmoid":
            alpha, beta = (float(np.float32(attributes.get(n, d))) for n, d in (("alpha", 0.2), ("beta", 0.5)))
            return stretched(x, abs(alpha), np.clip(alpha * x.value + beta, 0, 1))
        case "PRelu":
            slope = required(inputs, 2)[1]
            steep = replace(slope, value=np.abs(slope.value), size=np.maximum(slope.size, 1))
            bent = np.where(x.value < 0, slope.value * x.value, x.value)
            return replace(bilinear(x, steep, np.multiply), value=bent)
        case _:
            return _clip(x, inputs, attributes)


def _clip(x: Judged, inputs: Inputs, attributes: Attributes) -> Judged:
    for index, (name, choose) in enumerate((("min", np.maximum), ("max", np.minimum)), 1):
        bound = _optional(inputs, index)
        if name in attributes:
            bound = plain(np.float64(np.float32(attributes[name])), x.value.dtype.type)
        if bound is not None:
            x = replace(extreme(x, bound, choose), dtype=x.dtype)
    return x


# --- branches -------------------------------------------------------------------------------------------------------


def joined(op_type: str, inputs: Inputs) -> Judged:
    """Evaluate Sum, Max and Min of any number of values."""
    first, *others = required(inputs, len(inputs))
    for other in others:
        first = summed(first, other) if op_type == "Sum" else extreme(first, other, _CHOICE[op_type])
    return first


_CHOICE: dict[str, Callable[[Array, Array], Array]] = {"Max": np.maximum, "Min": np.minimum}


def concat(inputs: Inputs, attributes: Attributes) -> Judged:
    """Evaluate Concat."""
    parts, axis = required(inputs, len(inputs)), attributes["axis"]
    whole = [np.broadcast_to(p.underflow, p.value.shape) for p in parts]
    return Judged(
        np.concatenate([p.value for p in parts], axis),
        np.concatenate([p.size for p in parts], axis),
        max(p.roundings for p in parts),
        np.concatenate(whole, axis),
        parts[0].dtype,
        all(p.constant for p in parts),
    )


def split(inputs: Inputs, attributes: Attributes, outputs: int) -> list[Judged]:
    """Evaluate Split."""
    (x,), axis = required(inputs, 1), attributes.get("axis", 0)
    lengths = _integers(inputs, attributes, "split", 1)
    if lengths is None:
        longest = -(-x.value.shape[axis] // outputs)
        lengths = [longest] * (outputs - 1) + [x.value.shape[axis] - longest * (outputs - 1)]
    ends = np.cumsum(lengths)
    return [_taken(x, np.arange(e - n, e), axis) for n, e in zip(lengths, ends, strict=True)]


def _taken(x: Judged, indices: Array, axis: int) -> Judged:
    return moved(x, lambda a: a.take(indices, axis))


def gather(inputs: Inputs, attributes: Attributes) -> Judged:
    """Evaluate Gather."""
    x, indices = required(inputs, 2)
    return _taken(x, indices.value.astype(np.int64), attributes.get("axis", 0))


def cut(inputs: Inputs, attributes: Attributes) -> Judged:
    """Evaluate Slice."""
    (x,) = required(inputs, 1)
    starts, ends = (_integers(inputs, attributes, name, i) or [] for i, name in ((1, "starts"), (2, "ends")))
    axes = axes_of(inputs, attributes, 3) or range(len(starts))
    steps = _integers(inputs, attributes, "steps", 4) or [1] * len(starts)
    window = [slice(None)] * x.value.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        backwards_to_the_end = step < 0 and end < -x.value.shape[axis]
        window[axis] = slice(start, None if backwards_to_the_end else end, step)
    return moved(x, lambda a: a[tuple(window)])


# --- windows --------------------------------------------------------------------------------------------------------


def spatial(attributes: Attributes, kernel: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return strides and dilations."""
    ones = [1] * len(kernel)
    return list(attributes.get("strides") or ones), list(attributes.get("dilations") or ones)


def conv_pads(attributes: Attributes, lengths: Sequence[int], kernel: Sequence[int]) -> list[tuple[int, int]]:
    """Return what is padded before and behind each axis."""
    strides, dilations = spatial(attributes, kernel)
    auto = attributes.get("auto_pad", "NOTSET")
    count = len(kernel)
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = []
        for n, k, s, d in zip(lengths, kernel, strides, dilations, strict=True):
            total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            small, large = total // 2, total - total // 2
            pads.append((small, large) if auto == "SAME_UPPER" else (large, small))
        return pads
    flat = list(attributes.get("pads") or [0] * 2 * count) if auto == "NOTSET" else [0] * 2 * count
    return list(zip(flat[:count], flat[count:], strict=True))


@dataclass(frozen=True)
class Windows:
    """Where a pool looks.

    Attributes:
        kernel: Lengths of the window.
        strides: Steps from one window to the next.
        dilations: Steps within a window.
        pads: What is padded before and behind.
        overhang: How far the last window reaches beyond that.
        lengths: Lengths of the result.
        shortened: Whether there would be one window more that starts behind the values.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    overhang: tuple[int, ...]
    lengths: tuple[int, ...]
    shortened: bool

    @classmethod
    def of(cls, attributes: Attributes, lengths: Sequence[int]) -> "Windows":
        """Return the windows over axes of these lengths."""
        kernel = tuple(attributes["kernel_shape"])
        strides, dilations = spatial(attributes, kernel)
        pads = conv_pads(attributes, lengths, kernel)
        rounds_up = attributes.get("ceil_mode", 0) and attributes.get("auto_pad", "NOTSET") == "NOTSET"
        found, overhang, shortened = [], [], False
        for n, k, s, d, (begin, end) in zip(lengths, kernel, strides, dilations, pads, strict=True):
            reach = (k - 1) * d + 1
            room = n + begin + end - reach
            count = (-(-room // s) if rounds_up else room // s) + 1
            if rounds_up and (count - 1) * s >= n + begin:
                count, shortened = count - 1, True
            found.append(count)
            overhang.append(max((count - 1) * s - room, 0))
        return cls(kernel, tuple(strides), tuple(dilations), tuple(pads), tuple(overhang), tuple(found), shortened)

    def taps(self, x: Array, fill: float, beyond: float | None = None) -> Array:
        """Return every element of every window, the place in the window as the first axis."""
        x = np.pad(x, [(0, 0), (0, 0), *self.pads], constant_values=fill)
        more = [(0, 0), (0, 0), *((0, n) for n in self.overhang)]
        x = np.pad(x, more, constant_values=fill if beyond is None else beyond)
        return np.stack([x[(..., *self._window(tap))] for tap in product(*(range(k) for k in self.kernel))])

    def _window(self, tap: tuple[int, ...]) -> tuple[slice, ...]:
        steps = zip(tap, self.dilations, self.lengths, self.strides, strict=True)
        return tuple(slice(t * d, t * d + (n - 1) * s + 1, s) for t, d, n, s in steps)


def max_pool(x: Judged, attributes: Attributes, outputs: int) -> list[Judged]:
    """Evaluate MaxPool; its second output counts through the whole tensor."""
    windows = Windows.of(attributes, x.value.shape[2:])

    def largest(a: Array) -> Array:
        return np.asarray(windows.taps(a, 0).max(axis=0))

    taps = windows.taps(x.value, -np.inf)
    lost = x.underflow if x.underflow.ndim == 0 else largest(filled(x).underflow)
    pooled = replace(x, value=taps.max(axis=0), size=largest(x.size), underflow=lost)
    if outputs == 1:
        return [pooled]
    numbers = windows.taps(np.arange(x.value.size).reshape(x.value.shape), -1)
    places = np.take_along_axis(numbers, taps.argmax(axis=0)[None], axis=0)[0]
    return [pooled, plain(places.astype(np.int64))]


def average_pool(x: Judged, attributes: Attributes) -> Judged:
    """Evaluate AveragePool: padding counts if it is asked for, what the last window reaches beyond it never."""
    windows = Windows.of(attributes, x.value.shape[2:])
    counted = 1.0 if attributes.get("count_include_pad", 0) else 0.0
    counts = windows.taps(np.ones_like(x.value), counted, 0.0).sum(axis=0)
    return weighted(x, lambda a: windows.taps(a, 0).sum(axis=0) / counts)


def reduced(op_type: str, inputs: Inputs, attributes: Attributes) -> Judged:
    """Evaluate ReduceMean, ReduceSum, ReduceMax, ReduceMin and the global pools."""
    (x,) = required(inputs, 1)
    if op_type.startswith("Global"):
        return _folded(x, op_type.removeprefix("Global").removesuffix("Pool"), tuple(range(2, x.value.ndim)), True)
    axes = axes_of(inputs, attributes)
    if not axes:
        if attributes.get("noop_with_empty_axes", 0):
            return x
        axes = tuple(range(x.value.ndim))
    return _folded(x, op_type.removeprefix("Reduce"), axes, bool(attributes.get("keepdims", 1)))


def _folded(x: Judged, how: str, axes: tuple[int, ...], keepdims: bool) -> Judged:
    if how in ("Max", "Min"):

        def largest(a: Array) -> Array:
            return np.asarray(a.max(axes, keepdims=keepdims))

        value = largest(x.value) if how == "Max" else -largest(-x.value)
        lost = x.underflow if x.underflow.ndim == 0 else largest(filled(x).underflow)
        return replace(x, value=value, size=largest(x.size), underflow=lost)
    count = 1 if how == "Sum" else math.prod(x.value.shape[axis] for axis in axes)
    return weighted(x, lambda a: np.asarray(a.sum(axes, keepdims=keepdims) / count))


# --- positions ------------------------------------------------------------------------------------------------------


def pad(inputs: Inputs, attributes: Attributes) -> Judged:
    """Evaluate Pad."""
    (x,) = required(inputs, 1)
    both = np.asarray(_integers(inputs, attributes, "pads", 1)).reshape(2, -1)
    axes = axes_of([], {}) if len(inputs) < 4 else axes_of(inputs, {}, 3)
    widths = [(0, 0)] * x.value.ndim
    for axis, (begin, end) in zip(axes or range(x.value.ndim), both.T.tolist(), strict=True):
        widths[axis] = (begin, end)
    mode = attributes.get("mode", "constant")
    if mode != "constant":
        return moved(x, lambda a: np.pad(a, widths, mode=mode))
    given = _optional(inputs, 2)
    value = plain(np.float64(np.float32(attributes.get("value", 0.0)))) if given is None else given
    lost = np.broadcast_to(x.underflow, x.value.shape)
    return replace(
        x,
        value=np.pad(x.value, widths, constant_values=value.value.item()),
        size=np.pad(x.size, widths, constant_values=value.size.item()),
        underflow=np.pad(lost, widths, constant_values=value.underflow.item()),
        roundings=max(x.roundings, value.roundings),
    )


def resize(inputs: Inputs, attributes: Attributes, opset: int) -> Judged:
    """Evaluate Upsample, and Resize in its modes nearest and linear, axis by axis."""
    (x,) = required(inputs, 1)
    last = inputs[3].value if len(inputs) > 3 and inputs[3] is not None else None
    shape = x.value.shape
    if last is not None:
        lengths = [int(n) for n in last]
        scales = [n / m for n, m in zip(lengths, shape, strict=True)]
    else:
        given = _optional(inputs, 2 if len(inputs) > 2 else 1)
        scales = list(attributes["scales"]) if given is None else given.value.tolist()
        lengths = [math.floor(s * n) for s, n in zip(scales, shape, strict=True)]
    if opset < 11:  # Upsample and Resize-10 say no more than this
        attributes = {
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "floor",
            "mode": attributes.get("mode", "nearest"),
        }
    for axis, (scale, length) in enumerate(zip(scales, lengths, strict=True)):
        if length != shape[axis] or scale != 1:
            weights = _weights(shape[axis], length, scale, attributes)
            x = weighted(x, lambda a, w=weights, i=axis: np.moveaxis(np.tensordot(w, a, (1, i)), 0, i))
    return x


def _weights(old: int, new: int, scale: float, attributes: Attributes) -> Array:
    """Return the matrix that resizes one axis."""
    i = np.arange(new, dtype=np.float64)
    match attributes.get("coordinate_transformation_mode", "half_pixel"):
        case "asymmetric":
            place = i / scale
        case "align_corners":
            place = i * (old - 1) / max(new - 1, 1)
        case "pytorch_half_pixel" if new == 1:
            place = 0 * i
        case "half_pixel" | "pytorch_half_pixel":
            place = (i + 0.5) / scale - 0.5
        case other:
            raise ValueError(f"coordinates by {other} are not covered")
    matrix = np.zeros((new, old))
    rows = np.arange(new)
    if attributes.get("mode", "nearest") == "nearest":
        rounded = _NEAREST[attributes.get("nearest_mode", "round_prefer_floor")](place)
        matrix[rows, np.clip(rounded, 0, old - 1).astype(int)] = 1
        return matrix
    place = np.clip(place, 0, old - 1)
    low = np.floor(place).astype(int)
    np.add.at(matrix, (rows, low), 1 - (place - low))
    np.add.at(matrix, (rows, np.minimum(low + 1, old - 1)), place - low)
    return matrix


_NEAREST: dict[str, Callable[[Array], Any]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def expand(inputs: Inputs) -> Judged:
    """Evaluate Expand."""
    x, shape = required(inputs, 2)
    target = np.broadcast_shapes(x.value.shape, tuple(int(n) for n in shape.value))
    return moved(x, lambda a: np.broadcast_to(a, target))


def depth_to_space(x: Judged, attributes: Attributes) -> Judged:
    """Evaluate DepthToSpace."""
    n, _, h, w = x.value.shape
    b = attributes["blocksize"]
    if attributes.get("mode", "DCR") == "DCR":
        return moved(
            x,
            lambda a: a.reshape(n, b, b, -1, h, w).transpose(0, 3, 4, 1, 5, 2).reshape(n, -1, h * b, w * b),
        )
    return moved(x, lambda a: a.reshape(n, -1, b, b, h, w).transpose(0, 1, 4, 2, 5, 3).reshape(n, -1, h * b, w * b))


def space_to_depth(x: Judged, attributes: Attributes) -> Judged:
    """Evaluate SpaceToDepth."""
    n, c, h, w = x.value.shape
    b = attributes["blocksize"]
    order = (0, 3, 5, 1, 2, 4) if attributes.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return moved(x, lambda a: a.reshape(n, c, h // b, b, w // b, b).transpose(order).reshape(n, -1, h // b, w // b))
