"""`models/reparam.py`: every family has the branches it claims, and a small trained one folds to the same outputs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from bnpass.api.fold import fold
from bnpass.folding.options import FoldOptions

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "models" / "reparam.py"

BRANCHES = {
    "RepVGGA0": (6 * 2, 2),
    "MobileOneS0": (5 + 4 * (5 + 4), 2 + 2),
    "RepGhost050": (1 + 4 * (2 * 2) + 2 * (1 + 2) + 2 * 2, 4 * 2 - 2 * 2),
    "FastViTT8": (2 + 2 + 1 + (2 + 3) + 3 + (2 + 3) + 2, 1 + 2 * 2 + 1 - 2 * 2),
    "DBBResNet18": (1 + 4 * 5 + 1, 4),
    "ACNetResNet18": (1 + 4 * 3 + 1, 0),
    "YOLOv6N": (2 * (1 + 3 + 4) + 2, 4),
}
"""Of the small networks: convolutions, and batch normalizations beyond one for each of them.

The convolutions of squeeze-and-excite, and the pointwise ones of a feed-forward network, have none.
"""

pytestmark = pytest.mark.keras


def run(*arguments: str | Path) -> str:
    """Run Python in a process of its own: TensorFlow fills memory and warns a lot."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    return done.stdout


COUNT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import reparam

def count(name):
    kinds = [type(layer).__name__ for layer in reparam.network(name, small=True).layers]
    return sum("Conv2D" in kind for kind in kinds), kinds.count("BatchNormalization")

print(json.dumps({name: count(name) for name in reparam.FAMILIES}))
"""


def test_every_family_has_its_branches() -> None:
    found = json.loads(run("-c", COUNT, PROGRAM.parent).splitlines()[-1])
    assert {name: (convs, norms - convs) for name, (convs, norms) in found.items()} == BRANCHES


def test_a_trained_one_is_exported_with_its_branches_and_folds(tmp_path: Path) -> None:
    run(PROGRAM, "ACNetResNet18", "--small", "-o", tmp_path)
    graph = onnx.load(tmp_path / "ACNetResNet18.onnx").graph
    known = {tensor.name: np.frombuffer(tensor.raw_data, np.float32) for tensor in graph.initializer}
    norms = [node for node in graph.node if node.op_type == "BatchNormalization"]
    convs, more = BRANCHES["ACNetResNet18"]
    assert len(norms) == convs + more
    for norm in norms:
        mean, variance = (known[name] for name in norm.input[3:])
        assert np.abs(mean).max() > 1e-3, "moved by training"
        assert np.abs(variance - 1).max() > 1e-2

    result = fold(tmp_path / "ACNetResNet18.onnx", FoldOptions(check=1), output=tmp_path / "folded.onnx")

    assert result.modified
    folded = onnx.load(tmp_path / "folded.onnx").graph
    assert not any(node.op_type == "BatchNormalization" for node in folded.node)
