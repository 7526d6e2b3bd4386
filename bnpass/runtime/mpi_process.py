"""This Python process as a process of MPI: which library it takes, and how it ends.

``MPI_Finalize`` waits for all processes. One that ends by an exception while others wait for it in a collective would
hang there for ever (mpi4py's documentation says so of its own), so it ends the job instead.
"""

import atexit
import os
import site
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from bnpass.errors import UsageError
from bnpass.runtime.native_library import NativeLibrary

if TYPE_CHECKING:
    from mpi4py import MPI

_MPICH = ("libmpi.so.12", "libmpi_abi.so.1")
_OPEN_MPI = ("libmpi.so.40",)


def libraries() -> list[str]:
    """Return where an MPI may be, best first: those of the launcher's family, installed by pip, then the system's."""
    by_open_mpi = "OMPI_COMM_WORLD_SIZE" in os.environ
    names = _OPEN_MPI + _MPICH if by_open_mpi else _MPICH + _OPEN_MPI
    prefixes = dict.fromkeys((sys.prefix, site.getuserbase()))
    places = {name: [Path(prefix, "lib", name) for prefix in prefixes] for name in names}
    installed = {name: [str(path) for path in paths if path.is_file()] for name, paths in places.items()}
    if by_open_mpi:
        return [path for name in names for path in (*installed[name], name)]
    return [path for name in names for path in installed[name]]


def native_handle(communicator: "MPI.Comm | None") -> int | None:
    """Return the handle of an mpi4py communicator, None for None.

    Raises:
        UsageError: It is no communicator, or one that replicas cannot work in.
    """
    if communicator is None:
        return None
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise UsageError("a communicator is one of mpi4py's, which is not there") from error
    if not isinstance(communicator, MPI.Intracomm) or communicator == MPI.COMM_NULL:
        raise UsageError(f"replicas work in an mpi4py.MPI.Intracomm, not in {communicator!r}")
    return int(MPI._handleof(communicator))  # noqa: SLF001  mpi4py documents it, underscore and all


class _End:
    """What happens to MPI when Python ends."""

    def __init__(self) -> None:
        self._broken = False
        self._natives: list[NativeLibrary] = []

    def add(self, native: NativeLibrary) -> None:
        """Let the use of MPI by a library end with Python."""
        if not self._natives:
            self._next = sys.excepthook
            sys.excepthook = self._on_exception
            atexit.register(self._on_exit)
        if native not in self._natives:
            self._natives.append(native)

    def _on_exception(self, kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        self._broken = not hasattr(sys, "ps1")  # at a prompt, Python goes on
        self._next(kind, error, traceback)

    def _on_exit(self) -> None:
        for stream in (sys.stdout, sys.stderr):  # what is to follow may end the process on the spot
            if stream is not None and not stream.closed:
                stream.flush()
        for native in self._natives:
            native.mpi_end(broken=self._broken)


_end = _End()


def end_with_python(native: NativeLibrary) -> None:
    """Let the use of MPI by a library end in order when Python does."""
    _end.add(native)
