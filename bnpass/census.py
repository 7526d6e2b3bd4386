"""Count what is in a model: nodes by op, batch normalizations, bytes of constants."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

_BATCH_NORMS = ("BatchNormalization", "SyncBatchNormalization")


@dataclass(frozen=True)
class Census:
    """What is in a model, subgraphs and model-local functions included.

    Attributes:
        ops: Number of nodes of each op type, by name.
        constant_bytes: Bytes of all initializers and tensor attributes.
    """

    ops: dict[str, int]
    constant_bytes: int

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return sum(self.ops.values())

    @property
    def batch_norms(self) -> int:
        """Number of batch normalizations."""
        return sum(self.ops.get(op_type, 0) for op_type in _BATCH_NORMS)


def take(model: ir.Model) -> Census:
    """Count a model; nothing is read from disk."""
    ops: Counter[str] = Counter()
    size = 0
    for graph in _graphs(model):
        size += sum(v.const_value.nbytes for v in graph.initializers.values() if v.const_value is not None)
        for node in graph:
            ops[node.op_type] += 1
            size += sum(a.as_tensor().nbytes for a in node.attributes.values() if _is_tensor(a))
    return Census(dict(sorted(ops.items())), size)


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    yield from model.graphs()
    for function in model.functions.values():
        yield function.graph
        yield from function.subgraphs()


def _is_tensor(attribute: ir.Attr) -> bool:
    return attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref()
