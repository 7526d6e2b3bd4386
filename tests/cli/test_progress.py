"""The progress bar: on a terminal, after two seconds, and never with --quiet."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bnpass.cli import progress
from bnpass.cli.progress import Progress
from tests.cli import models
from tests.cli.command import environment
from tests.cli.models import written

IMPATIENT = "import sys; from bnpass.cli import main, progress; progress.PATIENCE_S = 0; sys.exit(main.main())"
PATIENT = "import sys; from bnpass.cli.main import main; sys.exit(main())"


class Terminal(io.StringIO):
    def __init__(self, *, is_terminal: bool = True) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def drawn(monkeypatch: pytest.MonkeyPatch, clock: Clock, wait: float, *, terminal: bool, quiet: bool) -> str:
    """Return what is drawn when a stage is told ``wait`` seconds after the beginning."""
    stderr = Terminal(is_terminal=terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    with Progress(quiet=quiet) as told:
        told("load", 0.0)
        clock.now += wait
        told("fold", 0.5)
    return stderr.getvalue()


def test_the_bar_waits_two_seconds(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    assert progress.PATIENCE_S == 2
    assert drawn(monkeypatch, clock, 1.99, terminal=True, quiet=False) == ""
    bar = f"fold  [{'#' * 15}{' ' * 15}] 2 s"
    assert drawn(monkeypatch, clock, 2.0, terminal=True, quiet=False) == f"\r{bar}\r{' ' * len(bar)}\r"


def test_the_bar_is_drawn_while_nothing_is_told(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setattr(progress, "_TICK_S", 0.001)
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    with Progress(quiet=False) as told:
        told("check", 0.0)
        clock.now += 7
        limit = time.monotonic() + 10
        while "7 s" not in stderr.getvalue() and time.monotonic() < limit:
            time.sleep(0.001)
    assert "check [" in stderr.getvalue()
    assert stderr.getvalue().endswith(" \r")


def test_no_terminal_no_bar(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    assert drawn(monkeypatch, clock, 9, terminal=False, quiet=False) == ""


def test_quiet_is_quiet(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    assert drawn(monkeypatch, clock, 9, terminal=True, quiet=True) == ""


def test_the_same_picture_is_drawn_once(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    with Progress(quiet=False) as told:
        clock.now += 3
        for fraction in (0.5, 0.5, 0.501, 2.0):
            told("fold", fraction)
    assert stderr.getvalue().count("[") == 2
    assert f"[{'#' * 30}]" in stderr.getvalue()  # a fraction above 1 does not overflow the bar


def on_terminal(code: str, *words: object) -> tuple[int, str, str]:
    """Run with stderr on a terminal; return exit code, stdout and what the terminal showed."""
    outer, inner = os.openpty()
    try:
        child = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, words)], stdout=subprocess.PIPE, stderr=inner, env=environment()
        )
        out, _ = child.communicate(timeout=60)
        os.set_blocking(outer, False)
        try:
            shown = os.read(outer, 1 << 16)
        except BlockingIOError:
            shown = b""
    finally:
        os.close(inner)
        os.close(outer)
    return child.returncode, out.decode(), shown.decode()


def test_on_a_real_terminal(tmp_path: Path) -> None:
    source = written(tmp_path, models.conv_bn())
    code, out, shown = on_terminal(IMPATIENT, "fold", source, "--check", 1)
    assert (code, "1 folded" in out) == (0, True)
    for stage in ("load", "fold", "save", "check"):
        assert f"\r{stage:6}[" in shown
    assert shown.endswith(" \r")  # wiped in the end
    assert on_terminal(IMPATIENT, "fold", source, "--force", "--check", 0, "--quiet") == (0, "", "")


def test_fast_work_shows_no_bar(tmp_path: Path) -> None:
    code, _, shown = on_terminal(PATIENT, "fold", written(tmp_path, models.conv_bn()), "--check", 0)
    assert (code, shown) == (0, "")


def test_redirected_errors_hold_no_bar(tmp_path: Path) -> None:
    words = [sys.executable, "-c", IMPATIENT, "fold", str(written(tmp_path, models.conv_bn())), "--check", "0"]
    done = subprocess.run(words, env=environment(), capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_bar_is_wiped_before_an_error(tmp_path: Path) -> None:
    code, _, shown = on_terminal(IMPATIENT, "fold", tmp_path / "none.onnx")
    assert code == 4
    assert shown.splitlines()[-1].rpartition("\r")[2].startswith("bnpass: ")
