"""Device memory, streams and the kernels of libbnpass_ort_cuda.so, by ctypes: no other GPU package is needed."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

ELEMENTS: dict[str, int] = {"float32": 1, "float16": 10, "float64": 11, "bfloat16": 16}
"""The numbers of the ONNX types."""

DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "float64": np.dtype(np.float64),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

Pointer = ctypes.c_void_p


class DeviceInfo(ctypes.Structure):
    """What a GPU says about itself; memory and l2 in bytes."""

    _fields_ = [
        ("name", ctypes.c_char * 256),
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
        ("processors", ctypes.c_int),
        ("memory", ctypes.c_size_t),
        ("l2", ctypes.c_size_t),
    ]


class Tensor(ctypes.Structure):
    """A tensor's shape, channel axis, ghost batches and type."""

    _fields_ = [
        ("dims", ctypes.POINTER(ctypes.c_int64)),
        ("rank", ctypes.c_size_t),
        ("axis", ctypes.c_int64),
        ("virtual_batch_size", ctypes.c_int64),
        ("element", ctypes.c_int),
    ]


class Vector(ctypes.Structure):
    """A vector on the device, float32 or float64; without data there is none."""

    _fields_ = [("data", Pointer), ("element", ctypes.c_int)]


class ForwardArguments(ctypes.Structure):
    """See cuda/c_interface.h."""

    _fields_ = [
        ("X", Pointer),
        *((name, Vector) for name in ("scale", "B", "input_mean", "input_var", "running_mean", "running_var")),
        ("epsilon", ctypes.c_double),
        ("momentum", ctypes.c_double),
        ("correction", ctypes.c_int),
        *((name, Pointer) for name in ("mean", "inv_std", "var", "factor", "count", "Y")),
    ]


class BackwardArguments(ctypes.Structure):
    """See cuda/c_interface.h."""

    _fields_ = [
        ("dY", Pointer),
        ("X", Pointer),
        *((name, Vector) for name in ("scale", "dscale", "dB")),
        *((name, Pointer) for name in ("mean", "inv_std", "count")),
        *((name, Pointer) for name in ("sum_dY", "sum_dYX", "factor", "shift", "slope", "dX")),
    ]


class DeviceError(RuntimeError):
    """What the library said."""


@dataclass(frozen=True)
class Buffer:
    """Memory on the device.

    Attributes:
        address: Where it begins.
        shape: Of the array that lies there.
        dtype: Of the array that lies there.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Its size."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def vector(self) -> Vector:
        """Return it as the library takes vectors."""
        return Vector(self.address, ELEMENTS[self.dtype.name])


NO_VECTOR = Vector(None, ELEMENTS["float64"])


class Device:
    """The first GPU, through the C interface of the CUDA library.

    Args:
        path: libbnpass_ort_cuda.so, or its stand-in for hosts without a GPU.

    Raises:
        DeviceError: There is no GPU.
        OSError: The library cannot be loaded.
    """

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.bnpass_last_error.restype = ctypes.c_char_p
        count = ctypes.c_int()
        self.call("device_count", ctypes.byref(count))
        if count.value == 0:
            raise DeviceError("there is no NVIDIA GPU")
        self.info = DeviceInfo()
        self.call("device_of", 0, ctypes.byref(self.info))
        stream = Pointer()
        self.call("stream_create", ctypes.byref(stream))
        self.stream = stream

    @property
    def name(self) -> str:
        """Of the GPU."""
        return str(self.info.name.decode())

    @property
    def has_fast_double(self) -> bool:
        """Whether sums are taken in double (cuda/value.h)."""
        return (self.info.major, self.info.minor) in {(8, 0), (9, 0), (10, 0)}

    def call(self, function: str, *arguments: object) -> None:
        """Call bnpass_cuda_<function>.

        Raises:
            DeviceError: It failed.
        """
        if getattr(self._library, f"bnpass_cuda_{function}")(*arguments) != 0:
            raise DeviceError(self._library.bnpass_last_error().decode())

    def launch(self, function: str, *arguments: object) -> None:
        """Call a function whose last parameter is the stream."""
        self.call(function, *arguments, self.stream)

    def synchronize(self) -> None:
        """Wait for the stream."""
        self.call("stream_synchronize", self.stream)

    @contextmanager
    def memory(self, nbytes: int) -> Iterator[int]:
        """Device memory for the time of a with block."""
        address = Pointer()
        self.call("allocate", ctypes.c_size_t(max(nbytes, 1)), ctypes.byref(address))
        try:
            yield address.value or 0
        finally:
            self.call("free", address)

    @contextmanager
    def upload(self, array: np.ndarray, misalign: bool = False) -> Iterator[Buffer]:
        """A copy of an array on the device; misalign: one element behind an aligned address."""
        array = np.ascontiguousarray(array)
        ahead = array.dtype.itemsize if misalign else 0
        with self.memory(array.nbytes + ahead) as address:
            buffer = Buffer(address + ahead, array.shape, array.dtype)
            self.launch("copy", Pointer(buffer.address), Pointer(array.ctypes.data), ctypes.c_size_t(array.nbytes))
            self.synchronize()
            yield buffer

    @contextmanager
    def empty(self, shape: tuple[int, ...], dtype: np.dtype, misalign: bool = False) -> Iterator[Buffer]:
        """Memory for an array, filled with bytes that are NaN in every type."""
        with self.upload(np.zeros(shape, dtype), misalign) as buffer:
            self.launch("fill", Pointer(buffer.address), 0xFF, ctypes.c_size_t(buffer.nbytes))
            yield buffer

    def download(self, buffer: Buffer) -> np.ndarray:
        """Return a copy of an array on the device."""
        array = np.empty(buffer.shape, buffer.dtype)
        self.launch("copy", Pointer(array.ctypes.data), Pointer(buffer.address), ctypes.c_size_t(array.nbytes))
        self.synchronize()
        return array

    @contextmanager
    def workspace(self, tensor: Tensor) -> Iterator[Pointer]:
        """Memory that the kernels work in, filled with 0 once."""
        nbytes = ctypes.c_size_t()
        self.call("workspace", ctypes.byref(tensor), ctypes.byref(nbytes))
        with self.memory(nbytes.value) as address:
            self.launch("fill", Pointer(address), 0, nbytes)
            yield Pointer(address)

    def replay(self, body: Callable[[], None]) -> bool:
        """Capture what body launches as a graph and launch that; False where there are no graphs (on the host)."""
        try:
            self.call("graph_begin", self.stream)
        except DeviceError:
            return False
        graph = Pointer()
        body()
        self.call("graph_end", self.stream, ctypes.byref(graph))
        self.call("graph_launch", graph, self.stream)
        self.synchronize()
        self.call("graph_free", graph)
        return True


def tensor(shape: tuple[int, ...], axis: int, virtual_batch_size: int, element: str) -> Tensor:
    """Describe a tensor to the library."""
    dims = (ctypes.c_int64 * len(shape))(*shape)
    return Tensor(dims, len(shape), axis, virtual_batch_size, ELEMENTS[element])
