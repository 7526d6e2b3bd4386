"""Write an affine that stays in its cheapest form.

A run that holds a batch normalization becomes that one batch normalization, or Mul and Add, one of them, or nothing;
any other may become a new batch normalization: whatever the target runs in the least time. With p·x + q before a batch
normalization and s·y + t behind it, the variance stays and

    scale' = scale·p·s        B' = s·B + t        input_mean' = (input_mean - q) / p

so that no magnitude grows: moving q into B instead would make large numbers cancel.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from bnpass.errors import Refusal, RefusalId
from bnpass.folding.cells import Cell
from bnpass.folding.costs import Costs
from bnpass.folding.recognize import Site, epsilon
from bnpass.folding.write import Writer
from bnpass.graph.constants import Constant, find_float
from bnpass.graph.nodes import Scope, bypass, label
from bnpass.semantics.affine import Affine, Array, composed, limits_of, round_once

_SPATIAL_ALWAYS = 9
"""The first opset whose BatchNormalization has one mean for each channel and nothing else."""
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE})


@dataclass(frozen=True)
class Form:
    """What a run of affines can be written as.

    Attributes:
        kind: Mul and Add, the batch normalization that is one of them, or a new one.
        cost: Passes over the elements.
    """

    kind: Literal["arithmetic", "host", "batch_norm"]
    cost: float


def cheapest(cell: Cell, costs: Costs, scope: Scope) -> Form:
    """Return the cheapest form of a run: one that changes the least among equals."""
    plain = Form("arithmetic", costs.of_affine(cell.affine, as_batch_norm=False))
    as_one = costs.of_affine(cell.affine, as_batch_norm=True)
    if not plain.cost:
        return plain
    if host_of(cell) is not None:
        forms = [plain, Form("host", as_one)] if as_one > plain.cost else [Form("host", as_one), plain]
    else:
        forms = [plain, *([Form("batch_norm", as_one)] if _fits_batch_norm(cell, scope) else [])]
    return min(forms, key=lambda form: form.cost)


def _fits_batch_norm(cell: Cell, scope: Scope) -> bool:
    """Whether a batch normalization can say it: over axis 1, in a type that runtimes have it in."""
    kinds = {site.dtype for site in cell.sites}
    return scope.opset >= _SPATIAL_ALWAYS and cell.affine.axes == (1,) and kinds <= _FLOATS


def host_of(cell: Cell) -> Site | None:
    """Return the batch normalization that can take the whole run, if there is one."""
    return next((s for s in cell.sites if s.is_batch_norm), None)


def into_host(cell: Cell, host: Site, at_host: Affine, writer: Writer, scope: Scope) -> list[Site] | Refusal:
    """Let a batch normalization of a run take the rest of it in.

    Args:
        cell: The run.
        host: The batch normalization.
        at_host: The whole run, as an affine of the host's data.
        writer: Puts the parameters there.
        scope: Where the run stands.

    Returns:
        The new site; or a Refusal, and nothing was changed.
    """
    found = [find_float(v, scope) for v in host.node.inputs[1:5]]
    parameters = [p for p in found if isinstance(p, Constant)]
    if len(parameters) != 4:
        return Refusal(RefusalId.NON_CONSTANT_PARAMETER, label(host.node), "its parameters are not constant")
    new = _joined(cell, host, parameters)
    if isinstance(new, Refusal):
        return new
    for index, array in enumerate(new, start=1):
        writer.parameter(host.node, index, array, f"{label(host.node)}/parameter", scope)
    for site in cell.sites:
        if site is not host:
            bypass(site.node, site.data)
    rounding = max(limits_of(p.dtype.numpy()).eps for p in parameters)
    return [Site(host.node, host.data_index, at_host, host.dtype, is_batch_norm=True, rounding=rounding)]


def _joined(cell: Cell, host: Site, parameters: list[Constant]) -> tuple[Array, Array, Array] | Refusal:
    """Return scale', B' and input_mean', rounded."""
    kind, place = cell.affine.scale.dtype, cell.sites.index(host)
    scale, B, mean, var = (p.array().astype(kind) for p in parameters)
    vectors: list[Array] = []
    for part in (composed(cell.parts[:place], kind), composed(cell.parts[place + 1 :], kind)):
        if not {part.scale.size, part.shift.size} <= {1, scale.size}:
            return Refusal(RefusalId.NO_GAIN, label(host.node), "its neighbours count other channels than it does")
        vectors += [np.broadcast_to(a.reshape(-1), scale.shape) for a in (part.scale, part.shift)]
    p, q, s, t = vectors
    dead = p == 0  # such a channel is constant: its value moves into B
    constant = np.where(dead, (q - mean) / np.sqrt(var + kind.type(epsilon(host.node))) * scale, 0)
    with np.errstate(over="ignore"):
        exact = (scale * p * s, s * (B + constant) + t, np.where(dead, mean, (mean - q) / np.where(dead, 1, p)))
    new = tuple(round_once(e, c.dtype.numpy()) for e, c in zip(exact, parameters, strict=False))
    for number, (rounded, whole) in enumerate(zip(new, exact, strict=True)):
        refusal = _unfit(host.node, "Mul" if number == 0 else "Add", whole, rounded)
        if refusal is not None:
            return refusal
    return new[0], new[1], new[2]


def into_batch_norm(cell: Cell, writer: Writer, scope: Scope) -> list[Site] | Refusal:
    """Replace a run by a new batch normalization, with mean 0, variance 1 and epsilon 0.

    Returns:
        The new site; or a Refusal, and nothing was changed.
    """
    first, last, dtype = cell.sites[0].node, cell.sites[-1].node, cell.sites[0].dtype
    if dtype is None:
        return Refusal(RefusalId.DTYPE_WOULD_LOSE_PRECISION, label(first), "the type of its input is not known")
    channels = max(cell.affine.scale.size, cell.affine.shift.size)
    exact = [np.broadcast_to(a.reshape(-1), channels) for a in (cell.affine.scale, cell.affine.shift)]
    rounded = [round_once(array, dtype.numpy()) for array in exact]
    for op_type, whole, result in zip(("Mul", "Add"), exact, rounded, strict=True):
        refusal = _unfit(first, op_type, whole, result)
        if refusal is not None:
            return refusal
    statistics = [np.zeros(channels, dtype.numpy()), np.ones(channels, dtype.numpy())]
    name = f"{label(last)}/BatchNormalization"
    node = writer.op("BatchNormalization", cell.start, [*rounded, *statistics], first, name, scope)
    node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.0)
    site = Site(node, 0, cell.affine, dtype, is_batch_norm=True, rounding=limits_of(dtype.numpy()).eps)
    first.replace_input_with(cell.sites[0].data_index, node.outputs[0])
    for old in cell.sites:
        bypass(old.node, old.data)
    return [site]


def into_arithmetic(
    cell: Cell, affine: Affine, dtype: ir.DataType | None, writer: Writer, scope: Scope
) -> list[Site] | Refusal:
    """Replace a run by Mul, Add, both or nothing.

    Args:
        cell: The run.
        affine: What has to be done to its start from now on.
        dtype: The type of its start, if known.
        writer: Puts the nodes there.
        scope: Where the run stands.

    Returns:
        The new sites, with their exact affines; or a Refusal, and nothing was changed.
    """
    first, last = cell.sites[0].node, cell.sites[-1].node
    if dtype is None:
        return Refusal(RefusalId.DTYPE_WOULD_LOSE_PRECISION, label(first), "the type of its input is not known")
    one, zero = affine.scale.dtype.type(1), affine.scale.dtype.type(0)
    steps = (("Mul", affine.scale, one), ("Add", affine.shift, zero))
    rounded = [(op_type, exact, round_once(exact, dtype.numpy()), neutral) for op_type, exact, neutral in steps]
    wanted = [(op_type, exact, r) for op_type, exact, r, neutral in rounded if (r != neutral).any()]
    for op_type, exact, r in wanted:
        refusal = _unfit(first, op_type, exact, r)
        if refusal is not None:
            return refusal
    if not wanted and cell.end.is_graph_output() and not cell.start_may_be_output:
        return Refusal(RefusalId.NO_GAIN, label(first), "an output of the graph must come from a node")
    sites: list[Site] = []
    value = cell.start
    for op_type, exact, r in wanted:
        node = writer.node(op_type, value, r, first, f"{label(last)}/{op_type}", scope)
        part = Affine(exact, np.asarray(zero)) if op_type == "Mul" else Affine(np.asarray(one), exact)
        sites.append(Site(node, 0, part, dtype, rounding=limits_of(dtype.numpy()).eps))
        value = node.outputs[0]
    first.replace_input_with(cell.sites[0].data_index, value)
    for site in cell.sites:
        bypass(site.node, site.data)
    return sites


def _unfit(node: ir.Node, op_type: str, exact: Array, rounded: Array) -> Refusal | None:
    limits = limits_of(rounded.dtype)
    if not np.isfinite(rounded).all() or np.abs(rounded).max() > limits.max / 2:
        return Refusal(RefusalId.WOULD_OVERFLOW, label(node), f"the constant of its {op_type} would overflow")
    if op_type == "Mul" and bool((np.abs(exact)[exact != 0] < limits.smallest_normal).any()):
        return Refusal(RefusalId.DTYPE_WOULD_LOSE_PRECISION, label(node), "its scale would be subnormal")
    return None
