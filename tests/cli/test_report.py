"""``--report FILE``: its name decides what it is, and it is there only if all went well."""

import errno
import json
import os
from pathlib import Path

import jsonschema
import pytest

from bnpass import report as report_module
from bnpass.cli.report_file import Stopwatch
from tests.cli import models
from tests.cli.command import Call, snapshot
from tests.cli.conftest import Folder
from tests.cli.models import written

SCHEMA = json.loads(Path(report_module.__file__).with_name("report.schema.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["r.html", "r.HTML", "r.htm"])
def test_a_page(call: Call, tmp_path: Path, name: str) -> None:
    source = written(tmp_path, models.two())
    assert call("fold", source, "--check", 1, "--report", tmp_path / name).code == 0
    text = (tmp_path / name).read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>\n")
    for said in ("bn1", "conv2", "m.folded.onnx", "SHA-256", "of what is allowed"):
        assert said in text
    assert set(snapshot(tmp_path)) == {"m.onnx", "m.folded.onnx", name}


@pytest.mark.parametrize("name", ["r.json", "r", "r.txt", "html", ".html", "r.html.json"])
def test_all_else_is_json(call: Call, tmp_path: Path, name: str) -> None:
    source = written(tmp_path, models.two())
    assert call("fold", source, "--check", 0, "--report", tmp_path / name).code == 0
    found = json.loads((tmp_path / name).read_text(encoding="utf-8"))
    jsonschema.validate(found, SCHEMA)
    assert list(found["seconds"]) == ["load", "fold", "save", "check"]
    assert all(spent >= 0 for spent in found["seconds"].values())


def test_an_expansion(call: Call, tmp_path: Path) -> None:
    source = written(tmp_path, models.training())
    assert call("expand", source, "--check", 0, "--report", tmp_path / "r.json").code == 0
    jsonschema.validate(json.loads((tmp_path / "r.json").read_text(encoding="utf-8")), SCHEMA)
    assert call("expand", source, "--check", 0, "--dry-run", "--report", tmp_path / "r.html").code == 0
    assert "bnpass expand" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_page_that_exists_is_kept_unless_forced(folder: Folder, call: Call) -> None:
    source = written(folder.path, models.conv_bn())
    page = folder.path / "r.html"
    page.write_text("mine")
    folder.refuses(4, ("fold", source, "--report", page), "r.html: exists already; give --force")
    assert call("fold", source, "--check", 0, "--force", "--report", page).code == 0
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_page_that_cannot_be_written_stops_the_fold(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(folder.path, models.conv_bn())

    def write_text(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", write_text)
    words = ("fold", source, "--check", 0, "--report", folder.path / "r.html")
    folder.refuses(4, words, "r.html: the report cannot be written: No space left on device")


def test_no_page_of_what_failed(folder: Folder) -> None:
    (folder.path / "m.onnx").write_text("no model")
    folder.refuses(3, ("fold", folder.path / "m.onnx", "--report", folder.path / "r.html"), "is not an ONNX model")


def test_the_stopwatch(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = 100.0, []
    monkeypatch.setattr("bnpass.cli.report_file.time.monotonic", lambda: now)
    watch = Stopwatch(lambda stage, fraction: told.append((stage, fraction)))
    assert watch.seconds() == {}
    for stage, at in (("load", 100.5), ("fold", 102.0), ("fold", 103.0), ("check", 106.0), ("fold", 107.0)):
        now = at
        watch(stage, 0.5)
    now = 109.0
    assert watch.seconds() == {"load": 1.5, "fold": 6.0, "check": 1.0}
    assert told[:2] == [("load", 0.5), ("fold", 0.5)]
