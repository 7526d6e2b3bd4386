"""Activations that are rounded to integers: what a rounding before them is worth.

The smallest change of a weight may bring an activation over a tie, and then it jumps by a whole step of its
QuantizeLinear. Whether it does is chance, so no few copies with moved weights tell. A copy whose activations are all
rounded up, and one whose are all rounded down, do: one of them has every jump that there may be.
"""

import onnx_ir as ir

__all__ = ["move_ties"]


def move_ties(model: ir.Model, *, up: bool) -> bool:
    """Let every QuantizeLinear of an activation round up or down, in place; return whether there was one."""
    found = False
    for scope in (model.graph, *model.functions.values()):
        for node in list(scope):
            if node.op_type == "QuantizeLinear" and not _is_constant(node.inputs[0]):
                found |= _move(node, up=up)
    return found


def _is_constant(value: ir.Value | None) -> bool:
    maker = value.producer() if value is not None else None
    return value is None or value.is_initializer() or (maker is not None and maker.op_type == "Constant")


def _move(node: ir.Node, *, up: bool) -> bool:
    """Add half a step before the rounding; of several steps, the smallest."""
    scale = node.inputs[1] if len(node.inputs) > 1 else None
    maker = scale.producer() if scale is not None else None
    attribute = maker.attributes.get("value") if maker is not None and maker.op_type == "Constant" else None
    tensor = scale.const_value if scale is not None else None
    if tensor is None and attribute is not None and not attribute.is_ref():
        tensor = attribute.as_tensor()
    if tensor is None or not tensor.size:
        return False
    half = (tensor.numpy().min() * (0.5 if up else -0.5)).astype(tensor.dtype.numpy())
    constant = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.Tensor(half.reshape(())))])
    moved = ir.Node("", "Add", [node.inputs[0], constant.outputs[0]])
    name = next(v.name for v in node.outputs)
    constant.outputs[0].name, moved.outputs[0].name = f"{name}/half step", f"{name}/moved"
    node.prepend([constant, moved])
    node.replace_input_with(0, moved.outputs[0])
    return True
