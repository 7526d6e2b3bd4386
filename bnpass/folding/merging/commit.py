"""Edit the graph: one node takes the place of the nodes that it does the work of."""

from collections.abc import Iterable, MutableMapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from bnpass.errors import Refusal, VerificationError
from bnpass.folding.absorb import Absorption
from bnpass.folding.linear import Linear
from bnpass.folding.merging.branch import Branch
from bnpass.folding.merging.numbers import Numbers
from bnpass.folding.merging.sums import Addend, Sum
from bnpass.folding.rules import conv, gemm
from bnpass.folding.write import Writer
from bnpass.graph.constants import Constant
from bnpass.graph.nodes import Scope, bypass, discard, label, operand


def strike(found: Sum, struck: Iterable[Addend]) -> list[str]:
    """Take addends out of a sum, and every adder that has one operand left; return the labels of those adders.

    An inner adder that goes on without one of its operands is written anew: nothing that was known of the shape of
    its result has to hold any more. The sum itself keeps its name and shape.
    """
    gone_slots = {(a.adder, a.index) for a in struck}
    addends = {(a.adder, a.index) for a in found.addends}
    stands: dict[ir.Node, ir.Value | None] = {}  # what an adder comes to
    gone: list[ir.Node] = []
    labels: list[str] = []
    for adder in reversed(found.adders):
        left: list[ir.Value] = []
        for index, value in enumerate(adder.inputs):
            producer = value.producer() if value is not None else None
            is_inner = (adder, index) not in addends and producer in stands
            now = None if (adder, index) in gone_slots else stands[producer] if producer and is_inner else value
            left += [] if now is None else [now]
        result = adder.outputs[0]
        if left == list(adder.inputs):
            stands[adder] = result
        elif len(left) > 1:
            stands[adder] = _rewritten(adder, left, is_root=adder is found.root)
            gone += [] if stands[adder] is result else [adder]
        else:
            stands[adder] = left[0] if left else None
            gone.append(adder)
            labels.append(label(adder))
    _remove(found.root, stands[found.root], gone)
    return labels


def _rewritten(adder: ir.Node, operands: list[ir.Value], *, is_root: bool) -> ir.Value:
    if is_root:
        adder.resize_inputs(len(operands))
        for index, value in enumerate(operands):
            adder.replace_input_with(index, value)
        return adder.outputs[0]
    old = adder.outputs[0]
    node = ir.Node("", adder.op_type, operands, adder.attributes.values(), name=adder.name)
    node.outputs[0].name, node.outputs[0].type = old.name, old.type
    adder.prepend(node)
    return node.outputs[0]


def _remove(root: ir.Node, value: ir.Value | None, gone: list[ir.Node]) -> None:
    name = root.outputs[0].name
    for adder in reversed(gone):
        if adder is root and value is not None:
            shape = root.outputs[0].shape
            root.resize_inputs(1)
            root.replace_input_with(0, value)
            bypass(root, value)
            value.name = name
            value.shape = shape if value.shape is None else value.shape
        elif adder.graph is not None:
            adder.graph.remove(adder, safe=True)


def become(
    node: ir.Node,
    merged: Branch,
    attributes: Iterable[ir.Attr],
    numbers: Numbers,
    writer: Writer,
    scope: Scope,
    absorbed: MutableMapping[ir.Node, Absorption],
) -> None:
    """Turn one node of a map into the op that it is; the others go, with the constants that they alone read."""
    op_type = "Conv" if merged.window else "Gemm"
    old = _alone(node, merged)
    if node.op_type != op_type:
        node.op_type = op_type
        node.resize_inputs(1)
        node.resize_outputs(1)
    node.replace_input_with(0, merged.data)
    node.attributes.clear()
    for attribute in attributes:
        node.attributes.add(attribute)
    writer.tensor(node, 1, numbers.weight, f"{label(node)}/weight", scope)
    bias = numbers.bias
    if bias is None and op_type == "Gemm" and scope.opset < 11:  # C may not be left out there
        bias = np.zeros(merged.channels[0], numbers.weight.dtype.numpy())
    if bias is not None:
        writer.parameter(node, 2, bias, f"{label(node)}/bias", scope)
    elif len(node.inputs) > 2:
        node.resize_inputs(2)
    for value in old:
        discard(value)
    absorbed[node] = Absorption.of(_described(node, numbers, scope))


def _alone(host: ir.Node, merged: Branch) -> list[ir.Value]:
    """Remove all nodes of a map but one, which reads x then; return the constants that they read."""
    gone = [n for n in merged.nodes if n is not host]
    made = {n.outputs[0] for n in gone}
    for index, value in enumerate(host.inputs):
        if value in made:
            host.replace_input_with(index, merged.data)
    operands = dict.fromkeys(v for n in merged.nodes for v in n.inputs if v is not None)
    if gone and host.graph is not None:
        host.graph.remove(gone, safe=True)
    constants = [v for v in operands if v is not merged.data and v not in made]
    for value in constants:
        if not value.uses():
            discard(value)
    return constants


def _described(node: ir.Node, numbers: Numbers, scope: Scope) -> Linear:
    """Return the new op with its numbers as they were before they were rounded."""
    linear = (conv.describe if node.op_type == "Conv" else gemm.describe)(node, scope)
    value = operand(node, 1)
    if isinstance(linear, Refusal) or value is None or linear.bias is None:
        raise VerificationError(f"'{label(node)}' cannot be read after a merge; please report this")
    shape = tuple(numbers.weight.shape.numpy())
    weight = Constant(value, numbers.weight.dtype, shape, numbers.exact)
    bias = linear.bias if numbers.exact_bias is None else replace(linear.bias, value=numbers.exact_bias)
    return replace(linear, weight=weight, bias=bias)
