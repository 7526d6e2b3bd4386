"""What a quantized weight and its bias become."""

from dataclasses import dataclass

from bnpass.folding.result import BiasRounding
from bnpass.semantics.affine import Array


@dataclass(frozen=True, eq=False)
class NewWeight:
    """The inputs of a DequantizeLinear after a fold.

    Attributes:
        scale: Rounded; shape () or [length of ``axis``].
        zero: The zero point, of the same shape, in the type of the integers.
        axis: What they run along; None if they are one number.
        integers: q in its type: as it was, but for channels that change their sign or become zero.
        floats: What a QuantizeLinear makes them of, if one does.
    """

    scale: Array
    zero: Array
    axis: int | None
    integers: Array
    floats: Array | None = None


@dataclass(frozen=True, eq=False)
class NewBias:
    """The inputs of the DequantizeLinear of a bias after a fold; its zero point is 0.

    Attributes:
        scale: Rounded; shape () or [output channels].
        integers: In int32, [output channels].
        rounding: What rounding to integers came to.
    """

    scale: Array
    integers: Array
    rounding: BiasRounding
