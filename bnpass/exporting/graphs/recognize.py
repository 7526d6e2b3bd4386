"""Which ops of a flat graph are a batch normalization. What is not provably one is left as it is.

A formula is one if

    - epsilon is a constant scalar, and both inv that it has are the same;
    - mean and var are constants, as scale and B then, or provably those of x (renorm makes scale and B of them too);
    - mean, var, scale and B are of one shape that broadcasts along known channel axes, and does not widen x;
    - nothing else reads what lies between x and its end.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

from bnpass.exporting.graphs.facts import Facts, peel, shape_of
from bnpass.exporting.graphs.formula import Formula, formulas
from bnpass.exporting.graphs.found import Found
from bnpass.exporting.graphs.fused import fused
from bnpass.exporting.graphs.moments import batch_axes
from bnpass.exporting.graphs.refusals import FUSED

_LAST = ("Add", "AddV2", "Sub", "BiasAdd", "Mul", "RealDiv")
_TYPES = ("float16", "bfloat16", "float32", "float64")


def recognized(facts: Facts) -> list[Found]:
    """Return the batch normalization of a graph, in the order of the graph.

    Raises:
        ExportError: A FusedBatchNorm cannot be exported; it is named.
    """
    found: list[Found] = []
    taken: set[str] = set()
    for op in facts.ops:
        if op.type in FUSED:
            found.append(fused(op, facts))
        elif op.type in _LAST and op.name not in taken and op.outputs[0].dtype.name in _TYPES:
            for formula in formulas(op.outputs[0]):
                norm = _norm(op, formula, facts)
                if norm is not None:
                    found.append(norm)
                    taken |= {name for name in formula.inner if not facts.is_constant(_output(facts, name))}
                    break
    return found[::-1]


def suspected(facts: Facts) -> str | None:
    """Return an op that may be a batch normalization in a graph of which shapes and constants are not known."""
    for op in facts.ops:
        if op.type in FUSED:
            return str(op.name)
        if op.type in _LAST and op.outputs[0].dtype.name in _TYPES:
            for formula in formulas(op.outputs[0]):
                if not any(facts.depends(t, formula.x) for t in (formula.mean, formula.var)):
                    return str(op.name)
    return None


def _output(facts: Facts, name: str) -> Any:  # noqa: ANN401  tensors of TensorFlow are untyped
    return facts.graph.get_operation_by_name(name).outputs[0]


def _norm(op: Any, formula: Formula, facts: Facts) -> Found | None:  # noqa: ANN401
    """Return the batch normalization that a formula is, if it is one."""
    X, shape = formula.x, shape_of(formula.x)
    if shape is None or X.dtype != op.outputs[0].dtype:
        return None
    vectors = [t for t in (formula.mean, formula.var, formula.scale, formula.B) if t is not None]
    training = not (facts.is_constant(formula.mean) and facts.is_constant(formula.var))
    if not training and any(not facts.is_constant(t) for t in (formula.scale, formula.B) if t is not None):
        return None
    axes = _training_axes(formula, vectors, shape) if training else _constant_axes(vectors, shape)
    if axes is None or facts.is_constant(X):
        return None
    passed = [n for n in formula.inner if n != op.name and not facts.is_constant(_output(facts, n))]
    if any(facts.used_outside(facts.graph.get_operation_by_name(n), formula.inner) for n in passed):
        return None
    return Found(
        name=op.name,
        X=X,
        Y=op.outputs[0],
        axes=axes,
        epsilon=formula.epsilon,
        training=training,
        scale=formula.scale,
        B=formula.B,
        mean=None if training else formula.mean,
        var=None if training else formula.var,
        moved=_batch_statistics(formula, axes, facts) if training else {},
    )


def _batch_statistics(formula: Formula, axes: tuple[int, ...], facts: Facts) -> dict[str, Any]:
    """Return mean and variance of the batch where others, as moving averages, read them too; scale and B must not."""
    if len(axes) > 1 or any(not facts.is_constant(t) for t in (formula.scale, formula.B) if t is not None):
        return {}
    dtype = "float64" if formula.x.dtype.name == "float64" else "float32"
    found = {}
    for name, tensor in (("running_mean", formula.mean), ("running_var", formula.var)):
        through = peel(tensor, dtype, shapers=True).through
        if any(op.type == "Cast" or op.outputs[0].dtype.name != dtype for op in through):
            continue  # the graph rounds them once more
        vectors = [op for op in through if op.outputs[0].shape.rank == 1]
        inside = {*formula.inner, *(op.name for op in through)}
        if any(facts.used_outside(op, inside) for op in vectors):
            found[name] = vectors[-1].outputs[0]
    return found


def _training_axes(formula: Formula, vectors: Sequence[Any], shape: tuple[int | None, ...]) -> tuple[int, ...] | None:
    """Return the axes that the statistics of the batch keep; samples must not be one of them."""
    axes = batch_axes(formula.mean, formula.var, formula.x)
    if axes is None or (0 in axes and len(shape) > 1) or any(shape[a] is None for a in axes):
        return None
    wanted = tuple(n if i in axes else 1 for i, n in enumerate(shape))
    return axes if all(_padded(t, len(shape)) == wanted for t in vectors) else None


def _constant_axes(vectors: Sequence[Any], shape: tuple[int | None, ...]) -> tuple[int, ...] | None:
    """Return the axes along which constants of one shape differ."""
    shapes = {_padded(t, len(shape)) for t in vectors}
    if len(shapes) != 1:
        return None
    (padded,) = shapes
    if padded is None or any(n not in (1, length) or n == 0 for n, length in zip(padded, shape, strict=True)):
        return None
    axes = tuple(i for i, n in enumerate(padded) if n != 1)
    return axes or _axis_of_one(shape)


def _axis_of_one(shape: tuple[int | None, ...]) -> tuple[int, ...] | None:
    """Return the axis of a single channel: the last, the second, or another one of length 1."""
    rank = len(shape)
    for axis in dict.fromkeys((rank - 1, *([1] if rank > 1 else []), *range(rank - 1, -1, -1))):
        if rank and shape[axis] == 1:
            return (axis,)
    return None


def _padded(tensor: Any, rank: int) -> tuple[int, ...] | None:  # noqa: ANN401
    """Return the shape with which a tensor broadcasts against a rank; None if it has more axes or unknown ones."""
    shape = shape_of(tensor)
    if shape is None or len(shape) > rank or None in shape:
        return None
    known = tuple(n for n in shape if n is not None)
    return (1,) * (rank - len(known)) + known if prod(known) else None
