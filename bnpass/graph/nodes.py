"""Questions to an onnx_ir graph, and the few edits that folding makes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from bnpass.errors import Refusal, RefusalId

_INT, _INTS, _FLOAT = ir.AttributeType.INT, ir.AttributeType.INTS, ir.AttributeType.FLOAT
_STRING = ir.AttributeType.STRING
_ATTRIBUTE_TYPES = {
    **dict.fromkeys(("axis", "group", "transA", "transB", "is_test", "training_mode", "spatial"), _INT),
    **dict.fromkeys(("broadcast", "allowzero", "value_int", "ceil_mode", "count_include_pad"), _INT),
    **dict.fromkeys(("keepdims", "noop_with_empty_axes", "blocksize"), _INT),
    **dict.fromkeys(("block_size", "output_dtype", "precision"), _INT),
    **dict.fromkeys(("pads", "strides", "dilations", "kernel_shape", "output_padding"), _INTS),
    **dict.fromkeys(("perm", "axes", "shape", "starts", "ends", "split", "value_ints"), _INTS),
    **dict.fromkeys(("epsilon", "alpha", "beta", "min", "max", "value_float"), _FLOAT),
    **dict.fromkeys(("auto_pad", "mode", "coordinate_transformation_mode"), _STRING),
    "value_floats": ir.AttributeType.FLOATS,
    "value": ir.AttributeType.TENSOR,
}
"""The attributes that folding reads, with the type that ONNX gives them."""

_OPERATOR_TYPES = {**_ATTRIBUTE_TYPES, "group": ir.AttributeType.STRING}
"""The same for our operators, whose groups have names."""


@dataclass(frozen=True, eq=False)
class Scope:
    """A model's main graph with all its subgraphs, or the body of one model-local function.

    Attributes:
        graph: The outermost graph of the scope.
        opset: Version of the default ONNX domain in force.
        is_function: Functions hold no initializers: constants there are Constant nodes.
        has_defaults: From IR 4 on an initializer that is also an input is a default that callers may override.
    """

    graph: ir.Graph
    opset: int
    is_function: bool
    has_defaults: bool


def scopes(model: ir.Model) -> Iterator[Scope]:
    """Yield the main graph, then every function, in a fixed order."""
    opset = _default_opset(model.opset_imports, 1)
    yield Scope(model.graph, opset, False, model.ir_version >= 4)
    for function in model.functions.values():
        yield Scope(function.graph, _default_opset(function.opset_imports, opset), True, True)


def _default_opset(imports: Mapping[str, int], otherwise: int) -> int:
    """Return the version of the default domain, which has two spellings."""
    return imports.get("", imports.get("ai.onnx", otherwise))


def label(node: ir.Node) -> str:
    """Return how a node is addressed: its name, or its first output if it has none."""
    if node.name:
        return node.name
    return next((v.name for v in node.outputs if v.name), node.op_type)


def described(node: ir.Node) -> str:
    """Return a node as sentences name it."""
    return f"{node.op_type} '{label(node)}'"


def nodes_of(scope: Scope) -> list[ir.Node]:
    """Return all nodes of a scope in graph order, subgraphs included."""
    return list(ir.traversal.RecursiveGraphIterator(scope.graph))


def is_standard(node: ir.Node, *op_types: str) -> bool:
    """Whether the node is one of these ops of the default domain, and formed so that its attributes can be read."""
    return node.domain == "" and node.op_type in op_types and malformed(node) is None


def malformed(node: ir.Node) -> str | None:
    """Return what keeps a node from being read: attributes of the wrong type or given by reference, no operands."""
    types = _ATTRIBUTE_TYPES if node.domain == "" else _OPERATOR_TYPES
    if node.op_type == "Pad":
        types = {**types, "value": _FLOAT}  # in early versions
    for attribute in node.attributes.values():
        if attribute.is_ref():
            return f"its attribute '{attribute.name}' is a reference to one of the function around it"
        if types.get(attribute.name, attribute.type) != attribute.type:
            return f"its attribute '{attribute.name}' is of type {attribute.type.name}"
        if attribute.type == ir.AttributeType.STRING and not isinstance(attribute.value, str):
            return f"its attribute '{attribute.name}' is no text"
    if not node.outputs or (not node.inputs and node.op_type != "Constant"):
        return "it has no inputs or no outputs"
    return None


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """Return an input; None where it is left out, spelled ``""`` or not."""
    return node.inputs[index] if index < len(node.inputs) else None


def blocked_use(value: ir.Value) -> Refusal | None:
    """Return why ``value`` cannot change its meaning, or None if exactly one node reads it."""
    producer = value.producer()
    where = label(producer) if producer is not None else str(value.name)
    if value.is_graph_output():
        return Refusal(
            RefusalId.PRODUCER_IS_GRAPH_OUTPUT,
            where,
            f"'{value.name}' is an output of the graph, so its value must stay as it is",
        )
    if len(value.uses()) > 1:
        others = ", ".join(sorted({f"{u.node.op_type} '{label(u.node)}'" for u in value.uses()}))
        return Refusal(
            RefusalId.PRODUCER_USED_ELSEWHERE,
            where,
            f"'{value.name}' is read {len(value.uses())} times ({others}), and not all may see the affine",
        )
    return None


def bypass(node: ir.Node, data: ir.Value) -> None:
    """Remove a node: who read its first output reads ``data`` instead; graph output names stay."""
    result = node.outputs[0]
    graph = node.graph
    if graph is None:
        raise ValueError(f"node '{label(node)}' is in no graph")
    if result.is_graph_output():
        name, shape, kind = result.name, result.shape, result.type
        result.replace_all_uses_with(data, replace_graph_outputs=True)
        result.name = None
        data.name = name
        if shape is not None:
            data.shape = shape
        if kind is not None:
            data.type = kind
    else:
        result.replace_all_uses_with(data)
    remove(node, spare=data)


def remove(node: ir.Node, spare: ir.Value | None = None) -> None:
    """Take a node out of its graph, with whatever constants were there for it alone; ``spare`` is none of them."""
    inputs = [v for v in node.inputs if v is not None and v is not spare]
    if node.graph is None:
        raise ValueError(f"node '{label(node)}' is in no graph")
    node.graph.remove(node, safe=True)
    for value in dict.fromkeys(inputs):
        discard(value)


def discard(value: ir.Value) -> None:
    """Delete a constant that nobody reads any more, and the nodes that made it; what is also an input stays."""
    if value.uses() or value.is_graph_output() or value.is_graph_input():
        return
    graph = value.graph
    if value.is_initializer() and graph is not None and value.name is not None:
        graph.initializers.pop(value.name)
        return
    producer = value.producer()
    if (
        producer is not None
        and producer.graph is not None
        and not any(v.uses() or v.is_graph_output() for v in producer.outputs)
    ):
        remove(producer)


def unread_initializers(graph: ir.Graph) -> set[str]:
    """Return the names of the initializers that nothing reads."""
    return {name for name, value in graph.initializers.items() if not value.uses() and not value.is_graph_output()}


def drop_unread(scope: Scope, unread_before: set[str]) -> None:
    """Up to IR 3 every initializer is listed as an input too: drop those that nothing reads any more."""
    graph = scope.graph
    if scope.has_defaults:
        return
    gone = unread_initializers(graph) - unread_before
    kept = [value for value in graph.inputs if value.name not in gone]
    graph.inputs.clear()
    graph.inputs.extend(kept)
    for name in sorted(gone):
        graph.initializers.pop(name)


def replace_input(node: ir.Node, index: int, value: ir.Value) -> None:
    """Put ``value`` into an input slot, growing the node where needed, and drop the old constant if it is orphaned."""
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    old = node.inputs[index]
    node.replace_input_with(index, value)
    if old is not None and old is not value:
        discard(old)
