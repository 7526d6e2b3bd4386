"""Every place in an onnx_ir model that holds a tensor, so that it can be looked at or exchanged."""

from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir


@dataclass(frozen=True)
class Slot:
    """One place that holds a tensor.

    Attributes:
        tensor: The tensor that is there now.
        name: The name under which it is saved.
        put: Puts another tensor there.
    """

    tensor: ir.TensorProtocol
    name: str
    put: Callable[[ir.TensorProtocol], None]


def slots(model: ir.Model) -> Iterator[Slot]:
    """Yield the tensors of initializers and attributes, in subgraphs and model-local functions too."""
    graphs: list[ir.Graph | ir.Function] = [*reversed(model.functions.values()), model.graph]
    while graphs:
        graph = graphs.pop()
        if isinstance(graph, ir.Graph):
            for value in graph.initializers.values():
                if value.const_value is not None:
                    yield Slot(value.const_value, value.name or "", partial(setattr, value, "const_value"))
        else:
            yield from _attribute_slots(graph.attributes)
        for node in graph:
            yield from _attribute_slots(node.attributes)
            for attr in node.attributes.values():
                if attr.is_ref():
                    continue
                if attr.type == ir.AttributeType.GRAPH:
                    graphs.append(attr.as_graph())
                elif attr.type == ir.AttributeType.GRAPHS:
                    graphs.extend(attr.as_graphs())


def _attribute_slots(attributes: MutableMapping[str, ir.Attr]) -> Iterator[Slot]:
    for name, attr in list(attributes.items()):
        if attr.is_ref() or attr.value is None:
            continue
        if attr.type == ir.AttributeType.TENSOR:
            tensor = attr.as_tensor()
            yield Slot(tensor, tensor.name or "", partial(_put_attribute, attributes, name))
        elif attr.type == ir.AttributeType.TENSORS:
            for index, tensor in enumerate(attr.as_tensors()):
                yield Slot(tensor, tensor.name or "", partial(_put_in_list, attributes, name, index))


def _put_attribute(attributes: MutableMapping[str, ir.Attr], name: str, tensor: ir.TensorProtocol) -> None:
    attributes[name] = ir.AttrTensor(name, tensor, doc_string=attributes[name].doc_string)


def _put_in_list(attributes: MutableMapping[str, ir.Attr], name: str, index: int, tensor: ir.TensorProtocol) -> None:
    attr = attributes[name]
    tensors = list(attr.as_tensors())
    tensors[index] = tensor
    attributes[name] = ir.AttrTensors(name, tensors, doc_string=attr.doc_string)
