"""Read the constant behind a DequantizeLinear, by its integers.

    y = (q - zero)·scale        scale, zero: one number, or a vector along ``axis``

q is a constant of an integer type, or ``QuantizeLinear(floats, scale, zero)`` with the same scale and zero: a model
that was trained with quantization in sight. Blocks, float8 and int32 weights are refused.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bnpass.errors import Refusal, RefusalId
from bnpass.graph.constants import FLOATS, Constant, find, find_float
from bnpass.graph.nodes import Scope, described, is_standard, label, malformed, operand
from bnpass.semantics.affine import Array

_WEIGHTS = frozenset({
    ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.INT4, ir.DataType.UINT4,
})  # fmt: skip
_BIASES = frozenset({ir.DataType.INT32})


@dataclass(frozen=True, eq=False)
class Stored:
    """The inputs of a DequantizeLinear.

    Attributes:
        node: The DequantizeLinear.
        quantizer: The QuantizeLinear before it, if the integers are made from floats at run time.
        source: The integers, or those floats.
        kind: Type of the integers.
        scale: Wide; shape () or [length of ``axis``].
        zero: The zero point, likewise.
        axis: What scale and zero run along, from the front; None if they are one number.
    """

    node: ir.Node
    quantizer: ir.Node | None
    source: Constant
    kind: ir.DataType
    scale: Array
    zero: Array
    axis: int | None

    def integers(self) -> Array:
        """Return q as it meets the DequantizeLinear."""
        with self.source.reading() as numbers:
            if self.quantizer is None:
                return numbers.astype(np.int32)
            return quantized(numbers.astype(np.float32), self.scale.astype(np.float32), self.zero, self.axis, self.kind)

    def real(self) -> Array:
        """Return ``(q - zero)·scale``, wide."""
        q = self.integers()
        return np.asarray((q - along(self.zero, self.axis, q.ndim)) * along(self.scale, self.axis, q.ndim))


@dataclass(frozen=True, eq=False)
class Dequantized(Constant):
    """A constant that a DequantizeLinear makes.

    Attributes:
        stored: What it makes it of.
    """

    stored: Stored

    @property
    def nbytes(self) -> int:
        """Bytes that its integers, or the floats before them, take up in a model."""
        return self.stored.source.nbytes


def along(vector: Array, axis: int | None, rank: int) -> Array:
    """Lay a vector along one axis, ready to broadcast; one number stays one."""
    return vector if axis is None else vector.reshape([-1 if a == axis else 1 for a in range(rank)])


def quantized(x: Array, scale: Array, zero: Array, axis: int | None, kind: ir.DataType) -> Array:
    """Return what QuantizeLinear makes of floats: ``saturate(round(x / scale) + zero)``, ties to even."""
    with np.errstate(over="ignore"):
        steps = np.rint(x / along(scale, axis, x.ndim))
    q = np.clip(steps + along(zero, axis, x.ndim), int(kind.min), int(kind.max))
    return np.asarray(q.astype(np.int32))


def find_weight(value: ir.Value | None, scope: Scope) -> Constant | Refusal:
    """Return the floating-point constant behind ``value``, dequantized ones included, or why there is none."""
    return _find(value, scope, _WEIGHTS)


def find_bias(value: ir.Value | None, scope: Scope) -> Constant | Refusal:
    """Return the same for the bias of an op with quantized weights."""
    return _find(value, scope, _BIASES)


def _find(value: ir.Value | None, scope: Scope, kinds: frozenset[ir.DataType]) -> Constant | Refusal:
    node = value.producer() if value is not None else None
    if value is None or node is None or node.domain != "" or node.op_type != "DequantizeLinear":
        return find_float(value, scope)
    trouble = malformed(node)
    if trouble is not None or len(node.inputs) < 2:
        return Refusal(RefusalId.UNSUPPORTED_OP, label(node), trouble or f"{described(node)} has no scale")
    source = _source(node, scope)
    if isinstance(source, Refusal):
        return source
    constant, quantizer, kind = source
    if kind not in kinds:
        return _refuse(node, f"makes it of {kind.name}, not of one of {', '.join(sorted(k.name for k in kinds))}")
    read = _parameters(node, constant.shape, kind, scope)
    if isinstance(read, Refusal):
        return read
    dtype, scale, zero, axis = read
    if quantizer is not None:
        other = _parameters(quantizer, constant.shape, kind, scope)
        if isinstance(other, Refusal):
            return other
        same = other[3] == axis and np.array_equal(other[1], scale) and np.array_equal(other[2], zero)
        if not same or {other[0], constant.dtype, dtype} != {ir.DataType.FLOAT}:
            return _refuse(node, f"and {described(quantizer)} have other scales, zero points, or types than float")
    stored = Stored(node, quantizer, constant, kind, scale, zero, axis)
    lazy = ir.LazyTensor(lambda: ir.Tensor(stored.real()), ir.DataType.DOUBLE, ir.Shape(constant.shape))
    return Dequantized(value, dtype, constant.shape, lazy, stored)


def _source(node: ir.Node, scope: Scope) -> tuple[Constant, ir.Node | None, ir.DataType] | Refusal:
    """Return what a DequantizeLinear reads: integers, or floats behind a QuantizeLinear; and the type it reads."""
    value = node.inputs[0]
    if value is None:
        return Refusal(RefusalId.UNSUPPORTED_OP, label(node), f"{described(node)} has no input")
    maker = value.producer()
    if maker is None or not is_standard(maker, "QuantizeLinear"):
        found = find(value, scope)
        return found if isinstance(found, Refusal) else (found, None, found.dtype)
    floats = find_float(maker.inputs[0], scope)
    if isinstance(floats, Refusal):
        return _refuse(node, f"reads what {described(maker)} makes at run time")
    zero = operand(maker, 2)
    made = find(zero, scope) if zero is not None else None
    if isinstance(made, Refusal):
        return made
    kind = made.dtype if made is not None else ir.DataType(maker.attributes.get_int("output_dtype", 0) or 2)
    return floats, maker, kind


def _parameters(
    node: ir.Node, shape: tuple[int, ...], kind: ir.DataType, scope: Scope
) -> tuple[ir.DataType, Array, Array, int | None] | Refusal:
    """Return type and numbers of the scale, the zero point, and the axis of either."""
    for name in ("block_size", "output_dtype", "precision"):
        number = node.attributes.get_int(name, 0)
        if number and not (name == "output_dtype" and node.op_type == "QuantizeLinear" and number == kind.value):
            return _refuse(node, f"has {name} {number}")
    found = find_float(node.inputs[1], scope)
    if isinstance(found, Refusal):
        return Refusal(found.id, label(node), f"the scale of {described(node)} is kept: {found.reason}")
    if found.dtype not in FLOATS or len(found.shape) > 1:
        return _refuse(node, f"has a scale of shape {list(found.shape)}")
    scale = found.array().astype(np.float64)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        told = f"{described(node)} has a scale that is not a positive number"
        return Refusal(RefusalId.INVALID_STATISTICS, label(node), told)
    zero = _zero(node, kind, scope)
    if isinstance(zero, Refusal):
        return zero
    if scale.size == 1:
        return (found.dtype, scale.reshape(()), zero.reshape(()), None) if zero.size == 1 else _misfit(node, shape)
    rank, axis = len(shape), node.attributes.get_int("axis", 1)
    if not -rank <= axis < rank or shape[axis] != scale.size or zero.size not in (1, scale.size) or scope.opset < 13:
        return _misfit(node, shape)
    return found.dtype, scale, np.broadcast_to(zero.reshape(-1), scale.shape), axis % rank


def _zero(node: ir.Node, kind: ir.DataType, scope: Scope) -> Array | Refusal:
    value = operand(node, 2)
    if value is None:
        return np.zeros((), np.int32)
    found = find(value, scope)
    if isinstance(found, Refusal):
        return Refusal(found.id, label(node), f"the zero point of {described(node)} is kept: {found.reason}")
    if found.dtype is not kind:
        return _refuse(node, f"has a zero point of type {found.dtype.name} for {kind.name}")
    with found.reading() as numbers:
        return numbers.astype(np.int32)


def _misfit(node: ir.Node, shape: tuple[int, ...]) -> Refusal:
    told = f"has a scale or zero point that does not fit its axis in the shape {list(shape)}"
    return _refuse(node, told)


def _refuse(node: ir.Node, why: str) -> Refusal:
    return Refusal(RefusalId.QUANTIZED_WEIGHT, label(node), f"{described(node)} {why}")
