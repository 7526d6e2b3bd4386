"""Nodes that change nothing: exporters leave them where they changed a layout.

    Identity(x)
    Reshape(x)             [N, 64, 1, 1] to [-1, 64, 1, 1]
    Reshape(Squeeze(x))    [N, 64, 1, 1] to [N, 64] to [N, 64, 1, 1]

Reshape, Flatten, Squeeze and Unsqueeze keep the order of the elements: values along a chain of them are one value
where their shapes are.
"""

from collections.abc import Callable, Iterator
from itertools import islice

import onnx_ir as ir

from bnpass.graph.constants import integer_argument
from bnpass.graph.nodes import Scope, bypass, is_standard, label, nodes_of
from bnpass.graph.shapes import Dims, Shapes

_KEEP_ORDER = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
_LONGEST_CHAIN = 16


def remove_idle(scope: Scope, shapes: Shapes, is_selected: Callable[[ir.Node], bool] = lambda _: True) -> list[str]:
    """Take out the nodes of a scope whose result is a value that was there before; return how they are addressed.

    What may change a shape stays, and so does what gives an output of a graph the value of another or of an input.
    """
    candidates = [node for node in nodes_of(scope) if _keeps_order(node, scope) and is_selected(node)]
    movable = set(candidates)
    for node in candidates:
        same = _same(node, movable, scope, shapes) if node.graph is not None else None
        if same is not None and not (node.outputs[0].is_graph_output() and _has_its_own_name(same, node)):
            bypass(node, same)
    return [label(node) for node in candidates if node.graph is None]


def _keeps_order(node: ir.Node, scope: Scope) -> bool:
    """Whether a node changes nothing but a shape; whether a Squeeze of no axes does, runtimes do not agree."""
    return is_standard(node, *_KEEP_ORDER) and (
        node.op_type != "Squeeze" or integer_argument(node, "axes", scope) != ()
    )


def _same(node: ir.Node, movable: set[ir.Node], scope: Scope, shapes: Shapes) -> ir.Value | None:
    """Return the first value of the chain that ends in a node that is equal to its result."""
    chain = list(islice(_chain(node, movable), _LONGEST_CHAIN))
    if not chain or node.op_type == "Identity":
        return chain[0] if chain else None
    here = shapes.dims(node.outputs[0], scope)
    if node.op_type == "Reshape" and _contradicts(integer_argument(node, "shape", scope), here):
        return None
    return next((value for value in reversed(chain) if _are_equal(shapes.dims(value, scope), here)), None)


def _contradicts(shape: tuple[int, ...] | None, claimed: Dims | None) -> bool:
    """Whether a constant shape cannot be the one that a file claims for the result."""
    if shape is None or claimed is None:
        return False
    return len(shape) != len(claimed) or any(
        n > 0 and isinstance(d, int) and n != d for n, d in zip(shape, claimed, strict=True)
    )


def _chain(node: ir.Node, movable: set[ir.Node]) -> Iterator[ir.Value]:
    """Yield the values of the same graph that hold the same elements in the same order, going up."""
    producer: ir.Node | None = node
    while producer is not None and producer in movable and producer.graph is node.graph:
        data = producer.inputs[0]
        if data is None:
            return
        yield data
        producer = data.producer()


def _has_its_own_name(value: ir.Value, node: ir.Node) -> bool:
    """Whether a value cannot take the name of a node's result."""
    producer = value.producer()
    return value.is_graph_output() or producer is None or producer.graph is not node.graph


def _are_equal(one: Dims | None, other: Dims | None) -> bool:
    """Whether two shapes of the same elements are proved equal: one unknown length follows from known ones."""
    if one is None or other is None or len(one) != len(other):
        return False
    pairs = list(zip(one, other, strict=True))
    open_pairs = [pair for pair in pairs if pair[0] is None or pair[0] != pair[1]]
    if not open_pairs:
        return True
    known = [a for a, b in pairs if isinstance(a, int) and a == b and a > 0]
    return len(known) == len(pairs) - 1 and not all(isinstance(length, int) for length in open_pairs[0])
