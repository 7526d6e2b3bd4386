"""A batch dealt out to replicas, and what they give put together again.

Replicas that share every statistic are, together, one replica that sees all their samples: that is what is compared.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from bnpass.semantics.affine import round_once
from bnpass.verification.bound import Judgement, judge
from bnpass.verification.inputs import model_inputs
from bnpass.verification.windows import Array

__all__ = ["Arrays", "CannotSplitError", "WholeBatch", "dealt_inputs"]

Arrays = Mapping[str, Array]


class CannotSplitError(Exception):
    """The inputs cannot be dealt out to replicas; the message says why."""


def dealt_inputs(model: ir.Model) -> frozenset[str]:
    """Return the inputs that hold samples: those with an open first dimension; all replicas get the others whole.

    Raises:
        CannotSplitError: There is none.
    """
    found = frozenset(v.name or "" for v in model_inputs(model) if v.shape and not isinstance(v.shape[0], int))
    if not found:
        raise CannotSplitError("no input has an open batch dimension to deal out")
    return found


@dataclass(frozen=True)
class WholeBatch:
    """One replica on the whole batch.

    Attributes:
        feeds: The inputs.
        dealt: Those that hold samples.
        samples: How many.
        reference: The outputs in float64; those that could be evaluated.
        found: The outputs.
        moved: The outputs with weights moved by one unit in the last place.
    """

    feeds: Arrays
    dealt: frozenset[str]
    samples: int
    reference: Arrays
    found: Arrays
    moved: Sequence[Arrays]

    def parts(self, share: Sequence[int]) -> Iterator[Arrays]:
        """Yield the inputs of each replica, ``share`` samples each."""
        for end, size in zip(np.cumsum(share), share, strict=True):
            yield {name: a[end - size : end] if name in self.dealt else a for name, a in self.feeds.items()}

    def judge(self, given: Sequence[Arrays], share: Sequence[int]) -> Iterator[tuple[str, Judgement]]:
        """Judge every output of replicas, put together.

        One with a row per sample is laid end to end. One without has to be the same on all replicas, or else, as the
        gradient of a weight is in data-parallel training, each replica has its part of a sum.
        """
        for name, old in self.found.items():
            parts = [result[name] for result in given]
            if old.shape[:1] == (self.samples,) and _are_rows(parts, share):
                yield name, self._judged(name, np.concatenate(parts))
                continue
            judged = [self._judged(name, parts[0])] if _are_same(parts) else []
            if not (judged and judged[0].ok) and (total := _sum(parts)) is not None:
                judged.append(self._judged(name, *total))
            if not judged:
                yield name, Judgement.rejected("the replicas give different shapes or types")
            elif judged[-1].ok or _are_same(parts):
                yield name, judged[-1] if judged[-1].ok else judged[0]
            else:
                yield name, replace(judged[-1], reason=f"the replicas disagree; their sum has {judged[-1].reason}")

    def _judged(self, name: str, new: Array, rounding: float = 0.0) -> Judgement:
        moved = [other[name] for other in self.moved if name in other]
        return judge(self.found[name], new, self.reference.get(name), moved, rounding=rounding)


def _are_rows(parts: Sequence[Array], share: Sequence[int]) -> bool:
    return all(part.shape[:1] == (size,) for part, size in zip(parts, share, strict=True))


def _are_same(parts: Sequence[Array]) -> bool:
    is_float = parts[0].dtype.kind not in "iubOUS"  # bfloat16 is of kind V
    wide = [part.astype(np.float64) if is_float else part for part in parts]
    return all(
        part.dtype == parts[0].dtype and np.array_equal(one, wide[0], equal_nan=is_float)
        for part, one in zip(parts, wide, strict=True)
    )


def _sum(parts: Sequence[Array]) -> tuple[Array, float] | None:
    """Return the sum in the type of the parts, and the largest sum of magnitudes; None if there is no such thing."""
    if len({(part.shape, part.dtype) for part in parts}) > 1 or parts[0].dtype.kind in "bOUS":
        return None
    if parts[0].dtype.kind in "iu":
        return np.asarray(np.sum(parts, axis=0, dtype=parts[0].dtype)), 0.0
    wide = np.array([part.astype(np.float64) for part in parts])
    magnitudes = np.abs(wide).sum(axis=0)
    largest = float(np.max(magnitudes, initial=0.0, where=np.isfinite(magnitudes)))
    return np.asarray(round_once(wide.sum(axis=0), parts[0].dtype)), largest
