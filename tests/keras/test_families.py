"""Architectures of keras.applications, exported with tf2onnx: nothing foldable is left, nothing else has changed."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from filelock import FileLock

from bnpass.api.fold import fold
from bnpass.folding.options import FoldOptions
from tests.support.leftovers import leftovers

ROOT = Path(__file__).resolve().parents[2]

FAMILIES = [
    "DenseNet121",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "InceptionV3",
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Small",
    "NASNetMobile",
    "RegNetX002",
    "RegNetY002",
    "ResNet50",
    "ResNet50V2",
    "Xception",
]
AS_USERS_GET_IT = ["EfficientNetB0", "MobileNet", "MobileNetV2", "ResNet50"]
CASES = [(name, "--keep-bn") for name in FAMILIES] + [(name, "") for name in AS_USERS_GET_IT]

pytestmark = [pytest.mark.keras, pytest.mark.parametrize(("family", "variant"), CASES, scope="module")]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[[str, str], Path]:
    """Build a family once, for all test processes, and in one of its own: TensorFlow fills memory and warns a lot."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "zoo"
    folder.mkdir(exist_ok=True)

    def build(family: str, variant: str) -> Path:
        target = folder / f"{family}{'_bn' if variant else ''}.onnx"
        with FileLock(folder / f"{target.stem}.lock"):
            if not target.exists():
                command = [sys.executable, str(ROOT / "models" / "zoo.py"), family, "--small", "-o", str(folder)]
                run = subprocess.run([*command, *variant.split()], capture_output=True, text=True, check=False)
                assert run.returncode == 0, (run.stdout + run.stderr)[-2000:]
        return target

    return build


def test_folds_all_that_stands_next_to_a_linear_op_and_keeps_the_outputs(
    built: Callable[[str, str], Path], family: str, variant: str, tmp_path: Path
) -> None:
    source = built(family, variant)
    assert list(leftovers(onnx.load(source))), "there is something to fold"

    result = fold(source, FoldOptions(check=2), output=tmp_path / "folded.onnx")

    whole = result.report.checks[-1]
    assert (whole.name, whole.ran) == ("whole model", True)
    assert whole.details is not None
    assert whole.details["reference"].startswith("float64"), "judged by the bound, against float64"
    assert list(leftovers(onnx.load(tmp_path / "folded.onnx"))) == []


def test_a_second_fold_changes_nothing(built: Callable[[str, str], Path], family: str, variant: str) -> None:
    once = fold(onnx.load(built(family, variant)), FoldOptions(check=0)).model
    twice = fold(once, FoldOptions(check=0))
    assert not twice.modified
    assert isinstance(once, onnx.ModelProto)
    assert isinstance(twice.model, onnx.ModelProto)
    assert twice.model.SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)


def test_output_bytes_do_not_depend_on_the_run(
    built: Callable[[str, str], Path], family: str, variant: str, tmp_path: Path
) -> None:
    digests = set()
    for seed in ("0", "1"):
        target = tmp_path / f"{seed}.onnx"
        command = [sys.executable, "-m", "bnpass", "fold", str(built(family, variant)), "-o", str(target), "--quiet"]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([*command, "--check", "0"], check=True, cwd=ROOT, env=environment)
        digests.add(hashlib.sha256(target.read_bytes()).hexdigest())
    assert len(digests) == 1
