"""What a training export says about weights and losses, and what an export leaves behind: the same bytes each time."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.conformance.layers.oracle.batches import ROOT
from tests.exporting.live import close, export, flat, make_lively, variable_values
from tests.exporting.structures import IMAGE, MARKS, X, convolutional

pytestmark = MARKS


def test_weights_go_in_as_the_metadata_say(keras: Any) -> None:
    model = keras.Sequential([keras.layers.Input((4, 4, 3)), *convolutional(keras)])
    _, run = export(model, training=True)
    make_lively(model, seed=7)
    values, feeds = variable_values(model), {}
    for pair in run.pairs:
        value, order = values[pair["variable"]], pair["permutation"]
        feeds[pair["input"]] = value if order is None else np.ascontiguousarray(np.transpose(value, order))
    assert any(pair["permutation"] for pair in run.pairs), "a convolution has its kernel in another layout"
    x = np.random.default_rng(0).normal(size=IMAGE.shape).astype(np.float32)
    (y,) = run(**{run.inputs[0]: x}, **feeds)
    close(y, model(x, training=True))


def test_regularization_is_an_output_of_a_training_export(keras: Any) -> None:
    penalty = keras.regularizers.L1L2(0.1, 0.2)
    norm = keras.layers.BatchNormalization(gamma_regularizer=penalty, beta_regularizer=penalty)
    model = keras.Sequential([keras.layers.Input((6,)), norm])
    make_lively(model)
    _, run = export(model, training=True)
    assert run.outputs[-1] == "regularization_loss"
    _, loss = run(X)
    model(X, training=True)
    close(loss, np.float32(sum(float(part) for part in model.losses)))


def test_an_export_leaves_the_live_model_as_it_was(keras: Any) -> None:
    model = keras.Sequential([keras.layers.Input((4, 4, 3)), *convolutional(keras)])
    make_lively(model)
    before = variable_values(model)
    calls = (keras.layers.BatchNormalization.call, type(model.layers[1]).call)
    for training in (False, True):
        export(model, training=training)
    after = variable_values(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert (keras.layers.BatchNormalization.call, type(model.layers[1]).call) == calls
    assert flat(model(IMAGE, training=False))[0].shape == (3, 2)


@pytest.mark.parametrize("training", [False, True])
def test_the_same_model_gives_the_same_bytes(keras: Any, training: bool) -> None:
    model = keras.Sequential([keras.layers.Input((4, 4, 3)), *convolutional(keras)])
    first, second = (ir.to_proto(export(model, training=training)[0].model) for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_the_bytes_do_not_depend_on_the_process() -> None:
    digests = set()
    for seed in ("0", "1"):
        script = Path(__file__).with_name("export_bytes.py")
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        run = subprocess.run(
            [sys.executable, str(script), "keras"], capture_output=True, text=True, check=False, env=environment
        )
        assert run.returncode == 0, run.stderr[-2000:]
        digests.add(run.stdout.split()[-1])
    assert len(digests) == 1
