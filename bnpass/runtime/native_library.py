"""The C interface of the kernel library (``native/collective/c_interface.h``), by ctypes."""

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache

from bnpass.errors import BnpassError, CollectiveError, MissingDependencyError, UsageError
from bnpass.runtime.library import Library, get_library_path

Handle = int
"""Address of a ``bnpass_groups``."""

_OK, _INVALID_ARGUMENT, _NOT_IMPLEMENTED = 0, 2, 9

_FUNCTIONS = {
    "bnpass_groups_local": "p",
    "bnpass_groups_threads": "idpp",
    "bnpass_groups_mpi": "nppdpp",
    "bnpass_use_groups": "p",
    "bnpass_group_rank": "psp",
    "bnpass_group_size": "psp",
    "bnpass_all_reduce": "pslsisppn",
    "bnpass_group_fail": "pslss",
}
"""Arguments of each function that returns a status, a letter each: see ``_TYPES``."""

_TYPES = {
    "p": ctypes.c_void_p,
    "i": ctypes.c_int,
    "d": ctypes.c_double,
    "n": ctypes.c_size_t,
    "s": ctypes.c_char_p,
    "l": ctypes.c_int64,
}


class _SubGroups(ctypes.Structure):
    """``bnpass_sub_groups``."""

    _fields_ = (
        ("count", ctypes.c_size_t),
        ("names", ctypes.POINTER(ctypes.c_char_p)),
        ("member_counts", ctypes.POINTER(ctypes.c_size_t)),
        ("members", ctypes.POINTER(ctypes.c_int)),
    )


class NativeLibrary:
    """One loaded library. Every method raises what :meth:`_call` does.

    Args:
        path: The shared object.

    Raises:
        MissingDependencyError: It cannot be loaded, or is none of ours.
    """

    def __init__(self, path: str) -> None:
        try:
            self._library = ctypes.CDLL(path)
            self._library.bnpass_last_error.restype = ctypes.c_char_p
            self._library.bnpass_mpi_description.restype = ctypes.c_char_p
            for name, letters in _FUNCTIONS.items():
                function = getattr(self._library, name)
                function.argtypes = [_TYPES[letter] for letter in letters]
                function.restype = ctypes.c_int
            self._library.bnpass_groups_free.argtypes = [ctypes.c_void_p]
            self._library.bnpass_groups_free.restype = None
            self._library.bnpass_mpi_end.argtypes = [ctypes.c_int]
            self._library.bnpass_mpi_end.restype = None
            self._library.bnpass_mpi_abort.argtypes = [ctypes.c_int]
            self._library.bnpass_mpi_abort.restype = None
        except (OSError, AttributeError) as error:
            raise MissingDependencyError(f"the kernel library cannot be loaded: {error}") from error
        self.path = path

    def local(self) -> Handle:
        """Return the groups of a replica that is alone."""
        handle = ctypes.c_void_p()
        self._call("bnpass_groups_local", ctypes.byref(handle))
        return _address(handle)

    def threads(self, size: int, deadline: float, groups: Mapping[str, Sequence[int]]) -> list[Handle]:
        """Return the groups of ``size`` replicas in one process, in rank order."""
        handles = (ctypes.c_void_p * max(size, 1))()
        self._call("bnpass_groups_threads", size, deadline, ctypes.byref(_sub_groups(groups)), handles)
        return [_address(ctypes.c_void_p(handle)) for handle in handles]

    def mpi(
        self,
        libraries: Sequence[str],
        communicator: int | None,
        deadline: float,
        groups: Mapping[str, Sequence[int]],
    ) -> Handle:
        """Return the groups of this process of MPI.

        Args:
            libraries: Paths or names of MPI libraries, in order of preference.
            communicator: Native handle of the communicator to be the world; None: MPI_COMM_WORLD.
            deadline: Seconds.
            groups: Members of each sub-group, as ranks of the world.
        """
        handle = ctypes.c_void_p()
        paths = (ctypes.c_char_p * len(libraries))(*(path.encode() for path in libraries))
        native = None if communicator is None else ctypes.byref(ctypes.c_uint64(communicator))
        sub_groups = ctypes.byref(_sub_groups(groups))
        self._call("bnpass_groups_mpi", len(libraries), paths, native, deadline, sub_groups, ctypes.byref(handle))
        return _address(handle)

    def free(self, handle: Handle) -> None:
        """Let go of groups."""
        self._library.bnpass_groups_free(handle)

    def use(self, handle: Handle | None) -> None:
        """Set the groups for operators that this thread registers; None: a replica that is alone."""
        self._call("bnpass_use_groups", handle)

    def rank(self, handle: Handle, group: str) -> int:
        """Return the rank of this replica in a group."""
        return self._number("bnpass_group_rank", handle, group)

    def size(self, handle: Handle, group: str) -> int:
        """Return the number of replicas of a group."""
        return self._number("bnpass_group_size", handle, group)

    def all_reduce(
        self,
        handle: Handle,
        group: str,
        collective_id: int,
        node: str,
        element: int,
        reduction: str,
        addresses: tuple[int, int],
        length: int,
    ) -> None:
        """Reduce ``length`` elements, of an ONNX type by its number, from the first address to the second."""
        self._call(
            "bnpass_all_reduce",
            handle,
            group.encode(),
            collective_id,
            node.encode(),
            element,
            reduction.encode(),
            *addresses,
            length,
        )

    def fail(self, handle: Handle, group: str, collective_id: int, node: str, failure: str) -> None:
        """Tell the group that this replica cannot take part; always raises."""
        self._call("bnpass_group_fail", handle, group.encode(), collective_id, node.encode(), failure.encode())

    def mpi_description(self) -> str:
        """Return which MPI is in use, "" if none is."""
        return bytes(self._library.bnpass_mpi_description()).decode(errors="replace")

    def mpi_end(self, *, broken: bool) -> None:
        """End the use of MPI at the end of the process; end the job if it cannot end well."""
        self._library.bnpass_mpi_end(int(broken))

    def mpi_abort(self, code: int) -> None:
        """End all processes of MPI."""
        self._library.bnpass_mpi_abort(code)

    def _number(self, function: str, handle: Handle, group: str) -> int:
        number = ctypes.c_int()
        self._call(function, handle, group.encode(), ctypes.byref(number))
        return number.value

    def _call(self, function: str, *arguments: object) -> None:
        """Call a function that returns a status.

        Raises:
            MissingDependencyError: There is no MPI.
            UsageError: The arguments cannot be.
            CollectiveError: The replicas could not do it together.
        """
        status = getattr(self._library, function)(*arguments)
        if status == _OK:
            return
        sentence = bytes(self._library.bnpass_last_error()).decode(errors="replace")
        errors: dict[int, type[BnpassError]] = {_INVALID_ARGUMENT: UsageError, _NOT_IMPLEMENTED: MissingDependencyError}
        raise errors.get(status, CollectiveError)(sentence)


@cache
def native_library(library: Library = "cpu") -> NativeLibrary:
    """Return the library with the kernels, loaded once.

    Raises:
        MissingDependencyError: It was not built, or cannot be loaded.
        UsageError: There is no library of that name.
    """
    return NativeLibrary(get_library_path(library))


def _address(handle: ctypes.c_void_p) -> Handle:
    assert handle.value is not None  # noqa: S101  a status of 0 promises it
    return handle.value


def _sub_groups(groups: Mapping[str, Sequence[int]]) -> _SubGroups:
    """Return the C form; what it points to lives as long as it does."""
    members = [member for ranks in groups.values() for member in ranks]
    return _SubGroups(
        len(groups),
        (ctypes.c_char_p * len(groups))(*(name.encode() for name in groups)),
        (ctypes.c_size_t * len(groups))(*map(len, groups.values())),
        (ctypes.c_int * len(members))(*members),
    )
