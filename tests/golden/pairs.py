"""Read and write the golden pairs: ``cases/*.txt``, one file per family.

A pair is ``### name``, a remark, the model before, a line ``=>`` and the model after, or ``unchanged``, then one line
for every node that was kept. Both models are ONNX text without numbers: a value of the header that no node makes is a
constant, and its numbers are drawn at random (those of ``v…``, the variances, and of ``gamma…`` are positive, those of
``negative…`` are not, those of ``mixed…`` take turns, and every second one of ``dead…`` is 0; integers are symmetric
around those of ``z…``, the zero points).

The family ``lowering`` is folded for ONNX Runtime on the CPU, all others for any runtime. Branches are merged in the
family ``merging`` alone: elsewhere they would hide what affines do.

    python -m tests.golden.pairs [family…]      rewrites what comes after; read the diff before you commit it
"""

import re
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from bnpass.folding.options import FoldOptions, Runtime
from bnpass.graph.constants import FLOATS
from tests.support.build import tensor
from tests.support.judge import Result, fold

CASES = Path(__file__).parent / "cases"
HEADER = '<ir_version: 8, opset_import: ["": 17]>'
UNCHANGED = "unchanged"
_SIGNS = {"v": (1,), "gamma": (1,), "negative": (-1,), "mixed": (1, -1), "dead": (0, 1)}
"""How the names of constants begin whose numbers have these signs, in turns."""
QUANTIZED = frozenset({
    ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT16, ir.DataType.INT32,
})  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """One golden pair."""

    family: str
    name: str
    remark: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.family}-{self.name}"

    def result(self) -> Result:
        """Fold the model before."""
        return fold(read(self.before), FoldOptions(target=self.target, merge=self.family == "merging"))

    @property
    def target(self) -> Runtime:
        """What the model is folded for."""
        return "onnxruntime-cpu" if self.family == "lowering" else "portable"

    def text(self) -> str:
        """Return the pair as it stands in its file."""
        return f"### {self.name}\n{self.remark}{self.before}\n=>\n{self.after}\n"


def families() -> list[str]:
    """Return the names of the files."""
    return sorted(path.stem for path in CASES.glob("*.txt"))


def pairs(family: str) -> Iterator[Pair]:
    """Read the pairs of a file."""
    for part in (CASES / f"{family}.txt").read_text(encoding="utf-8").split("### ")[1:]:
        name, rest = part.split("\n", 1)
        lines = rest.splitlines(keepends=True)
        remark = "".join(line for line in lines if line.startswith("# "))
        body = "".join(line for line in lines if not line.startswith("# "))
        before, _, after = body.partition("\n=>")
        yield Pair(family, name.strip(), remark, before.strip(), after.strip())


def read(text: str) -> ir.Model:
    """Return the model of a text, with numbers for its constants."""
    proto = onnx.parser.parse_model(text if text.startswith("<") else HEADER + text)
    made = {name for node in proto.graph.node for name in node.output}
    for info in [i for i in proto.graph.value_info if i.name not in made]:
        proto.graph.value_info.remove(info)
        proto.graph.initializer.append(tensor(_numbers(info), info.name))
        if proto.ir_version < 4:
            proto.graph.input.append(info)
    return ir.from_proto(proto)


def _numbers(info: onnx.ValueInfoProto) -> NDArray[Any]:
    shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
    rng = np.random.default_rng(zlib.crc32(info.name.encode()))
    kind = ir.DataType(info.type.tensor_type.elem_type)
    if kind in QUANTIZED:
        low, high = (-(10**4), 10**4) if kind is ir.DataType.INT32 else (int(kind.min) + 1, int(kind.max))
        middle = (low + high) // 2
        drawn = np.full(shape, middle) if info.name.startswith("z") else rng.integers(low, high + 1, shape)
        return np.asarray(drawn).astype(kind.numpy())
    signs = next((signs for start, signs in _SIGNS.items() if info.name.startswith(start)), None)
    x = rng.standard_normal(shape) if signs is None else 10 ** rng.uniform(-3, 2, shape) * np.resize(signs, shape)
    return np.asarray(x).astype(ir.DataType(info.type.tensor_type.elem_type).numpy())


def written(result: Result) -> str:
    """Return what comes after ``=>``."""
    kept = [f"kept {k.op_type} '{k.node}': {k.refusal} at '{k.at}'" for k in result.kept]
    return "\n".join([show(result.after) if result.modified else UNCHANGED, *kept])


def show(model: ir.Model) -> str:
    """Return a model as ONNX text, with the shapes of its constants and without their numbers."""
    proto: onnx.ModelProto = ir.to_proto(model)
    _hide(proto.graph)
    for function in proto.functions:
        del function.value_info[:]
    text = onnx.printer.to_text(proto)
    text = re.sub(r"(value: tensor = (?:float|double|float16|bfloat16)\[[\d,]*\])[^{}]*\{[^{}]*\}", r"\1", text)
    text = re.sub(r"<\s*ir_version: (\d+),\s*opset_import: \[([^]]*)\]\s*>", _header, text, count=1)
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip()).strip()


def _header(match: re.Match[str]) -> str:
    header = f"<ir_version: {match[1]}, opset_import: [{match[2].replace(' :', ':')}]>"
    return "" if header == HEADER else header


def _hide(graph: onnx.GraphProto) -> None:
    del graph.value_info[:]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _hide(attribute.g)
    constants = [t for t in graph.initializer if ir.DataType(t.data_type) in FLOATS | QUANTIZED]
    for constant in constants:
        graph.value_info.append(onnx.helper.make_tensor_value_info(constant.name, constant.data_type, constant.dims))
        graph.initializer.remove(constant)
        for listed in [i for i in graph.input if i.name == constant.name]:
            graph.input.remove(listed)


def main() -> None:
    """Rewrite the files of the families on the command line, or all."""
    for family in sys.argv[1:] or families():
        renewed = [Pair(p.family, p.name, p.remark, p.before, written(p.result())).text() for p in pairs(family)]
        (CASES / f"{family}.txt").write_text("\n".join(renewed), encoding="utf-8")


if __name__ == "__main__":
    main()
