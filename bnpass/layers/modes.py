"""The modes of a layer on one channel axis: inference, training, and inference as a branch of a choice at run time.

Each returns its values by name: ``Y``; the statistics after the step, where the layer updates them; and what the
gradient reads: ``mean``, ``inv_std``, ``count`` or with a mask ``share``, and with renorm ``scale``, ``r`` and ``d``.
"""

from dataclasses import dataclass

import onnx_ir as ir

from bnpass.layers import mask, renorm
from bnpass.layers.axes import ChannelAxis
from bnpass.layers.values import LayerInputs
from bnpass.layers.vectors import constant_vector, f64, number
from bnpass.ops.calls import DOUBLE, TYPES, BatchNorm, batch_norm, moments, typed
from bnpass.ops.emit import Emit
from bnpass.semantics.resolved import Resolved

Values = dict[str, ir.Value]

UPDATES = {
    "running_mean": "input_mean",
    "running_var": "input_var",
    "running_stddev": "input_stddev",
    "running_renorm_mean": "renorm_mean",
    "running_renorm_stddev": "renorm_stddev",
}
"""The statistics after a step, and the inputs that they start from."""


def moved_by_training(layer: Resolved) -> tuple[str, ...]:
    """Return the names of the statistics that a training step of a layer changes."""
    names = list(UPDATES) if layer.renorm is not None else ["running_mean", "running_var"]
    return tuple(name for name in names if _moves(layer, name))


def _moves(layer: Resolved, name: str) -> bool:
    return layer.updates_renorm(True) if "renorm" in name else layer.updates_statistics(True)


@dataclass(frozen=True)
class Core:
    """A layer on one channel axis, without its adjustment.

    Attributes:
        layer: The layer.
        inputs: Its inputs.
        way: To one channel axis.
        x: X on it, in the type in which it is normalized.
        scale: [C].
        B: [C].
        mask: Of the shape of x, or None.
        group: The replicas that share statistics.
        ghost: Samples in a ghost batch, or 0.
    """

    layer: Resolved
    inputs: LayerInputs
    way: ChannelAxis
    x: ir.Value
    scale: ir.Value
    B: ir.Value
    mask: mask.Mask | None
    group: str
    ghost: int


def inference(op: Emit, core: Core) -> Values:
    """Write normalization with the moving statistics."""
    return _values(_normalized(op, core, training=False))


def training(op: Emit, core: Core) -> Values:
    """Write normalization with the statistics of the batch, and the updates.

    Raises:
        UsageError: A value that renorm reads is missing among the inputs.
    """
    if core.layer.renorm is not None or core.mask is not None:
        return _composed(op, core)
    return _values(_normalized(op, core, training=True))


def inference_branch(op: Emit, core: Core) -> Values:
    """Write inference with all the values of training: statistics pass through, and are constants to the gradient."""
    values, channels = inference(op, core), core.layer.channels
    for name in moved_by_training(core.layer):
        values[name] = op("Identity", getattr(core.inputs, UPDATES[name]), name=name)
    if core.layer.renorm is not None:
        values |= {"r": constant_vector(op, 1.0, channels, DOUBLE), "d": constant_vector(op, 0.0, channels, DOUBLE)}
        values["scale"] = f64(op, "Identity", core.scale, name="scale")
    if core.mask is not None:
        values["share"] = constant_vector(op, 0.0, channels, DOUBLE)
    return values


def _normalized(op: Emit, core: Core, *, training: bool, **other: ir.Value) -> BatchNorm:
    """Write the operator, with other parameters or statistics than the layer's where given."""
    own = {"scale": core.scale, "B": core.B, "mean": core.inputs.input_mean, "var": core.inputs.input_var} | other
    return batch_norm(
        op,
        core.x,
        own["scale"],
        own["B"],
        own["mean"],
        own["var"],
        axis=core.way.first,
        epsilon=core.layer.epsilon,
        momentum=core.layer.momentum,
        training=training,
        updates=training and core.layer.updates_statistics(training),
        group=core.group if training else "",
        running_var_correction=core.layer.running_var_correction,
        virtual_batch_size=core.ghost,
    )


def _values(result: BatchNorm) -> Values:
    values = {"Y": result.Y, "mean": result.saved_mean, "inv_std": result.saved_inv_std, "count": result.count}
    if result.running_mean is not None and result.running_var is not None:
        values |= {"running_mean": result.running_mean, "running_var": result.running_var}
    return values


def _composed(op: Emit, core: Core) -> Values:
    """Write training with moments that the operator does not take itself; it then normalizes with them."""
    layer, inputs = core.layer, core.inputs
    mean, var, elements, saved = _moments(op, core)
    batch_mean, batch_var = (_over_ghosts(op, part) if core.ghost else part for part in (mean, var))
    parameters = {}
    if layer.renorm is None:
        steps = {
            "running_mean": (inputs.input_mean, batch_mean, layer.momentum),
            "running_var": (inputs.input_var, batch_var, layer.momentum),
        }
    else:
        stddev = renorm.stddev_of(op, layer, batch_var)
        r, d = renorm.corrections(op, layer, layer.renorm, inputs, batch_mean, stddev)
        parameters = {
            "scale": _vector(f64(op, "Mul", core.scale, r, name="scale_r"), layer),
            "B": _vector(f64(op, "Add", core.B, f64(op, "Mul", core.scale, d), name="B_d"), layer),
        }
        saved |= {"r": _vector(r, layer), "d": _vector(d, layer), "scale": parameters["scale"]}
        steps = renorm.averages(layer, layer.renorm, inputs, batch_mean, stddev)
    result = _normalized(op, core, training=False, mean=mean, var=var, **parameters)
    values = {"Y": result.Y, "mean": result.saved_mean, "inv_std": result.saved_inv_std} | saved
    moved = {name: steps[name] for name in moved_by_training(layer) if name in steps}
    return values | (_updates(op, core, moved, elements) if moved else {})


def _moments(op: Emit, core: Core) -> tuple[ir.Value, ir.Value, ir.Value, Values]:
    """Write mean and variance of the batch, how many elements there are, and what the gradient needs of it."""
    layer, axis = core.layer, core.way.first
    if core.mask is not None:
        masked = mask.moments(op, core.way, core.x, core.mask, exact=layer.dtype == "float64")
        return masked.mean, masked.var, masked.elements, {"share": masked.share}
    own = moments(op, core.x, axis=axis, channels=layer.channels, group=core.group, virtual_batch_size=core.ghost)
    return own.mean, own.var, own.count, {"count": own.count}


def _updates(op: Emit, core: Core, steps: renorm.Averages, elements: ir.Value) -> Values:
    """Write the statistics after the step, momentum·before + (1 − momentum)·batch; an empty batch leaves them alone."""
    layer, after = core.layer, Values()
    for name, (before, batch, kept) in steps.items():
        old = f64(op, "Mul", before, number(op, kept))
        after[name] = f64(op, "Add", old, f64(op, "Mul", batch, number(op, 1 - kept)), name=name)
    if "running_stddev" in after:
        after["running_var"] = renorm.variance_of(op, layer, after["running_stddev"])
    any_element = op("Greater", elements, number(op, 0.0), name="any_element")
    for name, value in after.items():
        rounded = op.cast(value, TYPES[layer.parameter_dtype])
        before = getattr(core.inputs, UPDATES[name])
        after[name] = _vector(typed(op("Where", any_element, rounded, before, name=name), rounded.dtype), layer)
    return after


def _over_ghosts(op: Emit, statistic: ir.Value) -> ir.Value:
    """Write the average over the ghost batches, [G, C] to [C]; 0 where there is none."""
    total = op("ReduceSum", statistic, op.ints(0), name="over_ghosts", keepdims=0)
    ghosts = op("Gather", op("Shape", statistic), op.ints(0), name="ghosts", axis=0)
    return f64(op, "Div", typed(total, DOUBLE), f64(op, "Max", ghosts, number(op, 1.0)), name="average")


def _vector(value: ir.Value, layer: Resolved) -> ir.Value:
    return typed(value, None, ir.Shape([layer.channels]))
