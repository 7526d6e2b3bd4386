"""``bnpass verify MODEL --kernels`` and ``verify A B --kernels``: what they say, what they find, what they refuse."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bnpass.layers.model import layer_model
from bnpass.semantics.spec import DTYPES, BatchNormSpec
from bnpass.verification.node_check import Runs
from tests.cli import models
from tests.cli.command import ROOT, Call, assert_usage
from tests.cli.conftest import Folder
from tests.cli.kernel_models import LAYERS, steps
from tests.cli.models import written
from tests.cli.test_expand import two

NODES = [*(f"bn{i}" for i in range(LAYERS)), *(f"grad{i}" for i in reversed(range(LAYERS)))]


def checks(text: str) -> dict[str, str]:
    """Return ``ok`` or ``NO`` of each check that is printed, by its name."""
    return {name: mark for mark, name in re.findall(r"^  (ok|NO)  (.*?): ", text, re.MULTILINE)}


def test_kernel_body_and_definition_agree_node_by_node(call: Call, tmp_path: Path) -> None:
    ran = call("verify", written(tmp_path, steps()), "--kernels")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("agree: 3 draws, seed 0, reference: float64\n")
    found = checks(ran.out)
    assert set(found.values()) == {"ok"}
    assert [name.split("'")[1] for name in found] == [name for name in NODES for _ in ("kernel", "body")]
    assert [name.rpartition(", ")[2] for name in found] == ["kernel", "body"] * len(NODES)


def test_the_json_is_what_the_schema_says(call: Call, tmp_path: Path) -> None:
    ran = call("verify", written(tmp_path, steps()), "--kernels", "--json", "--draws", 1)
    found: dict[str, Any] = json.loads(ran.out)
    schema = json.loads((ROOT / "bnpass" / "report" / "report.schema.json").read_text())
    jsonschema.validate(found, {"$ref": "#/$defs/verification", "$defs": schema["$defs"]})
    assert (ran.code, found["ok"], len(found["checks"])) == (0, True, 2 * len(NODES))
    assert all(0 < check["largest"] <= 1 for check in found["checks"])


def test_training_batch_normalization_is_turned_into_operators(call: Call, tmp_path: Path) -> None:
    ran = call("verify", written(tmp_path, two()), "--kernels", "--draws", 1)
    assert ran.code == 0, ran
    assert "2 BatchNormalization turned into operators of bnpass, as expand --as-functions does" in ran.out
    assert len(checks(ran.out)) == 4


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_is_checked_in_itself(call: Call, tmp_path: Path, dtype: str) -> None:
    layer = BatchNormSpec("keras3", synchronized=True).resolve((None, 3, 5, 4), dtype)
    source = written(tmp_path, layer_model(layer, training=True, group="world", gradient=True))
    ran = call("verify", source, "--kernels", "--draws", 2)
    assert ran.code == 0, ran
    assert len(checks(ran.out)) == 4


def test_weights_may_lie_in_a_file_of_their_own(call: Call, tmp_path: Path) -> None:
    ir.save(two(), tmp_path / "m.onnx", external_data="m.data")
    assert (tmp_path / "m.data").stat().st_size > 0
    ran = call("verify", tmp_path / "m.onnx", "--kernels", "--draws", 1)
    assert ran.code == 0, ran
    assert len(checks(ran.out)) == 4


def test_draws_seed_shape_and_data_apply(call: Call, tmp_path: Path) -> None:
    source = written(tmp_path, two())
    ran = call("verify", source, "--kernels", "--draws", 2, "--seed", 5, "--shape", "x:3,3,6,6", "--json")
    found = json.loads(ran.out)
    assert (found["draws"], found["seed"]) == (2, 5)
    assert [size.split()[0] for size in found["sizes"]] == ["x:3,3,6,6"] * 2
    np.save(tmp_path / "x.npy", np.ones((2, 3, 6, 6), np.float32))
    found = json.loads(call("verify", source, "--kernels", "--data", f"x:{tmp_path / 'x.npy'}", "--json").out)
    assert found["sizes"] == ["x:2,3,6,6 (data)"]


@pytest.mark.parametrize(("tampered", "by"), [("new", "kernel"), ("original", "body")])
def test_what_is_wrong_is_named_by_its_node(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tampered: str, by: str
) -> None:
    """One of the two is given another epsilon for one node."""
    run = Runs.run

    def run_tampered(self: Runs, given: Sequence[tuple[str, Path]], *rest: Any) -> Any:
        is_alone = given[0][1].name == "nodes.onnx"
        return run(self, [(n, other(p) if is_alone and n == tampered else p) for n, p in given], *rest)

    def other(path: Path) -> Path:
        model = onnx.load(path)
        node = next(node for node in model.graph.node if node.name == "node1")
        epsilon = next(attribute for attribute in node.attribute if attribute.name == "epsilon")
        epsilon.f *= 1 + 1e-6
        onnx.save(model, path.with_name("other.onnx"))
        return path.with_name("other.onnx")

    monkeypatch.setattr(Runs, "run", run_tampered)
    ran = call("verify", written(tmp_path, steps()), "--kernels", "--draws", 1)
    assert (ran.code, ran.err) == (1, "")
    assert [name for name, mark in checks(ran.out).items() if mark == "NO"] == [
        f"node 'bn1' (SyncBatchNormalization), {by}"
    ]


def test_two_models_through_the_kernels(call: Call, tmp_path: Path) -> None:
    source, other = written(tmp_path, two()), tmp_path / "functions.onnx"
    assert call("expand", source, "-o", other, "--as-functions").code == 0
    ran = call("verify", source, other, "--kernels")
    assert (ran.code, ran.err) == (0, "")
    assert re.search(r"kernels of libbnpass_ort\S*\.so", ran.out)
    without_bodies = onnx.load(other)
    del without_bodies.functions[:]
    onnx.save(without_bodies, tmp_path / "kernels.onnx")
    assert call("verify", source, tmp_path / "kernels.onnx", "--kernels").code == 0
    assert call("verify", source, tmp_path / "kernels.onnx").code == 1  # no other runtime knows them


def test_two_models_that_differ_differ_through_the_kernels(call: Call, tmp_path: Path) -> None:
    wrong = steps()
    wrong.graph.initializers["s1"].const_value = steps().graph.initializers["s2"].const_value
    ran = call("verify", written(tmp_path, steps(), "a.onnx"), written(tmp_path, wrong, "b.onnx"), "--kernels")
    assert (ran.code, ran.err) == (1, "")


def test_a_model_with_nothing_for_a_kernel(folder: Folder) -> None:
    source = written(folder.path, models.conv_bn())
    folder.refuses(2, ("verify", source, "--kernels"), "neither operators of bnpass nor")


def test_a_model_that_cannot_be_read(folder: Folder) -> None:
    folder.refuses(4, ("verify", folder.path / "none.onnx", "--kernels"), "none.onnx: there is no such file")
    (folder.path / "c.onnx").write_text("# not a model")
    folder.refuses(3, ("verify", folder.path / "c.onnx", "--kernels"), "c.onnx: is not an ONNX model")


def test_without_a_library(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(folder.path, steps())
    monkeypatch.delenv("BNPASS_LIBRARY", raising=False)
    monkeypatch.setattr("bnpass.runtime.library._candidates", lambda _: [])
    folder.refuses(2, ("verify", source, "--kernels"), "was not built", "pip install")
    folder.refuses(2, ("verify", source, source, "--kernels"), "was not built", "pip install")


def test_with_a_library_that_is_none(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(folder.path, steps())
    monkeypatch.setenv("BNPASS_LIBRARY", str(folder.path / "none.so"))
    folder.refuses(2, ("verify", source, "--kernels"), "none.so", "not a file")
    (folder.path / "broken.so").write_text("no library")
    monkeypatch.setenv("BNPASS_LIBRARY", str(folder.path / "broken.so"))
    folder.refuses(2, ("verify", source, "--kernels"), "broken.so", "cannot be loaded")


def test_wrong_words(folder: Folder, call: Call) -> None:
    source = written(folder.path, steps())
    assert_usage(call("verify", source), "required: B", "--kernels")
    folder.refuses(2, ("verify", source, "--kernels", "--atol", 1), "--atol and --rtol are for two models")
    folder.refuses(2, ("verify", source, "--kernels", "--shape", "x:1,3"), "'x'", "3 dimensions")
    assert_usage(call("verify", source, "--kernels", "--provider", "npu"), "'npu'")
