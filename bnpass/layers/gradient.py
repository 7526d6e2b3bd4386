"""The gradient of a layer, as one operator and plain nodes around it.

    plain, renorm   SyncBatchNormalizationGrad with scale·r; dscale' and dB come out, and dscale = r·dscale' + d·dB
    inference       the same: a count of 0 says that the statistics are constants
    mask            plain nodes with AllReduce
    adjustment      its own part first; the rest gets dz for dY

Formulas: docs of ``renorm``, ``mask`` and ``adjustment`` beside this file.
"""

from dataclasses import replace

import onnx_ir as ir

from bnpass.errors import UsageError
from bnpass.layers import adjustment, mask
from bnpass.layers.axes import ChannelAxis
from bnpass.layers.values import Gradients, LayerInputs, Saved
from bnpass.layers.vectors import f64
from bnpass.ops.calls import TYPES, batch_norm_grad, typed
from bnpass.ops.emit import Emit
from bnpass.semantics.reference import KERAS3_ETA
from bnpass.semantics.resolved import Resolved


def emit_gradient(op: Emit, layer: Resolved, inputs: LayerInputs, saved: Saved, dY: ir.Value) -> Gradients:
    """Write the gradient of a layer.

    Args:
        op: Where it is written.
        layer: The layer.
        inputs: What its forward pass read.
        saved: What that left, group and mode included.
        dY: The gradient with respect to Y, of its shape and type.

    Returns:
        dX; dscale and dB where the layer has scale and B, local to the replica; and the adjustment's.

    Raises:
        UsageError: The inputs are not those of the forward pass.
    """
    way = ChannelAxis.of(layer)
    found = None
    if saved.adjusted is not None:
        dY, found = adjustment.gradient(op, way, inputs, saved.adjusted, dY)
    dx, dscale, dB = _core(op, layer, way, saved, way.enter(op, dY))
    dX = op.cast(way.leave(op, dx), TYPES[layer.dtype], name="dX")
    if found is None:
        found = Gradients(dX, dscale, dB)
    return replace(
        found,
        dX=typed(dX, None, inputs.X.shape),
        dscale=_parameter(op, layer, found.dscale, "dscale") if layer.scale else None,
        dB=_parameter(op, layer, found.dB, "dB") if layer.center else None,
    )


def _core(op: Emit, layer: Resolved, way: ChannelAxis, saved: Saved, dy: ir.Value) -> tuple[ir.Value, ...]:
    """Write dx with one channel axis, dscale and dB of the layer without its adjustment."""
    if saved.weights is not None:
        eta = KERAS3_ETA if layer.mask_rule == "select" else 0.0
        dx, dscale, dB = mask.gradient(op, way, saved, dy, eta=eta)
    elif saved.count is not None:
        statistics = saved.mean, saved.inv_std, saved.count
        axis, group, ghost = way.first, saved.group, saved.virtual_batch_size
        grad = batch_norm_grad(
            op, dy, saved.x, saved.scale, *statistics, axis=axis, group=group, virtual_batch_size=ghost
        )
        dx, dscale, dB = grad.dX, grad.dscale, grad.dB
    else:
        raise UsageError("what the forward pass left has neither a count nor a mask")
    if saved.r is not None and saved.d is not None and saved.adjusted is None and layer.scale:
        dscale = f64(op, "Add", f64(op, "Mul", saved.r, dscale), f64(op, "Mul", saved.d, dB), name="dscale")
    return dx, dscale, dB


def _parameter(op: Emit, layer: Resolved, gradient: ir.Value | None, name: str) -> ir.Value | None:
    if gradient is None:
        return None
    value = op.cast(gradient, TYPES[layer.parameter_dtype], name=name)
    return typed(value, None, ir.Shape([layer.channels]))
