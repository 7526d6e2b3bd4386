"""Random graphs of the ops that folding knows, spelled in every way, with numbers chosen to hurt.

One generator serves hypothesis (which shrinks its choices) and the fuzzer (which has a seed): both are a source of
integers. A case is a model, the numbers to feed it with, and what no fold may remove.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any, Protocol, TypeVar

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.support.build import BFLOAT16, tensor
from tests.support.float64 import Array, conv, conv_transpose, limits

T = TypeVar("T")
Dim = int | str | None

OPSETS = (8, 9, 11, 13, 15, 17, 21, 22)
HALF, BRAIN, SINGLE, DOUBLE = (np.dtype(t) for t in (np.float16, BFLOAT16, np.float32, np.float64))
TYPES = {
    HALF: TensorProto.FLOAT16,
    BRAIN: TensorProto.BFLOAT16,
    SINGLE: TensorProto.FLOAT,
    DOUBLE: TensorProto.DOUBLE,
}
MAX_CHANNELS = 6
MAX_ELEMENTS = 600


class Choices(Protocol):
    """A source of decisions; 0 is the simplest one."""

    def below(self, count: int) -> int:
        """Return one of 0 … count-1."""
        ...


class RandomChoices:
    """Decisions of a seed."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)  # noqa: S311

    def below(self, count: int) -> int:
        return self._random.randrange(count)


@cache
def _integers(count: int) -> st.SearchStrategy[int]:
    return st.integers(0, count - 1)


class DrawnChoices:
    """Decisions of hypothesis."""

    def __init__(self, draw: Callable[[st.SearchStrategy[int]], int]) -> None:
        self._draw = draw

    def below(self, count: int) -> int:
        return self._draw(_integers(count))


def pick(choices: Choices, options: Sequence[T]) -> T:
    """Return one of the options; the first is the simplest."""
    return options[choices.below(len(options))]


def chance(choices: Choices, percent: int) -> bool:
    """Return True in ``percent`` of 100 cases; False is simpler."""
    return choices.below(100) >= 100 - percent


@dataclass(frozen=True)
class Wire:
    """A value while the graph grows.

    Attributes:
        name: Its name.
        shape: Its true shape in this case.
        dims: What may be declared of it.
        dtype: Its type.
        is_pure: Whether no affine stands before it, so that nothing may ever change it.
    """

    name: str
    shape: tuple[int, ...]
    dims: tuple[Dim, ...]
    dtype: np.dtype[Any]
    is_pure: bool = False


@dataclass(frozen=True)
class Case:
    """One example.

    Attributes:
        model: The model to fold.
        feeds: Numbers for every input that needs some, overridden defaults included.
        opset: Its opset.
        dtype: The type of its main input.
        has_training: Whether a batch normalization in it is in training mode.
        must_stay: Names of nodes that no fold may remove.
    """

    model: onnx.ModelProto
    feeds: dict[str, Array]
    opset: int
    dtype: np.dtype[Any]
    has_training: bool
    must_stay: frozenset[str]


@dataclass
class Builder:
    """A graph while it grows.

    Attributes:
        tame: Whether all numbers are ordinary and no constant may be overridden.
        positive: Whether no factor is negative.
        odd: How many in 100 constants a caller may override, and how many variances are negative.
    """

    choices: Choices
    rng: np.random.Generator
    opset: int
    ir_version: int
    tame: bool = False
    positive: bool = False
    odd: int = 3
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, Array] = field(default_factory=dict)
    overridden: dict[str, Array] = field(default_factory=dict)
    wires: list[Wire] = field(default_factory=list)
    extra_outputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    must_stay: set[str] = field(default_factory=set)
    has_training: bool = False
    count: int = 0

    def fresh(self, stem: str) -> str:
        """Return a new name."""
        self.count += 1
        return f"{stem}{self.count}"

    def node(self, op_type: str, inputs: Sequence[str], outputs: int | Sequence[str] = 1, **attributes: Any) -> str:
        """Append a node, named or not; return its first output."""
        names = [self.fresh("v") for _ in range(outputs)] if isinstance(outputs, int) else list(outputs)
        name = self.fresh(op_type.lower()) if chance(self.choices, 70) else ""
        self.nodes.append(helper.make_node(op_type, list(inputs), names, name, **attributes))
        return names[0]

    def initializer(self, array: Array) -> str:
        """Return an initializer with this content, sometimes one that a caller may override."""
        name = self.fresh("c")
        self.initializers[name] = array
        if self.ir_version >= 4 and array.dtype in TYPES and not self.tame and chance(self.choices, self.odd):
            self.overridden[name] = np.asarray(array.astype(np.float64) * 0.5).astype(array.dtype)
        return name

    def constant(self, array: Array, *, shared: bool = True) -> str:
        """Return a value with this content, by one of the spellings of a constant."""
        how = self.choices.below(20)
        alike = [n for n, a in self.initializers.items() if a.shape == array.shape and a.dtype == array.dtype]
        if shared and alike and how >= 17:
            return pick(self.choices, alike)
        if how == 16:
            return self.node("Constant", [], value=tensor(array, ""))
        if how == 15:
            return self.node("Identity", [self.initializer(array)])
        if how == 14 and array.dtype == np.float32:
            return self.node("Cast", [self.initializer(array.astype(np.float64))], to=TensorProto.FLOAT)
        if how == 13 and array.ndim > 1:
            return self.node("Transpose", [self.initializer(np.ascontiguousarray(array.T))])
        if how == 12 and 1 in array.shape[:1]:
            return self.with_axes("Unsqueeze", self.initializer(array[0]), (0,))
        return self.initializer(array)

    def with_axes(self, op_type: str, value: str, axes: Sequence[int]) -> str:
        """Append Squeeze or Unsqueeze as its version wants it."""
        if self.opset < 13:
            return self.node(op_type, [value], axes=list(axes))
        return self.node(op_type, [value, self.initializer(np.array(axes, np.int64))])

    # --- numbers ----------------------------------------------------------------------------------------------------

    def store(self, array: Any, dtype: np.dtype[Any]) -> Array:
        """Clip to the range of a type and round."""
        top = float(limits(dtype).max) / 4
        return np.asarray(np.clip(np.asarray(array, np.float64), -top, top)).astype(dtype)

    def weights(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
        """Return weights: normal, or with zeros in them, or very small."""
        array = self.rng.standard_normal(shape)
        kind = self.choices.below(8)
        if kind == 7 and not self.tame:
            array *= 1e-3
        elif kind == 6:
            array *= self.rng.integers(0, 2, shape)
        return self.store(array, dtype)

    def factors(self, shape: Sequence[int], dtype: np.dtype[Any], *, zero: bool = True) -> Array:
        """Return factors of any size and, if they need not be positive, of either sign."""
        signs = [1.0] if self.positive else [-1.0, 1.0]
        array = self.rng.uniform(0.3, 2.0, shape) * self.rng.choice(signs, shape)
        kind = 0 if self.tame else self.choices.below(6)
        if kind == 5:
            array = array * self.rng.choice([1e-6, 1.0, 1e4], shape)
        elif kind == 4 and zero:
            array = array * self.rng.integers(0, 2, shape)
        array = np.where(np.abs(array) < float(limits(dtype).smallest_normal) * 16, 1.0 if not zero else 0.0, array)
        return self.store(array, dtype)

    def terms(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
        """Return terms, sometimes large ones."""
        kind = 0 if self.tame else self.choices.below(4)
        return self.store(self.rng.standard_normal(shape) * (1e4 if kind == 3 else 1.0), dtype)

    def variances(self, channels: int, dtype: np.dtype[Any]) -> Array:
        """Return variances: ordinary, zero, below epsilon, of any magnitude."""
        array = self.rng.uniform(0.5, 2.0, channels)
        kind = 0 if self.tame else self.choices.below(4)
        if kind == 3:
            array = 10.0 ** self.rng.uniform(-12, 6, channels)
        elif kind == 2:
            array = array * self.rng.choice([0.0, 1e-7, 1.0], channels)
        return self.store(array, dtype)

    def feed(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
        """Return an input: normal, far from zero, zero, one-hot, or denormal."""
        array = self.rng.standard_normal(shape)
        kind = 0 if self.tame else self.choices.below(7)
        if kind == 6:
            array = array * float(limits(dtype).smallest_subnormal) * 16
        elif kind == 5:
            array = np.zeros(shape)
            array.flat[self.rng.integers(array.size)] = 1.0
        elif kind == 4:
            array = np.zeros(shape)
        elif kind == 3:
            array = array + 1e4
        return self.store(array, dtype)


def grown(b: Builder, w: Wire, name: str, shape: Sequence[int], dims: Sequence[Dim], **changes: Any) -> Wire:
    pure = changes.pop("is_pure", False)
    wire = Wire(name, tuple(shape), tuple(dims), changes.pop("dtype", w.dtype), pure)
    b.wires.append(wire)
    return wire


# --- linear ops -----------------------------------------------------------------------------------------------------


def _spatial_attributes(b: Builder, w: Wire, *, transposed: bool) -> tuple[dict[str, Any], list[int]]:
    c, lengths = b.choices, w.shape[2:]
    attributes: dict[str, Any] = {}
    kernel = [1 + c.below(min(3, n)) for n in lengths]
    padding = pick(c, ("none", "none", "pads", "pads", "SAME_UPPER", "SAME_LOWER", "VALID"))
    if padding == "pads":
        ends = [c.below(k) for k in (*kernel, *kernel)]
        if transposed:  # at least one element has to be left
            ends = [min(e, (n - 1) // 2) for e, n in zip(ends, (*lengths, *lengths), strict=True)]
        attributes["pads"] = ends
    elif padding != "none":
        attributes["auto_pad"] = padding
    if chance(c, 30):
        attributes["strides"] = [1 + c.below(2) for _ in lengths]
    if not padding.startswith("SAME") and chance(c, 25):
        room = [n if transposed else (n - 1) // max(1, k - 1) for n, k in zip(lengths, kernel, strict=True)]
        attributes["dilations"] = [min(2, max(1, r)) for r in room]
    if transposed and "strides" in attributes and not padding.startswith("SAME") and chance(c, 50):
        attributes["output_padding"] = [c.below(s) for s in attributes["strides"]]
    if chance(c, 40):
        attributes["kernel_shape"] = kernel
    return attributes, kernel


def _convolution(b: Builder, w: Wire) -> bool:
    c = b.choices
    channels = w.dims[1] if len(w.shape) > 2 else None
    if not isinstance(channels, int):
        return False
    transposed = chance(c, 35)
    group = pick(c, [1, 1, *(g for g in range(1, channels + 1) if channels % g == 0)])
    out = group * (1 + c.below(max(1, MAX_CHANNELS // group)))
    attributes, kernel = _spatial_attributes(b, w, transposed=transposed)
    if group != 1 or chance(c, 20):
        attributes["group"] = group
    shape = (channels, out // group, *kernel) if transposed else (out, channels // group, *kernel)
    op = conv_transpose if transposed else conv
    result = op(np.zeros(w.shape), np.zeros(shape), attributes).shape
    if 0 in result or math.prod(result) > MAX_ELEMENTS:
        return False
    inputs = [w.name, b.constant(b.weights(shape, w.dtype))]
    if chance(c, 50):
        inputs.append(b.constant(b.terms((out,), w.dtype)))
    elif chance(c, 15):
        inputs.append("")
    name = b.node("ConvTranspose" if transposed else "Conv", inputs, **attributes)
    spatial = [n if isinstance(d, int) else None for n, d in zip(result[2:], w.dims[2:], strict=True)]
    grown(b, w, name, result, (w.dims[0], out, *spatial), is_pure=w.is_pure)
    return True


def _gemm(b: Builder, w: Wire) -> bool:
    c = b.choices
    if len(w.shape) != 2:
        return False
    is_right = not chance(c, 25)
    flip, flip_weight = chance(c, 25), chance(c, 50)
    axis = (1 if is_right else 0) ^ flip
    inner, outer = w.shape[axis], w.shape[1 - axis]
    if not isinstance(w.dims[axis], int):
        return False
    fresh = 1 + c.below(MAX_CHANNELS)
    weight = b.weights((inner, fresh) if is_right ^ flip_weight else (fresh, inner), w.dtype)
    rows, columns = (outer, fresh) if is_right else (fresh, outer)
    row_dim, column_dim = (w.dims[1 - axis], fresh) if is_right else (fresh, w.dims[1 - axis])
    attributes: dict[str, Any] = {}
    for name, on in (
        ("transA", flip if is_right else flip_weight),
        ("transB", flip_weight if is_right else flip),
    ):
        if on:
            attributes[name] = 1
    if chance(c, 35):
        attributes["alpha"] = pick(c, (2.0, -0.5, 0.1, 0.0))
    if chance(c, 35):
        attributes["beta"] = pick(c, (3.0, -0.3, 0.0))
    data = b.constant(weight)
    inputs = [w.name, data] if is_right else [data, w.name]
    shapes: list[tuple[int, ...]] = [(), (1,), (1, 1)]
    if isinstance(column_dim, int):
        shapes += [(columns,), (1, columns), (columns,)]
    if isinstance(row_dim, int):
        shapes += [(rows, 1)]
    if isinstance(row_dim, int) and isinstance(column_dim, int):
        shapes += [(rows, columns)]
    if chance(c, 65) or b.opset < 11:
        inputs.append(b.constant(b.terms(pick(c, shapes), w.dtype)))
    name = b.node("Gemm", inputs, **attributes)
    grown(b, w, name, (rows, columns), (row_dim, column_dim), is_pure=w.is_pure)
    return True


def _matmul(b: Builder, w: Wire) -> bool:
    c, rank = b.choices, len(w.shape)
    is_right = not chance(c, 30)
    axis = rank - 1 if is_right else rank - 2
    if rank < 2 or not isinstance(w.dims[axis], int):
        return False
    inner, fresh = w.shape[axis], 1 + c.below(MAX_CHANNELS)
    batch: tuple[int, ...] = ()
    if rank > 2 and chance(c, 30):
        lead = w.dims[rank - 3]
        batch = (lead if isinstance(lead, int) and chance(c, 50) else 1,)
    shape = (*batch, inner, fresh) if is_right else (*batch, fresh, inner)
    weight = b.constant(b.weights(shape, w.dtype))
    name = b.node("MatMul", [w.name, weight] if is_right else [weight, w.name])
    at = rank - 1 if is_right else rank - 2
    result, dims = list(w.shape), list(w.dims)
    result[at] = dims[at] = fresh
    grown(b, w, name, result, dims, is_pure=w.is_pure)
    return True


_LINEAR = (*3 * ((_convolution, _gemm, _matmul),), (_gemm, _matmul, _convolution), (_matmul,))


def linear(b: Builder, w: Wire) -> bool:
    return any(op(b, w) for op in pick(b.choices, _LINEAR))


# --- affines --------------------------------------------------------------------------------------------------------


def batch_norm(b: Builder, w: Wire) -> bool:
    c = b.choices
    if len(w.shape) < 2 or not isinstance(w.dims[1], int):
        return False
    channels, small = w.shape[1], w.dtype
    if b.opset >= 15 and w.dtype in (HALF, BRAIN) and chance(c, 40):
        small = SINGLE
    arrays = [b.factors((channels,), small), b.terms((channels,), small), b.terms((channels,), small)]
    variance, is_negative = b.variances(channels, small), False
    if not b.tame and chance(c, b.odd):
        variance[c.below(channels)] = pick(c, (-1.0, -1e-6))
        is_negative = float(variance.min()) < 0
    # a drawn variance is not shared: another constant of its length may be negative
    names = [b.constant(a) for a in arrays] + [b.constant(variance, shared=False)]
    attributes: dict[str, Any] = {}
    if chance(c, 60):
        attributes["epsilon"] = pick(c, (1e-3, 1e-5, 1e-1))
    trains = b.opset >= 14 and w.is_pure and not b.tame and w.dtype == small and chance(c, 12)
    if trains:
        attributes["training_mode"] = 1
    name = b.node("BatchNormalization", [w.name, *names], 3 if trains else 1, **attributes)
    if trains or is_negative:
        stays = b.nodes[-1]
        stays.name = stays.name or b.fresh("kept")
        b.must_stay.add(stays.name)
    b.has_training |= trains
    grown(b, w, name, w.shape, w.dims)
    return True


def _operand_shape(b: Builder, w: Wire) -> tuple[int, ...]:
    """Return the shape of a constant: a scalar, or a vector along one axis spelled with any number of ones."""
    c, rank = b.choices, len(w.shape)
    axes = [a for a in range(rank) if isinstance(w.dims[a], int)]
    kind = c.below(12)
    if kind == 11 or not axes:
        return pick(c, ((), (1,), (1,) * rank))
    if kind == 10:  # no per-channel affine at all
        return tuple(w.shape[a] if a in axes else 1 for a in range(rank))
    if kind == 9 and chance(c, 50):  # one that enlarges the value it meets
        return (1,) * (rank + 1) if rank < 5 else (1,)
    if kind == 9:
        return tuple(2 if w.dims[a] == 1 and a == min(axes) else 1 for a in range(rank))
    axis = 1 if 1 in axes and kind < 7 else pick(c, axes)
    behind = (1,) * (rank - 1 - axis)
    return (*(1,) * c.below(axis + 1), w.shape[axis], *behind)


def _arithmetic(b: Builder, w: Wire) -> bool:
    c = b.choices
    op_type = pick(c, ("Mul", "Add", "Mul", "Add", "Sub", "Div", *([] if b.positive else ["Neg"])))
    if op_type == "Neg":
        grown(b, w, b.node("Neg", [w.name]), w.shape, w.dims)
        return True
    shape = _operand_shape(b, w)
    result = np.broadcast_shapes(shape, w.shape)
    if math.prod(result) > MAX_ELEMENTS:
        return False
    multiplies = op_type in ("Mul", "Div")
    array = b.factors(shape, w.dtype, zero=op_type == "Mul") if multiplies else b.terms(shape, w.dtype)
    name = b.constant(array, shared=op_type != "Div")
    # the error of c/x is no multiple of its size, so x has to be one that nothing changes
    constant_first = (op_type != "Div" or w.is_pure) and chance(c, 40)
    inputs = [name, w.name] if constant_first else [w.name, name]
    old = [1] * (len(result) - len(w.dims)) + list(w.dims)
    dims = [n if d == 1 else d for n, d in zip(result, old, strict=True)]
    grown(b, w, b.node(op_type, inputs), result, dims)
    return True


def affine(b: Builder, w: Wire) -> bool:
    return (chance(b.choices, 45) and batch_norm(b, w)) or _arithmetic(b, w)


# --- layout ---------------------------------------------------------------------------------------------------------


def _transpose(b: Builder, w: Wire) -> bool:
    perm = list(range(len(w.shape)))
    for i in range(len(perm) - 1, 0, -1):
        j = b.choices.below(i + 1)
        perm[i], perm[j] = perm[j], perm[i]
    attributes = {} if perm == perm[::-1] and chance(b.choices, 50) else {"perm": perm}
    if not attributes:
        perm = list(range(len(w.shape)))[::-1]
    name = b.node("Transpose", [w.name], **attributes)
    grown(b, w, name, [w.shape[p] for p in perm], [w.dims[p] for p in perm], is_pure=w.is_pure)
    return True


def _factors_of(b: Builder, number: int, count: int) -> list[int]:
    found = []
    for _ in range(count - 1):
        divisor = pick(b.choices, [d for d in range(1, number + 1) if number % d == 0])
        found.append(divisor)
        number //= divisor
    return [*found, number]


def _reshape(b: Builder, w: Wire) -> bool:
    """Reshape to anything of the same size: groups of axes kept, merged, split, or lengths equal by chance only."""
    c, rank = b.choices, len(w.shape)
    keep = c.below(rank)  # leading axes that stay, spelled 0, -1 or as they are
    if any(not isinstance(d, int) for d in w.dims[keep:]):
        keep = max(i for i, d in enumerate(w.dims) if not isinstance(d, int)) + 1
    rest = math.prod(w.shape[keep:])
    tail = _factors_of(b, rest, 1 + c.below(3)) if keep < rank else []
    if chance(c, 20) and keep < rank:
        tail = [int(n) for n in b.rng.permutation(w.shape[keep:])]  # the trap: lengths that agree by chance
    target: list[int] = [0] * keep + tail
    shape, dims = [*w.shape[:keep], *tail], [*w.dims[:keep], *tail]
    for i in range(keep):
        if isinstance(w.dims[i], int) and chance(c, 40):
            target[i] = w.shape[i]
    if chance(c, 40):
        spot = c.below(len(target))
        target[spot] = -1
    if not 1 <= len(target) <= 5 or (keep and len(target) < 2 and rank > 1 and keep == rank):
        return False
    name = b.node("Reshape", [w.name, b.initializer(np.array(target, np.int64))])
    grown(b, w, name, shape, dims, is_pure=w.is_pure)
    return True


def _flatten(b: Builder, w: Wire) -> bool:
    c, rank = b.choices, len(w.shape)
    axis = pick(c, (1, *range(rank + 1)))
    spelled = axis - rank if b.opset >= 11 and axis < rank and chance(c, 30) else axis

    def merged(part: Sequence[Dim]) -> Dim:
        whole = all(isinstance(d, int) for d in part)
        return math.prod(d for d in part if isinstance(d, int)) if whole else part[0] if len(part) == 1 else None

    shape = (math.prod(w.shape[:axis]), math.prod(w.shape[axis:]))
    attributes = {} if axis == 1 and chance(c, 50) else {"axis": spelled}
    name = b.node("Flatten", [w.name], **attributes)
    grown(b, w, name, shape, (merged(w.dims[:axis]), merged(w.dims[axis:])), is_pure=w.is_pure)
    return True


def _squeeze(b: Builder, w: Wire) -> bool:
    c, rank = b.choices, len(w.shape)
    ones = [a for a in range(rank) if w.dims[a] == 1]
    if ones and rank > 2 and chance(c, 60):
        axis = pick(c, ones)
        spelled = axis - rank if b.opset >= 11 and chance(c, 30) else axis
        name = b.with_axes("Squeeze", w.name, [spelled])
        shape, dims = (list(x) for x in (w.shape, w.dims))
        del shape[axis], dims[axis]
    elif rank < 5:
        axis = c.below(rank + 1)
        spelled = axis - rank - 1 if b.opset >= 11 and chance(c, 30) else axis
        name = b.with_axes("Unsqueeze", w.name, [spelled])
        shape, dims = (list(x) for x in (w.shape, w.dims))
        shape.insert(axis, 1)
        dims.insert(axis, 1)
    else:
        return False
    grown(b, w, name, shape, dims, is_pure=w.is_pure)
    return True


def same(b: Builder, w: Wire) -> bool:
    c = b.choices
    if chance(c, 50):
        name = b.node("Identity", [w.name])
    elif b.opset >= 12 and chance(c, 60):
        ratio = b.initializer(np.array(0.5, np.float32)) if b.opset < 22 else ""
        mask = chance(c, 30)
        inputs = [w.name, ratio, b.initializer(np.array(False))] if chance(c, 50) else [w.name, ratio]
        name = b.node("Dropout", inputs if inputs[-1] else inputs[:1], 2 if mask else 1)
        if mask and chance(c, 50):
            output = b.nodes[-1].output[1]
            b.extra_outputs.append(helper.make_tensor_value_info(output, TensorProto.BOOL, list(w.dims)))
    else:
        name = b.node("Dropout", [w.name])
    grown(b, w, name, w.shape, w.dims, is_pure=w.is_pure)
    return True


def _cast(b: Builder, w: Wire) -> bool:
    targets = {
        HALF: (SINGLE, HALF),
        BRAIN: (SINGLE,),
        SINGLE: (DOUBLE, HALF, SINGLE),
        DOUBLE: (SINGLE, DOUBLE),
    }
    dtype = pick(b.choices, targets[w.dtype])
    if b.tame and dtype != w.dtype:
        return False
    name = b.node("Cast", [w.name], to=TYPES[dtype])
    grown(b, w, name, w.shape, w.dims, dtype=dtype, is_pure=w.is_pure)
    return True


def layout(b: Builder, w: Wire) -> bool:
    move = pick(b.choices, (_transpose, _reshape, _flatten, _squeeze, same, _transpose, _reshape, _cast))
    return move(b, w)


def relu(b: Builder, w: Wire) -> bool:
    grown(b, w, b.node("Relu", [w.name]), w.shape, w.dims, is_pure=w.is_pure)
    return True


def _residual(b: Builder, w: Wire) -> bool:
    others = [o for o in b.wires if o.dims == w.dims and o.shape == w.shape and o.dtype == w.dtype]
    other = pick(b.choices, others)
    grown(b, w, b.node("Add", [w.name, other.name]), w.shape, w.dims)
    return True


STEPS: tuple[Callable[[Builder, Wire], bool], ...] = (
    *(affine, affine, affine, affine, linear, linear, linear, linear),
    *(layout, layout, relu, _residual),
)


# --- a case ---------------------------------------------------------------------------------------------------------


def _input(b: Builder, dtype: np.dtype[Any]) -> Wire:
    c = b.choices
    rank = pick(c, (4, 4, 2, 2, 3, 5))
    spatial = [1 + c.below(5 if rank < 5 else 3) for _ in range(rank - 2)]
    shape = (1 + c.below(3), 1 + c.below(MAX_CHANNELS), *spatial)
    dims: tuple[Dim, ...] = ("N", *shape[1:]) if chance(c, 50) else shape
    wire = Wire("x", shape, dims, dtype, is_pure=True)
    b.wires.append(wire)
    return wire


def random_case(choices: Choices, *, dtype: np.dtype[Any] | None = None, tame: bool = False) -> Case:
    """Build one case from a source of decisions."""
    if dtype is None:
        dtype = pick(choices, (SINGLE, SINGLE, SINGLE, SINGLE, SINGLE, HALF, BRAIN, DOUBLE))
    opset = 22 if dtype == BRAIN else pick(choices, (17, *OPSETS))
    ir_version = 3 if opset == 8 and chance(choices, 50) else 10
    b = Builder(choices, np.random.default_rng(choices.below(1 << 30)), opset, ir_version, tame)
    x = _input(b, dtype)
    wanted = 2 + choices.below(6)
    for _ in range(3 * wanted):
        wire = b.wires[-1] if not chance(choices, 20) else pick(choices, b.wires)
        if pick(choices, STEPS)(b, wire) and len(b.wires) > wanted:
            break
    if len(b.wires) == 1:
        same(b, x)
    feeds = {"x": b.feed(x.shape, dtype), **b.overridden}
    return Case(finished(b, x), feeds, opset, dtype, b.has_training, frozenset(b.must_stay))


def finished(b: Builder, x: Wire) -> onnx.ModelProto:
    read = {name for node in b.nodes for name in node.input}
    made = b.wires[1:]
    outputs = [w for w in made if w.name not in read or w is made[-1]]
    outputs = [w for w in outputs if w is made[-1] or not chance(b.choices, 10)]
    outputs += [w for w in made if w not in outputs and chance(b.choices, 8)]
    inputs = [x]
    defaults = list(b.initializers) if b.ir_version < 4 else list(b.overridden)
    graph = helper.make_graph(
        b.nodes,
        "g",
        [_info(w) for w in inputs]
        + [
            helper.make_tensor_value_info(n, tensor(b.initializers[n], n).data_type, b.initializers[n].shape)
            for n in defaults
        ],
        [_info(w) for w in outputs] + b.extra_outputs,
        [tensor(array, name) for name, array in b.initializers.items()],
    )
    if chance(b.choices, 50):
        graph.value_info.extend(_info(w) for w in made if w not in outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", b.opset)])
    model.ir_version = b.ir_version
    return model


def _info(w: Wire) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(w.name, TYPES[w.dtype], list(w.dims))


def _shuffle(b: Builder, w: Wire) -> bool:
    return pick(b.choices, (_reshape, _transpose, _squeeze, _flatten))(b, w)


_BETWEEN = ((_shuffle,), (_shuffle, _shuffle), (_shuffle, affine, _shuffle))


def layout_case(choices: Choices) -> Case:
    """Build a linear op and an affine with layout ops between them, in a world where most lengths are equal."""
    b = Builder(choices, np.random.default_rng(choices.below(1 << 30)), 17, 10, tame=True)
    shape = tuple(2 + (choices.below(4) == 3) for _ in range(pick(choices, (4, 3, 2, 5))))
    x = Wire("x", shape, ("N", *shape[1:]) if chance(choices, 25) else shape, SINGLE)
    b.wires.append(x)
    between = pick(choices, _BETWEEN)
    for step in pick(choices, ((linear, *between, affine), (affine, *between, linear))):
        for _ in range(3):
            if step(b, b.wires[-1]):
                break
    if len(b.wires) == 1:
        same(b, x)
    return Case(finished(b, x), {"x": b.feed(shape, SINGLE)}, 17, SINGLE, b.has_training, frozenset(b.must_stay))


@st.composite
def layout_cases(draw: Any) -> Case:
    """Return cases about layout for hypothesis."""
    return layout_case(DrawnChoices(draw))


@st.composite
def cases(draw: Any, dtype: Any = None) -> Case:
    """Return cases for hypothesis."""
    return random_case(DrawnChoices(draw), dtype=None if dtype is None else np.dtype(dtype))


def to_ir(model: onnx.ModelProto) -> ir.Model:
    """Return a fresh onnx_ir model; the proto stays as it is."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return ir.from_proto(copy)
