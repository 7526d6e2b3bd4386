"""Start several processes of MPI on this machine, and be sure that none of them is left.

The launcher has to belong to the MPI that the processes load; processes started by another one would each be alone.
"""

import os
import shutil
import signal
import site
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from bnpass.errors import MissingDependencyError, UsageError

__all__ = ["OVERRIDE", "Ended", "Launcher", "find_launcher", "run_ranks"]

OVERRIDE = "BNPASS_MPIEXEC"
"""An environment variable that names the launcher."""

_NAMES = ("mpiexec", "mpirun", "mpiexec.hydra", "mpiexec.mpich", "mpiexec.openmpi")
_FLAVOURS = {"open mpi": "Open MPI", "openrte": "Open MPI", "prrte": "Open MPI", "hydra": "MPICH", "intel": "Intel MPI"}
_OUTER_JOB = ("PMI_", "PMIX_", "OMPI_COMM_", "OMPI_UNIVERSE_", "PRTE_", "HYDI_", "HYDRA_", "MPI_LOCALNRANKS")
"""What tells a process that it is a rank of a job: ours start one of their own."""

_ASK_S = 20.0
_GRACE_S = 3.0
_TAIL = 4000


@dataclass(frozen=True)
class Launcher:
    """An ``mpiexec``.

    Attributes:
        path: Where it is.
        flavour: "MPICH", "Open MPI", "Intel MPI", or "unknown".
        version: The first line it says about its version.
    """

    path: Path
    flavour: str
    version: str

    def command(self, ranks: int) -> list[str]:
        """Return the words that start so many processes on this machine, more than it has cores if need be."""
        words = [str(self.path), "-n", str(ranks)]
        if self.flavour == "Open MPI":
            words += ["--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"]
            if os.geteuid() == 0:  # in containers
                words += ["--allow-run-as-root"]
        return words


@dataclass(frozen=True)
class Ended:
    """How a job ended.

    Attributes:
        code: The launcher's exit code; None if its time was up.
        output: The end of what all processes printed.
    """

    code: int | None
    output: str


def find_launcher() -> Launcher:
    """Return the launcher of the MPI that bnpass loads: beside this Python, else that of the system.

    Raises:
        MissingDependencyError: There is none.
        UsageError: BNPASS_MPIEXEC names something that is none.
    """
    given = os.environ.get(OVERRIDE)
    if given:
        found = _asked(Path(shutil.which(given) or given))
        if found is None:
            raise UsageError(f"{OVERRIDE} names '{given}', which is no mpiexec that runs")
        return found
    for path in _candidates():
        found = _asked(path)
        if found is not None:
            return found
    raise MissingDependencyError("no mpiexec was found, which starts replicas as processes: pip install 'bnpass[mpi]'")


def run_ranks(
    launcher: Launcher, ranks: int, command: Sequence[str], *, timeout_s: float, environment: Mapping[str, str]
) -> Ended:
    """Run a command in so many processes of MPI and wait for them.

    Args:
        launcher: Who starts them.
        ranks: How many.
        command: What each of them is.
        timeout_s: After so many seconds all of them are ended.
        environment: Variables, beside those of this process.

    Returns:
        How it ended; then no process is left.

    Raises:
        UsageError: The launcher cannot be started.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OUTER_JOB)}
    with tempfile.TemporaryFile() as output:
        try:
            # S603: a launcher that was found, and words of this package.
            job = subprocess.Popen(  # noqa: S603
                [*launcher.command(ranks), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**inherited, **environment},
                start_new_session=True,
            )
        except OSError as error:
            raise UsageError(f"{launcher.path} cannot be started: {error.strerror}") from error
        try:
            code: int | None = job.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(job)
        return Ended(code, _tail(output))


def _candidates() -> Iterator[Path]:
    """Yield where a launcher may be; the one beside this Python belongs to the MPI that pip has installed there."""
    override = os.environ.get("BNPASS_MPI_LIBRARY", "")
    prefixes = [Path(override).parent.parent] if "/" in override else []
    prefixes += [Path(sys.prefix), Path(site.getuserbase())]
    for prefix in prefixes:
        for name in _NAMES:
            if (prefix / "bin" / name).is_file():
                yield prefix / "bin" / name
    for name in _NAMES:
        if found := shutil.which(name):
            yield Path(found)


def _asked(path: Path) -> Launcher | None:
    """Ask a launcher who it is; None if it does not answer."""
    try:
        answer = subprocess.run(  # noqa: S603  as above
            [str(path), "--version"], capture_output=True, text=True, timeout=_ASK_S, check=True, errors="replace"
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    flavour = next((name for word, name in _FLAVOURS.items() if word in answer.lower()), "unknown")
    version = next((line for line in lines if any(character.isdigit() for character in line)), "")
    return Launcher(path, flavour, " ".join(version.replace("Version:", flavour).split()))


def _end(job: "subprocess.Popen[bytes]") -> None:
    """End a job with all its processes: by its launcher if that can, so that nobody stays behind unreaped."""
    if job.poll() is None:
        below = _descendants(job.pid)
        for step in (job.terminate, lambda: _kill(below, "ranks"), lambda: _kill(below, "all")):
            step()
            with suppress(subprocess.TimeoutExpired):
                job.wait(_GRACE_S)
                break
        _kill(below, "all")
    with suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGKILL)
    job.wait()


def _kill(below: Mapping[int, "_Process"], who: Literal["ranks", "all"]) -> None:
    """Kill processes; the ranks are those below which there is none."""
    parents = {process.parent for process in below.values()}
    for pid, process in below.items():
        is_meant = who == "all" or pid not in parents
        if is_meant and _process(pid) == process:  # and not another one that got its number
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True)
class _Process:
    parent: int
    started: str


def _descendants(root: int) -> dict[int, _Process]:
    """Return the processes below one: launchers give theirs process groups of their own."""
    everyone = {int(folder.name): _process(int(folder.name)) for folder in Path("/proc").glob("[0-9]*")}
    found: dict[int, _Process] = {}
    pending = [root]
    while pending:
        parent = pending.pop()
        children = {pid: p for pid, p in everyone.items() if p is not None and p.parent == parent and pid not in found}
        found |= children
        pending += children
    return found


def _process(pid: int) -> _Process | None:
    """Return what /proc says about a process; None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = text.rpartition(")")[2].split()  # a name may hold anything
        return _Process(int(fields[1]), fields[19])
    except (OSError, ValueError, IndexError):
        return None


def _tail(output: IO[bytes]) -> str:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(size - _TAIL, 0))
    return output.read().decode(errors="replace").strip()
