"""Gemm takes an affine in on either side of ``Y = alpha·A'B' + beta·C``.

    behind   s·Y + t       =  alpha·A'(B'·s) + beta·((s·beta·C + t)/beta)           s, t over columns N, B constant
    before   (s·A + t)'B'  =  A'(s·B') + Σ t·B'                                     s, t over K

The same holds with A constant for rows M, where vectors stand upright. With beta = 0 the bias is t alone and beta
becomes 1. K is axis 1 of the activation, or axis 0 if it is the transposed operand: a batch normalization there
runs over output rows and cannot be taken in.
"""

import math

import numpy as np
import onnx_ir as ir

from bnpass.errors import Refusal, RefusalId
from bnpass.folding.linear import Bias, Linear, bias_of, refuse, weight_of
from bnpass.folding.quantized.stored import Dequantized
from bnpass.graph.constants import Constant
from bnpass.graph.nodes import Scope
from bnpass.semantics.affine import WeightLayout, wide


def describe(node: ir.Node, scope: Scope) -> Linear | Refusal:
    """Return a Gemm with one constant operand as a linear op."""
    right = weight_of(node, 1, scope)
    if isinstance(right, Constant):
        return _with_weight(node, 1, right, scope)
    left = weight_of(node, 0, scope)
    return right if isinstance(left, Refusal) else _with_weight(node, 0, left, scope)


def _with_weight(node: ir.Node, index: int, weight: Constant, scope: Scope) -> Linear | Refusal:
    if len(weight.shape) != 2:
        return refuse(node, f"has a weight of shape {list(weight.shape)}")
    transposed = [bool(node.attributes.get_int(name, 0)) for name in ("transA", "transB")]
    is_right = index == 1
    # B is [K, N], A is [M, K]; each is stored the other way round if its trans attribute is set
    out_axis = (1 if is_right else 0) ^ transposed[index]
    data_axis = (1 if is_right else 0) ^ transposed[1 - index]
    layout = WeightLayout(view=weight.shape, out_axes=(out_axis,), in_axes=(1 - out_axis,))
    bias = _bias(node, weight, scope, layout.out_channels, column=not is_right)
    if isinstance(bias, Refusal):
        return bias
    return Linear(
        node=node,
        data_index=1 - index,
        weight_index=index,
        weight=weight,
        layout=layout,
        data_axis=data_axis,
        out_axis=1 if is_right else 0,
        bias=bias,
    )


def _bias(node: ir.Node, weight: Constant, scope: Scope, channels: int, *, column: bool) -> Bias | Refusal:
    alpha, beta = (float(np.float32(node.attributes.get_float(name, 1.0))) for name in ("alpha", "beta"))
    if not (math.isfinite(alpha) and math.isfinite(beta)):
        return refuse(node, f"has alpha {alpha} and beta {beta}", RefusalId.INVALID_STATISTICS)
    if beta == 0:
        return Bias(2, None, alpha, 1.0, column)
    found = bias_of(node, weight, scope)
    if not isinstance(found, Constant):
        return Bias(2, found, alpha, beta, column)
    value, stored = found.array(), found.stored if isinstance(found, Dequantized) else None
    if stored is not None and (column or beta != 1 or value.shape != (channels,)):
        told = f"has a quantized C of shape {list(value.shape)}, and beta {beta}"
        return Bias(2, refuse(node, told, RefusalId.QUANTIZED_WEIGHT), alpha, beta, column)
    along = value.shape[:1] if column and value.ndim == 2 else () if column else value.shape[-1:]
    if value.size == 0 or value.ndim > 2 or any(d not in (1, channels) for d in along):
        return refuse(node, f"has a C of shape {list(value.shape)} for {channels} output channels")
    value = np.asarray(value.astype(wide(weight.dtype.numpy())) * beta)  # a number would be no array any more
    return Bias(2, value, alpha, beta, column, stored)
