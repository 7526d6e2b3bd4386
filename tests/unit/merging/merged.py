"""Merge a copy of a model, and hold the result against everything that a merge has to be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bnpass.errors import RefusalId
from bnpass.folding.merging.merger import merge
from bnpass.folding.merging.result import Merged
from bnpass.folding.plan import Ledger
from bnpass.folding.write import Writer
from bnpass.graph.nodes import drop_unread, label, scopes, unread_initializers
from bnpass.graph.shapes import Shapes
from tests.support.build import model
from tests.support.judge import (
    Array,
    Feeds,
    agree,
    draws,
    flag_is_honest,
    interface_is_unchanged,
    is_valid,
    nothing_dangles,
    serialized,
)


@dataclass(frozen=True)
class Result:
    """A model before and after, and what merging said about it."""

    before: ir.Model
    after: ir.Model
    merged: tuple[Merged, ...]
    refused: Mapping[str, RefusalId]
    ledger: Ledger

    @property
    def ops(self) -> list[str]:
        """Op types of the main graph, in order."""
        return [node.op_type for node in self.after.graph]

    def node(self, name: str) -> ir.Node:
        """Return a node of the merged model."""
        return next(node for node in self.after.graph if label(node) == name)

    def constant(self, name: str) -> Array:
        """Return an initializer of the merged model."""
        tensor = self.after.graph.initializers[name].const_value
        assert tensor is not None
        return np.asarray(tensor.numpy())

    def ints(self, name: str, attribute: str) -> tuple[int, ...]:
        """Return an attribute of a node."""
        return tuple(self.node(name).attributes.get_ints(attribute, ()))


def merged(built: ir.Model, budget: int = 64 << 20, memory: int = 128 << 20, **options: Any) -> Result:
    """Merge a copy of a model."""
    before, after = (ir.from_proto(ir.to_proto(built)) for _ in range(2))
    ledger, writer, shapes = Ledger(budget, memory), Writer(after), Shapes(after)
    done: list[Merged] = []
    refused: dict[str, RefusalId] = {}
    for scope in scopes(after):
        unread = unread_initializers(scope.graph)
        outcome = merge(scope, shapes, ledger, writer, **options)
        drop_unread(scope, unread)
        done += outcome.merged
        refused |= {label(node): refusal.id for node, refusal in outcome.refused.items()}
    return Result(before, after, tuple(done), refused, ledger)


def merged_and_right(built: ir.Model, feeds: Sequence[Feeds] | None = None, **options: Any) -> Result:
    """Merge a copy of a model, and judge the result."""
    result = merged(built, **options)
    is_valid(result.after)
    interface_is_unchanged(result.before, result.after)
    nothing_dangles(result.before, result.after)
    flag_is_honest(result.before, result.after, bool(result.merged))
    assert all(record.error <= 1 for record in result.merged)
    again = merged(result.after)
    assert not again.merged
    assert serialized(again.after) == serialized(again.before)
    if result.merged:
        agree(result.before, result.after, draws(result.before) if feeds is None else feeds)
    return result


def block(nodes: str, out: str, constants: Mapping[str, Array], data: str = "2,4,7,8", **options: Any) -> ir.Model:
    """Return a model of one input x and one output y."""
    kind = options.pop("kind", "float")
    return model(f"g ({kind}[{data}] x) => ({kind}[{out}] y) {{ {nodes} }}", constants, **options)
