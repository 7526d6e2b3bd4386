"""ONNX graphs evaluated in float64 (long double on request), with bounds that come along.

An own reading of the operator specifications, in NumPy: nothing of bnpass and nothing of onnx.reference is
used, so that neither judges itself. With every value travel

    size        the sum of magnitudes, Σ|w||x| + |b|, of the way it was computed
    roundings   how many rounded tensors stand in a row on the way to it
    underflow   what numbers too small for their type may have cost, absolute

so that two graphs that are equal over the reals, one of them with constants rounded to unit roundoff u, differ
by at most ``roundings·u·size + underflow``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]
Attributes = Mapping[str, Any]

_FLOATS = {
    onnx.TensorProto.FLOAT16: np.dtype(np.float16),
    onnx.TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    onnx.TensorProto.FLOAT: np.dtype(np.float32),
    onnx.TensorProto.DOUBLE: np.dtype(np.float64),
}


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether this is one of the float types of the generator."""
    return dtype in _FLOATS.values()


def limits(dtype: np.dtype[Any]) -> Any:
    """Return finfo, bfloat16 included."""
    return ml_dtypes.finfo(dtype) if dtype == ml_dtypes.bfloat16 else np.finfo(dtype)


def unit_roundoff(dtype: np.dtype[Any]) -> float:
    """Largest relative error of rounding to nearest."""
    return float(limits(dtype).eps) / 2


def round_to(x: Array, dtype: np.dtype[Any]) -> Array:
    """Round to nearest even by arithmetic on exponents: an own way, for every type, to judge others by."""
    info = limits(dtype)
    wide = np.asarray(x)
    _, exponent = np.frexp(wide)
    bits = 8 if dtype == ml_dtypes.bfloat16 else int(info.nmant) + 1
    tiniest = round(math.log2(float(info.smallest_subnormal))) if dtype != np.float64 else -1074
    quantum = np.maximum(exponent - bits, tiniest)
    with np.errstate(all="ignore"):
        rounded = np.ldexp(np.rint(np.ldexp(wide, -quantum)), quantum)
        rounded = np.where(np.abs(rounded) > float(info.max), np.copysign(np.inf, wide), rounded)
    return np.asarray(np.where(np.isfinite(wide), rounded, wide))


@dataclass(frozen=True, eq=False)
class Judged:
    """A value with its bounds.

    Attributes:
        value: The numbers, wide (or as they are, if they are no floats).
        size: Sum of magnitudes.
        roundings: Rounded tensors in a row on the way.
        underflow: Absolute error through numbers below the normal range.
        dtype: The type it has in the model.
        constant: Whether it depends on no input.
    """

    value: Array
    size: Array
    roundings: int
    underflow: Array
    dtype: np.dtype[Any]
    constant: bool = False


def plain(array: Array, kind: Any = np.float64, *, constant: bool = False) -> Judged:
    """Wrap an exact array."""
    array = np.asarray(array)
    if not is_float(array.dtype):
        return Judged(array, array, 0, np.zeros(()), array.dtype, constant)
    wide = array.astype(kind)
    return Judged(wide, np.abs(wide), 0, np.zeros((), kind), array.dtype, constant)


def _moved(x: Judged, move: Callable[[Array], Array]) -> Judged:
    full = _full(x).underflow
    underflow = full if full.ndim == 0 else move(full)
    return replace(x, value=move(x.value), size=move(x.size), underflow=underflow)


def _sum(a: Judged, b: Judged, sign: int = 1) -> Judged:
    return Judged(
        a.value + sign * b.value,
        a.size + b.size,
        max(a.roundings, b.roundings),
        a.underflow + b.underflow,
        a.dtype,
        a.constant and b.constant,
    )


def _bilinear(a: Judged, b: Judged, apply: Callable[[Array, Array], Array]) -> Judged:
    """Apply an op that is linear in either operand and has no negative coefficient of its own."""
    lost = np.zeros((), a.value.dtype)
    if a.underflow.any():
        lost = lost + apply(np.broadcast_to(a.underflow, a.size.shape), b.size)
    if b.underflow.any():
        lost = lost + apply(a.size + a.underflow, np.broadcast_to(b.underflow, b.size.shape))
    value, size = apply(a.value, b.value), apply(a.size, b.size)
    return Judged(value, size, a.roundings + b.roundings, lost, a.dtype, a.constant and b.constant)


def _scaled(x: Judged, factor: float) -> Judged:
    return replace(x, value=factor * x.value, size=abs(factor) * x.size, underflow=abs(factor) * x.underflow)


def _product(a: Judged, b: Judged) -> Judged:
    return _bilinear(a, b, np.multiply)


def _reciprocal(x: Judged) -> Judged:
    with np.errstate(all="ignore"):
        value = 1 / x.value
        return replace(x, value=value, size=np.abs(value), underflow=x.underflow * value * value)


def _square_root(x: Judged) -> Judged:
    with np.errstate(all="ignore"):
        value = np.sqrt(x.value)
        return replace(x, value=value, size=np.abs(value), underflow=np.zeros((), value.dtype))


def _relu(x: Judged) -> Judged:
    return replace(x, value=np.maximum(x.value, 0))


# --- convolutions ---------------------------------------------------------------------------------------------------


def _spatial(attributes: Attributes, kernel: Sequence[int]) -> tuple[list[int], list[int]]:
    ones = [1] * len(kernel)
    return list(attributes.get("strides") or ones), list(attributes.get("dilations") or ones)


def _conv_pads(attributes: Attributes, lengths: Sequence[int], kernel: Sequence[int]) -> list[tuple[int, int]]:
    strides, dilations = _spatial(attributes, kernel)
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


def conv(x: Array, w: Array, attributes: Attributes) -> Array:
    """Conv-11: cross-correlation over zero-padded input, group by group."""
    kernel = w.shape[2:]
    strides, dilations = _spatial(attributes, kernel)
    group = int(attributes.get("group", 1))
    pads = _conv_pads(attributes, x.shape[2:], kernel)
    x = np.pad(x, [(0, 0), (0, 0), *pads])
    lengths = [
        (n - (k - 1) * d - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True)
    ]
    grouped = x.reshape(x.shape[0], group, -1, *x.shape[2:])
    weights = w.reshape(group, -1, *w.shape[1:])
    y = np.zeros((x.shape[0], group, weights.shape[1], *lengths), x.dtype)
    for tap in product(*(range(k) for k in kernel)):
        window = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, d, n, s in zip(tap, dilations, lengths, strides, strict=True)
        )
        y += np.einsum("ngc...,gmc->ngm...", grouped[(..., *window)], weights[(..., *tap)])
    return y.reshape(x.shape[0], -1, *lengths)


def _transposed_window(
    attributes: Attributes, full: Sequence[int], lengths: Sequence[int], strides: Sequence[int]
) -> list[slice]:
    """Return what is left of the full output; it may reach beyond its end, where there are zeros."""
    auto = attributes.get("auto_pad", "NOTSET")
    count = len(full)
    wanted = attributes.get("output_shape")
    if wanted is None and not auto.startswith("SAME"):
        flat = list(attributes.get("pads") or [0] * 2 * count) if auto == "NOTSET" else [0] * 2 * count
        return [slice(b, n - e) for b, e, n in zip(flat[:count], flat[count:], full, strict=True)]
    if wanted is None:  # where the stride is longer than the kernel there is nothing to take away
        wanted = [min(n * s, f) for n, s, f in zip(lengths, strides, full, strict=True)]
    wanted = list(wanted)[-count:]
    total = [max(n - w, 0) for n, w in zip(full, wanted, strict=True)]
    begin = [t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in total]
    return [slice(b, b + w) for b, w in zip(begin, wanted, strict=True)]


def conv_transpose(x: Array, w: Array, attributes: Attributes) -> Array:
    """ConvTranspose-11: every input point adds its scaled kernel to the output, which is then cropped."""
    kernel = w.shape[2:]
    strides, dilations = _spatial(attributes, kernel)
    group = int(attributes.get("group", 1))
    extra = list(attributes.get("output_padding") or [0] * len(kernel))
    full = [
        s * (n - 1) + (k - 1) * d + 1 + e
        for n, k, s, d, e in zip(x.shape[2:], kernel, strides, dilations, extra, strict=True)
    ]
    left = _transposed_window(attributes, full, x.shape[2:], strides)
    full = [max(n, s.stop) for n, s in zip(full, left, strict=True)]
    grouped = x.reshape(x.shape[0], group, -1, *x.shape[2:])
    weights = w.reshape(group, -1, *w.shape[1:])
    y = np.zeros((x.shape[0], group, w.shape[1], *full), x.dtype)
    for tap in product(*(range(k) for k in kernel)):
        window = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, d, n, s in zip(tap, dilations, x.shape[2:], strides, strict=True)
        )
        y[(..., *window)] += np.einsum("ngc...,gcm->ngm...", grouped, weights[(..., *tap)])
    return y[(..., *left)].reshape(x.shape[0], -1, *(s.stop - s.start for s in left))


def _channels(bias: Judged, rank: int) -> Judged:
    return _moved(bias, lambda a: a.reshape(-1, *[1] * (rank - 2)))


def _convolution(inputs: list[Judged | None], attributes: Attributes, op: Callable[..., Array]) -> Judged:
    x, w = _given(inputs, 2)
    y = _bilinear(x, w, lambda a, b: op(a, b, attributes))
    bias = inputs[2] if len(inputs) > 2 else None
    return y if bias is None else _sum(y, _channels(bias, y.value.ndim))


def _given(inputs: list[Judged | None], count: int) -> list[Judged]:
    found = [v for v in inputs[:count] if v is not None]
    if len(found) != count:
        raise ValueError("a required input is missing")
    return found


def _gemm(inputs: list[Judged | None], attributes: Attributes) -> Judged:
    a, b = _given(inputs, 2)
    a = _moved(a, np.transpose) if attributes.get("transA", 0) else a
    b = _moved(b, np.transpose) if attributes.get("transB", 0) else b
    y = _scaled(_bilinear(a, b, np.matmul), float(np.float32(attributes.get("alpha", 1.0))))
    c = inputs[2] if len(inputs) > 2 else None
    return y if c is None else _sum(y, _scaled(c, float(np.float32(attributes.get("beta", 1.0)))))


# --- batch normalization --------------------------------------------------------------------------------------------


def _batch_norm(inputs: list[Judged | None], attributes: Attributes, opset: int, outputs: int) -> Judged:
    x, *parameters = _given(inputs, 5)
    scale, bias, mean, var = (_channels(p, x.value.ndim) for p in parameters)
    epsilon = plain(np.float64(np.float32(attributes.get("epsilon", 1e-5))), x.value.dtype.type, constant=True)
    trains = attributes.get("training_mode", 0) if opset >= 14 else outputs > 1
    if trains:
        if x.roundings:
            raise ValueError("no bound for batch statistics of a value that was moved")
        axes = (0, *range(2, x.value.ndim))
        mean = plain(x.value.mean(axes, keepdims=True), x.value.dtype.type)
        var = plain(x.value.var(axes, keepdims=True), x.value.dtype.type)
    gain = _product(scale, _reciprocal(_square_root(_sum(var, epsilon))))
    centred = _sum(x, mean, -1)
    return replace(_sum(_product(centred, gain), bias), dtype=x.dtype)


# --- layout ---------------------------------------------------------------------------------------------------------


def _axes(inputs: list[Judged | None], attributes: Attributes) -> tuple[int, ...] | None:
    if attributes.get("axes") is not None:
        return tuple(attributes["axes"])
    given = inputs[1] if len(inputs) > 1 else None
    return None if given is None else tuple(int(i) for i in given.value.reshape(-1))


def _reshape(inputs: list[Judged | None], attributes: Attributes) -> Judged:
    x, shape = _given(inputs, 2)
    old = x.value.shape
    zeros = attributes.get("allowzero", 0)
    new = [old[i] if d == 0 and not zeros else int(d) for i, d in enumerate(shape.value.reshape(-1))]
    return _moved(x, lambda a: a.reshape(new))


def _full(x: Judged) -> Judged:
    """Give the underflow bound the shape of the value, for ops that count elements."""
    if x.underflow.ndim == 0:
        return x
    return replace(x, underflow=np.broadcast_to(x.underflow, x.value.shape))


def _flatten(x: Judged, attributes: Attributes) -> Judged:
    axis = attributes.get("axis", 1)
    axis = axis + x.value.ndim if axis < 0 else axis
    lead = math.prod(x.value.shape[:axis])
    return _moved(x, lambda a: a.reshape(lead, -1))


def _unsqueeze(x: Judged, axes: tuple[int, ...] | None) -> Judged:
    if axes is None:
        raise ValueError("Unsqueeze without axes")
    return _moved(x, lambda a: np.expand_dims(a, axes))


# --- the graph ------------------------------------------------------------------------------------------------------


@dataclass
class Evaluator:
    """Evaluates one model.

    Attributes:
        model: The model.
        kind: The type to compute in: float64, or long double for models of float64.
        exact: Names and bytes of the constants that nobody has rounded; None: all.
        as_stored: Round the result of every op to its type, as an ideal runtime would.
    """

    model: onnx.ModelProto
    kind: Any = np.float64
    exact: Mapping[str, bytes] | None = None
    as_stored: bool = False

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Judged]:
        """Return every value of the main graph."""
        graph = self.model.graph
        opset = next(i.version for i in self.model.opset_import if i.domain in ("", "ai.onnx"))
        values = {t.name: self._constant(t.name, t) for t in graph.initializer}
        values.update({name: plain(array, self.kind) for name, array in feeds.items()})
        for node in graph.node:
            inputs = [values[name] if name else None for name in node.input]
            attributes = {a.name: _attribute(a) for a in node.attribute}
            result = self._node(node, inputs, attributes, opset)
            for name, value in zip(node.output, result, strict=False):
                if name:
                    values[name] = self._stored(value)
        return values

    def _stored(self, x: Judged) -> Judged:
        if not self.as_stored or not is_float(x.dtype):
            return x
        return replace(x, value=round_to(x.value, x.dtype).astype(self.kind))

    def _constant(self, name: str, tensor: onnx.TensorProto) -> Judged:
        array = np.asarray(ir.from_proto(tensor).numpy())
        exact = plain(array, self.kind, constant=True)
        if self.exact is None or not is_float(array.dtype) or self.exact.get(name) == array.tobytes():
            return exact
        lost = np.asarray(float(limits(array.dtype).smallest_subnormal) / 2, self.kind)
        return replace(exact, roundings=1, underflow=lost)

    def _node(
        self, node: onnx.NodeProto, inputs: list[Judged | None], attributes: Attributes, opset: int
    ) -> list[Judged]:
        match node.op_type:
            case "Constant":
                return [self._constant(node.output[0], attributes["value"])]
            case "Conv":
                return [_convolution(inputs, attributes, conv)]
            case "ConvTranspose":
                return [_convolution(inputs, attributes, conv_transpose)]
            case "Gemm":
                return [_gemm(inputs, attributes)]
            case "BatchNormalization":
                return [_batch_norm(inputs, attributes, opset, len(node.output))]
            case "MatMul":
                return [_bilinear(*_given(inputs, 2), np.matmul)]
            case "Add" | "Sub" | "Mul" | "Div":
                return [_arithmetic(node.op_type, *_given(inputs, 2))]
            case _:
                return self._unary(node, inputs, attributes)

    def _unary(self, node: onnx.NodeProto, inputs: list[Judged | None], attributes: Attributes) -> list[Judged]:
        (x,) = _given(inputs, 1)
        match node.op_type:
            case "Cast":
                return [self._cast(x, attributes["to"])]
            case "Neg":
                return [_scaled(x, -1)]
            case "Relu":
                return [_relu(x)]
            case "Identity":
                return [x]
            case "Dropout":
                trains = len(inputs) > 2 and inputs[2] is not None and bool(inputs[2].value.any())
                ratio = inputs[1].value if len(inputs) > 1 and inputs[1] is not None else 0.5
                if trains and np.any(ratio != 0):
                    raise ValueError("Dropout in training mode is random")
                return [x, plain(np.ones(x.value.shape, bool))]
            case "Reshape":
                return [_reshape(inputs, attributes)]
            case _:
                return [_layout(node.op_type, x, inputs, attributes)]

    def _cast(self, x: Judged, to: int) -> Judged:
        if to not in _FLOATS:
            raise ValueError(f"Cast to {to}")
        dtype = _FLOATS[to]
        if x.constant:  # a constant is what the file says; an activation is not rounded over the reals
            value = round_to(x.value, dtype).astype(self.kind)
            return replace(x, value=value, size=np.abs(value), dtype=dtype)
        return replace(x, dtype=dtype)


def _layout(op_type: str, x: Judged, inputs: list[Judged | None], attributes: Attributes) -> Judged:
    match op_type:
        case "Transpose":
            return _moved(x, lambda a: np.transpose(a, attributes.get("perm")))
        case "Flatten":
            return _flatten(x, attributes)
        case "Squeeze":
            axes = _axes(inputs, attributes)
            return _moved(x, lambda a: np.squeeze(a, axes))
        case "Unsqueeze":
            return _unsqueeze(x, _axes(inputs, attributes))
        case _:
            raise ValueError(f"{op_type} is not covered")


def _arithmetic(op_type: str, a: Judged, b: Judged) -> Judged:
    match op_type:
        case "Add":
            return _sum(a, b)
        case "Sub":
            return _sum(a, b, -1)
        case "Mul":
            return _product(a, b)
        case _:
            return replace(_product(a, _reciprocal(b)), value=a.value / b.value)


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value
