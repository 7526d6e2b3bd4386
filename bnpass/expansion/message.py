"""The message of a site: vectors put behind each other, added up over the replicas, and taken apart again."""

from collections.abc import Sequence

import onnx_ir as ir

from bnpass.expansion.sites import Site
from bnpass.expansion.terms import Formulas, Term
from bnpass.expansion.view import View
from bnpass.ops import calls


class Replicas:
    """The replicas that share statistics with this one.

    Args:
        op: Where nodes are written.
        site: The site, with its group.
        view: How it looks at X.
    """

    def __init__(self, op: Formulas, site: Site, view: View) -> None:
        self._op, self._site, self._view = op, site, view
        self._ghost = bool(site.virtual_batch_size)

    @property
    def alone(self) -> bool:
        """Whether this replica shares with no other."""
        return not self._site.group

    def total(self, *statistics: Term) -> Sequence[Term]:
        """Write the sums over the replicas of statistics, [C] or [G, C] each, in one message."""
        if self.alone:
            return statistics
        flat = [self._flat(s) for s in statistics]
        return [self._restored(piece) for piece in self._exchanged(flat, flat)]

    def total_with_count(self, count: Term, *statistics: Term) -> Sequence[Term]:
        """Write the sums over the replicas of a count, [1], and of statistics, in one message."""
        if self.alone:
            return count, *statistics
        flat = [self._flat(s) for s in statistics]
        M, *pieces = self._exchanged([count, *flat], flat)
        return M, *map(self._restored, pieces)

    def total_count(self, count: Term) -> Term:
        """Write the sum over the replicas of a count, [1]."""
        return count if self.alone else self._exchanged([count], [])[0]

    def _flat(self, statistics: Term) -> Term:
        return statistics.apply("Reshape", self._op.integers(-1)) if self._ghost else statistics

    def _restored(self, piece: Term) -> Term:
        return piece.apply("Reshape", self._view.statistics_shape, allowzero=1) if self._ghost else piece

    def _exchanged(self, parts: Sequence[Term], statistics: Sequence[Term]) -> Sequence[Term]:
        """Write the one message of counts, in front, and statistics."""
        lengths = self._lengths(len(parts) - len(statistics), len(statistics))
        message = parts[0]
        if len(parts) > 1:
            message = message.apply("Concat", *parts[1:], name="local_sums", axis=0)
        calls.typed(message.value, message.dtype, ir.Shape([None if lengths is None else sum(lengths)]))
        summed = calls.all_reduce(self._op, message.value, group=self._site.group)
        if len(parts) == 1:
            return [Term(self._op, summed, message.dtype)]
        sizes = self._sizes(parts) if lengths is None else self._op.integers(*lengths)
        pieces = self._op.many("Split", [summed, sizes], ["sum"] * len(parts), axis=0)
        return [Term(self._op, piece, message.dtype) for piece in pieces]

    def _lengths(self, counts: int, statistics: int) -> list[int] | None:
        """Return the length of each part, where the shape of X proves them."""
        groups = self._site.groups
        if groups is None and statistics:
            return None
        return [1] * counts + [(groups or 0) * self._site.channels] * statistics

    def _sizes(self, parts: Sequence[Term]) -> ir.Value:
        """Write the length of each part."""
        return self._op("Concat", *(self._op("Shape", part.value) for part in parts), name="sizes", axis=0)
