"""What a caller can choose about folding."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FoldOptions:
    """Options of ``fold``; the command line's flags and the report show the same fields.

    Attributes:
        inference: Treat training-mode batch normalization as inference, as one would to deploy a training graph.
        only: Patterns (``*``, ``?``, ``[…]``) of node or output names; others are left alone. Empty: all.
        exclude: Patterns of node or output names to leave alone.
        clone_budget: Bytes that copies of shared weights may add to the model.
        check: Random draws of the whole-model check; 0 leaves the local check alone.
        seed: Seed of those draws.
    """

    inference: bool = False
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    clone_budget: int = 64 << 20
    check: int = 3
    seed: int = 0
