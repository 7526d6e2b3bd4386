"""Write `digits_cnn` as the training graph that ONNX can hold: forward, with batch statistics.

`python models/digits_cnn_training.py` reads the weights of `digits_cnn.keras` and writes `digits_cnn_training.onnx`
beside itself. All seven batch normalizations are nodes in training mode: they normalize with the statistics of the
batch at hand, whose size is open, and their updated running statistics are outputs of the graph, NAME_mean and
NAME_var, to be fed into the next step. `digits_cnn.onnx` is the other end of the same network: exported for inference,
where its batch normalization is loose Mul and Add, or gone.

Neither TensorFlow nor Keras is needed: the weights are read by h5py.
"""

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

HERE = Path(__file__).resolve().parent
OPSET = 17
EPSILON, MOMENTUM = 1e-3, 0.99
"""What Keras's layer has if nothing else is said."""

Array = NDArray[np.float32]


def weights() -> dict[str, list[Array]]:
    """Return the variables of each layer of `digits_cnn.keras`, by its name, as Keras orders them."""
    import h5py

    with zipfile.ZipFile(HERE / "digits_cnn.keras") as archive:
        file = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(file) as content:
        layers = [layer["vars"] for layer in content["layers"].values()]
        return {layer.attrs["name"]: [np.asarray(layer[str(i)]) for i in range(len(layer))] for layer in layers}


class Network:
    """A graph in the making; every layer is given its input and returns its output, by name."""

    def __init__(self, weights: dict[str, list[Array]]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.updates: list[onnx.ValueInfoProto] = []
        self._weights = weights

    def node(self, op_type: str, operands: Iterable[str], name: str, **attributes: Any) -> str:  # noqa: ANN401
        """Add a node with one output, of the node's name."""
        self.nodes.append(helper.make_node(op_type, list(operands), [name], name, **attributes))
        return name

    def constant(self, name: str, array: Array) -> str:
        """Add a weight."""
        data = np.ascontiguousarray(array, "<f4")
        self.initializers.append(helper.make_tensor(name, TensorProto.FLOAT, data.shape, data.tobytes(), raw=True))
        return name

    def convolution(self, x: str, name: str, *, padded: bool = True) -> str:
        """Add a plain or depthwise convolution; Keras keeps kernels as H × W × in × out, or × in × 1 if depthwise."""
        kernel, *bias = self._weights[name]
        groups = kernel.shape[2] if kernel.shape[3] == 1 else 1
        kernel = kernel.transpose(2, 3, 0, 1) if groups > 1 else kernel.transpose(3, 2, 0, 1)
        border = kernel.shape[2] // 2 if padded else 0
        operands = [x, self.constant(f"{name}_kernel", kernel), *(self.constant(f"{name}_bias", b) for b in bias)]
        return self.node("Conv", operands, name, group=groups, kernel_shape=list(kernel.shape[2:]), pads=[border] * 4)

    def normalization(self, x: str, name: str) -> str:
        """Add a batch normalization in training mode, and its running statistics to the outputs of the graph."""
        roles = ("gamma", "beta", "moving_mean", "moving_variance")
        given = self._weights[name]
        operands = [x, *(self.constant(f"{name}_{role}", array) for role, array in zip(roles, given, strict=True))]
        updated = [f"{name}_mean", f"{name}_var"]
        self.nodes.append(
            helper.make_node(
                "BatchNormalization", operands, [name, *updated], name,
                epsilon=EPSILON, momentum=MOMENTUM, training_mode=1,
            )
        )  # fmt: skip
        shape = given[0].shape
        self.updates += [helper.make_tensor_value_info(update, TensorProto.FLOAT, shape) for update in updated]
        return name

    def dense(self, x: str, name: str) -> str:
        """Add a dense layer."""
        kernel, bias = self._weights[name]
        operands = [x, self.constant(f"{name}_kernel", kernel), self.constant(f"{name}_bias", bias)]
        return self.node("Gemm", operands, name)


def build() -> onnx.ModelProto:
    """Return the network of `digits_cnn.build` in training mode: N × 8 × 8 × 1 images in, ten probabilities out."""
    net = Network(weights())
    x = net.node("Transpose", ["image"], "channels_first", perm=[0, 3, 1, 2])

    x = net.normalization(net.convolution(x, "stem"), "stem_bn")
    x = net.node("Relu", [x], "stem_relu")

    x = net.normalization(net.convolution(x, "depthwise"), "depthwise_bn")
    x = net.node("Relu", [x], "depthwise_relu")

    x = net.node("Relu", [net.convolution(x, "pointwise")], "pointwise_relu")
    x = net.normalization(x, "after_relu_bn")
    shortcut = net.node("MaxPool", [x], "pool", kernel_shape=[2, 2], strides=[2, 2])

    x = net.node("Relu", [net.normalization(shortcut, "pre_bn1")], "pre_relu1")
    x = net.normalization(net.convolution(x, "pre_conv1"), "pre_bn2")
    x = net.node("Relu", [x], "pre_relu2")
    x = net.node("Add", [shortcut, net.convolution(x, "pre_conv2")], "residual")

    x = net.node("Relu", [net.convolution(x, "head", padded=False)], "head_relu")
    x = net.normalization(x, "head_bn")
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x], "mean")], "flat")

    x = net.normalization(net.dense(x, "dense"), "dense_bn")
    x = net.node("Relu", [x], "dense_relu")
    digit = net.node("Softmax", [net.dense(x, "digit")], "probabilities")

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 8, 8, 1])
    probabilities = helper.make_tensor_value_info(digit, TensorProto.FLOAT, ["N", 10])
    graph = helper.make_graph(
        net.nodes, "digits_cnn_training", [image], [probabilities, *net.updates], net.initializers
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8, producer_name="digits_cnn_training.py"
    )


def main() -> None:
    model = build()
    onnx.checker.check_model(model, full_check=True)
    path = HERE / "digits_cnn_training.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
