"""The portable bodies of the operators: one ONNX function per op, which any runtime can run.

A body is the formula of docs/operators.md for one replica (``body_formulas.py``). Attributes come in by reference, so
that one body serves every node; shapes are worked out at run time (``body_form.py``). What does not fit fails when it
is run: an axis that X lacks, ghost batches that do not divide the batch, parameters that are not C long.
"""

import itertools
from collections.abc import Mapping

import onnx_ir as ir

from bnpass.errors import ModelError
from bnpass.ops import DOMAIN, MIN_OPSET, VERSION
from bnpass.ops.body_form import BodyWriter
from bnpass.ops.body_formulas import WRITERS
from bnpass.ops.schemas import ATTRIBUTES, SCHEMAS

MIN_BODY_OPSET = 15
"""The oldest opset for bodies: they return the type of X, which only CastLike can say without knowing it."""

MIN_IR_VERSION = 8
"""The oldest IR version that has functions."""

CALLEES: dict[str, tuple[str, ...]] = {
    "AllReduce": (),
    "SyncBatchMoments": ("AllReduce",),
    "SyncBatchNormalization": ("SyncBatchMoments",),
    "SyncBatchNormalizationGrad": ("AllReduce",),
}
"""What each body calls; callees stand before their callers."""


def body(op_type: str, opset: int = 18) -> ir.Function:
    """Return the body of an operator.

    Args:
        op_type: One of the four operators.
        opset: The version of the default domain that the model imports; the function imports the same one.

    Returns:
        A function of the operator's own inputs, outputs and attributes; the attributes have the operator's defaults.

    Raises:
        ValueError: There is no such operator, or the opset is older than 15.
    """
    if op_type not in WRITERS:
        raise ValueError(f"{DOMAIN} has no operator '{op_type}'")
    if opset < MIN_BODY_OPSET:
        raise ValueError(f"a body needs opset {MIN_BODY_OPSET} (CastLike), and this is opset {opset}")
    schema = SCHEMAS[op_type]
    inputs = [ir.Value(name=formal.name) for formal in schema.inputs]
    op = BodyWriter()
    outputs = WRITERS[op_type](op, *inputs)
    for formal, value in zip(schema.outputs, outputs, strict=True):
        value.name = formal.name
    imports = {"": opset, DOMAIN: VERSION} if CALLEES[op_type] else {"": opset}
    graph = ir.Graph(inputs, outputs, nodes=op.nodes, opset_imports=imports, name=op_type)
    defaults = [ir.serde.deserialize_attribute(schema.attributes[n].default_value) for n in ATTRIBUTES[op_type]]
    return ir.Function(DOMAIN, op_type, graph=graph, attributes=defaults)


def add_bodies(model: ir.Model) -> bool:
    """Put the bodies of the operators that a model uses into it, callees before callers; other functions follow.

    The model then imports the domain, and its IR version is at least 8, the first one with functions. Opset 14 becomes
    15, which adds ops and types and changes no meaning. A body that another version of bnpass wrote is replaced. Slots
    and attributes that a node lacks are written, and its last output gets a name: onnx_ir drops unnamed ones at the
    end, and ONNX Runtime refuses (or crashes on) a node with fewer outputs than its function.

    Args:
        model: Changed in place.

    Returns:
        Whether anything was changed.

    Raises:
        ModelError: Bodies are needed, and the opset is older than 14, or the model imports another version of the
            domain.
    """
    used = _used(model)
    if not used:
        return False
    if model.opset_imports.get(DOMAIN, VERSION) != VERSION:
        raise ModelError(f"the model imports version {model.opset_imports[DOMAIN]} of '{DOMAIN}', not {VERSION}")
    were_low = _raise_versions(model)
    incomplete = [node for node in _nodes(model) if _complete(node, model)]
    opset = _default_opset(model.opset_imports)
    ours = {function.identifier(): function for function in (body(op_type, opset) for op_type in used)}
    others = {key: function for key, function in model.functions.items() if key not in ours}
    if list(model.functions) == [*ours, *others] and all(
        _bytes(model.functions[key]) == _bytes(function) for key, function in ours.items()
    ):
        return were_low or bool(incomplete)
    model.functions.clear()
    model.functions.update({**ours, **others})
    return True


def drop_unused_bodies(model: ir.Model) -> None:
    """Take the bodies of operators that a model no longer uses out of it, and the domain with the last of them."""
    used = _used(model)
    for key in [key for key in model.functions if _is_ours(key) and key[1] not in used]:
        del model.functions[key]
    if not used and not any(node.domain == DOMAIN for node in model.graph.all_nodes()):
        model.opset_imports.pop(DOMAIN, None)


def _raise_versions(model: ir.Model) -> bool:
    """Make a model such that bodies may stand in it; return whether it was not."""
    opset = _default_opset(model.opset_imports)
    if opset < MIN_OPSET:
        raise ModelError(f"the bodies of '{DOMAIN}' need opset {MIN_OPSET} or newer, and the model has {opset}")
    changed = opset < MIN_BODY_OPSET or DOMAIN not in model.opset_imports or model.ir_version < MIN_IR_VERSION
    if opset < MIN_BODY_OPSET:
        for imports in (model.opset_imports, *(function.opset_imports for function in model.functions.values())):
            if _default_opset(imports) == opset:
                imports["ai.onnx" if "ai.onnx" in imports else ""] = MIN_BODY_OPSET
    model.opset_imports[DOMAIN] = VERSION
    model.ir_version = max(model.ir_version, MIN_IR_VERSION)
    return changed


def _default_opset(imports: Mapping[str, int]) -> int:
    """Return the version of the default domain, which has two spellings; where it is not imported, no op is used."""
    return imports.get("", imports.get("ai.onnx", MIN_BODY_OPSET))


def _complete(node: ir.Node, model: ir.Model) -> bool:
    """Write what a node leaves to defaults; return whether there was anything."""
    schema = SCHEMAS[node.op_type]
    missing = [name for name in ATTRIBUTES[node.op_type] if name not in node.attributes]
    for name in missing:
        node.attributes.add(ir.serde.deserialize_attribute(schema.attributes[name].default_value))
    is_short = len(node.inputs) < len(schema.inputs) or len(node.outputs) < len(schema.outputs)
    if is_short:
        node.resize_inputs(max(len(node.inputs), len(schema.inputs)))
        node.resize_outputs(max(len(node.outputs), len(schema.outputs)))
        for value in node.outputs:
            value.name = value.name or ""  # left out; without a name at all it would be given one
    last = node.outputs[-1]
    is_unnamed = not last.name
    if is_unnamed:
        last.name = _new_name(f"{node.outputs[0].name or node.op_type}/{schema.outputs[-1].name}", model)
    return bool(missing) or is_short or is_unnamed


def _new_name(wanted: str, model: ir.Model) -> str:
    """Return a name that no value has, anywhere in the model."""
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    nodes = [node for graph in graphs for node in ir.traversal.RecursiveGraphIterator(graph)]
    bodies = [a.as_graph() for n in nodes for a in n.attributes.values() if a.type == ir.AttributeType.GRAPH]
    values = [v for n in nodes for v in n.outputs]
    values += [v for g in (*graphs, *bodies) for v in (*g.inputs, *g.initializers.values())]
    taken = {value.name for value in values}
    numbered = (f"{wanted}_{number}" for number in itertools.count(1))
    return next(name for name in itertools.chain([wanted], numbered) if name not in taken)


def _nodes(model: ir.Model) -> list[ir.Node]:
    """Return the nodes of our operators outside of our own bodies."""
    graphs = [model.graph, *(f.graph for key, f in model.functions.items() if not _is_ours(key))]
    nodes = (node for graph in graphs for node in ir.traversal.RecursiveGraphIterator(graph))
    return [node for node in nodes if _is_ours(node.op_identifier())]


def _used(model: ir.Model) -> list[str]:
    """Return the operators that a model needs bodies of, callees first."""
    found = {node.op_type for node in _nodes(model)}
    for op_type in reversed(CALLEES):
        if op_type in found:
            found.update(CALLEES[op_type])
    return [op_type for op_type in CALLEES if op_type in found]


def _is_ours(identifier: ir.OperatorIdentifier) -> bool:
    return identifier[0] == DOMAIN and identifier[1] in CALLEES


def _bytes(function: ir.Function) -> bytes:
    return bytes(ir.serde.serialize_function(function).SerializeToString(deterministic=True))
