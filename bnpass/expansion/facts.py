"""What is known of the values that sites read: proved from the inputs of the model, or merely declared.

An expansion divides by the number of elements. Files often carry shapes of values in between that were true when they
were exported and are not any more, because somebody opened the batch dimension. So a length counts as proved only if
it follows from the graph's own inputs, initializers and operators; runtimes hold callers to those.

Training mode and our operators say nothing to ONNX's inference, so both questions are asked of a copy of the model in
which every site is an Identity for each of its outputs.
"""

from collections.abc import Callable, Iterator
from functools import cached_property

import onnx_ir as ir

from bnpass.collectives.nodes import bodies
from bnpass.graph.nodes import Scope, operand
from bnpass.graph.shapes import Dims, Shapes
from bnpass.ops import DOMAIN

DOUBLE = ir.DataType.DOUBLE

_UNKNOWN = f"{DOMAIN}.unknown"
_SHAPED_LIKE = {
    "BatchNormalization": (0, 3, 4, 3, 4),
    "SyncBatchNormalization": (0, 3, 4, None, None, None),
    "SyncBatchNormalizationGrad": (1, 2, 2),
    "SyncBatchMoments": (None, None, None),
}
"""For each output the input whose shape and type it has; those with None are double and of some other shape."""


class Facts:
    """Answers for the main graph of one model, subgraphs included; the model must stay as it is meanwhile.

    Args:
        model: The model; it is not changed.
        opset: Version of the default domain.
        is_site: Which nodes are sites.
    """

    def __init__(self, model: ir.Model, opset: int, is_site: Callable[[ir.Node], bool]) -> None:
        self._model, self._opset, self._is_site = model, opset, is_site

    def proved(self, value: ir.Value) -> Dims | None:
        """Return the dimensions that follow from the inputs of the model; None if not even the rank does."""
        return self._proved.dims(value)

    def declared(self, value: ir.Value) -> Dims | None:
        """Return the dimensions that the file says a value has, or that follow from such."""
        return self._declared.dims(value)

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """Return the element type of a value, if known."""
        return self._proved.dtype(value)

    @cached_property
    def _proved(self) -> "_Copy":
        return _Copy(self._model, self._opset, self._is_site, believe=False)

    @cached_property
    def _declared(self) -> "_Copy":
        return _Copy(self._model, self._opset, self._is_site, believe=True)


class _Copy:
    """A copy of the model without sites; ``believe`` leaves the declared shapes of values in between."""

    def __init__(self, model: ir.Model, opset: int, is_site: Callable[[ir.Node], bool], *, believe: bool) -> None:
        copy = model.clone()
        self._twins: dict[ir.Value, ir.Value] = {}
        pairs = list(zip(_nodes(model), _nodes(copy), strict=True))
        for node, twin in pairs:
            for mine, theirs in zip((*node.inputs, *node.outputs), (*twin.inputs, *twin.outputs), strict=True):
                if mine is not None and theirs is not None:
                    self._twins[mine] = theirs
        if not believe:
            _forget_shapes(copy)
        for node, twin in pairs:
            if is_site(node):
                self._replace(node, twin)
        copy.opset_imports[_UNKNOWN] = 1
        self._scope = Scope(copy.graph, opset, False, copy.ir_version >= 4)
        self._shapes = Shapes(copy)

    def dims(self, value: ir.Value) -> Dims | None:
        """Return what is known of the dimensions of a value of the model."""
        return self._shapes.dims(self._twins.get(value, value), self._scope)

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """Return the element type of a value of the model, if known."""
        return self._shapes.dtype(self._twins.get(value, value), self._scope)

    def _replace(self, node: ir.Node, twin: ir.Node) -> None:
        if twin.graph is None:
            raise ValueError("a node of a model is in no graph")
        for mine, old, like in zip(node.outputs, twin.outputs, _SHAPED_LIKE[twin.op_type], strict=False):
            if not old.name:
                continue
            new = ir.Value(name=old.name, type=old.type, shape=old.shape)
            source = None if like is None else operand(twin, like)
            if source is None:
                new.dtype = DOUBLE
                stand_in = ir.Node(_UNKNOWN, "Unknown", [], outputs=[new])
            else:
                stand_in = ir.Node("", "Identity", [source], outputs=[new])
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            twin.graph.insert_before(twin, stand_in)
            self._twins[mine] = new
        twin.graph.remove(twin, safe=True)


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    return iter(ir.traversal.RecursiveGraphIterator(model.graph))


def _forget_shapes(model: ir.Model) -> None:
    """Take off all shapes but those of the main graph's inputs and of initializers."""
    for node in _nodes(model):
        for value in node.outputs:
            value.shape = None
        for body in bodies(node):
            for value in body.inputs:
                value.shape = None
