"""Models of both Kerases, exported and run."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from bnpass.exporting.model import Exported, export_model
from bnpass.exporting.options import ExportOptions

# TensorFlow and Keras, not this project
QUIET = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
KERAS = ["keras", "tf_keras"]

_PLAIN = {onnx.TensorProto.BFLOAT16: onnx.TensorProto.FLOAT}


def keras_of(name: str) -> Any:
    return pytest.importorskip(name)


def sequence(keras: Any, shape: tuple[int | None, ...], *layers: Any) -> Any:
    """Return a model of some layers; its weights are all different from their first values."""
    model = keras.Sequential([keras.layers.Input(shape), *layers])
    rng = np.random.default_rng(1)
    for variable in model.weights:
        if "float" in str(variable.dtype):
            signs = [1] if "variance" in variable.name else [-1, 1, 1]
            variable.assign(rng.uniform(0.2, 1.2, variable.shape) * rng.choice(signs, variable.shape))
    return model


def session(model: ir.Model) -> ort.InferenceSession:
    """Return a session of a model whose bfloat16 outputs come out in float32: NumPy has no bfloat16."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    for output in proto.graph.output:
        kind = output.type.tensor_type
        if kind.elem_type in _PLAIN:
            kind.elem_type = _PLAIN[kind.elem_type]
            proto.graph.node.add(
                op_type="Cast", input=[output.name], output=[f"{output.name}/plain"],
                attribute=[onnx.helper.make_attribute("to", kind.elem_type)],
            )  # fmt: skip
            output.name += "/plain"
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(proto.SerializeToString(), options)


def run(open_session: ort.InferenceSession, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [output.name.removesuffix("/plain") for output in open_session.get_outputs()]
    return dict(zip(names, open_session.run(None, dict(feeds)), strict=True))


def first(open_session: ort.InferenceSession, x: np.ndarray) -> np.ndarray:
    """Return the first output for a value of the first input."""
    return next(iter(run(open_session, {open_session.get_inputs()[0].name: x}).values()))


def trained(model: Any, **options: Any) -> Exported:
    return export_model(model, ExportOptions(training=True, **options))


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph.all_nodes()]


def nodes(model: ir.Model, kinds: Iterable[str]) -> list[ir.Node]:
    return [node for node in model.graph.all_nodes() if node.op_type in set(kinds)]
