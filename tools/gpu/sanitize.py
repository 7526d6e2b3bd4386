"""compute-sanitizer on the small cases: accesses outside of memory, races in shared memory, wrong barriers."""

import shutil
import subprocess
import sys
from pathlib import Path

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
VERIFY = Path(__file__).with_name("verify.py")
EVERY = 5
"""One case in so many: a sanitizer makes kernels slow."""


def sanitize(library: Path) -> dict[str, str]:
    """Return "clean" or the end of the output for each tool; nothing where there is no compute-sanitizer."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        return {}
    found = {}
    for tool in TOOLS:
        command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, str(VERIFY), str(library)]
        done = subprocess.run([*command, "--every", str(EVERY)], capture_output=True, text=True, check=False)
        found[tool] = "clean" if done.returncode == 0 else (done.stdout + done.stderr)[-2000:]
    return found
