"""A progress bar on stderr: only on a terminal, and only once the work has taken two seconds."""

import sys
import threading
import time
from types import TracebackType

PATIENCE_S = 2.0
_TICK_S = 0.25
_WIDTH = 30


class Progress:
    """Draws ``stage [#####     ] 4 s`` over itself and wipes it in the end.

    It is drawn when a stage is told, and now and then in between: the run of a whole model tells nothing for long.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._shown = not quiet and sys.stderr.isatty()
        self._begin = time.monotonic()
        self._told = ("", 0.0)
        self._drawn = ""
        self._lock = threading.Lock()
        self._over = threading.Event()

    def __enter__(self) -> "Progress":
        if self._shown:
            threading.Thread(target=self._tick, daemon=True).start()
        return self

    def __call__(self, stage: str, fraction: float) -> None:
        """Say what is being done, and how much of it is."""
        self._told = (stage, fraction)
        self._draw()

    def _tick(self) -> None:
        while not self._over.wait(_TICK_S):
            self._draw()

    def _draw(self) -> None:
        """Draw the state, if it is time to and it looks different from before."""
        elapsed = time.monotonic() - self._begin
        if not self._shown or elapsed < PATIENCE_S:
            return
        stage, fraction = self._told
        done = round(_WIDTH * min(1.0, fraction))
        text = f"{stage:6}[{'#' * done}{' ' * (_WIDTH - done)}] {elapsed:.0f} s"
        with self._lock:
            if text != self._drawn and not self._over.is_set():
                self._drawn = text
                print(f"\r{text}", end="", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._over.set()
            if self._drawn:
                print(f"\r{' ' * len(self._drawn)}\r", end="", file=sys.stderr, flush=True)
