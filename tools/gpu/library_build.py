"""Building the CUDA library, or its stand-in for hosts without a GPU, out of the tree."""

import shutil
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "bnpass" / "runtime" / "native"


class BuildError(RuntimeError):
    """What the build said last."""


def build(folder: Path, target: str, *options: str) -> tuple[Path, float]:
    """Build a library; warnings are errors.

    Args:
        folder: Where; what is there already is used again.
        target: "bnpass_ort_cuda" or "bnpass_ort_cuda_host".
        options: For CMake.

    Returns:
        The library and the seconds it took.

    Raises:
        BuildError: It failed.
    """
    begin = time.monotonic()
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    _run(["cmake", "-S", str(NATIVE), "-B", str(folder), *generator, "-DBNPASS_WERROR=ON", *options])
    _run(["cmake", "--build", str(folder), "--target", target, "--parallel"])
    return folder / f"lib{target}.so", time.monotonic() - begin


def build_for_this_gpu(folder: Path) -> tuple[Path, float]:
    """Build the CUDA library for the GPU of this machine alone."""
    return build(folder, "bnpass_ort_cuda", "-DBNPASS_CUDA=ON", "-DBNPASS_CUDA_ARCHITECTURES=native")


def build_for_the_host(folder: Path, fast_double: bool) -> tuple[Path, float]:
    """Build the stand-in, which runs the CUDA sources without CUDA."""
    double = f"-DBNPASS_FAST_DOUBLE={int(fast_double)}"
    return build(folder, "bnpass_ort_cuda_host", "-DBNPASS_CUDA=OFF", "-DBNPASS_CUDA_HOST=ON", double)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{(done.stdout + done.stderr)[-4000:]}")
