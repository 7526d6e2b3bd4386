"""Files of `models/zoo.py`, built once into a folder and found there afterwards."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import ROOT, say

TIME_LIMIT_S = 900.0
"""For one build; the slowest takes about a minute on two idle cores."""


def zoo_file(folder: Path, family: str, *, keep_bn: bool, small: bool) -> Path:
    """Return the file of a family; build it if it is not there yet.

    Args:
        folder: Where such files are kept.
        family: A name that `models/zoo.py` lists.
        keep_bn: The variant in which every batch normalization is one node.
        small: At the family's small image size, in place of the one that it was made for.

    Raises:
        RuntimeError: It cannot be built; TensorFlow is needed for that (`pip install "bnpass[keras]"`).
    """
    home = folder / ("small" if small else "full")
    target = home / f"{family}{'_bn' if keep_bn else ''}.onnx"
    if target.exists():
        return target
    say(f"building {target.stem} ({home.name})")
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home) as unfinished:
        options = [*(["--keep-bn"] if keep_bn else []), *(["--small"] if small else [])]
        made = subprocess.run(
            [sys.executable, ROOT / "models" / "zoo.py", family, *options, "-o", unfinished],
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT_S,
            check=False,
        )
        built = Path(unfinished, target.name)
        if made.returncode or not built.exists():
            raise RuntimeError(f"{target.stem} could not be built: {(made.stdout + made.stderr).strip()[-400:]}")
        built.replace(target)
    return target
