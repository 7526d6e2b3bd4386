"""How a site looks at X: which axes are summed over, and where statistics stand when they meet X again.

    X [N, …, C, …]                  statistics [C]: sums over all axes but the channel axis
    X [b·G, …, C, …] -> [b, G, …]   statistics [G, C]: with ghost batches, sample n belongs to ghost batch n mod G

Sums of floats are taken in two steps: the axes behind the channel axis, or the one before it, in float, what is left in
double. ONNX Runtime 1.31 adds floats along a leading axis one by one, with an error of 7e-5 for an ordinary image
layer, 5e-4 for a million rows. In two steps it is 1e-6 at most, in less time, except for [N, C], where all is double.

Shapes that are proved become constants. Of others, Shape and Size are asked at run time. What then does not fit, a
batch that ghost batches do not divide, a parameter of another length, fails in Reshape; broadcasting would go on.
"""

import math
from collections.abc import Sequence
from functools import cached_property

import onnx_ir as ir

from bnpass.expansion.sites import DOUBLE, Kind, Site
from bnpass.expansion.terms import Formulas, Term

_END = 2**63 - 1
_MOST_IN_FLOAT = 2**20
"""As many floats may be added in float, if the runtime adds them in blocks."""


class View:
    """X of one site.

    Attributes:
        dtype: The type in which X is worked on: float for the 16-bit types, else its own.
        x: X, in that type and shape.
        count: n, the elements per channel and ghost batch on this replica: double, [1].

    Args:
        op: Where nodes are written.
        site: The site.
    """

    def __init__(self, op: Formulas, site: Site) -> None:
        self._op, self._site = op, site
        self.dtype = DOUBLE if site.dtype == DOUBLE else ir.DataType.FLOAT
        self._ghost = bool(site.virtual_batch_size)
        rank = len(site.dims)
        axis = site.axis + self._ghost  # ghost batches have an axis of their own, axis 1
        self._behind = max(rank - 1 - site.axis, 0)
        self._between = axis - 2 if self._ghost else 0
        self._summed = tuple(i for i in range(rank + self._ghost) if i != axis and not (self._ghost and i == 1))
        self._inner = self._axes_in_float(axis)
        self._split = self._split_shape() if self._ghost else None
        self.x = self.enter(site.input("X"))
        self.count = self._count()

    @property
    def may_be_empty(self) -> bool:
        """Whether this replica may have no elements."""
        return not self._site.elements

    def parameter(self, name: str) -> Term:
        """Write an input with one number per channel, or per channel and ghost batch, or a count, in double."""
        value = self._site.input(name)
        term = self._op.term(value, value.dtype).to(DOUBLE)
        if name not in self._site.unproved:
            return term
        return term.apply("Reshape", self._shape_of(name), allowzero=1)

    def upstream(self) -> Term:
        """Write dY as ``x``; of another shape than X it fails."""
        value = self._site.input("dY")
        if {"X", "dY"} & self._site.unproved or self._site.elements is None:
            equal = self._op("Equal", self._op("Shape", value), self._shape)
            fits = self._op("ReduceMin", self._op("Cast", equal, to=int(ir.DataType.INT64)), keepdims=1)
            value = self._op("Reshape", value, self._op("Mul", self._shape, fits), allowzero=1)
        return self.enter(value)

    def enter(self, value: ir.Value) -> Term:
        """Write a value of the shape and type of X as ``x``."""
        term = Term(self._op, value, self._site.dtype).to(self.dtype)
        if "X" in self._site.unproved:  # a 0 copies the length
            lengths = [self._site.channels if i == self._site.axis else 0 for i in range(len(self._site.dims))]
            term = term.apply("Reshape", self._op.integers(*lengths))
        if self._split is None:
            return term
        shape, exact = self._split
        return term.apply("Reshape", shape, name="ghost_batches", allowzero=int(exact))

    def leave(self, term: Term, name: str) -> Term:
        """Write a value of the shape and type of ``x`` as X."""
        if self._ghost:
            lengths = [n for n in self._site.dims if isinstance(n, int)]
            known = len(lengths) == len(self._site.dims)
            shape = self._op.integers(*lengths) if known else self._shape
            term = term.apply("Reshape", shape, name="whole_batch", allowzero=1)
        return term.to(self._site.dtype).named(name)

    def sum(self, term: Term) -> Term:
        """Write the sums of a value of ``x``'s shape in double, [C] or [G, C]."""
        inner = () if self.dtype == DOUBLE else self._inner
        outer = [i - sum(j < i for j in inner) for i in self._summed if i not in inner]
        return self._reduced(self._reduced(term, inner).to(DOUBLE), outer)

    def sum_at_once(self, term: Term) -> Term:
        """Write the sums in the type of ``x``, as Keras does."""
        return self._reduced(term, self._summed)

    def _reduced(self, term: Term, axes: Sequence[int]) -> Term:
        if not axes:
            return term
        is_implied = self._site.axis == len(self._site.dims)  # the axis that is left is the one channel
        return term.apply("ReduceSum", self._op.integers(*axes), keepdims=int(is_implied))

    def _axes_in_float(self, channel: int) -> tuple[int, ...]:
        """Return the axes to sum over first: those behind the channel axis, else the one before, never the batch."""
        behind = tuple(i for i in self._summed if i > channel)
        inner = behind or tuple(i for i in self._summed if i == channel - 1 and i > 0)
        lengths = [self._site.dims[i - self._ghost] for i in inner]
        return inner if math.prod(n for n in lengths if isinstance(n, int)) <= _MOST_IN_FLOAT else ()

    def spread(self, vector: Term) -> Term:
        """Write [C] or [G, C] so that it broadcasts against ``x``."""
        if not self._behind and not self._between:
            return vector
        ones = [1] * self._behind
        if not self._ghost:
            return vector.apply("Reshape", self._op.integers(self._site.channels, *ones))
        shape = self._op.integers(-1, *[1] * self._between, self._site.channels, *ones)
        return vector.apply("Reshape", shape)

    def over_groups(self, statistics: Term) -> Term:
        """Write the sums over ghost batches, [C]."""
        if not self._ghost:
            return statistics
        return statistics.apply("ReduceSum", self._op.integers(0), keepdims=0)

    def mean_over_groups(self, statistics: Term) -> Term:
        """Write the averages over ghost batches, [C]; of none, 0."""
        if not self._ghost:
            return statistics
        groups = self._site.groups
        if groups is not None:
            return self.over_groups(statistics) / float(max(groups, 1))
        return self.over_groups(statistics) / self._double(self._groups).at_least(1.0)

    def statistics(self, parameter: Term) -> Term:
        """Write [C], or [G, C], as statistics: [G, C] where there are ghost batches."""
        if not self._ghost:
            return parameter
        return parameter.apply("Expand", self.statistics_shape)

    @cached_property
    def statistics_shape(self) -> ir.Value:
        """The shape of statistics, [C] or [G, C], as a vector."""
        channels, groups = self._site.channels, self._site.groups
        if not self._ghost:
            return self._op.integers(channels)
        if groups is not None:
            return self._op.integers(groups, channels)
        return self._op("Concat", self._groups, self._op.integers(channels), axis=0)

    def _shape_of(self, name: str) -> ir.Value:
        """Write the shape that a parameter has to have."""
        if name == "count":
            return self._op.integers(1)
        if name.startswith("saved"):
            return self.statistics_shape
        either = self._ghost and self._site.kind is Kind.INFERENCE and name.startswith("input")
        return self._op.integers(*[-1] * either, self._site.channels)

    def scalar(self, one: Term) -> Term:
        """Write a vector of one as a scalar."""
        return one.apply("Squeeze", self._op.integers(0))

    def _count(self) -> Term:
        """Write n = elements of X / (C·G); of no ghost batch at all, 0."""
        elements, channels = self._site.elements, max(self._site.channels, 1)
        if elements is not None:
            return self._op.number(float(elements))
        size = self._op("Reshape", self._op("Size", self._site.input("X")), self._op.integers(1))
        share = self._op("Div", size, self._op.integers(channels))
        if self._ghost:
            share = self._op("Div", share, self._op("Max", self._groups, self._op.integers(1)))
        return self._double(share).named("n")

    def _split_shape(self) -> tuple[ir.Value, bool]:
        """Write [b, G, …], and whether a 0 in it is a length: only then can there be one."""
        size, (batch, *rest) = self._site.virtual_batch_size, self._site.dims
        lengths = [n for n in rest if isinstance(n, int)]
        if len(lengths) == len(rest) and isinstance(batch, int):
            return self._op.integers(size, batch // size, *lengths), True
        if len(lengths) == len(rest) and all(lengths):
            return self._op.integers(size, -1, *lengths), False
        behind = self._op("Slice", self._shape, self._op.integers(1), self._op.integers(_END))
        return self._op("Concat", self._op.integers(size), self._groups, behind, axis=0), True

    @cached_property
    def _groups(self) -> ir.Value:
        """G, a vector of one int64."""
        batch = self._op("Slice", self._shape, self._op.integers(0), self._op.integers(1))
        return self._op("Div", batch, self._op.integers(self._site.virtual_batch_size))

    @cached_property
    def _shape(self) -> ir.Value:
        return self._op("Shape", self._site.input("X"))

    def _double(self, vector: ir.Value) -> Term:
        return Term(self._op, self._op("Cast", vector, to=int(DOUBLE)), DOUBLE)
