"""The report: what it says as text, and that its JSON is what the schema says."""

import copy
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import onnx_ir as ir
import pytest

from bnpass import report as report_module
from bnpass.api.fold import fold
from bnpass.census import Census
from bnpass.errors import RefusalId
from bnpass.expansion.options import ExpandOptions
from bnpass.folding.options import FoldOptions
from bnpass.folding.result import Folded
from bnpass.graph.kept import Kept
from bnpass.report import SCHEMA, Check, FileFact, FoldReport, Report, aligned, counted
from tests.cli import models

LOCAL = Check("local", ran=True, text="2 edits", details={"edits": 2, "largest_error": 0.5})
SKIPPED = Check("whole model", ran=False, text="switched off")
BEFORE = Census({"BatchNormalization": 3, "Conv": 3, "Mul": 2, "Relu": 4}, 12345)
AFTER = Census({"BatchNormalization": 1, "Conv": 3, "Mul": 1, "Relu": 4}, 2000)
FOLDED = (
    Folded(("bn1", "mul1"), ("conv1",), "output", ("bn1",)),
    Folded(("bn2",), ("conv2", "conv3"), "input", ("bn2",)),
)
KEPT = (
    Kept("bn3", "BatchNormalization", RefusalId.NONLINEAR_BETWEEN, "relu", "Relu 'relu' stands before it"),
    Kept("mul2", "Mul", RefusalId.CLONE_BUDGET, "conv3", "its weight is shared"),
)


def example(**changes: Any) -> Report:  # Any: whatever the field holds
    given: dict[str, Any] = {
        "source": FileFact("in.onnx", 20000, "0" * 64),
        "target": FileFact("out.onnx", 9000, None),
        "before": BEFORE,
        "after": AFTER,
        "folded": FOLDED,
        "kept": KEPT,
        "checks": (LOCAL, SKIPPED),
        "options": FoldOptions(),
    }
    return FoldReport(**{**given, **changes})


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(
        Path(report_module.__file__).with_name("report.schema.json").read_text(encoding="utf-8")
    )
    return loaded


def test_text() -> None:
    assert example().to_text().splitlines() == [
        "in.onnx -> out.onnx",
        "",
        "                    before  after   change",
        "BatchNormalization       3      1       -2",
        "Mul                      2      1       -1",
        "other ops                7      7",
        "nodes                   12      9       -3",
        "bytes of constants  12,345  2,000  -10,345",
        "",
        "batch normalization: 2 folded, 1 kept; other affine nodes: 1 folded, 1 kept",
        "",
        "BatchNormalization 'bn3' kept, BN108 nonlinear-between: Relu 'relu' stands before it",
        "Mul 'mul2' kept, BN112 clone-budget: its weight is shared",
        "",
        "checked, local: 2 edits",
        "not checked, whole model: switched off",
    ]


def test_text_of_a_dry_run_and_of_a_model_in_memory() -> None:
    assert example(target=None).to_text().splitlines()[0] == "in.onnx"
    assert example(source=None, target=None).to_text().splitlines()[0].split() == ["before", "after", "change"]


def test_text_when_nothing_is_to_be_done() -> None:
    lines = example(after=BEFORE, folded=(), kept=()).to_text().splitlines()
    assert [line.split() for line in lines[3:6]] == [
        ["all", "ops", "12", "12"],
        ["nodes", "12", "12"],
        ["bytes", "of", "constants", "12,345", "12,345"],
    ]
    assert lines[7] == "batch normalization: 0 folded, 0 kept; other affine nodes: 0 folded, 0 kept"
    assert not any("kept, BN" in line for line in lines)


def sum_of(folded: tuple[Folded, ...], kept: tuple[Kept, ...], before: Census, after: Census) -> str:
    text = example(folded=folded, kept=kept, before=before, after=after).to_text()
    return next(line for line in text.splitlines() if line.startswith("batch normalization: "))


def still(node: str, op_type: str) -> Kept:
    return Kept(node, op_type, RefusalId.NONLINEAR_BETWEEN, "relu", "Relu 'relu' stands before it")


def test_what_is_joined_counts_as_what_is_gone() -> None:
    """A batch normalization that took a Mul in is still there; a Mul that two became is one that stayed."""
    into_host = (Folded(("bn", "mul"), ("bn",), "joined", ()),)
    before, after = Census({"BatchNormalization": 1, "Mul": 1}, 0), Census({"BatchNormalization": 1}, 0)
    assert sum_of(into_host, (still("bn", "BatchNormalization"),), before, after) == (
        "batch normalization: 0 folded, 1 kept; other affine nodes: 1 folded, 0 kept"
    )
    two_become_one = (Folded(("mul1", "mul2"), ("mul2/Mul",), "joined", ()),)
    before, after = Census({"Mul": 2}, 0), Census({"Mul": 1}, 0)
    assert sum_of(two_become_one, (still("mul2/Mul", "Mul"),), before, after) == (
        "batch normalization: 0 folded, 0 kept; other affine nodes: 1 folded, 1 kept"
    )
    then_into_conv = (*two_become_one, Folded(("mul2/Mul",), ("conv",), "output", ()))
    assert sum_of(then_into_conv, (), before, Census({}, 0)) == (
        "batch normalization: 0 folded, 0 kept; other affine nodes: 2 folded, 0 kept"
    )


def test_ops_that_are_new_are_counted() -> None:
    lines = example(after=Census({**AFTER.ops, "Add": 1}, 2000)).to_text().splitlines()
    assert "Add                      0      1       +1" in lines


def test_columns_are_aligned_by_the_longest_cell() -> None:
    assert list(aligned([("", "n"), ("long name", "1"), ("x", "1,000")])) == [
        "               n",
        "long name      1",
        "x          1,000",
    ]


@pytest.mark.parametrize(("number", "text"), [(0, "0 edits"), (1, "1 edit"), (2, "2 edits")])
def test_counted(number: int, text: str) -> None:
    assert counted(number, "edit") == text


def test_the_schema_is_one(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == jsonschema.Draft202012Validator.META_SCHEMA["$id"]
    assert schema["properties"]["schema"] == {"const": SCHEMA} == {"const": 1}


def objects_of(schema: Any) -> list[dict[str, Any]]:  # Any: part of a JSON file
    parts = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    below = [found for part in parts for found in objects_of(part)]
    return [schema, *below] if isinstance(schema, dict) and schema.get("type") == "object" else below


def test_every_object_of_the_schema_is_closed(schema: dict[str, Any]) -> None:
    assert schema["unevaluatedProperties"] is False
    described = [part for part in objects_of(schema) if "properties" in part and part is not schema]
    assert len(described) > 8
    for part in described:
        assert part["additionalProperties"] is False
        assert sorted(part["required"]) == sorted(part["properties"])


@pytest.mark.parametrize(("verb", "options"), [("fold", FoldOptions), ("expand", ExpandOptions)])
def test_the_options_are_those_of_the_verb(schema: dict[str, Any], verb: str, options: Any) -> None:
    described = schema["$defs"][verb]["properties"]["options"]["properties"]
    assert list(described) == [field.name for field in fields(options)]


def test_every_refusal_fits_the_schema(schema: dict[str, Any]) -> None:
    kept = tuple(Kept("n", "Mul", refusal, "n", "so") for refusal in RefusalId)
    jsonschema.validate(through_text(example(kept=kept)), schema)


def through_text(report: Report) -> dict[str, Any]:
    """Return a report as someone reads it from a file; NaN and infinity cannot be written."""
    loaded: dict[str, Any] = json.loads(json.dumps(report.to_json(), allow_nan=False))
    return loaded


@pytest.mark.parametrize("build", [models.conv_bn, models.two, models.kept, models.shared, models.unknown_op])
@pytest.mark.parametrize("check", [0, 1])
def test_real_reports_are_valid(schema: dict[str, Any], build: type[ir.Model], check: int) -> None:
    jsonschema.validate(through_text(fold(build(), FoldOptions(check=check)).report), schema)


def test_reports_of_files_are_valid(schema: dict[str, Any], tmp_path: Path) -> None:
    source = models.written(tmp_path, models.two())
    for dry_run in (True, False):
        options = FoldOptions(only=("bn*",), exclude=("x",), seed=3, check=2)
        found = through_text(fold(source, options, dry_run=dry_run, fingerprint=True).report)
        jsonschema.validate(found, schema)
        assert (found["target"] is None) is dry_run
        assert found["options"]["only"] == ["bn*"]


def test_a_report_with_infinite_figures_is_valid(schema: dict[str, Any]) -> None:
    """Where the outputs are infinite, figures are null: JSON has no infinity."""
    built = models.conv_bn()
    built.graph.initializers["b"].const_value = ir.tensor([3e38, -3e38, 3e38, 1.0], ir.DataType.FLOAT, name="b")
    jsonschema.validate(through_text(fold(built, FoldOptions(check=2)).report), schema)


WRONG: dict[str, tuple[str, Any]] = {
    "another version": ("schema", 2),
    "no checks": ("checks", []),
    "a path alone": ("source", "in.onnx"),
    "a file without size": ("source", {"path": "x", "sha256": None}),
    "a short digest": ("source", {"path": "x", "bytes": 1, "sha256": "12"}),
    "a negative count": ("before", {"ops": {"Conv": -1}, "constant_bytes": 0}),
    "an unknown field": ("surprise", 1),
    "an unknown id": ("kept", [{"node": "n", "op_type": "Mul", "id": "X1", "slug": "s", "at": "n", "reason": "r"}]),
    "an unknown side": ("folded", [{"nodes": ["a"], "into": ["b"], "side": "above", "batch_norms": []}]),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_schema_refuses(schema: dict[str, Any], case: str) -> None:
    found = through_text(example())
    jsonschema.validate(found, schema)
    key, value = WRONG[case]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**found, key: value}, schema)


def test_the_schema_refuses_what_is_missing(schema: dict[str, Any]) -> None:
    found = through_text(example())
    for key in found:
        without = copy.deepcopy(found)
        del without[key]
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(without, schema)


def test_a_check_that_ran_has_figures(schema: dict[str, Any]) -> None:
    ran = Check("whole model", ran=True, text="3 draws", details=None)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(through_text(example(checks=(LOCAL, ran))), schema)
