"""External data that is missing, leaves the folder, or lies about itself: nothing outside is read, nothing written."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from bnpass.api.fold import fold
from bnpass.errors import BnpassError, ExitCode
from bnpass.folding.options import FoldOptions
from tests.cli import models
from tests.cli.command import Call
from tests.cli.conftest import Folder
from tests.cli.models import edit_entry, ops_of


def entry(key: str, value: str) -> Callable[[Path], None]:
    return lambda path: edit_entry(path, key, value)


def absolute(path: Path) -> None:
    edit_entry(path, "location", str(path.parent / "w.bin"))


def outside(path: Path) -> None:
    (path.parent.parent / "w.bin").write_bytes((path.parent / "w.bin").read_bytes())
    edit_entry(path, "location", "../w.bin")


def symlink(path: Path) -> None:
    data = path.parent / "w.bin"
    data.rename(path.parent / "real.bin")
    data.symlink_to(path.parent / "real.bin")


def symlinked_folder(path: Path) -> None:
    away = path.parent.parent / "away"
    away.mkdir()
    (path.parent / "w.bin").rename(away / "w.bin")
    (path.parent / "sub").symlink_to(away)
    edit_entry(path, "location", "sub/w.bin")


def hard_link(path: Path) -> None:
    os.link(path.parent / "w.bin", path.parent / "other")


def shorter(path: Path) -> None:
    os.truncate(path.parent / "w.bin", 1000)


AGAIN = r"; (copy|export|download|save) .*again"
BAD: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "missing": (lambda p: (p.parent / "w.bin").unlink(), 4, r"'w\.bin' is missing; copy it into"),
    "absolute": (absolute, 3, "is an absolute path; it must be relative to the model"),
    "absolute on Windows": (entry("location", "C:\\w.bin"), 3, "is an absolute path; it must be relative"),
    "parent": (outside, 3, r"contains '\.\.'; keep the data in the model's folder"),
    "parent inside": (entry("location", "sub/../w.bin"), 3, r"contains '\.\.'; keep the data"),
    "parent on Windows": (entry("location", "..\\w.bin"), 3, r"contains '\.\.'; keep the data"),
    "symlink": (symlink, 3, "is a symbolic link; pass .*--trust-external-data"),
    "symlinked folder": (symlinked_folder, 3, "leads out of the folder .*; pass .*--trust-external-data"),
    "hard link": (hard_link, 3, "is a hard link, it has 2 names; pass .*--trust-external-data"),
    "folder": (entry("location", "."), 3, "is not a regular file"),
    "no name": (entry("location", ""), 3, "is not the name of a file"),
    "too short": (shorter, 3, rf"bytes 0 to 1728 are asked for, but 'w\.bin' has 1000{AGAIN}"),
    "offset beyond the end": (entry("offset", "4096"), 3, rf"bytes 4096 to 5824 are .* 'w\.bin' has 1728{AGAIN}"),
    "negative offset": (entry("offset", "-1"), 3, f"offset is '-1', not a whole number{AGAIN}"),
    "offset in words": (entry("offset", "four"), 3, f"offset is 'four', not a whole number{AGAIN}"),
    "huge offset": (entry("offset", "9" * 5000), 3, f"offset is '9{{40}}', .*{AGAIN}"),
    "other length": (entry("length", "1700"), 3, f"length is 1700, but its shape and type take 1728 bytes{AGAIN}"),
    "negative length": (entry("length", "-1728"), 3, f"length is '-1728', not a whole number{AGAIN}"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("words", [("fold",), ("fold", "--in-place"), ("explain",)], ids=str)
def test_refused(folder: Folder, case: str, words: tuple[str, ...]) -> None:
    (folder.path / "in").mkdir()
    path = models.external(folder.path / "in")
    make, code, said = BAD[case]
    make(path)
    ran = folder.refuses(code, (*words, path), str(path), "tensor 'w'")
    assert re.search(said, ran.err), ran.err


def test_good_external_data_is_folded(call: Call, tmp_path: Path) -> None:
    source = models.external(tmp_path)
    ran = call("fold", source)
    assert (ran.code, ran.err) == (0, "")
    assert ops_of(tmp_path / "m.folded.onnx") == ["Conv"]


def test_the_output_may_not_be_the_data_of_the_input(folder: Folder) -> None:
    source = models.external(folder.path)
    words = ("fold", source, "--force", "-o", folder.path / "w.bin")
    folder.refuses(2, words, "w.bin: holds weights of the model that is read; choose another output")


def proto_of(folder: Path) -> onnx.ModelProto:
    return onnx.load(models.external(folder), load_external_data=False)


def test_a_proto_with_external_data_needs_a_folder(folder: Folder) -> None:
    proto, before = proto_of(folder.path), folder.files()
    with pytest.raises(
        BnpassError, match=r"tensor 'w' is in the file 'w\.bin', but its folder is unknown: pass base_d"
    ) as caught:
        fold(proto)
    assert caught.value.exit_code is ExitCode.MODEL_REFUSED
    assert folder.files() == before


def test_with_its_folder_it_is_folded(folder: Folder) -> None:
    proto, before = proto_of(folder.path), folder.files()
    told = proto.SerializeToString()
    result = fold(proto, FoldOptions(check=1), base_dir=folder.path)
    assert isinstance(result.model, onnx.ModelProto)
    assert [node.op_type for node in result.model.graph.node] == ["Conv"]
    assert result.report.checks[1].ran, result.report.checks[1].text
    assert all(t.data_location == onnx.TensorProto.DEFAULT for t in result.model.graph.initializer)
    onnx.checker.check_model(result.model)
    assert proto.SerializeToString() == told
    assert folder.files() == before


def test_an_ir_model_knows_its_folder(folder: Folder) -> None:
    built = ir.load(models.external(folder.path))
    before = folder.files()
    result = fold(built, FoldOptions(check=1))
    assert isinstance(result.model, ir.Model)
    assert [node.op_type for node in result.model.graph] == ["Conv"]
    assert [node.op_type for node in built.graph] == ["Conv", "BatchNormalization"]
    assert result.report.checks[1].ran, result.report.checks[1].text
    assert folder.files() == before
