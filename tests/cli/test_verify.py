"""``bnpass verify A B``: every option, and the exit codes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.cli import models
from tests.cli.command import Call, assert_usage
from tests.cli.conftest import Folder
from tests.cli.models import written
from tests.support.build import model, normal


@pytest.fixture
def pair(tmp_path: Path, call: Call) -> tuple[Path, Path]:
    """A model and its fold."""
    source = written(tmp_path, models.conv_bn(), "a.onnx")
    assert call("fold", source, "-o", tmp_path / "b.onnx", "--check", 0).code == 0
    return source, tmp_path / "b.onnx"


def off_by(factor: float) -> ir.Model:
    """Return ``conv_bn`` with another weight."""
    return model(models.CONV_BN, models.constants() | {"w": models.constants()["w"] * np.float32(factor)})


def test_models_that_agree(call: Call, pair: tuple[Path, Path]) -> None:
    ran = call("verify", *pair)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("agree: 3 draws, seed 0, reference: float64\n")
    assert "x:1,3,8,8" in ran.out
    assert "x:2,3,8,8" in ran.out  # an open batch is tried with two sizes


def test_models_that_differ(folder: Folder, pair: tuple[Path, Path], call: Call) -> None:
    other = written(folder.path, off_by(1.001), "c.onnx")
    before = folder.files()
    ran = call("verify", pair[0], other)
    assert (ran.code, ran.err) == (1, "")
    assert ran.out.startswith("mismatch: 3 draws")
    assert "would have passed" in ran.out
    assert folder.files() == before


def test_interfaces_that_differ(call: Call, pair: tuple[Path, Path]) -> None:
    other = written(pair[0].parent, model("g (float[2] z) => (float[2] y) { y = Relu (z) }"), "c.onnx")
    ran = call("verify", pair[0], other)
    assert ran.code == 1
    assert "The inputs differ" in ran.out


def test_draws_and_seed(call: Call, pair: tuple[Path, Path]) -> None:
    ran = call("verify", *pair, "--draws", 2, "--seed", 5)
    assert ran.out.startswith("agree: 2 draws, seed 5, ")
    assert len([line for line in ran.out.splitlines() if line.startswith("  draw ")]) == 2


def test_json(call: Call, pair: tuple[Path, Path]) -> None:
    ran = call("verify", *pair, "--json", "--draws", 1)
    found = json.loads(ran.out)
    assert (ran.code, found["ok"], found["status"], found["draws"]) == (0, True, "agree", 1)
    ran = call("verify", pair[0], written(pair[0].parent, off_by(2), "c.onnx"), "--json")
    found = json.loads(ran.out)
    assert (ran.code, found["ok"], found["status"]) == (1, False, "mismatch")


def test_shape(call: Call, pair: tuple[Path, Path]) -> None:
    found = json.loads(call("verify", *pair, "--json", "--shape", "x:5,3,8,8").out)
    assert [size.split(" ")[0] for size in found["sizes"]] == ["x:5,3,8,8"] * 3


def test_shape_of_an_input_whose_name_holds_a_colon(call: Call, tmp_path: Path) -> None:
    built = model("g (float[N] x) => (float[N] y) { y = Relu (x) }")
    built.graph.inputs[0].name = "x:0"
    source = written(tmp_path, built)
    found = json.loads(call("verify", source, source, "--json", "--shape", "x:0:7").out)
    assert found["sizes"][0].startswith("x:0:7 ")
    np.save(tmp_path / "v.npy", np.ones(4, np.float32))
    found = json.loads(call("verify", source, source, "--json", "--data", f"x:0:{tmp_path / 'v.npy'}").out)
    assert found["sizes"] == ["x:0:4 (data)"]


def test_data(call: Call, pair: tuple[Path, Path], tmp_path: Path) -> None:
    array = normal(4, 3, 8, 8)
    np.save(tmp_path / "x.npy", array)
    np.savez(tmp_path / "all.npz", x=array)
    (tmp_path / "a:b").mkdir()
    np.savez_compressed(tmp_path / "a:b" / "all.npz", x=array)
    for word in (f"x:{tmp_path / 'x.npy'}", tmp_path / "all.npz", tmp_path / "a:b" / "all.npz"):
        ran = call("verify", *pair, "--json", "--data", word)
        assert ran.code == 0, ran
        assert json.loads(ran.out)["sizes"] == ["x:4,3,8,8 (data)"]


def test_data_decides(call: Call, tmp_path: Path) -> None:
    """Two models that differ below zero agree on what is above: the data are used, and not random draws."""
    text = "g (float[N, 2] x) => (float[N, 2] y) { y = Relu (x) }"
    a = written(tmp_path, model(text), "relu.onnx")
    b = written(tmp_path, model(text.replace("Relu (x)", "Abs (x)")), "abs.onnx")
    for name, value, code in (("positive", 1.0, 0), ("negative", -1.0, 1)):
        np.save(tmp_path / f"{name}.npy", np.full((1, 2), value, np.float32))
        assert call("verify", a, b, "--data", f"x:{tmp_path / name}.npy").code == code


def test_tolerances_replace_the_bound(call: Call, pair: tuple[Path, Path]) -> None:
    other = written(pair[0].parent, off_by(1.001), "c.onnx")
    assert call("verify", pair[0], other).code == 1
    assert call("verify", pair[0], other, "--atol", 1).code == 0
    assert call("verify", pair[0], other, "--rtol", 0.01).code == 0
    assert call("verify", pair[0], other, "--rtol", 1e-6).code == 1
    assert call("verify", *pair, "--atol", 0).code == 1


def test_the_tolerance_that_is_told_passes(call: Call, pair: tuple[Path, Path]) -> None:
    other = written(pair[0].parent, off_by(1.001), "c.onnx")
    line = next(line for line in call("verify", pair[0], other).out.splitlines() if "would have passed" in line)
    assert call("verify", pair[0], other, *line.split()[:2]).code == 0


def test_linked_data_is_taken_when_it_is_trusted(call: Call, tmp_path: Path) -> None:
    source = models.external(tmp_path)
    (tmp_path / "w.bin").rename(tmp_path / "elsewhere")
    (tmp_path / "w.bin").symlink_to(tmp_path / "elsewhere")
    assert call("verify", source, source).code == 3
    assert call("verify", source, source, "--trust-external-data").code == 0


def pickled(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def pickled_npz(path: Path) -> None:
    np.savez(path, x=np.array([{"a": 1}], dtype=object))


BAD_DATA: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "pickled npy": ("d.npy", pickled, "is no .npy or .npz file of plain numbers"),
    "pickled npz": ("d.npz", pickled_npz, "is no .npy or .npz file of plain numbers"),
    "text": ("d.npy", lambda p: p.write_text("hello"), "is no .npy or .npz file of plain numbers"),
    "empty": ("d.npy", lambda p: p.write_bytes(b""), "is no .npy or .npz file of plain numbers"),
    "cut-off zip": ("d.npz", lambda p: p.write_bytes(b"PK\x03\x04 and no more"), "is no .npy or .npz file"),
    "folder": ("d.npy", lambda p: p.mkdir(), "cannot be read"),
    "missing": ("d.npy", lambda _: None, "cannot be read"),
    "other shape": ("d.npy", lambda p: np.save(p, np.zeros((1, 2), np.float32)), "has shape (1, 2), not"),
    "other type": ("d.npy", lambda p: np.save(p, np.zeros((1, 3, 8, 8), "U3")), "x"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(folder: Folder, pair: tuple[Path, Path], case: str) -> None:
    name, make, said = BAD_DATA[case]
    path = folder.path / name
    make(path)
    code = 4 if case in ("folder", "missing") else 2
    word = f"x:{path}" if path.suffix == ".npy" else path
    ran = folder.refuses(code, ("verify", *pair, "--data", word), said)
    assert "allow_pickle" not in ran.err


def test_data_for_nobody(folder: Folder, pair: tuple[Path, Path]) -> None:
    path = folder.path / "d.npy"
    np.save(path, normal(1, 3, 8, 8))
    np.savez(folder.path / "d.npz", z=normal(1, 3, 8, 8))
    folder.refuses(2, ("verify", *pair, "--data", path), "needs the name of its input; give NAME:")
    folder.refuses(2, ("verify", *pair, "--data", f"z:{path}"), "no input 'z'", "x")
    folder.refuses(2, ("verify", *pair, "--data", folder.path / "d.npz"), "no input 'z'", "x")
    folder.refuses(2, ("verify", *pair, "--data", f"x:{folder.path / 'd.npz'}"), "names its arrays itself")


BAD_WORDS = {
    ("--shape", "z:1,3,8,8"): ("no input 'z'", "x"),
    ("--shape", "x:1,3"): ("'x'", "4 dimensions"),
    ("--shape", "x:1,7,8,8"): ("--shape",),
    ("--atol", "nan"): ("atol is nan",),
    ("--rtol", "-1"): ("rtol is -1",),
}


@pytest.mark.parametrize(("words", "parts"), BAD_WORDS.items(), ids=[" ".join(words) for words in BAD_WORDS])
def test_calls_that_do_not_fit_the_model(
    folder: Folder, pair: tuple[Path, Path], words: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    folder.refuses(2, ("verify", *pair, *words), *parts)


def test_wrong_words(call: Call, pair: tuple[Path, Path]) -> None:
    assert_usage(call("verify", pair[0]), "required: B")
    assert_usage(call("verify", *pair, "--shape", "x"), "name:1,3,224,224")
    assert_usage(call("verify", *pair, "--shape", "x:1,-3,8,8"), "name:1,3,224,224")
    assert_usage(call("verify", *pair, "--draws", 0), "'0' is not a number from 1 on")
    assert_usage(call("verify", *pair, "--seed", "-1"), "-1")
    assert_usage(call("verify", *pair, "--provider", "npu"), "'npu'")
    assert_usage(call("verify", *pair, "--atol", "some"), "'some'")


def test_models_that_cannot_be_read(folder: Folder, pair: tuple[Path, Path]) -> None:
    folder.refuses(4, ("verify", pair[0], folder.path / "none.onnx"), "none.onnx: there is no such file")
    (folder.path / "c.onnx").write_text("# not a model")
    folder.refuses(3, ("verify", folder.path / "c.onnx", pair[1]), "c.onnx: is not an ONNX model")


def test_a_model_that_nothing_can_run(folder: Folder) -> None:
    source = written(folder.path, models.unknown_op())
    folder.refuses(2, ("verify", source, source), "ONNX Runtime cannot load the original model", "Mystery")


def test_the_cuda_provider_needs_its_package(folder: Folder, pair: tuple[Path, Path]) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("it is installed here")
    folder.refuses(2, ("verify", *pair, "--provider", "cuda"), 'pip install "bnpass[gpu]"')
