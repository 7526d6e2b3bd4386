"""Build networks of PyTorch as ONNX files, with the exporter of PyTorch, batch normalization intact.

    python models/torch_nets.py                        list them
    python models/torch_nets.py ResNet18 -o DIR        one file, images of 224 × 224, and what PyTorch answers (.npz)

The TorchScript exporter folds batch normalization in evaluation mode; `TrainingMode.PRESERVE` is how its users keep
it. Statistics, gamma and beta look trained in the way that `zoo.py` describes. The npz is what
`tools/bench/judge.py --expect` reads. Needs torch, onnx and NumPy, nothing of this project.

ResNet18      convolution, batch normalization, ReLU, and residuals
DenseNet121   pre-activation: batch normalization, ReLU, convolution, on concatenated features
MobileOneS0   four parallel copies of each convolution, a 1×1 and an identity, summed: the form it is trained in
RepVGGA0      3×3, 1×1, identity, summed: likewise
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["NETS", "build"]

SEED, OPSET, SIZE, CLASSES = 3, 17, 224, 1000


def build(name: str, path: Path) -> None:
    """Write the ONNX file of one network, and an npz of two images and its answers beside it."""
    torch.manual_seed(SEED)
    model = NETS[name]()
    _make_trained(model, torch.rand(8, 3, SIZE, SIZE))
    images = torch.rand(2, 3, SIZE, SIZE)
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of this exporter as such
        logits = model(images)
        torch.onnx.export(
            model, (images,), str(path), dynamo=False, opset_version=OPSET,
            training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
            input_names=["image"], output_names=["logits"], dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
        )  # fmt: skip
    np.savez(path.with_suffix(".npz"), **{"input:image": images.numpy(), "output:0": logits.numpy()})


def _make_trained(model: nn.Module, images: Tensor) -> None:
    """Give every batch normalization lively statistics, gamma and beta; leave the model in evaluation mode."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        sign = torch.where(torch.rand(norm.num_features) < 0.1, -1.0, 1.0)
        norm.weight.data = sign * torch.empty(norm.num_features).uniform_(0.5, 1.5)
        norm.bias.data.uniform_(-0.3, 0.3)
        norm.momentum = 1.0  # one step in training mode sets the running statistics
    with torch.no_grad():
        model.train()(images)
    for norm in norms:
        variance = norm.running_var.clamp(min=0.01 * float(norm.running_var.mean()))  # dead channels
        norm.running_var = variance * torch.empty_like(variance).uniform_(0.5, 2.0)
        norm.running_mean += 0.1 * norm.running_var.sqrt() * torch.randn_like(variance)
    model.eval()


def _conv(inputs: int, channels: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, channels, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(channels)
    )


def _classifier(channels: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)


class Residual(nn.Module):
    """Two convolutions, and a shortcut around them."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(inputs, channels, 3, stride), nn.ReLU(), _conv(channels, channels))
        self.shortcut = nn.Identity() if stride == 1 else _conv(inputs, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated sum."""
        return torch.relu(self.shortcut(x) + self.body(x))


def resnet_18() -> nn.Module:
    blocks: list[nn.Module] = [_conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for channels in (64, 128, 256, 512):
        blocks += [Residual(inputs, channels, 1 if channels == inputs else 2), Residual(channels, channels, 1)]
        inputs = channels
    return nn.Sequential(*blocks, *_classifier(512))


class Dense(nn.Module):
    """A layer whose output is put behind its input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_activated(inputs), *_conv(inputs, 4 * growth, 1), nn.ReLU())
        self.body.append(nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Return both."""
        return torch.cat([x, self.body(x)], 1)


def _activated(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(channels), nn.ReLU()


def densenet_121(growth: int = 32) -> nn.Module:
    channels = 2 * growth
    blocks: list[nn.Module] = [_conv(3, channels, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    for stage, depth in enumerate((6, 12, 24, 16)):
        if stage:
            half = nn.Conv2d(channels, channels // 2, 1, bias=False)
            blocks += [*_activated(channels), half, nn.AvgPool2d(2)]
            channels //= 2
        for _ in range(depth):
            blocks.append(Dense(channels, growth))
            channels += growth
    return nn.Sequential(*blocks, *_activated(channels), *_classifier(channels))


class Parallel(nn.Module):
    """Branches on one input, summed and activated."""

    def __init__(self, branches: Iterable[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated sum."""
        first, *others = self.branches
        y = first(x)
        for branch in others:
            y = y + branch(x)
        return torch.relu(y)


def _identity(inputs: int, channels: int, stride: int = 1) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels)] if inputs == channels and stride == 1 else []


def mobile_one_s0(copies: int = 4) -> nn.Module:
    inputs = 48
    blocks: list[nn.Module] = [Parallel([*(_conv(3, 48, 3, 2) for _ in range(copies)), _conv(3, 48, 1, 2)])]
    for channels, depth, first in ((48, 2, 2), (128, 8, 2), (256, 5, 2), (256, 5, 1), (1024, 1, 2)):
        for stride in (first, *[1] * (depth - 1)):
            kernels = (*[3] * copies, 1)
            spatial = [_conv(inputs, inputs, kernel, stride, inputs) for kernel in kernels]
            mixing = [_conv(inputs, channels, 1) for _ in range(copies)]
            blocks += [Parallel([*spatial, *_identity(inputs, inputs, stride)])]
            blocks += [Parallel([*mixing, *_identity(inputs, channels)])]
            inputs = channels
    return nn.Sequential(*blocks, *_classifier(1024))


def rep_vgg_a0() -> nn.Module:
    inputs, blocks = 3, []
    for channels, depth in ((48, 1), (48, 2), (96, 4), (192, 14), (1280, 1)):
        for stride in (2, *[1] * (depth - 1)):
            dense = [_conv(inputs, channels, kernel, stride) for kernel in (3, 1)]
            blocks.append(Parallel([*dense, *_identity(inputs, channels, stride)]))
            inputs = channels
    return nn.Sequential(*blocks, *_classifier(1280))


NETS: dict[str, Callable[[], nn.Module]] = {
    "ResNet18": resnet_18,
    "DenseNet121": densenet_121,
    "MobileOneS0": mobile_one_s0,
    "RepVGGA0": rep_vgg_a0,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Build networks of PyTorch as ONNX files.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks; without any, list them")
    parser.add_argument("-o", "--output", type=Path, default=Path(), metavar="DIR", help="where the files go")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(NETS))
    if unknown or not arguments.names:
        print("networks:", *NETS)
        return 2 if unknown else 0
    for name in arguments.names:
        build(name, arguments.output / f"{name}.onnx")
        print(name, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
