"""Both packages of Keras, and what TensorFlow gave for the cases of single layers, once for all processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.conformance.layers.arrays import draw
from tests.conformance.layers.cases import Case
from tests.conformance.layers.exchange import Arrays, part, read, write
from tests.conformance.layers.oracle.batches import ROOT, environment
from tests.exporting.layer_cases import cases

DEADLINE_S = 900


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        facts: The names of its variables, or ``error``.
        arrays: What the layer gave (``layer_oracle.run``).
        folder: Where its files are.
    """

    facts: dict[str, Any]
    arrays: Arrays
    folder: Path


@pytest.fixture(params=["keras", "tf_keras"])
def keras(request: pytest.FixtureRequest) -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    if request.param == "keras":
        import keras
    else:
        import tf_keras as keras
    return keras


@pytest.fixture
def tf_keras() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    import tf_keras

    return tf_keras


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Return a folder that all test processes of a session see."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "export"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def exported_layer(shared_folder: Path) -> Callable[[Case], Outcome]:
    """Return what became of a case; all cases of its generation of Keras are run when the first is asked for."""
    known: dict[str, tuple[dict[str, Any], Arrays]] = {}

    def outcome(case: Case) -> Outcome:
        process = "keras3" if case.api == "keras3" else "legacy"
        folder = shared_folder / process
        if process not in known:
            with FileLock(shared_folder / "lock"):  # a second TensorFlow beside the first would take its processor
                known[process] = _run(process, folder)
        facts, arrays = known[process]
        return Outcome(facts[case.id], part(arrays, case.id), folder / "result")

    return outcome


def _run(process: str, folder: Path) -> tuple[dict[str, Any], Arrays]:
    result = folder / "result"
    if not (result / "plain.json").exists():
        wanted = [case for case in cases() if (case.api == "keras3") == (process == "keras3")]
        arrays = {f"{case.id}/{key}": value for case in wanted for key, value in draw(case).items()}
        write(folder / "request", [case.plain() for case in wanted], arrays)
        command = [sys.executable, "-m", "tests.exporting.layer_oracle", process, str(folder / "request"), str(result)]
        done = subprocess.run(
            command, cwd=ROOT, env=environment(process), capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
        assert done.returncode == 0, f"{process}: {done.stderr[-3000:]}"
    facts, arrays = read(result)
    return facts, arrays
