"""How a published case is told: a graph of our own, its ops after the fold, and every affine that stayed.

Graphs are ONNX text. Values of the header that no node makes are constants with random numbers; those of ``v…`` and
``gamma…`` are positive, as in the golden pairs.
"""

from collections.abc import Mapping

from bnpass.errors import RefusalId
from bnpass.folding.options import FoldOptions, Runtime
from tests.golden.pairs import read
from tests.support.judge import Result, folded_and_right

Kept = Mapping[str, tuple[RefusalId, str]]
"""The affines that stayed: why, and the node in the way."""


def becomes(graph: str, ops: str, kept: Kept | None = None, *, opset: int = 17, target: Runtime = "portable") -> Result:
    """Fold the model of a graph, which has to change: it is right, has these ops, and keeps what ``kept`` says."""
    result = _folded(graph, opset, target)
    assert result.modified
    assert " ".join(result.ops) == ops
    assert _reasons(result) == dict(kept or {})
    return result


def stays(graph: str, kept: Kept | None = None, *, opset: int = 17, target: Runtime = "portable") -> Result:
    """Fold the model of a graph, which must not change: it keeps what ``kept`` says, and nothing else is reported."""
    result = _folded(graph, opset, target)
    assert not result.modified
    assert _reasons(result) == dict(kept or {})
    return result


def parameters(channels: int, suffix: str | int = "", *, positive: bool = False) -> str:
    """Return the declarations of s, b, m, v of one batch normalization; a positive scale is called gamma."""
    return ", ".join(f"float[{channels}] {name}{suffix}" for name in ("gamma" if positive else "s", *"bmv"))


def batch_norm(value: str, suffix: str | int = "", *, positive: bool = False) -> str:
    """Return the call of a batch normalization that has the ``parameters`` of that suffix."""
    names = ", ".join(f"{name}{suffix}" for name in ("gamma" if positive else "s", *"bmv"))
    return f"BatchNormalization ({value}, {names})"


def _folded(graph: str, opset: int, target: Runtime) -> Result:
    return folded_and_right(
        read(f'<ir_version: 8, opset_import: ["": {opset}]>{graph}'), options=FoldOptions(target=target)
    )


def _reasons(result: Result) -> dict[str, tuple[RefusalId, str]]:
    return {kept.node: (kept.refusal, kept.at) for kept in result.kept}
