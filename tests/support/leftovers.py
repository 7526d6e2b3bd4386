"""Find per-channel affines that stand next to a linear op: written without bnpass' own eyes, on the protobuf.

A per-channel affine is a BatchNormalization, or Add, Sub, Mul or Div with a constant operand that varies over
at most one axis. It stands next to a linear op with constant weights if only layout ops lie between them and
nobody else reads a value on the way. Left out are what cannot or need not go: the Add that is a MatMul's bias, a
lone shift before padding, and an Add that every reader would only turn into another Add.
"""

from collections import Counter
from collections.abc import Iterator

import onnx
from onnx import numpy_helper  # noqa: TID251  a test looks at files from outside

LINEAR = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}
LAYOUT = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")


class Neighbourhood:
    """The main graph of a model, with its edges."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.nodes = list(graph.node)
        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.maker = {name: node for node in graph.node for name in node.output}
        self.outputs = {o.name for o in graph.output}
        self.reads = Counter(name for node in graph.node for name in node.input)

    def readers(self, name: str) -> list[onnx.NodeProto]:
        """Return the nodes that read a value."""
        return [node for node in self.nodes if name in node.input]

    def is_affine(self, node: onnx.NodeProto) -> bool:
        """Whether a node is a per-channel affine."""
        if node.op_type == "BatchNormalization":
            return True
        if node.op_type not in ("Add", "Sub", "Mul", "Div"):
            return False
        found = [self.constants[i] for i in node.input if i in self.constants]
        return len(found) == 1 and sum(d != 1 for d in found[0].shape) == 1

    def is_linear(self, node: onnx.NodeProto) -> bool:
        """Whether a node is a linear op with a constant weight."""
        return node.op_type in LINEAR and any(i in self.constants for i in node.input[:2])

    def data(self, node: onnx.NodeProto) -> str:
        """Return the operand of an affine or layout op that is not constant."""
        return next(i for i in node.input if i not in self.constants)

    def before(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """Return the linear op before an affine, or None if something else comes first."""
        name = self.data(node)
        while self.reads[name] == 1 and name not in self.outputs and name in self.maker:
            maker = self.maker[name]
            if self.is_linear(maker):
                return maker
            if maker.op_type not in LAYOUT:
                return None
            name = maker.input[0]
        return None

    def behind(self, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        """Return the linear ops behind an affine, or None if not every reader leads to one."""
        found: list[onnx.NodeProto] = []
        waiting = [node.output[0]]
        while waiting:
            name = waiting.pop()
            if name in self.outputs:
                return None
            for reader in self.readers(name):
                if self.is_linear(reader):
                    found.append(reader)
                elif reader.op_type in LAYOUT:
                    waiting.append(reader.output[0])
                else:
                    return None
        return found or None


def leftovers(model: onnx.ModelProto) -> Iterator[str]:
    """Yield the affines that a perfect fold would not have left."""
    graph = Neighbourhood(model)
    for node in graph.nodes:
        if not graph.is_affine(node):
            continue
        shifts_only = node.op_type in ("Add", "Sub")
        linear = graph.before(node)
        if linear is not None and not (shifts_only and linear.op_type == "MatMul"):
            yield f"{node.op_type} '{node.name}' behind {linear.op_type} '{linear.name}'"
        for reader in graph.behind(node) or ():
            if not shifts_only and linear is None:
                yield f"{node.op_type} '{node.name}' before {reader.op_type} '{reader.name}'"
                break
