"""FusedBatchNorm, FusedBatchNormV2 and FusedBatchNormV3: an op that says all of it.

In training its second and third output are the statistics after a step,

    running_mean = (1 - factor)·mean + factor·batch mean
    running_var  = (1 - factor)·var  + factor·sample variance of the batch

of which a factor of 1 leaves the batch alone. In inference they are mean and var themselves. What else comes out is
for the gradient.
"""

from typing import Any

from bnpass.exporting.errors import ExportError
from bnpass.exporting.graphs.facts import Facts, shape_of
from bnpass.exporting.graphs.found import Found

_UPDATES = ("running_mean", "running_var")


def fused(op: Any, facts: Facts) -> Found:  # noqa: ANN401  ops of TensorFlow are untyped
    """Read a FusedBatchNorm.

    Raises:
        ExportError: Its channels are not known, or something reads an output that is for its gradient.
    """
    X, scale, B, mean, var = op.inputs
    training, factor = bool(op.get_attr("is_training")), float(op.get_attr("exponential_avg_factor"))
    layout = op.get_attr("data_format").decode()
    axis = 1 if layout.startswith("NC") else len(layout) - 1
    used = [i for i, t in enumerate(op.outputs) if t.consumers() or t.name in facts.outputs]
    if any(i > 2 for i in used):
        raise ExportError(f"'{op.name}' ({op.type}): an output that is for its gradient is used")
    moved = {name: op.outputs[i] for i, name in enumerate(_UPDATES, 1) if i in used}
    keeps = training and bool(moved) and factor != 1
    found = Found(
        name=op.name,
        X=X,
        Y=op.outputs[0],
        axes=(axis,),
        epsilon=float(op.get_attr("epsilon")),
        training=training,
        scale=scale,
        B=B,
        mean=mean if keeps or not training else None,
        var=var if keeps or not training else None,
        fused=True,
        momentum=1.0 - factor,
        moved=moved if training else {},
        passed={} if training else {t.name: mean if i == 1 else var for i, t in enumerate(op.outputs) if i in used[1:]},
    )
    _check(op, found, len(layout))
    return found


def _check(op: Any, found: Found, rank: int) -> None:  # noqa: ANN401
    """Refuse vectors that do not have one number for each channel."""
    shapes = [shape_of(t) for t in (found.scale, found.B, found.mean, found.var) if t is not None]
    channels = channels_of(op, found)
    known = shape_of(found.X)
    if channels is None:
        raise ExportError(f"'{op.name}' ({op.type}): the number of its channels is not known")
    wrong = any(shape not in ((channels,), (None,), None) for shape in shapes)
    if wrong or (known is not None and (len(known) != rank or known[found.axes[0]] not in (None, channels))):
        raise ExportError(f"'{op.name}' ({op.type}): its parameters do not fit its {channels} channels")


def channels_of(op: Any, found: Found) -> int | None:  # noqa: ANN401
    """Return the number of channels that a FusedBatchNorm has, from whichever of its inputs says it."""
    for tensor in (found.scale, found.B, found.mean, found.var):
        shape = None if tensor is None else shape_of(tensor)
        if shape and shape[0] is not None:
            return shape[0]
    shape = shape_of(op.inputs[0])
    return None if shape is None else shape[found.axes[0]]
