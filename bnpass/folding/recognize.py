"""Recognize every spelling of a per-channel affine, one node at a time.

BatchNormalization of every version (read by since_version, never by a list of opset numbers),
bnpass SyncBatchNormalization in inference mode, and Add, Sub, Mul, Div, Neg with a constant operand:

    x·c → (c, 0)   x/c → (1/c, 0)   x+c → (1, c)   x-c → (1, -c)   c-x → (-1, c)   -x → (-1, 0)

A constant that varies over more than one axis is no per-channel affine, and one that enlarges the value it
meets is none either. Training mode is never read as inference.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bnpass.errors import Refusal, RefusalId
from bnpass.graph.batch_norm import in_training, is_batch_norm
from bnpass.graph.constants import FLOATS, Constant, broadcast_operand, find, find_float
from bnpass.graph.nodes import Scope, is_standard, label, malformed
from bnpass.graph.shapes import Shapes
from bnpass.semantics.affine import Affine, Array, of_batch_norm, wide


@dataclass(frozen=True, eq=False)
class Site:
    """One node that is an affine.

    Attributes:
        node: The node; its first output is the affine's result.
        data_index: Input slot of the value the affine is applied to.
        affine: Scale and shift, of the rank of ``data`` or uniform; wide.
        dtype: Type of the value it is applied to, if known.
        is_batch_norm: Whether it is spelled as one batch normalization.
        rounding: Relative rounding of its constants against ``affine``: not 0 if bnpass wrote them.
    """

    node: ir.Node
    data_index: int
    affine: Affine
    dtype: ir.DataType | None
    is_batch_norm: bool = False
    rounding: float = 0.0

    @property
    def data(self) -> ir.Value:
        """The value the affine is applied to."""
        value = self.node.inputs[self.data_index]
        if value is None:
            raise ValueError(f"'{label(self.node)}' has lost its data input")
        return value


def recognize(node: ir.Node, scope: Scope, shapes: Shapes) -> Site | Refusal | None:
    """Return the affine that a node is, why it cannot be taken as one, or None if it is something else."""
    found = _recognize(node, scope, shapes)
    if isinstance(found, Site):
        shapes.note_alike(node.outputs[0], found.data)
    return found


def _recognize(node: ir.Node, scope: Scope, shapes: Shapes) -> Site | Refusal | None:
    if is_batch_norm(node):
        return _batch_norm(node, scope, shapes)
    if is_standard(node, "Add", "Sub", "Mul", "Div") and len(node.inputs) == 2:
        return _arithmetic(node, scope, shapes)
    if is_standard(node, "Neg") and node.inputs[0] is not None:
        return _negation(node, node.inputs[0], scope)
    return None


def _negation(node: ir.Node, data: ir.Value, scope: Scope) -> Site | None:
    dtype = data.dtype
    if (dtype is not None and dtype not in FLOATS) or isinstance(find(data, scope), Constant):
        return None
    one = np.ones((), wide(dtype.numpy()) if dtype is not None else np.float64)
    return Site(node, 0, Affine(-one, 0 * one), dtype)


def _batch_norm(node: ir.Node, scope: Scope, shapes: Shapes) -> Site | Refusal:
    where = label(node)
    if (trouble := malformed(node)) is not None:
        return Refusal(RefusalId.UNSUPPORTED_OP, where, trouble)
    if in_training(node, scope.opset):
        return Refusal(RefusalId.TRAINING_MODE, where, "it normalizes with the statistics of the batch (training mode)")
    for extra in node.outputs[1:]:
        if extra.uses() or extra.is_graph_output():
            return Refusal(
                RefusalId.PRODUCER_USED_ELSEWHERE,
                where,
                f"its statistics output '{extra.name}' is used although it is in inference mode",
            )
    data = node.inputs[0] if node.inputs else None
    if data is None or len(node.inputs) < 5:
        return Refusal(RefusalId.UNSUPPORTED_OP, where, "it does not have the five inputs that ONNX asks for")
    parameters = [find_float(v, scope) for v in node.inputs[1:5]]
    for name, parameter in zip(("scale", "B", "input_mean", "input_var"), parameters, strict=True):
        if isinstance(parameter, Refusal):
            return Refusal(parameter.id, where, f"its {name} cannot be read: {parameter.reason}")
    return _of_parameters(node, data, [p for p in parameters if isinstance(p, Constant)], scope, shapes)


def _of_parameters(
    node: ir.Node, data: ir.Value, parameters: list[Constant], scope: Scope, shapes: Shapes
) -> Site | Refusal:
    where = label(node)
    lengths = {p.shape for p in parameters}
    if len(lengths) != 1 or len(parameters[0].shape) != 1:
        told = ", ".join(str(list(p.shape)) for p in parameters)
        return Refusal(
            RefusalId.AXIS_NOT_PROVABLE,
            where,
            f"its parameters have the shapes {told}, not one [C] for all four",
        )
    kind = wide(np.dtype(np.float64)) if _is_double(data, parameters) else np.dtype(np.float64)
    scale, B, mean, var = (p.array().astype(kind) for p in parameters)
    if not all(np.isfinite(a).all() for a in (scale, B, mean, var)):
        return Refusal(RefusalId.INVALID_STATISTICS, where, "its parameters contain NaN or infinity")
    if (var < 0).any():
        worst = int(np.argmin(var))
        return Refusal(
            RefusalId.INVALID_STATISTICS, where, f"input_var is negative ({var[worst]:g} in channel {worst})"
        )
    affine = of_batch_norm(scale, B, mean, var, epsilon(node))
    if not affine.is_finite:
        return Refusal(RefusalId.INVALID_STATISTICS, where, "input_var + epsilon is zero or too small in some channel")
    rank = shapes.rank(data, scope)
    axis = node.attributes.get_int("axis", -1) if node.domain == "bnpass" else 1
    if rank is None or not -rank <= axis < rank:
        told = "unknown" if rank is None else str(rank)
        return Refusal(
            RefusalId.AXIS_NOT_PROVABLE,
            where,
            f"the rank of '{data.name}' is {told}: channel axis {axis} is not there",
        )
    if scope.opset < 9 and not node.attributes.get_int("spatial", 1) and rank != 2:
        return Refusal(RefusalId.UNSUPPORTED_OP, where, "it normalizes each activation (spatial=0), not each channel")
    shape = [1] * rank
    shape[axis] = scale.size
    placed = Affine(affine.scale.reshape(shape), affine.shift.reshape(shape))
    # from version 15 on scale need not have the type of X
    dtype = parameters[0].dtype if data.dtype is None and scope.opset < 15 else data.dtype
    return Site(node, 0, placed, dtype, is_batch_norm=True)


def epsilon(node: ir.Node) -> float:
    """Return epsilon as the float32 number that stands in the file, widened."""
    default = 1e-3 if node.domain == "bnpass" else 1e-5
    return float(np.float32(node.attributes.get_float("epsilon", default)))


def _is_double(data: ir.Value, parameters: list[Constant]) -> bool:
    return data.dtype == ir.DataType.DOUBLE or any(p.dtype == ir.DataType.DOUBLE for p in parameters)


def _arithmetic(node: ir.Node, scope: Scope, shapes: Shapes) -> Site | Refusal | None:
    left, right = node.inputs
    if left is None or right is None or left is right:
        return None
    second, first = find_float(right, scope), find_float(left, scope)
    if isinstance(second, Constant) and not isinstance(first, Constant):
        return _with_constant(node, left, second, scope, shapes, constant_first=False)
    if isinstance(first, Constant) and not isinstance(second, Constant) and node.op_type != "Div":
        return _with_constant(node, right, first, scope, shapes, constant_first=True)
    for refused in (first, second):
        if isinstance(refused, Refusal) and refused.id is RefusalId.OVERRIDABLE_INITIALIZER:
            return Refusal(refused.id, label(node), refused.reason)
    return None


def _with_constant(
    node: ir.Node, data: ir.Value, constant: Constant, scope: Scope, shapes: Shapes, *, constant_first: bool
) -> Site | Refusal | None:
    if sum(d != 1 for d in constant.shape) > 1:
        return None  # varies over several axes: a position embedding, a mask
    array = constant.array()
    aligned = _aligned(node, data, array, scope, shapes, constant_first=constant_first)
    if aligned is None:
        return None
    if isinstance(aligned, Refusal):
        return aligned
    affine = _affine_of(node.op_type, aligned, constant_first=constant_first)
    if not affine.is_finite:
        return Refusal(
            RefusalId.INVALID_STATISTICS,
            label(node),
            f"its constant '{constant.value.name}' gives NaN or infinity",
        )
    return Site(node, 1 if constant_first else 0, affine, constant.dtype)


def _aligned(
    node: ir.Node, data: ir.Value, array: Array, scope: Scope, shapes: Shapes, *, constant_first: bool
) -> Array | Refusal | None:
    """Give the constant the rank of the data, or say why that cannot be proved; None if it enlarges the data."""
    if array.ndim == 0:
        return array
    dims = shapes.near(data, scope)
    if (
        dims is not None
        and len(dims) >= array.ndim
        and any(c != 1 and d is None for c, d in zip(array.shape[::-1], dims[::-1], strict=False))
    ):
        dims = shapes.dims(data, scope)
    if dims is None:
        return Refusal(
            RefusalId.AXIS_NOT_PROVABLE,
            label(node),
            f"the shape of '{data.name}' is unknown, so the axis is too",
        )
    if scope.opset < 7 and not constant_first:
        placed = broadcast_operand(node, array, len(dims), scope)
        if placed is None:
            return None
        array = placed
    if array.ndim > len(dims):
        return None
    array = array.reshape((1,) * (len(dims) - array.ndim) + array.shape)
    for axis, length in enumerate(array.shape):
        if length != 1 and dims[axis] != length:
            if dims[axis] == 1:
                return None
            return Refusal(
                RefusalId.AXIS_NOT_PROVABLE,
                label(node),
                f"axis {axis} of '{data.name}' is not known to have length {length}, that of the constant",
            )
    return array.reshape(()) if array.size == 1 else array


def _affine_of(op_type: str, c: Array, *, constant_first: bool) -> Affine:
    one, zero = np.ones((), c.dtype), np.zeros((), c.dtype)
    with np.errstate(all="ignore"):  # division by zero is refused by the caller
        match op_type:
            case "Mul":
                return Affine(c, zero)
            case "Div":
                return Affine(one / c, zero)
            case "Add":
                return Affine(one, c)
            case _:
                return Affine(-one, c) if constant_first else Affine(one, -c)
