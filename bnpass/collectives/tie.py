"""A value that waits for another one, without a change of a single bit.

``after`` carries order where an operator has it; elsewhere the order has to be data:

    tied = Reshape(value, Shape(value) + min(count of NaN in awaited, 0))

The count is never negative, so the shape stays what it is, whatever the numbers are: NaN, infinities, none at all. No
arithmetic touches ``value``, which can be of any type. The count is known when ``awaited`` is, not before: no
optimizer can replace it by a constant without reasoning about the range of a sum. On a GPU the shape is needed on
the host, so one number is copied there for each tie.
"""

import numpy as np
import onnx_ir as ir

from bnpass.ops.emit import Emit


def tie(op: Emit, value: ir.Value, awaited: ir.Value) -> ir.Value:
    """Write the nodes that give ``value`` once ``awaited`` is there.

    Args:
        op: Where they are written; opset 14 or newer.
        value: A tensor of any type and shape.
        awaited: A tensor of any type that casts to float.

    Returns:
        A value of the same type, shape and numbers as ``value``.
    """
    is_nan = op("IsNaN", op("Cast", awaited, to=int(ir.DataType.FLOAT)))
    count = op("ReduceSum", op("Cast", is_nan, to=int(ir.DataType.INT64)), keepdims=0)  # []
    zero = op("Min", count, op("Constant", name="zero", value=ir.tensor(np.array(0, np.int64))))
    shape = op("Add", op("Shape", value), zero)
    # A dimension of 0 is read as "that of the input", which is 0.
    tied = op("Reshape", value, shape, name="tied")
    tied.type, tied.shape = value.type, value.shape
    return tied
