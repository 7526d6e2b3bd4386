"""Numbers that know how far rounding may have moved them: a running error analysis.

A value v stands for every v' with abs(v' − v) ≤ error. Each operation hands the errors of its operands on and adds
its own rounding, ``unit``·abs(result) (N. Higham, Accuracy and Stability of Numerical Algorithms, section 3.3). A sum
of n terms in any order adds (n − 1)·unit·Σ abs(term) (section 4.2). Values are computed in float64; where the
arithmetic that is modelled is float64 itself, they are uncertain by as much, and the caller doubles the error.
"""

from collections.abc import Sequence
from typing import Any, Union

import numpy as np

from tests.conformance.layers.cases import Array

UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-126, "float32": 2.0**-126, "float64": 2.0**-1022}
"""What a number that underflows may lose: subnormal numbers are often flushed to zero, but not those of float16."""

Operand = Union["Approx", Array, float]


class Approx:
    """Values and their errors, arrays that broadcast against each other.

    Attributes:
        value: The values, float64.
        error: How far each may be off.
        unit: Half the distance from 1 to the next number, in the arithmetic that is modelled.
    """

    __array_ufunc__ = None  # an array on the left leaves the operation to this class

    def __init__(self, value: Any, error: Any = 0.0, unit: float = 0.0) -> None:
        self.value = np.asarray(value, np.float64)
        self.error = np.broadcast_to(np.asarray(error, np.float64), self.value.shape)
        self.unit = unit

    def _result(self, value: Array, inherited: Array, roundings: float = 1.0) -> "Approx":
        error = inherited + roundings * self.unit * np.abs(value)
        return Approx(value, error + SMALLEST["float32"] * (self.unit > 0), self.unit)

    def _other(self, other: Operand) -> "Approx":
        return other if isinstance(other, Approx) else Approx(other, 0.0, self.unit)

    def __add__(self, other: Operand) -> "Approx":
        b = self._other(other)
        return self._result(self.value + b.value, self.error + b.error)

    def __neg__(self) -> "Approx":
        return Approx(-self.value, self.error, self.unit)

    def __sub__(self, other: Operand) -> "Approx":
        return self + -self._other(other)

    def __mul__(self, other: Operand) -> "Approx":
        b = self._other(other)
        spread = np.abs(self.value) * b.error + np.abs(b.value) * self.error + self.error * b.error
        return self._result(self.value * b.value, spread)

    def __truediv__(self, other: Operand) -> "Approx":
        b = self._other(other)
        value = self.value / b.value
        room = np.abs(b.value) - b.error
        spread = np.where(room > 0, (self.error + np.abs(value) * b.error) / np.where(room > 0, room, 1), np.inf)
        return self._result(value, spread)

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other: Operand) -> "Approx":
        return self._other(other) - self

    def __rtruediv__(self, other: Operand) -> "Approx":
        return self._other(other) / self

    def off_by(self, more: Operand) -> "Approx":
        """Return the same values with a larger error."""
        return Approx(self.value, self.error + np.abs(np.asarray(more)), self.unit)

    def exact(self) -> "Approx":
        """Return the same values without their error, where it was taken into account already."""
        return Approx(self.value, 0.0, self.unit)

    def sqrt(self) -> "Approx":
        """Return the square root of what is not negative."""
        value, low, high = np.sqrt(self.value), *np.sqrt(self._range(0.0))
        return self._result(value, np.maximum(value - low, high - value), 2)

    def inverse_sqrt(self, least: float) -> "Approx":
        """Return 1/√ of what is never below a bound, however large its error: a variance beside epsilon."""
        value, low, high = 1 / np.sqrt(self.value), *(1 / np.sqrt(self._range(least)))
        return self._result(value, np.maximum(low - value, value - high), 5)  # √, 1/ and their approximations

    def _range(self, least: float) -> Array:
        """Return the lowest and the highest number that is meant."""
        return np.stack([np.maximum(self.value - self.error, least), self.value + self.error])

    def at_least(self, bound: Operand) -> "Approx":
        """Return the maximum with a bound."""
        b = self._other(bound)
        return Approx(np.maximum(self.value, b.value), np.maximum(self.error, b.error), self.unit)

    def at_most(self, bound: Operand) -> "Approx":
        """Return the minimum with a bound."""
        return -((-self).at_least(-self._other(bound)))

    def where(self, chosen: Array) -> "Approx":
        """Return these numbers where they are chosen, and exact zeros elsewhere."""
        return Approx(np.where(chosen, self.value, 0.0), np.where(chosen, self.error, 0.0), self.unit)

    def sum(self, axes: tuple[int, ...]) -> "Approx":
        """Return the sum over some axes."""
        terms = int(np.prod([self.value.shape[a] for a in axes]))
        rounding = max(terms - 1, 0) * self.unit * np.abs(self.value).sum(axes)
        return Approx(self.value.sum(axes), self.error.sum(axes) + rounding, self.unit)

    def __getitem__(self, index: Any) -> "Approx":
        return Approx(self.value[index], self.error[index], self.unit)


def total(parts: Sequence[Approx], axes: tuple[int, ...]) -> Approx:
    """Return the sum over some axes and over several arrays."""
    sums = [part.sum(axes) for part in parts]
    result = sums[0]
    for more in sums[1:]:
        result = result + more
    return result
