"""What folding did."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BiasRounding:
    """What rounding a quantized bias to integers came to.

    Attributes:
        node: The linear op.
        units: The largest error in units of the scale of the bias; at most half a unit.
        absolute: The largest error in what the op gives.
    """

    node: str
    units: float
    absolute: float


@dataclass(frozen=True)
class Folded:
    """A run of affine nodes that is gone.

    Attributes:
        nodes: The nodes, in graph order; an unnamed one by its first output.
        into: The nodes that do their work now.
        side: ``output`` or ``input`` of a linear op, or ``joined`` with other affines.
        batch_norms: Those of ``nodes`` that were batch normalizations and are no longer there.
        rounding: Quantized biases that were rounded to integers; beyond that a fold rounds floats once.
    """

    nodes: tuple[str, ...]
    into: tuple[str, ...]
    side: str
    batch_norms: tuple[str, ...]
    rounding: tuple[BiasRounding, ...] = ()
