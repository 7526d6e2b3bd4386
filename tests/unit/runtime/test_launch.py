"""Processes of MPI are started, collected, and ended: none is left."""

import os
import sys
import time
from pathlib import Path

import pytest

from bnpass.errors import MissingDependencyError, UsageError
from bnpass.runtime.launch import OVERRIDE, Launcher, find_launcher, run_ranks

SLEEP = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep({seconds})"


@pytest.fixture
def launcher() -> Launcher:
    try:
        return find_launcher()
    except MissingDependencyError as error:
        pytest.skip(str(error))


def alive(word: str) -> list[int]:
    """Return the processes, zombies left out, that have a word in their command."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if word in words and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


def test_all_ranks_run_and_what_they_print_is_collected(launcher: Launcher) -> None:
    # one write each: the launcher may put the pieces of a print in between those of another rank
    command = [sys.executable, "-c", "import os; os.write(1, f\"it is {os.environ['BNPASS_TEST']}\\n\".encode())"]
    ended = run_ranks(launcher, 3, command, timeout_s=60, environment={"BNPASS_TEST": "said"})
    assert ended.code == 0
    assert ended.output.count("it is said") == 3


def test_a_rank_that_fails_is_told(launcher: Launcher) -> None:
    ended = run_ranks(
        launcher, 2, [sys.executable, "-c", "import sys; sys.exit('so bad')"], timeout_s=60, environment={}
    )
    assert ended.code not in (0, None)
    assert "so bad" in ended.output


def test_at_the_deadline_nobody_is_left_whatever_they_do_about_signals(launcher: Launcher) -> None:
    seconds = f"7{time.time_ns() % 1_000_000}.5"
    begun = time.monotonic()
    command = [sys.executable, "-c", SLEEP.format(seconds=seconds)]
    ended = run_ranks(launcher, 3, command, timeout_s=2, environment={})
    assert ended.code is None
    assert time.monotonic() - begun < 20
    deadline = time.monotonic() + 5  # the kernel takes its time
    while alive(seconds) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert alive(seconds) == []


def test_a_launcher_can_be_named(launcher: Launcher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(OVERRIDE, str(launcher.path))
    assert find_launcher() == launcher
    monkeypatch.setenv(OVERRIDE, str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"names '.*none', which is no mpiexec that runs"):
        find_launcher()


@pytest.mark.parametrize(
    ("says", "flavour"),
    [
        ("HYDRA build details:\n    Version: 5.0.2", "MPICH"),
        ("mpiexec (Open MPI) 5.0.11", "Open MPI"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.19", "Intel MPI"),
        ("something 1.0", "unknown"),
    ],
)
def test_a_launcher_is_known_by_what_it_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, says: str, flavour: str
) -> None:
    script = tmp_path / "mpiexec"
    script.write_text(f"#!/bin/sh\ncat <<'EOF'\n{says}\nEOF\n")
    script.chmod(0o755)
    monkeypatch.setenv(OVERRIDE, str(script))
    assert find_launcher().flavour == flavour
