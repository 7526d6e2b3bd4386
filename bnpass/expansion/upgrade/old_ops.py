"""What ONNX's version converter would get wrong, put right before it runs, or refused.

Its adapters (read in onnx 1.23) take these ops for compatible although their meaning changed, or lose a part of it:

- Add, Sub, Mul, Div, Pow before 7: with ``axis`` the second operand is aligned to the first axes, whatever ``axis``
  says; a length that is not a number is an error. Comparisons and logic have no way up at all. All of them mean the
  same from 7 to 14 once an Unsqueeze says ``axis``, and so does Gemm: the converter does not get to see them.
- PRelu before 7: a slope per channel lies along axis 1, later along the last axes.
- Dropout before 7 without ``is_test``: it drops at random; later versions copy. Its mask changed type in 10.
- Hardmax before 13: X is flattened to two axes; later only one axis is looked at.
- Resize and Upsample before 11: coordinates are ``asymmetric``, rounded down; the converter leaves both to the defaults
  of 11, which are others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bnpass.errors import RefusalId, RefusedError
from bnpass.expansion.attributes import refused
from bnpass.expansion.facts import Facts
from bnpass.graph.constants import Constant, find
from bnpass.graph.nodes import Scope, described, label, operand
from bnpass.semantics.regroup import Dim

_BINARY = ("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less")
_SAME_FROM_7 = (*_BINARY, "Gemm")


@dataclass(frozen=True)
class _Old:
    """The model that a node stands in.

    Attributes:
        opset: Version of the default domain.
        facts: What is known about shapes.
        scope: Where constants are looked for.
    """

    opset: int
    facts: Facts
    scope: Scope

    def dims(self, node: ir.Node, index: int) -> tuple[Dim, ...]:
        """Return the dimensions of an input; refuse if not even the rank is known."""
        value = operand(node, index)
        dims = None if value is None else self.facts.proved(value) or self.facts.declared(value)
        if dims is None:
            raise not_convertible(node, f"the shape of input {index} of {described(node)} is not known")
        return dims


def make_convertible(model: ir.Model, opset: int, facts: Facts) -> Sequence[ir.Node]:
    """Rewrite the nodes that the converter would get wrong.

    Returns:
        Nodes that are as they should be afterwards, which the converter must not see; the shapes of their outputs are
        declared, as far as they are known.

    Raises:
        RefusedError: BN204: one of them cannot be rewritten.
    """
    old = _Old(opset, facts, Scope(model.graph, opset, False, model.ir_version >= 4))
    nodes = [n for n in ir.traversal.RecursiveGraphIterator(model.graph) if n.domain == "" and n.op_type in _REWRITES]
    edits = [edit for node in nodes if (edit := _REWRITES[node.op_type](node, old)) is not None]
    done = [node for node in nodes if opset < 7 and node.op_type in _SAME_FROM_7]
    shapes = [(node.outputs[0], facts.proved(node.outputs[0]), facts.dtype(node.outputs[0])) for node in done]
    for edit in edits:  # facts hold for the model as it was
        edit()
    for value, dims, dtype in shapes:
        if value.shape is None and dims is not None:
            value.shape = ir.Shape(dims)
        if value.dtype is None and dtype is not None:
            value.dtype = dtype
    return done


def finish(model: ir.Model, opset: int) -> None:
    """Say on every Resize of a model converted from before 11 what was not said there."""
    if opset >= 11:
        return
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain == "" and node.op_type == "Resize":
            node.attributes.add(ir.AttrString("coordinate_transformation_mode", "asymmetric"))
            if node.attributes.get_string("mode", "nearest") == "nearest":
                node.attributes.add(ir.AttrString("nearest_mode", "floor"))


def not_convertible(node: ir.Node, reason: str) -> RefusedError:
    """Return the error for a node that stands in the way of newer versions."""
    return refused(RefusalId.OPSET_NOT_UPGRADABLE, node, reason)


def _binary(node: ir.Node, old: _Old) -> Callable[[], None] | None:
    """Say ``axis`` by an Unsqueeze behind the second operand."""
    if old.opset >= 7:
        return None
    if not node.attributes.get_int("broadcast", 0) or "axis" not in node.attributes:
        return lambda: _strip(node)
    rank, short = len(old.dims(node, 0)), len(old.dims(node, 1))
    axis = node.attributes.get_int("axis", 0)
    behind = rank - (axis + rank if axis < 0 else axis) - short
    if behind < 0:
        raise not_convertible(node, f"axis {axis} of {described(node)} does not fit its operands")

    def edit() -> None:
        _strip(node)
        _append_axes(node, short, behind)

    return edit


def _gemm(node: ir.Node, old: _Old) -> Callable[[], None] | None:
    return (lambda: _strip(node)) if old.opset < 7 else None


def _strip(node: ir.Node) -> None:
    for name in ("axis", "broadcast", "consumed_inputs"):
        node.attributes.pop(name, None)


def _prelu(node: ir.Node, old: _Old) -> Callable[[], None] | None:
    """Bring a slope per channel to axis 1."""
    if old.opset >= 7:
        return None
    slope = old.dims(node, 1)
    if all(n == 1 for n in slope) or len(slope) != 1:
        return None
    behind = len(old.dims(node, 0)) - 2
    return lambda: _append_axes(node, 1, behind)


def _append_axes(node: ir.Node, rank: int, behind: int) -> None:
    """Give the second operand of a node axes of length 1 behind its own, as before opset 13."""
    source, graph = operand(node, 1), node.graph
    if behind <= 0 or source is None or graph is None:
        return
    axes = ir.AttrInt64s("axes", range(rank, rank + behind))
    along = ir.Node("", "Unsqueeze", [source], [axes], name=f"{label(node)}/axes")
    along.outputs[0].name = f"{label(node)}/along"
    graph.insert_before(node, along)
    node.replace_input_with(1, along.outputs[0])


def _dropout(node: ir.Node, old: _Old) -> None:
    if old.opset < 7 and not node.attributes.get_int("is_test", 0):
        raise not_convertible(node, f"{described(node)} drops at random, which newer versions say in another way")
    if old.opset < 10 and any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        raise not_convertible(node, f"the mask of {described(node)} is read, and its type is another one from 10 on")


def _hardmax(node: ir.Node, old: _Old) -> Callable[[], None] | None:
    if old.opset >= 13:
        return None
    rank, axis = len(old.dims(node, 0)), node.attributes.get_int("axis", 1)
    if axis not in (rank - 1, -1):
        raise not_convertible(node, f"{described(node)} flattens its input, which newer versions do not")
    return lambda: node.attributes.add(ir.AttrInt64("axis", -1))


def _resize(node: ir.Node, old: _Old) -> None:
    """Refuse nearest values of a smaller image: which way they are rounded was not defined."""
    if old.opset >= 11 or node.attributes.get_string("mode", "nearest") != "nearest":
        return
    names = ("scales", "width_scale", "height_scale")
    given = [np.asarray(node.attributes[n].value, np.float64).reshape(-1) for n in names if n in node.attributes]
    scales = operand(node, 1)
    if scales is not None:
        found = find(scales, old.scope)
        if isinstance(found, Constant):
            given.append(np.asarray(found.array(), np.float64).reshape(-1))
    if not given or np.concatenate(given).min(initial=np.inf) < 1:
        raise not_convertible(node, f"{described(node)} makes smaller, or may: how it rounds there was not defined")


_REWRITES: dict[str, Callable[[ir.Node, _Old], Callable[[], None] | None]] = {
    **dict.fromkeys(_BINARY, _binary),
    "Gemm": _gemm,
    "PRelu": _prelu,
    "Dropout": _dropout,
    "Hardmax": _hardmax,
    **dict.fromkeys(("Resize", "Upsample"), _resize),
}
