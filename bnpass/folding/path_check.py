"""Local check of the way: the nodes as they stand against one affine at the other end of their layout ops.

An affine is read off constants and carried through layout ops by reasoning about axes. Here the very nodes are
run on random numbers, in float64 and by ONNX's definition of each op, and compared with that reasoning.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bnpass.errors import Refusal, RefusalId, VerificationError
from bnpass.folding.recognize import epsilon
from bnpass.graph.batch_norm import is_batch_norm
from bnpass.graph.constants import Constant, broadcast_operand, find_float, rearrange
from bnpass.graph.nodes import Scope, label
from bnpass.graph.shapes import Shapes
from bnpass.semantics.affine import Affine, Array

MAX_ELEMENTS = 1 << 24
"""Largest activation to run a way on; 128 MiB in float64."""

TOLERANCE = 2.0**-44
"""Permitted deviation, relative to the sum of magnitudes of each element: both sides are computed in float64."""

TINY = 1e-300
"""Absolute deviation below which float64 itself is no longer exact."""

_OPERATIONS = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}


@dataclass(frozen=True, eq=False)
class Way:
    """A run of nodes, some of them affines, the others layout ops.

    Attributes:
        nodes: In order, each reading the one before.
        affines: Those of them that are affines.
        start: What the first one reads.
        hint: An affine of ``start``: its lengths tell those of the axes that matter.
    """

    nodes: Sequence[ir.Node]
    affines: frozenset[ir.Node]
    start: ir.Value
    hint: Affine


def check_way(
    way: Way,
    scope: Scope,
    shapes: Shapes,
    *,
    at_start: Affine | None = None,
    at_end: Affine | None = None,
    tolerance: float = TOLERANCE,
) -> Refusal | None:
    """Run a way as it is, and once more without its affines but with those given at its ends.

    Returns:
        None if both agree; a Refusal if the shapes are not known well enough to run it.

    Raises:
        VerificationError: They differ, which is a bug in bnpass.
    """
    for shape in _candidates(way, scope, shapes):
        x = np.random.default_rng(0).standard_normal(shape)
        try:
            before, reach = _run(way.nodes, x, way.affines, scope, shapes)
            moved = _run_without(way.nodes, _apply(at_start, x), way.affines, scope, shapes)
        except ValueError:  # a reshape that this guess of the unknown dimensions does not fit
            continue
        after = _apply(at_end, moved)
        if before.shape != after.shape and shapes.near(way.start, scope) is None:
            continue  # a constant had more axes than this guess
        if not (np.isfinite(before).all() and np.isfinite(after).all()):
            return Refusal(RefusalId.WOULD_OVERFLOW, label(way.nodes[0]), "its numbers leave the range of float64")
        _compare(way, before, after, reach, tolerance)
        return None
    return Refusal(
        RefusalId.AXIS_NOT_PROVABLE,
        label(way.nodes[0]),
        f"the way from '{way.start.name}' cannot be tried on numbers: its shapes are not known or too large",
    )


def _apply(affine: Affine | None, x: Array) -> Array:
    if affine is None:
        return x
    return np.asarray(x * affine.scale.astype(np.float64) + affine.shift.astype(np.float64))


def _compare(way: Way, before: Array, moved: Array, reach: Array, tolerance: float) -> None:
    if before.shape == moved.shape and bool((np.abs(before - moved) <= tolerance * reach + TINY).all()):
        return
    raise VerificationError(
        f"local check failed between '{label(way.nodes[0])}' and '{label(way.nodes[-1])}': the nodes and the affine "
        "they were taken for differ; nothing was written, please report this"
    )


def _candidates(way: Way, scope: Scope, shapes: Shapes) -> Iterator[tuple[int, ...]]:
    """Yield shapes to try: small where only axes matter, true ones where a reshape counts elements."""
    counts = any(n.op_type in ("Reshape", "Flatten") for n in way.nodes)
    dims = shapes.dims(way.start, scope) if counts else shapes.near(way.start, scope)
    lengths = np.broadcast_shapes(way.hint.scale.shape, way.hint.shift.shape)
    if dims is None:
        yield from ((2,) * rank for rank in range(1, 6))
        return
    lengths = lengths or (1,) * len(dims)
    for unknown in (2, 1):
        shape = tuple(
            length if length != 1 else d if isinstance(d, int) and (counts or d == 1) else unknown
            for d, length in zip(dims, lengths, strict=True)
        )
        if math.prod(shape) <= MAX_ELEMENTS:
            yield shape


def _run(
    nodes: Sequence[ir.Node], x: Array, affines: frozenset[ir.Node], scope: Scope, shapes: Shapes
) -> tuple[Array, Array]:
    """Run a way on numbers; return the result and, for each element of it, the sum of magnitudes it is made of."""
    reach = np.abs(x)
    for node in nodes:
        if node in affines:
            x, reach = _run_affine(node, x, reach, scope)
        else:
            x, reach = (run_layout(node, y, scope, shapes) for y in (x, reach))
    return x, reach


def _run_without(
    nodes: Sequence[ir.Node], x: Array, affines: frozenset[ir.Node], scope: Scope, shapes: Shapes
) -> Array:
    """Run a way with its affines left out."""
    for node in nodes:
        if node not in affines:
            x = run_layout(node, x, scope, shapes)
    return x


def run_layout(node: ir.Node, x: Array, scope: Scope, shapes: Shapes) -> Array:
    """Run a layout op on numbers."""
    result = rearrange(node, x, scope)
    if result is not None:
        return result
    dims = shapes.dims(node.outputs[0], scope) or ()
    return x.reshape([d if isinstance(d, int) else -1 for d in dims])


def _run_affine(node: ir.Node, x: Array, reach: Array, scope: Scope) -> tuple[Array, Array]:
    if is_batch_norm(node):
        return _run_batch_norm(node, x, reach, scope)
    if node.op_type == "Neg":
        return -x, reach
    first, second = (_numbers(v, scope) for v in node.inputs)
    placed = None if second is None else broadcast_operand(node, second, x.ndim, scope)
    left, right = (x if first is None else first), (x if placed is None else placed)
    far_left, far_right = (reach if first is None else np.abs(first)), (reach if placed is None else np.abs(placed))
    operation = _OPERATIONS[node.op_type]
    widest = np.add if node.op_type == "Sub" else operation
    return np.asarray(operation(left, right)), np.asarray(widest(far_left, far_right))


def _run_batch_norm(node: ir.Node, x: Array, reach: Array, scope: Scope) -> tuple[Array, Array]:
    scale, B, mean, var = (n for v in node.inputs[1:5] if (n := _numbers(v, scope)) is not None)
    axis = node.attributes.get_int("axis", -1) if node.domain == "bnpass" else 1
    deviation = np.sqrt(var + epsilon(node))
    y = (np.moveaxis(x, axis, -1) - mean) / deviation * scale + B
    far = (np.moveaxis(reach, axis, -1) + np.abs(mean)) / deviation * np.abs(scale) + np.abs(B)
    return np.moveaxis(y, -1, axis), np.moveaxis(far, -1, axis)


def _numbers(value: ir.Value | None, scope: Scope) -> Array | None:
    found = find_float(value, scope)
    return found.array().astype(np.float64) if isinstance(found, Constant) else None
