"""A session of ONNX Runtime with the kernels."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from bnpass.errors import MissingDependencyError, UsageError
from bnpass.runtime.library import Library, register

if TYPE_CHECKING:
    import onnxruntime

    from bnpass.runtime.group import Groups

_PROVIDERS: dict[Library, list[str]] = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
}


def session(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    provider: Library = "cpu",
    group: "Groups | None" = None,
    options: "onnxruntime.SessionOptions | None" = None,
) -> "onnxruntime.InferenceSession":
    """Open a model in ONNX Runtime, its ``bnpass`` nodes run by the kernels.

    Args:
        model: A path, a serialized model, or a ModelProto.
        provider: "cpu" or "cuda".
        group: The replicas that this session works with (``bnpass.runtime.mpi()``, ``threads(n)``); None: every group
            is this replica alone.
        options: Options of the session; None for new ones.

    Raises:
        MissingDependencyError: ONNX Runtime, its provider or the kernel library is not there.
        UsageError: The options cannot be used; see ``register``.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError("ONNX Runtime is needed: pip install 'bnpass[cpu]'") from error
    if provider not in _PROVIDERS:
        raise UsageError(f"there is no provider '{provider}': 'cpu' and 'cuda' are the ones there are")
    wanted = _PROVIDERS[provider]
    if wanted[0] not in onnxruntime.get_available_providers():
        raise MissingDependencyError(f"this ONNX Runtime has no {wanted[0]}: pip install 'bnpass[gpu]'")
    registered = register(options or onnxruntime.SessionOptions(), group, provider)
    given = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    return onnxruntime.InferenceSession(
        os.fspath(given) if isinstance(given, Path) else given, registered, providers=wanted
    )
