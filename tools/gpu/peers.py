"""PyTorch's batch normalization, by cuDNN and by its own kernels, timed as ours is. Needs PyTorch with CUDA."""

import statistics
from collections.abc import Callable

import torch

if not torch.cuda.is_available():
    raise ImportError("PyTorch has no CUDA here")

REPLAYS, STEPS = 9, 12
L2_TIMES = 4
EPSILON = 1e-3


def torch_times(shape: tuple[int, ...], layout: str, element: str, _: object = None) -> dict[tuple[str, str], float]:
    """Return the seconds of ("cudnn" or "native", "forward" or "backward"); what it cannot run is left out."""
    found = {}
    for name, enabled in (("cudnn", True), ("native", False)):
        with torch.backends.cudnn.flags(enabled=enabled):
            try:
                found[name, "forward"], found[name, "backward"] = _times(shape, layout, getattr(torch, element))
            except RuntimeError as error:
                print(f"PyTorch {name} {shape} {layout} {element}: {error}")
    return found


def _times(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> tuple[float, float]:
    memory = torch.channels_last if layout == "NHWC" else torch.contiguous_format
    nbytes = torch.Size(shape).numel() * dtype.itemsize
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    sets = max(1, min(STEPS, -(-L2_TIMES * l2 // (3 * nbytes))))
    weight, bias = (torch.rand(shape[1], device="cuda", requires_grad=True) for _ in range(2))
    xs = [torch.randn(shape, device="cuda").to(dtype).contiguous(memory_format=memory) for _ in range(sets)]
    xs = [x.requires_grad_() for x in xs]

    def forward(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.batch_norm(x, None, None, weight, bias, training=True, eps=EPSILON)

    with torch.no_grad():
        first = _replay([lambda x=x: forward(x) for x in xs])
    ys = [forward(x) for x in xs]
    dys = [torch.randn_like(y) for y in ys]
    steps = [
        lambda x=x, y=y, dy=dy: torch.autograd.grad(y, (x, weight, bias), dy, retain_graph=True)
        for x, y, dy in zip(xs, ys, dys, strict=True)
    ]
    return first, _replay(steps)


def _replay(steps: list[Callable[[], object]]) -> float:
    """Return the seconds of one step: the median replay of a graph of STEPS steps."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for step in steps:
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(STEPS):
            steps[i % len(steps)]()
    times = []
    for _ in range(REPLAYS + 1):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3 / STEPS)
    return statistics.median(times[1:])
