"""A whole layer, with every argument that the classes have, written as our operators and plain nodes around them.

    plain        SyncBatchNormalization
    renorm       SyncBatchMoments → r, d → SyncBatchNormalization on these statistics, scale·r and B + scale·d
    mask         plain moments with AllReduce [→ r, d] → SyncBatchNormalization on these statistics
    adjustment   any of these with scale 1 and B 0, then a·z + c, then scale and B
    axes         Transpose and Reshape to one channel axis before, and back behind
    training     a Python bool decides now; a boolean scalar becomes an If over the two modes

With a boolean scalar the batch is not divided into ghost batches, in either mode, as in tf_keras. Masks and ghost
batches together are refused: the one class that has both cannot run them.
"""

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from bnpass.errors import UsageError
from bnpass.layers import adjustment, mask, modes
from bnpass.layers.axes import ChannelAxis
from bnpass.layers.branch import choose
from bnpass.layers.modes import Core
from bnpass.layers.values import LayerInputs, LayerOutputs, Saved
from bnpass.layers.vectors import constant_vector
from bnpass.ops import GROUP_NAME
from bnpass.ops.calls import TYPES, typed
from bnpass.ops.emit import Emit
from bnpass.semantics.resolved import Resolved


def emit_layer(
    op: Emit, layer: Resolved, inputs: LayerInputs, *, training: bool | ir.Value, group: str = ""
) -> LayerOutputs:
    """Write a layer.

    Args:
        op: Where it is written.
        layer: The layer.
        inputs: What it reads; types and shapes, where known, go on to what is written.
        training: The mode; or a boolean scalar that decides at run time.
        group: The replicas that a synchronized layer shares statistics with; "" for none.

    Returns:
        Y, the statistics after the step where the layer updates them, and what ``emit_gradient`` needs.

    Raises:
        UsageError: An input is missing, the mask has the wrong rank, the layer has both a mask and ghost batches, or
            the group has no proper name.
    """
    if group and not GROUP_NAME.fullmatch(group):
        raise UsageError(f"a group name is made of 1 to 64 letters, digits, '_', '.' and '-', not '{group}'")
    condition = training if isinstance(training, ir.Value) else None
    if not layer.uses_batch_statistics(condition is not None or bool(training)):
        core = _core(op, layer, inputs, late_parameters=False)
        return _outputs(op, core, modes.inference(op, core))
    core = _core(op, layer, inputs, late_parameters=layer.adjustment is not None)
    ghost = layer.virtual_batch_size if condition is None else 0
    core = replace(core, group=group if layer.synchronized else "", ghost=ghost)
    if inputs.mask is not None and layer.mask_rule != "ignored":
        if layer.virtual_batch_size:
            raise UsageError("a mask cannot be used with virtual_batch_size: the layer itself cannot run that")
        read = mask.read(op, layer, core.way, inputs.X, inputs.mask, core.group)
        core = replace(core, mask=read, group=read.group)
    if condition is None:
        values = modes.training(op, core)
    else:
        values = choose(op, condition, lambda o: modes.training(o, core), lambda o: modes.inference_branch(o, core))
    outputs = _outputs(op, core, values)
    if layer.adjustment is None:
        return outputs
    Y, adjusted = adjustment.apply(op, layer, core.way, inputs, outputs.Y, condition)
    return replace(outputs, Y=Y, saved=replace(outputs.saved, adjusted=adjusted))


def values_of(outputs: LayerOutputs) -> Mapping[str, ir.Value]:
    """Return Y and the updates of a layer by name, those that there are."""
    named = {"Y": outputs.Y} | {name: getattr(outputs, name) for name in modes.UPDATES}
    return {name: value for name, value in named.items() if value is not None}


def _core(op: Emit, layer: Resolved, inputs: LayerInputs, *, late_parameters: bool) -> Core:
    """Write what the modes have in common; with late parameters, x̂ comes out, and in their type."""
    if (inputs.scale is None) == layer.scale or (inputs.B is None) == layer.center:
        raise UsageError("scale and B are inputs exactly where the layer has them")
    way, dtype, C = ChannelAxis.of(layer), TYPES[layer.parameter_dtype], layer.channels
    X, scale, B = inputs.X, inputs.scale, inputs.B
    if late_parameters:
        X, scale, B = typed(op.cast(X, dtype), None, X.shape), None, None
    scale = constant_vector(op, 1.0, C, dtype) if scale is None else scale
    B = constant_vector(op, 0.0, C, dtype) if B is None else B
    return Core(layer, inputs, way, way.enter(op, X), scale, B, None, "", 0)


def _outputs(op: Emit, core: Core, values: modes.Values) -> LayerOutputs:
    """Write the way back from one channel axis."""
    Y = typed(core.way.leave(op, values["Y"]), None, core.inputs.X.shape)
    saved = Saved(
        x=core.x,
        scale=values.get("scale", core.scale),
        mean=values["mean"],
        inv_std=values["inv_std"],
        count=values.get("count"),
        share=values.get("share"),
        weights=core.mask.weights if core.mask else None,
        r=values.get("r"),
        d=values.get("d"),
        adjusted=None,
        group=core.group,
        virtual_batch_size=core.ghost,
    )
    return LayerOutputs(Y, saved, **{name: values[name] for name in modes.UPDATES if name in values})
