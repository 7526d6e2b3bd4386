"""Formulas that write ONNX nodes: arithmetic on a term is a node, so that an expansion reads as what it computes.

Arithmetic on constants is done here, and what changes nothing (x·1, x/1, x + 0, x − 0) is not written. Graphs stay
small, and ONNX Runtime 1.31.1 refuses a valid model where its own fusions of (x/1)·(1/y) get in each other's way.
"""

from collections.abc import Hashable
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from bnpass.ops.emit import Emit

DOUBLE = ir.DataType.DOUBLE

_ARITHMETIC = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}
_NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0}
_COMMUTES = frozenset({"Add", "Mul"})


class Formulas(Emit):
    """Writes nodes; equal constants are written once.

    Args:
        prefix: What the names of nodes and values begin with.
    """

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix)
        self._constants: dict[Hashable, ir.Value] = {}

    def term(self, value: ir.Value, dtype: ir.DataType | None) -> "Term":
        """Return a value as a term, in double if its type is not known."""
        if dtype is None:
            return Term(self, self.cast(value, DOUBLE), DOUBLE)
        return Term(self, value, dtype)

    def number(self, number: float, dtype: ir.DataType = DOUBLE) -> "Term":
        """Return a constant, a vector of one."""
        constant = np.asarray(number, dtype.numpy())
        key = (constant.tobytes(), dtype)
        if key not in self._constants:
            self._constants[key] = self.floats(constant.reshape(1), dtype.numpy())
        return Term(self, self._constants[key], dtype, constant)

    def integers(self, *numbers: int) -> ir.Value:
        """Write a constant vector of int64."""
        if numbers not in self._constants:
            self._constants[numbers] = self.ints(*numbers)
        return self._constants[numbers]

    def name_of(self, wanted: str) -> str:
        """Return a name that no other value here has."""
        return self._name(wanted)


class Term:
    """A value of known type under construction.

    Attributes:
        value: The graph value.
        dtype: Its type.
        constant: Its number, if it is a constant.
    """

    def __init__(self, op: Formulas, value: ir.Value, dtype: ir.DataType, constant: Any = None) -> None:  # noqa: ANN401
        self._op, self.value, self.dtype, self.constant = op, value, dtype, constant

    def apply(self, op_type: str, *others: "ir.Value | Term", name: str = "", **attributes: int) -> "Term":
        """Write a node with this term as its first input; the result has the same type."""
        values = [other.value if isinstance(other, Term) else other for other in others]
        result = self._op.many(op_type, [self.value, *values], [name or op_type], domain="", **attributes)[0]
        return Term(self._op, result, self.dtype)

    def to(self, dtype: ir.DataType) -> "Term":
        """Write a Cast, unless it is of that type."""
        if dtype == self.dtype:
            return self
        if self.constant is not None:
            return self._op.number(self.constant, dtype)
        return Term(self._op, self._op("Cast", self.value, to=int(dtype)), dtype)

    def named(self, name: str) -> "Term":
        """Name the value and its node, if it is what was written last."""
        node = self.value.producer()
        if node is not None and node in self._op.nodes[-1:]:
            self.value.name = node.name = self._op.name_of(name)
        return self

    def at_least(self, bound: float) -> "Term":
        """Write the larger of the term and a number; NaN stays NaN."""
        if self.constant is not None:
            return self._op.number(max(self.constant, bound), self.dtype)
        return self.apply("Max", self._op.number(bound, self.dtype))

    def sqrt(self) -> "Term":
        """Write the square root."""
        return self.apply("Sqrt")

    def where_positive(self, of: "Term", otherwise: "Operand") -> "Term":
        """Write this term where ``of`` is positive, else the other."""
        if of.constant is not None and of.constant > 0:
            return self
        condition = of.apply("Greater", self._op.number(0.0, of.dtype)).value
        chosen = self._op("Where", condition, self.value, self._coerced(otherwise).value)
        return Term(self._op, chosen, self.dtype)

    def __add__(self, other: "Operand") -> "Term":
        return self._binary("Add", other)

    def __sub__(self, other: "Operand") -> "Term":
        return self._binary("Sub", other)

    def __mul__(self, other: "Operand") -> "Term":
        return self._binary("Mul", other)

    def __truediv__(self, other: "Operand") -> "Term":
        return self._binary("Div", other)

    def __rmul__(self, other: float) -> "Term":
        return self._coerced(other) * self

    def __rtruediv__(self, other: float) -> "Term":
        return self._coerced(other) / self

    def __neg__(self) -> "Term":
        return self.apply("Neg")

    def _binary(self, op_type: str, operand: "Operand") -> "Term":
        other, neutral = self._coerced(operand), _NEUTRAL[op_type]
        if self.constant is not None and other.constant is not None:
            return self._op.number(_ARITHMETIC[op_type](self.constant, other.constant), self.dtype)
        if other.constant == neutral:
            return self
        if self.constant == neutral and op_type in _COMMUTES:
            return other
        return self.apply(op_type, other)

    def _coerced(self, other: "Operand") -> "Term":
        if not isinstance(other, Term):
            return self._op.number(other, self.dtype)
        if other.dtype != self.dtype:
            raise TypeError(f"a formula mixes {self.dtype.name} and {other.dtype.name}")
        return other


Operand: TypeAlias = Term | float
