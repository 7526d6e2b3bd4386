"""The report of an expansion."""

from dataclasses import asdict, dataclass
from typing import Any

from bnpass.expansion.result import Collectives, Expanded
from bnpass.report.base import Report, counted


@dataclass(frozen=True)
class ExpandReport(Report):
    """What an expansion did.

    Attributes:
        expanded: The batch normalizations that are plain ONNX now, or operators with bodies.
        collectives: How many collectives there are.
    """

    verb = "expand"

    expanded: tuple[Expanded, ...]
    collectives: Collectives

    def _done(self) -> dict[str, Any]:
        return {"expanded": [asdict(e) for e in self.expanded], "collectives": asdict(self.collectives)}

    def summary(self) -> str:
        """Return what was done, in one line."""
        c = self.collectives
        text = f"batch normalization: {counted(len(self.expanded), 'node')} expanded, {len(self.kept)} kept; "
        if c.before == c.after:
            return text + f"{counted(c.after, 'collective')}, at most {c.depth} in a row"
        return text + f"{c.before} collectives put together to {c.after}, at most {c.depth} in a row"
