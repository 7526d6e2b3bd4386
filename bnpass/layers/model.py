"""A whole model of one layer."""

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from bnpass.errors import UsageError
from bnpass.layers.gradient import emit_gradient
from bnpass.layers.layer import emit_layer, values_of
from bnpass.layers.values import LayerInputs
from bnpass.ops import DOMAIN, MIN_OPSET, VERSION
from bnpass.ops.calls import TYPES, typed
from bnpass.ops.emit import Emit
from bnpass.ops.schemas import register
from bnpass.semantics.resolved import Resolved

_IR_VERSION = 8
"""The oldest that has local functions, which the bodies will be; nothing here needs a newer one."""

_BFLOAT16_IF = 16
"""The first opset whose If may have an output of bfloat16."""

_STATE = ("scale", "B", "input_mean", "input_var", "input_stddev", "renorm_mean", "renorm_stddev")
_LIMITS = ("rmin", "rmax", "dmax")
_PAIR = ("adjust_scale", "adjust_bias")
_GRADIENTS = ("dX", "dscale", "dB", "dadjust_scale", "dadjust_bias")


def layer_model(
    layer: Resolved,
    *,
    training: bool | None,
    group: str = "",
    mask: bool = False,
    gradient: bool = False,
    opset: int = 18,
) -> ir.Model:
    """Return a model of one layer; the bodies of our operators are not in it.

    Inputs, in this order, where the layer and the mode have them: ``X``, ``mask``, ``training``, ``scale``, ``B``,
    ``input_mean``, ``input_var``, ``input_stddev``, ``renorm_mean``, ``renorm_stddev``, ``rmin``, ``rmax``, ``dmax``,
    ``adjust_scale``, ``adjust_bias``, ``dY``. Those of renorm and adjustment are there in training only. A mask has
    one axis less than X; a, c of an adjustment as many; their lengths may be 1.

    Outputs likewise: ``Y``, ``running_mean``, ``running_var``, ``running_stddev``, ``running_renorm_mean``,
    ``running_renorm_stddev``, ``dX``, ``dscale``, ``dB``, ``dadjust_scale``, ``dadjust_bias``.

    Args:
        layer: The layer.
        training: The mode; None for a boolean scalar, the input ``training``.
        group: The replicas that a synchronized layer shares statistics with.
        mask: Whether it is called with a mask.
        gradient: Whether the model also computes the gradients, from ``dY``.
        opset: Version of the default ONNX domain.

    Raises:
        UsageError: The opset is too old (bfloat16 under a mode at run time needs 16), or the layer has both a mask
            and ghost batches.

    Example:
        >>> from bnpass.semantics.spec import BatchNormSpec
        >>> layer = BatchNormSpec("keras3").resolve((None, 3))
        >>> [value.name for value in layer_model(layer, training=True).graph.outputs]
        ['Y', 'running_mean', 'running_var']
    """
    needed = _BFLOAT16_IF if training is None and layer.dtype == "bfloat16" else MIN_OPSET
    if opset < needed:
        raise UsageError(f"opset {opset} is too old: this layer needs {needed} or newer")
    op = Emit("layer")
    inputs = _inputs(layer, from_batch=layer.uses_batch_statistics(training is not False), mask=mask)
    mode = ir.val("training", ir.DataType.BOOL, []) if training is None else training
    outputs = emit_layer(op, layer, inputs, training=mode, group=group)
    results = dict(values_of(outputs))
    read = [value for name in ("X", "mask") if (value := getattr(inputs, name)) is not None]
    read += [mode] if isinstance(mode, ir.Value) else []
    read += [value for name in (*_STATE, *_LIMITS, *_PAIR) if (value := getattr(inputs, name)) is not None]
    if gradient:
        read.append(ir.val("dY", inputs.X.dtype, inputs.X.shape))
        found = emit_gradient(op, layer, inputs, outputs.saved, read[-1])
        results |= {name: value for name in _GRADIENTS if (value := getattr(found, name)) is not None}
    _name_outputs(op, results)
    imports = {"": opset, DOMAIN: VERSION}
    graph = ir.Graph(read, list(results.values()), nodes=op.nodes, opset_imports=imports, name="layer")
    model = ir.Model(graph, ir_version=_IR_VERSION, producer_name="bnpass")
    register()  # shapes come out the same whether or not someone did it before
    ShapeInferencePass(check_type=True, strict_mode=False, data_prop=False)(model)
    return model


def _name_outputs(op: Emit, results: dict[str, ir.Value]) -> None:
    """Give the outputs their names; one that is an input, as a sum over nothing can be, goes through Identity."""
    for name, value in results.items():
        if value.producer() is None:
            results[name] = typed(op("Identity", value), value.dtype, value.shape)
        results[name].name = name


def _inputs(layer: Resolved, *, from_batch: bool, mask: bool) -> LayerInputs:
    """Return the inputs of the graph that are values of the layer."""
    dtype = TYPES[layer.parameter_dtype]
    rank = len(layer.input_shape)
    names = [("scale", layer.scale), ("B", layer.center), ("input_mean", True), ("input_var", True)]
    values = {name: ir.val(name, dtype, [layer.channels]) for name, has in names if has}
    if from_batch and layer.renorm is not None:
        values |= {name: ir.val(name, dtype, [layer.channels]) for name in _STATE[4:]}
        limits = [name for name in _LIMITS if getattr(layer.renorm, name) is None]
        values |= {name: ir.val(name, dtype, []) for name in limits}
    if from_batch and layer.adjustment is not None:
        values |= {name: ir.val(name, dtype, [f"{name}_{i}" for i in range(rank)]) for name in _PAIR}
    if mask:
        kind = ir.DataType.BOOL if layer.mask_rule == "select" else TYPES[layer.dtype]
        values["mask"] = ir.val("mask", kind, [f"mask_{i}" for i in range(rank - 1)])
    shape = ["N" if i == 0 and n is None else f"D{i}" if n is None else n for i, n in enumerate(layer.input_shape)]
    return LayerInputs(ir.val("X", TYPES[layer.dtype], shape), **values)
