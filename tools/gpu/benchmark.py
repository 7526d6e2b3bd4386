"""How long a training step of one layer takes, against copying memory and against PyTorch.

Each contestant's launches are captured in a CUDA graph and replayed, so that nobody's host code counts. They go in
turns over several sets of tensors, more than the L2 cache holds; a time is the median of the replays.
"""

import ctypes
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from device import DTYPES, NO_VECTOR, BackwardArguments, Device, ForwardArguments, Pointer, tensor

SHAPES = ((32, 64, 112, 112), (32, 256, 56, 56), (16, 64, 56, 56), (32, 512, 14, 14), (4, 2048, 7, 7), (256, 1024))
"""[N, C, H, W]; channels last is made of them."""
TYPES = ("float32", "float16", "bfloat16")
MOVES = {"forward": 3, "backward": 5}
"""How often the tensor goes over the bus at least, if nothing stays in a cache."""
COPY_BYTES = 1 << 30
REPLAYS, STEPS = 9, 12
EPSILON = 1e-3


@dataclass(frozen=True)
class Time:
    """Seconds of one step; bytes: what it moves at least."""

    op: str
    shape: tuple[int, ...]
    layout: str
    element: str
    seconds: float
    bytes: int
    cudnn: float | None = None
    native: float | None = None


def copy_bandwidth(device: Device) -> float:
    """Return the bytes per second, read and written, of copying device memory."""
    with device.memory(COPY_BYTES) as a, device.memory(COPY_BYTES) as b:

        def copy() -> None:
            device.launch("copy", Pointer(b), Pointer(a), ctypes.c_size_t(COPY_BYTES))

        return 2 * COPY_BYTES / replay_time(device, [copy])


def replay_time(device: Device, steps: list[Callable[[], None]]) -> float:
    """Return the seconds of one step: the median replay of a graph of STEPS steps, taken from the list in turns."""
    for step in steps:
        step()
    device.synchronize()
    device.call("graph_begin", device.stream)
    for i in range(STEPS):
        steps[i % len(steps)]()
    graph, begin, end = Pointer(), Pointer(), Pointer()
    device.call("graph_end", device.stream, ctypes.byref(graph))
    device.call("event_create", ctypes.byref(begin))
    device.call("event_create", ctypes.byref(end))
    times = []
    for _ in range(REPLAYS + 1):  # the first one warms up
        device.call("event_record", begin, device.stream)
        device.call("graph_launch", graph, device.stream)
        device.call("event_record", end, device.stream)
        seconds = ctypes.c_double()
        device.call("event_elapsed", begin, end, ctypes.byref(seconds))
        times.append(seconds.value / STEPS)
    for event in (begin, end):
        device.call("event_destroy", event)
    device.call("graph_free", graph)
    return statistics.median(times[1:])


def layouts(shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...], int]]:
    """Return the layouts of a shape: name, shape, channel axis."""
    if len(shape) == 2:
        return [("NC", shape, 1)]
    return [("NCHW", shape, 1), ("NHWC", (shape[0], *shape[2:], shape[1]), len(shape) - 1)]


def our_times(device: Device, shape: tuple[int, ...], axis: int, element: str) -> tuple[float, float]:
    """Return the seconds of forward and backward."""
    dtype, vectors = DTYPES[element], np.dtype(np.float32)
    described = tensor(shape, axis, 0, element)
    channels = (shape[axis],)
    rng = np.random.default_rng(0)
    with ExitStack() as stack:
        enter = stack.enter_context
        x = rng.standard_normal(shape, dtype=np.float32).astype(dtype)
        scale, B = (enter(device.upload(rng.uniform(0.5, 2, channels).astype(vectors))) for _ in range(2))
        doubles = [enter(device.empty((1, *channels), np.dtype(np.float64))) for _ in range(8)]
        mean, inv_std, var, factor, sum_dY, sum_dYX, shift, slope = (buffer.address for buffer in doubles)
        dscale, dB = (enter(device.empty(channels, vectors)) for _ in range(2))
        count = enter(device.upload(np.array(x.size / channels[0])))
        workspace = enter(device.workspace(described))
        forwards, backwards = [], []
        for _ in range(sets_for(device, x.nbytes)):
            X, dY = enter(device.upload(x)), enter(device.upload(x))
            result = enter(device.empty(shape, dtype))
            forward = ForwardArguments(
                X.address,
                scale.vector(),
                B.vector(),
                *[NO_VECTOR] * 4,
                EPSILON,
                0.9,
                0,
                *(mean, inv_std, var, factor, count.address, result.address),
            )
            backward = BackwardArguments(
                dY.address,
                X.address,
                *(buffer.vector() for buffer in (scale, dscale, dB)),
                *(mean, inv_std, count.address, sum_dY, sum_dYX, factor, shift, slope, result.address),
            )
            forwards.append(_step(device, "forward", described, forward, workspace))
            backwards.append(_step(device, "backward", described, backward, workspace))
        return replay_time(device, forwards), replay_time(device, backwards)


def sets_for(device: Device, nbytes: int) -> int:
    """Return how many sets of tensors are needed to keep them out of the L2 cache from one turn to the next."""
    return max(1, min(STEPS, -(-4 * device.info.l2 // (3 * nbytes))))


def _step(
    device: Device, function: str, described: ctypes.Structure, arguments: ctypes.Structure, workspace: Pointer
) -> Callable[[], None]:
    return lambda: device.launch(function, ctypes.byref(described), ctypes.byref(arguments), workspace)


def benchmark(device: Device) -> list[Time]:
    """Time all shapes, layouts and types; PyTorch too, where it is with CUDA."""
    try:
        import peers
    except ImportError:
        peers = None
    times = []
    for shape in SHAPES:
        for (layout, laid_out, axis), element in ((one, e) for one in layouts(shape) for e in TYPES):
            ours = our_times(device, laid_out, axis, element)
            theirs = peers.torch_times(shape, layout, element, sets_for) if peers else {}
            size = int(np.prod(shape)) * DTYPES[element].itemsize
            for op, seconds in zip(("forward", "backward"), ours, strict=True):
                cudnn, native = theirs.get(("cudnn", op)), theirs.get(("native", op))
                times.append(Time(op, shape, layout, element, seconds, MOVES[op] * size, cudnn, native))
    return times
