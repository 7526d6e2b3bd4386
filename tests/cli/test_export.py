"""``bnpass export``: every format that Keras saves, the two modes, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import onnxruntime
import pytest
from filelock import FileLock

from tests.cli.command import ROOT, Call, assert_refused, environment, snapshot
from tests.cli.models import ops_of

pytestmark = pytest.mark.keras


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Save the models once, for all test processes, and in one of its own."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "keras_files"
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            script = Path(__file__).with_name("keras_files.py")
            run = subprocess.run([sys.executable, script, folder], env=environment(), capture_output=True, check=False)
            assert run.returncode == 0, run.stderr[-2000:]
            (folder / "done").touch()
    return folder


FORMATS = [
    ("keras3.keras", "Keras 3", ()),
    ("keras3.h5", "Keras 3", ("--trust-model",)),
    ("tf_keras.keras", "tf_keras 2", ()),
    ("tf_keras.h5", "tf_keras 2", ("--trust-model",)),
    ("saved_model", "tf_keras 2", ()),
    ("exported", "TensorFlow 2", ()),
    ("frozen.pb", "TensorFlow 2", ()),
]


@pytest.mark.parametrize(("name", "framework", "flags"), FORMATS, ids=[f[0] for f in FORMATS])
def test_every_format_keeps_its_batch_normalization(
    call: Call, saved: Path, tmp_path: Path, name: str, framework: str, flags: tuple[str, ...]
) -> None:
    target = tmp_path / "out.onnx"
    done = call("export", saved / name, "-o", target, *flags)
    assert done.code == 0, done.err
    assert f"({framework}" in done.out
    assert "1 layer, 1 call, a node for each" in done.out
    assert "checked, round trip: 3 draws" in done.out
    assert ops_of(target).count("BatchNormalization") == 1
    model = onnx.load(target)
    onnx.checker.check_model(model, full_check=True)
    assert [i.name for i in model.graph.input] == ["image"]


def test_a_training_export_is_fed_its_own_outputs(call: Call, saved: Path, tmp_path: Path) -> None:
    target = tmp_path / "t.onnx"
    done = call("export", saved / "keras3.keras", "-o", target, "--training")
    assert done.code == 0, done.err
    assert "state: 8 inputs with a default, 2 updated" in done.out
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # "initializer appears in graph inputs": it is meant to
    session = onnxruntime.InferenceSession(target, options, providers=["CPUExecutionProvider"])
    lines = json.loads(session.get_modelmeta().custom_metadata_map["bnpass.state"])
    pairs = [(line["input"], line["output"]) for line in lines if line["output"]]
    assert [i for i, _ in pairs] == ["bn/moving_mean", "bn/moving_variance"]
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    first = session.run([o for _, o in pairs], {"image": x})
    state = dict(zip([i for i, _ in pairs], first, strict=True))
    second = session.run([o for _, o in pairs], {"image": x, **state})
    # the same batch again: what is left of the distance to its statistics shrinks by the momentum
    third = session.run([o for _, o in pairs], {"image": x, **dict(zip(state, second, strict=True))})
    for a, b, c in zip(first, second, third, strict=True):
        np.testing.assert_allclose(c - b, 0.99 * (b - a), rtol=2e-3, atol=1e-6)


def test_weights_of_a_training_export_lie_beside_it(call: Call, saved: Path, tmp_path: Path) -> None:
    assert call("export", saved / "keras3.keras", "-o", tmp_path / "t.onnx", "--training").code == 0
    kernel = next(
        i for i in onnx.load(tmp_path / "t.onnx", load_external_data=False).graph.initializer if "conv/kernel" in i.name
    )
    assert list(kernel.dims) == [4, 3, 3, 3]
    assert len(list(tmp_path.glob("t.*.data"))) <= 1


def test_fold_comes_after_the_export(call: Call, saved: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    done = call("export", saved / "keras3.keras", "-o", target, "--fold")
    assert done.code == 0, done.err
    assert "BatchNormalization" not in ops_of(target)
    assert "checked, round trip: " in done.out
    assert "checked, whole model: " in done.out


def test_what_a_file_of_tf_keras_lost_is_named_and_sync_restores_it(call: Call, saved: Path, tmp_path: Path) -> None:
    source = saved / "tf_keras.keras"
    done = call("export", source, "-o", tmp_path / "a.onnx", "--training")
    assert "note: files of tf_keras do not keep synchronized (restore it with --sync), fused, adjustment" in done.out
    groups = []
    for name, flags in (("a", ()), ("b", ("--sync",)), ("c", ("--sync", "--group", "left"))):
        assert call("export", source, "-o", tmp_path / f"{name}.onnx", "--training", "--force", *flags).code == 0
        nodes = [n for n in onnx.load(tmp_path / f"{name}.onnx").graph.node if n.op_type == "SyncBatchNormalization"]
        groups += [a.s.decode() for n in nodes for a in n.attribute if a.name == "group"]
    assert groups == ["", "world", "left"]


def test_what_stands_behind_dropout_is_named_as_not_compared(call: Call, saved: Path, tmp_path: Path) -> None:
    done = call("export", saved / "drop.keras", "-o", tmp_path / "t.onnx", "--training")
    assert done.code == 0, done.err
    assert "note: not compared: 'logits': it depends on the random Dropout" in done.out


def test_the_report_is_what_the_schema_says(call: Call, saved: Path, tmp_path: Path) -> None:
    schema = json.loads((ROOT / "bnpass" / "report" / "report.schema.json").read_text())
    for flags in ((), ("--training",), ("--fold",), ("--check", "0")):
        report = tmp_path / "r.json"
        done = call("export", saved / "keras3.keras", "-o", tmp_path / "o.onnx", "--force", "--report", report, *flags)
        assert done.code == 0, done.err
        found: dict[str, Any] = json.loads(report.read_text())
        jsonschema.validate(found, schema)
        assert found["verb"] == "export"
        assert found["norms"] == {"bn": 1}


def test_the_default_result_lies_beside_the_model(call: Call, saved: Path, tmp_path: Path) -> None:
    source = tmp_path / "m.keras"
    source.write_bytes((saved / "keras3.keras").read_bytes())
    assert call("export", source, "--check", "0").code == 0
    assert call("export", source, "--check", "0", "--training").code == 0
    assert {p.name for p in tmp_path.iterdir()} == {"m.keras", "m.onnx", "m.training.onnx"}


REFUSED = [
    ("missing.keras", (), 4, ("no such file",)),
    ("text.keras", (), 3, ("is no model of Keras or TensorFlow",)),
    ("cut.keras", (), 3, ("is no complete .keras file",)),
    ("cut.h5", ("--trust-model",), 3, ("is no complete HDF5 file",)),
    ("keras3.h5", (), 3, ("HDF5 files can hold code", "--trust-model")),
    ("weights.h5", ("--trust-model",), 3, ("weights without the model",)),
    ("lambda_keras.keras", (), 3, ("layer 'twice' is a Lambda", "--trust-model")),
    ("lambda_tf_keras.keras", (), 3, ("layer 'twice' is a Lambda", "--trust-model")),
    ("cut.pb", (), 3, ("is no GraphDef",)),
    ("cut_saved", (), 3, ("is no SavedModel",)),
    ("frozen.pb", ("--outputs", "nothing:0"), 3, ("no node 'nothing'",)),
    ("exported", ("--signature-key", "train"), 3, ("no signature 'train'",)),
    ("exported", ("--training", "--reinitialize", "1"), 2, ("which say how weights begin",)),
    ("exported", ("--sync",), 2, ("has no layers that could be made synchronized",)),
    ("exported", ("--outputs", "y:0"), 2, ("for graphs that do not say their own", "made of signatures")),
    ("frozen.pb", ("--input-shape", "float32:None,8,8,3"), 2, ("for models of Keras", "made of a graph")),
    ("frozen.pb", ("--signature-key", "train"), 2, ("for SavedModels without layers",)),
    ("keras3.keras", ("--inputs", "x:0"), 2, ("for graphs that do not say their own", "made of layers")),
    ("keras3.keras", ("--signature-key", "train"), 2, ("for SavedModels without layers",)),
    ("ghost.keras", (), 3, ("layer 'bn' has virtual_batch_size", "export the live model")),
    ("ghost_saved", (), 3, ("virtual_batch_size", "export the live model")),
    ("own.keras", (), 3, ("own", "export the live model")),
    ("empty_folder", (), 3, ("is no SavedModel",)),
    ("keras3.keras", ("--opset", "12"), 2, ("opset 15 to 18",)),
    ("keras3.keras", ("--fold", "--training"), 2, ("cannot be folded",)),
    ("keras3.keras", ("--input-shape", "8,8"), 2, ("is no input shape",)),
    ("keras3.keras", ("--input-shape", "float32:None,9,9,3"), 2, ("does not fit the inputs",)),
    ("keras3.keras", ("--group", "a b", "--training"), 2, ("group name",)),
    ("keras3.keras", ("--reinitialize", "1"), 2, ("training",)),
]


@pytest.mark.parametrize(("name", "flags", "code", "parts"), REFUSED, ids=[f"{r[0]} {' '.join(r[1])}" for r in REFUSED])
def test_what_cannot_be_exported_is_one_line_and_nothing_written(
    call: Call, saved: Path, tmp_path: Path, name: str, flags: tuple[str, ...], code: int, parts: tuple[str, ...]
) -> None:
    before = snapshot(saved)
    assert_refused(call("export", saved / name, "-o", tmp_path / "out.onnx", *flags), code, *parts)
    assert list(tmp_path.iterdir()) == []
    assert snapshot(saved) == before


def test_an_existing_result_is_kept(call: Call, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "out.onnx").write_text("mine")
    assert_refused(call("export", saved / "keras3.keras", "-o", tmp_path / "out.onnx"), 4, "exists already", "--force")
    assert (tmp_path / "out.onnx").read_text() == "mine"


def test_a_converter_that_dies_is_told_of(
    call: Call, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorflow.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    done = call("export", saved / "keras3.keras", "-o", tmp_path / "out.onnx")
    assert_refused(done, 3, "the process that converts it was killed by SIGSEGV")


def test_missing_tensorflow_says_what_to_install(
    call: Call, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tf_keras.py").write_text("raise ImportError('not here')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    done = call("export", saved / "tf_keras.keras", "-o", tmp_path / "out.onnx")
    assert_refused(done, 2, "tf_keras is needed", "bnpass[keras]")
