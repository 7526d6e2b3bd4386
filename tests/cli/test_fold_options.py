"""``bnpass fold``: every option."""

import hashlib
import json
import os
from pathlib import Path

import jsonschema
import onnx
import pytest

import bnpass
from bnpass.report import counted
from tests.cli import models
from tests.cli.command import ROOT, Call, assert_usage, snapshot
from tests.cli.models import ops_of, written


def test_the_result_goes_beside_the_model_by_default(call: Call, tmp_path: Path) -> None:
    source = written(tmp_path, models.conv_bn(), "some.model.onnx")
    before = snapshot(tmp_path)
    ran = call("fold", source)
    assert (ran.code, ran.err) == (0, "")
    assert snapshot(tmp_path).keys() == {"some.model.onnx", "some.model.folded.onnx"}
    assert snapshot(tmp_path)["some.model.onnx"] == before["some.model.onnx"]
    assert ops_of(tmp_path / "some.model.folded.onnx") == ["Conv"]


def test_what_is_printed(call: Call, tmp_path: Path) -> None:
    source = written(tmp_path, models.conv_bn())
    ran = call("fold", source)
    lines = ran.out.splitlines()
    assert lines[0] == f"{source} -> {tmp_path / 'm.folded.onnx'}"
    table = {line.split("  ")[0]: line.split()[-3:] for line in lines if line.startswith(("Batch", "nodes"))}
    assert table == {"BatchNormalization": ["1", "0", "-1"], "nodes": ["2", "1", "-1"]}
    assert "batch normalization: 1 folded, 0 kept; other affine nodes: 0 folded, 0 kept" in lines
    assert lines[-2].startswith("checked, local: 1 edit, ")
    assert lines[-1].startswith("checked, whole model: 3 draws in ONNX Runtime, seed 0, ")


def test_each_kept_node_gets_one_line(call: Call, tmp_path: Path) -> None:
    ran = call("fold", written(tmp_path, models.kept()), "--check", 0)
    assert ran.code == 0
    told = [line for line in ran.out.splitlines() if "'bn'" in line]
    assert len(told) == 1
    assert told[0].startswith("BatchNormalization 'bn' kept, BN108 nonlinear-between: Sigmoid ")


@pytest.mark.parametrize("option", ["-o", "--output"])
def test_output(call: Call, tmp_path: Path, option: str) -> None:
    source, target = written(tmp_path, models.conv_bn()), tmp_path / "out.onnx"
    assert call("fold", source, option, target, "--check", 0).code == 0
    assert ops_of(target) == ["Conv"]
    assert snapshot(tmp_path).keys() == {"m.onnx", "out.onnx"}


def test_in_place(call: Call, tmp_path: Path) -> None:
    source = written(tmp_path, models.conv_bn())
    source.chmod(0o640)
    assert call("fold", source, "--in-place", "--check", 1).code == 0
    assert ops_of(source) == ["Conv"]
    assert snapshot(tmp_path).keys() == {"m.onnx"}
    assert source.stat().st_mode & 0o777 == 0o640


def test_in_place_with_external_data_leaves_a_whole_model(call: Call, tmp_path: Path) -> None:
    source = models.external(tmp_path)
    assert call("fold", source, "--in-place").code == 0
    assert ops_of(source) == ["Conv"]
    onnx.checker.check_model(source)
    folded = onnx.load(source, load_external_data=False).graph.initializer
    assert any(t.data_location == onnx.TensorProto.EXTERNAL for t in folded)


def test_force_overwrites_the_output(call: Call, tmp_path: Path) -> None:
    source, target = written(tmp_path, models.conv_bn()), tmp_path / "m.folded.onnx"
    target.write_bytes(b"old")
    assert call("fold", source, "--force", "--check", 0).code == 0
    assert ops_of(target) == ["Conv"]


@pytest.mark.parametrize("more", [(), ("--force",), ("--check", 2), ("--inference",)])
def test_a_dry_run_writes_nothing_and_says_what_it_would_do(
    call: Call, tmp_path: Path, more: tuple[object, ...]
) -> None:
    source = written(tmp_path, models.conv_bn())
    (tmp_path / "m.folded.onnx").write_bytes(b"in the way, but not for a dry run")
    before = snapshot(tmp_path)
    ran = call("fold", source, "--dry-run", *more)
    assert (ran.code, ran.err) == (0, "")
    assert "batch normalization: 1 folded, 0 kept" in ran.out
    assert ran.out.splitlines()[-1] == "not checked, whole model: this is a dry run: nothing is written"
    assert snapshot(tmp_path) == before


def test_a_dry_run_can_still_be_reported(call: Call, tmp_path: Path) -> None:
    source, report = written(tmp_path, models.conv_bn()), tmp_path / "r.json"
    assert call("fold", source, "--dry-run", "--report", report).code == 0
    found = json.loads(report.read_text())
    assert found["target"] is None
    assert [f["nodes"] for f in found["folded"]] == [["bn"]]
    assert snapshot(tmp_path).keys() == {"m.onnx", "r.json"}


@pytest.mark.parametrize("pair", [("-o", "x", "--in-place"), ("-o", "x", "--dry-run"), ("--in-place", "--dry-run")])
def test_only_one_destination(call: Call, tmp_path: Path, pair: tuple[str, ...]) -> None:
    source = written(tmp_path, models.conv_bn())
    before = snapshot(tmp_path)
    assert_usage(call("fold", source, *pair), "not allowed with argument")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("count", [1, 5])
def test_check_is_the_number_of_draws(call: Call, tmp_path: Path, count: int) -> None:
    source, report = written(tmp_path, models.conv_bn()), tmp_path / "r.json"
    ran = call("fold", source, "--check", count, "--report", report)
    assert f"checked, whole model: {counted(count, 'draw')} in " in ran.out
    details = json.loads(report.read_text())["checks"][1]["details"]
    assert (details["draws"], len(details["sizes"])) == (count, count)


def test_check_0_leaves_the_local_layer_and_says_so(call: Call, tmp_path: Path) -> None:
    ran = call("fold", written(tmp_path, models.conv_bn()), "--check", 0)
    assert ran.code == 0
    assert ran.out.splitlines()[-2].startswith("checked, local: ")
    assert ran.out.splitlines()[-1] == "not checked, whole model: switched off (--check 0)"


def test_seed_is_printed_and_changes_the_draws(call: Call, tmp_path: Path) -> None:
    source, errors = written(tmp_path, models.conv_bn()), []
    for seed in (0, 7):
        report = tmp_path / f"{seed}.json"
        ran = call("fold", source, "--force", "--check", 1, "--seed", seed, "--report", report)
        assert f"seed {seed}, " in ran.out
        found = json.loads(report.read_text())
        assert found["options"]["seed"] == found["checks"][1]["details"]["seed"] == seed
        errors.append(found["checks"][1]["details"]["outputs"][0]["original_error"])
    assert errors[0] != errors[1]


@pytest.mark.parametrize("words", [(), ("--check", 0), ("--dry-run",), ("--in-place",), ("--quiet",)], ids=str)
def test_the_report_is_what_the_schema_says(call: Call, tmp_path: Path, words: tuple[object, ...]) -> None:
    source, report = written(tmp_path, models.two()), tmp_path / "r.json"
    given = sha256(source)
    assert call("fold", source, "--report", report, *words).code == 0
    found = json.loads(report.read_text())
    jsonschema.validate(found, json.loads((ROOT / "bnpass" / "report" / "report.schema.json").read_text()))
    assert (found["schema"], found["bnpass"], found["source"]["sha256"]) == (1, bnpass.__version__, given)
    assert [(f["nodes"], f["batch_norms"]) for f in found["folded"]] == [(["bn1"], ["bn1"]), (["y"], ["y"])]
    if "--dry-run" not in words:
        target = Path(found["target"]["path"])
        assert target == (source if "--in-place" in words else tmp_path / "m.folded.onnx")
        assert (found["target"]["sha256"], found["target"]["bytes"]) == (sha256(target), target.stat().st_size)


def test_the_largest_error_is_told_with_its_bound(call: Call, tmp_path: Path) -> None:
    source, report = written(tmp_path, models.two()), tmp_path / "r.json"
    last = call("fold", source, "--report", report).out.splitlines()[-1]
    output = json.loads(report.read_text())["checks"][1]["details"]["outputs"][0]
    assert f"largest error {output['max_abs_error']:.2g} of 'y', {output['allowed']:.2g} is allowed" in last


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_quiet_prints_nothing_but_errors(call: Call, tmp_path: Path) -> None:
    source = written(tmp_path, models.conv_bn())
    ran = call("fold", source, "--quiet", "--check", 0)
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert ops_of(tmp_path / "m.folded.onnx") == ["Conv"]
    again = call("fold", source, "--quiet")
    assert again.code == 4
    assert "exists already" in again.err


def test_training_mode_is_folded_only_on_request(call: Call, tmp_path: Path) -> None:
    source, target = written(tmp_path, models.training()), tmp_path / "m.folded.onnx"
    ran = call("fold", source)
    assert ran.code == 0
    assert "'bn' kept, BN101 training-mode: " in ran.out
    assert ops_of(target) == ["Conv", "BatchNormalization"]
    ran = call("fold", source, "--force", "--inference")
    assert ran.code == 0
    assert ops_of(target) == ["Conv"]
    assert "checked, whole model: 3 draws" in ran.out


FOLDED = {
    (): [],
    ("--only", "bn1"): ["y"],
    ("--only", "y"): ["bn1"],
    ("--only", "[bx]n?"): ["y"],
    ("--only", "d"): ["y"],  # the output of bn1
    ("--only", "bn1", "--only", "y"): [],
    ("--exclude", "bn1"): ["bn1"],
    ("--exclude", "y"): ["y"],
    ("--exclude", "*"): ["bn1", "y"],
    ("--exclude", "bn1", "--exclude", "y"): ["bn1", "y"],
    ("--only", "*", "--exclude", "bn*"): ["bn1"],
    ("--only", "BN1"): ["bn1", "y"],  # names are case-sensitive
}


@pytest.mark.parametrize(("words", "left"), FOLDED.items(), ids=[" ".join(words) or "all" for words in FOLDED])
def test_only_and_exclude(call: Call, tmp_path: Path, words: tuple[str, ...], left: list[str]) -> None:
    source, report = written(tmp_path, models.two()), tmp_path / "r.json"
    assert call("fold", source, "--check", 0, "--report", report, *words).code == 0
    kept = json.loads(report.read_text())["kept"]
    assert [k["node"] for k in kept] == left
    assert {k["id"] for k in kept} <= {"BN117"}
    assert ops_of(tmp_path / "m.folded.onnx").count("BatchNormalization") == len(left)


BUDGETS = {"432": True, "1K": True, "0.5k": True, "431": False, "0": False}


@pytest.mark.parametrize(("budget", "folds"), BUDGETS.items())
def test_clone_budget(call: Call, tmp_path: Path, budget: str, folds: bool) -> None:
    ran = call("fold", written(tmp_path, models.shared()), "--clone-budget", budget, "--check", 0)
    assert ran.code == 0
    assert ("'bn' kept, BN112 clone-budget: " in ran.out) is not folds
    assert ops_of(tmp_path / "m.folded.onnx").count("BatchNormalization") == (0 if folds else 1)


WRONG = {
    ("--clone-budget", "lots"): "'lots' is no number of bytes",
    ("--clone-budget", "nan"): "'nan' is no number of bytes",
    ("--clone-budget", "inf"): "'inf' is no number of bytes",
    ("--clone-budget", ""): "'' is no number of bytes",
    ("--check", "-1"): "-1",
    ("--check", "2.5"): "'2.5' is not a number from 0 on",
    ("--seed", "x"): "'x' is not a number from 0 on",
    ("--report",): "expected one argument",
    ("--frobnicate",): "unrecognized arguments: --frobnicate",
    ("another.onnx",): "unrecognized arguments: another.onnx",
}


@pytest.mark.parametrize(("words", "said"), WRONG.items(), ids=[" ".join(words) for words in WRONG])
def test_wrong_options(call: Call, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    source = written(tmp_path, models.conv_bn())
    before = snapshot(tmp_path)
    assert_usage(call("fold", source, *words), said)
    assert snapshot(tmp_path) == before


def test_linked_data_is_taken_when_it_is_trusted(call: Call, tmp_path: Path) -> None:
    source = models.external(tmp_path)
    os.link(tmp_path / "w.bin", tmp_path / "other name")
    assert call("fold", source).code == 3
    ran = call("fold", source, "--trust-external-data")
    assert (ran.code, ran.err) == (0, "")
    assert "checked, whole model: 3 draws" in ran.out
    assert ops_of(tmp_path / "m.folded.onnx") == ["Conv"]
    assert call("explain", source).code == 3
    assert call("explain", source, "--trust-external-data").code == 0
