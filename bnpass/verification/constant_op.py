"""``Constant`` in float64, where its number comes from an attribute of the function around it."""

from typing import Any, TypeAlias

import numpy as np
from onnx.reference.ops.op_constant import Constant_12

from bnpass.verification.windows import Array

__all__ = ["Constant"]

Attribute: TypeAlias = Any  # what an attribute holds is checked by ONNX's schema, not by a type checker


class Constant(Constant_12):
    """Constant; a float that is given by reference is one that no retyping of the model has reached."""

    op_domain = ""

    def _run(self, **attributes: Attribute) -> tuple[Array]:
        (value,) = super()._run(**attributes)  # type: ignore[no-untyped-call]
        return (value.astype(np.float64) if value.dtype == np.float32 else value,)
