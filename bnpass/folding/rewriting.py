"""What carriers become when an affine passes them: constants rounded and judged before anything is written."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from bnpass.errors import Refusal, RefusalId
from bnpass.folding.linear import refuse
from bnpass.folding.region import Carried, Region
from bnpass.folding.write import Writer
from bnpass.graph.constants import Constant, find_float
from bnpass.graph.nodes import Scope, bypass, label
from bnpass.graph.shapes import Shapes
from bnpass.semantics.affine import Array, limits_of, round_once, wide

Chain = tuple[tuple[str, Array | None], ...]


@dataclass(frozen=True, eq=False)
class Edits:
    """New forms of carriers, rounded.

    Attributes:
        chains: Ops with one constant each, in place of a carrier.
        operands: Constants by the node that reads them and its slot.
    """

    chains: Mapping[ir.Node, Chain] = field(default_factory=dict)
    operands: Mapping[tuple[ir.Node, int], Array] = field(default_factory=dict)


def edits_of(region: Region, scope: Scope, shapes: Shapes) -> Edits | Refusal:
    """Round what carriers become, or refuse where the type of the values cannot hold it."""
    chains: dict[ir.Node, Chain] = {}
    operands: dict[tuple[ir.Node, int], Array] = {}
    for carried in region.carriers.values():
        if carried.rewrite is None:
            continue
        dtype = _dtype(carried, scope, shapes)
        if isinstance(dtype, Refusal):
            return dtype
        for index, exact in carried.rewrite.operands.items():
            value = _rounded(carried.node, exact, dtype)
            if isinstance(value, Refusal):
                return value
            operands[carried.node, index] = value
        chain: list[tuple[str, Array | None]] = []
        for op_type, exact_bound in carried.rewrite.ops or ():
            bound = None if exact_bound is None else _rounded(carried.node, exact_bound, dtype)
            if isinstance(bound, Refusal):
                return bound
            chain.append((op_type, bound))
        if carried.rewrite.ops is not None:
            chains[carried.node] = tuple(chain)
    for (node, index), affine in region.operands.items():
        found = find_float(node.inputs[index], scope)
        if isinstance(found, Refusal):
            return found
        rounded = _operand(node, found, affine.scale, affine.shift)
        if isinstance(rounded, Refusal):
            return rounded
        operands[node, index] = rounded
    return Edits(chains, operands)


def _operand(node: ir.Node, found: Constant, scale: Array, shift: Array) -> Array | Refusal:
    kind = found.dtype.numpy()
    return _rounded(node, found.array().astype(wide(kind)) * scale + shift, kind)


def _dtype(carried: Carried, scope: Scope, shapes: Shapes) -> "np.dtype[np.generic] | Refusal":
    value = carried.node.inputs[0]
    dtype = shapes.dtype(value, scope) if value is not None else None
    if dtype is None:
        return refuse(carried.node, "has an input of unknown type", RefusalId.DTYPE_WOULD_LOSE_PRECISION)
    return dtype.numpy()


def _rounded(node: ir.Node, exact: Array, dtype: "np.dtype[np.generic]") -> Array | Refusal:
    limits = limits_of(dtype)
    rounded = round_once(exact, dtype)
    finite = exact[np.isfinite(exact)]
    if np.isnan(exact).any() or (np.abs(finite) > limits.max / 2).any():
        return refuse(node, "would get a constant beyond the range of its type", RefusalId.WOULD_OVERFLOW)
    if ((finite != 0) & (np.abs(finite) < limits.smallest_normal)).any():
        return refuse(node, "would get a constant too small for its type", RefusalId.DTYPE_WOULD_LOSE_PRECISION)
    return rounded


def carry_out(edits: Edits, writer: Writer, shapes: Shapes, scope: Scope) -> None:
    """Write the new forms of carriers."""
    for (node, index), array in edits.operands.items():
        writer.parameter(node, index, array, f"{label(node)}/operand", scope)
    for node, chain in edits.chains.items():
        _replace(node, chain, writer, shapes, scope)


def _replace(node: ir.Node, chain: Chain, writer: Writer, shapes: Shapes, scope: Scope) -> None:
    data = node.inputs[0]
    if data is None:
        raise ValueError(f"'{label(node)}' has no input")
    value, name = data, label(node)
    for op_type, constant in chain:
        new = writer.elementwise(op_type, value, constant, node, f"{name}/{op_type}", scope)
        shapes.note_alike(new.outputs[0], value)
        value = new.outputs[0]
    node.replace_input_with(0, value)
    bypass(node, value)
