"""Models of TensorFlow 1, with tf.compat.v1.layers or without: exported, they compute what their session computes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.keras

ROOT = Path(__file__).resolve().parents[4]

INFERENCE = ["inference", "inference-not-fused", "placeholder-false", "frozen", "saved", "v1-inference",
             "v1-placeholder-false"]  # fmt: skip
TRAINING = ["training", "training-not-fused", "placeholder-true", "saved-training", "v1-placeholder-true",
            "v1-saved-training"]  # fmt: skip

Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Run all cases in processes of their own, with the behaviour of TensorFlow 2, and as "v1-…" of 1."""
    environment = os.environ | {"TF_USE_LEGACY_KERAS": "1", "CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": str(ROOT)}
    module, results = "tests.unit.exporting.graphs.tf1_models", {}
    for behaviour, prefix in (("v2", ""), ("v1", "v1-")):
        folder = tmp_path_factory.mktemp("tf1")
        command = [sys.executable, "-m", module, behaviour, str(folder)]
        run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
        assert run.returncode == 0, run.stderr[-3000:]
        results |= {prefix + name: got for line in run.stdout.splitlines() for name, got in json.loads(line).items()}
    return results


@pytest.mark.parametrize("case", INFERENCE)
def test_inference_is_one_standard_node_per_layer(found: Found, case: str) -> None:
    got = found[case]
    assert got["ops"]["BatchNormalization"] == 3
    assert "SyncBatchNormalization" not in got["ops"]
    assert sum(got["layers"].values()) == 3
    assert got["error"] < 2e-6  # float32: two convolutions, a dense layer, sums of up to 384 terms


@pytest.mark.parametrize("case", TRAINING)
def test_training_takes_the_statistics_of_the_batch(found: Found, case: str) -> None:
    got = found[case]
    assert got["ops"]["SyncBatchNormalization"] == 3
    assert "BatchNormalization" not in got["ops"]
    assert "ReduceMean" not in got["ops"]
    assert got["error"] < 2e-5  # as above, and divided by the deviation of four samples


@pytest.mark.parametrize("case", INFERENCE + TRAINING)
def test_layers_are_known_by_their_scopes(found: Found, case: str) -> None:
    assert list(found[case]["layers"]) == [f"net/bn{i}" for i in range(3)]


def test_a_signature_names_inputs_and_outputs_and_the_mode_is_none_of_them(found: Found) -> None:
    assert found["saved"]["inputs"] == ["image"]
    assert found["saved"]["outputs"] == ["logits"]


@pytest.mark.parametrize("case", ["updates", "v1-updates"])
def test_statistics_that_moving_averages_read_are_right(found: Found, case: str) -> None:
    assert found[case]["ops"]["SyncBatchNormalization"] == 1
    assert found[case]["error"] < 1e-5


@pytest.mark.parametrize("case", ["averages", "v1-averages"])
def test_a_condition_over_batch_moments_and_moving_averages_is_decided(found: Found, case: str) -> None:
    assert found[case]["ops"]["BatchNormalization"] == 1
    assert "ReduceMean" not in found[case]["ops"]
    assert found[case]["error"] < 1e-6
