"""Find the constant behind a value.

A constant is an initializer that nobody can override, or a Constant node, or either of them behind ops
that only rearrange it (Identity, Cast, Reshape, Flatten, Squeeze, Unsqueeze, Transpose) or compute with
constants alone (Add, Sub, Mul, Div, Neg, Reciprocal, Sqrt, Pow). Arithmetic is done wide, so that a
batch normalization spelled out in single ops loses nothing on the way.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bnpass.errors import Refusal, RefusalId
from bnpass.graph.nodes import Scope, is_standard, label, operand
from bnpass.semantics.affine import Array, round_once, wide

MAX_DEPTH = 32
"""Longest chain of ops behind which a constant is looked for."""

MAX_COMPUTED_ELEMENTS = 1 << 26
"""Largest constant that arithmetic may produce: broadcasting in a hostile file could fill the memory."""

FLOATS = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE})

_QUANTIZED = ("DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear")
_LAYOUT = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")
_ARITHMETIC: dict[str, Callable[..., Array]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Neg": np.negative,
    "Reciprocal": lambda x: 1 / x,
    "Sqrt": np.sqrt,
    "Pow": np.power,
}


@dataclass(frozen=True, eq=False)
class Constant:
    """A constant tensor.

    Attributes:
        value: The graph value it stands behind.
        dtype: The element type of that value.
        shape: Its static shape.
        source: The tensor, still unread, or numbers computed from constants, held wide.
    """

    value: ir.Value
    dtype: ir.DataType
    shape: tuple[int, ...]
    source: ir.TensorProtocol | Array

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes up in a model."""
        return math.prod(self.shape) * self.dtype.numpy().itemsize

    @contextmanager
    def reading(self) -> Iterator[Array]:
        """Give the numbers for a while; file-backed memory is handed back afterwards."""
        if isinstance(self.source, np.ndarray):
            yield self.source
            return
        try:
            yield np.asarray(self.source.numpy())
        finally:
            if isinstance(self.source, ir.ExternalTensor):
                with suppress(BufferError):  # onnx_ir's own minds that the caller still holds the numbers
                    self.source.release()

    def array(self) -> Array:
        """Return a copy of the numbers, wide."""
        with self.reading() as numbers:
            return numbers.astype(wide(self.dtype.numpy()))

    def argument(self) -> Array:
        """Return a copy of the numbers: floats wide, integers as they are."""
        return self.array() if self.dtype in FLOATS else np.array(self.integers(), np.int64).reshape(self.shape)

    def integers(self) -> tuple[int, ...]:
        """Return the numbers of a constant that holds shapes or axes."""
        with self.reading() as numbers:
            return tuple(int(i) for i in numbers.reshape(-1))


Memo = dict[ir.Value, "Constant | Refusal"]


def find(value: ir.Value, scope: Scope, depth: int = 0, memo: Memo | None = None) -> Constant | Refusal:
    """Return the constant behind ``value``, or why there is none; ``memo`` holds what one search has found."""
    memo = {} if memo is None else memo
    if value not in memo:
        memo[value] = _find(value, scope, depth, memo)
    return memo[value]


def _find(value: ir.Value, scope: Scope, depth: int, memo: Memo) -> Constant | Refusal:
    if value.is_initializer() and value.const_value is not None:
        if value.is_graph_input() and scope.has_defaults:
            return Refusal(
                RefusalId.OVERRIDABLE_INITIALIZER,
                str(value.name),
                f"'{value.name}' is an initializer that is also an input, so a caller may override it",
            )
        return _constant(value, value.const_value)
    node = value.producer()
    if node is None:
        return _not_constant(value, f"'{value.name}' is an input")
    if depth > MAX_DEPTH:
        return _not_constant(value, f"'{value.name}' lies behind more than {MAX_DEPTH} ops")
    if node.op_type in _QUANTIZED:
        return Refusal(
            RefusalId.QUANTIZED_WEIGHT,
            label(node),
            f"'{value.name}' comes from {node.op_type} '{label(node)}': quantized constants stay as they are",
        )
    if is_standard(node, "Constant"):
        return _constant_node(value, node)
    try:
        if is_standard(node, "Cast", *_LAYOUT):
            return _rearranged(value, node, scope, depth, memo)
        if is_standard(node, *_ARITHMETIC):
            return _computed(value, node, scope, depth, memo)
    except (
        ValueError,
        IndexError,
        TypeError,
    ) as error:  # arguments that do not fit the shape of the constant
        return _not_constant(value, f"{node.op_type} '{label(node)}' cannot be evaluated ({error})")
    return _not_constant(value, f"'{value.name}' is computed by {node.op_type} '{label(node)}'")


def find_float(value: ir.Value | None, scope: Scope) -> Constant | Refusal:
    """Return the floating-point constant behind ``value``, or why there is none."""
    if value is None:
        return Refusal(RefusalId.NON_CONSTANT_PARAMETER, "", "a required input is left out")
    found = find(value, scope)
    if isinstance(found, Constant) and found.dtype not in FLOATS:
        return _not_constant(value, f"'{value.name}' is a constant of type {found.dtype.name}, not a float")
    return found


def broadcast_operand(node: ir.Node, array: Array, rank: int | None, scope: Scope) -> Array | None:
    """Align the second operand of an arithmetic op before opset 7 (attributes axis, broadcast) to ``rank``."""
    if scope.opset >= 7 or array.ndim == 0:
        return array
    axis = node.attributes.get_int("axis")
    if not node.attributes.get_int("broadcast", 0) or axis is None:
        return array
    if rank is None:
        return None
    axis = axis + rank if axis < 0 else axis
    behind = rank - axis - array.ndim
    return array.reshape(array.shape + (1,) * behind) if behind >= 0 and axis >= 0 else None


def _not_constant(value: ir.Value, why: str) -> Refusal:
    return Refusal(RefusalId.NON_CONSTANT_PARAMETER, str(value.name), f"{why}, not a constant")


def _constant(value: ir.Value, tensor: ir.TensorProtocol) -> Constant:
    return Constant(value, tensor.dtype, tuple(tensor.shape.numpy()), tensor)


def _of_array(value: ir.Value, dtype: ir.DataType, array: Array) -> Constant:
    return Constant(value, dtype, array.shape, array)


def _constant_node(value: ir.Value, node: ir.Node) -> Constant | Refusal:
    attributes = node.attributes
    if "value" in attributes and not attributes["value"].is_ref():
        return _constant(value, attributes["value"].as_tensor())
    for name, kind in (("value_float", ir.DataType.FLOAT), ("value_int", ir.DataType.INT64)):
        for spelled in (name, name + "s"):
            if spelled in attributes and not attributes[spelled].is_ref():
                return _of_array(value, kind, np.array(attributes[spelled].value, kind.numpy()))
    return _not_constant(value, f"Constant '{label(node)}' holds no dense tensor of numbers")


def _rearranged(value: ir.Value, node: ir.Node, scope: Scope, depth: int, memo: Memo) -> Constant | Refusal:
    source = node.inputs[0]
    if source is None:
        return _not_constant(value, f"{node.op_type} '{label(node)}' has no input")
    found = find(source, scope, depth + 1, memo)
    if isinstance(found, Refusal):
        return found
    if node.op_type == "Identity":
        return Constant(value, found.dtype, found.shape, found.source)
    with found.reading() as numbers:
        if node.op_type == "Cast":
            return _cast(value, node, numbers)
        try:
            target = rearrange(node, numbers, scope, depth + 1)
        except (ValueError, IndexError, OverflowError):
            return _not_constant(value, f"{node.op_type} '{label(node)}' has arguments that do not fit")
    if target is None:
        return _not_constant(value, f"{node.op_type} '{label(node)}' has no constant arguments")
    return _of_array(value, found.dtype, target)


def _cast(value: ir.Value, node: ir.Node, numbers: Array) -> Constant | Refusal:
    attribute = node.attributes.get("to")
    if attribute is None or attribute.is_ref() or not isinstance(attribute.value, int):
        return _not_constant(value, f"Cast '{label(node)}' has no readable target type")
    to = ir.DataType(attribute.as_int())
    if to not in FLOATS:
        return _not_constant(value, f"Cast '{label(node)}' goes to {to.name}")
    return _of_array(value, to, round_once(numbers.copy(), to.numpy()))


def rearrange(node: ir.Node, numbers: Array, scope: Scope, depth: int = 0) -> Array | None:
    """Apply one layout op to an array, as ONNX defines it; None if its arguments are not constant.

    Raises:
        ValueError, IndexError, OverflowError: They do not fit the array.
    """
    match node.op_type:
        case "Transpose":
            return np.transpose(numbers, node.attributes.get_ints("perm"))
        case "Flatten":
            axis = node.attributes.get_int("axis", 1)
            axis = axis + numbers.ndim if axis < 0 else axis
            return numbers.reshape(math.prod(numbers.shape[:axis]), -1)
        case "Reshape":
            return _reshape(node, numbers, scope, depth)
        case "Squeeze" | "Unsqueeze":
            axes = integer_argument(node, "axes", scope, depth)
            if axes == () or (axes is None and node.op_type == "Unsqueeze"):
                return None  # whether no axes are all of length 1, runtimes do not agree
            if node.op_type == "Unsqueeze":
                return np.expand_dims(numbers, axes or ())
            return np.squeeze(numbers, axes)
        case _:
            return numbers


def integer_argument(node: ir.Node, name: str, scope: Scope, depth: int = 0) -> tuple[int, ...] | None:
    """Return shape or axes of a layout op: an attribute in early opsets, the second input later."""
    if (attribute := node.attributes.get(name)) is not None:
        return None if attribute.is_ref() else tuple(attribute.as_ints())
    argument = operand(node, 1)
    found = find(argument, scope, depth) if argument is not None else None
    return found.integers() if isinstance(found, Constant) else None


def _reshape(node: ir.Node, numbers: Array, scope: Scope, depth: int) -> Array | None:
    shape = integer_argument(node, "shape", scope, depth)
    if shape is None:
        return None
    if not node.attributes.get_int("allowzero", 0):
        shape = tuple(numbers.shape[i] if d == 0 and i < numbers.ndim else d for i, d in enumerate(shape))
    return numbers.reshape(shape)


def _computed(value: ir.Value, node: ir.Node, scope: Scope, depth: int, memo: Memo) -> Constant | Refusal:
    operands: list[Array] = []
    dtype = ir.DataType.FLOAT
    for operand_value in [v for v in node.inputs if v is not None]:
        one = find(operand_value, scope, depth + 1, memo)
        if isinstance(one, Refusal):
            return one
        if one.dtype not in FLOATS:
            return _not_constant(value, f"'{one.value.name}' is not a float")
        dtype = dtype if operands else one.dtype  # that of the first operand
        operands.append(one.array())
    if len(operands) == 2:
        aligned = broadcast_operand(node, operands[1], operands[0].ndim, scope)
        if aligned is None:
            return _not_constant(value, f"{node.op_type} '{label(node)}' broadcasts in a way that is not defined")
        operands[1] = aligned
    if math.prod(np.broadcast_shapes(*(o.shape for o in operands))) > MAX_COMPUTED_ELEMENTS:
        return _not_constant(value, f"{node.op_type} '{label(node)}' produces too many numbers")
    with np.errstate(all="ignore"):  # NaN and Inf are refused where the numbers are used
        result = np.asarray(_ARITHMETIC[node.op_type](*operands), wide(dtype.numpy()))
    return _of_array(value, dtype, result)
