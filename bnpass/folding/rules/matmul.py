"""MatMul takes an affine in on either side of ``Y = X·W`` or ``Y = W·X``, with any batch rank.

    behind   s·(X·W) + t  =  X·(W·s) + t          s, t over columns N (rows M for a left weight)
    before   (s·X + t)·W  =  X·(s·W) + Σ t·W      s, t over K

MatMul has no bias: a shift stays behind as one Add, which runtimes fuse with it.
"""

import onnx_ir as ir

from bnpass.errors import Refusal
from bnpass.folding.linear import Linear, refuse, weight_of
from bnpass.graph.constants import Constant
from bnpass.graph.nodes import Scope
from bnpass.semantics.affine import WeightLayout


def describe(node: ir.Node, scope: Scope) -> Linear | Refusal:
    """Return a MatMul with one constant operand as a linear op."""
    right = weight_of(node, 1, scope)
    if isinstance(right, Constant):
        return _with_weight(node, 1, right)
    left = weight_of(node, 0, scope)
    return right if isinstance(left, Refusal) else _with_weight(node, 0, left)


def _with_weight(node: ir.Node, index: int, weight: Constant) -> Linear | Refusal:
    rank = len(weight.shape)
    if rank < 2:
        return refuse(node, f"multiplies by a vector of shape {list(weight.shape)}")
    is_right = index == 1
    out_axis, in_axis = (rank - 1, rank - 2) if is_right else (rank - 2, rank - 1)
    layout = WeightLayout(
        view=weight.shape, out_axes=(out_axis,), in_axes=(in_axis,), batch_axes=tuple(range(rank - 2))
    )
    along = -1 if is_right else -2
    return Linear(
        node=node,
        data_index=1 - index,
        weight_index=index,
        weight=weight,
        layout=layout,
        data_axis=along,
        out_axis=along,
        bias=None,
    )
