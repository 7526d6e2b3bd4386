"""``bnpass explain``: a line for every batch normalization and affine, and nothing written."""

from pathlib import Path

import pytest

from tests.cli import models
from tests.cli.command import Call, Ran, assert_usage, snapshot
from tests.cli.conftest import Folder
from tests.cli.models import written
from tests.support.build import model, normal

BIAS_AND_SCALE = """g (float[N, 3] x) => (float[N, 4] y) {
    [matmul] c = MatMul (x, w)
    [add] d = Add (c, t)
    y = Mul (d, s)
}"""


def explained(call: Call, source: Path, *words: object) -> list[str]:
    before = snapshot(source.parent)
    ran: Ran = call("explain", source, *words)
    assert (ran.code, ran.err) == (0, "")
    assert snapshot(source.parent) == before
    return ran.out.splitlines()


def test_every_node_is_explained(call: Call, tmp_path: Path) -> None:
    lines = explained(call, written(tmp_path, models.two()))
    assert lines == ["'bn1' folds into 'conv1' (at its output)", "'y' folds into 'conv2' (at its output)"]


@pytest.mark.parametrize(("node", "into"), [("bn1", "conv1"), ("y", "conv2")])
def test_one_node_by_its_name_or_first_output(call: Call, tmp_path: Path, node: str, into: str) -> None:
    lines = explained(call, written(tmp_path, models.two()), "--node", node)
    assert lines == [f"'{node}' folds into '{into}' (at its output)"]


def test_a_node_that_changes_nothing_is_named_when_asked_for(call: Call, tmp_path: Path) -> None:
    text = "g (float[N, 3] x) => (float[N, 4] y) { [same] t = Identity (x) c = MatMul (t, w) [scale] y = Mul (c, s) }"
    source = written(tmp_path, model(text, {"w": normal(3, 4), "s": normal(4)}))
    assert explained(call, source) == ["'scale' folds into 'y' (at its output)"]
    assert explained(call, source, "--node", "same") == ["'same' changes nothing and is removed"]


def test_a_kept_node_says_why(call: Call, tmp_path: Path) -> None:
    source = written(tmp_path, models.kept())
    for words in ((), ("--node", "bn")):
        lines = explained(call, source, *words)
        assert len(lines) == 1
        assert lines[0].startswith(
            "BatchNormalization 'bn' kept, BN108 nonlinear-between: Sigmoid 'r' stands before it"
        )


def test_arithmetic_is_explained_too(call: Call, tmp_path: Path) -> None:
    constants = {"w": normal(3, 4), "t": normal(4, seed=1), "s": normal(4, seed=2)}
    lines = explained(call, written(tmp_path, model(BIAS_AND_SCALE, constants)))
    assert lines[0].startswith("'add' folds into 'matmul'")
    assert lines[1].startswith("'y' folds into 'matmul'")


def test_selection_counts(call: Call, tmp_path: Path) -> None:
    lines = explained(call, written(tmp_path, models.two()), "--exclude", "bn1")
    assert lines[0] == "'y' folds into 'conv2' (at its output)"
    assert lines[1].startswith("BatchNormalization 'bn1' kept, BN117 not-selected: ")
    source = written(tmp_path, models.training())
    assert "BN101" in explained(call, source)[0]
    assert explained(call, source, "--inference") == ["'bn' folds into 'conv' (at its output)"]
    source = written(tmp_path, models.shared())
    assert "BN112" in explained(call, source, "--clone-budget", 0)[0]


def test_nothing_to_explain(call: Call, tmp_path: Path) -> None:
    source = written(tmp_path, model("g (float[2] x) => (float[2] y) { y = Relu (x) }"))
    assert explained(call, source) == ["there is no batch normalization and no per-channel affine in this model"]


@pytest.mark.parametrize("node", ["nobody", "conv1", "BN1"])
def test_an_unknown_node_is_a_usage_error(folder: Folder, node: str) -> None:
    source = written(folder.path, models.two())
    folder.refuses(2, ("explain", source, "--node", node), str(source), f"'{node}'")


def test_a_missing_model_is_refused(folder: Folder) -> None:
    folder.refuses(4, ("explain", folder.path / "none.onnx"), "none.onnx: there is no such file")


def test_options_of_fold_are_not_options_of_explain(call: Call, tmp_path: Path) -> None:
    source = written(tmp_path, models.two())
    for words in (("-o", "x"), ("--in-place",), ("--check", "1"), ("--force",)):
        assert_usage(call("explain", source, *words), "unrecognized arguments")
