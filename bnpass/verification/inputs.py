"""Inputs to try a model with: drawn at random or given, at several sizes where the model leaves them open.

Draws rotate through kinds of values, because each hides something: normal values hide what happens far
from zero, a large offset hides signs, dense values hide exact zeros. Every draw has its own generator,
``default_rng(seed + draw)``, and its own sizes: an open batch is 1, then 2; an open image 32, then 48. A
draw offers several sizes in turn, since a model may only run at some; the original decides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bnpass.errors import UsageError
from bnpass.verification.windows import Array

__all__ = ["KINDS", "Draw", "make_draws", "model_inputs"]

KINDS = ("normal", "offset", "uniform with zeros", "one-hot")

_BATCHES = (1, 2)
# First choice for even and odd draws; the others are tried where the original does not run at it.
_SIZES = ((32, 48), (64, 96), (224, 256), (16, 24), (128, 192), (1, 1))
_OFFSET = 10.0
_SMALL_INTEGERS = 10
_MAX_ELEMENTS = 1 << 27

_INDEX_INPUTS = {
    "Gather": 1,
    "GatherElements": 1,
    "GatherND": 1,
    "ScatterElements": 1,
    "ScatterND": 1,
    "OneHot": 0,
    "EmbedLayerNormalization": 0,
}

_NUMPY = {
    dtype: dtype.numpy()
    for dtype in (
        *(ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE),
        *(ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
        *(ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64),
        ir.DataType.BOOL,
    )
}


@dataclass(frozen=True)
class Draw:
    """One set of inputs at one size.

    Attributes:
        kind: What the values are.
        arrays: By input name, in the model's own types.

    """

    kind: str
    arrays: Mapping[str, Array]

    @property
    def sizes(self) -> str:
        """Name and shape of every input, ``x:1,3,32,32``."""
        return " ".join(f"{name}:{','.join(map(str, a.shape))}" for name, a in self.arrays.items())


def model_inputs(model: ir.Model) -> tuple[ir.Value, ...]:
    """Return the graph inputs that have no default value."""
    return tuple(value for value in model.graph.inputs if not value.is_initializer())


def make_draws(
    model: ir.Model,
    *,
    draws: int,
    seed: int,
    shapes: Mapping[str, Sequence[int]],
    data: Mapping[str, Array],
    batch: int | None = None,
) -> tuple[tuple[Draw, ...], ...]:
    """Make the inputs of every draw.

    Args:
        model: The original.
        draws: How many; one if `data` covers every input.
        seed: The first draw's seed.
        shapes: Shapes that the user gave.
        data: Arrays that the user gave.
        batch: Length of an open batch, in place of 1 and 2.

    Returns:
        Per draw, candidates in the order in which they are to be tried.

    Raises:
        UsageError: An input cannot be drawn, or what was given does not fit the model.

    """
    values = model_inputs(model)
    _check_names(values, shapes, data)
    given = {str(value.name): _given(value, data[str(value.name)]) for value in values if value.name in data}
    fixed = {name: tuple(shape) for name, shape in shapes.items()} | {n: a.shape for n, a in given.items()}
    if values and len(given) == len(values):
        draws = 1
    plans = [_Plan(value, fixed) for value in values]
    return tuple(_candidates(plans, fixed, given, seed, draw, batch) for draw in range(draws))


def _check_names(values: Sequence[ir.Value], *mappings: Mapping[str, object]) -> None:
    known = {str(value.name) for value in values}
    for mapping in mappings:
        for name in mapping:
            if name not in known:
                raise UsageError(f"The model has no input '{name}'; its inputs are {', '.join(sorted(known))}")


def _given(value: ir.Value, array: Array) -> Array:
    """The user's array in the type of the input."""
    if value.dtype is ir.DataType.STRING and array.dtype.kind == "U":
        return array
    target = _NUMPY.get(value.dtype) if value.dtype is not None else None
    if target is None or array.dtype.hasobject or not _castable(array.dtype, target):
        raise UsageError(f"The data for input '{value.name}' is of type {array.dtype}, not {value.dtype}")
    if value.shape is not None:
        expected = value.shape.dims
        fits = len(expected) == array.ndim and all(
            not isinstance(dim, int) or dim == size for dim, size in zip(expected, array.shape, strict=True)
        )
        if not fits:
            raise UsageError(f"The data for input '{value.name}' has shape {array.shape}, not {value.shape}")
    return array.astype(target)


def _castable(source: np.dtype[np.generic], target: np.dtype[np.generic]) -> bool:
    if source == target:
        return True
    floats = source.kind == "f" and (target.kind == "f" or target.name == "bfloat16")
    return floats or (source.kind in "iu" and target.kind in "iu")


class _Plan:
    """One input: what is known about its type and its dimensions."""

    def __init__(self, value: ir.Value, fixed: Mapping[str, tuple[int, ...]]) -> None:
        self.name = str(value.name)
        self.dtype = value.dtype
        if not isinstance(value.type, ir.TensorType) or value.dtype is None:
            raise UsageError(f"Input '{self.name}' is not a tensor of known type; it cannot be drawn")
        if value.dtype not in _NUMPY and value.dtype is not ir.DataType.STRING:
            raise UsageError(f"Input '{self.name}' is of type {value.dtype}, which cannot be drawn or given")
        if value.shape is None and self.name not in fixed:
            raise UsageError(f"Input '{self.name}' has no shape: give one with --shape {self.name}:1,3,224,224")
        self.dims: list[int | str | None] = (
            [dim if isinstance(dim, int) else dim.value for dim in value.shape.dims]
            if value.shape is not None
            else [None] * len(fixed[self.name])
        )
        if any(size < 0 for size in fixed.get(self.name, ())):
            raise UsageError(f"The shape {list(fixed[self.name])} given for input '{self.name}' has negative sizes")
        if self.name in fixed and len(fixed[self.name]) != len(self.dims):
            raise UsageError(f"Input '{self.name}' has {len(self.dims)} dimensions, not {len(fixed[self.name])}")
        self.known = _known_by_consumers(value, len(self.dims))
        self.is_index = _is_index(value)

    def shape(self, bound: dict[str, int], batch: int, size: int) -> tuple[int, ...]:
        """Fill the open dimensions; a named one takes the same size everywhere."""
        shape = []
        for axis, dim in enumerate(self.dims):
            if isinstance(dim, int):
                shape.append(dim)
                continue
            free = self.known.get(axis, batch if axis == 0 else size)
            shape.append(free if dim is None else bound.setdefault(dim, free))
        return tuple(shape)


def _known_by_consumers(value: ir.Value, rank: int) -> dict[int, int]:
    """Sizes that the weights of direct consumers dictate."""
    for node, index in value.uses():
        if index != 0 or len(node.inputs) < 2 or node.inputs[1] is None:
            continue
        weight = node.inputs[1].shape
        if weight is None or not all(isinstance(dim, int) for dim in weight.dims):
            continue
        sizes = [int(dim) for dim in weight.dims if isinstance(dim, int)]
        if node.op_type == "Conv" and len(sizes) > 1:
            return {1: sizes[1] * node.attributes.get_int("group", 1)}
        if node.op_type in ("ConvTranspose", "BatchNormalization") and sizes:
            return {1: sizes[0]}
        if node.op_type == "MatMul" and len(sizes) > 1:
            return {rank - 1: sizes[-2]}
        if node.op_type == "Gemm" and len(sizes) > 1 and not node.attributes.get_int("transA", 0):
            return {1: sizes[1 if node.attributes.get_int("transB", 0) else 0]}
    return {}


def _is_index(value: ir.Value) -> bool:
    """Tell whether an integer input reaches the index of a Gather or the like."""
    if value.dtype is None or value.dtype.is_floating_point():
        return False
    pending, seen = [value], {value}
    while pending:
        for node, index in pending.pop().uses():
            if _INDEX_INPUTS.get(node.op_type) == index:
                return True
            for output in node.outputs:
                if output not in seen and (output.dtype is None or not output.dtype.is_floating_point()):
                    seen.add(output)
                    pending.append(output)
    return False


def _candidates(
    plans: Sequence[_Plan],
    fixed: Mapping[str, tuple[int, ...]],
    given: Mapping[str, Array],
    seed: int,
    draw: int,
    batch: int | None,
) -> tuple[Draw, ...]:
    batches = (_BATCHES[draw % len(_BATCHES)], 1) if batch is None else (batch,)
    tried: dict[tuple[tuple[int, ...], ...], None] = {}
    for number in dict.fromkeys(batches):
        for sizes in _SIZES:
            bound: dict[str, int] = {}
            for plan in plans:
                if plan.name in fixed:
                    named = zip(plan.dims, fixed[plan.name], strict=True)
                    bound.update({dim: size for dim, size in named if isinstance(dim, str)})
            size = sizes[draw % len(sizes)]
            shapes = tuple(fixed.get(plan.name) or plan.shape(bound, number, size) for plan in plans)
            if all(np.prod(shape, dtype=float) <= _MAX_ELEMENTS for shape in shapes):
                tried.setdefault(shapes)
    kind = "data" if given and len(given) == len(plans) else KINDS[draw % len(KINDS)]
    found = []
    for shapes in tried:
        rng = np.random.default_rng(seed + draw)
        arrays = {
            plan.name: given[plan.name] if plan.name in given else _draw(plan, shape, kind, rng)
            for plan, shape in zip(plans, shapes, strict=True)
        }
        found.append(Draw(kind, arrays))
    if not found:
        raise UsageError("The inputs are too large to be drawn: give their sizes with --shape name:1,3,224,224")
    return tuple(found)


def _draw(plan: _Plan, shape: tuple[int, ...], kind: str, rng: np.random.Generator) -> Array:
    if plan.dtype is ir.DataType.STRING or plan.dtype is None:
        raise UsageError(f"Input '{plan.name}' is made of strings, which are not drawn: give them as data")
    target = _NUMPY[plan.dtype]
    if plan.dtype is ir.DataType.BOOL:
        return rng.integers(0, 2, shape).astype(target)
    if not plan.dtype.is_floating_point():
        return rng.integers(0, 2 if plan.is_index else _SMALL_INTEGERS, shape).astype(target)
    if kind == "one-hot":
        return _one_hot(shape, rng).astype(target)
    if kind == "uniform with zeros":
        values = rng.uniform(-1, 1, shape)
        return np.where(rng.random(shape) < 0.25, 0.0, values).astype(target)
    offset = _OFFSET if kind == "offset" else 0.0
    return (rng.standard_normal(shape) + offset).astype(target)


def _one_hot(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """One 1 along axis 1 (the channels), or along the only axis."""
    if not shape:
        return np.ones(())
    axis = 1 if len(shape) > 1 else 0
    values = np.zeros(shape)
    if values.size:
        places = rng.integers(0, shape[axis], tuple(1 if i == axis else n for i, n in enumerate(shape)))
        np.put_along_axis(values, places, 1.0, axis=axis)
    return values
