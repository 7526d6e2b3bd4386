"""Outputs and reports that cannot be written: one line, and everything as it was before."""

import errno
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from bnpass import model_io
from bnpass.api.fold import fold
from bnpass.errors import SaveError, UsageError
from tests.cli import models
from tests.cli.command import Call, assert_refused, environment, python, snapshot
from tests.cli.conftest import Folder
from tests.cli.models import ops_of, written

LIMITED = """
import resource, sys
from bnpass.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""
"""bnpass with files that cannot grow beyond a limit: what a full disk looks like to it."""


def test_an_output_that_exists_is_kept(folder: Folder) -> None:
    source = written(folder.path, models.conv_bn())
    (folder.path / "m.folded.onnx").write_bytes(b"mine")
    folder.refuses(4, ("fold", source), "m.folded.onnx: exists already; give --force")
    folder.refuses(4, ("fold", source, "-o", folder.path / "m.folded.onnx"), "exists already; give --force")
    (folder.path / "link.onnx").symlink_to(folder.path / "m.folded.onnx")
    folder.refuses(4, ("fold", source, "-o", folder.path / "link.onnx"), "link.onnx: exists already")


def test_an_output_that_appears_meanwhile_is_kept(folder: Folder, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = written(folder.path, models.conv_bn()), folder.path / "m.folded.onnx"
    real, before = model_io.Staged.commit, folder.files()

    def commit(staged: model_io.Staged) -> model_io.SavedFiles:
        target.write_bytes(b"somebody else was faster")
        return real(staged)

    monkeypatch.setattr(model_io.Staged, "commit", commit)
    ran = call("fold", source, "--check", 0, "--report", folder.path / "r.json")
    assert_refused(ran, 4, "m.folded.onnx: exists already")
    assert target.read_bytes() == b"somebody else was faster"
    target.unlink()
    assert folder.files() == before


def test_the_output_is_the_input(folder: Folder) -> None:
    source = written(folder.path, models.conv_bn())
    (folder.path / "sym.onnx").symlink_to(source)
    os.link(source, folder.path / "hard.onnx")
    (folder.path / "sub").mkdir()
    for name in ("m.onnx", "sym.onnx", "hard.onnx", "sub/../m.onnx"):
        for force in ((), ("--force",)):
            words = ("fold", source, "-o", f"{folder.path}/{name}", *force)
            folder.refuses(2, words, name, "the output is the input; say --in-place")


def test_the_output_has_no_place(folder: Folder) -> None:
    source = written(folder.path, models.conv_bn())
    (folder.path / "dir").mkdir()
    folder.refuses(4, ("fold", source, "-o", folder.path / "no" / "o.onnx"), "no does not exist; make it first")
    folder.refuses(4, ("fold", source, "-o", folder.path / "dir"), "dir: ")
    folder.refuses(4, ("fold", source, "-o", folder.path / "dir", "--force"), "dir: is a folder; give the name")
    folder.refuses(4, ("fold", source, "-o", source / "o.onnx"), "m.onnx does not exist")
    folder.refuses(4, ("fold", source, "-o", folder.path / ("n" * 300)), "File name too long")
    os.mkfifo(folder.path / "pipe")
    folder.refuses(4, ("fold", source, "-o", folder.path / "pipe", "--force"), "pipe: is not a regular file")


def test_the_report_has_no_place(folder: Folder) -> None:
    source = written(folder.path, models.conv_bn())
    (folder.path / "dir").mkdir()
    (folder.path / "old.json").write_text("{}")
    for report, code, said in (
        ("no/r.json", 4, "no does not exist; make it first"),
        ("dir", 4, "dir: is a folder; give the name of a file in it"),
        ("old.json", 4, "old.json: exists already; give --force"),
        ("m.onnx", 2, "m.onnx: the report would overwrite a model"),
        ("m.folded.onnx", 2, "m.folded.onnx: the report would overwrite a model"),
        ("m.onnx/r.json", 4, "m.onnx does not exist"),
    ):
        folder.refuses(code, ("fold", source, "--report", folder.path / report), said)
    for words in (("--force", "--report", source), ("--in-place", "--report", source)):
        folder.refuses(2, ("fold", source, *words), "the report would overwrite a model")


def test_force_overwrites_the_report_too(call: Call, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("old")
    source = written(tmp_path, models.conv_bn())
    assert call("fold", source, "--check", 0, "--force", "--report", tmp_path / "r.json").code == 0
    assert (tmp_path / "r.json").read_text().startswith("{")


@pytest.mark.parametrize(("limit", "words"), [(0, ()), (1000, ("--in-place",)), (1700, ())], ids=str)
@pytest.mark.parametrize("external", [False, True], ids=["inline", "external"])
def test_files_that_cannot_grow(tmp_path: Path, words: tuple[str, ...], limit: int, external: bool) -> None:
    source = models.external(tmp_path) if external else written(tmp_path, models.wide())
    before = snapshot(tmp_path)
    ran = python("-c", LIMITED, limit, "fold", source, "--check", 0, *words)
    assert_refused(ran, 4, "cannot be written: File too large; nothing was changed")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("words", [(), ("--in-place",)], ids=["new file", "in place"])
@pytest.mark.parametrize("number", [0, 1])
def test_a_disk_that_fills_up(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], number: int
) -> None:
    """Of a data file and a model, the first or the second cannot be written."""
    source, real = models.external(folder.path), os.write
    seen: list[int] = []

    def write(descriptor: int, data: bytes) -> int:
        file = os.fstat(descriptor).st_ino
        if file not in seen:
            seen.append(file)
        if seen.index(file) == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    folder.refuses(4, ("fold", source, "--check", 0, *words), "No space left on device", "nothing was changed")
    assert len(seen) == number + 1


def test_no_room_for_the_check_does_not_stop_the_fold(tmp_path: Path) -> None:
    source = written(tmp_path, models.conv_bn())
    size = source.stat().st_size
    ran = python("-c", LIMITED, size, "fold", source)  # enough for the model, not for its inputs
    assert (ran.code, ran.err) == (0, "")
    last = ran.out.splitlines()[-1]
    assert last == "not checked, whole model: it has no room for temporary files: File too large"
    assert ops_of(tmp_path / "m.folded.onnx") == ["Conv"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("words", [(), ("--in-place",)], ids=["new file", "in place"])
def test_a_disk_that_is_full(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, number: int, words: tuple[str, ...]
) -> None:
    source = written(folder.path, models.conv_bn())

    def write(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", write)
    folder.refuses(4, ("fold", source, "--check", 0, *words), os.strerror(number), "nothing was changed")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written(folder: Folder, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    source, real = written(folder.path, models.conv_bn()), os.open

    def read_only(path: Any, flags: int, *more: Any, **others: Any) -> int:  # Any: as os.open takes them
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(number, os.strerror(number), path)
        return real(path, flags, *more, **others)

    monkeypatch.setattr(os, "open", read_only)
    folder.refuses(4, ("fold", source, "--check", 0), "m.folded.onnx", os.strerror(number), "nothing was changed")
    folder.refuses(4, ("fold", source, "--check", 0, "--in-place"), "m.onnx", os.strerror(number))


def test_a_report_that_cannot_be_written_stops_the_fold(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(folder.path, models.conv_bn())

    def write_text(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", write_text)
    words = ("fold", source, "--check", 0, "--report", folder.path / "r.json")
    folder.refuses(4, words, "r.json: the report cannot be written: No space left on device")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not shell("mount -t tmpfs -o size=64k tmpfs", disk):
        pytest.skip("mounting is not allowed here")
    yield disk
    gc.collect()  # models keep their files open as long as they live
    assert shell("umount", disk) or shell("umount -l", disk)


def shell(command: str, path: Path) -> bool:
    """Run a command on a path; return whether it went well."""
    return subprocess.run(["/bin/sh", "-c", f'{command} "$0"', path], capture_output=True, check=False).returncode == 0


def fill(file: FileIO) -> None:
    """Write until it fails."""
    while True:
        file.write(bytes(512))


def test_a_real_disk_that_is_full(mounted: Path, call: Call) -> None:
    source = written(mounted, models.conv_bn())
    filler = mounted / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        fill(file)
    before = snapshot(mounted)
    for words in ((), ("--in-place",)):
        ran = call("fold", source, "--check", 0, *words)
        assert_refused(ran, 4, "cannot be written: No space left on device; nothing was changed")
        assert snapshot(mounted) == before
    filler.unlink()
    assert call("fold", source, "--check", 0).code == 0


def test_a_real_disk_that_is_read_only(mounted: Path, call: Call) -> None:
    source = written(mounted, models.conv_bn())
    assert shell("mount -o remount,ro", mounted)
    before = snapshot(mounted)
    for words in ((), ("--in-place",)):
        assert_refused(call("fold", source, "--check", 0, *words), 4, "Read-only file system; nothing was changed")
    ran = call("fold", source, "--dry-run", "--report", mounted / "r.json")
    assert_refused(ran, 4, "r.json: the report cannot be written: Read-only file system")
    assert snapshot(mounted) == before
    assert call("explain", source).code == 0


def test_standard_output_that_is_full_or_closed(tmp_path: Path) -> None:
    source = written(tmp_path, models.conv_bn())
    for redirect, code, said in ((">/dev/full", 4, "bnpass: No space left on device\n"), ("| true", 0, "")):
        line = f'"$0" -m bnpass explain "$1" {redirect}; exit ${{PIPESTATUS[0]}}'
        words = ["/bin/bash", "-c", line, sys.executable, source]
        done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (code, said), redirect


def test_the_api_refuses_in_the_same_words(folder: Folder) -> None:
    source = written(folder.path, models.conv_bn())
    (folder.path / "m.folded.onnx").write_bytes(b"mine")
    before = folder.files()
    with pytest.raises(SaveError, match=r"m\.folded\.onnx: exists already"):
        fold(source)
    with pytest.raises(SaveError, match=r"m\.onnx: exists already"):
        fold(source, output=source)
    with pytest.raises(UsageError, match="an output path goes with a model that is given as a path"):
        fold(models.conv_bn(), output=folder.path / "o.onnx")
    assert folder.files() == before
