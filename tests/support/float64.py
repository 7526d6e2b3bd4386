"""ONNX graphs evaluated in float64 (long double on request), with bounds that come along.

An own reading of the operator specifications, in NumPy: nothing of bnpass and nothing of onnx.reference is
used, so that neither judges itself. What the bounds are is said in ``float64_values``; pools, branches and resampling
are in ``float64_ops``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from tests.support import float64_ops as ops
from tests.support.float64_ops import axes_of, conv_pads, required, spatial
from tests.support.float64_values import (
    FLOATS,
    Array,
    Attributes,
    Judged,
    bilinear,
    is_float,
    limits,
    moved,
    multiplied,
    plain,
    reciprocal,
    round_to,
    scaled,
    square_root,
    summed,
    unit_roundoff,
)

__all__ = [
    "Array",
    "Evaluator",
    "Judged",
    "conv",
    "conv_transpose",
    "is_float",
    "limits",
    "round_to",
    "unit_roundoff",
]

# --- convolutions ---------------------------------------------------------------------------------------------------


def conv(x: Array, w: Array, attributes: Attributes) -> Array:
    """Conv-11: cross-correlation over zero-padded input, group by group."""
    kernel = w.shape[2:]
    strides, dilations = spatial(attributes, kernel)
    group = int(attributes.get("group", 1))
    pads = conv_pads(attributes, x.shape[2:], kernel)
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
    strides, dilations = spatial(attributes, kernel)
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
    return moved(bias, lambda a: a.reshape(-1, *[1] * (rank - 2)))


def _convolution(inputs: list[Judged | None], attributes: Attributes, op: Callable[..., Array]) -> Judged:
    x, w = required(inputs, 2)
    y = bilinear(x, w, lambda a, b: op(a, b, attributes))
    bias = inputs[2] if len(inputs) > 2 else None
    return y if bias is None else summed(y, _channels(bias, y.value.ndim))


def _gemm(inputs: list[Judged | None], attributes: Attributes) -> Judged:
    a, b = required(inputs, 2)
    a = moved(a, np.transpose) if attributes.get("transA", 0) else a
    b = moved(b, np.transpose) if attributes.get("transB", 0) else b
    y = scaled(bilinear(a, b, np.matmul), float(np.float32(attributes.get("alpha", 1.0))))
    c = inputs[2] if len(inputs) > 2 else None
    return y if c is None else summed(y, scaled(c, float(np.float32(attributes.get("beta", 1.0)))))


# --- batch normalization --------------------------------------------------------------------------------------------


def _batch_norm(inputs: list[Judged | None], attributes: Attributes, opset: int, outputs: int) -> Judged:
    x, *parameters = required(inputs, 5)
    scale, bias, mean, var = (_channels(p, x.value.ndim) for p in parameters)
    epsilon = plain(np.float64(np.float32(attributes.get("epsilon", 1e-5))), x.value.dtype.type, constant=True)
    trains = attributes.get("training_mode", 0) if opset >= 14 else outputs > 1
    if trains:
        if x.roundings:
            raise ValueError("no bound for batch statistics of a value that was moved")
        axes = (0, *range(2, x.value.ndim))
        mean = plain(x.value.mean(axes, keepdims=True), x.value.dtype.type)
        var = plain(x.value.var(axes, keepdims=True), x.value.dtype.type)
    gain = multiplied(scale, reciprocal(square_root(summed(var, epsilon))))
    centred = summed(x, mean, -1)
    return replace(summed(multiplied(centred, gain), bias), dtype=x.dtype)


# --- layout ---------------------------------------------------------------------------------------------------------


def _reshape(inputs: list[Judged | None], attributes: Attributes) -> Judged:
    x, shape = required(inputs, 2)
    old = x.value.shape
    zeros = attributes.get("allowzero", 0)
    new = [old[i] if d == 0 and not zeros else int(d) for i, d in enumerate(shape.value.reshape(-1))]
    return moved(x, lambda a: a.reshape(new))


def _flatten(x: Judged, attributes: Attributes) -> Judged:
    axis = attributes.get("axis", 1)
    axis = axis + x.value.ndim if axis < 0 else axis
    lead = math.prod(x.value.shape[:axis])
    return moved(x, lambda a: a.reshape(lead, -1))


def _unsqueeze(x: Judged, axes: tuple[int, ...] | None) -> Judged:
    if axes is None:
        raise ValueError("Unsqueeze without axes")
    return moved(x, lambda a: np.expand_dims(a, axes))


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
                return [bilinear(*required(inputs, 2), np.matmul)]
            case "Add" | "Sub" | "Mul" | "Div":
                return [_arithmetic(node.op_type, *required(inputs, 2))]
            case "Cast":
                return [self._cast(*required(inputs, 1), attributes["to"])]
            case "Split":
                return ops.split(inputs, attributes, len(node.output))
            case "MaxPool":
                return ops.max_pool(*required(inputs, 1), attributes, len(node.output))
            case "Dropout":
                return _dropout(inputs)
            case _:
                return [_single(node.op_type, inputs, attributes, opset)]

    def _cast(self, x: Judged, to: int) -> Judged:
        if to not in FLOATS:
            raise ValueError(f"Cast to {to}")
        dtype = FLOATS[to]
        if x.constant:  # a constant is what the file says; an activation is not rounded over the reals
            value = round_to(x.value, dtype).astype(self.kind)
            return replace(x, value=value, size=np.abs(value), dtype=dtype)
        return replace(x, dtype=dtype)


def _dropout(inputs: list[Judged | None]) -> list[Judged]:
    (x,) = required(inputs, 1)
    trains = len(inputs) > 2 and inputs[2] is not None and bool(inputs[2].value.any())
    ratio = inputs[1].value if len(inputs) > 1 and inputs[1] is not None else 0.5
    if trains and np.any(ratio != 0):
        raise ValueError("Dropout in training mode is random")
    return [x, plain(np.ones(x.value.shape, bool))]


def _single(op_type: str, inputs: list[Judged | None], attributes: Attributes, opset: int) -> Judged:
    """Evaluate an op with one result that needs to know nothing of the model."""
    match op_type:
        case "Relu" | "Abs" | "LeakyRelu" | "PRelu" | "HardSigmoid" | "Clip":
            return ops.activation(op_type, inputs, attributes)
        case "Sum" | "Max" | "Min":
            return ops.joined(op_type, inputs)
        case "Concat":
            return ops.concat(inputs, attributes)
        case "Slice":
            return ops.cut(inputs, attributes)
        case "Gather":
            return ops.gather(inputs, attributes)
        case "AveragePool":
            return ops.average_pool(*required(inputs, 1), attributes)
        case "Pad":
            return ops.pad(inputs, attributes)
        case "Resize" | "Upsample":
            return ops.resize(inputs, attributes, opset)
        case "Expand":
            return ops.expand(inputs)
        case _ if op_type.startswith(("Reduce", "Global")):
            return ops.reduced(op_type, inputs, attributes)
        case _:
            return _layout(op_type, *required(inputs, 1), inputs, attributes)


def _layout(op_type: str, x: Judged, inputs: list[Judged | None], attributes: Attributes) -> Judged:
    match op_type:
        case "Identity":
            return x
        case "Neg":
            return scaled(x, -1)
        case "Reshape":
            return _reshape(inputs, attributes)
        case "Transpose":
            return moved(x, lambda a: np.transpose(a, attributes.get("perm")))
        case "Flatten":
            return _flatten(x, attributes)
        case "Squeeze":
            axes = axes_of(inputs, attributes)
            return moved(x, lambda a: np.squeeze(a, axes))
        case "Unsqueeze":
            return _unsqueeze(x, axes_of(inputs, attributes))
        case "DepthToSpace":
            return ops.depth_to_space(x, attributes)
        case "SpaceToDepth":
            return ops.space_to_depth(x, attributes)
        case _:
            raise ValueError(f"{op_type} is not covered")


def _arithmetic(op_type: str, a: Judged, b: Judged) -> Judged:
    match op_type:
        case "Add":
            return summed(a, b)
        case "Sub":
            return summed(a, b, -1)
        case "Mul":
            return multiplied(a, b)
        case _:
            return replace(multiplied(a, reciprocal(b)), value=a.value / b.value)


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value
