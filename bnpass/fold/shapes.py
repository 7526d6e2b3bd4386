"""What is known about shapes and types: what is declared, then ONNX's inference, run at most once and only if asked.

Dimensions are ints, names, or None. The model is not annotated: what was inferred is kept beside it.
"""

import logging

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from bnpass.fold.constants import Constant, find
from bnpass.fold.graph import Scope, is_standard, operand
from bnpass.semantics.regroup import Dim

Dims = tuple[Dim, ...]

_SAME_SHAPE = (
    "Relu",
    "Identity",
    "Dropout",
    "Cast",
    "BatchNormalization",
    "Sigmoid",
    "Tanh",
    "LeakyRelu",
    "Clip",
)
_MAX_STEPS = 16


class Shapes:
    """Answers for one model."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._inferred: dict[str, ir.Value] | None = None

    def dims(self, value: ir.Value, scope: Scope) -> Dims | None:
        """Return all that can be known of the dimensions of a value; None if not even its rank is."""
        near = self.near(value, scope)
        if near is not None and None not in near:
            return near
        inferred = self._inferred_dims(value, scope)
        if near is None or inferred is None or len(near) != len(inferred):
            return inferred if near is None else near
        return tuple(b if a is None else a for a, b in zip(near, inferred, strict=True))

    def near(self, value: ir.Value, scope: Scope) -> Dims | None:
        """Return what the declared shape or else the neighbours say, at no cost; inference is asked only after that."""
        if value.shape is not None:
            return _dims(value.shape)
        local = self._local(value, scope)
        return self._inferred_dims(value, scope) if local is None else local

    def rank(self, value: ir.Value, scope: Scope) -> int | None:
        """Return the rank of a value, if known."""
        near = self.near(value, scope)
        return None if near is None else len(near)

    def dtype(self, value: ir.Value, scope: Scope) -> ir.DataType | None:
        """Return the element type of a value, if known."""
        if value.dtype is not None:
            return value.dtype
        node = value.producer()
        if node is not None and is_standard(node, "Conv", "ConvTranspose", "Gemm", "MatMul"):
            for operand_value in node.inputs:
                found = find(operand_value, scope) if operand_value is not None else None
                if isinstance(found, Constant):
                    return found.dtype
        inferred = self._infer(value, scope)
        return None if inferred is None else inferred.dtype

    def _inferred_dims(self, value: ir.Value, scope: Scope) -> Dims | None:
        inferred = self._infer(value, scope)
        return None if inferred is None or inferred.shape is None else _dims(inferred.shape)

    def _local(self, value: ir.Value, scope: Scope) -> Dims | None:
        """Read off what the neighbours of a value say: enough for function bodies, which carry no shapes."""
        for _ in range(_MAX_STEPS):
            if value.shape is not None:
                return _dims(value.shape)
            node = value.producer()
            if node is None or not is_standard(node, *_SAME_SHAPE) or node.inputs[0] is None:
                break
            value = node.inputs[0]
        node = value.producer()
        if node is not None and is_standard(node, "Conv", "ConvTranspose", "Gemm"):
            return _of_linear(node, scope)
        for use in value.uses():
            if is_standard(use.node, "Conv", "ConvTranspose") and use.idx == 0:
                return _into_convolution(use.node, scope)
        return None

    def _infer(self, value: ir.Value, scope: Scope) -> ir.Value | None:
        """Return what ONNX's inference says of a value; it does not reach into functions."""
        if scope.is_function or value.name is None:
            return None
        if self._inferred is None:
            clone = self._model.clone()
            logging.getLogger("onnx_ir.passes.common.shape_inference").setLevel(logging.ERROR)
            ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(clone)
            self._inferred = {v.name: v for g in clone.graphs() for node in g for v in node.outputs if v.name}
        return self._inferred.get(value.name)


def _dims(shape: ir.Shape) -> Dims:
    return tuple(d if isinstance(d, int) else d.value for d in shape)


def _weight_shape(node: ir.Node, scope: Scope) -> tuple[int, ...] | None:
    weight = operand(node, 1)
    found = find(weight, scope) if weight is not None else None
    return found.shape if isinstance(found, Constant) else None


def _of_linear(node: ir.Node, scope: Scope) -> Dims | None:
    weight = _weight_shape(node, scope)
    if weight is None or len(weight) < 2:
        return None
    if node.op_type == "Gemm":
        return (None, weight[0] if node.attributes.get_int("transB", 0) else weight[1])
    group = node.attributes.get_int("group", 1)
    channels = weight[0] if node.op_type == "Conv" else weight[1] * group
    return (None, channels, *(None for _ in weight[2:]))


def _into_convolution(node: ir.Node, scope: Scope) -> Dims | None:
    weight = _weight_shape(node, scope)
    if weight is None or len(weight) < 2:
        return None
    group = node.attributes.get_int("group", 1)
    channels = weight[1] * group if node.op_type == "Conv" else weight[0]
    return (None, channels, *(None for _ in weight[2:]))
