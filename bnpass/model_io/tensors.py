"""Tensors whose bytes stay on disk, read through a descriptor that was checked.

`InlineTensor` is `raw_data` that was left in the `.onnx` file; `ContainedTensor` is external data whose
location passed `containment`. Both read on each call and keep nothing, so that memory is held only
while someone works with the array; neither maps the file, so a file that shrinks is an error and not
a crash. A file that is replaced while the model is in use stays readable, because its descriptor is open.
"""

import contextlib
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from bnpass.errors import FileAccessError, ModelError

CHUNK = 4 << 20  # large enough to be fast, small enough not to matter
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_BYTE = 8


class DataFile:
    """A regular file that stays the one that was opened.

    Attributes:
        path: Its resolved path.
        stat: What the descriptor said when it was opened.
    """

    def __init__(self, path: Path, *, keep_open: bool = True) -> None:
        self.path = path
        self._fd: int | None = None
        fd = os.open(path, _OPEN_FLAGS)
        self.stat = os.fstat(fd)
        if keep_open:
            self._fd = fd
            weakref.finalize(self, os.close, fd)
        else:
            os.close(fd)

    @contextlib.contextmanager
    def descriptor(self) -> Iterator[int]:
        """Give the open descriptor of the same, unchanged file as at first.

        Raises:
            FileAccessError: The file cannot be opened any more.
            ModelError: Its content was changed, or another file has taken its place.
        """
        try:
            fd = os.open(self.path, _OPEN_FLAGS) if self._fd is None else self._fd
        except OSError as error:
            raise self._unreadable(error) from error
        try:
            if _identity(os.fstat(fd)) != _identity(self.stat):
                raise ModelError(f"{self.path}: the file was changed while it was in use; load it again")
            yield fd
        finally:
            if self._fd is None:
                os.close(fd)

    def read(self, count: int, offset: int) -> bytes:
        """Read up to ``count`` bytes at ``offset``; fewer only at the end of the file."""
        with self.descriptor() as fd:
            try:
                data = os.pread(fd, count, offset)
                while len(data) < count and (more := os.pread(fd, count - len(data), offset + len(data))):
                    data += more
            except OSError as error:
                raise self._unreadable(error) from error
        return data

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset`` on.

        Raises:
            FileAccessError: The disk fails.
            ModelError: The file was changed or became shorter.
        """
        done = 0
        with self.descriptor() as fd:
            while done < len(buffer):
                try:
                    count = os.preadv(fd, [buffer[done:]], offset + done)
                except OSError as error:
                    raise self._unreadable(error) from error
                if count == 0:
                    raise ModelError(f"{self.path}: the file became shorter while it was in use; load it again")
                done += count

    def _unreadable(self, error: OSError) -> FileAccessError:
        return FileAccessError(f"{self.path}: cannot be read: {error.strerror}")


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def byte_count(dtype: ir.DataType, dims: tuple[int, ...]) -> int:
    """Return how many bytes a tensor takes, sub-byte types packed; Python's integers cannot overflow."""
    elements = 1
    for dim in dims:
        elements *= dim
    return (elements * dtype.bitwidth + _BYTE - 1) // _BYTE


class StoredTensor:
    """A tensor that is a range of a DataFile: what the two classes below share."""

    __slots__ = ()

    file: DataFile
    start: int
    dtype: Any  # the two base classes of onnx_ir declare these as properties
    shape: Any
    nbytes: Any

    def _read(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        buffer = np.empty(self.nbytes, np.uint8)  # unlike a bytearray, not filled with zeros first
        self.file.read_into(buffer.data, self.start)
        return buffer

    def numpy(self) -> np.ndarray[Any, Any]:
        """Read the tensor into a new array."""
        buffer = self._read()
        if self.dtype.bitwidth < _BYTE:  # packed: let onnx_ir unpack it
            proto = onnx.TensorProto(dims=self.shape.numpy(), data_type=self.dtype.value, raw_data=buffer.tobytes())
            return ir.serde.TensorProtoTensor(proto).numpy()
        array: np.ndarray[Any, Any] = buffer.view(np.dtype(self.dtype.numpy()).newbyteorder("<"))
        array.flags.writeable = False  # onnx_ir's tensors are immutable, mapped or not
        shaped: np.ndarray[Any, Any] = array.reshape(self.shape.numpy())
        return shaped

    def tobytes(self) -> bytes:
        """Read the bytes of the tensor."""
        return self._read().tobytes()

    def chunks(self, first: int = 0) -> Iterator[memoryview]:
        """Read the bytes from ``first`` on, piece by piece, into one buffer, which is reused."""
        buffer = memoryview(bytearray(min(CHUNK, self.nbytes - first)))
        for offset in range(first, self.nbytes, CHUNK):
            piece = buffer[: min(CHUNK, self.nbytes - offset)]
            self.file.read_into(piece, self.start + offset)
            yield piece

    def tofile(self, file: Any) -> None:  # noqa: ANN401  # anything with a write method, as in onnx_ir
        """Write the bytes of the tensor to a binary file."""
        for piece in self.chunks():
            file.write(piece)

    def __array__(self, dtype: np.typing.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        array = self.numpy()
        return array if dtype is None else array.astype(dtype, copy=bool(copy))

    def __dlpack__(self, *, stream: Any = None) -> Any:  # noqa: ANN401  # DLPack's own words
        return self.numpy().copy().__dlpack__(stream=stream)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.numpy().__dlpack_device__()


def _never_called() -> ir.TensorProtocol:
    raise NotImplementedError("InlineTensor overrides every method that evaluates")


class InlineTensor(StoredTensor, ir.LazyTensor):
    """A tensor that is part of its model's file; for everyone else an ordinary lazy tensor."""

    __slots__ = ("file", "start")

    def __init__(self, proto: onnx.TensorProto, file: DataFile, start: int) -> None:
        super().__init__(
            _never_called,
            ir.DataType(proto.data_type),
            ir.Shape(proto.dims, frozen=True),
            name=proto.name if proto.HasField("name") else None,
            doc_string=proto.doc_string if proto.HasField("doc_string") else None,
            metadata_props={entry.key: entry.value for entry in proto.metadata_props} or None,
        )
        self.file = file
        self.start = start

    def __repr__(self) -> str:
        return f"InlineTensor<{self.dtype},{self.shape}>(name={self.name!r}, {self.file.path}, {self.start})"


class ContainedTensor(StoredTensor, ir.ExternalTensor):
    """External data whose file was checked and is open."""

    __slots__ = ("file", "start")

    def __init__(self, tensor: ir.ExternalTensor, file: DataFile, folder: Path) -> None:
        super().__init__(
            tensor.location,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=tensor.shape,
            name=tensor.name or "",
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props) or None,
            base_dir=str(folder),
        )
        self.file = file
        self.start = tensor.offset or 0
