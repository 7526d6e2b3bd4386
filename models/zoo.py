"""Build `keras.applications` architectures as ONNX files, without downloading anything.

    python models/zoo.py                                  list the families
    python models/zoo.py ResNet50 MobileNetV2 -o DIR      one file per family, at the family's own image size
    python models/zoo.py --all --small -o DIR             all of them, at the smallest image that makes sense
    python models/zoo.py ResNet50 --keep-bn -o DIR        every batch normalization as one node

Weights come from the layers' initializers and one seed. Batch normalization is made to look trained: the
statistics are those of random images in this very network, then moved (variance by a factor of 0.5 to 2,
mean by a tenth of a deviation); gamma is 0.5..1.5 with one channel in ten negative, beta ±0.3; biases are
not zero. So signals neither die nor grow with depth, and a fold that goes wrong anywhere shows at the
output. The output is the logits: a softmax would hide errors.

Two kinds of file:

as users get it   `tf2onnx.convert.from_keras`, all optimizers. TensorFlow and tf2onnx fold a BN that directly
                  follows a plain convolution; what is left is loose Mul and Add from Keras 3, and
                  BatchNormalization from tf_keras.
keep_bn           tf_keras, all optimizers except the one rule that merges Conv and BatchNormalization: every
                  BN of the network is in the file.

ResNetRS and RegNet exist in tf_keras only. RegNet's grouped convolutions are jit-compiled functions, which
tf2onnx leaves unconverted without an error; here the jit is taken off while the model is traced, so these
two files are those of a user who knows that trick. VGG has no batch normalization and ConvNeXt normalizes
layers: not listed.
"""

import argparse
import contextlib
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
from numpy.typing import NDArray

__all__ = ["FAMILIES", "Built", "Family", "build"]

OPSET = 17
SEED = 5
TOLERANCE = 1e-3
"""Largest difference between ONNX Runtime and Keras, relative to the largest logit."""
TIME_LIMIT_S = 600.0
"""For one build on the command line; the slowest takes about a minute on two cores."""


@dataclass(frozen=True)
class Family:
    """One architecture of `keras.applications`."""

    small: int
    """An image size at which every layer still works on more than one pixel or so: for tests."""
    size: int = 224
    """The image size the architecture was made for."""
    brightest: float = 1.0
    """Images are uniform between 0 and this: 255 where the model scales its input itself."""
    keras3: bool = True
    """Whether Keras 3 has it; tf_keras has all of them."""


FAMILIES: dict[str, Family] = {
    "ResNet50": Family(64),
    "ResNet50V2": Family(64),
    "ResNetRS50": Family(64, brightest=255.0, keras3=False),
    "MobileNet": Family(64),
    "MobileNetV2": Family(64),
    "MobileNetV3Small": Family(64, brightest=255.0),
    "DenseNet121": Family(64),
    "EfficientNetB0": Family(64, brightest=255.0),
    "EfficientNetV2B0": Family(64, brightest=255.0),
    "InceptionV3": Family(96, 299),
    "InceptionResNetV2": Family(96, 299),
    "Xception": Family(96, 299),
    "NASNetMobile": Family(64),
    "RegNetX002": Family(64, brightest=255.0, keras3=False),
    "RegNetY002": Family(64, brightest=255.0, keras3=False),
}


@dataclass(frozen=True)
class Built:
    """What one build produced."""

    name: str
    framework: str
    """"keras" (3) or "tf_keras"."""
    parameters: int
    seconds: float
    difference: float
    """Between ONNX Runtime and Keras, relative to the largest logit."""
    layers: int
    """Batch normalization layers of the Keras model."""
    nodes: dict[str, int]
    """Nodes of each op type in the file."""
    affines: int
    """Mul, Add, Sub and Div nodes with a constant operand."""


def build(
    name: str,
    path: str | os.PathLike[str],
    *,
    input_size: int | None = None,
    keep_bn: bool = False,
    framework: str | None = None,
    seed: int = SEED,
) -> Built:
    """Write the ONNX file of one family and compare it with Keras in ONNX Runtime.

    Args:
        name: A key of `FAMILIES`.
        path: The file to write; weights are inside it.
        input_size: Height and width of the image; the architecture's own (224 or 299) if None.
        keep_bn: Keep every batch normalization as a BatchNormalization node.
        framework: "keras" or "tf_keras"; by default Keras 3 where it has the family, tf_keras with `keep_bn`.
        seed: For the weights, the statistics and the images.

    Returns:
        Counts and the measured difference.

    Raises:
        ValueError: If the arguments do not go together.
        RuntimeError: If the file does not compute what Keras computes.

    """
    started = time.perf_counter()
    family = FAMILIES[name]
    framework = framework or ("keras" if family.keras3 and not keep_bn else "tf_keras")
    if framework == "keras" and (keep_bn or not family.keras3):
        lacks = "has no BN op to keep" if keep_bn else "does not have it"
        raise ValueError(f"{name}: Keras 3 {lacks}; use tf_keras")
    size = input_size or family.size
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # the same file on every machine
    keras = _import(framework)

    keras.utils.set_random_seed(seed)
    architecture = getattr(keras.applications, name)
    model = architecture(weights=None, input_shape=(size, size, 3), classifier_activation=None)
    rng = np.random.default_rng(seed)
    layers = _make_trained(model, keras, rng, _images(rng, family, size, 8))
    images = _images(rng, family, size, 2)
    expected = np.asarray(model(images, training=False))

    proto = _export(model, size, keep_bn=keep_bn)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, path)
    difference = _difference(path, images, expected)
    if not difference <= TOLERANCE:  # NaN too
        raise RuntimeError(f"{path}: ONNX Runtime and Keras differ by {difference:.2g}")
    return Built(
        name=name,
        framework=framework,
        parameters=model.count_params(),
        seconds=time.perf_counter() - started,
        difference=difference,
        layers=layers,
        nodes=dict(Counter(node.op_type for node in proto.graph.node)),
        affines=_count_affines(proto),
    )


def _import(framework: str) -> Any:  # noqa: ANN401 - a module of an untyped package
    if framework == "keras":
        import keras

        return keras
    if framework == "tf_keras":
        import tf_keras

        return tf_keras
    raise ValueError(f"unknown framework {framework!r}: keras or tf_keras")


def _images(rng: np.random.Generator, family: Family, size: int, count: int) -> NDArray[np.float32]:
    return rng.uniform(0.0, family.brightest, size=(count, size, size, 3)).astype(np.float32)


def _make_trained(
    model: Any,  # noqa: ANN401
    keras: Any,  # noqa: ANN401
    rng: np.random.Generator,
    images: NDArray[np.float32],
) -> int:
    """Give every BN lively statistics, gamma and beta, and every layer a bias; count the BNs."""
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    # TensorFlow folds zero biases away; tf2onnx's transpose pass then fails on MobileNetV3 and leaves 106
    # Transposes instead of the one that a trained model has.
    for layer in model.layers:
        if getattr(layer, "use_bias", False) and layer.bias is not None:
            layer.bias.assign(rng.normal(0, 0.05, layer.bias.shape))
    for norm in norms:
        channels = norm.moving_mean.shape
        if norm.gamma is not None:
            sign = np.where(rng.uniform(size=channels) < 0.1, -1.0, 1.0)
            norm.gamma.assign(sign * rng.uniform(0.5, 1.5, channels))
        if norm.beta is not None:
            norm.beta.assign(rng.uniform(-0.3, 0.3, channels))

    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # one step in training mode sets the moving statistics
    model(images, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        variance = np.asarray(norm.moving_variance)
        variance = np.maximum(variance, 0.01 * variance.mean())  # dead channels
        variance *= rng.uniform(0.5, 2.0, variance.shape)
        mean = np.asarray(norm.moving_mean) + 0.1 * np.sqrt(variance) * rng.normal(size=variance.shape)
        norm.moving_mean.assign(mean)
        norm.moving_variance.assign(variance)
    return len(norms)


def _export(model: Any, size: int, *, keep_bn: bool) -> onnx.ModelProto:  # noqa: ANN401
    import tensorflow as tf
    import tf2onnx

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)  # its optimizers crash and go on
    signature = [tf.TensorSpec((None, size, size, 3), tf.float32, name="image")]
    with _grouped_convolutions_without_jit(), _conv_bn_rule(enabled=not keep_bn):
        proto, _ = tf2onnx.convert.from_keras(model, signature, opset=OPSET)
    inputs = [value.name for value in proto.graph.input]
    foreign = {node.op_type for node in proto.graph.node if node.domain not in {"", "ai.onnx"}}
    if inputs != ["image"] or foreign:
        raise RuntimeError(f"tf2onnx left inputs {inputs}, foreign ops {sorted(foreign)}")
    return proto


@contextlib.contextmanager
def _grouped_convolutions_without_jit() -> Iterator[None]:
    from tf_keras.src.layers.convolutional.base_conv import Conv

    with mock.patch.object(Conv, "_jit_compiled_convolution_op", Conv.convolution_op):
        yield


@contextlib.contextmanager
def _conv_bn_rule(*, enabled: bool) -> Iterator[None]:
    """Switch the rule that merges Conv and BatchNormalization, not the others of the same optimizer."""
    from tf2onnx.optimizer import back_to_back_optimizer

    rules = back_to_back_optimizer._func_map  # noqa: SLF001 - there is no public switch
    with mock.patch.dict(rules):
        if not enabled:
            del rules["Conv", "BatchNormalization"]
        yield


def _difference(path: Path, images: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    import onnxruntime as ort

    # Plain execution judges the file: ONNX Runtime 1.31's Pad_Fusion moves ResNet50V2's zero padding into a
    # MaxPool, which pads with -inf, and puts the logits 55 % off.
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": images})
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _count_affines(proto: onnx.ModelProto) -> int:
    constants = {tensor.name for tensor in proto.graph.initializer}
    constants |= {node.output[0] for node in proto.graph.node if node.op_type == "Constant"}
    arithmetic = (node for node in proto.graph.node if node.op_type in {"Mul", "Add", "Sub", "Div"})
    return sum(not constants.isdisjoint(node.input) for node in arithmetic)


def main() -> int:
    parser = argparse.ArgumentParser(description="Build keras.applications models as ONNX files.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="families; without any, list them")
    parser.add_argument("--all", action="store_true", help="every family")
    parser.add_argument("-o", "--output", type=Path, default=Path(), metavar="DIR", help="where the files go")
    parser.add_argument("--small", action="store_true", help="the family's small image size")
    parser.add_argument("--keep-bn", action="store_true", help="keep every BatchNormalization node")
    parser.add_argument("--framework", choices=["keras", "tf_keras"])
    arguments = parser.parse_args()
    names = list(FAMILIES) if arguments.all else arguments.names
    unknown = sorted(set(names) - set(FAMILIES))
    if unknown or not names:
        print("families:", *FAMILIES)
        return 2 if unknown else 0

    print(
        "| family | framework | params (M) | BN layers | BatchNormalization | Mul/Add/Sub/Div by a constant",
        end=" ",
    )
    print("| Conv | Transpose | nodes | difference | s |\n|---|---|---|---|---|---|---|---|---|---|---|")
    failed = False
    for name in names:
        try:
            print(_row(_build_in_child(name, arguments)), flush=True)
        except Exception as error:  # noqa: BLE001 - the other families shall still be built
            failed = True
            print(f"| {name} | {type(error).__name__}: {str(error)[:200]} |", flush=True)
    return int(failed)


def _build_in_child(name: str, arguments: argparse.Namespace) -> Built:
    """Build in a fresh process: TensorFlow gives memory back only when it ends."""
    options = {
        "input_size": FAMILIES[name].small if arguments.small else None,
        "keep_bn": arguments.keep_bn,
        "framework": arguments.framework,
    }
    file = arguments.output / f"{name}{'_bn' if arguments.keep_bn else ''}.onnx"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply_async(build, (name, file), options).get(TIME_LIMIT_S)


def _row(built: Built) -> str:
    count = built.nodes.get
    cells = [
        built.name,
        built.framework,
        f"{built.parameters / 1e6:.1f}",
        built.layers,
        count("BatchNormalization", 0),
        built.affines,
        count("Conv", 0),
        count("Transpose", 0),
        sum(built.nodes.values()),
        f"{built.difference:.1e}",
        f"{built.seconds:.0f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    sys.exit(main())
