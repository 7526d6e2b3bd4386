"""Groups of replicas on NVIDIA GPUs whose messages travel by NCCL."""

import ctypes
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from bnpass.errors import BnpassError, CollectiveError, MissingDependencyError, UsageError
from bnpass.runtime.group import Groups
from bnpass.runtime.library import get_library_path

__all__ = ["nccl", "nccl_version"]

_PATH_BYTES = 4096
_ERRORS: dict[int, type[BnpassError]] = {2: UsageError, 9: MissingDependencyError}


def nccl(host: Groups) -> Groups:
    """Return the groups of a replica whose messages in GPU memory travel by NCCL.

    Each group of the host has a group of the same name and members. Headers, and the id by which NCCL connects the
    replicas, are exchanged through the host's group; its deadline holds for NCCL's messages, too. NCCL connects a group
    at its first message, for the GPU that is current then: every replica needs a GPU of its own. A message that does
    not come in time is filled with NaN, and the next collective raises CollectiveError.

    Taken is the NCCL that the process has loaded, else the one that the environment variable BNPASS_NCCL_LIBRARY names,
    else one that pip has installed beside this Python, else one of the system.

    Args:
        host: Groups of this replica on the host, such as ``bnpass.runtime.mpi(library="cuda")`` returns.

    Raises:
        MissingDependencyError: There is no NCCL, or the CUDA library was not built.
        UsageError: The host's groups belong to another library than "cuda", or are closed.
    """
    if host.library != "cuda":
        raise UsageError(f"nccl needs groups of the library 'cuda', these are of '{host.library}'")
    handle = ctypes.c_void_p()
    paths = _libraries()
    _call("bnpass_groups_nccl", ctypes.c_void_p(host._open()), ctypes.c_size_t(len(paths)), paths, ctypes.byref(handle))  # noqa: SLF001
    assert handle.value is not None  # noqa: S101  a status of 0 promises it
    return Groups(host._native, handle.value, host.names, "cuda")  # noqa: SLF001


def nccl_version() -> tuple[str, Path]:
    """Return the version of NCCL that a session would use, and where it is; loads it. It needs no GPU.

    Raises:
        MissingDependencyError: There is no NCCL, or the CUDA library was not built.
    """
    version, path = ctypes.c_int(), ctypes.create_string_buffer(_PATH_BYTES)
    paths = _libraries()
    _call(
        "bnpass_nccl_version",
        ctypes.c_size_t(len(paths)),
        paths,
        ctypes.byref(version),
        path,
        ctypes.c_size_t(_PATH_BYTES),
    )
    major, rest = divmod(version.value, 10_000)
    return f"{major}.{rest // 100}.{rest % 100}", Path(path.value.decode(errors="replace"))


def candidates() -> Sequence[str]:
    """Return the libraries that pip has installed beside this Python."""
    try:
        found = importlib.util.find_spec("nvidia.nccl")
    except ModuleNotFoundError:
        return []
    folders = [] if found is None or found.submodule_search_locations is None else found.submodule_search_locations
    return [str(path) for folder in folders for path in sorted(Path(folder).glob("lib/libnccl.so*"))]


def _libraries() -> "ctypes.Array[ctypes.c_char_p]":
    paths = candidates()
    return (ctypes.c_char_p * len(paths))(*(path.encode() for path in paths))


def _call(function: str, *arguments: object) -> None:
    """Call a function of the CUDA library that returns a status.

    Raises:
        MissingDependencyError: There is no NCCL, or no CUDA library.
        UsageError: The arguments cannot be.
        CollectiveError: The replicas could not do it together.
    """
    try:
        library = ctypes.CDLL(get_library_path("cuda"))
        library.bnpass_last_error.restype = ctypes.c_char_p
        status = getattr(library, function)(*arguments)
    except (OSError, AttributeError) as error:
        raise MissingDependencyError(f"the CUDA library cannot be loaded: {error}") from error
    if status == 0:
        return
    sentence = bytes(library.bnpass_last_error()).decode(errors="replace")
    if status == 9:
        sentence = f"NCCL is needed: pip install 'bnpass[nccl]' ({sentence})"
    raise _ERRORS.get(status, CollectiveError)(sentence)
