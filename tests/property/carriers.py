"""Random graphs with branches, pools, padding and resampling between affines and linear ops.

    [affine | linear]* → carrier+ → [linear | affine]*

A carrier is what an affine may pass though it takes none in: most are spelled here in every way their opset allows,
some of the ways such that nothing may pass. Values are read by several, joined, cut, and gated by one another.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.property.graphs import (
    DOUBLE,
    HALF,
    MAX_CHANNELS,
    MAX_ELEMENTS,
    OPSETS,
    SINGLE,
    Builder,
    Case,
    Choices,
    Dim,
    DrawnChoices,
    Wire,
    affine,
    batch_norm,
    chance,
    finished,
    grown,
    layout,
    linear,
    pick,
    relu,
    same,
)
from tests.support.float64_ops import Windows
from tests.support.float64_values import Array

Step = Callable[[Builder, Wire], bool]


def _argument(b: Builder, values: Sequence[int]) -> str:
    return b.initializer(np.array(values, np.int64))


def _fixed(b: Builder, array: Array) -> str:
    """Return an argument that no caller overrides, since all lengths behind it depend on it."""
    name = b.fresh("c")
    b.initializers[name] = array
    return name


def _scalar(b: Builder, value: float, w: Wire) -> str:
    return b.initializer(np.array(value).astype(w.dtype))


def _static(w: Wire, first: int = 0) -> list[int]:
    """Return the axes of known length."""
    return [axis for axis in range(first, len(w.dims)) if isinstance(w.dims[axis], int)]


def _signed(b: Builder, axis: int, rank: int, since: int = 11) -> int:
    """Return an axis, sometimes counted from behind."""
    return axis - rank if b.opset >= since and chance(b.choices, 30) else axis


# --- activations ----------------------------------------------------------------------------------------------------


def _activation(b: Builder, w: Wire) -> bool:
    c = b.choices
    match pick(c, ("Relu", "Relu", "Clip", "Clip", "LeakyRelu", "PRelu", "Abs", "HardSigmoid")):
        case "Relu":
            return relu(b, w)
        case "Clip":
            name = _clip(b, w)
        case "LeakyRelu":
            name = b.node("LeakyRelu", [w.name], alpha=pick(c, (0.1, 0.01, -0.5, 2.0)))
        case "PRelu":
            name = _prelu(b, w)
        case other:
            name = b.node(other, [w.name])
    grown(b, w, name, w.shape, w.dims)
    return True


def _clip(b: Builder, w: Wire) -> str:
    c = b.choices
    low, high = pick(c, ((0.0, 6.0), (-1.0, 1.0), (0.0, None), (None, 0.5), (0.25, 0.25), (-3.0, -0.5), (None, None)))
    if b.opset < 11:
        given = {"min": low, "max": high}
        return b.node("Clip", [w.name], **{name: bound for name, bound in given.items() if bound is not None})
    inputs = [w.name, *("" if bound is None else _scalar(b, bound, w) for bound in (low, high))]
    while not inputs[-1]:
        inputs.pop()
    return b.node("Clip", inputs)


def _prelu(b: Builder, w: Wire) -> str:
    c, rank = b.choices, len(w.shape)
    shape: tuple[int, ...] = (1,)
    if rank > 1 and isinstance(w.dims[1], int) and chance(c, 70):
        shape = (w.shape[1], *(1,) * (rank - 2))
    return b.node("PRelu", [w.name, b.constant(b.terms(shape, w.dtype))])


# --- pools and reductions -------------------------------------------------------------------------------------------


def _pool(b: Builder, w: Wire) -> bool:
    c, rank = b.choices, len(w.shape)
    if rank < 3:
        return False
    kind = pick(c, ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"))
    if kind.startswith("Global"):
        grown(b, w, b.node(kind, [w.name]), (*w.shape[:2], *(1,) * (rank - 2)), (*w.dims[:2], *(1,) * (rank - 2)))
        return True
    attributes = _pool_attributes(b, w, kind)
    windows = Windows.of(attributes, w.shape[2:])
    if min(windows.lengths) < 1 or _ends_in_padding(windows, w.shape[2:]):
        return False
    result = (*w.shape[:2], *windows.lengths)
    spatial = [n if isinstance(d, int) else None for n, d in zip(windows.lengths, w.dims[2:], strict=True)]
    indices = kind == "MaxPool" and chance(c, 10)
    name = b.node(kind, [w.name], 2 if indices else 1, **attributes)
    if indices:
        output = b.nodes[-1].output[1]
        b.extra_outputs.append(helper.make_tensor_value_info(output, TensorProto.INT64, [*w.dims[:2], *spatial]))
    grown(b, w, name, result, (*w.dims[:2], *spatial))
    return True


def _pool_attributes(b: Builder, w: Wire, kind: str) -> dict[str, Any]:
    c, lengths = b.choices, w.shape[2:]
    kernel = [1 + c.below(min(3, n + 1)) for n in lengths]
    attributes: dict[str, Any] = {"kernel_shape": kernel}
    padding = pick(c, ("none", "none", "pads", "pads", "SAME_UPPER", "SAME_LOWER", "VALID"))
    if padding == "pads":
        attributes["pads"] = [c.below(k) for k in (*kernel, *kernel)]
    elif padding != "none":
        attributes["auto_pad"] = padding
    if chance(c, 50):  # with SAME, a stride longer than the window would take away at the ends
        attributes["strides"] = [1 + c.below(k if padding.startswith("SAME") else 3) for k in kernel]
    if chance(c, 25) and b.opset >= (10 if kind == "MaxPool" else 19) and not padding.startswith("SAME"):
        attributes["dilations"] = [1 + c.below(2) for _ in lengths]
    if chance(c, 30) and b.opset >= 10 and "auto_pad" not in attributes:
        attributes["ceil_mode"] = 1
    if chance(c, 40) and kind == "AveragePool":
        attributes["count_include_pad"] = 1
    return attributes


def _ends_in_padding(windows: Windows, lengths: Sequence[int]) -> bool:
    """Whether a window holds no value, or one was left out for that: specifications changed their mind about it."""
    return windows.shortened or bool((windows.taps(np.ones((1, 1, *lengths)), 0).sum(axis=0) == 0).any())


def _reduction(b: Builder, w: Wire) -> bool:
    c, rank = b.choices, len(w.shape)
    if rank < 2:
        return False
    op_type = pick(c, ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"))
    pool = list(range(2, rank)) if rank > 2 and chance(c, 70) else list(range(1, rank))
    axes = sorted({pick(c, pool) for _ in range(1 + c.below(2))}) if chance(c, 70) else pool
    keeps = not chance(c, 40)
    if not axes or (not keeps and rank - len(axes) < 1):
        return False
    as_input = b.opset >= (13 if op_type == "ReduceSum" else 18)
    spelled = [_signed(b, axis, rank) for axis in axes]
    attributes: dict[str, Any] = {} if keeps and chance(c, 50) else {"keepdims": int(keeps)}
    if as_input:
        name = b.node(op_type, [w.name, _argument(b, spelled)], **attributes)
    else:
        name = b.node(op_type, [w.name], axes=spelled, **attributes)
    left = [axis for axis in range(rank) if keeps or axis not in axes]
    dims: list[Dim] = [1 if axis in axes else w.dims[axis] for axis in left]
    grown(b, w, name, [1 if axis in axes else w.shape[axis] for axis in left], dims)
    return True


# --- positions ------------------------------------------------------------------------------------------------------


def _pad(b: Builder, w: Wire) -> bool:
    c, rank = b.choices, len(w.shape)
    mode = pick(c, ("constant", "constant", "reflect", "edge", *(["wrap"] if b.opset >= 19 else [])))
    axes = list(range(2 if rank > 2 and not chance(c, 15) else 1, rank))
    chosen = [a for a in axes if chance(c, 60)] or axes[-1:]
    room = {a: 2 if mode in ("constant", "edge") else w.shape[a] - 1 if mode == "reflect" else w.shape[a] for a in axes}
    widths = {a: (c.below(min(room[a], 2) + 1), c.below(min(room[a], 2) + 1)) for a in chosen}
    shape = [n + sum(widths.get(a, (0, 0))) for a, n in enumerate(w.shape)]
    if not chosen or math.prod(shape) > MAX_ELEMENTS:
        return False
    value = pick(c, (0.0, 0.0, 1.0, -2.5))
    attributes: dict[str, Any] = {} if mode == "constant" and chance(c, 50) else {"mode": mode}
    whole = [widths.get(a, (0, 0))[side] for side in (0, 1) for a in range(rank)]
    if b.opset < 11:
        attributes |= {"value": value} if value and mode == "constant" else {}
        name = b.node("Pad", [w.name], pads=whole, **attributes)
    else:
        by_axes = b.opset >= 18 and chance(c, 50)
        pads = [widths[a][side] for side in (0, 1) for a in chosen] if by_axes else whole
        given = mode == "constant" and (value or chance(c, 30))
        inputs = [w.name, _argument(b, pads), _scalar(b, value, w) if given else ""]
        inputs += [_argument(b, [_signed(b, a, rank) for a in chosen])] if by_axes else []
        name = b.node("Pad", inputs if inputs[-1] else inputs[:2], **attributes)
    dims = [
        n if isinstance(d, int) else d if a not in chosen else None
        for a, (n, d) in enumerate(zip(shape, w.dims, strict=True))
    ]
    grown(b, w, name, shape, dims)
    return True


def _resize(b: Builder, w: Wire) -> bool:
    c, rank = b.choices, len(w.shape)
    if rank < 3:
        return False
    mode = pick(c, ("nearest", "linear")) if rank == 4 else "nearest"
    scales = [1.0, 1.0, *(2.0 if mode == "linear" else float(1 + c.below(2)) for _ in w.shape[2:])]
    shape = [int(n * s) for n, s in zip(w.shape, scales, strict=True)]
    if math.prod(shape) > MAX_ELEMENTS or b.opset == 10:
        return False
    known = all(isinstance(d, int) for d in w.dims[2:])
    data = np.array(scales, np.float32)
    if b.opset < 9:
        name = b.node("Upsample", [w.name], mode=mode, scales=scales)
    elif b.opset < 10:
        name = b.node("Upsample", [w.name, _fixed(b, data)], mode=mode)
    else:
        attributes: dict[str, Any] = {"mode": mode}
        if chance(c, 70):
            coordinates = ("asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners")
            attributes["coordinate_transformation_mode"] = pick(c, coordinates[: 4 if known else 3])
        if mode == "nearest" and chance(c, 50):
            attributes["nearest_mode"] = pick(c, ("floor", "round_prefer_ceil", "ceil", "round_prefer_floor"))
        empty = np.zeros(0, np.float32)
        roi = _fixed(b, empty) if b.opset < 13 else ""
        if all(isinstance(d, int) for d in w.dims) and chance(c, 30):
            none = _fixed(b, empty) if b.opset < 13 else ""
            name = b.node("Resize", [w.name, roi, none, _argument(b, shape)], **attributes)
        else:
            name = b.node("Resize", [w.name, roi, _fixed(b, data)], **attributes)
    dims = [n if isinstance(d, int) else d if s == 1 else None for n, d, s in zip(shape, w.dims, scales, strict=True)]
    grown(b, w, name, shape, dims)
    return True


def _expand(b: Builder, w: Wire) -> bool:
    c, rank = b.choices, len(w.shape)
    ones = [axis for axis in range(rank) if w.dims[axis] == 1]
    target = [1] * rank
    for axis in ones:
        target[axis] = 1 + c.below(3)
    for axis in _static(w):
        if axis not in ones and chance(c, 50):
            target[axis] = w.shape[axis]
    lead = [2] if rank < 5 and chance(c, 20) else []
    if not ones and not lead:
        return False
    shape = [*lead, *(max(n, t) for n, t in zip(w.shape, target, strict=True))]
    if math.prod(shape) > MAX_ELEMENTS:
        return False
    dims: list[Dim] = [n if isinstance(d, int) else d for n, d in zip(shape[len(lead) :], w.dims, strict=True)]
    grown(b, w, b.node("Expand", [w.name, _argument(b, [*lead, *target])]), shape, [*lead, *dims])
    return True


def _rearrange(b: Builder, w: Wire) -> bool:
    """DepthToSpace and SpaceToDepth."""
    c = b.choices
    if len(w.shape) != 4 or not isinstance(w.dims[1], int):
        return False
    if w.shape[1] % 4 and chance(c, 70):
        w = _project(b, w, pick(c, (4, 8))) or w
    n, channels, height, width = w.shape
    spatial = w.dims[2:]
    if channels % 4 == 0 and not chance(c, 30):
        attributes = {"mode": pick(c, ("DCR", "CRD"))} if b.opset >= 11 and chance(c, 70) else {}
        name, shape = (
            b.node("DepthToSpace", [w.name], blocksize=2, **attributes),
            (n, channels // 4, 2 * height, 2 * width),
        )
    elif height % 2 == 0 and width % 2 == 0:
        name, shape = b.node("SpaceToDepth", [w.name], blocksize=2), (n, channels * 4, height // 2, width // 2)
    else:
        return False
    dims = [m if isinstance(d, int) else None for m, d in zip(shape[2:], spatial, strict=True)]
    grown(b, w, name, shape, (w.dims[0], shape[1], *dims))
    return True


# --- parts of a value -----------------------------------------------------------------------------------------------


def _slice(b: Builder, w: Wire) -> bool:
    c, rank = b.choices, len(w.shape)
    axes = [a for a in _static(w, 1) if w.shape[a] > 1]
    if not axes:
        return False
    axis = 1 if 1 in axes and chance(c, 60) else pick(c, axes)
    length = w.shape[axis]
    start = c.below(length)
    end = start + 1 + c.below(length - start)
    step = 1 + c.below(2) if b.opset >= 10 else 1
    spelled = [
        start - length if chance(c, 30) else start,
        end if end < length or chance(c, 50) else (1 << 31) - 1,
        step,
    ]
    window = slice(start, end, step)
    if b.opset >= 10 and chance(c, 25):  # backwards, as channels are swapped
        spelled, window = [-1, -(1 << 31), -1], slice(None, None, -1)
    name_of = _signed(b, axis, rank, 10)
    if b.opset < 10:
        name = b.node("Slice", [w.name], starts=[spelled[0]], ends=[spelled[1]], axes=[axis])
    else:
        inputs = [spelled[0], spelled[1], name_of, spelled[2]]
        given = inputs if spelled[2] != 1 or chance(c, 50) else inputs[:-1]
        name = b.node("Slice", [w.name, *(_argument(b, [n]) for n in given)])
    shape, dims = list(w.shape), list(w.dims)
    shape[axis] = dims[axis] = len(range(*window.indices(length)))
    grown(b, w, name, shape, dims)
    return True


def _gather(b: Builder, w: Wire) -> bool:
    c, rank = b.choices, len(w.shape)
    axes = _static(w, 1)
    if not axes:
        return False
    axis = 1 if 1 in axes and chance(c, 70) else pick(c, axes)
    length = w.shape[axis]
    order = b.rng.permutation(length)[: 1 + c.below(length)]
    if chance(c, 20):
        order = b.rng.integers(0, length, 1 + c.below(MAX_CHANNELS))  # some of them twice
    indices = [int(i) - length if b.opset >= 11 and chance(c, 20) else int(i) for i in order]
    name = b.node("Gather", [w.name, _argument(b, indices)], axis=_signed(b, axis, rank))
    shape, dims = list(w.shape), list(w.dims)
    shape[axis] = dims[axis] = len(indices)
    grown(b, w, name, shape, dims)
    return math.prod(shape) <= MAX_ELEMENTS


def _split(b: Builder, w: Wire) -> bool:
    """Split a value; some of its parts are processed on, and they may be joined again."""
    c, rank = b.choices, len(w.shape)
    axes = [a for a in _static(w, 1) if w.shape[a] > 1]
    if not axes:
        return False
    axis = 1 if 1 in axes and chance(c, 75) else pick(c, axes)
    first = 1 + c.below(w.shape[axis] - 1)
    lengths = [first, w.shape[axis] - first]
    spelled: dict[str, Any] = {"axis": _signed(b, axis, rank)}
    if lengths[0] == lengths[1] and chance(c, 60):
        names = [b.fresh("part") for _ in lengths]
        b.node("Split", [w.name], names, **spelled, **({"num_outputs": 2} if b.opset >= 18 else {}))
    elif b.opset < 13:
        names = [b.fresh("part") for _ in lengths]
        b.node("Split", [w.name], names, **spelled, split=lengths)
    else:
        names = [b.fresh("part") for _ in lengths]
        b.node("Split", [w.name, _argument(b, lengths)], names, **spelled)
    parts = []
    for name, length in zip(names, lengths, strict=True):
        shape, dims = list(w.shape), list(w.dims)
        shape[axis] = dims[axis] = length
        parts.append(grown(b, w, name, shape, dims))
    parts = [_branch(b, part) if chance(c, 70) else part for part in parts]
    if chance(c, 50):
        order = parts if chance(c, 50) else parts[::-1]
        _joined(b, order)
    return True


# --- branches -------------------------------------------------------------------------------------------------------


def _project(b: Builder, w: Wire, channels: int) -> Wire | None:
    """Append a linear op that keeps all lengths but that of the channels."""
    c, rank = b.choices, len(w.shape)
    if rank < 2 or not isinstance(w.dims[1], int):
        return None
    if rank == 2:
        op_type = pick(c, ("Gemm", "MatMul")) if b.opset >= 11 else "MatMul"
        name = b.node(op_type, [w.name, b.constant(b.weights((w.shape[1], channels), w.dtype))])
        return grown(b, w, name, (w.shape[0], channels), (w.dims[0], channels))
    wide = chance(c, 25)
    kernel = [3 if wide else 1] * (rank - 2)
    attributes: dict[str, Any] = {"pads": [1] * 2 * (rank - 2)} if wide else {}
    inputs = [w.name, b.constant(b.weights((channels, w.shape[1], *kernel), w.dtype))]
    if chance(c, 50):
        inputs.append(b.constant(b.terms((channels,), w.dtype)))
    name = b.node("Conv", inputs, **attributes)
    return grown(b, w, name, (w.shape[0], channels, *w.shape[2:]), (w.dims[0], channels, *w.dims[2:]))


_BODIES = ("l", "la", "al", "lal", "a", "lr", "", "lra", "ra", "", "la")


def _branch(b: Builder, w: Wire, channels: int | None = None) -> Wire:
    """Append linear ops, affines and activations that keep all lengths but that of the channels."""
    body = pick(b.choices, _BODIES)
    for letter in body:
        if letter == "l":
            made = _project(b, w, channels or w.shape[1]) if len(w.shape) > 1 else None
            w = made or w
        else:
            before = len(b.wires)
            done = affine(b, w) if letter == "a" else _activation(b, w)
            if done and b.wires[-1].shape == w.shape and len(b.wires) > before:
                w = b.wires[-1]
    if channels is not None and len(w.shape) > 1 and w.shape[1] != channels:
        w = _project(b, w, channels) or w
    return w


def _joined(b: Builder, parts: Sequence[Wire]) -> bool:
    """Concatenate along the channels, if the parts agree in all else."""
    first = parts[0]
    rank = len(first.shape)
    if rank < 2 or any(len(p.shape) != rank or p.dtype != first.dtype for p in parts):
        return False
    others = [a for a in range(rank) if any(p.shape[a] != first.shape[a] for p in parts)]
    axis = others[0] if others else 1
    dims = [p.dims[axis] for p in parts]
    shape = [sum(p.shape[axis] for p in parts) if a == axis else n for a, n in enumerate(first.shape)]
    if len(others) > 1 or axis == 0 or math.prod(shape) > MAX_ELEMENTS:
        return False
    name = b.node("Concat", [p.name for p in parts], axis=_signed(b, axis, rank))
    known = all(isinstance(d, int) for d in dims)
    grown(b, first, name, shape, [(shape[a] if known else None) if a == axis else d for a, d in enumerate(first.dims)])
    return True


def _concat(b: Builder, w: Wire) -> bool:
    c = b.choices
    if len(w.shape) < 2 or not isinstance(w.dims[1], int):
        return False
    parts = [_branch(b, w, 1 + c.below(MAX_CHANNELS)) for _ in range(2 + c.below(2))]
    if chance(c, 12) and all(isinstance(d, int) for d in w.dims):
        array = b.terms((w.shape[0], 2, *w.shape[2:]), w.dtype)
        parts.append(Wire(_fixed(b, array), array.shape, array.shape, w.dtype))
    if not _joined(b, parts):
        b.initializers.pop(parts[-1].name, None)
        return False
    return True


def _skip(b: Builder, w: Wire) -> bool:
    """Add branches of one value: residual connections, identity skips among them."""
    c = b.choices
    one, other = _branch(b, w), _branch(b, w)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    op_type = pick(c, ("Add", "Add", "Sub", "Sum"))
    parts = [one, other]
    if op_type == "Sum" and chance(c, 50):
        parts.append(_branch(b, w))
    if any(p.shape != w.shape for p in parts):
        return False
    grown(b, w, b.node(op_type, [p.name for p in parts]), w.shape, w.dims)
    return True


def _gate(b: Builder, w: Wire) -> bool:
    """Multiply by, divide by or add a value of the same graph, which may be one number for each channel."""
    c, rank = b.choices, len(w.shape)
    gate = _branch(b, w)
    if rank > 2 and chance(c, 50):
        ones = (1,) * (rank - 2)
        name = b.node("GlobalAveragePool", [w.name])
        gate = _branch(b, grown(b, w, name, (*w.shape[:2], *ones), (*w.dims[:2], *ones)))
    op_type = pick(c, ("Mul", "Mul", "Div", "Add", "Sub"))
    if op_type == "Div" or chance(c, 50):
        grown(b, gate, b.node("HardSigmoid", [gate.name], beta=1.0), gate.shape, gate.dims)
        gate = b.wires[-1]
    if op_type == "Div":  # an error of what is near zero would have no bound
        grown(b, gate, b.node("Add", [gate.name, _scalar(b, 0.5, gate)]), gate.shape, gate.dims)
        gate = b.wires[-1]
    data = _branch(b, w) if chance(c, 50) else w
    if data.shape != w.shape or len(gate.shape) != rank or gate.dtype != data.dtype:
        return False
    operands = [data, gate] if op_type == "Div" or chance(c, 60) else [gate, data]
    grown(b, w, b.node(op_type, [o.name for o in operands]), w.shape, w.dims)
    return True


CARRIERS: tuple[Step, ...] = (
    *(_activation, _activation, _activation, _activation, _pool, _pool, _pool, _pool, _reduction, _reduction),
    *(_pad, _pad, _resize, _resize, _expand, _rearrange, _slice, _gather, _split, _concat, _concat),
    *(_skip, _skip, _skip, _gate, _gate, layout),
)
_ENDS = (("l", "a"), ("l", "a"), ("a", "l"), ("a", "l"), ("l", "al"), ("la", "l"), ("al", "la"), ("a", "al"))
"""What stands before carriers and behind them: linear ops and affines."""


def _linear_end(b: Builder, w: Wire) -> bool:
    """Append a linear op, mostly one of the channels that is not padded."""
    if chance(b.choices, 20):
        return linear(b, w)
    return _project(b, w, pick(b.choices, (4, 2, 3, 6, 8, 1)) if len(w.shape) < 5 else 2) is not None


def _affine_end(b: Builder, w: Wire) -> bool:
    """Append an affine, mostly one of the channels."""
    c, rank = b.choices, len(w.shape)
    if rank < 2 or not isinstance(w.dims[1], int) or chance(c, 25):
        return affine(b, w)
    if chance(c, 40):
        return batch_norm(b, w)
    op_type, shape = pick(c, ("Mul", "Add")), (w.shape[1], *(1,) * (rank - 2))
    array = b.factors(shape, w.dtype) if op_type == "Mul" else b.terms(shape, w.dtype)
    grown(b, w, b.node(op_type, [w.name, b.constant(array)]), w.shape, w.dims)
    return True


# --- a case ---------------------------------------------------------------------------------------------------------


def _input(b: Builder, dtype: np.dtype[Any]) -> Wire:
    c = b.choices
    rank = pick(c, (4, 4, 4, 3, 2, 5))
    spatial = [pick(c, (4, 2, 3, 6, 5, 1)) if rank < 5 else 1 + c.below(3) for _ in range(rank - 2)]
    channels = pick(c, (4, 2, 3, 1, 6, 8)) if rank < 5 else 1 + c.below(4)
    shape = (1 + c.below(2), channels, *spatial)
    free = chance(c, 20)
    dims: tuple[Dim, ...] = (
        "N" if chance(c, 50) else shape[0],
        channels,
        *(f"L{i}" if free else n for i, n in enumerate(spatial)),
    )
    wire = Wire("x", shape, dims, dtype)
    b.wires.append(wire)
    return wire


def _append(b: Builder, step: Step) -> None:
    """Try a step on the newest value, or on an older one, which then has several readers."""
    for _ in range(3):
        wire = b.wires[-1] if not chance(b.choices, 5) else pick(b.choices, b.wires)
        if math.prod(wire.shape) <= MAX_ELEMENTS and step(b, wire):
            return


def carrier_case(choices: Choices, *, dtype: np.dtype[Any] | None = None, tame: bool = False) -> Case:
    """Build one case from a source of decisions."""
    if dtype is None:
        dtype = pick(choices, (SINGLE, SINGLE, SINGLE, SINGLE, SINGLE, SINGLE, SINGLE, SINGLE, HALF, DOUBLE))
    opset = pick(choices, (17, *OPSETS, 18, 19))
    b = Builder(choices, np.random.default_rng(choices.below(1 << 30)), opset, 10, tame)
    b.positive, b.odd = chance(choices, 60), 1
    x = _input(b, dtype)
    before, behind = pick(choices, _ENDS)
    for letter in before:
        _append(b, _affine_end if letter == "a" else _linear_end)
    for _ in range(1 + choices.below(3) // 2):
        _append(b, pick(choices, CARRIERS))
    for letter in behind:
        _append(b, _affine_end if letter == "a" else _linear_end)
    if len(b.wires) == 1:
        same(b, x)
    feeds = {"x": b.feed(x.shape, dtype), **b.overridden}
    return Case(finished(b, x), feeds, opset, dtype, b.has_training, frozenset(b.must_stay))


@st.composite
def carrier_cases(draw: Any) -> Case:
    """Return cases for hypothesis."""
    return carrier_case(DrawnChoices(draw))
