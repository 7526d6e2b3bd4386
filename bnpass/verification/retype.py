"""Change one floating point type of a whole model into another, everywhere it is written.

Weights, constants, the types of values, and attributes that name a type. Used for the float64 reference
and for bfloat16 models, which ONNX Runtime on CPU can hardly run as they are.
"""

from collections.abc import Iterable, Iterator

import ml_dtypes
import numpy as np
import onnx_ir as ir

from bnpass.verification.windows import Array

__all__ = ["NARROW_FLOATS", "cast_array", "retype", "uses_type"]

NARROW_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

_NUMPY = {
    ir.DataType.FLOAT: np.dtype(np.float32),
    ir.DataType.FLOAT16: np.dtype(np.float16),
    ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    ir.DataType.DOUBLE: np.dtype(np.float64),
}

# Integer attributes that name the type of an output. `stash_type` and the like are not among them:
# they do not change a type that another operator sees.
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "output_datatype"})


def cast_array(array: Array, sources: Iterable[ir.DataType], target: ir.DataType) -> Array:
    """Return the array in `target`'s type if it is of one of the `sources`."""
    if array.dtype in {_NUMPY[source] for source in sources}:
        return array.astype(_NUMPY[target])
    return array


def _all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    scopes: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for scope in scopes:
        yield from ir.traversal.RecursiveGraphIterator(scope)


def uses_type(model: ir.Model, dtype: ir.DataType) -> bool:
    """Tell whether a weight, a value or a cast of the model is of this type."""
    for graph in model.graphs():
        values = [*graph.inputs, *graph.initializers.values()]
        if any(value.dtype is dtype for value in values):
            return True
    for node in _all_nodes(model):
        if any(value.dtype is dtype for value in node.outputs):
            return True
        for attribute in node.attributes.values():
            if attribute.is_ref():
                continue
            if attribute.type is ir.AttributeType.TENSOR and attribute.as_tensor().dtype is dtype:
                return True
            if _names_type(attribute) and attribute.as_int() == int(dtype):
                return True
    return False


def _names_type(attribute: ir.Attr) -> bool:
    return attribute.type is ir.AttributeType.INT and attribute.name in _TYPE_ATTRIBUTES


def retype(model: ir.Model, sources: frozenset[ir.DataType], target: ir.DataType) -> None:
    """Turn `sources` into `target` in the given model, which is changed.

    Args:
        model: A model of one's own, for example a clone.
        sources: The types to replace.
        target: The type to put there.

    """
    for graph in model.graphs():
        for value in (*graph.inputs, *graph.initializers.values()):
            _retype_value(value, sources, target)
    for node in _all_nodes(model):
        changed = [_retyped(node, attribute, sources, target) for attribute in node.attributes.values()]
        if _zeros_without_type(node) and ir.DataType.FLOAT in sources:
            changed.append(ir.AttrTensor("value", ir.tensor(np.zeros(1, dtype=_NUMPY[target]))))
        node.attributes.clear()
        node.attributes.update({attribute.name: attribute for attribute in changed})
        for value in node.outputs:
            _retype_value(value, sources, target)


def _zeros_without_type(node: ir.Node) -> bool:
    return node.op_type == "ConstantOfShape" and "value" not in node.attributes


def _retype_value(value: ir.Value, sources: frozenset[ir.DataType], target: ir.DataType) -> None:
    if isinstance(value.type, ir.TensorType) and value.type.dtype in sources:
        value.type = ir.TensorType(target)
    tensor = value.const_value
    if value.is_initializer() and tensor is not None and tensor.dtype in sources:
        value.const_value = ir.tensor(tensor.numpy().astype(_NUMPY[target]), name=value.name)


def _retyped(node: ir.Node, attribute: ir.Attr, sources: frozenset[ir.DataType], target: ir.DataType) -> ir.Attr:
    if attribute.is_ref():
        return attribute
    if attribute.type is ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        if tensor.dtype in sources:
            return ir.AttrTensor(attribute.name, ir.tensor(tensor.numpy().astype(_NUMPY[target])))
    elif _names_type(attribute) and attribute.as_int() in {int(source) for source in sources}:
        return ir.AttrInt64(attribute.name, int(target))
    elif node.op_type == "Constant" and ir.DataType.FLOAT in sources:
        if attribute.name == "value_float":
            value = np.float32(attribute.as_float())
            return ir.AttrTensor("value", ir.tensor(np.array(value, dtype=_NUMPY[target])))
        if attribute.name == "value_floats":
            values = np.array(attribute.as_floats(), dtype=np.float32)
            return ir.AttrTensor("value", ir.tensor(values.astype(_NUMPY[target])))
    return attribute
