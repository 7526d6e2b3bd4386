"""The bytes of constants: digests, and figures of how two tensors differ, read piece by piece."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnpass.model_io.tensors import CHUNK, StoredTensor

Array = NDArray[Any]

_BYTE = 8
_TEXT = "OSU"
"""Kinds of NumPy's arrays that hold no numbers."""


def type_of(tensor: ir.TensorProtocol) -> str:
    """Return element type and shape, as ``FLOAT[4,3]``."""
    return f"{tensor.dtype.name}[{','.join(map(str, tensor.shape.numpy()))}]"


class Digests:
    """Digests of constants, each computed once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[ir.TensorProtocol, bytes]] = {}

    def __call__(self, tensor: ir.TensorProtocol) -> bytes:
        """Return a digest of type, shape and every bit of a tensor."""
        if id(tensor) not in self._known:
            self._known[id(tensor)] = tensor, _digest(tensor)  # the tensor is held, so that its id stays its own
        return self._known[id(tensor)][1]


def _digest(tensor: ir.TensorProtocol) -> bytes:
    digest = hashlib.blake2b(type_of(tensor).encode(), digest_size=16)
    if tensor.dtype == ir.DataType.STRING:
        for text in tensor.numpy().reshape(-1):
            data = text if isinstance(text, bytes) else str(text).encode()
            digest.update(len(data).to_bytes(8, "little") + data)
    elif isinstance(tensor, StoredTensor):
        for piece in tensor.chunks():
            digest.update(piece)
    else:
        digest.update(tensor.tobytes())
    return digest.digest()


@dataclass(frozen=True)
class Difference:
    """How two tensors of one type and shape differ; see ``ChangedWeight``."""

    elements: int
    differing: int
    max_abs: float | None
    max_rel: float | None


def difference(a: ir.TensorProtocol, b: ir.TensorProtocol) -> Difference:
    """Compare two tensors of the same type and shape; never more than a few pieces of them are in memory."""
    elements = differing = 0
    largest: float = 0.0
    scale: float = 0.0
    for x, y in zip(_pieces(a), _pieces(b), strict=True):
        elements += x.size
        unlike = _unlike(x, y)
        differing += int(unlike.sum())
        if x.dtype.kind in _TEXT:
            largest = np.inf  # there is no such number
            continue
        scale = max(scale, _largest(np.abs(_wide(x))))
        if unlike.any():
            largest = max(largest, _largest(_distance(x[unlike], y[unlike])))
    return Difference(elements, differing, _finite(largest), _finite(largest / scale if scale else np.inf))


def _pieces(tensor: ir.TensorProtocol) -> Iterator[Array]:
    """Yield the elements in order, as arrays of one dimension of the same lengths for every tensor of a type."""
    if isinstance(tensor, StoredTensor) and tensor.dtype.bitwidth >= _BYTE:
        dtype = np.dtype(tensor.dtype.numpy()).newbyteorder("<")
        yield from (np.frombuffer(piece, dtype) for piece in tensor.chunks())
        return
    array = np.ascontiguousarray(tensor.numpy()).reshape(-1)
    length = CHUNK // array.itemsize
    yield from (array[start : start + length] for start in range(0, array.size, length))


def _unlike(x: Array, y: Array) -> NDArray[np.bool_]:
    """Return where two arrays do not hold the same bits."""
    if x.dtype.kind in _TEXT:
        return np.asarray(x != y, bool)
    words = np.dtype(f"u{min(x.itemsize, 8)}")  # a complex number of 16 bytes is two of them
    bits = [np.ascontiguousarray(part).view(words) for part in (x, y)]
    unlike: NDArray[np.bool_] = bits[0] != bits[1]
    return unlike if unlike.size == x.size else np.asarray(unlike.reshape(x.size, -1).any(axis=1))


def _distance(x: Array, y: Array) -> Array:
    """Return how far apart the elements are; infinite where only one is infinite or no number."""
    if x.dtype.kind in "iub":
        high, low = np.maximum(x, y), np.minimum(x, y)
        return high.astype(np.uint64) - low.astype(np.uint64)  # modulo 2^64, so right for negative numbers too
    with np.errstate(all="ignore"):
        wide, other = _wide(x), _wide(y)
        alike = (wide == other) | (np.isnan(wide) & np.isnan(other))
        return np.where(alike, 0.0, np.nan_to_num(np.abs(wide - other), nan=np.inf, posinf=np.inf))


def _wide(x: Array) -> Array:
    with np.errstate(all="ignore"):
        return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)


def _largest(values: Array) -> float:
    return float(np.nanmax(values.astype(np.float64), initial=0.0))


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
