"""A copy of a model whose weights are moved by one unit in the last place, up or down at random.

What its outputs move is the unit in which a fold, which rounds each weight once, may differ. Only operands
that are multiplied or added are moved: a scale of Resize or a bound of Clip is exact by intention, and a
zero stays zero. Of quantized weights the scale is moved; of a quantized bias, int32, the integers are, by one:
a fold rounds them to half a unit. Activations that are rounded to integers: see :mod:`.ties`.
"""

import ml_dtypes
import numpy as np
import onnx_ir as ir

from bnpass.verification.ties import move_ties
from bnpass.verification.windows import Array

__all__ = ["perturbed"]

_WEIGHTS = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2, 3, 4),
    "SyncBatchNormalization": (1, 2, 3, 4),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "RMSNormalization": (1,),
    "PRelu": (1,),
    "LSTM": (1, 2, 3),
    "GRU": (1, 2, 3),
    "RNN": (1, 2, 3),
}
# Scalars here may be sizes in disguise: a factor on the way to the sizes of Resize.
_ARITHMETIC = frozenset({"Mul", "Add", "Sub", "Div"})
_CARRIERS = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Cast"})

_BITS: dict[np.dtype[np.generic], type[np.unsignedinteger]] = {
    np.dtype(np.float16): np.uint16,
    np.dtype(ml_dtypes.bfloat16): np.uint16,
    np.dtype(np.float32): np.uint32,
    np.dtype(np.float64): np.uint64,
}


def _is_weight(value: ir.Value, size: int) -> bool:
    """Tell whether every use of a constant multiplies or adds it."""
    for node, index in value.uses():
        if node.op_type in _CARRIERS and index == 0:
            if not _is_weight(node.outputs[0], size):
                return False
        elif node.op_type in _ARITHMETIC:
            if size < 2:
                return False
        elif node.op_type == "DequantizeLinear":
            if index != 1 or not _is_constant(node.inputs[0]):
                return False
        elif index not in _WEIGHTS.get(node.op_type, ()):
            return False
    return not value.is_graph_output()


def _is_constant(value: ir.Value | None) -> bool:
    maker = value.producer() if value is not None else None
    return value is not None and (value.is_initializer() or (maker is not None and maker.op_type == "Constant"))


def _is_quantized_bias(value: ir.Value) -> bool:
    """Tell whether every use of a constant turns it into a float."""
    uses = value.uses()
    return bool(uses) and all(node.op_type == "DequantizeLinear" and index == 0 for node, index in uses)


def move_one_ulp(array: Array, rng: np.random.Generator) -> Array:
    """Move every finite non-zero element to one of its two neighbours.

    Args:
        array: Any of the four float types.
        rng: Says which.

    Returns:
        A new array.

    Example:
        >>> moved = move_one_ulp(np.float32([1.0, 0.0]), np.random.default_rng(0))
        >>> bool(moved[0] != 1), float(moved[1])
        (True, 0.0)

    """
    bits = np.ascontiguousarray(array).reshape(array.shape).view(_BITS[array.dtype])  # a scalar stays one
    up = rng.integers(0, 2, array.shape, dtype=np.int8).astype(bool)
    moved: Array = np.where(up, bits + 1, bits - 1).astype(bits.dtype).view(array.dtype)
    with np.errstate(invalid="ignore"):
        keep = ~np.isfinite(array) | (array == 0) | ~np.isfinite(moved)
    return np.where(keep, array, moved)


def _move_one_unit(array: Array, rng: np.random.Generator) -> Array:
    """Move every integer to one of its two neighbours, those at the ends inwards."""
    limits = np.iinfo(array.dtype)
    moved = np.clip(array.astype(np.int64) + rng.choice([-1, 1], array.shape), limits.min, limits.max)
    return np.asarray(moved.astype(array.dtype))


def perturbed(model: ir.Model, seed: int) -> ir.Model | None:
    """Return a copy with moved weights, or None if there is no weight to move.

    Args:
        model: The model; it is not changed.
        seed: Of the directions; even ones round activations up, odd ones down.

    Returns:
        The copy.

    """
    copy = model.clone()
    rng = np.random.default_rng(seed)
    found = move_ties(copy, up=seed % 2 == 0)
    for value in copy.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype.numpy() in _BITS and _is_weight(value, tensor.size):
            value.const_value = ir.tensor(move_one_ulp(tensor.numpy(), rng), name=value.name)
            found = True
        elif tensor is not None and tensor.dtype is ir.DataType.INT32 and _is_quantized_bias(value):
            value.const_value = ir.tensor(_move_one_unit(tensor.numpy(), rng), name=value.name)
            found = True
    for scope in (copy.graph, *copy.functions.values()):
        for node in scope:
            attribute = node.attributes.get("value")
            if node.op_type != "Constant" or attribute is None or attribute.is_ref():
                continue
            constant = attribute.as_tensor()
            if constant.dtype.numpy() in _BITS and _is_weight(node.outputs[0], constant.size):
                moved = move_one_ulp(constant.numpy(), rng)
                node.attributes["value"] = ir.AttrTensor("value", ir.tensor(moved))
                found = True
    return copy if found else None
