"""What is known of the tensors of a flat graph: where they come from, what they are, which are the same."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ALIKE = ("Identity", "StopGradient", "PreventGradient", "Snapshot")
_SHAPERS = ("Reshape", "Squeeze", "ExpandDims")
_BITS = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}
_ENTERS, _LEAVES = ("Switch", "Enter"), ("Merge", "Exit")
_PURE = (
    *("Add", "AddV2", "Sub", "Mul", "RealDiv", "Neg", "Rsqrt", "Sqrt", "Cast", "Reshape", "Squeeze", "ExpandDims"),
    *("Mean", "SquaredDifference", "Square", "Reciprocal", "Pow", *_ALIKE),
)
_DEPTH = 14

Tensor = Any
Op = Any


@dataclass(frozen=True)
class Peeled:
    """A tensor without what only hands it on.

    Attributes:
        tensor: Where it comes from.
        through: The ops that were passed.
    """

    tensor: Tensor
    through: tuple[Op, ...] = ()


@dataclass
class Facts:
    """A flat graph, asked.

    Attributes:
        graph: A ``tf.Graph`` of which all ops are needed.
        outputs: Names of the tensors that are outputs.
        state: Names of the ops that are variables: constants, as far as the data are concerned.
    """

    graph: Any
    outputs: frozenset[str]
    state: frozenset[str] = frozenset()
    _constant: dict[str, bool] = field(default_factory=dict)

    @cached_property
    def ops(self) -> list[Op]:
        """All ops, readers before what they read; in loops in any order."""
        order: list[Op] = []
        state: dict[str, int] = {}
        for first in self.graph.get_operations():
            waiting = [first]
            while waiting:
                op = waiting[-1]
                if state.get(op.name):
                    waiting.pop()
                    if state[op.name] == 1:
                        state[op.name] = 2
                        order.append(op)
                    continue
                state[op.name] = 1
                waiting += [t.op for t in op.inputs if t.op.name not in state]
        return order[::-1]

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether nothing but constants and variables go into a tensor."""
        waiting, seen = [tensor.op], {tensor.op.name}
        while waiting:
            op = waiting.pop()
            if op.name in self._constant:
                if not self._constant[op.name]:
                    return self._remember(tensor, False)
                continue
            is_given = op.type == "Const" or op.name in self.state
            if not is_given and (not op.inputs or _is_random(op)):
                return self._remember(tensor, False)
            for read in op.inputs:
                if read.op.name not in seen:
                    seen.add(read.op.name)
                    waiting.append(read.op)
        return self._remember(tensor, True)

    def _remember(self, tensor: Tensor, known: bool) -> bool:
        self._constant[tensor.op.name] = known
        return known

    def depends(self, tensor: Tensor, on: Tensor) -> bool:
        """Whether a tensor is made of another one."""
        waiting, seen = [tensor], {tensor.name}
        while waiting:
            found = waiting.pop()
            if found.name == on.name:
                return True
            for read in found.op.inputs:
                if read.name not in seen:
                    seen.add(read.name)
                    waiting.append(read)
        return False

    def is_inside(self, tensor: Tensor) -> bool:
        """Whether a tensor is made inside of a loop or a branch of TensorFlow 1: behind a Switch, before its Merge."""
        waiting, seen = [(tensor.op, 0)], {(tensor.op.name, 0)}
        while waiting:
            op, depth = waiting.pop()
            depth += (op.type in _LEAVES) - (op.type in _ENTERS)
            if depth < 0:
                return True
            for read in op.inputs:
                if (read.op.name, depth) not in seen and depth < _DEPTH:
                    seen.add((read.op.name, depth))
                    waiting.append((read.op, depth))
        return False

    def used_outside(self, op: Op, inside: Iterable[str]) -> bool:
        """Whether an op makes an output, or something that an op of another name reads."""
        names = set(inside)
        return any(t.name in self.outputs or any(c.name not in names for c in t.consumers()) for t in op.outputs)


def _is_random(op: Op) -> bool:
    return bool(op.op_def is None or op.op_def.is_stateful)


def peel(tensor: Tensor, dtype: str, *, shapers: bool = False) -> Peeled:
    """Go back over ops that hand a tensor on.

    Args:
        tensor: Where to begin.
        dtype: Of what is computed in the end: a Cast may lose what this type cannot hold either.
        shapers: Whether to go over changes of shape; row-major order is kept by all of them.
    """
    through: list[Op] = []
    while True:
        op = tensor.op
        passes = op.type in _ALIKE or (op.type == "Cast" and _harmless(op, dtype)) or (shapers and op.type in _SHAPERS)
        if not passes:
            return Peeled(tensor, tuple(through))
        through.append(op)
        tensor = op.inputs[0]


def _harmless(op: Op, dtype: str) -> bool:
    before, after = op.inputs[0].dtype.name, op.outputs[0].dtype.name
    if before not in _BITS or after not in _BITS or {before, after} == {"float16", "bfloat16"}:
        return False
    return _BITS[after] >= min(_BITS[before], _BITS.get(dtype, 99))


def same(a: Tensor, b: Tensor, dtype: str, depth: int = _DEPTH) -> bool:
    """Whether two tensors are provably equal: one and the same, or made alike of equal ones."""
    a, b = peel(a, dtype).tensor, peel(b, dtype).tensor
    if a is b or a.name == b.name:
        return True
    if a.op.type != b.op.type or depth == 0 or a.dtype != b.dtype:
        return False
    if a.op.type == "Const":
        return _equal_constants(a, b)
    if a.op.type not in _PURE or len(a.op.inputs) != len(b.op.inputs):
        return False
    attributes = [{k: v for k, v in op.node_def.attr.items() if not k.startswith("_")} for op in (a.op, b.op)]
    return attributes[0] == attributes[1] and all(
        same(p, q, dtype, depth - 1) for p, q in zip(a.op.inputs, b.op.inputs, strict=True)
    )


def _equal_constants(a: Tensor, b: Tensor) -> bool:
    p, q = array(a), array(b)
    return p is not None and q is not None and p.dtype == q.dtype and p.shape == q.shape and p.tobytes() == q.tobytes()


def array(tensor: Tensor) -> NDArray[Any] | None:
    """Return the value of a Const, also behind ops that hand it on."""
    from tensorflow.python.framework import tensor_util

    origin = peel(tensor, tensor.dtype.name).tensor
    if origin.op.type != "Const":
        return None
    return np.asarray(tensor_util.MakeNdarray(origin.op.get_attr("value")))


def scalar(tensor: Tensor) -> float | None:
    """Return the value of a constant of no axes."""
    value = array(tensor)
    if value is None or value.shape != ():
        return None
    return float(value.astype(tensor.dtype.as_numpy_dtype))


def shape_of(tensor: Tensor) -> tuple[int | None, ...] | None:
    """Return the lengths of a tensor as far as they are known; None without a rank."""
    return None if tensor.shape.rank is None else tuple(tensor.shape.as_list())
