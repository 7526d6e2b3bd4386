"""Variables become inputs, and what a run writes to them becomes values.

TensorFlow orders reads and writes of a variable by control inputs alone. Here the graph is gone through in one of the
orders that these allow, and each read gets the value that the variable has then:

    1. what the outputs need that comes after no write, and not what these writes need
    2. the updates, in the order of their collection, each with what it needs
    3. what the outputs still need
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnpass.exporting.errors import ExportError
from bnpass.exporting.graphs.freeze import VARIABLES, is_write, plain_errors
from bnpass.exporting.graphs.proto import (
    add_integer,
    ancestors,
    attribute,
    behind,
    by_name,
    free_name,
    in_one_line,
    is_control,
    node_of,
)
from bnpass.exporting.graphs.uses import HANDS_ON, Use, Uses

_ADDS = {"AssignAdd": "AddV2", "AssignAddVariableOp": "AddV2", "AssignSub": "Sub", "AssignSubVariableOp": "Sub"}
_READS = {"ReadVariableOp": "Identity", "ResourceGather": "GatherV2", "ResourceGatherNd": "GatherNd",
          "VariableShape": "Shape"}  # fmt: skip
_LOOPS_AND_BRANCHES = ("If", "StatelessIf", "Case", "StatelessCase", "While", "StatelessWhile")

ASSIGNS = ("Assign", "AssignVariableOp", *_ADDS)
"""The writes that have values."""


@dataclass(frozen=True)
class Threaded:
    """What became of the variables of a graph.

    Attributes:
        defaults: Their values, by name; each is a placeholder of that name now.
        updated: Tensors of new values, by the variables that are written.
        unordered: Variables that several ops write without an order.
    """

    defaults: Mapping[str, NDArray[Any]]
    updated: Mapping[str, str]
    unordered: tuple[str, ...]


def threaded(graph_def: Any, session: Any, outputs: Sequence[str], updates: Sequence[str]) -> Threaded:  # noqa: ANN401
    """Make placeholders of the variables of a graph, and values of what is written to them.

    Args:
        graph_def: Without calls of functions, and with nothing but what outputs and updates need; changed in place.
        session: Holds the values of the variables.
        outputs: Tensors.
        updates: Nodes that are run besides.

    Raises:
        ExportError: A variable has no value, or is used in a way that no value can be; the node is named.
    """
    run, nodes = _Run(graph_def), by_name(graph_def)
    wanted = [node_of(tensor) for tensor in outputs]
    writes = {node.name for node in graph_def.node if is_write(node)}
    later = behind(graph_def, writes, control=True)
    run.go([name for name in ancestors(wanted, nodes, control=True, up_to=writes) if name not in later])
    run.go(updates)
    run.go(wanted)
    unordered = tuple(name for name, writes in run.writes.items() if not _are_ordered(writes, nodes))
    defaults = _values(session, [node for node in graph_def.node if node.op in VARIABLES])
    run.rewire()
    updated = {name: _end(graph_def, name, run.current[name]) for name in run.writes}
    for name, value in defaults.items():
        _become_placeholder(nodes[name], value)
    return Threaded(defaults, updated, unordered)


def _are_ordered(writes: Sequence[str], nodes: dict[str, Any]) -> bool:
    return all(before in ancestors([after], nodes, control=True) for before, after in pairwise(writes))


def _values(session: Any, variables: Sequence[Any]) -> dict[str, NDArray[Any]]:  # noqa: ANN401
    """Read variables as freezing reads them."""
    tensors = [f"{v.name}/Read/ReadVariableOp:0" if v.op == "VarHandleOp" else f"{v.name}:0" for v in variables]
    with in_one_line("the values of the variables cannot be read"), plain_errors():
        found = session.run(tensors)
    return {variable.name: np.asarray(value) for variable, value in zip(variables, found, strict=True)}


def _become_placeholder(node: Any, value: NDArray[Any]) -> None:  # noqa: ANN401
    from tensorflow.python.framework import tensor_shape

    dtype = attribute(node, "dtype").type
    node.op = "Placeholder"
    node.attr.clear()
    node.attr["dtype"].type = dtype
    node.attr["shape"].shape.CopyFrom(tensor_shape.TensorShape(value.shape).as_proto())


def _end(graph_def: Any, variable: str, tensor: str) -> str:  # noqa: ANN401
    """Write an op of its own for a new value, which may be an output by another name too."""
    dtype = attribute(by_name(graph_def)[variable], "dtype").type
    node = graph_def.node.add(name=free_name(graph_def, f"{variable}/updated"), op="Identity", input=[tensor])
    node.attr["T"].type = dtype
    return f"{node.name}:0"


class _Run:
    """A run of a graph in one order.

    Args:
        graph_def: The graph; only ``rewire`` changes it.

    Attributes:
        current: Tensors of the values that variables have, of those that were written.
        writes: By variable, the nodes that wrote it.
    """

    def __init__(self, graph_def: Any) -> None:  # noqa: ANN401
        self.current: dict[str, str] = {}
        self.writes: dict[str, list[str]] = {}
        self._graph_def = graph_def
        self._nodes = by_name(graph_def)
        self._uses = Uses(graph_def)
        self._done: set[str] = set()
        self._new: dict[str, tuple[str, str, list[str]]] = {}  # by node: its new op and inputs, and its variable

    def go(self, names: Sequence[str]) -> None:
        """Run nodes, each after what it needs."""
        waiting = [(name, False) for name in reversed(names)]
        while waiting:
            name, is_ready = waiting.pop()
            if is_ready:
                self._run(self._nodes[name])
            elif name not in self._done:
                self._done.add(name)
                waiting.append((name, True))
                waiting += [(node_of(reference), False) for reference in reversed(self._nodes[name].input)]

    def rewire(self) -> None:
        """Write into the graph what the run has found."""
        handing = {node.name: use for node in self._graph_def.node if (use := self._uses.handed_on_by(node))}
        dtypes = {node.name: attribute(node, "dtype").type for node in self._nodes.values() if node.op in VARIABLES}
        for name, use in handing.items():
            node = self._nodes[name]
            node.op = HANDS_ON[node.op]
            node.attr["T"].type = dtypes[use.variable]
        for name, (op, variable, inputs) in self._new.items():
            _become(self._graph_def, self._nodes[name], op, inputs, dtypes[variable])

    def _run(self, node: Any) -> None:  # noqa: ANN401
        uses = self._uses.by_input(node)
        data = [reference for reference in node.input if not is_control(reference)]
        if is_write(node):
            self._write(node, data, uses)
        elif uses and self._uses.handed_on_by(node) is None and node.op != "IdentityN":
            self._read(node, data, uses)

    def _write(self, node: Any, data: list[str], uses: dict[int, Use]) -> None:  # noqa: ANN401
        use = uses.pop(0, None)
        if use is None or node.op not in ASSIGNS or any(other.is_handle for other in uses.values()):
            raise ExportError(f"'{node.name}' ({node.op}) changes a variable in a way that a training "
                              "export has no output for")  # fmt: skip
        if use.inside:
            raise ExportError(f"'{node.name}' ({node.op}) changes variable '{use.variable}' in a loop or a branch that "
                              "is not decided")  # fmt: skip
        value = self._value(uses[1], data[1], node) if uses else data[1]
        before = self.current.get(use.variable, f"{use.variable}:0")
        inputs = [before, value] if node.op in _ADDS else [value]
        self._new[node.name] = (_ADDS.get(node.op, "Identity"), use.variable, inputs)
        self.current[use.variable] = f"{node.name}:0"
        self.writes.setdefault(use.variable, []).append(node.name)

    def _read(self, node: Any, data: list[str], uses: dict[int, Use]) -> None:  # noqa: ANN401
        handles = [i for i, use in uses.items() if use.is_handle]
        is_known = node.op in _READS and handles == [0] if handles else not node.op.startswith("Ref")
        if not is_known:
            where = ", a loop or a branch that is not decided," if node.op in _LOOPS_AND_BRANCHES else ""
            variable = next(iter(uses.values())).variable
            raise ExportError(f"'{node.name}' ({node.op}){where} uses variable '{variable}', which cannot be an input "
                              "there, as it is in a training export")  # fmt: skip
        inputs = [self._value(uses[i], reference, node) if i in uses else reference for i, reference in enumerate(data)]
        self._new[node.name] = (_READS.get(node.op, node.op), next(iter(uses.values())).variable, inputs)

    def _value(self, use: Use, reference: str, node: Any) -> str:  # noqa: ANN401
        """Return what a variable is now, where a node reads it."""
        if not use.inside:
            return self.current.get(use.variable, f"{use.variable}:0")
        if use.variable in self.current:
            raise ExportError(f"'{node.name}' ({node.op}) reads variable '{use.variable}' in a loop or a branch that "
                              "is not decided, after the graph has changed it")  # fmt: skip
        return reference


def _become(graph_def: Any, node: Any, op: str, inputs: list[str], dtype: int) -> None:  # noqa: ANN401
    """Let a node compute a value; what it comes after, it still comes after."""
    from tensorflow.core.framework import types_pb2

    order = [reference for reference in node.input if is_control(reference)]
    if op != node.op:
        kept = {name: getattr(attribute(node, name), kind) for name, kind in _KEPT.get(op, {}).items()}
        if op == "GatherV2":  # of batches, a ResourceGather takes the axis after them
            inputs = [*inputs, add_integer(graph_def, f"{node.name}/axis", kept["batch_dims"])]
        node.op = op
        node.attr.clear()
        node.attr["Tparams" if op.startswith("Gather") else "T"].type = dtype
        for name, value in kept.items():
            setattr(node.attr[name], _KEPT[op][name], value)
        if op == "GatherV2":
            node.attr["Taxis"].type = types_pb2.DT_INT32
    node.input[:] = [*inputs, *order]


_KEPT = {
    "GatherV2": {"Tindices": "type", "batch_dims": "i"},
    "GatherNd": {"Tindices": "type"},
    "Shape": {"out_type": "type"},
}
"""Attributes that an op has in common with the one that it takes the place of."""
