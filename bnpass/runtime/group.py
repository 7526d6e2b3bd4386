"""Groups of replicas that add up what they have: alone, threads of one process, or processes of MPI.

A replica holds one ``Groups``: the group ``"world"`` of all replicas, and the sub-groups that it is in. All replicas of
a group meet the same collectives in the same order. If one of them fails, asks for something else or does not come
before the deadline, all of them raise ``CollectiveError``, and that group stays failed.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from bnpass.errors import CollectiveError, MissingDependencyError, UsageError
from bnpass.runtime.native_library import Handle, NativeLibrary, native_library

if TYPE_CHECKING:
    from mpi4py import MPI

    from bnpass.runtime.library import Library

__all__ = ["WORLD", "Groups", "local", "mpi", "threads"]

WORLD = "world"
"""The name of the group of all replicas."""

DEADLINE_S = 60.0
"""How long a replica waits for the others in one collective."""

_NONE: Mapping[str, Sequence[int]] = MappingProxyType({})

_ELEMENTS = {
    np.dtype(np.float32): 1,
    np.dtype(np.int64): 7,
    np.dtype(np.float16): 10,
    np.dtype(np.float64): 11,
    np.dtype(ml_dtypes.bfloat16): 16,
}
"""Numbers of ONNX types."""


class Groups:
    """The groups of one replica. Made by :func:`local`, :func:`threads` and :func:`mpi`.

    Attributes:
        names: The groups that this replica is in, ``"world"`` first; a replica that is alone is in groups of any name.
        library: Which library they belong to, "cpu" or "cuda"; sessions with these groups use the same one.
    """

    def __init__(self, native: NativeLibrary, handle: Handle, names: Sequence[str], library: "Library") -> None:
        self.names = tuple(names)
        self.library = library
        self._native = native
        self._handle: Handle | None = handle
        self._free = weakref.finalize(self, native.free, handle)
        self._free.atexit = False  # the process takes its memory with it

    @property
    def rank(self) -> int:
        """Number of this replica in the world."""
        return self.rank_in(WORLD)

    @property
    def size(self) -> int:
        """Number of replicas in the world."""
        return self.size_of(WORLD)

    def rank_in(self, group: str) -> int:
        """Return the number of this replica in a group; raises UsageError if it is not in it."""
        return self._native.rank(self._open(), group)

    def size_of(self, group: str) -> int:
        """Return the number of replicas in a group; raises UsageError if this one is not in it."""
        return self._native.size(self._open(), group)

    def all_reduce(
        self, array: ArrayLike, reduction: str = "sum", *, group: str = WORLD, collective_id: int = 0
    ) -> NDArray[Any]:
        """Return the sum, mean, maximum or minimum over the replicas of a group: the same bits on all of them.

        Args:
            array: float16, bfloat16, float32, float64 or int64, of the same type and size on all replicas. float16
                and bfloat16 are summed in float32 and rounded once.
            reduction: "sum", "mean" (not of int64), "max" or "min" (NaN if any value is).
            group: A name out of ``names``.
            collective_id: A number that all replicas give to this call.

        Returns:
            A new array, of the shape and type of ``array``.

        Raises:
            CollectiveError: On all replicas, if they disagree, one failed, or one did not come before the deadline.
            UsageError: This replica is not in the group, or is closed.
        """
        source = np.ascontiguousarray(array)
        element = _ELEMENTS.get(source.dtype)
        if element is None:
            self.fail(f"there is no all-reduce of {source.dtype} arrays", group=group, collective_id=collective_id)
        result = np.empty_like(source)
        addresses = (source.ctypes.data, result.ctypes.data)
        self._native.all_reduce(
            self._open(), group, collective_id, "Groups.all_reduce", element, reduction, addresses, source.size
        )
        return result.reshape(np.shape(array))

    def fail(self, failure: str, *, group: str = WORLD, collective_id: int = 0) -> NoReturn:
        """Take part in the next collective of a group only to tell the others that this replica cannot.

        Args:
            failure: Why, one sentence: what all of them raise.
            group: A name out of ``names``.
            collective_id: The number of that collective.

        Raises:
            CollectiveError: Always, on all replicas of the group; UsageError where this replica is alone.
        """
        self._native.fail(self._open(), group, collective_id, "Groups.fail", failure)
        raise CollectiveError(failure)

    @contextmanager
    def in_use(self) -> Iterator[Self]:
        """Hand these groups to the kernels that this thread registers inside."""
        self._native.use(self._open())
        try:
            yield self
        finally:
            self._native.use(None)

    def close(self) -> None:
        """Let go of the groups; sessions that were made with them keep theirs. A second call changes nothing."""
        self._handle = None
        self._free()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> Handle:
        if self._handle is None:
            raise UsageError("these groups are closed")
        return self._handle


def local(*, library: "Library" = "cpu") -> Groups:
    """Return the groups of a replica that is alone: a group of any name is this replica.

    Raises:
        MissingDependencyError: The kernel library was not built.
    """
    native = native_library(library)
    return Groups(native, native.local(), (WORLD,), library)


def threads(
    count: int,
    *,
    deadline: float = DEADLINE_S,
    groups: Mapping[str, Sequence[int]] = _NONE,
    library: "Library" = "cpu",
) -> tuple[Groups, ...]:
    """Return the groups of replicas that are threads of this process, in rank order; each belongs to one thread.

    A replica whose groups are closed, or forgotten, has left: the others do not wait for it.

    Args:
        count: Number of replicas.
        deadline: Seconds that a replica waits for the others in one collective.
        groups: Names of sub-groups, and which replicas are in them.
        library: "cpu" or "cuda": of the sessions that these groups are for.

    Raises:
        MissingDependencyError: The kernel library was not built.
        UsageError: The count, the deadline or a sub-group cannot be.
    """
    native = native_library(library)
    handles = native.threads(count, deadline, groups)
    return tuple(Groups(native, handle, _names(groups, rank), library) for rank, handle in enumerate(handles))


def mpi(
    *,
    groups: Mapping[str, Sequence[int]] = _NONE,
    deadline: float = DEADLINE_S,
    communicator: "MPI.Comm | None" = None,
    library: "Library" = "cpu",
) -> Groups:
    """Return the groups of this process among the processes of MPI. All of them must call it, with the same arguments.

    Taken is the MPI that already runs in the process (mpi4py's, say), else the one that the environment variable
    BNPASS_MPI_LIBRARY names, else one that pip has installed beside this Python, else one of the system. If it does
    not run yet, it is initialized here, and finalized when Python ends. If this process ends by an uncaught exception,
    or while a collective has not ended, it ends the whole job, lest the others wait for it.

    Args:
        groups: Names of sub-groups, and which ranks are in them.
        deadline: Seconds that a replica waits for the others in one collective.
        communicator: A communicator of mpi4py to be the world; None: all processes.
        library: "cpu" or "cuda": of the sessions that these groups are for.

    Raises:
        MissingDependencyError: There is no MPI, or the kernel library was not built.
        UsageError: The deadline or the communicator cannot be, or mpiexec belongs to another MPI.
        CollectiveError: A sub-group cannot be, or the processes disagree about them.
    """
    from bnpass.runtime.mpi_process import end_with_python, libraries, native_handle

    native = native_library(library)
    end_with_python(native)
    try:
        handle = native.mpi(libraries(), native_handle(communicator), deadline, groups)
    except MissingDependencyError as error:
        raise MissingDependencyError(f"MPI is needed: pip install 'bnpass[mpi]' ({error})") from error
    return Groups(native, handle, _names(groups, native.rank(handle, WORLD)), library)


def _names(groups: Mapping[str, Sequence[int]], rank: int) -> list[str]:
    return [WORLD, *(name for name, members in groups.items() if rank in members)]
