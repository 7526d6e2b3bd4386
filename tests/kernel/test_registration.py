"""How a session gets the kernels, and what it says if it cannot."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import bnpass
import bnpass.runtime
from bnpass.errors import MissingDependencyError, UsageError
from bnpass.runtime import library, threads
from tests.kernel.sessions import without_bodies
from tests.unit.ops.body_cases import Case, data, moments

FLOAT = np.dtype(np.float32)


@pytest.fixture
def case() -> Case:
    return moments("moments", data((4, 3), 1, FLOAT), 1)


def test_registered_options_open_a_model_and_a_second_time_changes_nothing(case: Case) -> None:
    options = onnxruntime.SessionOptions()
    assert bnpass.register(options) is options
    assert bnpass.register(options) is options
    for _ in range(2):
        opened = onnxruntime.InferenceSession(without_bodies(case).SerializeToString(), options)
        assert case.why_wrong(opened.run(None, case.feeds)) == ""


def test_options_that_could_reorder_collectives_are_refused() -> None:
    options = onnxruntime.SessionOptions()
    options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    with pytest.raises(UsageError, match="ORT_PARALLEL"):
        bnpass.register(options)


def test_options_belong_to_one_group() -> None:
    options = onnxruntime.SessionOptions()
    bnpass.register(options)
    with pytest.raises(UsageError, match="another library or group"):
        bnpass.register(options, threads(1)[0])


def test_a_library_that_was_not_built_says_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(library.OVERRIDE, raising=False)
    monkeypatch.setattr(library, "_candidates", lambda _: [])
    with pytest.raises(MissingDependencyError, match=r"C\+\+17 compiler.*pip install"):
        bnpass.get_library_path()


def test_an_unknown_library_is_refused() -> None:
    with pytest.raises(UsageError, match="'tpu'"):
        bnpass.get_library_path("tpu")  # type: ignore[arg-type]


def half_of_what_is_loaded(whole: bytes) -> bytes:
    """Cut a library where it hurts: what lies behind its last loaded segment, as debug information, nobody misses."""
    (start,), (length, count) = struct.unpack_from("<Q", whole, 32), struct.unpack_from("<HH", whole, 54)
    segments = [struct.unpack_from("<II4Q", whole, start + number * length) for number in range(count)]
    return whole[: max(offset + held for kind, _, offset, _, _, held in segments if kind == 1) // 2]


@pytest.mark.parametrize(("damage", "said"), [
    (lambda whole: whole[:1000], "cut short"),
    (half_of_what_is_loaded, "cut short"),
    (lambda whole: whole[:0], "no 64-bit shared library"),
    (lambda whole: b"\0" * 64 + whole[64:], "no 64-bit shared library"),
    (lambda whole: whole.replace(b"RegisterCustomOps", b"registerCustomOps"), "cannot load"),
], ids=["head alone", "half", "empty", "no header", "no entry"])  # fmt: skip
def test_a_corrupted_library_is_an_error_and_the_process_goes_on(
    damage: Callable[[bytes], bytes], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    broken = tmp_path / "libbnpass_ort.so"
    broken.write_bytes(damage(Path(bnpass.get_library_path()).read_bytes()))
    with monkeypatch.context() as patch:
        patch.setenv(library.OVERRIDE, str(broken))
        with pytest.raises(MissingDependencyError, match=said):
            bnpass.register(onnxruntime.SessionOptions())
    opened = bnpass.runtime.session(without_bodies(case))
    assert case.why_wrong(opened.run(None, case.feeds)) == ""
