"""Write ONNX nodes one by one, in the order of a formula."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, DTypeLike

Attribute: TypeAlias = int | float | str | Sequence[int] | ir.Graph | ir.TensorProtocol | ir.Attr


class Emit:
    """Nodes of one construction, each made by a call.

    Attributes:
        nodes: What was written so far, in order.

    Args:
        prefix: What the names of nodes and values begin with: the layer or node that they stand for.

    Example:
        >>> op = Emit("bn")
        >>> x = ir.val("x", ir.DataType.FLOAT, [3])
        >>> op("Mul", x, op.floats(2.0, np.float32), name="twice").name
        'bn/twice'
    """

    def __init__(self, prefix: str = "") -> None:
        self.nodes: list[ir.Node] = []
        self._prefix = f"{prefix}/" if prefix else ""
        self._taken: dict[str, int] = {}

    def __call__(
        self, op_type: str, *inputs: ir.Value | None, name: str = "", domain: str = "", **attributes: Attribute
    ) -> ir.Value:
        """Write a node with one output and return it; ``name`` is that of the output."""
        return self.many(op_type, inputs, [name or op_type], domain=domain, **attributes)[0]

    def many(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        names: Sequence[str],
        *,
        domain: str = "",
        **attributes: Attribute,
    ) -> Sequence[ir.Value]:
        """Write a node with the named outputs and return them; an output named ``""`` is left out."""
        outputs = [ir.Value(name=self._name(name) if name else "") for name in names]
        given = [
            value if isinstance(value, ir.Attr) else ir.convenience.convert_attribute(key, value)
            for key, value in attributes.items()
        ]
        first = next((v.name for v in outputs if v.name), None)
        node = ir.Node(domain, op_type, inputs, given, outputs=outputs, name=first or self._name(op_type))
        self.nodes.append(node)
        return outputs

    def ints(self, *values: int) -> ir.Value:
        """Write a constant vector of int64."""
        return self("Constant", name="ints", value=ir.tensor(np.array(values, np.int64)))

    def floats(self, values: ArrayLike, dtype: DTypeLike = np.float64) -> ir.Value:
        """Write a constant of a floating point type, of the shape of ``values``."""
        return self("Constant", name="constant", value=ir.tensor(np.array(values, dtype)))

    def cast(self, value: ir.Value, to: ir.DataType, name: str = "") -> ir.Value:
        """Write a Cast, unless the value is known to be of that type."""
        if value.dtype == to:
            return value
        result = self("Cast", value, name=name or "cast", to=int(to))
        result.dtype = to
        return result

    def _name(self, wanted: str) -> str:
        number = self._taken[wanted] = self._taken.get(wanted, -1) + 1
        return f"{self._prefix}{wanted}" if number == 0 else f"{self._prefix}{wanted}_{number}"
