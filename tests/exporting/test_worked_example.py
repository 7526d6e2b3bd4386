"""`models/digits_sync`: trained in replicas by Keras, served and trained on in replicas in ONNX Runtime."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tests.cli.command import ROOT, Call, caller, environment
from tests.cli.models import ops_of

MODELS = ROOT / "models"
SOURCE = MODELS / "digits_sync.keras"
RECORD = json.loads((MODELS / "digits_sync.json").read_text())

pytestmark = pytest.mark.keras


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    return caller(capsys)


def right_answers(model: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.syspath_prepend(str(MODELS))
    from digits import load_test_split

    test = load_test_split()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": test.x})
    return int(np.sum(logits.argmax(axis=1) == test.y))


def test_exported_and_folded_it_answers_as_keras_does(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported, folded = tmp_path / "e.onnx", tmp_path / "f.onnx"
    done = call("export", SOURCE, "-o", exported)
    assert done.code == 0, done.err
    assert ops_of(exported).count("BatchNormalization") == 3
    assert call("fold", exported, "-o", folded).code == 0
    assert "BatchNormalization" not in ops_of(folded)
    assert right_answers(exported, monkeypatch) == right_answers(folded, monkeypatch) == RECORD["right"] > 350


def test_four_replicas_of_mpi_move_the_statistics_as_four_of_keras_did(call: Call, tmp_path: Path) -> None:
    target = tmp_path / "t.onnx"
    done = call("export", SOURCE, "-o", target, "--training")
    assert done.code == 0, done.err
    mpiexec = Path(sys.prefix) / "bin" / "mpiexec"
    assert mpiexec.is_file(), "the extra 'test' installs an MPI"
    command = [mpiexec, "-n", str(RECORD["replicas"]), sys.executable, MODELS / "digits_sync_replicas.py", target]
    run = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "6 statistics, 5 steps, 4 replicas: within" in run.stdout
