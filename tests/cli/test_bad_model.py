"""Files that are no models, or not such as can be folded: one line, exit code 3 or 4, and nothing written."""

import os
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.cli import models
from tests.cli.command import Call, snapshot
from tests.cli.conftest import Folder
from tests.cli.models import ops_of, with_bad, written
from tests.support.build import batch_norm, model, normal


def cut(path: Path) -> None:
    written(path.parent, models.two(), path.name)
    path.write_bytes(path.read_bytes()[:-100])


def edited(edit: Callable[[onnx.ModelProto], object]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        proto = ir.to_proto(models.two())
        edit(proto)
        path.write_bytes(proto.SerializeToString())

    return make


def opset(version: int) -> Callable[[Path], None]:
    def edit(proto: onnx.ModelProto) -> None:
        next(o for o in proto.opset_import if not o.domain).version = version

    return edited(edit)


def ort_magic(path: Path) -> None:
    path.write_bytes(b"\x20\0\0\0ORTM" + bytes(100))


EXPORT_AGAIN = ("export", "again")
BAD: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "text": (lambda p: p.write_text("# Read me\n\nThis is no model.\n"), ("is not an ONNX model", *EXPORT_AGAIN)),
    "page": (lambda p: p.write_text("<!DOCTYPE html><html><body>404</body></html>"), ("is not an ONNX model",)),
    "git lfs pointer": (
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"),
        ("is not an ONNX model", *EXPORT_AGAIN),
    ),
    "zip": (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(60)), ("is not an ONNX model",)),
    "zeros": (lambda p: p.write_bytes(bytes(4096)), ("is not an ONNX model",)),
    "random": (lambda p: p.write_bytes(np.random.default_rng(0).bytes(4096)), ("is not an ONNX model",)),
    "empty": (lambda p: p.write_bytes(b""), ("is empty", *EXPORT_AGAIN)),
    "truncated": (cut, ("is not an ONNX model, or is cut off", *EXPORT_AGAIN)),
    "without graph": (edited(lambda p: p.ClearField("graph")), ("has no graph", *EXPORT_AGAIN)),
    "opset 0": (opset(0), ("opset", *EXPORT_AGAIN)),
    "opset -1": (opset(-1), ("opset", *EXPORT_AGAIN)),
    "opset 999": (opset(999), ("opset 999", "upgrade onnx")),
    "no opset": (edited(lambda p: p.ClearField("opset_import")), ("opset", *EXPORT_AGAIN)),
    "IR version 999": (edited(lambda p: setattr(p, "ir_version", 999)), ("IR version 999", "upgrade")),
    "undefined input": (edited(lambda p: p.graph.node.pop(0)), ("'bn1'", "'c'")),
    "ORT format": (ort_magic, ("ORT-format", ".onnx")),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("words", [("fold",), ("fold", "--in-place"), ("fold", "--dry-run"), ("explain",)], ids=str)
def test_refused(folder: Folder, case: str, words: tuple[str, ...]) -> None:
    make, parts = BAD[case]
    path = folder.path / "m.onnx"
    make(path)
    folder.refuses(3, (*words, path), str(path), *parts)


@pytest.mark.parametrize("verb", ["fold", "explain"])
def test_an_ort_file_is_named_for_what_it_is(folder: Folder, verb: str) -> None:
    path = folder.path / "m.ort"
    path.write_bytes(b"anything")
    folder.refuses(3, (verb, path), str(path), "ORT-format", "fold the .onnx model before")


@pytest.mark.parametrize("verb", ["fold", "explain"])
def test_what_is_no_file(folder: Folder, verb: str) -> None:
    folder.refuses(4, (verb, folder.path / "none.onnx"), "none.onnx: there is no such file")
    folder.refuses(4, (verb, folder.path / "no" / "m.onnx"), "m.onnx: there is no such file")
    (folder.path / "dir").mkdir()
    folder.refuses(4, (verb, folder.path / "dir"), "dir: is a folder; give the .onnx file in it")
    os.mkfifo(folder.path / "pipe")
    folder.refuses(4, (verb, folder.path / "pipe"), "pipe: is not a regular file")
    (folder.path / "link.onnx").symlink_to(folder.path / "gone")
    folder.refuses(4, (verb, folder.path / "link.onnx"), "link.onnx: there is no such file")
    folder.refuses(4, (verb, folder.path / ("n" * 300)), "File name too long")
    written(folder.path, models.conv_bn())
    folder.refuses(4, (verb, folder.path / "m.onnx" / "x"), "Not a directory")


BAD_STATISTICS = {
    "NaN scale": ("s", np.nan, "contain NaN or infinity"),
    "infinite B": ("b", np.inf, "contain NaN or infinity"),
    "NaN mean": ("m", np.nan, "contain NaN or infinity"),
    "infinite variance": ("v", np.inf, "contain NaN or infinity"),
    "negative variance": ("v", -1.0, "input_var is negative (-1 in channel 1)"),
}


@pytest.mark.parametrize("case", BAD_STATISTICS)
def test_bad_statistics_keep_one_node_and_fold_the_rest(call: Call, tmp_path: Path, case: str) -> None:
    name, value, said = BAD_STATISTICS[case]
    source = written(tmp_path, with_bad(name, value))
    ran = call("fold", source)
    assert (ran.code, ran.err) == (0, "")
    told = [line for line in ran.out.splitlines() if "BN110" in line]
    assert len(told) == 1
    assert told[0].startswith("BatchNormalization 'bn1' kept, BN110 invalid-statistics: ")
    assert said in told[0]
    assert ops_of(tmp_path / "m.folded.onnx") == ["Conv", "BatchNormalization", "Relu", "Conv"]
    assert "1 folded, 1 kept" in ran.out


@pytest.mark.parametrize("name", ["s", "v"])
def test_good_statistics_at_the_edge_are_folded(call: Call, tmp_path: Path, name: str) -> None:
    assert call("fold", written(tmp_path, with_bad(name, 0.0))).code == 0
    assert ops_of(tmp_path / "m.folded.onnx") == ["Conv", "Relu", "Conv"]


@pytest.mark.parametrize(("factor", "folds"), [(1.0, True), (1e4, False)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_weight_that_would_overflow_keeps_its_node(
    call: Call, tmp_path: Path, dtype: str, factor: float, folds: bool
) -> None:
    half = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16)
    if dtype == "bfloat16" and not folds:
        factor = 1e38
    text = models.CONV_BN.replace("float[N, 4", f"{dtype}[N, 4").replace("float[N, 3", f"{dtype}[N, 3")
    statistics = batch_norm(4) | {"s": np.full(4, factor), "v": np.full(4, 1e-4), "m": np.zeros(4), "b": np.zeros(4)}
    halves = {name: array.astype(half) for name, array in statistics.items()}
    source = written(tmp_path, model(text, {"w": normal(4, 3, 3, 3).astype(half), **halves}))
    ran = call("fold", source, "--check", 0)
    assert (ran.code, ran.err) == (0, "")
    assert ops_of(tmp_path / "m.folded.onnx") == (["Conv"] if folds else ["Conv", "BatchNormalization"])
    told = [
        line for line in ran.out.splitlines() if line.startswith("BatchNormalization 'bn' kept, BN109 would-overflow")
    ]
    assert len(told) == (not folds)


def test_a_model_whose_inputs_cannot_be_drawn_is_folded_with_the_local_check(call: Call, tmp_path: Path) -> None:
    text = models.CONV_BN.replace("x) =>", "x, string[2] words) =>").replace("y) {", "y, string[2] same) {")
    built = model(text.replace("[conv]", "same = Identity (words)\n [conv]"), models.constants())
    ran = call("fold", written(tmp_path, built))
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[-1].startswith("not checked, whole model: Input 'words' is made of strings")
    assert "BatchNormalization" not in ops_of(tmp_path / "m.folded.onnx")


def test_a_model_that_onnx_runtime_cannot_run_is_folded_with_the_local_check(call: Call, tmp_path: Path) -> None:
    source = written(tmp_path, models.unknown_op())
    ran = call("fold", source)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[-2].startswith("checked, local: 1 edit, ")
    last = ran.out.splitlines()[-1]
    assert last.startswith("not checked, whole model: ONNX Runtime cannot load the original model: ")
    assert "Mystery" in last
    assert ops_of(tmp_path / "m.folded.onnx") == ["Conv", "Mystery"]
    assert snapshot(tmp_path).keys() == {"m.onnx", "m.folded.onnx"}
