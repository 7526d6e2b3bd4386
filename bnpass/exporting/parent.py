"""The side of the caller of :mod:`bnpass.exporting.child`."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bnpass import errors
from bnpass.exporting.child import ANSWER, MODEL
from bnpass.exporting.errors import ExportError
from bnpass.exporting.options import ExportOptions
from bnpass.exporting.source import Source


def export_in_child(
    source: Source, options: ExportOptions, folder: Path, *, trust: bool, sync: bool
) -> tuple[Path, Mapping[str, Any]]:
    """Export a file in a process of its own.

    Args:
        source: What is exported.
        options: How.
        folder: Where the process may write.
        trust: Whether code that the file holds may run.
        sync: Whether all batch normalization becomes synchronized.

    Returns:
        The model that was written into the folder, and the answer of the process.

    Raises:
        BnpassError: What was raised there.
        ExportError: The process died.
    """
    request, log = folder / "request.json", folder / "stderr.txt"
    job = {
        "path": str(source.path.resolve()),
        "kind": source.kind,
        "options": asdict(options),
        "trust": trust,
        "sync": sync,
    }
    request.write_text(json.dumps(job), encoding="utf-8")
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    with log.open("wb") as stderr:
        # S603: the interpreter that runs this, a module of this package, a file written above
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "bnpass.exporting.child", str(request)],
            stdout=stderr, stderr=stderr, stdin=subprocess.DEVNULL, env=environment, check=False,
        )  # fmt: skip
    answer = folder / ANSWER
    if done.returncode or not answer.exists():
        raise ExportError(f"{source.path}: the process that converts it {_died(done.returncode, log)}")
    found = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in found:
        kind = getattr(errors, found["error"], ExportError)
        raise kind(found["message"].replace(str(source.path.resolve()), str(source.path)))
    return folder / MODEL, found


def _died(code: int, log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    last = lines[-1][:300] if lines else "it said nothing"
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
    return f"{how}: {last}"
