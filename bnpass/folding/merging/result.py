"""What merging did, and what it left."""

from dataclasses import dataclass, field

import onnx_ir as ir

from bnpass.errors import Refusal


@dataclass(frozen=True)
class Merged:
    """Linear ops that became one.

    Attributes:
        nodes: The nodes that are gone; an unnamed one by its first output.
        into: The node that does their work now.
        batch_norms: Those of ``nodes`` that were batch normalizations.
        kind: ``parallel`` for a sum, ``sequential`` for a chain, ``padding`` for a Pad.
        error: Largest deviation of the local check, relative to what rounding permits; at most 1.
    """

    nodes: tuple[str, ...]
    into: str
    batch_norms: tuple[str, ...]
    kind: str
    error: float


@dataclass
class Merging:
    """What one call came to.

    Attributes:
        merged: The merges, in the order in which they were made.
        refused: For the last node of each sum that could have been less: why its branches stay apart.
    """

    merged: list[Merged] = field(default_factory=list)
    refused: dict[ir.Node, Refusal] = field(default_factory=dict)
