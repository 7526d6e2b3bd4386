"""Which nodes are collectives, and what has to be computed before what.

A collective is met by all replicas of a group together: ``AllReduce``, ``SyncBatchNormalization`` in training mode,
``SyncBatchNormalizationGrad`` and ``SyncBatchMoments`` of the domain ``bnpass``, if they name a group, and the
collectives of ``com.microsoft``, whose group is the world. A node whose subgraphs hold collectives is one step of the
graph it stands in: it waits for everything that its subgraphs capture, and it is done when they are.
"""

import heapq
from collections.abc import Iterator

import onnx_ir as ir

from bnpass.errors import Refusal, RefusalId, RefusedError
from bnpass.graph.nodes import described, label, operand
from bnpass.ops import DOMAIN, GROUP_NAME, MIN_OPSET

FOREIGN = "com.microsoft"
"""The domain of ONNX Runtime's own collectives."""

WORLD = "world"
"""The group of all replicas."""

AFTER = {"AllReduce": 1, "SyncBatchMoments": 1, "SyncBatchNormalization": 5, "SyncBatchNormalizationGrad": 6}
"""Our operators, with the input slot of ``after``."""

RESULT = {"AllReduce": 0, "SyncBatchMoments": 2, "SyncBatchNormalization": 5, "SyncBatchNormalizationGrad": 2}
"""The output slot that is there whenever the collective is: Y, count, count, dB."""

_FOREIGN_OPS = frozenset({"AllReduce", "AllGather", "AllToAll"})

Predecessors = dict[ir.Node, list[ir.Node]]
"""The nodes of a graph in order, each with the nodes of the same graph that it waits for."""


def is_ours(node: ir.Node) -> bool:
    """Whether the node is one of our four operators, with or without a group."""
    return node.domain == DOMAIN and node.op_type in AFTER


def is_collective(node: ir.Node) -> bool:
    """Whether the node is a collective; the group of a node in a function may be an attribute of the function.

    Raises:
        RefusedError: BN206, BN208: its mode or its group cannot be read.
    """
    if node.domain == FOREIGN:
        return node.op_type in _FOREIGN_OPS
    if not is_ours(node) or group_of(node) == "":
        return False
    return node.op_type != "SyncBatchNormalization" or integer(node, "training_mode") != 0


def group_of(node: ir.Node) -> str | None:
    """Return the group of one of our operators or of a collective, ``""`` for none; None: it is given by reference.

    Raises:
        RefusedError: BN206, BN208: it is no name.
    """
    if node.domain == FOREIGN:
        return WORLD
    name = text(node, "group")
    if name and not GROUP_NAME.fullmatch(name):
        raise RefusedError(Refusal(RefusalId.BAD_GROUP, label(node), f"'{name}' is not the name of a group"))
    return name


def integer(node: ir.Node, name: str) -> int | None:
    """Return an integer attribute, 0 if it is left out; None: it is given by reference.

    Raises:
        RefusedError: BN206: it is of another type.
    """
    attribute = node.attributes.get(name)
    if attribute is None or attribute.is_ref():
        return 0 if attribute is None else None
    value = attribute.value
    if not isinstance(value, int):
        raise _bad_attribute(node, name, "an integer")
    return value


def text(node: ir.Node, name: str, default: str = "") -> str | None:
    """Return a text attribute, or ``default`` if it is left out; None: it is given by reference.

    Raises:
        RefusedError: BN206: it is of another type.
    """
    attribute = node.attributes.get(name)
    if attribute is None or attribute.is_ref():
        return default if attribute is None else None
    value = attribute.value
    if not isinstance(value, str):
        raise _bad_attribute(node, name, "a text")
    return value


def _bad_attribute(node: ir.Node, name: str, kind: str) -> RefusedError:
    return RefusedError(Refusal(RefusalId.BAD_ATTRIBUTE, label(node), f"its attribute '{name}' is not {kind}"))


def message_of(node: ir.Node) -> ir.Value:
    """Return what a collective sends: its first input.

    Raises:
        RefusedError: BN206: there is none.
    """
    value = operand(node, 0)
    if value is None:
        raise RefusedError(Refusal(RefusalId.BAD_ATTRIBUTE, label(node), f"{described(node)} has no input"))
    return value


def bodies(node: ir.Node) -> list[ir.Graph]:
    """Return the subgraphs of a node, in the order of its attributes."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found.extend(attribute.as_graphs())
    return found


def body_of(node: ir.Node, name: str) -> ir.Graph:
    """Return the subgraph that an If, Loop or Scan must have.

    Raises:
        RefusedError: BN206: it has none.
    """
    attribute = node.attributes.get(name)
    if attribute is None or attribute.type != ir.AttributeType.GRAPH or attribute.is_ref():
        raise _bad_attribute(node, name, "a graph")
    return attribute.as_graph()


def collectives(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yield the collectives of a graph and its subgraphs, in graph order."""
    return (node for node in ir.traversal.RecursiveGraphIterator(graph) if is_collective(node))


def collectives_in(node: ir.Node) -> Iterator[ir.Node]:
    """Yield the collectives of the subgraphs of a node."""
    return (found for body in bodies(node) for found in collectives(body))


def holds_collectives(graph: ir.Graph) -> bool:
    """Whether a graph or one of its subgraphs has a collective."""
    return any(True for _ in collectives(graph))


def is_step(node: ir.Node) -> bool:
    """Whether replicas meet here: a collective, or a node with collectives in its subgraphs."""
    return is_collective(node) or any(holds_collectives(body) for body in bodies(node))


def require_readable(model: ir.Model) -> None:
    """Refuse a model whose collectives cannot be read, or which is older than the ops written around them.

    Raises:
        RefusedError: BN204: the opset. BN206, BN208: an attribute or an input of a collective.
    """
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx"))
    for node in collectives(model.graph):
        if opset is None or opset < MIN_OPSET:
            has = "none" if opset is None else f"opset {opset}"
            reason = f"collectives are put in order in models of opset {MIN_OPSET} or newer, and this one imports {has}"
            raise RefusedError(Refusal(RefusalId.OPSET_NOT_UPGRADABLE, label(node), reason))
        for name in ("group", "reduction", "collective_id", "training_mode"):
            if name in node.attributes and node.attributes[name].is_ref():
                raise _bad_attribute(node, name, "a value: it is a reference, outside of a function")
        message_of(node)


def predecessors(graph: ir.Graph) -> Predecessors:
    """Return what the nodes of a graph wait for: producers of inputs, and of what subgraphs capture.

    Raises:
        RefusedError: BN207: a subgraph returns a value of the graph around it, which ONNX Runtime refuses too.
    """
    return {node: list(dict.fromkeys(_awaited(node, graph))) for node in graph}


def _awaited(node: ir.Node, graph: ir.Graph) -> Iterator[ir.Node]:
    inner = (n for body in bodies(node) for n in ir.traversal.RecursiveGraphIterator(body))
    for reader in (node, *inner):
        for value in reader.inputs:
            producer = value.producer() if value is not None else None
            if producer is not None and producer.graph is graph:
                yield producer
        for body in bodies(reader):
            _refuse_returned_capture(node, body)


def _refuse_returned_capture(node: ir.Node, body: ir.Graph) -> None:
    for value in body.outputs:
        if value.producer() is None and not value.is_graph_input() and not value.is_initializer():
            reason = f"a subgraph of {described(node)} returns '{value.name}', which it does not produce"
            raise RefusedError(Refusal(RefusalId.ORDER_NOT_PROVABLE, label(node), reason))


def topological(before: Predecessors) -> list[ir.Node]:
    """Return the nodes with each behind those it waits for, and in the order they are in as far as that allows.

    Raises:
        RefusedError: BN207: there is a cycle.
    """
    place = {node: i for i, node in enumerate(before)}
    nodes = list(before)
    waiting = {node: len(awaited) for node, awaited in before.items()}
    readers: dict[ir.Node, list[ir.Node]] = {node: [] for node in nodes}
    for node, awaited in before.items():
        for one in awaited:
            readers[one].append(node)
    ready = [place[node] for node in nodes if not waiting[node]]
    result: list[ir.Node] = []
    while ready:
        node = nodes[heapq.heappop(ready)]
        result.append(node)
        for reader in readers[node]:
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, place[reader])
    if len(result) < len(nodes):
        stuck = next(node for node in nodes if waiting[node])
        reason = f"{described(stuck)} waits, in the end, for itself"
        raise RefusedError(Refusal(RefusalId.ORDER_NOT_PROVABLE, label(stuck), reason))
    return result


def sort(graph: ir.Graph) -> Predecessors:
    """Bring the nodes of a graph, not those of its subgraphs, into topological order; return what they wait for.

    Raises:
        RefusedError: BN207: there is a cycle.
    """
    before = predecessors(graph)
    nodes = topological(before)
    if nodes != list(before):
        graph.remove(nodes)
        graph.extend(nodes)
    return {node: before[node] for node in nodes}


def unused_prefix(model: ir.Model, wanted: str) -> str:
    """Return a prefix that no node and no value of a model begins with."""
    taken: set[str] = set()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        taken.update(name for name in (node.name, *(v.name for v in node.outputs)) if name)
        for body in bodies(node):
            taken.update(v.name for v in (*body.inputs, *body.initializers.values()) if v.name)
    taken.update(v.name for v in (*model.graph.inputs, *model.graph.initializers.values()) if v.name)
    number, prefix = 1, wanted
    while any(name.startswith(f"{prefix}/") for name in taken):
        number += 1
        prefix = f"{wanted}_{number}"
    return prefix
