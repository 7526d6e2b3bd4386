"""A progress bar on stderr: only on a terminal, and only once the work has taken two seconds."""

import sys
import time
from types import TracebackType

PATIENCE_S = 2.0
_WIDTH = 30


class Progress:
    """Draws ``stage [#####     ]`` over itself and wipes it in the end."""

    def __init__(self, *, quiet: bool) -> None:
        self._shown = not quiet and sys.stderr.isatty()
        self._begin = time.monotonic()
        self._drawn = ""

    def __enter__(self) -> "Progress":
        return self

    def __call__(self, stage: str, fraction: float) -> None:
        """Draw the state, if it is time to and it looks different from before."""
        if not self._shown or time.monotonic() - self._begin < PATIENCE_S:
            return
        done = round(_WIDTH * min(1.0, fraction))
        text = f"{stage:6}[{'#' * done}{' ' * (_WIDTH - done)}]"
        if text != self._drawn:
            self._drawn = text
            print(f"\r{text}", end="", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn:
            print(f"\r{' ' * len(self._drawn)}\r", end="", file=sys.stderr, flush=True)
