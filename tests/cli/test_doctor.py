"""``bnpass doctor``: what is there, what is not, and what is broken."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import bnpass
from bnpass.runtime import doctor
from bnpass.runtime.doctor import Finding
from bnpass.runtime.library import get_library_path
from tests.cli.command import Call


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Leave out what takes long and is not asked for."""
    for name in ("_package", "_mpi", "_nccl"):
        monkeypatch.setattr(doctor, name, lambda *_: Finding("left out", "ok", ""))
    return monkeypatch


def test_what_is_there_works(call: Call) -> None:
    ran = call("doctor", "--json")
    found = {finding["name"]: finding for finding in json.loads(ran.out)["findings"]}
    assert (ran.code, ran.err) == (0, "")
    for name, version in (
        ("bnpass", bnpass.__version__),
        ("numpy", np.__version__),
        ("onnx", onnx.__version__),
        ("onnxruntime", onnxruntime.__version__),
    ):
        assert found[name]["state"] == "ok"
        assert found[name]["text"].startswith(version)
    assert found["onnxruntime"]["facts"]["providers"] == onnxruntime.get_available_providers()
    assert found["kernels, cpu"]["state"] == "ok"
    assert found["kernels, cpu"]["text"].endswith("4 operators give the right numbers")
    assert "broken" not in {finding["state"] for finding in found.values()}


def test_the_text_has_a_line_for_each(call: Call, only: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    ran = call("doctor")
    lines = ran.out.splitlines()
    assert ran.code == 0
    assert len(lines) == len(doctor.examine().findings)
    assert any(line.startswith("ok      kernels, cpu") for line in lines)


def test_a_broken_library_is_told_and_the_process_lives(call: Call, only: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = Path(get_library_path()).read_bytes()
    for name, content in (("text.so", b"no library"), ("cut.so", whole[: len(whole) // 2])):
        (tmp_path / name).write_bytes(content)
        only.setenv("BNPASS_LIBRARY", str(tmp_path / name))
        ran = call("doctor")
        assert ran.code == 1
        assert any(line.startswith("BROKEN  kernels, cpu") and name in line for line in ran.out.splitlines())


def test_a_library_with_something_else_in_it_is_told(call: Call, only: pytest.MonkeyPatch) -> None:
    other = onnxruntime.capi._pybind_state.__file__
    only.setenv("BNPASS_LIBRARY", str(next(Path(other).parent.glob("onnxruntime_pybind11_state*.so"))))
    ran = call("doctor")
    assert ran.code == 1
    assert any(line.startswith("BROKEN  kernels, cpu") for line in ran.out.splitlines())


def test_what_is_missing_is_no_fault(call: Call, only: pytest.MonkeyPatch) -> None:
    only.undo()
    only.delenv("BNPASS_LIBRARY", raising=False)
    only.delenv("BNPASS_MPIEXEC", raising=False)
    only.setattr("bnpass.runtime.library._candidates", lambda _: [])
    only.setattr("bnpass.runtime.launch._candidates", lambda: iter(()))
    only.setattr(doctor, "_package", lambda name: Finding(name, "missing", ""))
    ran = call("doctor", "--json")
    states = {finding["name"]: finding["state"] for finding in json.loads(ran.out)["findings"]}
    assert ran.code == 0
    assert states["kernels, cpu"] == states["kernels, cuda"] == states["MPI"] == "missing"


def test_a_launcher_that_does_not_run_is_a_fault(call: Call, only: pytest.MonkeyPatch) -> None:
    only.undo()
    only.setattr(doctor, "_package", lambda name: Finding(name, "ok", ""))
    only.setenv("BNPASS_MPIEXEC", "/bin/false")
    ran = call("doctor")
    assert ran.code == 1
    assert any(line.startswith("BROKEN  MPI") and "BNPASS_MPIEXEC" in line for line in ran.out.splitlines())
