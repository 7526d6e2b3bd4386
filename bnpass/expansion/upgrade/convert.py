"""Bring a model that is older than the ops of an expansion up to their version, with ONNX's own converter.

The converter knows protos alone, forgets functions (they are inlined before), names and metadata, and takes all data
through memory. So it is given the nodes without their weights, and what it returns is put back into the model:

- Sites, and tensors that are large or lie in a file, become placeholders of a foreign domain, which it leaves alone.
- Inputs and outputs keep their names, order, types and shapes; values and nodes keep their metadata.
- Type inference, and the number of placeholders, say whether something went wrong.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
from onnx import version_converter

from bnpass.collectives.nodes import bodies
from bnpass.errors import Refusal, RefusalId, RefusedError
from bnpass.expansion.facts import Facts
from bnpass.expansion.names import Names
from bnpass.expansion.sites import Site
from bnpass.expansion.upgrade.old_ops import finish, make_convertible, not_convertible
from bnpass.expansion.upgrade.placeholders import PLACEHOLDER, Placeholders, swap
from bnpass.graph.nodes import described

_IR_VERSION = 8
"""What a converted model is at least: from 4 on initializers are no inputs, from 8 on there are functions."""


def upgrade(model: ir.Model, sites: Sequence[Site], opset: int, target: int, facts: Facts) -> list[Site]:
    """Convert a model without functions to a newer opset, all but its sites.

    Args:
        model: Changed in place; left in disorder if it is refused.
        sites: What is to be expanded; their nodes become placeholders.
        opset: The version that the model has.
        target: The version that it is to have.
        facts: What is known about its shapes.

    Returns:
        The sites, with their placeholders as nodes.

    Raises:
        RefusedError: BN204: it cannot be converted.
    """
    done = make_convertible(model, opset, facts)
    _check_foreign(model)
    _trim_inference(model, opset)
    placeholders = Placeholders()
    for site in sites:
        _declare(site)
    numbers = [placeholders.put_node(site.node) for site in sites]
    spelled = {placeholders.put_node(node): node for node in done}
    for graph in _graphs(model.graph):
        placeholders.put_tensors(graph)
        _load_attributes(graph)
    old, new = model.graph, _converted(model, target)
    try:
        nodes = placeholders.take_back(list(_graphs(new)))
    except LookupError as error:
        raise _refused(model, str(error)) from error
    for number, node in spelled.items():
        _put_back(nodes[number], node)
    added = _restored(model, old, new)
    model.graph = new
    _let_go_of_defaults(model)
    model.ir_version = max(model.ir_version, _IR_VERSION)
    Names(model, added).settle(added, fixed=set(new.outputs))
    finish(model, opset)
    return [replace(site, node=nodes[number]) for site, number in zip(sites, numbers, strict=True)]


def _put_back(placeholder: ir.Node, node: ir.Node) -> None:
    """Put a node that went around the converter where its placeholder stands."""
    attributes = list(node.attributes.values())
    swap(placeholder, ir.Node("", node.op_type, placeholder.inputs, attributes, num_outputs=len(placeholder.outputs)))


def _check_foreign(model: ir.Model) -> None:
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain != "" and bodies(node):
            raise not_convertible(node, f"{described(node)} of domain '{node.domain}' has subgraphs")


def _trim_inference(model: ir.Model, opset: int) -> None:
    """Take unread outputs off batch normalizations that stay: before 7 they say nothing, from 7 on training."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if opset >= 7 or node.domain != "" or node.op_type != "BatchNormalization" or _is_training(node):
            continue
        if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
            raise not_convertible(node, f"{described(node)} has outputs of training mode, but is_test is not 0")
        node.resize_outputs(1)


def _is_training(node: ir.Node) -> bool:
    return not node.attributes.get_int("is_test", 0)


def _declare(site: Site) -> None:
    """Tell the converter what is known of the result: ONNX's inference does not see through a placeholder."""
    for name in ("Y", "dX"):
        if name in site.results and site.output(name).shape is None:
            site.output(name).dtype, site.output(name).shape = site.dtype, ir.Shape(site.dims)


def _graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    """Yield a graph and all its subgraphs."""
    yield graph
    for node in ir.traversal.RecursiveGraphIterator(graph):
        yield from bodies(node)


def _load_attributes(graph: ir.Graph) -> None:
    """Read tensors that stand in attributes of other nodes: the converter would lose the folder of their files."""
    for node in graph:
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                tensor = attribute.as_tensor()
                if isinstance(tensor, ir.ExternalTensor):
                    loaded = ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=tensor.name)
                    node.attributes[name] = ir.AttrTensor(name, loaded)


def _converted(model: ir.Model, target: int) -> ir.Graph:
    """Return the graph of the model in another opset."""
    proto = ir.to_proto(model)
    proto.ir_version = max(model.ir_version, _IR_VERSION)
    proto.opset_import.add(domain=PLACEHOLDER, version=1)
    try:
        converted = version_converter.convert_version(proto, target)
    except (RuntimeError, ValueError, version_converter.ConvertError, onnx.shape_inference.InferenceError) as error:
        raise _refused(model, _last_words(error)) from error
    wrong = _type_error(converted)
    if wrong is not None and _type_error(proto) is None:
        raise _refused(model, f"what the converter makes of it is no valid model: {wrong}")
    graph = ir.from_proto(converted).graph
    del graph.opset_imports[PLACEHOLDER]
    return graph


def _type_error(proto: onnx.ModelProto) -> str | None:
    """Return what ONNX's type inference has against a model; shapes in between are left to it."""
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    del bare.graph.value_info[:]
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        return _last_words(error)
    return None


def _last_words(error: Exception) -> str:
    """Return the sentence in an error of onnx, without the place in its source."""
    text = " ".join(str(error).split())
    return re.sub(r"^.*?failed: ", "", text) or type(error).__name__


def _refused(model: ir.Model, reason: str) -> RefusedError:
    """Return the error; its node is the first one of the op that the reason names, if it names one."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain == "" and re.search(rf"\b{re.escape(node.op_type)}\b", reason):
            return not_convertible(node, reason)
    return RefusedError(Refusal(RefusalId.OPSET_NOT_UPGRADABLE, model.graph.name or "graph", reason))


def _restored(model: ir.Model, old: ir.Graph, new: ir.Graph) -> list[ir.Node]:
    """Give a converted graph what it lost; return the nodes that the converter added."""
    if [v.name for v in old.inputs] != [v.name for v in new.inputs] or len(old.outputs) != len(new.outputs):
        raise _refused(model, "the converter changed the inputs or outputs")
    for mine, theirs in zip(old.outputs, new.outputs, strict=True):
        theirs.name = mine.name
    new.metadata_props.update(old.metadata_props)
    before = {value.name: value for value in _values(old) if value.name}
    for value in _values(new):
        known = before.get(str(value.name))
        if known is not None:
            value.type, value.shape = known.type, known.shape
            value.doc_string = known.doc_string
            value.metadata_props.update(known.metadata_props)
            value.meta.update(known.meta)
    makers = {_made_by(node): node for node in old}
    added = []
    for node in new:
        maker = makers.get(_made_by(node))
        if maker is None:
            added.append(node)
            continue
        node.metadata_props.update(maker.metadata_props)
        for body, converted in zip(bodies(maker), bodies(node), strict=True):
            added.extend(_restored(model, body, converted))
    return added


def _made_by(node: ir.Node) -> str:
    """Return what tells a node from the others of its graph: the name of a value that it makes."""
    return next((v.name for v in node.outputs if v.name), "")


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _let_go_of_defaults(model: ir.Model) -> None:
    """Up to IR 3 initializers are listed as inputs, and yet constants; from 4 on that would make them overridable."""
    if model.ir_version >= 4:
        return
    kept = [value for value in model.graph.inputs if not value.is_initializer()]
    model.graph.inputs.clear()
    model.graph.inputs.extend(kept)
