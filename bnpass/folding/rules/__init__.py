"""What each op can do with an affine.

``LINEAR`` ops take one in, on either side; ``CARRIERS`` let one pass, unchanged in value. A new op is a new
row here and a function in the file of its family.
"""

from collections.abc import Callable

import onnx_ir as ir

from bnpass.errors import Refusal
from bnpass.folding.linear import Linear
from bnpass.folding.rules import conv, conv_transpose, gemm, layout, matmul
from bnpass.graph.nodes import Scope

Describe = Callable[[ir.Node, Scope], Linear | Refusal]

LINEAR: dict[str, Describe] = {
    "Conv": conv.describe,
    "ConvTranspose": conv_transpose.describe,
    "Gemm": gemm.describe,
    "MatMul": matmul.describe,
}

CARRIERS: dict[str, layout.Carry] = {
    "Identity": layout.identity,
    "Dropout": layout.dropout,
    "Cast": layout.cast,
    "Transpose": layout.transpose,
    "Squeeze": layout.squeeze,
    "Unsqueeze": layout.unsqueeze,
    "Reshape": layout.reshape,
    "Flatten": layout.flatten,
}
