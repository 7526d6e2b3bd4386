"""Conv takes an affine in on either side.

    behind   s·(W*x + b) + t  =  (s·W)*x + (s·b + t)        s, t over output channels, axis 0 of W [M, C/group, k…]
    before   W*(s·x + t) + b  =  (W·s)*x + (b + Σ W·t)      s, t over input channels: group by group, axis 1 of W

The shift before holds only where no tap reads padding: zeros are not shifted. A scale passes padding.
"""

import math

import onnx_ir as ir

from bnpass.errors import Refusal, RefusalId
from bnpass.folding.linear import Linear, channel_bias_of, grouped_weight, refuse
from bnpass.graph.nodes import Scope
from bnpass.semantics.affine import WeightLayout


def describe(node: ir.Node, scope: Scope) -> Linear | Refusal:
    """Return a Conv with constant weights as a linear op."""
    found = grouped_weight(node, scope)
    if isinstance(found, Refusal):
        return found
    weight, group = found
    out_channels, in_per_group, *kernel = weight.shape
    layout = WeightLayout(
        view=(group, out_channels // group, in_per_group, math.prod(kernel)),
        out_axes=(0, 1),
        in_axes=(0, 2),
    )
    bias = channel_bias_of(node, weight, scope, out_channels)
    if isinstance(bias, Refusal):
        return bias
    return Linear(
        node=node,
        data_index=0,
        weight_index=1,
        weight=weight,
        layout=layout,
        data_axis=1,
        out_axis=1,
        bias=bias,
        shift_at_input=_padding(node, kernel),
    )


def _padding(node: ir.Node, kernel: list[int]) -> Refusal | None:
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    pads = node.attributes.get_ints("pads", ())
    if auto_pad == "VALID" or (auto_pad.startswith("SAME") and all(k == 1 for k in kernel)):
        return None
    if auto_pad == "NOTSET" and not any(pads):
        return None
    told = f"pads={list(pads)}" if auto_pad == "NOTSET" else f"auto_pad={auto_pad}"
    return refuse(node, f"pads with zeros ({told}), which a shift does not reach", RefusalId.PADDING_BLOCKS_SHIFT)
