"""PyTorch's batch normalization, contiguous or channels_last. NumPy is not needed."""

import ctypes
from typing import Any

import torch
from layer import EPSILON, MOMENTUM, THREADS, Layer, Pass

NOTE = (
    "aten::native_batch_norm into given tensors (out=), aten::native_batch_norm_backward, which allocates dX; "
    "NHWC is channels_last"
)


def start() -> None:
    """Set the threads."""
    torch.set_num_threads(THREADS)
    torch.set_grad_enabled(False)  # the operators are called by hand


def version() -> str:
    """Return its version."""
    return f"torch {torch.__version__}"


def opened(layer: Layer) -> dict[str, Pass]:
    """Make the tensors, and run forward once for what backward takes."""
    X, dY = (_read(layer, name) for name in ("x", "dy"))
    scale, B = torch.tensor(layer.scale), torch.tensor(layer.B)
    running_mean, running_var = torch.zeros(layer.channels), torch.ones(layer.channels)
    outputs = (torch.empty_like(X), torch.empty(layer.channels), torch.empty(layer.channels))

    def forward() -> Any:  # noqa: ANN401
        return torch.native_batch_norm(X, scale, B, running_mean, running_var, True, 1 - MOMENTUM, EPSILON, out=outputs)

    def backward() -> Any:  # noqa: ANN401
        return torch.ops.aten.native_batch_norm_backward(
            dY, X, scale, running_mean, running_var, *outputs[1:], True, EPSILON, [True, True, True]
        )

    forward()
    return {
        "forward": Pass(forward, lambda: _raw(forward()[0], layer)),
        "backward": Pass(backward, lambda: _raw(backward()[0], layer)),
    }


def _read(layer: Layer, name: str) -> torch.Tensor:
    flat = torch.from_file(str(layer.folder / name), size=layer.elements, dtype=torch.float32).clone()
    shaped = flat.view(layer.in_memory)
    return shaped.movedim(-1, 1) if layer.layout == "NHWC" else shaped


def _raw(tensor: torch.Tensor, layer: Layer) -> Any:  # noqa: ANN401
    """Return the bytes of a tensor in the order of the layout."""
    ordered = (tensor.movedim(1, -1) if layer.layout == "NHWC" else tensor).contiguous()
    # a copy: the tensor may go
    return bytearray((ctypes.c_char * (ordered.numel() * 4)).from_address(ordered.data_ptr()))
