from pathlib import Path

import pytest

from tests.cli.command import Call, Files, Ran, assert_refused, caller, snapshot


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    return caller(capsys)


class Folder:
    """A folder in which a refused call must leave no trace."""

    def __init__(self, path: Path, call: Call) -> None:
        self.path, self._call = path, call

    def files(self) -> Files:
        return snapshot(self.path)

    def refuses(self, code: int, words: tuple[object, ...], *parts: str) -> Ran:
        before = self.files()
        ran = self._call(*words)
        assert_refused(ran, code, *parts)
        assert self.files() == before, "a refused call has created or changed a file"
        return ran


@pytest.fixture
def folder(tmp_path: Path, call: Call) -> Folder:
    return Folder(tmp_path, call)
