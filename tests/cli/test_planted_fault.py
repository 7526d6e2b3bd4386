"""A fold that is wrong is caught before anything is written, by each of the two checks alone."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from bnpass.api.fold import fold
from bnpass.errors import VerificationError
from bnpass.folding.linear_check import LinearCheck
from bnpass.folding.options import FoldOptions
from bnpass.semantics.affine import Array, WeightFold
from tests.cli import models
from tests.cli.command import Call
from tests.cli.conftest import Folder
from tests.cli.models import ops_of, written


def without_shift(planned: WeightFold, bias: Array | None, weight: Array, gain: float = 1.0) -> Array:
    """Forget the shift: what a folder that drops the mean computes."""
    del weight, gain
    inner = np.zeros(1, planned.out.scale.dtype) if bias is None else bias
    return np.asarray(planned.out.scale * inner)


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WeightFold, "bias", without_shift)


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch the local check of linear ops off."""

    def finish(*_: Any) -> float:  # Any: whatever it is given
        return 0.0

    monkeypatch.setattr(LinearCheck, "finish", finish)


@pytest.mark.usefixtures("fault")
@pytest.mark.parametrize("words", [(), ("--check", 0), ("--in-place",), ("--dry-run",)], ids=str)
def test_the_local_check_catches_it(folder: Folder, words: tuple[object, ...]) -> None:
    source = written(folder.path, models.conv_bn())
    report = folder.path / "r.json"
    said = ("local check failed at Conv 'conv'", "nothing was written, please report this")
    folder.refuses(1, ("fold", source, "--report", report, *words), *said)


@pytest.mark.usefixtures("fault", "blind")
@pytest.mark.parametrize("words", [(), ("--in-place",), ("--check", 1)], ids=str)
@pytest.mark.parametrize("external", [False, True], ids=["inline", "external"])
def test_the_whole_model_check_catches_it(folder: Folder, words: tuple[object, ...], external: bool) -> None:
    source = models.external(folder.path) if external else written(folder.path, models.conv_bn())
    report = folder.path / "r.json"
    ran = folder.refuses(1, ("fold", source, "--report", report, *words), "y", "seed 0", "nothing was written")
    assert "x:1,3,8,8" in ran.err  # the sizes, so that it can be repeated


@pytest.mark.usefixtures("fault", "blind")
def test_with_both_checks_off_the_fault_goes_through(call: Call, tmp_path: Path) -> None:
    """The fault is real: nothing else stands in its way."""
    assert call("fold", written(tmp_path, models.conv_bn()), "--check", 0).code == 0
    assert ops_of(tmp_path / "m.folded.onnx") == ["Conv"]
    assert call("verify", tmp_path / "m.onnx", tmp_path / "m.folded.onnx").code == 1


@pytest.mark.usefixtures("blind")
def test_with_the_local_check_off_a_right_fold_goes_through(call: Call, tmp_path: Path) -> None:
    assert call("fold", written(tmp_path, models.conv_bn())).code == 0


@pytest.mark.usefixtures("fault", "blind")
def test_the_api_returns_nothing_wrong(tmp_path: Path) -> None:
    built = models.conv_bn()
    with pytest.raises(VerificationError):
        fold(built, FoldOptions(check=1))
    assert [node.op_type for node in built.graph] == ["Conv", "BatchNormalization"]
    proto = onnx.load(written(tmp_path, built))
    before = proto.SerializeToString()
    with pytest.raises(VerificationError):
        fold(proto, FoldOptions(check=1))
    assert proto.SerializeToString() == before
