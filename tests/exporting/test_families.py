"""Architectures of keras.applications: a node for every call of batch normalization, Keras's logits, few Transposes.

Where Keras 3 and tf_keras both have a family, one of them builds it; MobileNet and MobileNetV3Small are built by both.
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from filelock import FileLock

from bnpass.api.fold import fold
from bnpass.folding.options import FoldOptions
from bnpass.ops import DOMAIN
from tests.conformance.layers.oracle.batches import ROOT
from tests.support.leftovers import leftovers

TOLERANCE = 1e-3
"""Largest difference, relative to the largest logit: that of ``models/zoo.py``, which builds the same networks."""

FAMILIES = [
    ("DenseNet121", "keras"),
    ("EfficientNetB0", "keras"),
    ("EfficientNetV2B0", "tf_keras"),
    ("InceptionV3", "tf_keras"),
    ("MobileNet", "keras"),
    ("MobileNet", "tf_keras"),
    ("MobileNetV2", "tf_keras"),
    ("MobileNetV3Small", "keras"),
    ("MobileNetV3Small", "tf_keras"),
    ("NASNetMobile", "keras"),
    ("RegNetX002", "tf_keras"),
    ("RegNetY002", "tf_keras"),
    ("ResNet50", "keras"),
    ("ResNet50V2", "tf_keras"),
    ("Xception", "keras"),
]
UNTRAINED = [("MobileNetV3Small", "keras.untrained"), ("MobileNetV3Small", "tf_keras.untrained")]
TRANSPOSES = 2
"""At most: that of the image, and one more. tf2onnx alone leaves 106 in MobileNetV3Small whose biases are 0."""

pytestmark = pytest.mark.keras

Built = Callable[[str, str], Path]
every_family = pytest.mark.parametrize(("family", "kind"), FAMILIES, scope="module")


@pytest.fixture(scope="module")
def built(shared_folder: Path) -> Built:
    """Build the families of one framework once, for all test processes, in one of its own: TensorFlow warns a lot."""
    folder = shared_folder / "families"
    folder.mkdir(exist_ok=True)

    def build(family: str, kind: str) -> Path:
        framework = kind.partition(".")[0]
        with FileLock(folder / f"{framework}.lock"):
            if not (folder / f"{framework}.done").exists():
                _build_all(framework, folder)
        target = folder / f"{family}.{kind}.onnx"
        error = target.with_suffix(".error")
        assert not error.exists(), error.read_text(encoding="utf-8")[-3000:]
        return target

    return build


def _build_all(framework: str, folder: Path) -> None:
    kinds = [family for family, kind in FAMILIES if kind == framework]
    kinds += [f"{family}.untrained" for family, kind in UNTRAINED if kind == f"{framework}.untrained"]
    command = [sys.executable, str(Path(__file__).with_name("build_family.py")), framework, str(folder), *kinds]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert run.returncode == 0, run.stderr[-2000:]
    (folder / f"{framework}.done").touch()


@every_family
def test_every_call_of_batch_normalization_is_a_node(built: Built, family: str, kind: str) -> None:
    source = built(family, kind)
    nodes = Counter((node.domain, node.op_type) for node in onnx.load(source).graph.node)
    assert nodes["", "BatchNormalization"] == json.loads(source.with_suffix(".json").read_text())["calls"]
    assert {domain for domain, _ in nodes} <= {"", DOMAIN}
    assert nodes[DOMAIN, "SyncBatchNormalization"] == 0, "inference needs no operator of ours"


@every_family
def test_onnx_runtime_computes_the_logits_of_keras(built: Built, family: str, kind: str) -> None:
    source = built(family, kind)
    computes(source, source)


@pytest.mark.parametrize(("family", "kind"), [*FAMILIES, *UNTRAINED])
def test_transposes_cancel_across_batch_normalization(built: Built, family: str, kind: str) -> None:
    ops = Counter(node.op_type for node in onnx.load(built(family, kind)).graph.node)
    assert ops["Transpose"] <= TRANSPOSES


@every_family
def test_fold_takes_in_all_that_stands_next_to_a_linear_op(
    built: Built, family: str, kind: str, tmp_path: Path
) -> None:
    source, folded = built(family, kind), tmp_path / "folded.onnx"
    assert list(leftovers(onnx.load(source))), "there is something to fold"
    fold(source, FoldOptions(check=0), output=folded)
    assert list(leftovers(onnx.load(folded))) == []
    computes(folded, source)


def computes(model: Path, source: Path) -> None:
    """Assert that a file gives the logits that Keras gave when its source was exported."""
    # plain execution judges the file: an optimization of ONNX Runtime 1.31 is wrong for ResNet50V2 (models/zoo.py)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    with np.load(source.with_suffix(".npz")) as arrays:
        images, expected = arrays["images"], arrays["expected"]
    (found,) = session.run(None, {given.name: images})
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()
