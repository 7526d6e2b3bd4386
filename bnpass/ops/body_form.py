"""How the bodies of the operators take X apart: arithmetic on its shape, at run time.

    X -> [b, G, P, C, Q]     b samples per ghost batch, G ghost batches, P positions between the batch axis and the
                             channel axis, C channels, Q positions behind; statistics are sums over axes 0, 2 and 4

Lengths are vectors of one int64, so that Concat makes shapes of them. What does not fit fails when it is run, in Gather
or in Reshape, and never gives a number.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import onnx_ir as ir

from bnpass.ops.emit import Emit

_END = 2**63 - 1
"""The end of an axis, for Slice."""


class BodyWriter(Emit):
    """Writes the nodes of a body; equal constants are written once.

    Their names begin with ``body/``, so that none of them is that of an input or output of the function.
    """

    def __init__(self) -> None:
        super().__init__("body")
        self._constants: dict[Hashable, ir.Value] = {}

    def number(self, value: int) -> ir.Value:
        """Write an int64 vector of one number."""
        return self.vector(value)

    def vector(self, *values: int) -> ir.Value:
        """Write a constant int64 vector."""
        return self._once(values, lambda: self.ints(*values))

    def real(self, value: float) -> ir.Value:
        """Write a constant double, a scalar."""
        return self._once(("double", value), lambda: self.floats(value))

    def always(self) -> ir.Value:
        """Write a vector of one true."""
        return self._once("always", lambda: self("Constant", value=ir.tensor([True])))

    def integer_attribute(self, name: str) -> ir.Value:
        """Write an attribute of the function as an int64 vector of one number."""
        reference = ir.RefAttr("value_int", name, ir.AttributeType.INT)
        return self("Reshape", self("Constant", name=name, value_int=reference), self.number(1))

    def real_attribute(self, name: str) -> ir.Value:
        """Write an attribute of the function as a double: the number that the float holds."""
        reference = ir.RefAttr("value_float", name, ir.AttributeType.FLOAT)
        return self.double(self("Constant", name=name, value_float=reference))

    def double(self, value: ir.Value) -> ir.Value:
        """Write a Cast to double."""
        return self("Cast", value, to=int(ir.DataType.DOUBLE))

    def join(self, *vectors: ir.Value, name: str = "dims") -> ir.Value:
        """Write vectors one behind the other."""
        return self("Concat", *vectors, name=name, axis=0)

    def part(self, vector: ir.Value, start: ir.Value, end: ir.Value | None = None, name: str = "part") -> ir.Value:
        """Write a stretch of a vector, to its end if none is given."""
        return self("Slice", vector, start, self.number(_END) if end is None else end, name=name)

    def reshape(self, value: ir.Value, shape: ir.Value, name: str = "Reshape") -> ir.Value:
        """Write a Reshape in which a length of 0 is a length."""
        return self("Reshape", value, shape, name=name, allowzero=1)

    def scalar(self, vector: ir.Value, name: str) -> ir.Value:
        """Write a vector of one number as a scalar."""
        return self("Squeeze", vector, self.vector(0), name=name)

    def at_least_one(self, value: ir.Value) -> ir.Value:
        """Write the larger of a double and 1: a divisor for what may be empty."""
        return self("Max", value, self.real(1.0))

    def _once(self, key: Hashable, write: Callable[[], ir.Value]) -> ir.Value:
        if key not in self._constants:
            self._constants[key] = write()
        return self._constants[key]


@dataclass(frozen=True)
class Form:
    """How a value is taken apart: int64 vectors known at run time.

    Attributes:
        shape: Shape of X.
        packed: [b, G, P, C, Q].
        per_channel: [1, G, 1, C, 1].
        table: [G, C].
        statistics: [C], or [G, C] where there are ghost batches. No Slice: ONNX's inference gets one with a computed
            start wrong.
        groups: G.
        channels: C.
        elements: Elements per channel and ghost batch; 0 if there is no ghost batch at all.
    """

    shape: ir.Value
    packed: ir.Value
    per_channel: ir.Value
    table: ir.Value
    statistics: ir.Value
    groups: ir.Value
    channels: ir.Value
    elements: ir.Value

    def pack(self, op: BodyWriter, value: ir.Value) -> ir.Value:
        """Write a value of the shape of X as [b, G, P, C, Q], in double."""
        return op.reshape(op.double(value), self.packed, "packed")

    def unpack(self, op: BodyWriter, packed: ir.Value, like: ir.Value) -> ir.Value:
        """Write [b, G, P, C, Q] in the shape of X and the type of ``like``."""
        return op("CastLike", op.reshape(packed, self.shape), like)

    def spread(self, op: BodyWriter, table: ir.Value) -> ir.Value:
        """Write [G, C], or as many numbers, as [1, G, 1, C, 1]."""
        return op.reshape(table, self.per_channel, "spread")

    def row(self, op: BodyWriter, parameter: ir.Value) -> ir.Value:
        """Write a parameter as [1, C] in double; another length fails."""
        return op.reshape(op.double(parameter), op.join(op.number(1), self.channels))

    def same(self, op: BodyWriter, value: ir.Value) -> ir.Value:
        """Write ``packed`` for a value of X's shape; for any other, zeros, into which no element fits."""
        equal = op("Equal", op("Shape", value), self.shape)
        return op("Mul", self.packed, op("ReduceProd", op("Cast", equal, to=int(ir.DataType.INT64)), keepdims=1))


def sums(op: BodyWriter, packed: ir.Value, form: Form, name: str = "sums") -> ir.Value:
    """Write the sums over the elements of each channel and ghost batch, a vector of G·C."""
    return _sum(op, packed, (0, 2, 4), op("Mul", form.groups, form.channels), name)


def over_groups(op: BodyWriter, table: ir.Value, form: Form, name: str = "over_groups") -> ir.Value:
    """Write the sums of [G, C] over the ghost batches, [C]."""
    return _sum(op, table, (0,), form.channels, name)


def _sum(op: BodyWriter, value: ir.Value, axes: tuple[int, ...], length: ir.Value, name: str) -> ir.Value:
    """Write sums as a vector.

    Zeros are put behind it and cut off: up to 1.16 ONNX Runtime returns no sums at all where there is nothing to add.
    """
    found = op("Reshape", op("ReduceSum", value, op.vector(*axes), keepdims=1), op.number(-1))
    zeros = op("Expand", op.floats([0.0]), length)
    return op.part(op.join(found, zeros), op.number(0), length, name)


def form_of(op: BodyWriter, X: ir.Value) -> Form:
    """Read the shape of X, ``axis`` and ``virtual_batch_size``."""
    zero, one = op.number(0), op.number(1)
    shape, axis = op("Shape", X, name="shape"), op.integer_attribute("axis")
    channels = op("Gather", shape, axis, name="C", axis=0)  # fails where X has no such axis
    axis = op("Where", op("Less", axis, zero), op("Add", axis, op("Shape", shape)), axis, name="channel_axis")
    of_channels = op("Equal", axis, zero)
    batch = op("Where", of_channels, one, op.part(shape, zero, one), name="N")
    between = _product(op, op.part(shape, one, axis), "P")
    behind = _product(op, op.part(shape, op("Add", axis, one)), "Q")
    samples, groups, is_whole = _ghost_batches(op, batch, of_channels)
    elements = op("Mul", op("Mul", samples, between), behind)
    table = op.join(groups, channels, name="table")
    return Form(
        shape=shape,
        packed=op.join(samples, groups, between, channels, behind, name="packed_shape"),
        per_channel=op.join(one, groups, one, channels, one, name="per_channel"),
        table=table,
        statistics=op("Compress", table, op.join(op("Not", is_whole), op.always()), name="statistics"),
        groups=groups,
        channels=channels,
        elements=op("Where", op("Equal", groups, zero), zero, elements, name="elements"),
    )


def _ghost_batches(op: BodyWriter, batch: ir.Value, of_channels: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Write b, G, and whether the batch is not split at all."""
    zero, one, asked = op.number(0), op.number(1), op.integer_attribute("virtual_batch_size")
    is_whole = op("Equal", asked, zero, name="is_whole")
    divisor = op("Where", is_whole, one, asked)
    is_wrong = op("Or", op("Less", asked, zero), op("And", of_channels, op("Not", is_whole)))
    misfit = op("Where", is_wrong, one, op("Mod", batch, divisor), name="misfit")
    quotient = op("Where", is_whole, one, op("Div", batch, divisor))
    groups = op("Gather", quotient, misfit, name="G", axis=0)  # of one number: fails unless misfit is 0
    return op("Where", is_whole, batch, asked, name="b"), groups, is_whole


def _product(op: BodyWriter, dims: ir.Value, name: str) -> ir.Value:
    """Write the product of lengths; that of none is 1, so a 1 stands before them."""
    return op("ReduceProd", op.join(op.number(1), dims), name=name, keepdims=1)
