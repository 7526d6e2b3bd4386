"""The inputs and outputs of an exported model: their names, their lengths, and where its state goes in and out.

A variable of a training export is an input with a default, so a session can be run with the data alone; a training
loop feeds each output back to the input that ``bnpass.state`` in the metadata pairs it with:

    {"variable": "bn/moving_mean", "input": …, "output": … or null, "trainable": false, "permutation": null}

``permutation`` says how the axes of the framework's value are put for ONNX: ``np.transpose(value, permutation)``.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnpass.exporting.ports import Port, State, unique
from bnpass.exporting.trace import Traced

STATE = "bnpass.state"
"""The key of the metadata that pairs inputs and outputs."""

_BATCH = "N"


@dataclass(frozen=True)
class Settled:
    """A variable in the exported model.

    Attributes:
        state: The variable.
        input: The input that its value goes in by.
        output: The output that its new value comes out by; None if the graph does not change it.
        permutation: How the axes of the framework's value are put for ONNX; None: as they are.
    """

    state: State
    input: str
    output: str | None
    permutation: tuple[int, ...] | None

    def for_onnx(self, value: NDArray[Any]) -> NDArray[Any]:
        """Return a value of the framework in the layout of the exported model."""
        return value if self.permutation is None else np.ascontiguousarray(np.transpose(value, self.permutation))

    def line(self) -> dict[str, object]:
        """Return what the metadata say of it."""
        return {
            "variable": self.state.name,
            "input": self.input,
            "output": self.output,
            "trainable": self.state.trainable,
            "permutation": self.permutation,
            "initializer": self.state.initializer,
        }


def settle(model: ir.Model, traced: Traced) -> tuple[Settled, ...]:
    """Name inputs and outputs, and give a training export its state.

    Args:
        model: Converted and assembled; changed in place.
        traced: What it was converted from.

    Returns:
        The variables, in the order of ``traced.state``.
    """
    graph = model.graph
    _forget_unknown_lengths(graph)
    _separate(graph)
    outputs = [*traced.outputs, *(s.output for s in traced.state if s.output)]
    inputs = [*traced.inputs, *(s.input for s in traced.state)]
    names = unique([port.name for port in (*inputs, *outputs)])
    found = {value.name: value for value in graph.inputs}
    graph.inputs[:] = [found.get(port.tensor) or _unused(port) for port in inputs]
    _rename(graph, dict(zip((*graph.inputs, *graph.outputs), names, strict=True)))
    for value, port in zip(graph.inputs[: len(traced.inputs)], traced.inputs, strict=True):
        value.shape = _lengths(value.name or "", port, first=_BATCH)
    for value, port in zip(graph.outputs, outputs, strict=True):
        value.shape = _lengths(value.name or "", port, first=None)
    given = graph.inputs[len(traced.inputs) :]
    made = iter(graph.outputs[len(traced.outputs) :])
    pairs = zip(traced.state, given, strict=True)
    settled = tuple(_settle_state(graph, s, value, next(made) if s.output else None) for s, value in pairs)
    if settled:
        model.metadata_props[STATE] = json.dumps([one.line() for one in settled])
    return settled


def _settle_state(graph: ir.Graph, state: State, value: ir.Value, new: ir.Value | None) -> Settled:
    """Give an input its default, in the layout in which ONNX wants it."""
    permutation = None if new is not None else _absorb_transpose(value)
    settled = Settled(state, str(value.name), None if new is None else new.name, permutation)
    default = settled.for_onnx(state.default)
    value.shape = ir.Shape(default.shape)
    value.const_value = ir.tensor(default, name=value.name)
    graph.register_initializer(value)
    return settled


def _absorb_transpose(value: ir.Value) -> tuple[int, ...] | None:
    """Take away the Transposes that alone read a weight, and return what they did."""
    readers = [node for node, _ in value.uses()]
    if not readers or any(node.op_type != "Transpose" for node in readers):
        return None
    orders = {tuple(node.attributes["perm"].as_ints()) for node in readers}
    if len(orders) != 1 or any(output.is_graph_output() for node in readers for output in node.outputs):
        return None
    for node in readers:
        ir.convenience.replace_all_uses_with(node.outputs, [value])
        if node.graph is not None:
            node.graph.remove(node, safe=True)
    return orders.pop()


def _forget_unknown_lengths(graph: ir.Graph) -> None:
    """Take away tf2onnx's names of unknown lengths: it names what is equal, and what is not, at random."""
    for value in [*graph.inputs, *graph.outputs, *(v for node in graph.all_nodes() for v in node.outputs)]:
        if value.shape is not None:
            value.shape = ir.Shape([n if isinstance(n, int) else None for n in value.shape])


def _separate(graph: ir.Graph) -> None:
    """Give each output a node of its own, so that it can have a name of its own."""
    seen: set[ir.Value] = set()
    for index, value in enumerate(graph.outputs):
        if value.producer() is None or value in seen:
            copy = ir.Node("", "Identity", [value], name=f"output_{index}")
            copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
            graph.append(copy)
            graph.outputs[index] = copy.outputs[0]
        seen.add(graph.outputs[index])


def _rename(graph: ir.Graph, names: dict[ir.Value, str]) -> None:
    """Give values their names; others that have one of these make room."""
    wanted, taken = set(names.values()), set(names.values())
    for node in graph.all_nodes():
        taken |= {value.name for value in node.outputs if value.name}
    for node in graph.all_nodes():
        for value in node.outputs:
            if value.name in wanted and value not in names:
                value.name = unique([*taken, value.name])[-1]
                taken.add(value.name)
    for name in [name for name in graph.initializers if name in wanted]:
        initializer = graph.initializers[name]
        new = unique([*taken, name])[-1]
        taken.add(new)
        initializer.name = new
    for value, name in names.items():
        value.name = name


def _unused(port: Port) -> ir.Value:
    return ir.Value(name=port.tensor, type=ir.TensorType(_type(port)))


def _type(port: Port) -> ir.DataType:
    import ml_dtypes

    numpy = ml_dtypes.bfloat16 if port.dtype == "bfloat16" else port.dtype
    return ir.DataType.from_numpy(np.dtype(numpy))


def _lengths(name: str, port: Port, first: str | None) -> ir.Shape | None:
    if port.shape is None:
        return None
    lengths: Sequence[int | str | None] = [
        n if n is not None else first if i == 0 else None if first is None else f"{name}_{i}"
        for i, n in enumerate(port.shape)
    ]
    return ir.Shape(lengths)
