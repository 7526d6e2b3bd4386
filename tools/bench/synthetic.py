"""Models made of nothing but a seed, for measurements: `chain` has many small nodes, `external` large weights.

Both are plain ONNX that any runtime loads. Neither is trained: the numbers are drawn so that they stay finite.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

__all__ = ["External", "chain", "external"]

OPSET, IR_VERSION = 17, 8
CHANNELS, IMAGE = 8, 4
"""Of `chain`: so small that time goes into the graph and not into numbers."""
WIDTH = 2048
"""Of `external`: 2048 x 2048 float32 is 16 MiB."""
TENSOR_BYTES = WIDTH * WIDTH * 4
_BLOCK_BYTES = 1 << 20


@dataclass
class _Graph:
    """A graph that grows at its end."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def weight(self, values: NDArray[np.floating]) -> str:
        name = f"w{len(self.initializers)}"
        data = np.ascontiguousarray(values, dtype=np.float32)
        tensor = helper.make_tensor(name, TensorProto.FLOAT, data.shape, data.tobytes(), raw=True)
        self.initializers.append(tensor)
        return name

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:  # noqa: ANN401 - whatever ONNX takes
        name = f"{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [f"{name}_out"], name, **attributes))
        return f"{name}_out"

    def batch_norm(self, x: str, channels: int) -> str:
        rng = self.rng
        scale, shift = rng.uniform(0.5, 1.5, channels), rng.uniform(-0.3, 0.3, channels)
        mean, variance = rng.normal(0, 0.1, channels), rng.uniform(0.5, 2.0, channels)
        return self.node("BatchNormalization", x, *map(self.weight, (scale, shift, mean, variance)), epsilon=1e-3)

    def model(self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "synthetic", inputs, outputs, self.initializers)
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="bnpass bench")


def chain(nodes: int, seed: int = 0) -> onnx.ModelProto:
    """Return a deep network of at least this many nodes (at most nine more), all of it foldable.

    Blocks of three kinds take turns: 1x1 convolution and BN; 1x1 convolution and Mul, Add; MatMul on the last
    axis between two Transposes, and BN behind them. Each ends in a Relu; every fourth adds its input.

    Args:
        nodes: How many.
        seed: Of the weights.
    """
    graph = _Graph(np.random.default_rng(seed))
    kinds: tuple[Callable[[_Graph, str], str], ...] = (_conv_batch_norm, _conv_mul_add, _matmul_batch_norm)
    x, block = "x", 0
    while len(graph.nodes) < nodes:
        y = kinds[block % 3](graph, x)
        if block % 4 == 3:
            y = graph.node("Add", y, x)
        x, block = graph.node("Relu", y), block + 1
    shape: list[str | int | None] = ["N", CHANNELS, IMAGE, IMAGE]
    return graph.model(
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, shape)],
    )


def _conv(graph: _Graph, x: str) -> str:
    weight = graph.rng.normal(0, CHANNELS**-0.5, (CHANNELS, CHANNELS, 1, 1))
    return graph.node("Conv", x, graph.weight(weight), kernel_shape=[1, 1])


def _conv_batch_norm(graph: _Graph, x: str) -> str:
    return graph.batch_norm(_conv(graph, x), CHANNELS)


def _conv_mul_add(graph: _Graph, x: str) -> str:
    scale, shift = graph.rng.uniform(0.5, 1.5, (CHANNELS, 1, 1)), graph.rng.uniform(-0.3, 0.3, (CHANNELS, 1, 1))
    return graph.node("Add", graph.node("Mul", _conv(graph, x), graph.weight(scale)), graph.weight(shift))


def _matmul_batch_norm(graph: _Graph, x: str) -> str:
    last = graph.node("Transpose", x, perm=[0, 2, 3, 1])
    product = graph.node("MatMul", last, graph.weight(graph.rng.normal(0, CHANNELS**-0.5, (CHANNELS, CHANNELS))))
    return graph.batch_norm(graph.node("Transpose", product, perm=[0, 3, 1, 2]), CHANNELS)


@dataclass(frozen=True)
class External:
    """A model with large external weights.

    Attributes:
        path: The `.onnx` file; its data file lies beside it.
        layers: Number of weights.
        touched: How many of them have a BN behind them.
    """

    path: Path
    layers: int
    touched: int


def external(folder: Path, name: str, layers: int, touched: int, seed: int = 0) -> External:
    """Write a model whose weights are 16 MiB each and lie in ``weights.bin``; reuse that file if it is there.

    Two towers, one of 1x1 convolutions and one of MatMuls, with a Relu behind each layer; ``touched`` of the
    layers, evenly spread, have a BN in between. Models with the same seed and number of layers share their data.

    Args:
        folder: Where both files go.
        name: Stem of the `.onnx` file.
        layers: How many weights, an even number.
        touched: How many of them get a BN.
        seed: Of all numbers.
    """
    graph = _Graph(np.random.default_rng(seed))
    values = {"image": "image", "rows": "rows"}
    for layer in range(layers):
        tower = "image" if layer % 2 == 0 else "rows"
        weight = _external_weight(graph, layer, [WIDTH, WIDTH, 1, 1] if tower == "image" else [WIDTH, WIDTH])
        y = graph.node("Conv" if tower == "image" else "MatMul", values[tower], weight)
        if (layer + 1) * touched // layers > layer * touched // layers:
            y = graph.batch_norm(y, WIDTH)
        values[tower] = graph.node("Relu", y)
    shapes: dict[str, list[str | int | None]] = {"image": ["N", WIDTH, 2, 2], "rows": ["N", WIDTH]}
    model = graph.model(
        [helper.make_tensor_value_info(tower, TensorProto.FLOAT, shape) for tower, shape in shapes.items()],
        [helper.make_tensor_value_info(values[tower], TensorProto.FLOAT, shape) for tower, shape in shapes.items()],
    )
    data = folder / "weights.bin"
    if not data.exists() or data.stat().st_size != layers * TENSOR_BYTES:
        _write(data, layers, seed)
    path = folder / f"{name}.onnx"
    path.write_bytes(model.SerializeToString())
    return External(path, layers, touched)


def _external_weight(graph: _Graph, layer: int, shape: list[int]) -> str:
    tensor = TensorProto(name=f"weight{layer}", data_type=TensorProto.FLOAT, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    place = {"location": "weights.bin", "offset": layer * TENSOR_BYTES, "length": TENSOR_BYTES}
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    graph.initializers.append(tensor)
    return tensor.name


def _write(path: Path, layers: int, seed: int) -> None:
    """Write all weights: one random tensor, rotated by one block more for each layer (drawing them takes minutes)."""
    values = np.random.default_rng(seed).normal(0, WIDTH**-0.5, WIDTH * WIDTH).astype(np.float32)
    data = memoryview(values.tobytes())
    with path.open("wb") as file:
        for layer in range(layers):
            cut = layer * _BLOCK_BYTES % TENSOR_BYTES + 4 * (layer * _BLOCK_BYTES // TENSOR_BYTES)
            file.write(data[cut:])
            file.write(data[:cut])
