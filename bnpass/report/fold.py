"""The report of a fold."""

from dataclasses import asdict, dataclass
from typing import Any

from bnpass.folding.merging.result import Merged
from bnpass.folding.result import Folded
from bnpass.graph.kept import Kept
from bnpass.report.base import Report, counted, kept_line


@dataclass(frozen=True)
class FoldReport(Report):
    """What a fold did.

    Attributes:
        folded: The affines that are gone.
        merged: The linear ops that became one.
        apart: The sums that could not, with the reason.
        idle: The nodes that changed nothing, and are gone.
    """

    verb = "fold"

    folded: tuple[Folded, ...]
    merged: tuple[Merged, ...] = ()
    apart: tuple[Kept, ...] = ()
    idle: tuple[str, ...] = ()

    def _done(self) -> dict[str, Any]:
        return {
            "folded": [asdict(f) for f in self.folded],
            "merged": [{**asdict(m), "nodes": list(m.nodes), "batch_norms": list(m.batch_norms)} for m in self.merged],
            "apart": [kept_line(one) for one in self.apart],
            "idle": list(self.idle),
        }

    def summary(self) -> str:
        """Return what was done, in one line."""
        batch_norms = sum(len(one.batch_norms) for one in self.folded) + sum(
            len(one.batch_norms) for one in self.merged
        )
        still = {k.node for k in self.kept} | {node for f in self.folded for node in f.nodes}  # or counted elsewhere
        affines = sum(len(f.nodes) - len(f.batch_norms) - sum(n in still for n in f.into) for f in self.folded)
        kept = sum(k.op_type in ("BatchNormalization", "SyncBatchNormalization") for k in self.kept)
        return (
            f"batch normalization: {batch_norms} folded, {kept} kept; "
            f"other affine nodes: {affines} folded, {len(self.kept) - kept} kept"
            f"{self._merging()}{self._idling()}{self._rounding()}"
        )

    def _merging(self) -> str:
        """Say how many linear ops became one, if any did."""
        if not self.merged:
            return ""
        nodes = sum(len(merged.nodes) for merged in self.merged)
        return f"; linear ops merged: {counted(nodes, 'node')} into {len({merged.into for merged in self.merged})}"

    def _idling(self) -> str:
        """Say how many nodes changed nothing, if any did."""
        return f"; {counted(len(self.idle), 'node')} that changed nothing removed" if self.idle else ""

    def _rounding(self) -> str:
        """Say what rounding quantized biases came to, if there were any."""
        found = {one.node: one for folded in self.folded for one in folded.rounding}  # the last word of each op
        if not found:
            return ""
        units, absolute = (max(getattr(one, name) for one in found.values()) for name in ("units", "absolute"))
        return f"; quantized biases rounded: {len(found)}, by {units:.2f} of a unit and {absolute:.2g} at most"
