"""Small models from ONNX text, with their constants given as arrays."""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]


def model(
    graph: str, constants: Mapping[str, Array] | None = None, *, opset: int = 17, ir_version: int = 8
) -> ir.Model:
    """Return the model of ``g (inputs) => (outputs) { nodes }`` with ``constants`` as its initializers."""
    header = f'<ir_version: {ir_version}, opset_import: ["": {opset}, "bnpass": 1]>'
    proto = onnx.parser.parse_model(header + graph)
    for name, array in (constants or {}).items():
        proto.graph.initializer.append(tensor(array, name))
        if ir_version < 4:
            proto.graph.input.append(
                onnx.helper.make_tensor_value_info(name, proto.graph.initializer[-1].data_type, array.shape)
            )
    return ir.from_proto(proto)


def tensor(array: Array, name: str) -> onnx.TensorProto:
    """Return an array as a TensorProto; bfloat16 included."""
    return ir.to_proto(ir.Tensor(np.asarray(array), name=name))


def batch_norm(channels: int, seed: int = 0, dtype: Any = np.float32) -> dict[str, Array]:
    """Return random parameters s, b, m, v: negative scales, large means, small and large variances."""
    rng = np.random.default_rng(seed)
    values = {
        "s": rng.uniform(0.3, 2.0, channels) * rng.choice([-1.0, 1.0], channels),
        "b": rng.normal(size=channels),
        "m": rng.normal(size=channels) * 3,
        "v": 10.0 ** rng.uniform(-3, 2, channels),
    }
    return {name: value.astype(dtype) for name, value in values.items()}


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    """Return standard normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def ops(built: ir.Model) -> list[str]:
    """Return the op types of the main graph, in order."""
    return [node.op_type for node in built.graph]


BFLOAT16 = ml_dtypes.bfloat16
