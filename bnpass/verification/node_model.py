"""The ``bnpass`` nodes of a model, each for itself: one model in which none of them feeds another.

What a node reads becomes a graph input, what it gives a graph output; so each is run on the same numbers whatever the
others do, and a wrong one is told from those behind it. bfloat16 comes and goes as float32, since NumPy has none.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from bnpass.ops import DOMAIN, VERSION
from bnpass.ops.bodies import add_bodies
from bnpass.ops.schemas import SCHEMAS

__all__ = ["LonelyNode", "is_ours", "lonely_model", "lonely_nodes", "recorded_values"]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class LonelyNode:
    """A node that is run alone.

    Attributes:
        node: The node in the model.
        number: Its position among them.
    """

    node: ir.Node
    number: int

    @property
    def label(self) -> str:
        """What it is called."""
        return f"node '{self.node.name or self.node.outputs[0].name}' ({self.node.op_type})"

    @property
    def reads(self) -> Iterator[tuple[str, ir.Value]]:
        """Name of the graph input, and the value of the model that it stands for; ``after`` is left out."""
        for slot, value in zip(SCHEMAS[self.node.op_type].inputs, self.node.inputs, strict=False):
            if value is not None and slot.name != "after":
                yield f"node{self.number}/{slot.name}", value

    @property
    def gives(self) -> Iterator[tuple[str, str]]:
        """Name of the graph output, and the slot that it stands for."""
        for slot, value in zip(SCHEMAS[self.node.op_type].outputs, self.node.outputs, strict=False):
            if value.name:
                yield f"node{self.number}/out/{slot.name}", slot.name

    @staticmethod
    def slot(name: str) -> str:
        """Return the slot that a graph input or output stands for."""
        return name.rpartition("/")[2]


def is_ours(node: ir.Node) -> bool:
    """Tell whether a node is of one of our operators."""
    return node.domain == DOMAIN and node.op_type in SCHEMAS


def lonely_nodes(model: ir.Model) -> tuple[LonelyNode, ...]:
    """Return our nodes in the main graph of a model; those in subgraphs and functions cannot be run alone."""
    ours = [node for node in model.graph if is_ours(node)]
    return tuple(LonelyNode(node, number) for number, node in enumerate(ours))


def recorded_values(nodes: Sequence[LonelyNode]) -> tuple[str, ...]:
    """Return the values that a run has to record: what the nodes read and other nodes give."""
    read = (value for node in nodes for _, value in node.reads)
    return tuple(dict.fromkeys(str(value.name) for value in read if value.producer() is not None))


def lonely_model(model: ir.Model, nodes: Sequence[LonelyNode], types: Mapping[str, np.dtype[np.generic]]) -> ir.Model:
    """Return one model with all nodes, none of which feeds another; with bodies.

    Args:
        model: Where the nodes are; it is not changed.
        nodes: The nodes.
        types: Type of each graph input and output, as NumPy has it.

    Returns:
        The model. Its inputs and outputs have the names that the nodes say.
    """
    made: list[ir.Node] = []
    inputs: list[ir.Value] = []
    outputs: list[ir.Value] = []

    def cast(value: ir.Value, name: str, to: ir.DataType) -> ir.Value:
        made.append(ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(to))], name=name))
        made[-1].outputs[0].name = name
        return made[-1].outputs[0]

    for lonely in nodes:
        slots, given = SCHEMAS[lonely.node.op_type], dict[str, ir.Value]()
        for name, _ in lonely.reads:
            inputs.append(ir.Value(name=name, type=ir.TensorType(_io_type(types[name]))))
            is_wide = types[name] == BFLOAT16
            given[lonely.slot(name)] = (
                cast(inputs[-1], f"{name}/narrow", ir.DataType.BFLOAT16) if is_wide else inputs[-1]
            )
        names = {slot: name for name, slot in lonely.gives}
        results = [ir.Value(name=names.get(slot.name, "")) for slot in slots.outputs[: len(lonely.node.outputs)]]
        operands = [given.get(slot.name) for slot in slots.inputs]
        attributes = list(lonely.node.attributes.values())
        made.append(
            ir.Node(DOMAIN, lonely.node.op_type, operands, attributes, outputs=results, name=f"node{lonely.number}")
        )
        for name in names.values():
            result = next(value for value in results if value.name == name)
            if types[name] == BFLOAT16:
                result.name = f"{name}/narrow"
                result = cast(result, name, ir.DataType.FLOAT)
            result.type = ir.TensorType(_io_type(types[name]))
            outputs.append(result)
    imports = {"": model.opset_imports.get("", model.opset_imports.get("ai.onnx", 18)), DOMAIN: VERSION}
    graph = ir.Graph(inputs, outputs, nodes=made, opset_imports=imports, name="nodes")
    built = ir.Model(graph, ir_version=max(model.ir_version, 8))
    add_bodies(built)
    return built


def _io_type(dtype: np.dtype[np.generic]) -> ir.DataType:
    return ir.DataType.FLOAT if dtype == BFLOAT16 else ir.DataType.from_numpy(dtype)
