"""Convolution, pooling and normalization in NumPy, in the dtype of their input.

    Conv           Y[n, m, o] = Σ_{c, k} W[m, c, k] · X[n, c, o·stride + k·dilation - pad]
    ConvTranspose  Y[n, m, i·stride + k·dilation - pad] += W[c, m, k] · X[n, c, i]
    MaxPool, AveragePool, LpPool over the same windows; BatchNormalization over axis 1

Shapes are ONNX's: ``[N, C, D1 .. Dn]``, any n ≥ 1; pads are ``[begin .., end ..]``. No ONNX type appears
here. ``RoiPool``, ``MaxUnpool`` and the deformable convolution are not covered.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]  # of whatever dtype came in

# Above this size the matrix of all windows is not written out; the taps are added up instead.
_WINDOW_MATRIX_BYTES = 1 << 28


def pool_geometry(
    size: Sequence[int],
    kernel: Sequence[int],
    *,
    auto_pad: str = "NOTSET",
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Resolve ONNX's window attributes into ``(output size, strides, pads, dilations)``."""
    rank = len(size)
    strides = tuple(strides or (1,) * rank)
    dilations = tuple(dilations or (1,) * rank)
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        out = [-(-n // s) for n, s in zip(size, strides, strict=True)]
        total = [max((o - 1) * s + e - n, 0) for o, s, e, n in zip(out, strides, extent, size, strict=True)]
        small = [t // 2 for t in total]
        large = [t - h for t, h in zip(total, small, strict=True)]
        begin, end = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
        return tuple(out), strides, (*begin, *end), dilations
    pads = (0,) * (2 * rank) if pads is None or auto_pad == "VALID" else tuple(pads)
    out = []
    for i in range(rank):
        room = size[i] + pads[i] + pads[rank + i] - extent[i]
        steps = -(-room // strides[i]) if ceil_mode else room // strides[i]
        if ceil_mode and steps * strides[i] >= size[i] + pads[i]:
            steps -= 1  # a window may not start in the padding behind the data
        out.append(steps + 1)
    return tuple(out), strides, pads, dilations


def _padded(X: Array, pads: Sequence[int], fill: float, room: Sequence[int]) -> Array:
    """Pad the spatial axes; the ends are extended or cut so that exactly `room` positions remain."""
    rank = X.ndim - 2
    width = [(pads[i], max(room[i] - X.shape[2 + i] - pads[i], 0)) for i in range(rank)]
    width = [(0, 0), (0, 0), *width]
    if any(before or after for before, after in width):
        X = np.pad(X, width, constant_values=fill)
    return X[(slice(None), slice(None), *(slice(0, r) for r in room))]


def _windows(X: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Array:
    """View of shape ``[N, C, O1 .. On, k1 .. kn]``."""
    rank = X.ndim - 2
    extent = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    view = sliding_window_view(X, extent, axis=tuple(range(2, 2 + rank)))
    step = [slice(None, None, s) for s in strides]
    tap = [slice(None, None, d) for d in dilations]
    return view[(slice(None), slice(None), *step, *tap)]


def _room(out: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> list[int]:
    return [(o - 1) * s + (k - 1) * d + 1 for o, k, s, d in zip(out, kernel, strides, dilations, strict=True)]


def _taps(kernel: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return product(*(range(k) for k in kernel))


def _at(weights: Array, tap: tuple[int, ...]) -> Array:
    """One kernel position of weights ``[group, A, B, k1 .. kn]``."""
    index: tuple[Any, ...] = (slice(None), slice(None), slice(None), *tap)
    kernel_position: Array = weights[index]
    return kernel_position


def conv(
    X: Array,
    W: Array,
    B: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    group: int = 1,
) -> Array:
    """Convolution of any rank.

    Args:
        X: ``[N, C, D1 .. Dn]``.
        W: ``[M, C/group, k1 .. kn]``.
        B: ``[M]`` or nothing.
        auto_pad: As in ONNX.
        strides: As in ONNX.
        pads: As in ONNX.
        dilations: As in ONNX.
        group: As in ONNX.

    Returns:
        ``[N, M, O1 .. On]``.

    Example:
        >>> conv(np.ones((1, 1, 3)), np.ones((1, 1, 2)))
        array([[[2., 2.]]])

    """
    N, C, M, kernel = X.shape[0], X.shape[1], W.shape[0], W.shape[2:]
    out, strides, pads, dilations = pool_geometry(
        X.shape[2:], kernel, auto_pad=auto_pad, strides=strides, pads=pads, dilations=dilations
    )
    X = _padded(X, pads, 0, _room(out, kernel, strides, dilations))
    depthwise = W.shape[1] == 1 and group == C
    matrix_bytes = (C // group) * prod(kernel) * prod(out) * X.dtype.itemsize
    if depthwise or (prod(kernel) > 1 and matrix_bytes > _WINDOW_MATRIX_BYTES):
        Y = _conv_by_taps(X, W, out, strides, dilations, group)
    else:
        Y = _conv_by_matrix(X, W, out, strides, dilations, group)
    Y = Y.reshape(N, M, *out)
    return Y if B is None else Y + B.reshape(-1, *(1,) * len(out))


def _conv_by_matrix(
    X: Array, W: Array, out: tuple[int, ...], strides: Sequence[int], dilations: Sequence[int], group: int
) -> Array:
    (N, C), (M, kernel), rank = X.shape[:2], (W.shape[0], W.shape[2:]), len(out)
    per = C // group
    weights = W.reshape(group, M // group, -1)  # [group, M/group, C/group·k]
    Y = np.empty((N, group, M // group, prod(out)), dtype=np.result_type(X, W))
    taps = tuple(range(1 + rank, 1 + 2 * rank))
    view = _windows(X, kernel, strides, dilations)
    for n in range(N):
        for g in range(group):
            part = view[n, g * per : (g + 1) * per]  # [C/group, O1 .. On, k1 .. kn]
            columns = part.transpose(0, *taps, *range(1, 1 + rank)).reshape(weights.shape[2], -1)
            np.matmul(weights[g], columns, out=Y[n, g])
    return Y


def _conv_by_taps(
    X: Array, W: Array, out: tuple[int, ...], strides: Sequence[int], dilations: Sequence[int], group: int
) -> Array:
    N, (M, per) = X.shape[0], W.shape[:2]
    Y: Array = np.zeros((N, group, M // group, prod(out)), dtype=np.result_type(X, W))
    weights = W.reshape(group, M // group, per, *W.shape[2:])
    for tap in _taps(W.shape[2:]):
        begin = [t * d for t, d in zip(tap, dilations, strict=True)]
        spans = [slice(b, b + (o - 1) * s + 1, s) for b, o, s in zip(begin, out, strides, strict=True)]
        shifted = X[(slice(None), slice(None), *spans)].reshape(N, group, per, -1)  # [N, group, C/group, O]
        W_tap = _at(weights, tap)  # [group, M/group, C/group]
        Y += W_tap * shifted if per == 1 else W_tap @ shifted
    return Y


def conv_transpose(
    X: Array,
    W: Array,
    B: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
) -> Array:
    """Transposed convolution of any rank: every input position adds its kernel to the output.

    Args:
        X: ``[N, C, D1 .. Dn]``.
        W: ``[C, M/group, k1 .. kn]``.
        B: ``[M]`` or nothing.
        auto_pad: As in ONNX.
        strides: As in ONNX.
        pads: As in ONNX.
        dilations: As in ONNX.
        group: As in ONNX.
        output_padding: As in ONNX.
        output_shape: As in ONNX: spatial sizes, from which the pads follow.

    Returns:
        ``[N, M, O1 .. On]``.

    """
    N, C, per, kernel = X.shape[0], X.shape[1], W.shape[1], W.shape[2:]
    rank = len(kernel)
    size = X.shape[2:]
    strides = tuple(strides or (1,) * rank)
    dilations = tuple(dilations or (1,) * rank)
    extra = tuple(output_padding or (0,) * rank)
    room = [
        (n - 1) * s + (k - 1) * d + 1 + e for n, s, k, d, e in zip(size, strides, kernel, dilations, extra, strict=True)
    ]
    if output_shape is None and auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        output_shape = [n * s for n, s in zip(size, strides, strict=True)]
    if output_shape is not None:
        target = list(output_shape)[-rank:]
        total = [max(r - o, 0) for r, o in zip(room, target, strict=True)]
        # The odd element goes to the end for SAME_UPPER and to the beginning otherwise.
        begin = [t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in total]
    else:
        used = tuple(pads) if pads is not None and auto_pad == "NOTSET" else (0,) * (2 * rank)
        begin = list(used[:rank])
        target = [room[i] - used[i] - used[rank + i] for i in range(rank)]
    span = [max(r, b + t) for r, b, t in zip(room, begin, target, strict=True)]
    Y: Array = np.zeros((N, group * per, *span), dtype=np.result_type(X, W))
    columns = X.reshape(N, group, C // group, -1)
    weights = W.reshape(group, C // group, per, *kernel)
    for tap in _taps(kernel):
        part = np.swapaxes(_at(weights, tap), 1, 2) @ columns  # [N, group, M/group, D1·..·Dn]
        at = [
            slice(t * d, t * d + (n - 1) * s + 1, s) for t, d, n, s in zip(tap, dilations, size, strides, strict=True)
        ]
        Y[(slice(None), slice(None), *at)] += part.reshape(N, group * per, *size)
    cut = [slice(b, b + t) for b, t in zip(begin, target, strict=True)]
    Y = Y[(slice(None), slice(None), *cut)]
    return Y if B is None else Y + B.reshape(-1, *(1,) * rank)


def max_pool(
    X: Array,
    kernel: Sequence[int],
    *,
    auto_pad: str = "NOTSET",
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    ceil_mode: bool = False,
    storage_order: int = 0,
    with_indices: bool = False,
) -> tuple[Array, NDArray[np.int64] | None]:
    """Maximum over windows, and where it was found if asked.

    Args:
        X: ``[N, C, D1 .. Dn]``; padding never wins.
        kernel: Window size.
        auto_pad: As in ONNX.
        strides: As in ONNX.
        pads: As in ONNX.
        dilations: As in ONNX.
        ceil_mode: As in ONNX.
        storage_order: 1 numbers positions column by column.
        with_indices: Also return the positions, as ONNX's second output.

    Returns:
        The maxima, and the positions in the flattened input or None.

    """
    out, strides, pads, dilations = pool_geometry(
        X.shape[2:],
        kernel,
        auto_pad=auto_pad,
        strides=strides,
        pads=pads,
        dilations=dilations,
        ceil_mode=ceil_mode,
    )
    rank = len(out)
    low = -np.inf if np.issubdtype(X.dtype, np.floating) else np.iinfo(X.dtype).min
    room = _room(out, kernel, strides, dilations)
    view = _windows(_padded(X, pads, low, room), kernel, strides, dilations)
    if not with_indices:
        return view.max(axis=tuple(range(2 + rank, 2 + 2 * rank))), None
    place: Array = np.arange(prod(X.shape[2:]))
    place = place.reshape(X.shape[2:], order="F" if storage_order else "C")
    places = (
        np.broadcast_to(place, X.shape) + np.arange(prod(X.shape[:2])).reshape(*X.shape[:2], *(1,) * rank) * place.size
    )
    places = _windows(_padded(places, pads, -1, room), kernel, strides, dilations)
    flat = view.reshape(*view.shape[: 2 + rank], -1)
    best = flat.argmax(axis=-1)[..., None]
    at = np.take_along_axis(places.reshape(flat.shape), best, axis=-1)[..., 0]
    return np.take_along_axis(flat, best, axis=-1)[..., 0], at.astype(np.int64)


def average_pool(
    X: Array,
    kernel: Sequence[int],
    *,
    auto_pad: str = "NOTSET",
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    ceil_mode: bool = False,
    count_include_pad: bool = False,
) -> Array:
    """Mean over windows; what lies behind the declared padding (`ceil_mode`) is never counted.

    Args:
        X: ``[N, C, D1 .. Dn]``.
        kernel: Window size.
        auto_pad: As in ONNX.
        strides: As in ONNX.
        pads: As in ONNX.
        dilations: As in ONNX.
        ceil_mode: As in ONNX.
        count_include_pad: Whether the declared padding counts as zeros.

    Returns:
        The means.

    """
    out, strides, pads, dilations = pool_geometry(
        X.shape[2:],
        kernel,
        auto_pad=auto_pad,
        strides=strides,
        pads=pads,
        dilations=dilations,
        ceil_mode=ceil_mode,
    )
    rank = len(out)
    room = _room(out, kernel, strides, dilations)
    axes = tuple(range(2 + rank, 2 + 2 * rank))
    sums = _windows(_padded(X, pads, 0, room), kernel, strides, dilations).sum(axis=axes)
    ones = np.ones((1, 1, *X.shape[2:]), dtype=X.dtype)
    if count_include_pad:
        ones = np.pad(ones, [(0, 0), (0, 0), *((pads[i], pads[rank + i]) for i in range(rank))], constant_values=1)
        pads = (0,) * (2 * rank)
    counts = _windows(_padded(ones, pads, 0, room), kernel, strides, dilations).sum(axis=axes)
    means: Array = sums / counts
    return means


def batch_normalization(X: Array, scale: Array, B: Array, mean: Array, var: Array, epsilon: float) -> Array:
    """Normalize with the given statistics, channels on axis 1: ``scale·(X - mean)/√(var + ε) + B``.

    Args:
        X: ``[N, C, ...]``, or any rank ≥ 1 where axis 1 is missing and there is one channel.
        scale: ``[C]``, or ``[C, D1 .. Dn]`` for opset < 9 with ``spatial = 0``.
        B: As `scale`.
        mean: As `scale`.
        var: As `scale`.
        epsilon: Inside the root.

    Returns:
        The shape of `X`.

    """

    def spread(parameter: Array) -> Array:
        return parameter if parameter.ndim > 1 else parameter.reshape(parameter.size, *(1,) * max(X.ndim - 2, 0))

    factor = spread(scale) / np.sqrt(spread(var) + epsilon)
    return (X - spread(mean)) * factor + spread(B)


def batch_moments(X: Array, *, spatial: bool = True) -> tuple[Array, Array]:
    """Mean and population variance over the batch, and over space if `spatial`."""
    axes = (0, *range(2, X.ndim)) if spatial else (0,)
    return X.mean(axis=axes), X.var(axis=axes)
