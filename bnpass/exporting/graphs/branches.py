"""Branches whose condition is a constant: the one that is taken stays, the other one goes.

If, StatelessIf     becomes the call of a function
Switch, Merge       TensorFlow 1: what the condition makes dead is followed from Switch to Merge
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from bnpass.exporting.graphs.proto import (
    add_integer,
    attribute,
    by_name,
    followed,
    is_control,
    node_of,
    rename_tensors,
    set_identity,
    tensor_of,
)

_CALL = {"If": "StatefulPartitionedCall", "StatelessIf": "PartitionedCall"}
_SWITCHES, _MERGES = ("Switch", "RefSwitch"), ("Merge", "RefMerge")
_ALIKE = ("Identity", "IdentityN", "PlaceholderWithDefault", "StopGradient", "Squeeze", "Reshape")

_Nodes = dict[str, Any]


def decide(graph_def: Any) -> bool:  # noqa: ANN401
    """Take the branches that are decided; return whether there were any. The graph is changed in place."""
    nodes = by_name(graph_def)
    calls = [node for node in graph_def.node if node.op in _CALL and _take(node, nodes)]
    return _drop_dead(graph_def, nodes) or bool(calls)


def _condition(reference: str, nodes: _Nodes) -> bool | None:
    """Return what a boolean is, if it is known."""
    node = nodes.get(node_of(reference))
    if node is None:
        return None
    if node.op == "Const":
        return _constant(node)
    inputs = [i for i in node.input if not is_control(i)]
    if node.op in _ALIKE and inputs:
        position = int(tensor_of(reference).split(":")[-1]) if node.op == "IdentityN" else 0
        return _condition(inputs[position], nodes)
    if node.op == "LogicalNot":
        known = _condition(inputs[0], nodes)
        return None if known is None else not known
    if node.op in ("LogicalAnd", "LogicalOr"):
        known_pair = {_condition(i, nodes) for i in inputs}
        decisive = node.op == "LogicalOr"
        return decisive if decisive in known_pair else None if None in known_pair else not decisive
    return None


def _constant(node: Any) -> bool | None:  # noqa: ANN401
    from tensorflow.python.framework import tensor_util

    value = tensor_util.MakeNdarray(attribute(node, "value").tensor)
    return bool(value.reshape(())) if value.size == 1 and value.dtype.kind in "bi" else None


def _take(node: Any, nodes: _Nodes) -> bool:  # noqa: ANN401
    """Make an If the call of its branch, if it is decided."""
    known = _condition(node.input[0], nodes)
    if known is None:
        return False
    branch = attribute(node, "then_branch" if known else "else_branch").func
    types = attribute(node, "Tin").list, attribute(node, "Tout").list
    node.op = _CALL[node.op]
    inputs = [*node.input[1:], f"^{node_of(node.input[0])}"]  # what the condition comes after, the call does too
    node.input[:] = inputs
    kept = [type(kind)() for kind in types]
    for copy, kind in zip(kept, types, strict=True):
        copy.CopyFrom(kind)
    function = type(branch)()
    function.CopyFrom(branch)
    node.attr.clear()
    node.attr["Tin"].list.CopyFrom(kept[0])
    node.attr["Tout"].list.CopyFrom(kept[1])
    node.attr["f"].func.CopyFrom(function)
    return True


def _drop_dead(graph_def: Any, nodes: _Nodes) -> bool:  # noqa: ANN401
    """Take Switch and Merge away where the condition is known."""
    taken = {
        n.name: p for n in graph_def.node if n.op in _SWITCHES and (p := _condition(n.input[1], nodes)) is not None
    }
    if not taken:
        return False
    dead = _Dead({f"{name}:{int(not branch)}" for name, branch in taken.items()}, graph_def)
    names = {f"{name}:{int(branch)}": tensor_of(nodes[name].input[0]) for name, branch in taken.items()}
    for node in [node for node in graph_def.node if node.op in _MERGES and node.name not in dead.nodes]:
        inputs = [reference for reference in node.input if not is_control(reference)]
        alive = [reference for reference in inputs if not dead.reads(reference)]
        if len(alive) == 1 < len(inputs):
            # its second output says which input it has taken
            names[f"{node.name}:1"] = add_integer(graph_def, f"{node.name}/value_index", inputs.index(alive[0]))
            set_identity(node, alive[0])
    kept = [_copy(node) for node in graph_def.node if node.name not in dead.nodes and node.name not in taken]
    _keep_order(kept, {name: nodes[name] for name in taken})
    rename_tensors(kept, followed(names))
    present = {node.name for node in kept}
    for node in kept:
        # what comes after a branch that is not taken, comes after nothing
        node.input[:] = [i for i in node.input if not is_control(i) or node_of(i) in present]
    del graph_def.node[:]
    graph_def.node.extend(kept)
    return True


def _keep_order(readers: Sequence[Any], switches: _Nodes) -> None:
    """Let what reads a Switch come after what this comes after, and after its condition."""
    for reader in readers:
        order: dict[str, None] = {}
        waiting, seen = [node_of(reference) for reference in reader.input], set[str]()
        while waiting:
            name = waiting.pop()
            if name in switches and name not in seen:
                seen.add(name)
                data, condition, *before = switches[name].input
                order |= dict.fromkeys([*before, f"^{node_of(condition)}"])
                waiting += [node_of(data), node_of(condition)]
        reader.input.extend(reference for reference in order if reference not in reader.input)


def _copy(node: Any) -> Any:  # noqa: ANN401
    copy = type(node)()
    copy.CopyFrom(node)
    return copy


class _Dead:
    """What no branch that is taken makes.

    Args:
        tensors: Where it begins: outputs of Switches.
        graph_def: The graph.
    """

    def __init__(self, tensors: set[str], graph_def: Any) -> None:  # noqa: ANN401
        self.tensors = tensors
        self.nodes: set[str] = set()
        readers: dict[str, list[Any]] = defaultdict(list)
        for node in graph_def.node:
            for reference in node.input:
                readers[node_of(reference)].append(node)
        waiting = [node_of(tensor) for tensor in tensors]
        while waiting:
            for node in readers[waiting.pop()]:
                if node.name not in self.nodes and self._holds(node):
                    self.nodes.add(node.name)
                    waiting.append(node.name)

    def reads(self, reference: str) -> bool:
        """Whether an input is dead."""
        return node_of(reference) in self.nodes or (not is_control(reference) and tensor_of(reference) in self.tensors)

    def _holds(self, node: Any) -> bool:  # noqa: ANN401
        if node.op in _MERGES:
            return all(self.reads(reference) for reference in node.input if not is_control(reference))
        return any(self.reads(reference) for reference in node.input)
