"""What a caller can choose about folding."""

from dataclasses import dataclass
from typing import Literal, get_args

from bnpass.errors import UsageError

Runtime = Literal["onnxruntime-cpu", "onnxruntime-cuda", "portable"]
"""What runs a folded model."""


@dataclass(frozen=True)
class FoldOptions:
    """Options of ``fold``; the command line's flags and the report show the same fields.

    Attributes:
        inference: Treat training-mode batch normalization as inference, as one would to deploy a training graph.
        only: Patterns (``*``, ``?``, ``[…]``) of node or output names; others are left alone. Empty: all.
        exclude: Patterns of node or output names to leave alone.
        merge: Make one linear op of parallel ones that are added up, and of chains, where that is no more work.
        target: What will run the model: affines that stay are written in its cheapest form.
        clone_budget: Bytes that copies of shared weights may add to the model.
        check: Random draws of the whole-model check; 0 leaves the local check alone.
        seed: Seed of those draws.
    """

    inference: bool = False
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    merge: bool = True
    target: Runtime = "onnxruntime-cpu"
    clone_budget: int = 64 << 20
    check: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.target not in get_args(Runtime):
            raise UsageError(f"'{self.target}' is no target; choose one of {', '.join(get_args(Runtime))}")
