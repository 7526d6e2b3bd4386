"""A small CNN with the statistics of its data, quantized by ONNX Runtime with its batch normalization kept in float.

Conv(DQ(w)) → BN → Relu → Q: no Conv can be computed in integers until the batch normalization is gone.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from bnpass.api.fold import fold
from bnpass.folding.result import BiasRounding

Array = NDArray[Any]
F = np.float32

LAYERS = ((3, 16, 1, True, 3), (16, 16, 16, False, 3), (16, 24, 1, True, 1), (24, 24, 1, True, 3))
"""Channels in and out, groups, whether there is a bias, and the kernel of each Conv."""


class Images(CalibrationDataReader):  # type: ignore[misc]  # untyped upstream
    """Batches to calibrate on."""

    def __init__(self, images: Array) -> None:
        self._batches = iter([{"x": images[i : i + 32]} for i in range(0, len(images), 32)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._batches, None)


def images(seed: int, count: int = 128) -> tuple[Array, Array]:
    """Return noise with stripes, and the kind of stripes."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 4, count)
    x = rng.standard_normal((count, 3, 12, 12)) * 0.5
    for image, kind in zip(x, kinds, strict=True):
        stripes = image[kind % 3, :, ::2] if kind < 2 else image[kind % 3, ::2]
        stripes += 1
    return x.astype(F), kinds


def run(path: Path, x: Array, outputs: list[str] | None = None, *, optimized: Path | None = None) -> list[Array]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_DISABLE_ALL if optimized is None else level.ORT_ENABLE_ALL
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [np.asarray(y) for y in session.run(outputs, {"x": x})]


def write(path: Path, constants: dict[str, Array], outputs: tuple[str, ...]) -> None:
    make, nodes, value = onnx.helper.make_node, [], "x"
    for n, (*_, kernel) in enumerate(LAYERS):
        weights = [name for name in (f"w{n}", f"c{n}") if name in constants]
        group = LAYERS[n][2]
        nodes += [
            make("Conv", [value, *weights], [f"t{n}"], f"conv{n}", group=group, pads=[kernel // 2] * 4),
            make("BatchNormalization", [f"t{n}", *(f"{p}{n}" for p in "sbmv")], [f"u{n}"], f"bn{n}"),
            make("Relu", [f"u{n}"], [f"r{n}"], f"relu{n}"),
        ]
        value = f"r{n}"
    nodes += [
        make("GlobalAveragePool", [value], ["pool"]), make("Flatten", ["pool"], ["f"]),
        make("Gemm", ["f", "W", "C"], ["y"], "gemm"),
    ]  # fmt: skip
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "cnn", [info("x", 1, ["N", 3, 12, 12])], [info(name, 1, None) for name in outputs],
        [onnx.helper.make_tensor(name, 1, a.shape, a.ravel()) for name, a in constants.items()],
    )  # fmt: skip
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model whose statistics are those of its data, and whose last layer is fitted to it."""
    path, rng = tmp_path_factory.mktemp("model") / "cnn.onnx", np.random.default_rng(1)
    x, kinds = images(0)
    constants: dict[str, Array] = {"W": np.zeros((24, 4), F), "C": np.zeros(4, F)}
    for n, (into, out, group, has_bias, k) in enumerate(LAYERS):
        width = into // group
        constants[f"w{n}"] = (rng.standard_normal((out, width, k, k)) * np.sqrt(2 / (width * k * k))).astype(F)
        if has_bias:
            constants[f"c{n}"] = (rng.standard_normal(out) * 0.2).astype(F)
        constants |= {f"{p}{n}": np.full(out, float(p in "sv"), F) for p in "sbmv"}
    for n, (_, out, *_) in enumerate(LAYERS):
        write(path, constants, (f"t{n}",))
        (t,) = run(path, x)
        constants |= {f"m{n}": t.mean((0, 2, 3)), f"v{n}": t.var((0, 2, 3))}
        constants[f"s{n}"] = (rng.uniform(0.5, 1.5, out) * rng.choice([-1, 1], out, p=[0.2, 0.8])).astype(F)
        constants[f"b{n}"] = (rng.standard_normal(out) * 0.3).astype(F)
    write(path, constants, ("f",))
    (features,) = run(path, x)
    fitted = np.linalg.lstsq(np.c_[features, np.ones(len(x))], np.eye(4)[kinds] * 4 - 2, rcond=None)[0]
    constants |= {"W": fitted[:-1].astype(F), "C": fitted[-1].astype(F)}
    write(path, constants, ("y",))
    return path


def with_output(path: Path, name: str) -> Path:
    """Return the same model with an inner value as its only output."""
    model = onnx.load(path)
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    onnx.save(model, path.with_name(f"inner-{path.name}"))
    return path.with_name(f"inner-{path.name}")


def integer_convs(path: Path) -> int:
    return Counter(node.op_type for node in onnx.load(path).graph.node)["QLinearConv"]


@pytest.mark.parametrize(
    ("activation", "weight"),
    [(QuantType.QUInt8, QuantType.QInt8), (QuantType.QUInt8, QuantType.QUInt8), (QuantType.QInt8, QuantType.QInt8)],
    ids=["uint8 int8", "uint8 uint8", "int8 int8"],
)
@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
def test_a_quantized_cnn(
    trained: Path, tmp_path: Path, activation: QuantType, weight: QuantType, per_channel: bool
) -> None:
    source, target = tmp_path / "q.onnx", tmp_path / "folded.onnx"
    quantize_static(
        trained, source, Images(images(0)[0]), quant_format=QuantFormat.QDQ, per_channel=per_channel,
        activation_type=activation, weight_type=weight, op_types_to_quantize=["Conv", "Gemm"],
        extra_options={"OpTypesToExcludeOutputQuantization": ["Conv"]},
    )  # fmt: skip
    done = fold(str(source), output=target)  # the whole model is checked too, or this raises
    assert not done.kept
    rounding = {one.node: one for folded in done.folded for one in folded.rounding}
    assert set(rounding) == {"conv0", "conv2", "conv3"}  # conv1 had no bias: it gets one in float
    x, kinds = images(7)
    _first_layer_agrees(source, target, x, rounding["conv0"])
    (before,), (after,) = run(source, x), run(target, x)
    assert (before.argmax(1) == after.argmax(1)).mean() > 0.98
    assert np.abs(before - after).max() < 0.1 * np.abs(before).max()  # what a few steps of an activation are worth
    (fused,) = run(target, x, optimized=tmp_path / "new.onnx")
    run(source, x, optimized=tmp_path / "old.onnx")
    assert integer_convs(tmp_path / "new.onnx") == 3 > integer_convs(tmp_path / "old.onnx")  # the last gives floats
    assert (fused.argmax(1) == kinds).mean() >= (before.argmax(1) == kinds).mean() - 0.02


def _first_layer_agrees(source: Path, target: Path, x: Array, rounding: BiasRounding) -> None:
    """Before the first rounding of an activation, nothing but the stated rounding may show."""
    (old,) = run(with_output(source, "u0"), x)
    name = next(n.output[0] for n in onnx.load(target).graph.node if n.name == "conv0")
    (new,) = run(with_output(target, name), x)
    assert np.abs(new - old).max() <= rounding.absolute + 2.0**-19 * np.abs(old).max()
    assert np.abs(new - old).max() > rounding.absolute / 2
