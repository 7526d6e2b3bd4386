"""The operators in ONNX Runtime's CUDA provider: the suite of tests/kernel, with the CUDA library."""

import os
import subprocess
import sys
from pathlib import Path

from library_build import ROOT

TESTS = ROOT / "tests" / "kernel" / "test_nodes.py"


def run_sessions(library: Path) -> str:
    """Return what became of them, in a sentence."""
    try:
        import onnxruntime
    except ImportError:
        return "not installed"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return f"{onnxruntime.__version__}, without CUDA"
    paths = f"{ROOT}:{Path(__file__).parent}"
    environment = {**os.environ, "BNPASS_LIBRARY": str(library), "PYTHONPATH": paths}
    command = [sys.executable, "-m", "pytest", "-p", "cuda_provider", str(TESTS), "-q", "--no-header"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    last = done.stdout.strip().splitlines()[-1:] or [done.stderr.strip()[-200:]]
    return f"{onnxruntime.__version__}, {last[0]}"
