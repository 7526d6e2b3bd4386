"""Who is measured: each tool called as its documentation tells its users.

Every tool gets its Python API (of the two documented ways the faster one for each of them; the command lines
of onnxsim, onnxslim and onnxoptimizer print tables or check the model in addition). bnpass gets its command
line, which is what its documentation shows first.
"""

import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["CONTESTANTS", "PEERS", "command"]

_PROGRAMS = {
    "onnx load + save": "import onnx; onnx.save(onnx.load({0}), {1})",
    "onnx_ir load + save": "import onnx_ir; onnx_ir.save(onnx_ir.load({0}), {1})",
    "onnxslim": "import onnx, onnxslim; onnx.save(onnxslim.slim({0}), {1})",
    "onnxsim": "import onnx; from onnxsim import simplify; m, ok = simplify(onnx.load({0})); onnx.save(m, {1})",
    # its passes are those of its own command line: fusions (fuse_bn_into_conv among them) and eliminations
    "onnxoptimizer": "import onnx, onnxoptimizer; onnx.save(onnxoptimizer.optimize(onnx.load({0})), {1})",
    "onnxscript": ("import onnx, onnxscript.optimizer; onnx.save(onnxscript.optimizer.optimize(onnx.load({0})), {1})"),
    "ONNX Runtime basic": "ORT_ENABLE_BASIC",
    "ONNX Runtime extended": "ORT_ENABLE_EXTENDED",
}
_ONNX_RUNTIME = """\
import onnxruntime as ort
options = ort.SessionOptions()
options.graph_optimization_level = ort.GraphOptimizationLevel.{level}
options.optimized_model_filepath = {{1}}
ort.InferenceSession({{0}}, options, providers=["CPUExecutionProvider"])
"""
PEERS = ("onnxslim", "onnxsim", "onnxoptimizer", "onnxscript")
"""Those that do what bnpass does: read a file, optimize, write a portable file."""


def command(name: str, source: Path, target: Path) -> list[str]:
    """Return the command by which a contestant turns ``source`` into ``target``."""
    return CONTESTANTS[name](source, target)


def _bnpass(source: Path, target: Path) -> list[str]:
    return [sys.executable, "-m", "bnpass", "fold", "--check", "0", "--force", str(source), "-o", str(target)]


def _program(text: str) -> Callable[[Path, Path], list[str]]:
    if text.startswith("ORT_"):
        text = _ONNX_RUNTIME.format(level=text)
    code = "import sys; " + text.format("sys.argv[1]", "sys.argv[2]")
    return lambda source, target: [sys.executable, "-c", code, str(source), str(target)]


CONTESTANTS: dict[str, Callable[[Path, Path], list[str]]] = {
    "bnpass": _bnpass,
    **{name: _program(text) for name, text in _PROGRAMS.items()},
}
"""Name to command."""
