"""A linear op as folding sees it: where its weights lie, what its bias slot is, which axes are its channels."""

from dataclasses import dataclass

import onnx_ir as ir

from bnpass.errors import Refusal, RefusalId
from bnpass.folding.quantized.stored import Dequantized, Stored, find_bias, find_weight
from bnpass.folding.window import unfit_attribute
from bnpass.graph.constants import Constant, find_float
from bnpass.graph.nodes import Scope, label, operand
from bnpass.semantics.affine import Array, WeightLayout


@dataclass(frozen=True, eq=False)
class Bias:
    """The place where a linear op adds a constant: ``y = gain·(W*x) + factor·b``.

    Attributes:
        index: Input slot of b.
        value: ``factor·b``, wide, broadcasting against the output channels last (or first, for a left weight);
            None if there is none; a Refusal if it is not constant.
        gain: Factor of the product (Gemm's alpha).
        factor: Factor of b as it will be after the fold (Gemm's beta; 1 where beta was 0).
        column: Output channels lie along the last axis but one (Gemm with a constant left operand).
        stored: Its integers, where it is quantized: [output channels], and ``factor`` is 1.
    """

    index: int
    value: Array | Refusal | None
    gain: float = 1.0
    factor: float = 1.0
    column: bool = False
    stored: Stored | None = None


@dataclass(frozen=True, eq=False)
class Linear:
    """One Conv, ConvTranspose, Gemm or MatMul with constant weights, quantized or not.

    Attributes:
        node: The node.
        data_index: Input slot of the activation.
        weight_index: Input slot of the weight.
        weight: The weight.
        layout: Where its output and input channels lie.
        data_axis: Axis of the activation that counts input channels; negative ones count from the end.
        out_axis: Axis of the output that counts output channels.
        bias: The bias slot; None if the op has none, and an Add behind it has to do (MatMul).
        shift_at_input: Why a shift of the activation cannot be taken in, or None if it can.
    """

    node: ir.Node
    data_index: int
    weight_index: int
    weight: Constant
    layout: WeightLayout
    data_axis: int
    out_axis: int
    bias: Bias | None
    shift_at_input: Refusal | None = None


def refuse(node: ir.Node, why: str, refusal: RefusalId = RefusalId.UNSUPPORTED_OP) -> Refusal:
    """Return a refusal whose sentence begins with the op and its label."""
    return Refusal(refusal, label(node), f"{node.op_type} '{label(node)}' {why}")


def weight_of(node: ir.Node, index: int, scope: Scope) -> Constant | Refusal:
    """Return the constant weight of a node, or a refusal that names the node."""
    found = find_weight(operand(node, index), scope)
    if isinstance(found, Refusal):
        return Refusal(found.id, label(node), f"the weight of {node.op_type} '{label(node)}' is kept: {found.reason}")
    if any(d == 0 for d in found.shape):
        return refuse(node, f"has an empty weight of shape {list(found.shape)}")
    return found


def grouped_weight(node: ir.Node, scope: Scope) -> tuple[Constant, int] | Refusal:
    """Return the constant weight of a convolution, transposed or not, and its number of groups."""
    weight = weight_of(node, 1, scope)
    if isinstance(weight, Refusal):
        return weight
    group = node.attributes.get_int("group", 1)
    if len(weight.shape) < 3 or group < 1 or weight.shape[0] % group:
        return refuse(node, f"has a weight of shape {list(weight.shape)} for {group} groups")
    kernel = list(weight.shape[2:])
    if (unfit := unfit_attribute(node, kernel)) is not None:
        return refuse(node, f"has {unfit} and a kernel {kernel} that do not fit each other")
    return weight, group


def channel_bias_of(node: ir.Node, weight: Constant, scope: Scope, channels: int) -> Bias | Refusal:
    """Return the bias slot of a convolution, whose bias has one number for each output channel."""
    found = bias_of(node, weight, scope)
    if not isinstance(found, Constant):
        return Bias(2, found)
    if found.shape != (channels,):
        return refuse(node, f"has a bias of shape {list(found.shape)} for {channels} output channels")
    return Bias(2, found.array(), stored=found.stored if isinstance(found, Dequantized) else None)


def bias_of(node: ir.Node, weight: Constant, scope: Scope) -> Constant | Refusal | None:
    """Return an optional bias, None if it is left out, or a refusal that names the node.

    It may be quantized if the weight is.
    """
    value = operand(node, 2)
    if value is None:
        return None
    found = find_bias(value, scope) if isinstance(weight, Dequantized) else find_float(value, scope)
    if isinstance(found, Refusal):
        return Refusal(found.id, label(node), f"the bias of {node.op_type} '{label(node)}' is kept: {found.reason}")
    return found
