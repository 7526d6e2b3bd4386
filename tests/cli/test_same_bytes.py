"""Same input, same bytes; what was given is never changed; what comes in as a type goes out as that type."""

import hashlib
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from bnpass.api.fold import fold
from bnpass.folding.options import FoldOptions
from tests.cli import models
from tests.cli.command import ROOT, Call, environment, python, snapshot
from tests.cli.models import written

DIGITS = ROOT / "models" / "digits_cnn.onnx"
NO_RUN = FoldOptions(check=0)
FOLD_ALL = """
import sys
from pathlib import Path
from bnpass.cli.main import main
for model in sys.argv[2:]:
    assert main(["fold", model, "-o", str(Path(sys.argv[1], Path(model).name)), "--check", "0"]) == 0
"""
BUILDERS = [models.conv_bn, models.two, models.kept, models.shared]


def test_runs_and_hash_seeds(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    inline, external = written(tmp_path / "in", models.two(), "two.onnx"), models.external(tmp_path / "in", "wide.onnx")
    found = set()
    for run, seed in enumerate(("0", "0", "1", "2")):
        folder = tmp_path / str(run)
        folder.mkdir()
        ran = python("-c", FOLD_ALL, folder, DIGITS, inline, external, env=environment(PYTHONHASHSEED=seed))
        assert (ran.code, ran.err) == (0, "")
        files = {name: hashlib.sha256(file[0]).hexdigest() for name, file in snapshot(folder).items()}
        assert len(files) == 4  # one has external data
        found.add((ran.out.replace(str(folder), ""), *sorted(files.items())))
    assert len(found) == 1


@pytest.mark.parametrize("build", BUILDERS)
def test_a_file_is_never_modified(call: Call, tmp_path: Path, build: type[ir.Model]) -> None:
    source = written(tmp_path, build())
    before = snapshot(tmp_path)
    for words in (("fold", source), ("explain", source), ("verify", source, tmp_path / "m.folded.onnx")):
        assert call(*words).code == 0
        assert {name: file for name, file in snapshot(tmp_path).items() if name in before} == before


def test_external_data_is_never_modified(call: Call, tmp_path: Path) -> None:
    source = models.external(tmp_path)
    before = snapshot(tmp_path)
    assert call("fold", source).code == 0
    assert {name: file for name, file in snapshot(tmp_path).items() if name in before} == before
    assert call("fold", tmp_path / "m.folded.onnx", "--in-place").code == 0
    assert {name: file for name, file in snapshot(tmp_path).items() if name in before} == before


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("check", [0, 1])
def test_a_proto_is_never_changed(build: type[ir.Model], check: int) -> None:
    proto = ir.to_proto(build())
    before = proto.SerializeToString(deterministic=True)
    result = fold(proto, FoldOptions(check=check))
    assert isinstance(result.model, onnx.ModelProto)
    assert result.model is not proto
    assert proto.SerializeToString(deterministic=True) == before
    assert (result.model.SerializeToString(deterministic=True) != before) is result.modified


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("check", [0, 1])
def test_an_ir_model_is_never_changed(build: type[ir.Model], check: int) -> None:
    built = build()
    before, meta = ir.to_proto(built).SerializeToString(deterministic=True), dict(built.graph.meta)
    result = fold(built, FoldOptions(check=check))
    assert isinstance(result.model, ir.Model)
    assert result.model is not built
    assert ir.to_proto(built).SerializeToString(deterministic=True) == before
    assert built.graph.meta == meta


@pytest.mark.parametrize("inference", [False, True])
def test_training_models_are_never_changed(inference: bool) -> None:
    proto, built = ir.to_proto(models.training()), models.training()
    before = proto.SerializeToString(deterministic=True)
    for model in (proto, built):
        assert fold(model, FoldOptions(inference=inference, check=1)).modified is inference
    assert proto.SerializeToString(deterministic=True) == before
    assert ir.to_proto(built).SerializeToString(deterministic=True) == before


def test_a_path_gives_the_path_of_the_result(tmp_path: Path) -> None:
    source = written(tmp_path, models.conv_bn())
    result = fold(source, NO_RUN)
    assert result.model == tmp_path / "m.folded.onnx"
    assert isinstance(result.model, Path)
    other = fold(str(source), NO_RUN, output=tmp_path / "other.onnx")
    assert other.model == str(tmp_path / "other.onnx")
    assert isinstance(other.model, str)
    assert (tmp_path / "other.onnx").read_bytes() == (tmp_path / "m.folded.onnx").read_bytes()


def test_every_type_gives_the_same_model(tmp_path: Path) -> None:
    source = written(tmp_path, models.two())
    path = fold(source, NO_RUN).model
    assert isinstance(path, Path)
    from_file = onnx.load(path)
    assert fold(onnx.load(source), NO_RUN).model == from_file
    from_ir = fold(ir.load(source), NO_RUN).model
    assert isinstance(from_ir, ir.Model)
    assert [n.op_type for n in from_ir.graph] == [n.op_type for n in from_file.graph.node]
    for tensor in from_file.graph.initializer:
        value = from_ir.graph.initializers[tensor.name].const_value
        assert value is not None
        assert value.tobytes() == tensor.raw_data


def test_a_dry_run_gives_the_model_and_writes_nothing(tmp_path: Path) -> None:
    source = written(tmp_path, models.conv_bn())
    before = snapshot(tmp_path)
    result = fold(source, dry_run=True)
    assert isinstance(result.model, ir.Model)
    assert [n.op_type for n in result.model.graph] == ["Conv"]
    assert snapshot(tmp_path) == before


def test_modified_is_honest(tmp_path: Path) -> None:
    assert fold(models.kept(), NO_RUN).modified is False
    assert fold(models.conv_bn(), NO_RUN).modified is True
    source = written(tmp_path, models.conv_bn())
    once = fold(source, NO_RUN).model
    assert isinstance(once, Path)
    again = fold(once, NO_RUN)
    assert again.modified is False
    assert isinstance(again.model, Path)
    assert again.model.read_bytes() == once.read_bytes()
