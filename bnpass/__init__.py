"""Batch normalization between training and deployment, for ONNX.

>>> import bnpass
>>> bnpass.fold("model.onnx")        # doctest: +SKIP
>>> bnpass.verify("model.onnx", "model.folded.onnx").ok  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from bnpass.api.diff import DiffResult, diff
    from bnpass.api.expand import ExpandResult, expand
    from bnpass.api.export import ExportResult, export
    from bnpass.api.fold import FoldResult, fold
    from bnpass.expansion.options import ExpandOptions
    from bnpass.exporting.options import ExportOptions
    from bnpass.folding.options import FoldOptions
    from bnpass.runtime.library import get_library_path, register
    from bnpass.verification import Verification, verify

__all__ = [
    "DiffResult",
    "ExpandOptions",
    "ExpandResult",
    "ExportOptions",
    "ExportResult",
    "FoldOptions",
    "FoldResult",
    "Verification",
    "__version__",
    "diff",
    "expand",
    "export",
    "fold",
    "get_library_path",
    "register",
    "verify",
]

_HOMES = {
    "DiffResult": "bnpass.api.diff",
    "ExpandOptions": "bnpass.expansion.options",
    "ExpandResult": "bnpass.api.expand",
    "ExportOptions": "bnpass.exporting.options",
    "ExportResult": "bnpass.api.export",
    "FoldOptions": "bnpass.folding.options",
    "FoldResult": "bnpass.api.fold",
    "Verification": "bnpass.verification",
    "diff": "bnpass.api.diff",
    "expand": "bnpass.api.expand",
    "export": "bnpass.api.export",
    "fold": "bnpass.api.fold",
    "get_library_path": "bnpass.runtime.library",
    "register": "bnpass.runtime.library",
    "verify": "bnpass.verification",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401  whatever the name stands for
    """Import a public name when it is first used: ``import bnpass`` alone costs next to nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'bnpass' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
