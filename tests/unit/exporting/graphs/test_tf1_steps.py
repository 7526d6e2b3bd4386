"""Training exports of TensorFlow 1: over several steps, the state that is fed back moves as that of a session does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.keras

ROOT = Path(__file__).resolve().parents[4]

STATISTICS = [f"net/bn{i}/moving_{name}" for i in (0, 1) for name in ("mean", "variance")]
WEIGHTS = ["net/bn0/beta", "net/bn0/gamma", "net/bn1/beta", "net/bn1/gamma", "net/conv/bias", "net/conv/kernel"]
LAYERS = ["fused", "fused-reference", "composed", "composed-reference", "axes", "placeholder-fused",
          "placeholder-composed", "run-by-the-output", "saved", "v1-placeholder-fused", "v1-placeholder-composed",
          "v1-saved"]  # fmt: skip
CHECKED = {"fused", "composed-reference", "renorm", "ghost", "regularized", "read-afterwards"}
RENORM = ["renorm", "renorm-reference"]
LEFT_OUT = "changes a variable, but is neither in UPDATE_OPS nor run by an output: it is left out"
NONE = "the graph updates none of its variables: none of its ops is in UPDATE_OPS, and its outputs run none"

Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Run all cases in processes of their own, with the behaviour of TensorFlow 2, and as "v1-…" of 1."""
    environment = os.environ | {"TF_USE_LEGACY_KERAS": "1", "CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": str(ROOT)}
    module, results = "tests.unit.exporting.graphs.tf1_steps", {}
    for behaviour, prefix in (("v2", ""), ("v1", "v1-")):
        folder = tmp_path_factory.mktemp("steps")
        command = [sys.executable, "-m", module, behaviour, str(folder)]
        run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
        assert run.returncode == 0, run.stderr[-3000:]
        results |= {prefix + name: got for line in run.stdout.splitlines() for name, got in json.loads(line).items()}
    return results


def test_every_step_agrees_with_the_session(found: Found) -> None:
    for case, got in found.items():
        assert max(got["errors"].values()) < 3e-6, case  # float32, two layers and a convolution over four steps


def test_the_check_of_an_export_compares_every_output(found: Found) -> None:
    checked = {case: got for case, got in found.items() if got["check"]}
    assert set(checked) == CHECKED
    for case, got in checked.items():
        assert got["check"] == ["AGREE", *got["errors"]], case


def test_what_moves_in_the_session_is_what_comes_out(found: Found) -> None:
    for case, got in found.items():
        # of "others", the session also runs an update that wants another input
        changed = [name for name in got["changed"] if name != "net/last"]
        assert got["updated"] == changed == got["moved"], case


@pytest.mark.parametrize("case", LAYERS)
def test_layers_have_all_their_variables_as_state(found: Found, case: str) -> None:
    got = found[case]
    assert got["updated"] == STATISTICS
    assert got["trainable"] == WEIGHTS
    assert got["state"] == sorted(WEIGHTS + STATISTICS)
    assert got["notes"] == []


@pytest.mark.parametrize("case", [*LAYERS, *RENORM, "not-trainable"])
def test_batch_normalization_is_our_operator(found: Found, case: str) -> None:
    assert found[case]["ops"]["SyncBatchNormalization"] == 2
    assert "BatchNormalization" not in found[case]["ops"]


@pytest.mark.parametrize("case", [case for case in LAYERS if case != "axes"])
def test_moving_averages_read_the_statistics_that_it_has(found: Found, case: str) -> None:
    assert "ReduceMean" not in found[case]["ops"]


@pytest.mark.parametrize("case", RENORM)
def test_renorm_moves_five_statistics_of_each_layer(found: Found, case: str) -> None:
    names = ("moving_mean", "moving_stddev", "moving_variance", "renorm_mean", "renorm_stddev")
    assert found[case]["updated"] == [f"net/bn{i}/{name}" for i in (0, 1) for name in names]


def test_ghost_batches_are_left_as_they_are_written(found: Found) -> None:
    assert found["ghost"]["updated"] == STATISTICS
    assert "SyncBatchNormalization" not in found["ghost"]["ops"]


def test_a_layer_that_is_not_trainable_moves_nothing_and_that_is_said(found: Found) -> None:
    got = found["not-trainable"]
    assert got["updated"] == []
    assert got["trainable"] == ["net/conv/bias", "net/conv/kernel"]
    assert got["notes"] == [
        f"'net/bn0/AssignMovingAvg/AssignSubVariableOp' {LEFT_OUT}",
        f"'net/bn0/AssignMovingAvg_1/AssignSubVariableOp' {LEFT_OUT}",
        f"'net/bn1/AssignMovingAvg/AssignSubVariableOp' {LEFT_OUT}",
        "and so are 1 more",
        NONE,
    ]


@pytest.mark.parametrize("case", ["keras", "v1-keras"])
def test_updates_that_are_in_no_collection_are_left_out_and_named(found: Found, case: str) -> None:
    got = found[case]
    assert got["updated"] == ["net/told/moving_mean", "net/told/moving_variance"]
    assert [note.split("'")[1].split("/")[1] for note in got["notes"]] == ["untold", "untold"]
    assert all(note.endswith(LEFT_OUT) for note in got["notes"])


def test_the_losses_of_regularizers_are_the_last_output(found: Found) -> None:
    got = found["regularized"]
    assert list(got["errors"])[:2] == ["y", "regularization_loss"]
    assert got["updated"] == ["net/bn/moving_mean", "net/bn/moving_variance"]


def test_reads_and_writes_of_one_variable_keep_their_order(found: Found) -> None:
    assert "net/moving_mean" in found["read-afterwards"]["updated"]
    assert found["shared"]["updated"] == ["net/bn/moving_mean", "net/bn/moving_variance"]
    assert found["shared"]["notes"] == found["read-afterwards"]["notes"] == []


@pytest.mark.parametrize("case", ["behind-a-condition", "v1-behind-a-condition"])
def test_what_comes_before_a_decided_condition_is_not_lost(found: Found, case: str) -> None:
    assert found[case]["updated"] == ["net/first", "net/second"]


def test_updates_that_the_graph_does_not_order_are_named(found: Found) -> None:
    (note,) = found["in-no-order"]["notes"]
    assert note.startswith("several ops change variable 'net/total' in no order")


@pytest.mark.parametrize("case", ["branches", "v1-branches"])
def test_updates_in_a_branch_that_is_taken(found: Found, case: str) -> None:
    assert len(found[case]["updated"]) == 2
    notes = [note.partition("' ")[2] for note in found[case]["notes"]]
    inside = ["is in UPDATE_OPS, but inside of a branch, where nothing can run it"] * 2
    assert notes == ([] if case.startswith("v1") else inside)


def test_an_update_that_wants_another_input_is_left_out_and_named(found: Found) -> None:
    got = found["others"]
    assert got["updated"] == ["net/bn/moving_mean", "net/bn/moving_variance"]
    first, second = got["notes"]
    assert (
        first == "update 'net/AssignVariableOp' depends on 'net/other', which is not among the inputs: it is left out"
    )
    assert second == f"'net/AssignAddVariableOp' {LEFT_OUT}"
    assert "net/table" in got["trainable"]
