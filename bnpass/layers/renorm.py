"""Batch renormalization in nodes: the corrections of a step, and its updates.

    σ = √(var + epsilon)      R = max(renorm_stddev, √epsilon)      from the state before the step
    r = min(max(σ/R, rmin), rmax)      d = min(max((mean − renorm_mean)/R, −dmax), dmax)
    Y = scale·(x̂·r + d) + B      r and d are constants to the gradient

    running_mean   = m·input_mean   + (1 − m)·mean      running_renorm_mean   = ρ·renorm_mean   + (1 − ρ)·mean
    running_stddev = m·input_stddev + (1 − m)·σ         running_renorm_stddev = ρ·renorm_stddev + (1 − ρ)·σ
    running_var    = max(running_stddev² − epsilon, 0)

mean and var are those of the batch; with ghost batches, their averages over these. Everything is [C] in double.
Source: S. Ioffe, Batch Renormalization, 2017, with the two pairs of averages that Keras keeps.
"""

import math

import onnx_ir as ir

from bnpass.errors import UsageError
from bnpass.layers.values import LayerInputs
from bnpass.layers.vectors import f64, number
from bnpass.ops.emit import Emit
from bnpass.semantics.resolved import Renorm, Resolved

Averages = dict[str, tuple[ir.Value, ir.Value, float]]
"""Name of the average after the step: average before it, the batch's value, fraction kept."""


def stddev_of(op: Emit, layer: Resolved, var: ir.Value) -> ir.Value:
    """Write √(var + epsilon)."""
    return f64(op, "Sqrt", f64(op, "Add", var, number(op, layer.epsilon)), name="stddev")


def corrections(
    op: Emit, layer: Resolved, renorm: Renorm, inputs: LayerInputs, mean: ir.Value, stddev: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Write r and d.

    Args:
        op: Where they are written.
        layer: The layer.
        renorm: Its renorm.
        inputs: Holds the state before the step, and the limits that are given at run time.
        mean: The batch's.
        stddev: The batch's √(var + epsilon).

    Raises:
        UsageError: A value is missing among the inputs.
    """
    floor = f64(op, "Max", _given(inputs, "renorm_stddev"), number(op, math.sqrt(layer.epsilon)), name="R")
    r = f64(op, "Div", stddev, floor, name="r")
    if renorm.rmin != 0:
        r = f64(op, "Max", r, _limit(op, renorm.rmin, inputs, "rmin"), name="r")
    if renorm.rmax != math.inf:
        r = f64(op, "Min", r, _limit(op, renorm.rmax, inputs, "rmax"), name="r")
    d = f64(op, "Div", f64(op, "Sub", mean, _given(inputs, "renorm_mean"), name="distance"), floor, name="d")
    if renorm.dmax != math.inf:
        limit = _limit(op, renorm.dmax, inputs, "dmax")
        d = f64(op, "Min", f64(op, "Max", d, f64(op, "Neg", limit, name="dmin"), name="d"), limit, name="d")
    return r, d


def averages(layer: Resolved, renorm: Renorm, inputs: LayerInputs, mean: ir.Value, stddev: ir.Value) -> Averages:
    """Return the four averages that a step moves.

    Raises:
        UsageError: A value is missing among the inputs.
    """
    return {
        "running_mean": (inputs.input_mean, mean, layer.momentum),
        "running_stddev": (_given(inputs, "input_stddev"), stddev, layer.momentum),
        "running_renorm_mean": (_given(inputs, "renorm_mean"), mean, renorm.momentum),
        "running_renorm_stddev": (_given(inputs, "renorm_stddev"), stddev, renorm.momentum),
    }


def variance_of(op: Emit, layer: Resolved, stddev: ir.Value) -> ir.Value:
    """Write the moving variance that belongs to a moving standard deviation."""
    square = f64(op, "Mul", stddev, stddev, name="square")
    return f64(op, "Max", f64(op, "Sub", square, number(op, layer.epsilon)), number(op, 0.0), name="variance")


def _limit(op: Emit, fixed: float | None, inputs: LayerInputs, name: str) -> ir.Value:
    return _given(inputs, name) if fixed is None else number(op, fixed)


def _given(inputs: LayerInputs, name: str) -> ir.Value:
    value = getattr(inputs, name)
    if not isinstance(value, ir.Value):
        raise UsageError(f"a layer with renorm reads {name}, which is not among its inputs")
    return value
