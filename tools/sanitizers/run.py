"""Build the kernels with AddressSanitizer, UBSan and ThreadSanitizer, and run their tests with each.

    python tools/sanitizers/run.py [--only thread] [--write]

The test programs (`runtime/native/tests`) run with all three: kernels of every instruction set on several threads, and
groups of threads with faults. `tests/kernel` runs inside Python and ONNX Runtime, which have no sanitizer of their own,
with the first two; ThreadSanitizer would have to see every thread of ONNX Runtime. Exit code: 1 if one complained.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "bnpass" / "runtime" / "native"
RESULTS = Path(__file__).with_name("RESULTS.md")
PROGRAMS = ("cpu_check", "group_check")
STOP = {
    "address": {"ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1"},  # Python keeps memory until the end
    "undefined": {"UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"},
    "thread": {"TSAN_OPTIONS": "halt_on_error=1"},
}
RUNTIME = {"address": "libasan.so", "undefined": "libubsan.so"}
"""What has to be in the process before Python: it is linked into the library alone."""
NOT_HERE = "not endurance"
"""A sanitizer keeps what was freed, so memory grows."""


@dataclass(frozen=True)
class Outcome:
    """One run under one sanitizer."""

    sanitizer: str
    what: str
    seconds: float
    complaint: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=STOP, action="append", help="one sanitizer; may be given more than once")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    arguments = parser.parse_args()
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        for sanitizer in arguments.only or STOP:
            for outcome in _under(sanitizer, Path(folder) / sanitizer):
                print(f"{outcome.sanitizer}: {outcome.what}: {outcome.complaint or 'clean'} ({outcome.seconds:.0f} s)")
                outcomes.append(outcome)
    if arguments.write:
        RESULTS.write_text(_table(outcomes), encoding="utf-8")
    return int(any(outcome.complaint for outcome in outcomes))


def _under(sanitizer: str, folder: Path) -> Iterator[Outcome]:
    configure = ["cmake", "-S", str(NATIVE), "-B", str(folder), "-G", "Ninja", "-DBNPASS_CUDA=OFF",
                 "-DBNPASS_TESTS=ON", f"-DBNPASS_SANITIZE={sanitizer}"]  # fmt: skip
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["ninja", "-C", str(folder)], check=True, stdout=subprocess.DEVNULL)
    for program in PROGRAMS:
        yield _run(sanitizer, program, [str(folder / "tests" / program)], {})
    if sanitizer in RUNTIME:
        tests = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", NOT_HERE,
                 str(ROOT / "tests" / "kernel")]  # fmt: skip
        more = {"BNPASS_LIBRARY": str(folder / "libbnpass_ort.so"), "LD_PRELOAD": _runtime_of(sanitizer)}
        yield _run(sanitizer, "tests/kernel", tests, more)


def _runtime_of(sanitizer: str) -> str:
    """Return the sanitizer's own library, and the C++ library, whose exceptions it has to see from the start."""
    names = (RUNTIME[sanitizer], "libstdc++.so")
    asked = (["g++", f"-print-file-name={name}"] for name in names)
    return ":".join(subprocess.run(a, check=True, capture_output=True, text=True).stdout.strip() for a in asked)


def _run(sanitizer: str, what: str, command: list[str], more: dict[str, str]) -> Outcome:
    begun = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **STOP[sanitizer], **more}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begun
    if found.returncode == 0:
        return Outcome(sanitizer, what, seconds, "")
    sys.stderr.write(found.stdout[-4000:] + found.stderr[-8000:])
    said = [line for line in (found.stderr + found.stdout).splitlines() if "ERROR:" in line or "runtime error" in line]
    return Outcome(sanitizer, what, seconds, (said or [f"exit code {found.returncode}"])[0].strip())


def _table(outcomes: list[Outcome]) -> str:
    compiler = subprocess.run(["g++", "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]
    rows = [f"| {o.sanitizer} | `{o.what}` | {o.complaint or 'clean'} | {o.seconds:.0f} |" for o in outcomes]
    return "\n".join([
        "# Sanitizers", "", f"`python tools/sanitizers/run.py --write`, {compiler}.", "",
        "| sanitizer | run | found | seconds |", "|---|---|---|---:|", *rows, "",
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
