"""Names of new nodes and values: none is given twice in the main graph and its subgraphs together."""

from collections.abc import Collection, Iterable

import onnx_ir as ir

from bnpass.collectives.nodes import bodies


class Names:
    """The names that a model has.

    Args:
        model: The model.
        without: Nodes that are yet to be named, with their outputs and subgraphs.
    """

    def __init__(self, model: ir.Model, without: Collection[ir.Node] = ()) -> None:
        self._taken = {v.name for v in (*model.graph.inputs, *model.graph.initializers.values()) if v.name}
        self._nodes: set[str] = set()
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            if node not in without:
                self._taken.update(v.name for v in _values(node) if v.name)
                self._nodes.add(node.name or "")

    def settle(self, nodes: Iterable[ir.Node], fixed: Collection[ir.Value] = ()) -> None:
        """Rename new nodes and what they bring along where a name is taken; ``fixed`` values keep theirs."""
        for node in nodes:
            for value in _values(node):
                if value.name and value not in fixed:
                    value.name = _free(value.name, self._taken)
            if node.name:
                node.name = _free(node.name, self._nodes)


def _values(node: ir.Node) -> list[ir.Value]:
    """Return the values that a node brings along, those within its subgraphs' nodes not included."""
    inner = [(*body.inputs, *body.initializers.values()) for body in bodies(node)]
    return list(dict.fromkeys([*node.outputs, *(value for values in inner for value in values)]))


def _free(wanted: str, taken: set[str]) -> str:
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name
