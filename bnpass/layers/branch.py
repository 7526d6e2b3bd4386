"""A choice between two modes at run time: the ``If`` of ONNX, with both branches written node by node."""

from collections.abc import Callable, Mapping

import onnx_ir as ir

from bnpass.ops.calls import typed
from bnpass.ops.emit import Emit

Branch = Callable[[Emit], Mapping[str, ir.Value]]


def choose(op: Emit, condition: ir.Value, then: Branch, otherwise: Branch) -> dict[str, ir.Value]:
    """Write an If over two branches that give the same names.

    Args:
        op: Where it is written.
        condition: A boolean scalar.
        then: Writes the nodes of the branch taken where the condition is true, and returns its values by name.
            It must make each of them: a value from outside goes through Identity.
        otherwise: Writes the other branch. It returns all those names, in any order.

    Returns:
        The outputs of the If by name, typed and shaped as those of ``then``.
    """
    made: dict[str, ir.Value] = {}
    graphs, writers = [], []
    for label, branch in (("then", then), ("else", otherwise)):
        inner = Emit(label)
        values = branch(inner)
        made = made or dict(values)
        graphs.append(ir.Graph([], [values[name] for name in made], nodes=inner.nodes, name=label))
        writers.append(inner)
    outputs = op.many("If", [condition], list(made), then_branch=graphs[0], else_branch=graphs[1])
    prefix = outputs[0].name
    for inner in writers:  # inner names must differ from all outer ones: they begin with that of the If
        for node in inner.nodes:
            node.name = f"{prefix}/{node.name}"
            for value in node.outputs:
                value.name = value.name and f"{prefix}/{value.name}"
    for output, value in zip(outputs, made.values(), strict=True):
        typed(output, value.dtype, value.shape)
    return dict(zip(made, outputs, strict=True))
