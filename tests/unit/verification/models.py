"""Small models for the tests of bnpass.verification: a chain of Conv and BN, folded or not, rightly or wrongly."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

F = TensorProto.FLOAT
EPSILON = float(np.float32(1e-5))


def tensor(name: str, array: np.ndarray) -> onnx.TensorProto:
    return ir.to_proto(ir.tensor(array, name=name))


def info(name: str, shape: Sequence[int | str | None] | None, dtype: int = F) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    tensors = [tensor(name, array) for name, array in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def chain(
    *,
    depth: int = 2,
    channels: int = 8,
    fold: bool = False,
    bug: str = "",
    dims: Sequence[int | str | None] = ("N", 3, 12, 12),
    dtype: type = np.float32,
    tail: Sequence[onnx.NodeProto] = (),
    outputs: Sequence[onnx.ValueInfoProto] | None = None,
    more: dict[str, np.ndarray] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """Return Conv, BN, Relu `depth` times from x to r{depth-1}, then `tail`."""
    rng = np.random.default_rng(7)
    onnx_type = int(ir.DataType.from_numpy(np.dtype(dtype)))
    nodes, weights, source, inward = [], dict(more or {}), "x", 3
    for i in range(depth):
        W = rng.normal(0, np.sqrt(2 / (9 * inward)), (channels, inward, 3, 3)).astype(dtype)
        gamma, var = rng.uniform(0.5, 1.5, (2, channels)).astype(dtype)
        beta, mean = rng.normal(0, 0.5, (2, channels)).astype(dtype)
        bn = [f"{name}{i}" for name in ("gamma", "beta", "mean", "var")]
        if fold:
            scale = gamma.astype(float) / np.sqrt(var.astype(float) + EPSILON)
            shift = beta.astype(float) - mean.astype(float) * scale
            if i == depth // 2:
                scale, shift = _broken(bug, scale, shift, gamma, beta, var)
            weights[f"W{i}"] = (W.astype(float) * scale[:, None, None, None]).astype(dtype)
            weights[f"B{i}"] = shift.astype(dtype)
            nodes.append(helper.make_node("Conv", [source, f"W{i}", f"B{i}"], [f"y{i}"], pads=[1] * 4))
        else:
            weights[f"W{i}"] = W
            weights.update(zip(bn, (gamma, beta, mean, var), strict=True))
            nodes.append(helper.make_node("Conv", [source, f"W{i}"], [f"c{i}"], pads=[1] * 4))
            nodes.append(helper.make_node("BatchNormalization", [f"c{i}", *bn], [f"y{i}"], epsilon=1e-5))
        nodes.append(helper.make_node("Relu", [f"y{i}"], [f"r{i}"]))
        source, inward = f"r{i}", channels
    ends = outputs or [info(source, None, onnx_type)]
    return model([*nodes, *tail], [info("x", dims, onnx_type)], ends, weights, opset)


def _broken(
    bug: str, scale: np.ndarray, shift: np.ndarray, gamma: np.ndarray, beta: np.ndarray, var: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    if bug == "beta dropped":
        return scale, shift - beta
    if bug == "eps outside the root":
        return gamma / (np.sqrt(var.astype(float)) + EPSILON), shift
    if bug == "channels swapped":
        order = [1, 0, *range(2, len(scale))]
        return scale[order], shift
    assert not bug
    return scale, shift


def save(proto: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path
