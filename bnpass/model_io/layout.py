"""What a saved model consists of: which tensors go to the data file, and the bytes of both files.

The model itself is serialized without its large tensors (`skeleton`); they are streamed one at a time,
those that lie in a file by a copy inside the kernel, computed ones by computing them at that moment.
The caller's tensors are put back as they were before anything is written.
"""

import errno
import hashlib
import os
import sys
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir

from bnpass.errors import ModelError
from bnpass.model_io.containment import DataFiles
from bnpass.model_io.load import HELD_EXTERNAL_DATA, TRUSTED_LINKS, external_of_ir
from bnpass.model_io.slots import Slot, slots
from bnpass.model_io.tensors import CHUNK, ContainedTensor, StoredTensor
from bnpass.model_io.wire import MINIMUM, Tokens, expand

Policy = Literal["auto", "always", "never"]

INLINE_MAX = int(1.9 * 2**30)  # leaves room below protobuf's 2 GiB for the graph itself
_KERNEL_COPY = 256 << 10  # below, buffering is faster than a system call per tensor
_ALIGN_SMALL, _ALIGN_PAGE, _LARGE = 64, 4096, 1 << 20  # whoever maps large tensors wants pages
_BYTE = 8
_NO_KERNEL_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}


class Writer:
    """Buffered writing to a descriptor, with a hash of everything on request."""

    def __init__(self, fd: int, *, hashed: bool = False) -> None:
        self._fd = fd
        self._buffer = bytearray()
        self.hash = hashlib.sha256() if hashed else None
        self.count = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append ``data``."""
        if self.hash is not None:
            self.hash.update(data)
        self.count += len(data)
        if len(data) >= _KERNEL_COPY:
            self.flush()
            _write_all(self._fd, data)
            return
        self._buffer += data
        if len(self._buffer) >= _KERNEL_COPY:
            self.flush()

    def tensor(self, tensor: ir.TensorProtocol) -> None:
        """Append the bytes of a tensor, in the ONNX layout.

        Raises:
            ModelError: A computed tensor has not the size that its shape and type say.
        """
        before, size = self.count, tensor.nbytes
        if isinstance(tensor, StoredTensor):
            copied = self._kernel_copy(tensor) if self.hash is None and size >= _KERNEL_COPY else 0
            for piece in tensor.chunks(copied):
                self.write(piece)
        else:
            self.write(_bytes_of(tensor))
        if self.count - before != size:
            raise ModelError(f"tensor {tensor.name!r} has {self.count - before} bytes where shape and type take {size}")

    def _kernel_copy(self, tensor: StoredTensor) -> int:
        """Copy as much as the kernel is willing to; return how much that was."""
        if not hasattr(os, "copy_file_range"):
            return 0
        self.flush()
        done = 0
        with tensor.file.descriptor() as source:
            try:
                while done < tensor.nbytes:
                    count = os.copy_file_range(source, self._fd, tensor.nbytes - done, tensor.start + done)
                    if count == 0:
                        break
                    done += count
            except OSError as error:
                if error.errno not in _NO_KERNEL_COPY:
                    raise
        self.count += done
        return done

    def flush(self) -> None:
        """Write what is buffered."""
        if self._buffer:
            data, self._buffer = self._buffer, bytearray()
            _write_all(self._fd, memoryview(data))


def _bytes_of(tensor: ir.TensorProtocol) -> bytes | memoryview:
    """Return the bytes of a computed tensor, without a copy where they lie in memory as they do in the file."""
    if tensor.dtype == ir.DataType.STRING or tensor.dtype.bitwidth < _BYTE or sys.byteorder != "little":
        return tensor.tobytes()
    array = np.asarray(tensor.numpy())
    if not array.dtype.isnative or not array.flags.c_contiguous or not array.size:
        return tensor.tobytes()
    return array.reshape(-1).view(np.uint8).data


def _write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.write(fd, view[done : done + CHUNK])


@dataclass(frozen=True)
class Placed:
    """A tensor's place in the data file."""

    offset: int
    length: int


@dataclass
class Layout:
    """Where each tensor of a model goes.

    Attributes:
        model: The model to save.
        external: The tensors of the data file, by key, in order; empty if everything is inline.
    """

    model: ir.Model
    external: dict[Hashable, tuple[ir.TensorProtocol, Placed]] = field(default_factory=dict)

    def write_data(self, writer: Writer) -> None:
        """Write the data file."""
        for tensor, placed in self.external.values():
            writer.write(bytes(placed.offset - writer.count))
            writer.tensor(tensor)
        writer.flush()

    def skeleton(self, data_name: str, tokens: Tokens) -> tuple[onnx.ModelProto, list[ir.TensorProtocol]]:
        """Serialize the model with tokens in place of its large inline tensors.

        Returns:
            The message, and the tensors that the tokens stand for.

        Raises:
            ModelError: onnx_ir cannot serialize the model.
        """
        payloads: list[ir.TensorProtocol] = []
        with _restored(self.model) as all_slots:
            for slot in all_slots:
                placed = self.external.get(_key(slot.tensor))
                if placed is not None:
                    slot.put(_reference(slot, data_name, placed[1]))
                elif _needs_token(slot):
                    slot.put(_StandIn(slot.tensor, slot.name, tokens.make(len(payloads))))
                    payloads.append(_readable(self.model, slot.tensor))
                elif isinstance(slot.tensor, ir.serde.TensorProtoTensor):
                    slot.put(_own_copy(slot.tensor))
            try:
                return ir.serde.serialize_model(self.model), payloads
            except ir.serde.SerdeError as error:
                cause: BaseException = error
                while cause.__cause__ is not None:
                    cause = cause.__cause__
                raise ModelError(f"the model cannot be serialized: {str(cause)[:200]}") from error

    def pieces(self, data_name: str) -> tuple[list[bytes | ir.TensorProtocol], int]:
        """Return the `.onnx` file as bytes and tensors in order, and its length."""
        tokens = Tokens()
        proto, payloads = self.skeleton(data_name, tokens)
        skeleton = proto.SerializeToString(deterministic=True)
        parts, total = expand(skeleton, [tensor.nbytes for tensor in payloads], tokens)
        return [payloads[part] if isinstance(part, int) else part for part in parts], total


def plan(model: ir.Model, policy: Policy, threshold: int) -> Layout:
    """Decide where the tensors of ``model`` go.

    Args:
        model: The model to save.
        policy: "always" and "never" mean external data; "auto" keeps what the input had, and goes
            external where a file would come near protobuf's limit.
        threshold: With external data, tensors of more bytes than this go there.

    Returns:
        The layout.
    """
    found = [slot for slot in slots(model) if _movable(slot.tensor)]
    held = HELD_EXTERNAL_DATA in model.graph.meta or any(isinstance(s.tensor, ir.ExternalTensor) for s in found)
    total = sum(slot.tensor.nbytes for slot in found)
    layout = Layout(model)
    if policy == "never" or (policy == "auto" and not held and total <= INLINE_MAX):
        return layout
    end = 0
    for slot in found:
        tensor, key = slot.tensor, _key(slot.tensor)
        if key in layout.external or not (isinstance(tensor, ir.ExternalTensor) or tensor.nbytes > threshold):
            continue
        align = _ALIGN_PAGE if tensor.nbytes >= _LARGE else _ALIGN_SMALL
        end += -end % align
        layout.external[key] = (_readable(model, tensor), Placed(end, tensor.nbytes))
        end += tensor.nbytes
    return layout


def _key(tensor: ir.TensorProtocol) -> Hashable:
    """Equal for tensors that have their bytes in common: tied weights are written once."""
    if isinstance(tensor, StoredTensor):
        status = tensor.file.stat
        return status.st_dev, status.st_ino, tensor.start, tensor.nbytes
    return id(tensor)


def _movable(tensor: ir.TensorProtocol) -> bool:
    """Tell whether a tensor can be stored as plain bytes."""
    if tensor.dtype == ir.DataType.STRING:
        return False
    # Sub-byte values in int32_data come packed and unpacked; only a verbatim copy is safe.
    return not (_has_typed_data(tensor) and tensor.dtype.bitwidth < _BYTE)


def _has_typed_data(tensor: ir.TensorProtocol) -> bool:
    return isinstance(tensor, ir.serde.TensorProtoTensor) and not tensor.raw.HasField("raw_data")


def _needs_token(slot: Slot) -> bool:
    tensor = slot.tensor
    if isinstance(tensor, StoredTensor | ir.ExternalTensor):
        return True
    return tensor.dtype != ir.DataType.STRING and tensor.nbytes >= MINIMUM and not _has_typed_data(tensor)


def _own_copy(tensor: ir.serde.TensorProtoTensor) -> ir.TensorProtocol:
    """Return a small tensor as it is, apart from the caller's message.

    onnx_ir would write a new name into that message, and every metadata entry twice.
    """
    proto = onnx.TensorProto()
    proto.CopyFrom(tensor.raw)
    copy = ir.serde.TensorProtoTensor(proto)
    proto.ClearField("metadata_props")
    return copy


def _readable(model: ir.Model, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return a tensor that is safe to read: external data of a caller's model are contained first."""
    if not isinstance(tensor, ir.ExternalTensor) or isinstance(tensor, ContainedTensor):
        return tensor
    folder = Path(os.path.realpath(tensor.base_dir or "."))
    files = DataFiles("the model", [folder], TRUSTED_LINKS in model.graph.meta)
    return ContainedTensor(tensor, *files.open(external_of_ir(tensor)))


class _StandIn(ir.LazyTensor):
    """Looks like a tensor to onnx_ir and serializes to its token."""

    __slots__ = ("_token",)

    def __init__(self, tensor: ir.TensorProtocol, name: str, token: bytes) -> None:
        super().__init__(
            lambda: tensor,
            tensor.dtype,
            tensor.shape,  # type: ignore[arg-type]  # a ShapeProtocol serves
            name=name,
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props) or None,
        )
        self._token = token

    def tobytes(self) -> bytes:
        return self._token


def _reference(slot: Slot, data_name: str, placed: Placed) -> ir.ExternalTensor:
    tensor = slot.tensor
    return ir.ExternalTensor(
        data_name,
        placed.offset,
        placed.length,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=slot.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props) or None,
    )


@contextmanager
def _restored(model: ir.Model) -> Iterator[Sequence[Slot]]:
    """Give the slots of a model; afterwards every one holds its own tensor again."""
    found = list(slots(model))
    try:
        yield found
    finally:
        for slot in found:
            slot.put(slot.tensor)
