"""The bias of an op with quantized weights, where it is stored as integers itself.

    b = q_b·a_b                            a_b is, by custom, the scale of the activation times that of the weight
    b' = s·(b + Σ W·t_in) + t,  a_b' = a_b·|m|,  q_b' = round(b'/a_b')

m is what the weight of that output channel is multiplied by, so the custom is kept and runtimes still add the
integers up. That rounding, at most half a unit of a_b', is all that is not exact; it stands in the report.
"""

import numpy as np

from bnpass.errors import Refusal, RefusalId
from bnpass.folding.absorb import Absorption
from bnpass.folding.linear import Linear, refuse
from bnpass.folding.quantized.result import NewBias
from bnpass.folding.quantized.stored import Stored
from bnpass.folding.result import BiasRounding
from bnpass.graph.nodes import label
from bnpass.semantics.affine import Array, limits_of, round_once

_INT32 = np.iinfo(np.int32)

_LARGEST_ACTIVATION = 255
"""How far an 8 bit activation may be from its zero point: runtimes add up products with it in int32."""


def stored_bias(absorption: Absorption, stored: Stored, total: Array, steps: Array, opset: int) -> NewBias | Refusal:
    """Round a bias to integers, or refuse where int32 cannot hold it or what is added to it.

    Args:
        absorption: The op and what it takes in.
        stored: The bias as it is.
        total: The new bias, wide, [output channels].
        steps: Σ |q - z| of the weight of each output channel.
        opset: Version of the default domain.
    """
    linear = absorption.linear
    m, dtype = _per_output(absorption), linear.weight.dtype.numpy()
    m = np.where(m == 0, 1.0, np.abs(m))
    if m.size > 1 and (m == m[0]).all() and stored.axis is None:
        m = m[:1]
    scale = round_once(m.reshape(() if m.size == 1 and stored.axis is None else -1) * stored.scale, dtype)
    limits = limits_of(dtype)
    if not np.isfinite(scale).all():
        return refuse(linear.node, "would get a bias scale beyond the range of its type", RefusalId.WOULD_OVERFLOW)
    if (scale < limits.smallest_normal).any():
        told = "would get a bias scale too small for its type"
        return refuse(linear.node, told, RefusalId.DTYPE_WOULD_LOSE_PRECISION)
    if scale.ndim and stored.axis is None and opset < 13:
        told = f"has a bias with one scale, and in opset {opset} there is none per channel"
        return refuse(linear.node, told, RefusalId.QUANTIZED_WEIGHT)
    units = total / scale.astype(np.float64)
    q = np.rint(units)
    grown = np.abs(q) > np.abs(stored.integers())
    if (grown & (np.abs(q) + _LARGEST_ACTIVATION * steps > _INT32.max)).any():
        return _overflow(linear, float(np.abs(q).max()))
    lsb = float(np.abs(units - q).max(initial=0.0))
    absolute = float(np.abs(total - q * scale.astype(np.float64)).max(initial=0.0))
    return NewBias(scale, q.astype(np.int32), BiasRounding(label(linear.node), lsb, absolute))


def _per_output(absorption: Absorption) -> Array:
    """Return what the weights of each output channel are multiplied by: [output channels] or [1]."""
    linear = absorption.linear
    layout = linear.layout
    m = layout.over(absorption.into.scale, layout.in_axes) * layout.over(absorption.out.scale, layout.out_axes)
    for axis in range(len(layout.view)):
        m = m if axis in layout.out_axes else m.take([0], axis)
    if m.size == 1:
        return m.reshape(1)
    kept = [n if a in layout.out_axes else 1 for a, n in enumerate(layout.view)]
    return np.broadcast_to(m, kept).reshape(-1)


def _overflow(linear: Linear, largest: float) -> Refusal:
    told = f"would get a bias of {largest:.3g} units, which overflows int32 where products are added to it"
    return refuse(linear.node, told, RefusalId.WOULD_OVERFLOW)
