"""Without ONNX Runtime, or with a broken one: fold works and says what was not checked, verify says what to do."""

import json
from pathlib import Path

import pytest

from tests.cli import models
from tests.cli.command import assert_refused, command, environment, snapshot
from tests.cli.models import ops_of, written

HIDE = '''
import sys
from importlib.machinery import PathFinder


class Hiding(PathFinder):
    """Finds everything but ONNX Runtime, as on a machine where it is not installed."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname.split(".")[0] == "onnxruntime" else super().find_spec(fullname, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
'''

INSTALL = 'pip install "bnpass[cpu]"'


@pytest.fixture
def absent(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which ONNX Runtime is not installed."""
    folder = tmp_path_factory.mktemp("absent")
    (folder / "sitecustomize.py").write_text(HIDE)
    return environment(PYTHONPATH=str(folder))


@pytest.fixture
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which ONNX Runtime is installed but does not import."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "onnxruntime").mkdir()
    (folder / "onnxruntime" / "__init__.py").write_text("raise ImportError('libfrob.so.1: cannot open shared object')")
    return environment(PYTHONPATH=str(folder))


def test_fold_works_with_the_local_check(tmp_path: Path, absent: dict[str, str]) -> None:
    source, report = written(tmp_path, models.conv_bn()), tmp_path / "r.json"
    ran = command("fold", source, "--report", report, env=absent)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[-2].startswith("checked, local: 1 edit, ")
    assert ran.out.splitlines()[-1] == f"not checked, whole model: ONNX Runtime is not installed: {INSTALL}"
    checks = json.loads(report.read_text())["checks"]
    assert [(c["name"], c["ran"]) for c in checks] == [("local", True), ("whole model", False)]
    assert ops_of(tmp_path / "m.folded.onnx") == ["Conv"]


def test_explain_works(tmp_path: Path, absent: dict[str, str]) -> None:
    ran = command("explain", written(tmp_path, models.conv_bn()), env=absent)
    assert (ran.code, ran.out) == (0, "'bn' folds into 'conv' (at its output)\n")


def test_verify_says_what_to_install(tmp_path: Path, absent: dict[str, str]) -> None:
    source = written(tmp_path, models.conv_bn())
    before = snapshot(tmp_path)
    assert_refused(command("verify", source, source, env=absent), 2, "needs ONNX Runtime", INSTALL)
    assert snapshot(tmp_path) == before


def test_fold_with_a_broken_runtime(tmp_path: Path, broken: dict[str, str]) -> None:
    ran = command("fold", written(tmp_path, models.conv_bn()), env=broken)
    assert (ran.code, ran.err) == (0, "")
    last = ran.out.splitlines()[-1]
    assert last.startswith("not checked, whole model: ONNX Runtime is installed but cannot be imported: libfrob")
    assert ops_of(tmp_path / "m.folded.onnx") == ["Conv"]


def test_verify_with_a_broken_runtime(tmp_path: Path, broken: dict[str, str]) -> None:
    source = written(tmp_path, models.conv_bn())
    assert_refused(command("verify", source, source, env=broken), 2, "cannot be imported", "libfrob.so.1")
