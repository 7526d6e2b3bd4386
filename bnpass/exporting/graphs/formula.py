"""The formula of batch normalization, as it is written in ops.

    x·inv + (B - mean·inv)             tf.nn.batch_normalization; without B, x·inv + (-mean)·inv
    (x - mean)·inv + B                 by hand
    (x - mean) / √(var + epsilon)·scale + B

    inv = scale·rsqrt(var + epsilon), scale / √(var + epsilon), or without scale

It is read from its last op on. ``inner`` collects what lies between that and x, mean, var, scale and B.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bnpass.exporting.graphs.facts import peel, same, scalar

_ADDS = ("Add", "AddV2", "BiasAdd")


@dataclass(frozen=True)
class Formula:
    """A formula that was read; mean and x are None where only inv was read.

    Attributes:
        var: The variance; this and the next are tensors.
        epsilon: Added to it.
        scale: None where there is none; as B.
        B: Shift.
        mean: The mean.
        x: The data.
        inner: Names of the ops in between.
    """

    var: Any
    epsilon: float
    scale: Any = None
    B: Any = None
    mean: Any = None
    x: Any = None
    inner: frozenset[str] = frozenset()

    def around(self, inner: frozenset[str]) -> "Formula":
        """Return it with more ops in between."""
        return replace(self, inner=self.inner | inner)


@dataclass(frozen=True)
class _Reader:
    """Reads tensors of one graph; what a Cast loses that this type cannot hold either, does not matter."""

    dtype: str

    def enter(self, tensor: Any) -> tuple[Any, frozenset[str]]:  # noqa: ANN401  tensors of TensorFlow are untyped
        """Return the op behind what hands a tensor on, and the names of all that."""
        peeled = peel(tensor, self.dtype)
        return peeled.tensor.op, frozenset(op.name for op in (*peeled.through, peeled.tensor.op))

    def root(self, tensor: Any) -> tuple[Any, frozenset[str]]:  # noqa: ANN401
        """Return the op that makes a tensor: the last one of a formula."""
        return tensor.op, frozenset({tensor.op.name})

    def variance(self, tensor: Any) -> Formula | None:  # noqa: ANN401
        """Read var + epsilon."""
        op, inner = self.enter(tensor)
        if op.type not in ("Add", "AddV2"):
            return None
        for epsilon, var in ((op.inputs[1], op.inputs[0]), (op.inputs[0], op.inputs[1])):
            value = scalar(epsilon)
            if value is not None and 0 <= value < np.inf:
                return Formula(var, value, inner=inner | self.enter(epsilon)[1])
        return None

    def inverse(self, tensor: Any) -> Formula | None:  # noqa: ANN401
        """Read 1/√(var + epsilon), without a scale."""
        op, inner = self.enter(tensor)
        below = None
        if op.type == "Rsqrt":
            below = op.inputs[0]
        elif op.type == "Pow" and scalar(op.inputs[1]) == -0.5:
            below, inner = op.inputs[0], inner | self.enter(op.inputs[1])[1]
        elif op.type in ("Reciprocal", "Inv"):
            return self._with(self.stddev(op.inputs[0]), inner)
        elif op.type == "RealDiv" and scalar(op.inputs[0]) == 1:
            return self._with(self.stddev(op.inputs[1]), inner | self.enter(op.inputs[0])[1])
        return None if below is None else self._with(self.variance(below), inner)

    def stddev(self, tensor: Any) -> Formula | None:  # noqa: ANN401
        """Read √(var + epsilon)."""
        op, inner = self.enter(tensor)
        if op.type == "Pow" and scalar(op.inputs[1]) == 0.5:
            return self._with(self.variance(op.inputs[0]), inner | self.enter(op.inputs[1])[1])
        return self._with(self.variance(op.inputs[0]), inner) if op.type == "Sqrt" else None

    def inv(self, tensor: Any) -> Formula | None:  # noqa: ANN401
        """Read inv: 1/√(var + epsilon), with a scale or without."""
        plain = self.inverse(tensor)
        if plain is not None:
            return plain
        op, inner = self.enter(tensor)
        if op.type == "RealDiv":
            found = self.stddev(op.inputs[1])
            return None if found is None else replace(found.around(inner), scale=op.inputs[0])
        if op.type == "Mul":
            for factor, scale in _both(op):
                found = self.inverse(factor)
                if found is not None:
                    return replace(found.around(inner), scale=scale)
        return None

    def affine(self, tensor: Any) -> Formula | None:  # noqa: ANN401
        """Read x·inv + (B - mean·inv)."""
        op, inner = self.root(tensor)
        if op.type not in ("Add", "AddV2", "Sub"):
            return None
        pairs = iter([tuple(op.inputs)]) if op.type == "Sub" else _both(op)
        for product, shift in pairs:
            above, through = self.enter(product)
            if above.type != "Mul":
                continue
            for x, factor in _both(above):
                found = self.inv(factor)
                moved = None if found is None else self.shift(shift, factor, negative=op.type == "Sub")
                if found is not None and moved is not None:
                    return replace(found.around(inner | through | moved.inner), x=x, mean=moved.mean, B=moved.B)
        return None

    def shift(self, tensor: Any, factor: Any, *, negative: bool) -> Formula | None:  # noqa: ANN401
        """Read B - mean·inv, where inv is known; if it is subtracted, mean·inv alone."""
        op, inner = self.enter(tensor)
        if negative:
            return self._times(tensor, factor)
        if op.type == "Sub":
            found = self._times(op.inputs[1], factor)
            return None if found is None else replace(found.around(inner), B=op.inputs[0])
        if op.type == "Neg":
            return self._with(self._times(op.inputs[0], factor), inner)
        if op.type == "Mul":
            for minus, other in _both(op):
                neg, through = self.enter(minus)
                inverse = self.inv(other) if neg.type == "Neg" and same(other, factor, self.dtype) else None
                if inverse is not None:
                    return replace(inverse.around(inner | through), mean=neg.inputs[0], scale=None)
        return None

    def _times(self, tensor: Any, factor: Any) -> Formula | None:  # noqa: ANN401
        """Read mean·inv."""
        op, inner = self.enter(tensor)
        if op.type == "Mul":
            for mean, other in _both(op):
                if same(other, factor, self.dtype):
                    inverse = self.inv(other)
                    return None if inverse is None else replace(inverse.around(inner), mean=mean, scale=None)
        return None

    def centred(self, tensor: Any, *, first: bool) -> Formula | None:  # noqa: ANN401
        """Read (x - mean)·inv or (x - mean)/√(var + epsilon)."""
        op, inner = self.root(tensor) if first else self.enter(tensor)
        if op.type == "RealDiv":
            return self._less_mean(op.inputs[0], self._with(self.stddev(op.inputs[1]), inner))
        if op.type == "Mul":
            for difference, factor in _both(op):
                found = self._less_mean(difference, self._with(self.inv(factor), inner))
                if found is not None:
                    return found
        return None

    def _less_mean(self, tensor: Any, found: Formula | None) -> Formula | None:  # noqa: ANN401
        op, inner = self.enter(tensor)
        if found is None or op.type != "Sub":
            return None
        return replace(found.around(inner), x=op.inputs[0], mean=op.inputs[1])

    def scaled(self, tensor: Any, *, first: bool) -> Formula | None:  # noqa: ANN401
        """Read what ``centred`` reads, times a scale if it has none yet."""
        plain = self.centred(tensor, first=first)
        op, inner = self.root(tensor) if first else self.enter(tensor)
        if plain is not None or op.type != "Mul":
            return plain
        for product, scale in _both(op):
            found = self.centred(product, first=False)
            if found is not None and found.scale is None:
                return replace(found.around(inner), scale=scale)
        return None

    def shifted(self, tensor: Any) -> Formula | None:  # noqa: ANN401
        """Read what ``scaled`` reads, plus B."""
        op, inner = self.root(tensor)
        if op.type not in _ADDS or (op.type == "BiasAdd" and op.get_attr("data_format") != b"NHWC"):
            return None
        for product, B in _both(op) if op.type != "BiasAdd" else iter([(op.inputs[0], op.inputs[1])]):
            found = self.scaled(product, first=False)
            if found is not None:
                return replace(found.around(inner), B=B)
        return None

    @staticmethod
    def _with(found: Formula | None, inner: frozenset[str]) -> Formula | None:
        return None if found is None else found.around(inner)


def formulas(tensor: Any) -> Iterator[Formula]:  # noqa: ANN401
    """Return what a tensor can be read as, the longest formula first; ``inner`` holds its op too."""
    reader = _Reader(tensor.dtype.name)
    for found in (reader.affine(tensor), reader.shifted(tensor), reader.scaled(tensor, first=True)):
        if found is not None:
            yield found


def _both(op: Any) -> Iterator[tuple[Any, Any]]:  # noqa: ANN401
    a, b = op.inputs
    yield a, b
    yield b, a
