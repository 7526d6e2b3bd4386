"""The report of a fold."""

from dataclasses import asdict, dataclass
from typing import Any

from bnpass.folding.result import Folded
from bnpass.report.base import Report


@dataclass(frozen=True)
class FoldReport(Report):
    """What a fold did.

    Attributes:
        folded: The affines that are gone.
    """

    verb = "fold"

    folded: tuple[Folded, ...]

    def _done(self) -> dict[str, Any]:
        return {"folded": [asdict(f) for f in self.folded]}

    def _sum(self) -> str:
        batch_norms = self.before.batch_norms - self.after.batch_norms
        still = {k.node for k in self.kept} | {node for f in self.folded for node in f.nodes}  # or counted elsewhere
        affines = sum(len(f.nodes) - len(f.batch_norms) - sum(n in still for n in f.into) for f in self.folded)
        kept = sum(k.op_type in ("BatchNormalization", "SyncBatchNormalization") for k in self.kept)
        return (
            f"batch normalization: {batch_norms} folded, {kept} kept; "
            f"other affine nodes: {affines} folded, {len(self.kept) - kept} kept"
        )
