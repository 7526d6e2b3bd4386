"""Which values are the same on all replicas of a group, and therefore which branches and loops they take alike.

A value is uniform if it is computed, by operators that always give the same result, from constants, from initializers
that nobody can override, from inputs that the caller vouches for, and from what an all-reduce over the group, or over
the world, has returned. The length of an axis is uniform where the file declares it as a number.

Two things are taken for granted. An all-reduce returns the same bits to every replica, which is what the runtime has
to see to. And the same operator on the same numbers gives the same bits, so the replicas run on like hardware.

The analysis goes through a graph once, in topological order; a loop body is gone through until what its states are
assumed to be holds after an iteration too.
"""

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from bnpass.collectives.nodes import (
    FOREIGN,
    WORLD,
    body_of,
    group_of,
    integer,
    is_collective,
    is_ours,
    predecessors,
    topological,
)
from bnpass.errors import UsageError
from bnpass.graph.nodes import operand

_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_PURE_DOMAINS = frozenset({"", "ai.onnx.ml"})


class Uniform:
    """Answers for one model and one group.

    Args:
        model: The model; it is not changed.
        inputs: Names of graph inputs that are the same on all replicas.
        group: The name of the group.

    Raises:
        UsageError: The graph has no input of that name.
        RefusedError: BN206: a node cannot be read; BN207: there is a cycle.
    """

    def __init__(self, model: ir.Model, inputs: Sequence[str], group: str) -> None:
        self._functions: Mapping[ir.OperatorIdentifier, ir.Function] = model.functions
        self._group = group
        self._values: set[ir.Value] = set()
        self._alike: dict[ir.Node, bool] = {}
        self._orders: dict[ir.Graph, list[ir.Node]] = {}
        self._pure: dict[ir.OperatorIdentifier, bool] = {}
        known = {value.name for value in model.graph.inputs}
        for name in inputs:
            if name not in known:
                raise UsageError(f"the model has no input '{name}' that could be uniform")
        for value in model.graph.inputs:
            default = value.is_initializer() and model.ir_version < 4  # later, it can be overridden
            self._note(value, default or value.name in inputs)
        self._go_through(model.graph)

    def same_way(self, node: ir.Node) -> bool:
        """Whether all replicas take the same branch of an If, or as many iterations of a Loop or Scan."""
        return self._alike.get(node, False)

    def _note(self, value: ir.Value, uniform: bool) -> None:
        (self._values.add if uniform else self._values.discard)(value)

    def _holds(self, value: ir.Value | None) -> bool:
        return value is None or value in self._values

    def _go_through(self, graph: ir.Graph) -> None:
        for value in graph.initializers.values():
            if not value.is_graph_input():
                self._note(value, True)
        if graph not in self._orders:
            self._orders[graph] = topological(predecessors(graph))
        for node in self._orders[graph]:
            for value, uniform in zip(node.outputs, self._outputs(node), strict=False):
                self._note(value, uniform)

    def _outputs(self, node: ir.Node) -> list[bool]:
        if is_collective(node):
            return self._of_collective(node)
        match (node.domain, node.op_type):
            case ("", "If"):
                return self._of_if(node)
            case ("", "Loop"):
                return self._of_loop(node)
            case ("", "Scan"):
                return self._of_scan(node)
            case ("", "Shape" | "Size"):
                return [self._holds(operand(node, 0)) or _is_static(operand(node, 0))]
        return [self._is_pure(node) and all(map(self._holds, node.inputs))] * len(node.outputs)

    def _of_collective(self, node: ir.Node) -> list[bool]:
        if group_of(node) not in (self._group, WORLD):
            return [False] * len(node.outputs)
        if node.domain == FOREIGN:
            return [node.op_type != "AllToAll"] * len(node.outputs)
        match node.op_type:
            case "SyncBatchNormalization":  # a batch without elements leaves the statistics that came in
                statistics = self._holds(operand(node, 3)) and self._holds(operand(node, 4))
                local = all(map(self._holds, node.inputs[:5]))
                return [local, *[statistics] * 4, True]
            case "SyncBatchNormalizationGrad":
                return [all(map(self._holds, node.inputs[:6]))] * 3
        return [True] * len(node.outputs)

    def _of_if(self, node: ir.Node) -> list[bool]:
        branches = [body_of(node, name) for name in ("then_branch", "else_branch")]
        for branch in branches:
            self._go_through(branch)
        same = self._alike[node] = self._holds(operand(node, 0))
        ends = zip(*(branch.outputs for branch in branches), strict=False)
        return [same and all(map(self._holds, values)) for values in ends]

    def _of_loop(self, node: ir.Node) -> list[bool]:
        body = body_of(node, "body")
        entered = self._holds(operand(node, 0)) and self._holds(operand(node, 1))
        # Condition first, then the states.
        states = [entered, *(self._holds(value) for value in node.inputs[2:])]
        after, scanned = self._iterate(body, [True], states, [])
        same = self._alike[node] = after[0]
        return [same and uniform for uniform in (*after[1:], *scanned)]

    def _of_scan(self, node: ir.Node) -> list[bool]:
        body = body_of(node, "body")
        count = integer(node, "num_scan_inputs") or 0
        split = len(node.inputs) - count
        slices = [self._holds(value) for value in node.inputs[split:]]
        axes = [*node.attributes.get_ints("scan_input_axes", ()), *[0] * count]
        lengths = zip(node.inputs[split:], axes, strict=False)
        after, scanned = self._iterate(body, [], [self._holds(value) for value in node.inputs[:split]], slices)
        # All scan inputs are of one length: that of one is enough.
        same = self._alike[node] = any(slices) or any(_is_static(value, axis) for value, axis in lengths)
        return [same and uniform for uniform in (*after, *scanned)]

    def _iterate(
        self, body: ir.Graph, first: list[bool], states: list[bool], slices: list[bool]
    ) -> tuple[list[bool], list[bool]]:
        """Return which states, and which other outputs of a body, are uniform after any number of iterations."""
        while True:
            for value, uniform in zip(body.inputs, (*first, *states, *slices), strict=False):
                self._note(value, uniform)
            self._go_through(body)
            ends = [self._holds(value) for value in body.outputs]
            after = [a and b for a, b in zip(states, ends, strict=False)]
            if after == states:
                return states, ends[len(states) :]
            states = after

    def _is_pure(self, node: ir.Node) -> bool:
        """Whether the outputs follow from the inputs alone."""
        identifier = node.op_identifier()
        if is_ours(node):
            return True  # without a group, or in inference mode
        if identifier in self._functions:
            return self._is_pure_function(identifier)
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            return False
        if node.domain not in _PURE_DOMAINS or node.op_type in _RANDOM:
            return False
        return node.op_type != "Dropout" or operand(node, 2) is None  # without its third input it does nothing

    def _is_pure_function(self, identifier: ir.OperatorIdentifier) -> bool:
        if identifier not in self._pure:
            self._pure[identifier] = False  # should it call itself
            nodes = ir.traversal.RecursiveGraphIterator(self._functions[identifier].graph)
            self._pure[identifier] = all(self._is_pure_inside(node) for node in nodes)
        return self._pure[identifier]

    def _is_pure_inside(self, node: ir.Node) -> bool:
        control = node.domain == "" and node.op_type in ("If", "Loop", "Scan")
        return not is_collective(node) and (control or self._is_pure(node))


def _is_static(value: ir.Value | None, axis: int | None = None) -> bool:
    """Whether the file declares a length as a number: that of one axis, or of all."""
    if value is None or value.shape is None:
        return False
    if axis is None:
        return value.shape.is_static()
    return -len(value.shape) <= axis < len(value.shape) and isinstance(value.shape[axis], int)
