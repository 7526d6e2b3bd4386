"""Verify and time the CUDA kernels on the GPU of this machine.

    python tools/gpu/run.py [--quick] [--skip-benchmark] [--library LIBRARY]

Builds libbnpass_ort_cuda.so for this GPU alone, judges every kernel by float64 NumPy, runs the operators in ONNX
Runtime's CUDA provider where there is one, runs compute-sanitizer and the benchmark, and writes docs/gpu/<device>.json
and docs/gpu/README.md. Exit code: 0 if all is well, 1 if a result is wrong, 2 if there is no GPU.
"""

import argparse
import dataclasses
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import report
from library_build import ROOT, BuildError, build_for_this_gpu


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small cases alone")
    parser.add_argument("--skip-benchmark", action="store_true")
    parser.add_argument("--library", type=Path, help="a library that is built already")
    arguments = parser.parse_args()
    if not has_gpu():
        print("There is no NVIDIA GPU on this machine (nvidia-smi finds none).", file=sys.stderr)
        return 2
    folder = Path(tempfile.gettempdir()) / "bnpass-gpu-build"
    try:
        library, seconds = (arguments.library, 0.0) if arguments.library else build_for_this_gpu(folder)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{library}: built in {seconds:.0f} s")
    found = examine(library, arguments.quick, arguments.skip_benchmark)
    for failure in found["failures"]:
        print(failure)
    print(f"{report.write(found['device'], found)}: {found['cases']} cases, {len(found['failures'])} failures")
    dirty = [tool for tool, result in found["sanitizer"].items() if result != "clean"]
    return 1 if found["failures"] or dirty or "failed" in found["onnxruntime"] else 0


def has_gpu() -> bool:
    """Return whether nvidia-smi lists a GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    done = subprocess.run([program, "-L"], capture_output=True, text=True, check=False)
    return done.returncode == 0 and "GPU 0" in done.stdout


def examine(library: Path, quick: bool, skip_benchmark: bool) -> dict[str, Any]:
    """Return everything that is found out about a library."""
    from benchmark import benchmark, copy_bandwidth
    from cases import large_cases, small_cases
    from device import Device
    from sanitize import sanitize
    from sessions import run_sessions
    from verify import Findings, verify

    device = Device(library)
    cases = small_cases() + ([] if quick else large_cases())
    findings = Findings()
    for case, so_far in verify(device, cases):
        findings = so_far
        print(f"\r{case}"[:110].ljust(110), end="", flush=True)
    print()
    return {
        "device": device.name,
        "capability": f"{device.info.major}.{device.info.minor}",
        "processors": device.info.processors,
        "l2": device.info.l2,
        "when": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "cases": len(cases),
        "failures": findings.failures,
        "worst": findings.worst,
        "onnxruntime": run_sessions(library),
        "sanitizer": {} if quick else sanitize(library),
        "copy": copy_bandwidth(device),
        "times": [] if skip_benchmark else [dataclasses.asdict(time) for time in benchmark(device)],
    }


def commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
