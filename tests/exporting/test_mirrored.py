"""A model under MirroredStrategy: what is exported has its variables once, and its replicas compute what Keras's do."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from bnpass.exporting.interface import STATE
from bnpass.verification.replicas import run_replicas
from tests.exporting.live import close
from tests.exporting.mirrored_steps import REPLICAS, STEPS
from tests.exporting.stepping import Stepper

pytestmark = pytest.mark.keras

Steps = Mapping[str, NDArray[Any]]


@pytest.fixture(scope="module", params=["keras", "tf_keras"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Steps]:
    """Train in a process of its own: devices are divided before TensorFlow begins."""
    folder = tmp_path_factory.mktemp("mirrored")
    command = [sys.executable, str(Path(__file__).with_name("mirrored_steps.py")), request.param, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(folder / "steps.npz") as file:
        return folder, dict(file)


def test_inference_is_that_of_the_model(trained: tuple[Path, Steps]) -> None:
    folder, found = trained
    run = Stepper(folder / "inference.onnx")
    close(run(found["inference/x"])[0], found["inference/y"])


def test_every_variable_is_there_once(trained: tuple[Path, Steps]) -> None:
    folder, found = trained
    names = {key.split("/", 2)[2] for key in found if key.startswith("0/state/")}
    pairs = Stepper(folder / "training.onnx").pairs
    assert sorted(pair["variable"] for pair in pairs) == sorted(names)
    assert sum(pair["output"] is not None for pair in pairs) == 4, "two layers with a mean and a variance each"


def test_replicas_of_unequal_size_train_together(trained: tuple[Path, Steps]) -> None:
    folder, found = trained
    proto = onnx.load(folder / "training.onnx")
    model = ir.from_proto(proto)
    pairs = json.loads(model.metadata_props[STATE])
    state = {str(v.name): v.const_value.numpy() for v in model.graph.inputs if v.const_value is not None}
    for step in range(STEPS):
        feeds = [{"x": found[f"{step}/x/{r}"], **state} for r in range(REPLICAS)]
        results = run_replicas(model, feeds)
        output = next(name for name in results[0] if not name.endswith("/updated"))
        for r, result in enumerate(results):
            close(result[output], found[f"{step}/y/{r}"], f"replica {r}")
            for pair in (pair for pair in pairs if pair["output"]):
                close(result[pair["output"]], found[f"{step}/state/{pair['variable']}"], pair["variable"])
        state |= {pair["input"]: results[0][pair["output"]] for pair in pairs if pair["output"]}
