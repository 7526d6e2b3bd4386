"""Put the collectives of a model into one order that all replicas follow.

Replicas that meet collectives in different orders wait for each other for ever, or add up what does not belong
together. So every collective gets a number, its ``collective_id``, and a dependency on the one before: through
``after``, which reads a result of that one and does nothing with it.

The order is that of the nodes in the file, once they are in topological order; an edge along it closes no cycle. Edges
are only ever added, and only where the step does not depend on the one before anyway:

- ``after`` is free: it takes the result.
- ``after`` is taken, by the caller: it goes on reading what it reads, tied to the result (see :mod:`.tie`).
- ``com.microsoft`` has no ``after``: its input is tied to the result.

An If, Loop or Scan with collectives is one step. What it waits for, its first inner collectives capture; who comes next
waits for one of its outputs. Ids go on inside: each branch of an If has its own, those of a loop body come again in
every iteration.

Coalescing comes first: once in a chain, no two collectives can share a message.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from bnpass.collectives.check import check_order, check_same_way, last_steps
from bnpass.collectives.nodes import (
    AFTER,
    FOREIGN,
    RESULT,
    Predecessors,
    bodies,
    is_collective,
    is_step,
    predecessors,
    sort,
    topological,
    unused_prefix,
)
from bnpass.collectives.tie import tie
from bnpass.errors import Refusal, RefusalId, RefusedError
from bnpass.graph.nodes import described, label
from bnpass.ops.emit import Emit

__all__ = ["OrderResult", "check_order", "order"]


@dataclass(frozen=True)
class OrderResult:
    """What was done.

    Attributes:
        collectives: Collectives in the order; those of ``bnpass`` have their place in it as ``collective_id``.
        linked: Dependencies that were added.
    """

    collectives: int
    linked: int


def order(model: ir.Model, uniform: Sequence[str] = ()) -> OrderResult:
    """Number the collectives of a model and chain each to the one before; the result is proved by ``check_order``.

    Args:
        model: Changed in place; not at all if it is refused.
        uniform: Names of graph inputs that are the same on all replicas.

    Returns:
        What was done.

    Raises:
        RefusedError: BN207: replicas could take different branches or numbers of iterations, or a function with
            collectives is called. BN204, BN206, BN208: the model or a collective cannot be read.
        UsageError: The graph has no input of such a name.

    Example:
        >>> model = ir.from_onnx_text('''<ir_version: 8, opset_import: ["": 17, "bnpass": 1]>
        ... g (double[2] a, double[2] b) => (double[2] c, double[2] d)
        ... { c = bnpass.AllReduce <group = "world"> (a)  d = bnpass.AllReduce <group = "world"> (b) }''')
        >>> order(model)
        OrderResult(collectives=2, linked=1)
        >>> [value.name for value in model.graph[1].inputs]
        ['b', 'c']
    """
    check_same_way(model, uniform)
    _check_steps(model.graph)
    result = _Chain(model).run()
    check_order(model, uniform)
    return result


def _check_steps(graph: ir.Graph) -> None:
    """Refuse what cannot be linked, before anything is changed."""
    before = predecessors(graph)
    for previous, node, free in _steps(before, topological(before)):
        if previous is not None and not free and not is_collective(previous):
            _tensor_output(previous)
        if not is_collective(node):
            for body in bodies(node):
                _check_steps(body)


def _steps(before: Predecessors, order: Sequence[ir.Node]) -> Iterator[tuple[ir.Node | None, ir.Node, bool]]:
    """Yield the steps of a graph: the one before it, the step, and whether it depends on that one anyway."""
    depends = last_steps(before, order)
    previous = None
    for place, node in enumerate(node for node in order if is_step(node)):
        yield previous, node, depends[node] == place - 1
        previous = node


def _tensor_output(node: ir.Node) -> ir.Value:
    """Return the first output that is no sequence and no optional: of a type that ``after`` takes."""
    ends = [body.outputs[1:] if node.op_type == "Loop" else body.outputs for body in bodies(node)]
    for place, value in enumerate(node.outputs):
        types = [v.type for v in (value, *(end[place] for end in ends if place < len(end)))]
        if all(kind is None or isinstance(kind, ir.TensorType) for kind in types):
            return value
    reason = f"no output of {described(node)} is a tensor, for the next collective to wait for"
    raise RefusedError(Refusal(RefusalId.ORDER_NOT_PROVABLE, label(node), reason))


class _Chain:
    """One run over a model."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._prefix = unused_prefix(model, "order")
        self._place = 0
        self._linked = 0

    def run(self) -> OrderResult:
        self._chain(self._graph, None)
        return OrderResult(self._place, self._linked)

    def _chain(self, graph: ir.Graph, outer: ir.Node | None) -> None:
        """Chain the steps of a graph; the first one waits for ``outer``, if there is one."""
        before = sort(graph)
        for previous, node, free in list(_steps(before, list(before))):
            awaited = outer if previous is None else None if free else previous
            if is_collective(node):
                self._place_next(node, awaited)
                continue
            for body in bodies(node):
                self._chain(body, awaited)

    def _place_next(self, node: ir.Node, awaited: ir.Node | None) -> None:
        if awaited is not None:
            self._link(node, awaited)
        if node.domain != FOREIGN:
            node.attributes.add(ir.AttrInt64("collective_id", self._place))
        self._place += 1

    def _link(self, node: ir.Node, awaited: ir.Node) -> None:
        self._linked += 1
        result = _result_of(awaited)
        if not result.name:  # it was left out until now
            result.name = f"{self._prefix}/{self._linked}/result"
        slot = AFTER[node.op_type] if node.domain != FOREIGN else 0
        if slot >= len(node.inputs):
            node.resize_inputs(slot + 1)
        present = node.inputs[slot]
        if present is not None and (slot == 0 or present.producer() is not None):
            result = self._tied(node, present, result)
        node.replace_input_with(slot, result)

    def _tied(self, node: ir.Node, value: ir.Value, awaited: ir.Value) -> ir.Value:
        op = Emit(f"{self._prefix}/{self._linked}")
        result = tie(op, value, awaited)
        if node.graph is None:
            raise ValueError(f"node '{label(node)}' is in no graph")
        node.graph.insert_before(node, op.nodes)
        return result


def _result_of(node: ir.Node) -> ir.Value:
    """Return an output that is there once a step is done."""
    if not is_collective(node):
        return _tensor_output(node)
    slot = RESULT[node.op_type] if node.domain != FOREIGN else 0
    if slot >= len(node.outputs):
        present = len(node.outputs)
        node.resize_outputs(slot + 1)
        for value in node.outputs[present:]:
            value.name = ""
    return node.outputs[slot]
