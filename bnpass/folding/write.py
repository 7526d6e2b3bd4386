"""Write what was planned into the graph: weights, biases, and the few new nodes.

Names are kept where a constant belongs to one node alone; a shared one is cloned under a readable new name.
Model-local functions hold no initializers, so there the numbers become Constant nodes.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bnpass.folding.absorb import Absorption, Numbers
from bnpass.graph.nodes import Scope, label, operand, replace_input
from bnpass.semantics.affine import Array, round_once


class Writer:
    """Puts constants and nodes into one model, under names that nothing else has."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._names: set[str] | None = None

    def unique(self, name: str) -> str:
        """Return ``name``, with a number behind it if it is taken."""
        if self._names is None:
            self._names = _all_names(self._model)
        candidate, number = name, 1
        while candidate in self._names:
            candidate, number = f"{name}_{number}", number + 1
        self._names.add(candidate)
        return candidate

    def weight(self, absorption: Absorption, computed: Array | None, scope: Scope) -> None:
        """Put the new weight into its slot; without ``computed`` it is computed when it is written."""
        linear = absorption.linear
        value = operand(linear.node, linear.weight_index)
        if value is not None and is_private(value, scope):
            value.const_value = absorption.tensor(value.name, computed)
            return
        name = self.unique(f"{value.name if value is not None else 'weight'}/{label(linear.node)}")
        new = self._constant(absorption.tensor(name, computed), linear.node, scope)
        replace_input(linear.node, linear.weight_index, new)

    def bias(self, absorption: Absorption, numbers: Numbers, scope: Scope) -> None:
        """Put the new bias into its slot, if it changes."""
        slot, node = absorption.linear.bias, absorption.linear.node
        if slot is None or numbers.bias is None:
            return
        self.parameter(node, slot.index, numbers.bias, f"{label(node)}/bias", scope)
        if node.op_type == "Gemm":
            if slot.factor != np.float32(node.attributes.get_float("beta", 1.0)):
                node.attributes["beta"] = ir.AttrFloat32("beta", slot.factor)
            if scope.opset < 7:
                node.attributes["broadcast"] = ir.AttrInt64("broadcast", 1)

    def parameter(self, node: ir.Node, index: int, array: Array, name: str, scope: Scope) -> None:
        """Put a small constant into an input slot: in place if it is the node's own, else as a new one."""
        self.tensor(node, index, ir.Tensor(array), name, scope)

    def tensor(self, node: ir.Node, index: int, tensor: ir.TensorProtocol, name: str, scope: Scope) -> None:
        """Put a tensor of any shape into an input slot, likewise; its name is given here."""
        old = operand(node, index)
        if old is not None and is_private(old, scope):
            tensor.name = old.name
            old.const_value = tensor
            old.shape = ir.Shape(tensor.shape.numpy())
            return
        tensor.name = self.unique(old.name if old is not None and old.name else name)
        replace_input(node, index, self._constant(tensor, node, scope))

    def node(self, op_type: str, data: ir.Value, array: Array, before: ir.Node, name: str, scope: Scope) -> ir.Node:
        """Insert ``op_type(data, constant)`` before a node; the constant has the rank of the data or less."""
        node = self.elementwise(op_type, data, array, before, name, scope)
        if scope.opset < 7:
            node.attributes["broadcast"] = ir.AttrInt64("broadcast", 1)
            node.attributes["axis"] = ir.AttrInt64("axis", array.ndim - trimmed(array).ndim)
        return node

    def elementwise(
        self, op_type: str, data: ir.Value, array: Array | None, before: ir.Node, name: str, scope: Scope
    ) -> ir.Node:
        """Insert ``op_type(data, constant)``, or ``op_type(data)``, before a node."""
        return self.op(op_type, data, [] if array is None else [trimmed(array)], before, name, scope)

    def op(
        self, op_type: str, data: ir.Value, arrays: Sequence[Array], before: ir.Node, name: str, scope: Scope
    ) -> ir.Node:
        """Insert ``op_type(data, constants…)``, which does not change the shape of its data, before a node."""
        name, operands = self.unique(name), [data]
        for array in arrays:
            tensor = ir.Tensor(array, name=self.unique(f"{name}/constant"))
            operands.append(self._constant(tensor, before, scope))
        node = ir.Node("", op_type, operands, name=name)
        result = node.outputs[0]
        result.name = self.unique(f"{name}/output")
        result.shape, result.type = data.shape, data.type
        before.prepend(node)
        return node

    def node_behind(
        self, op_type: str, data: ir.Value, array: Array, dtype: ir.DataType, name: str, scope: Scope
    ) -> ir.Node:
        """Insert ``op_type(data, constant)`` right behind the node that makes ``data``, for all its readers."""
        producer = data.producer()
        if producer is None:
            raise ValueError(f"'{data.name}' has no producer")
        tensor_name = self.unique(f"{name}/constant")
        tensor = ir.Tensor(trimmed(round_once(array, dtype.numpy())), name=tensor_name)
        readers = data.uses()
        node = ir.Node("", op_type, [data, self._constant(tensor, producer, scope)], name=self.unique(name))
        if scope.opset < 7:
            node.attributes["broadcast"] = ir.AttrInt64("broadcast", 1)
        result = node.outputs[0]
        result.shape, result.type = data.shape, data.type
        producer.append(node)
        for user, index in readers:
            user.replace_input_with(index, result)
        if data.is_graph_output():
            result.name, data.name = data.name, self.unique(f"{label(producer)}/output")
            outputs = data.graph.outputs if data.graph is not None else []
            for i, value in enumerate(outputs):
                if value is data:
                    outputs[i] = result
        else:
            result.name = self.unique(f"{name}/output")
        return node

    def _constant(self, tensor: ir.TensorProtocol, user: ir.Node, scope: Scope) -> ir.Value:
        if scope.is_function:
            node = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], name="")
            node.outputs[0].name = tensor.name
            node.outputs[0].shape, node.outputs[0].dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
            user.prepend(node)
            return node.outputs[0]
        value = ir.Value(
            name=tensor.name,
            shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        scope.graph.register_initializer(value)
        if not scope.has_defaults:
            scope.graph.inputs.append(value)  # up to IR 3 every initializer is listed as an input
        return value


def is_private(value: ir.Value, scope: Scope) -> bool:
    """Whether ``value`` is an initializer that one input slot reads and nobody may override."""
    return (
        value.is_initializer()
        and len(value.uses()) == 1
        and not value.is_graph_output()
        and not (value.is_graph_input() and scope.has_defaults)
    )


def trimmed(array: Array) -> Array:
    """Drop leading axes of length 1: broadcasting puts them back."""
    lead = 0
    while lead < array.ndim and array.shape[lead] == 1:
        lead += 1
    return array.reshape(array.shape[lead:])


def _all_names(model: ir.Model) -> set[str]:
    graphs = [*model.graphs(), *(g for f in model.functions.values() for g in (f.graph, *f.subgraphs()))]
    names = {v.name for g in graphs for v in (*g.inputs, *g.initializers.values()) if v.name}
    for graph in graphs:
        for node in graph:
            names.update(v.name for v in node.outputs if v.name)
            if node.name:
                names.add(node.name)
    return names
