"""ONNX Runtime's own batch normalization in training mode: forward, channels second; it has no gradient."""

from importlib.metadata import version as version_of

import numpy as np
import onnxruntime
from bound_session import bound, options
from layer import EPSILON, MOMENTUM, Layer, Pass
from onnx import TensorProto, helper

NOTE = "BatchNormalization-15 with training_mode=1 in a session with I/O binding"


def start() -> None:
    """Nothing to do."""


def version() -> str:
    """Return its version."""
    return f"onnxruntime {version_of('onnxruntime')}"


def opened(layer: Layer) -> dict[str, Pass]:
    """Open a session, unless the channels are last."""
    if layer.layout == "NHWC":
        return {}
    X = np.fromfile(layer.folder / "x", np.float32, layer.elements).reshape(layer.shape)
    channel = np.zeros(layer.channels, np.float32)
    inputs = [X, np.array(layer.scale, np.float32), np.array(layer.B, np.float32), channel, channel + 1]
    outputs = [np.empty_like(X), channel.copy(), channel.copy()]
    node = helper.make_node(
        "BatchNormalization", ["X", "scale", "B", "input_mean", "input_var"], ["Y", "running_mean", "running_var"],
        epsilon=EPSILON, momentum=MOMENTUM, training_mode=1,
    )  # fmt: skip
    typed = [
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape)
            for name, array in zip(names, arrays, strict=True)
        ]
        for names, arrays in ((node.input, inputs), (node.output, outputs))
    ]
    graph = helper.make_graph([node], "node", *typed)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options(), providers=["CPUExecutionProvider"])
    return {"forward": bound(session, inputs, outputs)}
