"""What was left as it is, with the reason."""

from dataclasses import dataclass

from bnpass.errors import RefusalId


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
