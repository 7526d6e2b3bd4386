"""What folding did, and what it left, with the reason."""

from dataclasses import dataclass

from bnpass.errors import RefusalId


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


@dataclass(frozen=True)
class Kept:
    """A batch normalization or per-channel affine that is still there.

    Attributes:
        node: The node; an unnamed one by its first output.
        op_type: Its op.
        refusal: The stable id of the reason.
        at: The node that is in the way.
        reason: The reason, in one sentence.
    """

    node: str
    op_type: str
    refusal: RefusalId
    at: str
    reason: str

    def __str__(self) -> str:
        return f"{self.op_type} '{self.node}' kept, {self.refusal}: {self.reason}"
