"""What folding did."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Folded:
    """A run of affine nodes that is gone.

    Attributes:
        nodes: The nodes, in graph order; an unnamed one by its first output.
        into: The nodes that do their work now.
        side: ``output`` or ``input`` of a linear op, or ``joined`` with other affines.
        batch_norms: Those of ``nodes`` that were batch normalizations and are no longer there.
    """

    nodes: tuple[str, ...]
    into: tuple[str, ...]
    side: str
    batch_norms: tuple[str, ...]
