"""What each op can do with an affine.

``LINEAR`` ops take one in, on either side; ``CARRIERS`` let one pass. ``LAYOUT`` ops among them change no number: runs
of affines reach across them. A new op is a new row here and a function in the file of its family.
"""

from collections.abc import Callable, Mapping

import onnx_ir as ir

from bnpass.errors import Refusal
from bnpass.folding.linear import Linear
from bnpass.folding.rules import activation, branches, conv, conv_transpose, gemm, layout, matmul, pool, resample
from bnpass.folding.rules.carrier import Carry, Rule, single
from bnpass.graph.nodes import Scope

Describe = Callable[[ir.Node, Scope], Linear | Refusal]

LINEAR: Mapping[str, Describe] = {
    "Conv": conv.describe,
    "ConvTranspose": conv_transpose.describe,
    "Gemm": gemm.describe,
    "MatMul": matmul.describe,
}

LAYOUT: Mapping[str, Carry] = {
    "Identity": layout.identity,
    "Dropout": layout.dropout,
    "Cast": layout.cast,
    "Transpose": layout.transpose,
    "Squeeze": layout.squeeze,
    "Unsqueeze": layout.unsqueeze,
    "Reshape": layout.reshape,
    "Flatten": layout.flatten,
}

CARRIERS: Mapping[str, Rule] = {
    **{op_type: single(carry) for op_type, carry in LAYOUT.items()},
    "Relu": activation.relu,
    "Clip": activation.clip,
    "LeakyRelu": activation.of_scale,
    "PRelu": activation.of_scale,
    "Abs": activation.absolute,
    "Add": branches.add,
    "Sub": branches.add,
    "Sum": branches.add,
    "Mul": branches.mul,
    "Div": branches.mul,
    "Concat": branches.concat,
    "Split": branches.split,
    "Slice": branches.slice_,
    "Gather": branches.gather,
    "MaxPool": pool.max_pool,
    "GlobalMaxPool": pool.max_pool,
    "AveragePool": pool.average_pool,
    "GlobalAveragePool": pool.average_pool,
    "ReduceMean": pool.reduce_mean,
    "ReduceMax": pool.reduce_extreme,
    "ReduceMin": pool.reduce_extreme,
    "ReduceSum": pool.reduce_sum,
    "Pad": resample.pad,
    "Resize": resample.resize,
    "Upsample": resample.resize,
    "Expand": resample.expand,
    "DepthToSpace": resample.depth_to_space,
    "SpaceToDepth": resample.space_to_depth,
}
