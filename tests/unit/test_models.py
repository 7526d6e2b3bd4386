"""`models/digits_cnn`: the file reaches its recorded accuracy, and holds a BN at every place it claims."""

import json
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from bnpass.api.fold import fold

MODELS = Path(__file__).resolve().parents[2] / "models"
RECORD = json.loads((MODELS / "digits_cnn.json").read_text())


@pytest.fixture(scope="module")
def graph() -> onnx.GraphProto:
    return onnx.load(MODELS / "digits_cnn.onnx").graph


def constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in graph.initializer}


def chains(graph: onnx.GraphProto, *pattern: str) -> Iterator[list[onnx.NodeProto]]:
    """Yield every path of nodes, each reading the one before, that spells `pattern`; ":c": by a constant."""
    known = constants(graph)

    def fits(node: onnx.NodeProto, word: str) -> bool:
        by_constant = any(name in known for name in node.input)
        return node.op_type == word.removesuffix(":c") and (by_constant or not word.endswith(":c"))

    paths = [[node] for node in graph.node if fits(node, pattern[0])]
    for word in pattern[1:]:
        paths = [
            [*path, node]
            for path in paths
            for node in graph.node
            if path[-1].output[0] in node.input and fits(node, word)
        ]
    yield from paths


def group(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)


def vector(graph: onnx.GraphProto, node: onnx.NodeProto) -> np.ndarray:
    known = constants(graph)
    (name,) = (name for name in node.input if name in known)
    return np.frombuffer(known[name].raw_data, np.float32)


def right_answers(model: Path) -> tuple[int, int]:
    """Return how many digits of the test split a model reads rightly, and how many there are."""
    load_test_split: Callable[[], tuple[np.ndarray, np.ndarray]] = runpy.run_path(str(MODELS / "digits.py"))[
        "load_test_split"
    ]
    x, y = load_test_split()
    assert x.shape == (RECORD["test_size"], 8, 8, 1)
    assert (x.min(), x.max()) == (0.0, 1.0)
    (probabilities,) = run(model.read_bytes(), x)
    return int((probabilities.argmax(axis=1) == y).sum()), len(y)


def run(model: bytes, image: np.ndarray) -> list[np.ndarray]:
    return ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"image": image})


def test_the_file_reaches_the_recorded_accuracy() -> None:
    right, total = right_answers(MODELS / "digits_cnn.onnx")
    assert right == round(RECORD["test_accuracy"] * total)
    assert right / total >= 0.97


def test_folding_keeps_the_accuracy(tmp_path: Path) -> None:
    result = fold(MODELS / "digits_cnn.onnx", output=tmp_path / "folded.onnx")
    assert result.modified
    assert right_answers(tmp_path / "folded.onnx") == right_answers(MODELS / "digits_cnn.onnx")


def test_every_affine_that_stays_has_its_reason(tmp_path: Path) -> None:
    result = fold(MODELS / "digits_cnn.onnx", output=tmp_path / "folded.onnx")
    reasons = {kept.node.split("/")[1]: kept.refusal.code for kept in result.kept}
    assert reasons == {"pre_bn1_1": "BN104"}


PLACES = {
    "after a depthwise convolution": ("Conv", "Mul:c", "Add:c", "Relu", "Conv"),
    "after an activation": ("Conv", "Relu", "Mul:c", "Add:c", "MaxPool"),
    "after an activation, before a pool": ("Conv", "Relu", "Mul:c", "Add:c", "GlobalAveragePool"),
    "before an activation": ("MaxPool", "Mul:c", "Add:c", "Relu", "Conv"),
    "on a dense layer": ("MatMul", "Add:c", "Mul:c", "Add:c", "Relu"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_batch_normalization_stands_at_each_place(graph: onnx.GraphProto, place: str) -> None:
    (path,) = chains(graph, *PLACES[place])
    scale, shift = [vector(graph, node) for node in path if node.op_type in {"Mul", "Add"}][-2:]
    assert scale.shape == shift.shape
    assert scale.size in {16, 24, 32}
    # trained, not initialized: gamma 1, variance 1 would give one scale for all channels
    assert np.ptp(scale) > 0.1 * np.abs(scale).max()
    assert np.ptp(shift) > 0.1


def test_the_first_place_is_a_depthwise_convolution(graph: onnx.GraphProto) -> None:
    (path,) = chains(graph, *PLACES["after a depthwise convolution"])
    assert group(path[0]) == 16


def test_the_pre_activation_block_is_a_residual(graph: onnx.GraphProto) -> None:
    pool = next(node for node in graph.node if node.op_type == "MaxPool")
    assert len(list(chains(graph, "MaxPool", "Add"))) == 1
    assert sum(pool.output[0] in node.input for node in graph.node) == 2


def test_the_exporter_has_folded_plain_convolutions_already(graph: onnx.GraphProto) -> None:
    assert not any(node.op_type == "BatchNormalization" for node in graph.node)
    affine_after_conv = [*chains(graph, "Conv", "Mul:c"), *chains(graph, "Conv", "Add:c")]
    assert {group(path[0]) for path in affine_after_conv} == {16}


def test_the_files_are_small() -> None:
    for name in ("digits_cnn.onnx", "digits_cnn.keras", "digits_cnn.json", "digits_cnn_training.onnx"):
        assert 0 < (MODELS / name).stat().st_size < 400_000


@pytest.fixture
def training() -> onnx.ModelProto:
    return onnx.load(MODELS / "digits_cnn_training.onnx")


def normalizations(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "BatchNormalization"]


def test_the_training_graph_is_what_its_script_makes(training: onnx.ModelProto) -> None:
    build: Callable[[], onnx.ModelProto] = runpy.run_path(str(MODELS / "digits_cnn_training.py"))["build"]
    assert build() == training
    onnx.checker.check_model(training, full_check=True)


def test_every_normalization_trains_and_hands_out_its_statistics(training: onnx.ModelProto) -> None:
    nodes, outputs = normalizations(training), [output.name for output in training.graph.output]
    assert len(nodes) == 7
    assert all(attribute.i for node in nodes for attribute in node.attribute if attribute.name == "training_mode")
    assert outputs == ["probabilities", *(name for node in nodes for name in node.output[1:])]
    (image,) = training.graph.input
    assert image.type.tensor_type.shape.dim[0].dim_param == "N"


def test_without_training_mode_it_is_the_exported_network(training: onnx.ModelProto) -> None:
    for node in normalizations(training):
        del node.output[1:]
        (mode,) = (attribute for attribute in node.attribute if attribute.name == "training_mode")
        node.attribute.remove(mode)
    del training.graph.output[1:]
    image = np.random.default_rng(0).uniform(0, 1, (50, 8, 8, 1)).astype(np.float32)
    (found,) = run(training.SerializeToString(), image)
    (exported,) = run((MODELS / "digits_cnn.onnx").read_bytes(), image)
    assert np.abs(found - exported).max() < 1e-5


def test_with_momentum_0_it_hands_out_the_statistics_of_the_batch(training: onnx.ModelProto) -> None:
    dense = normalizations(training)[-1]
    for attribute in dense.attribute:
        if attribute.name == "momentum":
            attribute.f = 0.0
    training.graph.output.append(onnx.helper.make_tensor_value_info(dense.input[0], onnx.TensorProto.FLOAT, None))
    *_, mean, var, x = run(training.SerializeToString(), np.random.default_rng(0).random((50, 8, 8, 1), np.float32))
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(var, x.var(0), rtol=1e-3, atol=1e-6)
