"""ConvTranspose takes an affine in on either side.

    behind   s·(W∘x + b) + t  =  (s·W)∘x + (s·b + t)        s, t over output channels: group by group, axis 1 of
                                                            W [C, M/group, k…]
    before   W∘(s·x + t) + b  =  (W·s)∘x + (b + Σ W·t)      s, t over input channels, axis 0 of W

The shift before holds only if every output point sees exactly one tap of every input channel: kernel 1, stride 1,
no padding and no output padding. Elsewhere edges and gaps between the strides would be wrong by whole values.
"""

import math

import onnx_ir as ir

from bnpass.errors import Refusal, RefusalId
from bnpass.folding.linear import Linear, channel_bias_of, grouped_weight, refuse
from bnpass.graph.nodes import Scope
from bnpass.semantics.affine import WeightLayout


def describe(node: ir.Node, scope: Scope) -> Linear | Refusal:
    """Return a ConvTranspose with constant weights as a linear op."""
    found = grouped_weight(node, scope)
    if isinstance(found, Refusal):
        return found
    weight, group = found
    in_channels, out_per_group, *kernel = weight.shape
    layout = WeightLayout(
        view=(group, in_channels // group, out_per_group, math.prod(kernel)),
        out_axes=(0, 2),
        in_axes=(0, 1),
    )
    bias = channel_bias_of(node, weight, scope, out_per_group * group)
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
        shift_at_input=_uneven_taps(node, kernel),
    )


def _uneven_taps(node: ir.Node, kernel: list[int]) -> Refusal | None:
    ints = node.attributes.get_ints
    even = (
        all(k == 1 for k in kernel)
        and all(s == 1 for s in ints("strides", ()))
        and not any(ints("pads", ()))
        and not any(ints("output_padding", ()))
        and "output_shape" not in node.attributes
    )
    if even:
        return None
    return refuse(
        node,
        "does not read every input point equally often (kernel, stride or padding), so a shift would be uneven",
        RefusalId.PADDING_BLOCKS_SHIFT,
    )
