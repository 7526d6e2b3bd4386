"""Where the replicas of one process meet.

One lock guards everything. A replica that comes to a collective leaves its message and waits; the last one of the group
reduces what is there, in the order of the replicas, floats in float64 and rounded once: all get the same bits, in every
run. As soon as every replica waits or is done, nobody can go on, and the run ends; it ends at its deadline in any case.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from bnpass.semantics.affine import round_once
from bnpass.verification.windows import Array

__all__ = ["Meeting", "Message", "StoppedError"]

_FLOATS = frozenset(np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64))
_INTEGERS = frozenset({np.dtype(np.int64)})

_REDUCTIONS: Mapping[str, Callable[..., Array]] = {
    "sum": np.add,
    "mean": np.add,
    "max": np.maximum,
    "min": np.minimum,
}


class StoppedError(Exception):
    """The run is over, and the reason is known to the meeting."""


@dataclass(frozen=True)
class Message:
    """What a replica brings to a collective; the first four have to be the same for all.

    Attributes:
        id: Position in the order of collectives; None where the operator has none.
        reduction: What is done with the numbers.
        dtype: Their type.
        shape: Their shape.
        node: The name of the node.
        numbers: The numbers.
    """

    id: int | None
    reduction: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    node: str = field(compare=False)
    numbers: Array = field(compare=False)

    def __str__(self) -> str:
        number = "" if self.id is None else f", id {self.id}"
        return f"'{self.node}' ({self.reduction} of {self.dtype.name}{list(self.shape)}{number})"

    def check(self) -> None:
        """Refuse what AllReduce does not define.

        Raises:
            ValueError: There is no such reduction, or not of this type.
        """
        types = _FLOATS if self.reduction == "mean" else _FLOATS | _INTEGERS
        if self.reduction not in _REDUCTIONS or self.dtype not in types:
            raise ValueError(f"AllReduce {self} is not defined")


@dataclass
class _Table:
    """Where one group meets, again and again."""

    given: dict[int, Message] = field(default_factory=dict)
    meetings: int = 0
    result: Array | None = None


class Meeting:
    """A run of several replicas.

    Attributes:
        size: The number of replicas.
        deadline: When the run is over, by the monotonic clock.
        error: Why it was stopped; empty if it was not.
        cause: The exception behind it, if there is one.

    Args:
        size: The number of replicas.
        timeout: Seconds from now.
    """

    def __init__(self, size: int, timeout: float) -> None:
        self.size = size
        self.deadline = time.monotonic() + timeout
        self.error = ""
        self.cause: BaseException | None = None
        self._timeout = timeout
        self._changed = threading.Condition()
        self._tables: dict[tuple[str, tuple[int, ...]], _Table] = {}
        self._waiting: dict[int, str] = {}
        self._done: set[int] = set()

    @property
    def left_s(self) -> float:
        """Seconds until the deadline, not less than 0."""
        return max(self.deadline - time.monotonic(), 0.0)

    def stop(self, error: str, cause: BaseException | None = None) -> None:
        """End the run for all replicas; the first reason counts."""
        with self._changed:
            if not self.error:
                self.error, self.cause = error, cause
            self._changed.notify_all()

    def stop_late(self) -> None:
        """End the run because its time is up."""
        with self._changed:
            self.stop(f"the replicas did not finish within {self._timeout:g} s: {self._state()}")

    def leave(self, rank: int) -> None:
        """Note that a replica is done."""
        with self._changed:
            self._done.add(rank)
            self._stop_if_stuck()

    def meet(self, rank: int, group: str, members: tuple[int, ...], message: Message) -> Array:
        """Wait until all members have brought a message; return what comes out.

        Args:
            rank: Who comes.
            group: The name of the group.
            members: The replicas that meet in it, ascending.
            message: What this one brings.

        Raises:
            StoppedError: The run is over.
        """
        with self._changed:
            table = self._tables.setdefault((group, members), _Table())
            table.given[rank] = message
            if len(table.given) == len(members):
                self._close(table, group)
            else:
                self._wait(rank, group, members, table)
            # The next meeting at this table waits for this replica: the result is still its own.
            if self.error or table.result is None:
                raise StoppedError
            return table.result.copy()

    def _close(self, table: _Table, group: str) -> None:
        """Reduce, and let everyone go; the last one who came does it."""
        given = dict(sorted(table.given.items()))
        first = next(iter(given.values()))
        if any(message != first for message in given.values()):
            said = "; ".join(f"replica {rank} is at {message}" for rank, message in given.items())
            self.stop(f"the replicas of group '{group}' disagree: {said}")
            return
        table.result = _reduced([message.numbers for message in given.values()], first.reduction)
        table.given = {}
        table.meetings += 1
        for rank in given:
            self._waiting.pop(rank, None)
        self._changed.notify_all()

    def _wait(self, rank: int, group: str, members: tuple[int, ...], table: _Table) -> None:
        meeting = table.meetings
        missing = ", ".join(str(other) for other in members if other not in table.given)
        self._waiting[rank] = f"waits at {table.given[rank]} in group '{group}' for {missing}"
        self._stop_if_stuck()
        if not self._changed.wait_for(lambda: bool(self.error) or table.meetings > meeting, self.left_s):
            self.stop_late()

    def _stop_if_stuck(self) -> None:
        if self._waiting and len(self._waiting) + len(self._done) == self.size:
            self.stop(f"no replica can go on: {self._state()}")

    def _state(self) -> str:
        """Return what each replica does."""
        return "; ".join(
            f"replica {rank} {'is done' if rank in self._done else self._waiting.get(rank, 'computes')}"
            for rank in range(self.size)
        )


def _reduced(arrays: Sequence[Array], reduction: str) -> Array:
    dtype = arrays[0].dtype
    total = arrays[0].astype(np.float64 if dtype in _FLOATS else dtype)
    for array in arrays[1:]:
        total = _REDUCTIONS[reduction](total, array.astype(total.dtype))
    if reduction == "mean":
        total = total / len(arrays)
    return np.asarray(round_once(total, dtype) if dtype in _FLOATS else total)
