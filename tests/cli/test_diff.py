"""``bnpass diff A B``: the verdict, what it says, and the exit codes."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx_ir as ir
import pytest

import bnpass
from bnpass import report as report_module
from bnpass.api.diff import diff
from tests.cli import models
from tests.cli.command import Call, assert_usage, snapshot
from tests.cli.conftest import Folder
from tests.cli.models import written
from tests.cli.test_bad_model import BAD
from tests.support.build import model

SCHEMA = json.loads(Path(report_module.__file__).with_name("diff.schema.json").read_text(encoding="utf-8"))


@pytest.fixture
def pair(tmp_path: Path, call: Call) -> tuple[Path, Path]:
    """A model and its fold."""
    source = written(tmp_path, models.two(), "a.onnx")
    assert call("fold", source, "-o", tmp_path / "b.onnx", "--check", 0).code == 0
    return source, tmp_path / "b.onnx"


def renamed() -> ir.Model:
    built = models.two()
    for node in built.graph:
        node.name = f"{node.name or 'n'}_1"
    return built


def off_by(factor: float) -> ir.Model:
    built = models.two()
    value = built.graph.initializers["w"]
    value.const_value = ir.tensor(models.constants()["w"] * np.float32(factor), name="w")
    return built


def test_the_same(call: Call, pair: tuple[Path, Path]) -> None:
    ran = call("diff", pair[0], pair[0])
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        f"{pair[0]} -> {pair[0]}: same: 5 nodes, 10 weights",
        "numbers: equal, because the models are the same",
    ]


def test_other_names(call: Call, pair: tuple[Path, Path]) -> None:
    ran = call("diff", pair[0], written(pair[0].parent, renamed(), "c.onnx"))
    assert ran.code == 0
    assert "renamed only: 5 nodes" in ran.out.splitlines()


def test_a_fold(call: Call, pair: tuple[Path, Path]) -> None:
    before = snapshot(pair[0].parent)
    ran = call("diff", *pair)
    assert (ran.code, ran.err) == (1, "")
    lines = ran.out.splitlines()
    assert lines[0] == f"{pair[0]} -> {pair[1]}: different"
    assert "  BatchNormalization 'bn1': only in A" in lines
    assert "  Relu 'r': input 0: 'd' of BatchNormalization 'bn1' -> 'c' of Conv 'conv1'" in lines
    assert any(line.startswith("  'w' FLOAT[4,3,3,3]: 108 of 108 elements differ, by at most ") for line in lines)
    assert any(line.startswith("  8 weights: only in A: 's' FLOAT[4], 'b' FLOAT[4], …") for line in lines)
    assert lines[-1].startswith("numbers: agree: 3 draws in ONNX Runtime, seed 0, reference float64; largest error ")
    assert snapshot(pair[0].parent) == before


def test_numbers_that_differ(call: Call, pair: tuple[Path, Path]) -> None:
    ran = call("diff", pair[0], written(pair[0].parent, off_by(1.5), "c.onnx"), "--check", 1, "--seed", 4)
    assert ran.code == 1
    assert ran.out.splitlines()[-1].startswith("numbers: differ: y: ")


def test_check_0(call: Call, pair: tuple[Path, Path]) -> None:
    ran = call("diff", *pair, "--check", 0)
    assert (ran.code, ran.out.splitlines()[-1]) == (1, "numbers: not compared: switched off (--check 0)")


def test_other_interfaces(call: Call, pair: tuple[Path, Path]) -> None:
    other = written(pair[0].parent, model("g (float[2] z) => (float[2] y) { y = Relu (z) }"), "c.onnx")
    ran = call("diff", pair[0], other)
    assert ran.code == 1
    assert "  input: 'x' FLOAT[N,3,8,8] -> 'z' FLOAT[2]" in ran.out.splitlines()
    assert ran.out.splitlines()[-1] == "numbers: not compared: inputs or outputs differ"


def test_another_opset_is_no_other_interface(call: Call, tmp_path: Path) -> None:
    text = "g (float[N] x) => (float[N] y) { y = Relu (x) }"
    a, b = (written(tmp_path, model(text, opset=opset), f"{opset}.onnx") for opset in (16, 17))
    ran = call("diff", a, b)
    assert ran.code == 1
    assert "  opset of 'ai.onnx': 16 -> 17" in ran.out.splitlines()
    assert ran.out.splitlines()[-1].startswith("numbers: agree")


def test_another_shape_is_no_reason_not_to_run(call: Call, tmp_path: Path) -> None:
    text = "g (float[N] x) => (float[N] y) { y = Relu (x) }"
    a, b = written(tmp_path, model(text), "a.onnx"), written(tmp_path, model(text.replace("[N] x", "[3] x")), "b.onnx")
    ran = call("diff", a, b)
    assert ran.code == 1
    assert "  input: 'x' FLOAT[N] -> 'x' FLOAT[3]" in ran.out.splitlines()
    assert ran.out.splitlines()[-1].startswith("numbers: ")
    assert "inputs or outputs differ" not in ran.out


def test_a_model_that_nothing_can_run(call: Call, tmp_path: Path) -> None:
    a, b = models.unknown_op(), models.unknown_op()
    b.graph.initializers["w"].const_value = ir.tensor(models.constants()["w"] + 1, name="w")
    ran = call("diff", written(tmp_path, a, "a.onnx"), written(tmp_path, b, "b.onnx"))
    assert ran.code == 1
    assert "numbers: not compared: ONNX Runtime cannot load the original model" in ran.out


def test_quiet(call: Call, pair: tuple[Path, Path]) -> None:
    assert call("diff", *pair, "--check", 0, "--quiet") == call("diff", *pair, "--check", 0, "--quiet")
    ran = call("diff", *pair, "--check", 0, "--quiet")
    assert (ran.code, ran.out, ran.err) == (1, "", "")


def test_long_lists_are_cut_and_counted(call: Call, tmp_path: Path) -> None:
    lines = " ".join(f"[n{i}] v{i + 1} = LeakyRelu <alpha = 0.5> (v{i})" for i in range(40))
    text = f"g (float[N] x) => (float[N] y) {{ v0 = Abs (x) {lines} y = Neg (v40) }}"
    a, b = written(tmp_path, model(text), "a.onnx"), written(tmp_path, model(text.replace("0.5", "0.25")), "b.onnx")
    out = call("diff", a, b, "--check", 0, "--report", tmp_path / "r.json").out
    assert "  and 28 more (--report FILE lists them)" in out.splitlines()
    assert len(json.loads((tmp_path / "r.json").read_text())["changed_nodes"]) == 40


def test_the_report(call: Call, pair: tuple[Path, Path], tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    assert call("diff", *pair, "--check", 1, "--report", report).code == 1
    found = json.loads(report.read_text(encoding="utf-8"))
    jsonschema.validate(found, SCHEMA)
    assert (found["same"], found["a"]["path"], found["numbers"]["details"]["status"]) == (False, str(pair[0]), "agree")
    assert list(found["seconds"]) == ["load", "compare", "run"]
    assert call("diff", pair[0], pair[0], "--report", report).code == 4
    assert call("diff", pair[0], pair[0], "--report", report, "--force").code == 0
    found = json.loads(report.read_text(encoding="utf-8"))
    jsonschema.validate(found, SCHEMA)
    assert found["same"] is True


def test_the_schema_is_closed() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)

    def objects(part: Any) -> list[dict[str, Any]]:  # Any: part of a JSON file
        parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        below = [found for each in parts for found in objects(each)]
        return [part, *below] if isinstance(part, dict) and "properties" in part else below

    described = [part for part in objects(SCHEMA) if isinstance(part["properties"], dict) and "required" in part]
    assert len(described) == 9
    for part in described:
        assert part["additionalProperties"] is False
        assert sorted(part["required"]) == sorted(part["properties"])


def test_a_report_that_cannot_be(folder: Folder, pair: tuple[Path, Path]) -> None:
    folder.refuses(2, ("diff", *pair, "--report", folder.path / "r.html"), "diff writes its report as JSON")
    folder.refuses(2, ("diff", *pair, "--report", pair[1], "--force"), "the report would overwrite a model")
    folder.refuses(4, ("diff", *pair, "--report", folder.path / "no" / "r.json"), "no does not exist; make it first")


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("first", [False, True])
def test_files_that_are_no_models(folder: Folder, case: str, first: bool) -> None:
    make, parts = BAD[case]
    good, bad = written(folder.path, models.two(), "good.onnx"), folder.path / "m.onnx"
    make(bad)
    words = (bad, good) if first else (good, bad)
    folder.refuses(3, ("diff", *words, "--report", folder.path / "r.json"), str(bad), *parts)


def test_files_that_cannot_be_read(folder: Folder, pair: tuple[Path, Path]) -> None:
    folder.refuses(4, ("diff", pair[0], folder.path / "none.onnx"), "none.onnx: there is no such file")
    (folder.path / "dir").mkdir()
    folder.refuses(4, ("diff", folder.path / "dir", pair[0]), "dir: is a folder")


def test_linked_data_is_taken_when_it_is_trusted(call: Call, tmp_path: Path) -> None:
    source, other = models.external(tmp_path), models.external(tmp_path, "n.onnx")
    (tmp_path / "w.bin").rename(tmp_path / "elsewhere")
    (tmp_path / "w.bin").symlink_to(tmp_path / "elsewhere")
    assert call("diff", source, other).code == 3
    assert call("diff", source, other, "--trust-external-data").code == 0


def test_external_and_inline_are_the_same(call: Call, tmp_path: Path) -> None:
    assert call("diff", models.external(tmp_path), written(tmp_path, models.wide(), "inline.onnx")).code == 0


def test_wrong_words(call: Call, pair: tuple[Path, Path]) -> None:
    assert_usage(call("diff", pair[0]), "required: B")
    assert_usage(call("diff", *pair, "--check", "-1"), "-1")


def test_the_api() -> None:
    assert bnpass.diff is diff
    same = bnpass.diff(models.two(), ir.to_proto(renamed()))
    assert same.same
    assert same.report.to_text().startswith("same: 5 nodes, 10 weights")
    found = diff(models.two(), off_by(1.5), check=1)
    assert isinstance(found, bnpass.DiffResult)
    assert not found.same
    assert found.numbers.ran
    json.dumps(found.report.to_json(), allow_nan=False)
    built = models.two()
    before = ir.to_proto(built).SerializeToString(deterministic=True)
    diff(built, off_by(2), check=1)
    assert ir.to_proto(built).SerializeToString(deterministic=True) == before
