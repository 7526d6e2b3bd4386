"""Run the command as a user would, and see what it says and what it does to the folder."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from bnpass.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
Files = dict[str, tuple[bytes, int, int, int]]


@dataclass(frozen=True)
class Ran:
    """The outcome of one call."""

    code: int
    out: str
    err: str


Call = Callable[..., Ran]


def caller(capsys: pytest.CaptureFixture[str]) -> Call:
    """Return a function that runs the command in this process."""

    def call(*words: object) -> Ran:
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as left:  # argparse leaves this way
            code = left.code if isinstance(left.code, int) else 1
        printed = capsys.readouterr()
        return Ran(code, printed.out, printed.err)

    return call


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of a child that finds bnpass, with changes."""
    path = os.pathsep.join(filter(None, (changes.pop("PYTHONPATH", ""), str(ROOT))))
    return {**os.environ, **changes, "PYTHONPATH": path}


def python(*words: object, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Ran:
    """Run this interpreter in a child process."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        env=dict(env or environment()),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def command(*words: object, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Ran:
    """Run ``python -m bnpass`` in a child process."""
    return python("-m", "bnpass", *words, env=env, cwd=cwd)


def snapshot(folder: Path) -> Files:
    """Return content, change time, inode and kind of everything in a folder."""
    found: Files = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        changed = 0 if stat.S_ISDIR(status.st_mode) else status.st_mtime_ns
        found[str(path.relative_to(folder))] = content, changed, status.st_ino, status.st_mode
    return found


def assert_refused(ran: Ran, code: int, *parts: str) -> None:
    """Hold a refusal to its form: the exit code, nothing printed, one line on stderr that says all of ``parts``."""
    assert ran.code == code, ran
    assert ran.out == ""
    lines = ran.err.splitlines()
    assert len(lines) == 1, ran.err
    assert lines[0].startswith("bnpass: ")
    for part in parts:
        assert part in lines[0], f"{part!r} is not said in: {lines[0]}"


def assert_usage(ran: Ran, *parts: str) -> None:
    """Hold a call that argparse refuses to its form: exit code 2, how it is called, one line that says why."""
    assert ran.code == 2, ran
    assert ran.out == ""
    assert ran.err.startswith("usage: bnpass")
    last = ran.err.splitlines()[-1]
    assert "error: " in last
    for part in parts:
        assert part in last, f"{part!r} is not said in: {last}"
