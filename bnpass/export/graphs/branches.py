"""Branches whose condition is a constant: the one that is taken stays, the other one goes.

If, StatelessIf     becomes the call of a function
Switch, Merge       TensorFlow 1: what the condition makes dead is followed from Switch to Merge
"""

from collections import defaultdict
from typing import Any

from bnpass.export.graphs.proto import by_name, is_control, node_of, rename_tensors, set_identity, tensor_of

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

    value = tensor_util.MakeNdarray(node.attr["value"].tensor)
    return bool(value.reshape(())) if value.size == 1 and value.dtype.kind in "bi" else None


def _take(node: Any, nodes: _Nodes) -> bool:  # noqa: ANN401
    """Make an If the call of its branch, if it is decided."""
    known = _condition(node.input[0], nodes)
    if known is None:
        return False
    branch = node.attr["then_branch" if known else "else_branch"].func
    types = node.attr["Tin"].list, node.attr["Tout"].list
    node.op = _CALL[node.op]
    inputs = list(node.input[1:])
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
    dead = _dead(graph_def, taken)
    names: dict[str, str] = {}
    for name, branch in taken.items():
        names[f"{name}:{int(branch)}"] = tensor_of(nodes[name].input[0])
    for node in graph_def.node:
        if node.op in _MERGES and f"{node.name}:0" not in dead:
            alive = [i for i in node.input if not is_control(i) and tensor_of(i) not in dead]
            if len(alive) == 1 and len(alive) < sum(not is_control(i) for i in node.input):
                names[f"{node.name}:1"] = _index(graph_def, node, alive[0])
                set_identity(node, alive[0])
    kept = [node for node in graph_def.node if f"{node.name}:0" not in dead or node.name in taken]
    copies = [type(node)() for node in kept if node.name not in taken]
    for copy, node in zip(copies, (n for n in kept if n.name not in taken), strict=True):
        copy.CopyFrom(node)
    rename_tensors(copies, _followed(names))
    present = {copy.name for copy in copies}
    for copy in copies:
        # a node can be ordered behind a dead one only by what joined two branches
        copy.input[:] = [i for i in copy.input if not is_control(i) or node_of(i) in present]
    del graph_def.node[:]
    graph_def.node.extend(copies)
    return True


def _followed(names: dict[str, str]) -> dict[str, str]:
    """Return names of which none leads to another: a Switch can read a Switch."""
    found = {}
    for name, target in names.items():
        while target in names:
            target = names[target]
        found[name] = target
    return found


def _dead(graph_def: Any, taken: dict[str, bool]) -> set[str]:  # noqa: ANN401
    """Return the tensors that no branch that is taken makes; ``name:0`` stands for the whole of other nodes."""
    readers: dict[str, list[Any]] = defaultdict(list)
    for node in graph_def.node:
        for reference in node.input:
            readers[node_of(reference)].append(node)
    dead = {f"{name}:{int(not branch)}" for name, branch in taken.items()}
    waiting = [node_of(tensor) for tensor in dead]
    while waiting:
        name = waiting.pop()
        for node in readers[name]:
            if f"{node.name}:0" in dead or node.name in taken and not _reads_dead(node, dead, taken):
                continue
            if _is_dead(node, dead, taken):
                dead |= {f"{node.name}:{i}" for i in range(_width(node))}
                waiting.append(node.name)
    return dead


def _reads_dead(node: Any, dead: set[str], taken: dict[str, bool]) -> bool:  # noqa: ANN401
    return any(_is_dead_input(reference, dead, taken) for reference in node.input)


def _is_dead(node: Any, dead: set[str], taken: dict[str, bool]) -> bool:  # noqa: ANN401
    found = [_is_dead_input(reference, dead, taken) for reference in node.input if not is_control(reference)]
    if node.op in _MERGES:
        return all(found)
    return _reads_dead(node, dead, taken)


def _is_dead_input(reference: str, dead: set[str], taken: dict[str, bool]) -> bool:
    if not is_control(reference):
        return tensor_of(reference) in dead
    name = node_of(reference)
    return name not in taken and f"{name}:0" in dead


def _width(node: Any) -> int:  # noqa: ANN401
    """Return a number of outputs that a node does not exceed."""
    return (
        2 if node.op in (*_SWITCHES, *_MERGES) else max(8, len(node.attr["Tout"].list.type), node.attr["num_split"].i)
    )


def _index(graph_def: Any, node: Any, alive: str) -> str:  # noqa: ANN401
    """Write which input a Merge has taken, its second output."""
    from tensorflow.core.framework import types_pb2
    from tensorflow.python.framework import tensor_util

    position = [i for i in node.input if not is_control(i)].index(alive)
    constant = graph_def.node.add(name=f"{node.name}/value_index", op="Const")
    constant.attr["dtype"].type = types_pb2.DT_INT32
    constant.attr["value"].tensor.CopyFrom(tensor_util.make_tensor_proto(position, dtype="int32", shape=[]))
    return f"{constant.name}:0"
