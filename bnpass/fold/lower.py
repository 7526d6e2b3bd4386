"""Write an affine that stays in its cheapest form.

A run that holds a batch normalization becomes that one batch normalization; any other becomes Mul and Add, or one of
them, or nothing. With mean and variance kept, ``scale' = s·sqrt(input_var + epsilon)`` and ``B' = t + input_mean·s``.
"""

import numpy as np
import onnx_ir as ir

from bnpass.errors import Refusal, RefusalId
from bnpass.fold.cells import Cell
from bnpass.fold.constants import Constant, find_float
from bnpass.fold.graph import Scope, bypass, label
from bnpass.fold.recognize import Site, epsilon
from bnpass.fold.write import Writer
from bnpass.semantics.affine import Affine, Array, limits_of, round_once


def cost_of(affine: Affine, *, as_batch_norm: bool = False) -> int:
    """Operations per element of the cheapest nodes for this affine; a batch normalization stays one if it can."""
    cost = int(affine.has_scale) + int(affine.has_shift)
    return 2 if as_batch_norm and cost else cost


def host_of(cell: Cell) -> Site | None:
    """Return the batch normalization that can take the whole run, if there is one."""
    return next((s for s in cell.sites if s.is_batch_norm), None)


def lower(
    cell: Cell,
    affine: Affine,
    writer: Writer,
    scope: Scope,
    *,
    dtype: ir.DataType | None,
    host: Site | None = None,
) -> list[Site] | Refusal:
    """Replace a run by nodes for ``affine``.

    Args:
        cell: The run.
        affine: What has to be done to its start from now on.
        writer: Puts the nodes there.
        scope: Where the run stands.
        dtype: The type of the run's start.
        host: A batch normalization of the run that takes all of it; by default new Mul and Add nodes do.

    Returns:
        The new sites, with their exact affines; or a Refusal, and nothing was changed.
    """
    if host is not None and cost_of(affine):
        return _into_host(cell, host, affine, writer, scope)
    return _arithmetic(cell, affine, dtype, writer, scope)


def _into_host(cell: Cell, host: Site, affine: Affine, writer: Writer, scope: Scope) -> list[Site] | Refusal:
    parameters = [find_float(v, scope) for v in host.node.inputs[1:5]]
    constants = [p for p in parameters if isinstance(p, Constant)]
    if len(constants) != 4:
        return Refusal(RefusalId.NON_CONSTANT_PARAMETER, label(host.node), "its parameters are not constant")
    scale, B, mean, var = constants
    kind = affine.scale.dtype
    if not {affine.scale.size, affine.shift.size} <= {1, *scale.shape}:
        return Refusal(RefusalId.NO_GAIN, label(host.node), "its neighbours count other channels than it does")
    s, t = (np.broadcast_to(a.reshape(-1), scale.shape) for a in (affine.scale, affine.shift))
    new = (
        round_once(s * np.sqrt(var.array().astype(kind) + kind.type(epsilon(host.node))), scale.dtype.numpy()),
        round_once(t + mean.array().astype(kind) * s, B.dtype.numpy()),
    )
    if not all(np.isfinite(a).all() for a in new):
        return Refusal(RefusalId.WOULD_OVERFLOW, label(host.node), "its joined parameters would overflow")
    for index, array in zip((1, 2), new, strict=True):
        writer.parameter(host.node, index, array, f"{label(host.node)}/parameter", scope)
    for site in cell.sites:
        if site is not host:
            bypass(site.node, site.data)
    return [
        Site(
            host.node,
            host.data_index,
            affine,
            host.dtype,
            is_batch_norm=True,
            rounding=limits_of(scale.dtype.numpy()).eps,
        )
    ]


def _arithmetic(
    cell: Cell, affine: Affine, dtype: ir.DataType | None, writer: Writer, scope: Scope
) -> list[Site] | Refusal:
    first, last = cell.sites[0].node, cell.sites[-1].node
    if dtype is None:
        return Refusal(RefusalId.DTYPE_WOULD_LOSE_PRECISION, label(first), "the type of its input is not known")
    steps = [("Mul", affine.scale, affine.has_scale), ("Add", affine.shift, affine.has_shift)]
    wanted = [(op_type, exact, round_once(exact, dtype.numpy())) for op_type, exact, needed in steps if needed]
    for op_type, exact, rounded in wanted:
        refusal = _unfit(first, op_type, exact, rounded)
        if refusal is not None:
            return refusal
    sites: list[Site] = []
    value = cell.start
    one, zero = affine.scale.dtype.type(1), affine.scale.dtype.type(0)
    for op_type, exact, rounded in wanted:
        node = writer.node(op_type, value, rounded, first, f"{label(last)}/{op_type}", scope)
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
