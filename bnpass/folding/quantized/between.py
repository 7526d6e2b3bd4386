"""Ops that round to integers or compute with them: no affine passes them exactly.

    s·DQ(Q(x; a); a) = DQ(Q(s·x; s·a); s·a)

holds over the reals. With s·a rounded, what lies next to a tie falls to the other side, by a whole step, unless s is
one power of two for all channels; batch normalization is not. So these ops keep what stands at their sides.
"""

import onnx_ir as ir

from bnpass.errors import Refusal, RefusalId
from bnpass.graph.nodes import described, label

_ROUNDS = {
    "QuantizeLinear": "rounds to integers, and an affine would move its ties",
    "DequantizeLinear": "gives what was rounded to integers, which an affine cannot reach",
    "DynamicQuantizeLinear": "finds its scale at run time",
    "ConvInteger": "multiplies integers whose scale is found at run time",
    "MatMulInteger": "multiplies integers whose scale is found at run time",
    "QLinearConv": "rounds its result to integers",
    "QLinearMatMul": "rounds its result to integers",
}
_MAKE_FLOATS = ("Mul", "Cast", "DequantizeLinear")
_CONTRIB = frozenset({
    "QGemm", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearWhere", "QLinearAveragePool", "QLinearReduceMean",
    "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax", "QLinearConvTranspose",
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulInteger16",
    "MatMulNBits", "MatMulBnb4", "NhwcMaxPool", "DynamicQuantizeLSTM", "QAttention",
})  # fmt: skip


def integers_between(node: ir.Node, where: str) -> Refusal | None:
    """Return why an affine does not get past a quantized op, or None if the op is none.

    What makes floats of the integers of another op (Cast, Mul, DequantizeLinear) stands for that one.
    """
    maker = _maker_of_integers(node, 0) if where == "before" else None
    node = node if maker is None else maker
    why = _why(node)
    if why is None:
        return None
    return Refusal(RefusalId.QUANTIZED_WEIGHT, label(node), f"{described(node)} stands {where} it, which {why}")


def _why(node: ir.Node) -> str | None:
    if node.domain == "":
        return _ROUNDS.get(node.op_type)
    return "computes with integers" if node.domain == "com.microsoft" and node.op_type in _CONTRIB else None


def _maker_of_integers(node: ir.Node, depth: int) -> ir.Node | None:
    """Return the op whose integers become floats here, if there is one: ``Mul(Cast(q), scale)`` at most."""
    if node.domain != "" or node.op_type not in _MAKE_FLOATS[depth:]:
        return None
    for value in node.inputs:
        maker = value.producer() if value is not None else None
        if maker is None or maker.op_type in ("QuantizeLinear", "DynamicQuantizeLinear"):
            continue
        found = maker if _why(maker) is not None else _maker_of_integers(maker, 1)
        if found is not None:
            return found
    return None
