"""Write what a quantized weight and its bias become: into their DequantizeLinear, or into one of their own.

A DequantizeLinear that others read stays for them; the op gets a copy. Integers that stay are not written.
"""

import numpy as np
import onnx_ir as ir

from bnpass.folding.linear import Linear
from bnpass.folding.quantized.result import NewBias, NewWeight
from bnpass.folding.write import Writer
from bnpass.graph.constants import Constant, find
from bnpass.graph.nodes import Scope, label, replace_input
from bnpass.semantics.affine import Array


def write_weight(linear: Linear, new: NewWeight, writer: Writer, scope: Scope) -> None:
    """Put scale, zero point and integers into the nodes that make the weight."""
    node = _own(linear.node, linear.weight_index, writer)
    if new.floats is None:
        _put(node, 0, new.integers, writer, scope)
        _write_scale(node, new.scale, new.zero, new.axis, writer, scope)
        return
    quantizer = _own(node, 0, writer)
    _put(quantizer, 0, new.floats, writer, scope)
    for slot in range(1, len(node.inputs)):
        if node.inputs[slot] in quantizer.inputs:  # of one reader, it can be changed in place
            node.replace_input_with(slot, None)
    _write_scale(quantizer, new.scale, new.zero, new.axis, writer, scope)
    for slot, value in enumerate(quantizer.inputs):
        if slot > 0 and value is not None:
            replace_input(node, slot, value)
    if new.axis is not None:
        node.attributes["axis"] = ir.AttrInt64("axis", new.axis)


def write_bias(linear: Linear, index: int, new: NewBias, writer: Writer, scope: Scope) -> None:
    """Put scale and integers into the node that makes the bias."""
    node = _own(linear.node, index, writer)
    _put(node, 0, new.integers, writer, scope)
    _write_scale(node, new.scale, np.zeros(new.scale.shape, np.int32), 0 if new.scale.ndim else None, writer, scope)


def _own(user: ir.Node, index: int, writer: Writer) -> ir.Node:
    """Return the node that makes an input for one reader alone, a copy if it has more of them."""
    value = user.inputs[index]
    node = value.producer() if value is not None else None
    if value is None or node is None:
        raise ValueError(f"input {index} of '{label(user)}' is made by no node")
    if len(value.uses()) == 1 and not value.is_graph_output():
        return node
    name = writer.unique(f"{label(node)}/{label(user)}")
    copy = ir.Node("", node.op_type, node.inputs, list(node.attributes.values()), name=name)
    result = copy.outputs[0]
    result.name, result.shape, result.type = writer.unique(f"{name}/output"), value.shape, value.type
    user.prepend(copy)
    replace_input(user, index, result)
    return copy


def _write_scale(node: ir.Node, scale: Array, zero: Array, axis: int | None, writer: Writer, scope: Scope) -> None:
    _put(node, 1, scale, writer, scope)
    if (len(node.inputs) > 2 and node.inputs[2] is not None) or zero.any():
        _put(node, 2, zero, writer, scope)
    if axis is not None:
        node.attributes["axis"] = ir.AttrInt64("axis", axis)


def _put(node: ir.Node, index: int, array: Array, writer: Writer, scope: Scope) -> None:
    """Put a constant into a slot, unless it says so already."""
    old = node.inputs[index] if index < len(node.inputs) else None
    found = find(old, scope) if old is not None else None
    if isinstance(found, Constant) and found.shape == array.shape:
        with found.reading() as numbers:
            if np.array_equal(numbers.astype(array.dtype), array):
                return
    writer.parameter(node, index, array, f"{label(node)}/{('data', 'scale', 'zero')[index]}", scope)
