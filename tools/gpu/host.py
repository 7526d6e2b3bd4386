"""Run the CUDA sources on a machine without a GPU: what can be known before there is one.

    python tools/gpu/host.py [--sanitize] [--skip-sessions]

Builds the stand-in of native/tests/cuda_host, which runs every kernel as fibers in a shuffled order, and judges it as
run.py judges a GPU; then runs tests/kernel in ONNX Runtime with the operators of the GPU, over groups by the host and
by a stand-in of NCCL. --sanitize: once more under AddressSanitizer and UndefinedBehaviorSanitizer. It says nothing
about CUDA's memory model, about registers, and about speed. Exit code: 0 if all is well.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from library_build import NATIVE, ROOT, build, build_for_the_host

FOLDER = Path(tempfile.gettempdir()) / "bnpass-cuda-host"
VERIFY = Path(__file__).with_name("verify.py")
FAKE_NCCL = NATIVE / "tests" / "cuda_host" / "fake_nccl.cpp"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sanitize", action="store_true")
    parser.add_argument("--skip-sessions", action="store_true")
    arguments = parser.parse_args()
    fast, _ = build_for_the_host(FOLDER / "fast", fast_double=True)
    slow, _ = build_for_the_host(FOLDER / "slow", fast_double=False)
    # One processor and many: few splits and many of them.
    codes = [
        run([sys.executable, str(VERIFY), str(library)], {"BNPASS_HOST_PROCESSORS": processors})
        for library in (fast, slow)
        for processors in ("1", "40")
    ]
    if arguments.sanitize:
        codes.append(under_sanitizers())
    if not arguments.skip_sessions:
        codes += sessions(fast)
    return int(any(codes))


def under_sanitizers() -> int:
    """Judge a build with sanitizers; they have to be loaded before Python's own libraries."""
    options = ("-DBNPASS_CUDA=OFF", "-DBNPASS_CUDA_HOST=ON", "-DBNPASS_SANITIZE=address,undefined")
    library, _ = build(FOLDER / "sanitized", "bnpass_ort_cuda_host", *options)
    preload = " ".join(path_of(name) for name in ("libasan.so", "libstdc++.so"))
    environment = {
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0",
        "BNPASS_HOST_PROCESSORS": "40",
        "UBSAN_OPTIONS": "halt_on_error=1",
    }
    return run([sys.executable, str(VERIFY), str(library), "--every", "2"], environment)


def path_of(name: str) -> str:
    """Return where the compiler has a library."""
    found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def sessions(library: Path) -> list[int]:
    """Run the operators in ONNX Runtime."""
    fake = FOLDER / "libnccl.so.2"
    subprocess.run(["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-o", str(fake), str(FAKE_NCCL)], check=True)
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly"]
    over_nccl = {"BNPASS_NCCL_LIBRARY": str(fake), "PYTHONPATH": f"{ROOT}:{VERIFY.parent}"}
    where = {"BNPASS_LIBRARY": str(library)}
    names = ("test_nodes.py", "test_replicas.py", "test_threads.py")
    return [
        run([*pytest, *(f"tests/kernel/{name}" for name in names)], where),
        run([*pytest, "-p", "nccl_stand_in", "tests/kernel/test_replicas.py"], where | over_nccl),
    ]


def run(command: list[str], environment: dict[str, str]) -> int:
    print(*(f"{name}={value}" for name, value in environment.items()), *command, flush=True)
    return subprocess.run(command, check=False, cwd=ROOT, env=os.environ | environment).returncode


if __name__ == "__main__":
    sys.exit(main())
