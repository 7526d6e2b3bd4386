"""The kernels of bnpass, each as a model of one node in ONNX Runtime."""

from importlib.metadata import version as version_of

import numpy as np
import onnx
import onnx_ir as ir
from bound_session import bound, options
from layer import EPSILON, MOMENTUM, Layer, Pass
from numpy.typing import NDArray

from bnpass.ops import DOMAIN, VERSION
from bnpass.ops.emit import Emit
from bnpass.ops.schemas import ATTRIBUTES, SCHEMAS
from bnpass.runtime import get_library_path, session

NOTE = "through a session of ONNX Runtime with I/O binding; running and saved statistics, dscale and dB included"
GIVEN = {"epsilon": EPSILON, "momentum": MOMENTUM, "training_mode": 1, "group": ""}


def start() -> None:
    """Find the library.

    Raises:
        MissingDependencyError: There is none.
    """
    get_library_path()


def version() -> str:
    """Return what runs the kernels."""
    return f"onnxruntime {version_of('onnxruntime')}"


def opened(layer: Layer) -> dict[str, Pass]:
    """Open a session for each direction."""
    X, dY = (np.fromfile(layer.folder / n, np.float32, layer.elements).reshape(layer.in_memory) for n in ("x", "dy"))
    channel = np.zeros(layer.channels, np.float32)
    scale, B = np.array(layer.scale, np.float32), np.array(layer.B, np.float32)
    Y = np.empty_like(X)
    statistics = [channel.copy(), channel.copy()]
    saved = [channel.astype(np.float64), channel.astype(np.float64), np.zeros((), np.float64)]
    forward = _pass("SyncBatchNormalization", layer, [X, scale, B, channel, channel + 1], [Y, *statistics, *saved])
    forward.run()  # the gradient takes what it saves
    backward = _pass("SyncBatchNormalizationGrad", layer, [dY, X, scale, *saved], [Y, *statistics])
    return {"forward": forward, "backward": backward}


def _pass(op_type: str, layer: Layer, inputs: list[NDArray[np.floating]], outputs: list[NDArray[np.floating]]) -> Pass:
    model = one_node(op_type, layer, inputs, outputs)
    return bound(session(model, options=options()), inputs, outputs)


def one_node(
    op_type: str, layer: Layer, inputs: list[NDArray[np.floating]], outputs: list[NDArray[np.floating]]
) -> onnx.ModelProto:
    """Return a model with one node of the domain ``bnpass``, its slot ``after`` unused."""
    schema, op = SCHEMAS[op_type], Emit()
    given = [
        ir.val(slot.name, ir.DataType.from_numpy(array.dtype), array.shape)
        for slot, array in zip(schema.inputs, inputs, strict=False)
    ]
    attributes = {name: GIVEN.get(name, 0) for name in ATTRIBUTES[op_type]} | {"axis": layer.axis}
    unused = [None] * (len(schema.inputs) - len(given))
    found = op.many(op_type, [*given, *unused], [slot.name for slot in schema.outputs], domain=DOMAIN, **attributes)
    for value, array in zip(found, outputs, strict=True):
        value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
    graph = ir.Graph(given, found, nodes=op.nodes, opset_imports={"": 18, DOMAIN: VERSION}, name="node")
    return ir.to_proto(ir.Model(graph, ir_version=8))
