"""Files of `models/reparam.py` and `models/torch_nets.py`, built once into a folder and found there afterwards.

The networks of PyTorch are built by an interpreter that has torch and onnx: that of `BNPASS_BENCH_TORCH`, or this one.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from capability import WRONG
from measure import ROOT, say

REPARAM = ("RepVGGA0", "MobileOneS0", "RepGhost050", "FastViTT8", "DBBResNet18", "ACNetResNet18", "YOLOv6N")
TORCH = ("ResNet18", "DenseNet121", "MobileOneS0", "RepVGGA0")
"""Those that the two programs list (this file cannot import them: it must stay small)."""
TIME_LIMIT_S = 1800.0
"""For one build; the slowest takes a minute or two on two idle cores."""


def reparam_file(folder: Path, name: str) -> Path:
    """Return a full-size network of `models/reparam.py`; build it if it is not there yet.

    Raises:
        RuntimeError: It cannot be built; TensorFlow is needed for that.
    """
    return _file(folder / "reparam" / f"{name}.onnx", [sys.executable, str(ROOT / "models" / "reparam.py")])


def torch_file(folder: Path, name: str) -> Path:
    """Return a network of `models/torch_nets.py`; build it if it is not there yet.

    Raises:
        RuntimeError: It cannot be built (torch and onnx are needed for that), or ONNX Runtime answers something else.
    """
    python = os.environ.get("BNPASS_BENCH_TORCH", sys.executable)
    return _file(folder / "torch" / f"{name}.onnx", [python, str(ROOT / "models" / "torch_nets.py")])


def _file(target: Path, program: list[str]) -> Path:
    if target.exists():
        return target
    say(f"building {target.stem} ({target.parent.name})")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as unfinished:
        made = subprocess.run(
            [*program, target.stem, "-o", unfinished],
            env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"},
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT_S,
            check=False,
        )
        built = Path(unfinished, target.name)
        if made.returncode or not built.exists():
            raise RuntimeError(f"{target.stem} could not be built: {(made.stdout + made.stderr).strip()[-400:]}")
        if (answers := built.with_suffix(".npz")).exists():
            _compare(built, answers)
        built.replace(target)
    return target


def _compare(built: Path, answers: Path) -> None:
    """Hold a file against what the framework answered."""
    judge = [sys.executable, str(Path(__file__).with_name("judge.py")), str(built), "--expect", str(answers)]
    found = json.loads(subprocess.run(judge, capture_output=True, text=True, check=True).stdout)
    if not found.get("difference", float("inf")) <= WRONG:
        raise RuntimeError(f"{built.stem} does not compute what its framework does: {found}")
