"""Statistics of the elements that a mask chooses, and their gradient, in plain nodes and AllReduce.

    W = Σ w      mean = Σ w·x / D      var = Σ w·(x − mean)² / D      x̂ = (x − mean)·s      s = 1/√(var + epsilon)

Rule "weights" (tf_keras): D = W, everything 0 where W = 0; any w ≥ 0, and what is masked still enters the sums, as
0·x. Rule "select" (Keras 3): w is 0 or 1, D = W + η, what is masked is never looked at, and replicas share nothing.
Every position is normalized, so the gradient has sums over all of them (k is what x̂ was multiplied by):

    S1 = Σ dY      S2 = Σ dY·x̂      dX = s·k·(dY − w/D·(S1 + (x̂ − s·mean·η/D)·S2))

The term with η is there because Σ w·(x − mean) = η·mean does not vanish. With a group, W, the sums of the forward
pass and S1, S2 are those of all its replicas. Where 1/D is 0, or an element is not selected, the term with S1 and S2
is left out, so that a NaN elsewhere does not enter as 0·NaN. All arithmetic is in double.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from bnpass.errors import UsageError
from bnpass.layers.axes import ChannelAxis
from bnpass.layers.values import Saved
from bnpass.layers.vectors import f64, number, per_channel
from bnpass.ops.calls import DOUBLE, TYPES, all_reduce, typed
from bnpass.ops.emit import Emit
from bnpass.semantics.reference import KERAS3_ETA
from bnpass.semantics.resolved import Resolved


@dataclass(frozen=True)
class Mask:
    """A mask, brought to the shape of x: X with one channel axis.

    Attributes:
        weights: w, double.
        chosen: Whether w = 1, boolean; None under the rule "weights".
        eta: What is added to W.
        group: The replicas whose elements are counted together.
    """

    weights: ir.Value
    chosen: ir.Value | None
    eta: float
    group: str

    def only(self, op: Emit, x: ir.Value) -> ir.Value:
        """Write w·x, without a look at what is not chosen."""
        if self.chosen is None:
            return f64(op, "Mul", self.weights, x, name="weighted")
        return typed(op("Where", self.chosen, x, number(op, 0.0), name="chosen_only"), DOUBLE)


@dataclass(frozen=True)
class MaskedMoments:
    """Statistics under a mask, double.

    Attributes:
        mean: [C].
        var: [C].
        share: 1/D, [C]; 0 where W = 0 under the rule "weights".
        elements: Number of elements of X, masked or not, over the group; [1].
    """

    mean: ir.Value
    var: ir.Value
    share: ir.Value
    elements: ir.Value


def read(op: Emit, layer: Resolved, way: ChannelAxis, X: ir.Value, mask: ir.Value, group: str) -> Mask:
    """Write what brings a mask to the shape of x.

    Args:
        op: Where it is written.
        layer: The layer; its ``mask_rule`` is "weights" or "select".
        way: To one channel axis.
        X: The data.
        mask: Of X's shape without the last axis, or with lengths 1 there.
        group: The replicas that share statistics; "select" does not share them.

    Raises:
        UsageError: The rank of the mask is known, and not one less than that of X.
    """
    rank = len(layer.input_shape)
    if mask.shape is not None and len(mask.shape) != rank - 1:
        raise UsageError(f"a mask for an input of rank {rank} has rank {rank - 1}, this one has {len(mask.shape)}")
    select = layer.mask_rule == "select"
    if select:
        mask = op.cast(mask, ir.DataType.BOOL)
    else:  # the class rounds it to the type in which it adds up
        mask = op.cast(op.cast(mask, TYPES[layer.parameter_dtype if group else layer.dtype]), DOUBLE)
    full = op("Expand", op("Unsqueeze", mask, op.ints(rank - 1)), op("Shape", X), name="mask")
    x_like = way.enter(op, typed(full, mask.dtype, X.shape))
    if select:
        return Mask(op.cast(x_like, DOUBLE), x_like, KERAS3_ETA, "")
    return Mask(x_like, None, 0.0, group)


def moments(op: Emit, way: ChannelAxis, x: ir.Value, mask: Mask, *, exact: bool) -> MaskedMoments:
    """Write the statistics under a mask.

    Args:
        op: Where they are written.
        way: To one channel axis.
        x: X with one channel axis, any type.
        mask: Of the shape of x.
        exact: Replicas centre on the common mean, for a second message; else on their own. The error of that is
            about 1e-16·(mean/std)², far below what the roundings of a float32 x cost.
    """
    sizes = [1, way.channels, way.channels] if exact else [1, way.channels, way.channels, way.channels]
    x = op.cast(x, DOUBLE)
    size = op.cast(op("Size", x), DOUBLE)
    elements = typed(op("Reshape", size, op.ints(1), name="elements"), DOUBLE)
    weight, total = per_channel(op, way, mask.weights, "W"), per_channel(op, way, mask.only(op, x), "sum")
    if mask.group and exact:
        elements, weight, total = _summed(op, (elements, weight, total), sizes, mask.group)
    over_weight = _division(op, weight, mask.eta)
    mean = over_weight(total, "mean")
    centred = f64(op, "Sub", x, way.along(op, mean), name="centred")
    squares = per_channel(op, way, mask.only(op, f64(op, "Mul", centred, centred)), "squares")
    if mask.group and exact:
        squares = all_reduce(op, squares, group=mask.group)
    elif mask.group:
        around_zero = f64(op, "Add", squares, f64(op, "Mul", total, mean), name="squares")
        elements, weight, total, around_zero = _summed(op, (elements, weight, total, around_zero), sizes, mask.group)
        over_weight = _division(op, weight, mask.eta)
        mean = over_weight(total, "mean")
        var = f64(op, "Sub", over_weight(around_zero, "mean_square"), f64(op, "Mul", mean, mean))
        share = over_weight(number(op, 1.0), "share")
        return MaskedMoments(mean, f64(op, "Max", var, number(op, 0.0), name="var"), share, elements)
    return MaskedMoments(mean, over_weight(squares, "var"), over_weight(number(op, 1.0), "share"), elements)


def gradient(
    op: Emit, way: ChannelAxis, saved: Saved, dy: ir.Value, *, eta: float
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Write dX, of the shape of x in double, and the local Σ dY·x̂ and Σ dY, [C] in double.

    Args:
        op: Where it is written.
        way: To one channel axis.
        saved: What the forward pass left; its ``share`` and ``weights`` are those of the mask.
        dy: dY with one channel axis.
        eta: What was added to W.

    Raises:
        UsageError: The forward pass had no mask.
    """
    if saved.share is None or saved.weights is None:
        raise UsageError("the forward pass of this gradient had no mask")
    dy = op.cast(dy, DOUBLE)
    x_hat = f64(op, "Mul", f64(op, "Sub", saved.x, way.along(op, saved.mean)), way.along(op, saved.inv_std))
    dB, dscale = per_channel(op, way, dy, "sum_dY"), per_channel(op, way, f64(op, "Mul", dy, x_hat), "sum_dY_x_hat")
    S1, S2 = _summed(op, (dB, dscale), [way.channels] * 2, saved.group) if saved.group else (dB, dscale)
    if eta:
        lost = f64(op, "Mul", f64(op, "Mul", saved.inv_std, saved.mean), f64(op, "Mul", saved.share, number(op, eta)))
        S1 = f64(op, "Sub", S1, f64(op, "Mul", lost, S2))
    through = f64(op, "Add", way.along(op, S1), f64(op, "Mul", x_hat, way.along(op, S2)))
    share = way.along(op, saved.share)
    felt = op("Greater", share, number(op, 0.0), name="felt")
    if eta:
        felt = op("And", felt, op.cast(saved.weights, ir.DataType.BOOL), name="felt")
    spread = f64(op, "Mul", f64(op, "Mul", saved.weights, share), through)
    spread = typed(op("Where", felt, spread, number(op, 0.0), name="through_statistics"), DOUBLE)
    factor = f64(op, "Mul", saved.inv_std, saved.scale, name="factor")
    dx = f64(op, "Mul", f64(op, "Sub", dy, spread), way.along(op, factor), name="dx")
    return typed(dx, DOUBLE, saved.x.shape), dscale, dB


def _division(op: Emit, weight: ir.Value, eta: float) -> Callable[[ir.Value, str], ir.Value]:
    """Return what writes a division by D = W + η; without η the quotient by 0 is 0."""
    if eta:
        divisor = f64(op, "Add", weight, number(op, eta), name="D")
        return lambda value, name: f64(op, "Div", value, divisor, name=name)
    none = op("Equal", weight, number(op, 0.0), name="none_counts")
    divisor = typed(op("Where", none, number(op, 1.0), weight, name="D"), DOUBLE)

    def over(value: ir.Value, name: str) -> ir.Value:
        return typed(op("Where", none, number(op, 0.0), f64(op, "Div", value, divisor), name=name), DOUBLE)

    return over


def _summed(op: Emit, vectors: Sequence[ir.Value], sizes: Sequence[int], group: str) -> Sequence[ir.Value]:
    """Write the sums of some vectors of these sizes over a group, in one message."""
    message = typed(op("Concat", *vectors, name="message", axis=0), DOUBLE)
    total = all_reduce(op, message, group=group)
    parts = op.many("Split", [total, op.ints(*sizes)], ["part"] * len(vectors), axis=0)
    return [typed(part, DOUBLE) for part in parts]
