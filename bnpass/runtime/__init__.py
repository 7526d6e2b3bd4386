"""The kernels in ONNX Runtime: where the library is, how a session gets it, and which replicas work together."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnpass.runtime.group import Groups, local, mpi, threads
    from bnpass.runtime.library import get_library_path, register
    from bnpass.runtime.nccl_group import nccl
    from bnpass.runtime.sessions import session

__all__ = ["Groups", "get_library_path", "local", "mpi", "nccl", "register", "session", "threads"]

_HOMES = {
    "Groups": "group",
    "get_library_path": "library",
    "local": "group",
    "mpi": "group",
    "nccl": "nccl_group",
    "register": "library",
    "session": "sessions",
    "threads": "group",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401  whatever the name stands for
    """Import a name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'bnpass.runtime' has no attribute '{name}'")
    return getattr(import_module(f"bnpass.runtime.{_HOMES[name]}"), name)
