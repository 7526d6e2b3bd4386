"""Build re-parameterizable networks in the form they are trained in: parallel branches that one convolution could be.

    python models/reparam.py                              list the families
    python models/reparam.py MobileOneS0 -o DIR           one file, full size: images of 224 × 224, a thousand classes
    python models/reparam.py --all --small -o DIR         all of them, narrow and shallow, trained for a few steps

family          in each block, summed (every branch ends in a batch normalization of its own)
RepVGGA0        3×3, 1×1, identity
MobileOneS0     depthwise: four 3×3, one 1×1, identity; then pointwise: four 1×1, identity
RepGhost050     depthwise 3×3, identity, behind a pointwise convolution
FastViTT8       token mixing x + γ · (branches of a MobileOne block − identity); strides: depthwise 7×7 and 3×3
DBBResNet18     3×3; 1×1; 1×1 → 3×3; 1×1 → average
ACNetResNet18   3×3, 1×3, 3×1
YOLOv6N         3×3, 1×1, identity, and pyramid pooling at the end; with a classifier in place of the heads

Written from the papers' descriptions: RepVGG (arXiv 2101.03697), MobileOne (2206.04040), RepGhost (2211.06088),
FastViT (2303.14189), Diverse Branch Block (2103.13425), ACNet (1908.03930), YOLOv6 (2209.02976).

Strided convolutions pad as Keras does with "same". Where a branch is two ops deep, Diverse Branch Block pads with
what the inner batch normalization makes of zero; padding in front of the inner 1×1 convolution is the same.

The full-size networks look trained as those of `zoo.py` do; the small ones are: a few steps of Adam on digits. The
file is `bnpass.export`'s, compared with Keras: every batch normalization is one node. The output is the logits.
"""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # the same file on every machine

import keras
import numpy as np
from keras import layers
from zoo import _make_trained

__all__ = ["FAMILIES", "Built", "build", "network", "train"]

SEED = 7
SIZE, SMALL_SIZE = 224, 32
CLASSES, SMALL_CLASSES = 1000, 10
STEPS, BATCH = 24, 32
"""Of training: with `MOMENTUM`, less than a tenth of each statistic is still what it began with."""
MOMENTUM = 0.9
Tensor = Any
"""A symbolic tensor of Keras: images first, channels last."""
Body = Callable[[Tensor, bool], Tensor]


@dataclass(frozen=True)
class Built:
    """What one build produced."""

    name: str
    parameters: int
    layers: int
    """Batch normalization layers of the Keras model."""
    nodes: dict[str, int]
    """Nodes of each op type in the file."""
    seconds: float


def build(name: str, path: str | os.PathLike[str], *, small: bool = False, seed: int = SEED) -> Built:
    """Write the ONNX file of one family.

    Args:
        name: A key of `FAMILIES`.
        path: The file to write; weights are inside it.
        small: Narrow, shallow, for images of 32 × 32, and really trained.
        seed: For the weights, the statistics and the images.

    Raises:
        bnpass.errors.BnpassError: If the file does not compute what Keras computes.

    """
    import onnx

    import bnpass

    started = time.perf_counter()
    keras.utils.set_random_seed(seed)
    model = network(name, small=small)
    if small:
        train(model)
    else:
        rng = np.random.default_rng(seed)
        _make_trained(model, keras, rng, rng.uniform(size=(8, SIZE, SIZE, 3)).astype(np.float32))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    bnpass.export(model, path)
    return Built(
        name=name,
        parameters=model.count_params(),
        layers=sum(isinstance(layer, layers.BatchNormalization) for layer in model.layers),
        nodes=dict(Counter(node.op_type for node in onnx.load(path).graph.node)),
        seconds=time.perf_counter() - started,
    )


def network(name: str, *, small: bool) -> keras.Model:
    """Return an untrained network: images in, logits out."""
    size, classes = (SMALL_SIZE, SMALL_CLASSES) if small else (SIZE, CLASSES)
    image = layers.Input((size, size, 3), name="image")
    features = layers.GlobalAveragePooling2D()(FAMILIES[name](image, small))
    return keras.Model(image, layers.Dense(classes, name="logits")(features), name=name)


def train(model: keras.Model) -> None:
    """Take a few steps on digits, each enlarged fourfold and made grey in three colours."""
    from digits import load_train_split

    digits = load_train_split()
    count = STEPS * BATCH
    images = digits.x[:count].repeat(4, axis=1).repeat(4, axis=2).repeat(3, axis=3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss, jit_compile=False)
    model.fit(images, digits.y[:count], batch_size=BATCH, verbose=0)


# What blocks are made of


def norm(x: Tensor) -> Tensor:
    return layers.BatchNormalization(momentum=MOMENTUM)(x)


def conv(x: Tensor, channels: int, kernel: int | tuple[int, int], stride: int = 1, padding: str = "same") -> Tensor:
    """Return a convolution and its batch normalization."""
    return norm(layers.Conv2D(channels, kernel, stride, padding, use_bias=False)(x))


def depthwise(x: Tensor, kernel: int, stride: int = 1) -> Tensor:
    """Return a depthwise convolution and its batch normalization."""
    return norm(layers.DepthwiseConv2D(kernel, stride, "same", use_bias=False)(x))


def total(branches: Iterable[Tensor]) -> Tensor:
    found = list(branches)
    return layers.Add()(found) if len(found) > 1 else found[0]


def relu(x: Tensor) -> Tensor:
    return layers.ReLU()(x)


def gelu(x: Tensor) -> Tensor:
    return layers.Activation("gelu")(x)


def identity(x: Tensor, channels: int, stride: int = 1) -> list[Tensor]:
    """Return the branch that is a batch normalization alone, where the shape allows one."""
    return [norm(x)] if stride == 1 and x.shape[-1] == channels else []


@keras.saving.register_keras_serializable("bnpass.models")
class ChannelScale(layers.Layer):
    """One learned factor per channel, as a residual branch of a transformer has it."""

    def __init__(self, initial: float = 0.1, **options: object) -> None:
        super().__init__(**options)
        self.initial = initial

    def build(self, shape: Sequence[int | None]) -> None:
        """Create the factors."""
        self.gamma = self.add_weight(shape=(shape[-1],), initializer=keras.initializers.Constant(self.initial))

    def call(self, x: Tensor) -> Tensor:
        """Scale each channel."""
        return x * self.gamma


# RepVGG and YOLOv6


def rep_vgg_block(x: Tensor, channels: int, stride: int = 1) -> Tensor:
    dense = [conv(x, channels, 3, stride), conv(x, channels, 1, stride)]
    return relu(total([*dense, *identity(x, channels, stride)]))


def rep_vgg_a0(x: Tensor, small: bool) -> Tensor:
    stages = [(8, 1), (8, 2), (16, 2), (32, 1)] if small else [(48, 1), (48, 2), (96, 4), (192, 14), (1280, 1)]
    for channels, depth in stages:
        for index in range(depth):
            x = rep_vgg_block(x, channels, 1 if index else 2)
    return x


def yolo_v6_n(x: Tensor, small: bool) -> Tensor:
    stages = [(8, 1), (16, 2), (32, 1)] if small else [(32, 2), (64, 4), (128, 6), (256, 2)]
    x = rep_vgg_block(x, stages[0][0] // 2, 2)
    for channels, depth in stages:
        x = rep_vgg_block(x, channels, 2)
        for _ in range(depth):
            x = rep_vgg_block(x, channels)
    return pyramid_pooling(x)


def pyramid_pooling(x: Tensor) -> Tensor:
    channels = x.shape[-1]
    pooled = [relu(conv(x, channels // 2, 1))]
    for _ in range(3):
        pooled.append(layers.MaxPooling2D(5, 1, "same")(pooled[-1]))
    return relu(conv(layers.Concatenate()(pooled), channels, 1))


# MobileOne and FastViT

COPIES = 4
"""Of each convolution in a block of MobileOne-S0."""


def mobile_one_depthwise(x: Tensor, kernel: int = 3, stride: int = 1, copies: int = 1) -> Tensor:
    branches = [depthwise(x, kernel, stride) for _ in range(copies)]
    return total([*branches, depthwise(x, 1, stride), *identity(x, x.shape[-1], stride)])


def mobile_one_pointwise(x: Tensor, channels: int, copies: int = 1) -> Tensor:
    return total([*(conv(x, channels, 1) for _ in range(copies)), *identity(x, channels)])


def mobile_one_block(x: Tensor, channels: int, stride: int) -> Tensor:
    x = relu(mobile_one_depthwise(x, stride=stride, copies=COPIES))
    return relu(mobile_one_pointwise(x, channels, COPIES))


def mobile_one_stem(x: Tensor, channels: int, copies: int = 1) -> Tensor:
    """Return a block of plain convolutions: there are too few colours to take them one by one."""
    return total([*(conv(x, channels, 3, 2) for _ in range(copies)), conv(x, channels, 1, 2)])


def mobile_one_s0(x: Tensor, small: bool) -> Tensor:
    stages = [(16, 2, 2), (32, 2, 2)] if small else [(48, 2, 2), (128, 8, 2), (256, 5, 2), (256, 5, 1), (1024, 1, 2)]
    x = relu(mobile_one_stem(x, 8 if small else 48, COPIES))
    for channels, depth, stride in stages:
        for index in range(depth):
            x = mobile_one_block(x, channels, 1 if index else stride)
    return x


def rep_mixer(x: Tensor) -> Tensor:
    mixed = layers.Subtract()([mobile_one_depthwise(x), norm(x)])
    return layers.Add()([x, ChannelScale()(mixed)])


def convolutional_ffn(x: Tensor, ratio: int) -> Tensor:
    channels = x.shape[-1]
    y = layers.Conv2D(ratio * channels, 1)(depthwise(x, 7))
    y = layers.Conv2D(channels, 1)(gelu(y))
    return layers.Add()([x, ChannelScale()(y)])


def patch_embedding(x: Tensor, channels: int) -> Tensor:
    """Return half the resolution: a large depthwise kernel with a small one beside it, then a pointwise block."""
    x = gelu(total([depthwise(x, 7, 2), depthwise(x, 3, 2)]))
    return gelu(mobile_one_pointwise(x, channels))


def fast_vit_t8(x: Tensor, small: bool) -> Tensor:
    stages = [(8, 1), (16, 1)] if small else [(48, 2), (96, 2), (192, 4), (384, 2)]
    channels = stages[0][0]
    x = gelu(mobile_one_stem(x, channels))
    x = gelu(mobile_one_depthwise(x, stride=2))
    x = gelu(mobile_one_pointwise(x, channels))
    for channels, depth in stages:
        if channels != x.shape[-1]:
            x = patch_embedding(x, channels)
        for _ in range(depth):
            x = convolutional_ffn(rep_mixer(x), 3)
    return gelu(mobile_one_depthwise(x))


# RepGhost


def rep_ghost_module(x: Tensor, channels: int, *, activate: bool) -> Tensor:
    activation = relu if activate else layers.Identity()
    x = activation(conv(x, channels, 1))
    return activation(total([depthwise(x, 3), norm(x)]))


def squeeze_and_excite(x: Tensor, divisor: int = 4) -> Tensor:
    channels = x.shape[-1]
    weights = layers.GlobalAveragePooling2D(keepdims=True)(x)
    weights = layers.Conv2D(max(4, channels // divisor), 1, activation="relu")(weights)
    weights = layers.Conv2D(channels, 1, activation="hard_sigmoid")(weights)
    return layers.Multiply()([x, weights])


def rep_ghost_bottleneck(x: Tensor, kernel: int, hidden: int, channels: int, *, attends: bool, stride: int) -> Tensor:
    y = rep_ghost_module(x, hidden, activate=True)
    if stride == 2:
        y = depthwise(y, kernel, 2)
    if attends:
        y = squeeze_and_excite(y)
    y = rep_ghost_module(y, channels, activate=False)
    if stride == 2 or x.shape[-1] != channels:
        x = conv(depthwise(x, kernel, stride), channels, 1)
    return layers.Add()([x, y])


_GHOSTS = (
    (3, 8, 16, False, 1),
    (3, 24, 24, False, 2), (3, 36, 24, False, 1),
    (5, 36, 40, True, 2), (5, 60, 40, True, 1),
    (3, 120, 80, False, 2), (3, 100, 80, False, 1), (3, 92, 80, False, 1), (3, 92, 80, False, 1),
    (3, 240, 112, True, 1), (3, 336, 112, True, 1),
    (5, 336, 160, True, 2), (5, 480, 160, False, 1), (5, 480, 160, True, 1), (5, 480, 160, False, 1),
    (5, 480, 160, True, 1),
)  # fmt: skip
"""RepGhostNet: kernel, hidden channels, channels, attention, stride; the widths are those of 1.0×."""


def rep_ghost_050(x: Tensor, small: bool) -> Tensor:
    def half(channels: int) -> int:
        return max(4, (channels // 2 + 2) // 4 * 4)

    x = relu(conv(x, half(16), 3, 2))
    for kernel, hidden, channels, attends, stride in _GHOSTS[1:5] if small else _GHOSTS:
        x = rep_ghost_bottleneck(x, kernel, half(hidden), half(channels), attends=attends, stride=stride)
    if small:
        return x
    x = layers.GlobalAveragePooling2D(keepdims=True)(relu(conv(x, half(960), 1)))
    return layers.Conv2D(1280, 1, activation="relu")(x)


# ResNet-18 with a block in place of each 3×3 convolution


def resnet_18(block: Callable[[Tensor, int, int], Tensor]) -> Body:
    def body(x: Tensor, small: bool) -> Tensor:
        stages = [(8, 1), (16, 1)] if small else [(64, 2), (128, 2), (256, 2), (512, 2)]
        x = relu(conv(x, stages[0][0], 3 if small else 7, 2))
        x = layers.MaxPooling2D(3, 2, "same")(x)
        for channels, depth in stages:
            for _ in range(depth):
                stride = 1 if x.shape[-1] == channels else 2
                shortcut = x if stride == 1 else conv(x, channels, 1, stride)
                x = block(relu(block(x, channels, stride)), channels, 1)
                x = relu(layers.Add()([shortcut, x]))
        return x

    return body


def diverse_branches(x: Tensor, channels: int, stride: int) -> Tensor:
    padded = layers.ZeroPadding2D(1)(x)
    averaged = layers.AveragePooling2D(3, stride, "valid")(conv(padded, channels, 1))
    return total(
        [
            norm(layers.Conv2D(channels, 3, stride, use_bias=False)(padded)),
            norm(layers.Conv2D(channels, 1, stride, use_bias=False)(x)),
            conv(conv(padded, x.shape[-1], 1), channels, 3, stride, "valid"),
            norm(averaged),
        ]
    )


def asymmetric_branches(x: Tensor, channels: int, stride: int) -> Tensor:
    return total(conv(x, channels, kernel, stride) for kernel in ((3, 3), (1, 3), (3, 1)))


FAMILIES: dict[str, Body] = {
    "RepVGGA0": rep_vgg_a0,
    "MobileOneS0": mobile_one_s0,
    "RepGhost050": rep_ghost_050,
    "FastViTT8": fast_vit_t8,
    "DBBResNet18": resnet_18(diverse_branches),
    "ACNetResNet18": resnet_18(asymmetric_branches),
    "YOLOv6N": yolo_v6_n,
}
"""What stands between the image and the classifier."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Build re-parameterizable networks in training form as ONNX files.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="families; without any, list them")
    parser.add_argument("--all", action="store_true", help="every family")
    parser.add_argument("-o", "--output", type=Path, default=Path(), metavar="DIR", help="where the files go")
    parser.add_argument("--small", action="store_true", help="narrow, shallow, trained for a few steps")
    arguments = parser.parse_args()
    names = list(FAMILIES) if arguments.all else arguments.names
    unknown = sorted(set(names) - set(FAMILIES))
    if unknown or not names:
        print("families:", *FAMILIES)
        return 2 if unknown else 0
    print("| family | params (M) | BN layers | BatchNormalization | Conv | nodes | s |\n|---|---|---|---|---|---|---|")
    for name in names:
        print(_row(build(name, arguments.output / f"{name}.onnx", small=arguments.small)), flush=True)
    return 0


def _row(built: Built) -> str:
    count = [built.nodes.get(op, 0) for op in ("BatchNormalization", "Conv")]
    cells = [built.name, f"{built.parameters / 1e6:.2f}", built.layers, *count, sum(built.nodes.values())]
    return f"| {' | '.join(map(str, cells))} | {built.seconds:.0f} |"


if __name__ == "__main__":
    sys.exit(main())
