"""Which tensors of a graph are no values but variables: handles of resources, and references of TensorFlow 1."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bnpass.exporting.graphs.freeze import VARIABLES
from bnpass.exporting.graphs.proto import attribute, by_name, is_control, node_of, tensor_of

HANDS_ON = {"Identity": "Identity", "Enter": "Enter", "Switch": "Switch", "RefIdentity": "Identity",
            "RefEnter": "Enter", "RefSwitch": "Switch"}  # fmt: skip
"""What hands a variable on, and what it is called where it hands a value on."""

_INSIDE = ("Enter", "Switch", "RefEnter", "RefSwitch")
_RETURN_REFERENCES = ("Assign", "AssignAdd", "AssignSub")


@dataclass(frozen=True)
class Use:
    """A variable, where a node reads it.

    Attributes:
        variable: Its name.
        is_handle: Whether what reads it gets a handle; of a reference it gets the value.
        inside: Whether it was handed into a loop or a branch.
    """

    variable: str
    is_handle: bool
    inside: bool


class Uses:
    """The variables of a graph, found by the tensors that they are.

    Args:
        graph_def: It must not change meanwhile.
    """

    def __init__(self, graph_def: Any) -> None:  # noqa: ANN401  untyped protobufs
        self._nodes = by_name(graph_def)
        self._known: dict[str, Use | None] = {}

    def of(self, reference: str) -> Use | None:
        """Return the variable that a tensor is; None if it is a value."""
        tensor = tensor_of(reference)
        if tensor not in self._known:
            self._known[tensor] = self._found(tensor)
        return self._known[tensor]

    def by_input(self, node: Any) -> dict[int, Use]:  # noqa: ANN401
        """Return the variables that a node reads, by the numbers of its inputs."""
        data = [reference for reference in node.input if not is_control(reference)]
        return {i: use for i, reference in enumerate(data) if (use := self.of(reference)) is not None}

    def handed_on_by(self, node: Any) -> Use | None:  # noqa: ANN401
        """Return the variable that a node does nothing but hand on."""
        return self.of(f"{node.name}:0") if self._hands_on(node) else None

    def _found(self, tensor: str) -> Use | None:
        chain = list(self._handed(tensor))
        origin = self._nodes[chain[-1]]
        if origin.op not in VARIABLES:
            return None
        return Use(origin.name, origin.op == "VarHandleOp", any(self._nodes[name].op in _INSIDE for name in chain))

    def _handed(self, tensor: str) -> Iterator[str]:
        """Yield the nodes that a tensor has come through, up to what made it."""
        seen: set[str] = set()
        while tensor not in seen:  # a loop could hand a tensor to itself
            seen.add(tensor)
            node = self._nodes[node_of(tensor)]
            yield node.name
            data = [reference for reference in node.input if not is_control(reference)]
            if node.op == "IdentityN":
                tensor = tensor_of(data[int(tensor.split(":")[1])])
            elif self._hands_on(node) or node.op in _RETURN_REFERENCES:
                tensor = tensor_of(data[0])

    def _hands_on(self, node: Any) -> bool:  # noqa: ANN401
        from tensorflow.core.framework import types_pb2

        is_resource = attribute(node, "T").type == types_pb2.DT_RESOURCE
        return node.op in HANDS_ON and (is_resource or node.op.startswith("Ref"))
