"""Where the kernel library is, and its registration with ONNX Runtime."""

import os
from contextlib import nullcontext, suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bnpass.errors import MissingDependencyError, UsageError
from bnpass.runtime.elf import fault_of

if TYPE_CHECKING:
    import onnxruntime

    from bnpass.runtime.group import Groups

Library = Literal["cpu", "cuda"]

FILES: dict[Library, str] = {"cpu": "libbnpass_ort.so", "cuda": "libbnpass_ort_cuda.so"}
OVERRIDE = "BNPASS_LIBRARY"
"""An environment variable with the path of another build, say one with a sanitizer."""

_ENTRY = "bnpass.registered"
_NEEDS = {
    "cpu": "a C++17 compiler, such as g++ 9 or newer",
    "cuda": "nvcc of CUDA 12.8 or newer beside a C++17 compiler",
}


def get_library_path(library: Library = "cpu") -> str:
    """Return the path of the library with the kernels, to be registered on ``onnxruntime.SessionOptions``.

    Args:
        library: "cpu", or "cuda", which holds the kernels for NVIDIA GPUs and all of those for the CPU, too.

    Raises:
        MissingDependencyError: It was not built when bnpass was installed; the message says what that takes.
        UsageError: There is no library of that name, or BNPASS_LIBRARY names a file that is not there.
    """
    if library not in FILES:
        raise UsageError(f"there is no library '{library}': 'cpu' and 'cuda' are the ones there are")
    if override := os.environ.get(OVERRIDE):
        if not Path(override).is_file():
            raise UsageError(f"{OVERRIDE} names '{override}', which is not a file")
        return override
    for candidate in _candidates(FILES[library]):
        if candidate.is_file():
            return str(candidate)
    raise MissingDependencyError(
        f"{FILES[library]} was not built when bnpass was installed; it takes {_NEEDS[library]}. "
        "pip install -v --force-reinstall --no-deps --no-cache-dir bnpass builds it, or says why it cannot"
    )


def _candidates(name: str) -> list[Path]:
    """Return where the library may lie: beside this file, or, if bnpass is installed as editable, where pip put it."""
    found = [Path(__file__).parent / "lib" / name]
    with suppress(PackageNotFoundError):  # which is so in a checkout
        found.append(Path(str(distribution("bnpass").locate_file(f"bnpass/runtime/lib/{name}"))))
    return found


def register(
    options: "onnxruntime.SessionOptions", group: "Groups | None" = None, library: Library = "cpu"
) -> "onnxruntime.SessionOptions":
    """Register the kernels on the options of a session. A second call with the same arguments changes nothing.

    Args:
        options: The options; the session made of them runs nodes of the domain ``bnpass`` with the kernels.
        group: The replicas that this session works with; None: every group is this replica alone.
        library: "cpu" or "cuda".

    Returns:
        The options.

    Raises:
        MissingDependencyError: The library was not built, or cannot be loaded.
        UsageError: The options run nodes in parallel, which could reorder collectives, or have the kernels of another
            library or group.
    """
    import onnxruntime

    if options.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL:
        raise UsageError("ORT_PARALLEL would let replicas meet collectives in different orders; use ORT_SEQUENTIAL")
    if group is not None and group.library != library:
        raise UsageError(f"these groups belong to the library '{group.library}', not to '{library}'")
    path = get_library_path(library)
    wanted = f"{path} {id(group) if group is not None else 0}"
    registered = _registered(options)
    if registered == wanted:
        return options
    if registered:
        raise UsageError("these options have the kernels of another library or group already; make new options")
    if fault := fault_of(Path(path)):
        raise MissingDependencyError(f"{path} cannot be loaded: {fault}; install bnpass again")
    with group.in_use() if group is not None else nullcontext():
        try:
            options.register_custom_ops_library(path)
        except Exception as error:
            raise MissingDependencyError(f"ONNX Runtime cannot load {path}: {error}") from error
    options.add_session_config_entry(_ENTRY, wanted)
    return options


def _registered(options: "onnxruntime.SessionOptions") -> str:
    """Return what the options were registered with, "" if they were not."""
    try:
        return str(options.get_session_config_entry(_ENTRY))
    except RuntimeError:  # so the binding says that there is no such entry
        return ""
