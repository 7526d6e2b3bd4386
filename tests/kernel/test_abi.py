"""The mirror of ONNX Runtime's C ABI: every slot does what its name says, and lies where official headers have it."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

HERE = Path(__file__).parent
NATIVE = Path(__file__).resolve().parents[2] / "bnpass" / "runtime" / "native"
SLOTS = dict(re.findall(r"using (\w+)\s*=\s*Slot<(\d+),", (NATIVE / "ort" / "ort_abi.h").read_text(encoding="utf-8")))
FIELDS = re.findall(
    r"\(\*(\w+)\)", (NATIVE / "ort" / "ort_abi.h").read_text(encoding="utf-8").split("struct CustomOp {")[1]
)


def compiled(source: Path, result: Path, *flags: str) -> None:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    assert compiler, "the tests of the kernels need a C++ compiler"
    subprocess.run([compiler, "-std=c++17", f"-I{NATIVE}", *flags, str(source), "-o", str(result)], check=True)


def test_every_slot_does_what_its_name_says_in_the_installed_runtime(tmp_path: Path) -> None:
    library = tmp_path / "probe.so"
    compiled(HERE / "abi_probe.cpp", library, "-shared", "-fPIC", "-Wl,-z,nodelete")
    node = helper.make_node("Probe", ["X"], ["Y"], "probe", domain="probe", real=0.5, integer=-7, text="abc")
    graph = helper.make_graph(
        [node],
        "probe",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [2, 5, 3])],
        [helper.make_tensor_value_info("Y", TensorProto.DOUBLE, None)],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("probe", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    for _ in range(3):
        (seen,) = session.run(None, {"X": np.zeros((2, 5, 3), np.float32)})
        assert seen.tolist() == [0.5, -7, 1, 1, 1, 1, 3, 5, 4950, 1, 1, 1]


def test_the_probe_calls_every_slot() -> None:
    probe = (HERE / "abi_probe.cpp").read_text(encoding="utf-8")
    assert (len(SLOTS), len(FIELDS)) == (26, 25)
    assert [name for name in SLOTS if not re.search(rf"\b{name}\b", probe)] == []


@pytest.mark.skipif("ORT_INCLUDE_DIR" not in os.environ, reason="ORT_INCLUDE_DIR names no official headers")
def test_slots_and_fields_lie_where_official_headers_have_them(tmp_path: Path) -> None:
    source = tmp_path / "slots.cpp"
    word = "sizeof(void*)"
    asserts = [f"static_assert(offsetof(OrtApi, {name}) == {index} * {word});" for name, index in SLOTS.items()]
    asserts += [f"static_assert(offsetof(OrtCustomOp, {name}) == {i + 1} * {word});" for i, name in enumerate(FIELDS)]
    source.write_text("\n".join(["#include <cstddef>", "#include <onnxruntime_c_api.h>", *asserts]), encoding="utf-8")
    compiled(source, tmp_path / "slots.o", "-c", f"-I{os.environ['ORT_INCLUDE_DIR']}")
    wrong = tmp_path / "wrong.cpp"  # the compiler would notice
    wrong.write_text(source.read_text(encoding="utf-8").replace("== 26 *", "== 27 *"), encoding="utf-8")
    with pytest.raises(subprocess.CalledProcessError):
        compiled(wrong, tmp_path / "wrong.o", "-c", f"-I{os.environ['ORT_INCLUDE_DIR']}")
