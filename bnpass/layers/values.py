"""What goes into a layer written as nodes, what comes out of it, and what its gradient needs."""

from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class LayerInputs:
    """The values that a layer reads. All vectors are flat, [C]; the type of parameters and statistics is one.

    Attributes:
        X: The data, of the layer's shape and type.
        input_mean: The moving mean before the step.
        input_var: The moving variance before the step.
        scale: None where the layer has none.
        B: None where the layer has none.
        input_stddev: Renorm's moving standard deviation before the step.
        renorm_mean: Renorm's own mean before the step.
        renorm_stddev: Renorm's own standard deviation before the step.
        rmin: Scalar, where the layer leaves it to run time; as the next two.
        rmax: Scalar.
        dmax: Scalar.
        mask: Of X's shape without the last axis, or with lengths 1 there: what counts in the statistics.
        adjust_scale: The adjustment's a; broadcasts against X.
        adjust_bias: The adjustment's c; broadcasts against X.
    """

    X: ir.Value
    input_mean: ir.Value
    input_var: ir.Value
    scale: ir.Value | None = None
    B: ir.Value | None = None
    input_stddev: ir.Value | None = None
    renorm_mean: ir.Value | None = None
    renorm_stddev: ir.Value | None = None
    rmin: ir.Value | None = None
    rmax: ir.Value | None = None
    dmax: ir.Value | None = None
    mask: ir.Value | None = None
    adjust_scale: ir.Value | None = None
    adjust_bias: ir.Value | None = None


@dataclass(frozen=True)
class Adjusted:
    """What the gradient of an adjustment needs; X's own axes, in the type in which it was computed.

    Attributes:
        before: x̂, or x̂·r + d with renorm.
        after: a·before + c.
        a: As it acted: 1 where the mode at run time was inference.
        training: The mode at run time, boolean; None where it was known before.
    """

    before: ir.Value
    after: ir.Value
    a: ir.Value
    training: ir.Value | None


@dataclass(frozen=True)
class Saved:
    """What the gradient needs, besides the inputs.

    Attributes:
        x: X with one channel axis, in the type in which it was normalized.
        scale: What x̂ was multiplied by, [C]: scale·r with renorm; without the scale where there is an adjustment.
        mean: Of the statistics used, [C] or [G, C], double.
        inv_std: 1/√(var + epsilon) of these, double.
        count: Elements per channel over the group, a double; 0 for constant statistics. None with a mask.
        share: 1/W of a mask, [C], double; 0 for constant statistics. None without a mask.
        weights: The mask as weights, of the shape of x, double. None without a mask.
        r: Renorm's factor, [C], double, or None.
        d: Renorm's shift, [C], double, or None.
        adjusted: What belongs to the adjustment, or None.
        group: The replicas that share the statistics.
        virtual_batch_size: Samples in a ghost batch; 0 for none.
    """

    x: ir.Value
    scale: ir.Value
    mean: ir.Value
    inv_std: ir.Value
    count: ir.Value | None
    share: ir.Value | None
    weights: ir.Value | None
    r: ir.Value | None
    d: ir.Value | None
    adjusted: Adjusted | None
    group: str
    virtual_batch_size: int


@dataclass(frozen=True)
class LayerOutputs:
    """The values that a layer makes; the statistics after the step are None where it does not update them.

    Attributes:
        Y: Of X's shape and type.
        saved: For ``emit_gradient``.
        running_mean: [C].
        running_var: [C].
        running_stddev: [C], renorm only, as the next two.
        running_renorm_mean: [C].
        running_renorm_stddev: [C].
    """

    Y: ir.Value
    saved: Saved
    running_mean: ir.Value | None = None
    running_var: ir.Value | None = None
    running_stddev: ir.Value | None = None
    running_renorm_mean: ir.Value | None = None
    running_renorm_stddev: ir.Value | None = None


@dataclass(frozen=True)
class Gradients:
    """The gradients of a layer; those of the parameters are local to the replica.

    Attributes:
        dX: Of X's shape and type.
        dscale: [C]; None where the layer has no scale.
        dB: [C]; None where the layer has no B.
        dadjust_scale: As ``adjust_scale``, or None.
        dadjust_bias: As ``adjust_bias``, or None.
    """

    dX: ir.Value
    dscale: ir.Value | None
    dB: ir.Value | None
    dadjust_scale: ir.Value | None = None
    dadjust_bias: ir.Value | None = None
