"""The models that the command is tried on."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from tests.support.build import Array, batch_norm, model, normal

CONV_BN = """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
    [conv] c = Conv <pads = [1, 1, 1, 1]> (x, w)
    [bn] y = BatchNormalization (c, s, b, m, v)
}"""

TWO = """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
    [conv1] c = Conv <pads = [1, 1, 1, 1]> (x, w)
    [bn1] d = BatchNormalization (c, s, b, m, v)
    r = Relu (d)
    [conv2] e = Conv <pads = [1, 1, 1, 1]> (r, w2)
    y = BatchNormalization (e, s2, b2, m2, v2)
}"""
"""Two batch normalizations; the second has no name and is addressed by ``y``."""

KEPT = """g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {
    r = Sigmoid (x)
    [bn] y = BatchNormalization (r, s, b, m, v)
}"""

SHARED = """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y, float[N, 4, 8, 8] z) {
    [conv1] c = Conv <pads = [1, 1, 1, 1]> (x, w)
    [bn] y = BatchNormalization (c, s, b, m, v)
    [conv2] z = Conv <pads = [1, 1, 1, 1]> (x, w)
}"""
"""The weight of 432 bytes is read twice: to fold, it must be copied."""

TRAINING = CONV_BN.replace("BatchNormalization (", "BatchNormalization <training_mode = 1> (")

UNKNOWN_OP = """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
    [conv] c = Conv <pads = [1, 1, 1, 1]> (x, w)
    [bn] d = BatchNormalization (c, s, b, m, v)
    [odd] y = com.example.Mystery (d)
}"""


def constants() -> dict[str, Array]:
    return {"w": normal(4, 3, 3, 3), **batch_norm(4)}


def conv_bn() -> ir.Model:
    return model(CONV_BN, constants())


def wide() -> ir.Model:
    return model(CONV_BN.replace("N, 4", "N, 16"), {"w": normal(16, 3, 3, 3), **batch_norm(16)})


def two() -> ir.Model:
    second = {f"{name}2": array for name, array in batch_norm(4, seed=1).items()}
    return model(TWO, {**constants(), "w2": normal(4, 4, 3, 3, seed=1), **second})


def kept() -> ir.Model:
    return model(KEPT, batch_norm(4))


def shared() -> ir.Model:
    return model(SHARED, constants())


def training() -> ir.Model:
    return model(TRAINING, constants())


def unknown_op() -> ir.Model:
    built = model(UNKNOWN_OP, constants())
    built.opset_imports["com.example"] = 1
    return built


def with_bad(name: str, value: float) -> ir.Model:
    """Return ``two`` with one bad number in the parameter ``name``."""
    built = two()
    tensor = built.graph.initializers[name].const_value
    array = np.zeros(4, np.float32) if tensor is None else tensor.numpy().copy()
    array[1] = value
    built.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return built


def written(folder: Path, built: ir.Model, name: str = "m.onnx") -> Path:
    path = folder / name
    ir.save(built, path)
    return path


def external(folder: Path, name: str = "m.onnx") -> Path:
    """Write a wider ``conv_bn`` with its weight of 1728 bytes in ``w.bin``; return the model's path."""
    path = folder / name
    ir.save(wide(), path, external_data="w.bin", size_threshold_bytes=1024)
    return path


def edit_entry(path: Path, key: str, value: str) -> None:
    """Change what a model says about the place of its external tensor."""
    proto = onnx.load(path, load_external_data=False)
    tensor = next(t for t in proto.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL)
    entries = {entry.key: entry.value for entry in tensor.external_data} | {key: value}
    del tensor.external_data[:]
    for entry, text in entries.items():
        tensor.external_data.add(key=entry, value=text)
    path.write_bytes(proto.SerializeToString())


def ops_of(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]
