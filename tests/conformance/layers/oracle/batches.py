"""Have TensorFlow run cases, in as few processes as its generations allow.

Called from the other side: nothing here imports TensorFlow.
"""

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.conformance.layers.arrays import draw
from tests.conformance.layers.cases import Case
from tests.conformance.layers.exchange import Arrays, read, write

ROOT = Path(__file__).resolve().parents[4]
DEADLINE_S = 900


def batches(cases: Iterable[Case]) -> dict[str, list[Case]]:
    """Return the cases of each process by its name; a case that has to be alone has one for itself."""
    found: dict[str, list[Case]] = {}
    for case in cases:
        found.setdefault(f"{case.process}.{case.id}" if case.alone else case.process, []).append(case)
    return found


def run(name: str, cases: Sequence[Case], folder: Path) -> tuple[dict[str, Any], Arrays]:
    """Run the cases of one process, or read what it wrote before.

    Returns:
        Facts by the id of the case, and arrays below it (``oracle.eager.run``).
    """
    result = folder / "result"
    if not (result / "done").exists():
        arrays = {f"{case.id}/{key}": value for case in cases for key, value in draw(case).items()}
        write(folder / "request", [case.plain() for case in cases], arrays)
        _child(name.partition(".")[0], folder / "request", result)
        (result / "done").touch()
    facts, arrays = read(result)
    return facts, arrays


def environment(process: str) -> dict[str, str]:
    """Return the environment of a TensorFlow process: one thread, no GPU, few words."""
    changes = {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", "")))),
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "OMP_NUM_THREADS": "1",
        "KERAS_BACKEND": "tensorflow",
        "TF_USE_LEGACY_KERAS": "0" if process.startswith("keras3") else "1",
    }
    return {**os.environ, **changes}


def _child(process: str, request: Path, result: Path) -> None:
    command = [sys.executable, "-m", "tests.conformance.layers.oracle", process, str(request), str(result)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(process), capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 0, f"{process}: {done.stderr[-3000:]}"
