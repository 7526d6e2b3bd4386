"""Prove that all replicas meet the collectives of a model in the same order, whatever order the nodes are run in.

In each graph, the steps (collectives, and nodes with collectives in their subgraphs) have to be totally ordered by the
dependencies between nodes. For that it is enough that in one topological order each step depends on the one before.
One pass finds out: a node knows the last step that it depends on, and step k has to depend on step k − 1.

Dependencies through ``Shape`` and ``Size`` do not count: where a shape is known, a runtime replaces them by constants.

A step with subgraphs is one place in the order of its graph, and its subgraphs are looked at in the same way. All
replicas of the groups that meet in there have to take the same branch and as many iterations (see :mod:`.uniform`);
iterations follow one another, so the ids of a loop body come again in each, in the same order.

The ids of the collectives are unique and increase along the order. Of the branches of an If a replica sees one, so
each has ids of its own.
"""

from collections.abc import Sequence

import onnx_ir as ir

from bnpass.collectives.nodes import (
    FOREIGN,
    Predecessors,
    bodies,
    collectives_in,
    group_of,
    integer,
    is_collective,
    is_ours,
    is_step,
    predecessors,
    require_readable,
    topological,
)
from bnpass.collectives.uniform import Uniform
from bnpass.errors import Refusal, RefusalId, RefusedError
from bnpass.graph.nodes import described, label

_CONTROL = ("If", "Loop", "Scan")


def check_order(model: ir.Model, uniform: Sequence[str] = ()) -> None:
    """Prove the order of the collectives of a model, or refuse it.

    Args:
        model: The model; it is not changed.
        uniform: Names of graph inputs that are the same on all replicas.

    Raises:
        RefusedError: BN207: the order is not proved; the node is the one that comes too early, or the branch or loop
            that replicas might run differently. BN204, BN206, BN208: the model or a collective cannot be read.
        UsageError: The graph has no input of such a name.
    """
    check_same_way(model, uniform)
    _check_graph(model.graph, -1)


def check_same_way(model: ir.Model, uniform: Sequence[str] = ()) -> None:
    """Prove that all replicas of a group come to the same collectives: what no added dependency could change.

    Args:
        model: The model; it is not changed.
        uniform: Names of graph inputs that are the same on all replicas.

    Raises:
        RefusedError: As ``check_order``.
        UsageError: The graph has no input of such a name.
    """
    require_readable(model)
    _check_functions(model)
    known: dict[str, Uniform] = {}
    if uniform:
        known[""] = Uniform(model, uniform, "")  # a wrong name is one, whether or not it is asked for
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        inner = list(collectives_in(node))
        if inner and (node.domain != "" or node.op_type not in _CONTROL):
            raise _not_provable(node, f"it is not known when {described(node)} runs its subgraphs, with collectives")
        for group in dict.fromkeys(str(group_of(one)) for one in inner):
            if group not in known:
                known[group] = Uniform(model, uniform, group)
            if not known[group].same_way(node):
                raise _not_provable(node, _differs(node, group))


def last_steps(before: Predecessors, order: Sequence[ir.Node]) -> dict[ir.Node, int]:
    """Return for each node the place of the last step that it depends on, -1 for none, a step itself included not.

    Args:
        before: What the nodes of a graph wait for.
        order: The same nodes in topological order; steps are counted along it.
    """
    found: dict[ir.Node, int] = {}
    carried: dict[ir.Node, int] = {}
    steps = 0
    for node in order:
        found[node] = carried[node] = max((carried[one] for one in before[node]), default=-1)
        if is_step(node):
            carried[node] = steps
            steps += 1
        elif node.domain == "" and node.op_type in ("Shape", "Size"):
            carried[node] = -1
    return found


def _check_graph(graph: ir.Graph, last_id: int) -> int:
    """Check a graph and its subgraphs; return the highest id, or ``last_id`` if there is none."""
    before = predecessors(graph)
    order = topological(before)
    depends = last_steps(before, order)
    steps = [node for node in order if is_step(node)]
    for place, node in enumerate(steps):
        if depends[node] != place - 1:
            other = described(steps[place - 1])
            raise _not_provable(node, f"nothing makes {described(node)} wait for {other}: either could come first")
        if not is_collective(node):
            for body in bodies(node):
                last_id = _check_graph(body, last_id)
        elif node.domain != FOREIGN:  # those of ONNX Runtime have no id
            last_id = _next_id(node, last_id)
    return last_id


def _next_id(node: ir.Node, last_id: int) -> int:
    number = integer(node, "collective_id")
    if number is None or number <= last_id:
        found = "an id by reference" if number is None else f"id {number}"
        raise _not_provable(node, f"{described(node)} has {found}, after a collective with id {last_id}")
    return number


def _check_functions(model: ir.Model) -> None:
    """Refuse calls of functions with collectives: their ids would come once for each call."""
    holds: dict[ir.OperatorIdentifier, bool] = {}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if _calls_collectives(node, model, holds):
            raise _not_provable(node, f"the function that {described(node)} calls has collectives: inline it first")


def _calls_collectives(node: ir.Node, model: ir.Model, holds: dict[ir.OperatorIdentifier, bool]) -> bool:
    """Whether a node calls a function with collectives; the bodies of our own operators are not looked into."""
    identifier = node.op_identifier()
    if is_ours(node) or node.domain == FOREIGN or identifier not in model.functions:
        return False
    if identifier not in holds:
        holds[identifier] = False  # should it call itself
        body = model.functions[identifier].graph
        nodes = ir.traversal.RecursiveGraphIterator(body)
        holds[identifier] = any(is_collective(n) or _calls_collectives(n, model, holds) for n in nodes)
    return holds[identifier]


def _differs(node: ir.Node, group: str) -> str:
    what = {
        "If": "the condition of {} decides",
        "Loop": "the number of iterations of {} decides",
        "Scan": "the length that {} runs over decides",
    }[node.op_type].format(described(node))
    return (
        f"{what} which collectives of group '{group}' run, and could differ between replicas: it does not follow from "
        "constants, from uniform inputs and from sums over the group alone"
    )


def _not_provable(node: ir.Node, reason: str) -> RefusedError:
    return RefusedError(Refusal(RefusalId.ORDER_NOT_PROVABLE, label(node), reason))
