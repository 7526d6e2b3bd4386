"""Reading models: from a path, a ModelProto or an onnx_ir model, nothing trusted.

From a path only the skeleton of the model is parsed: weights stay in the file until someone asks for
them, whether they are inline or external data. Everything is checked before an external byte is read.
"""

import os
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from bnpass.errors import BnpassError, FileAccessError, ModelError
from bnpass.model_io.containment import DataFiles, External, external_of
from bnpass.model_io.slots import slots
from bnpass.model_io.structure import UNKNOWN_FIELDS, check_structure, check_tensor, tensors_of
from bnpass.model_io.tensors import ContainedTensor, DataFile, InlineTensor
from bnpass.model_io.wire import MINIMUM, MalformedError, Span, Tokens, skim

ModelLike: TypeAlias = str | os.PathLike[str] | onnx.ModelProto | ir.Model

PROTOBUF_MAX = 2**31 - 1  # no protobuf implementation reads a longer message
HELD_EXTERNAL_DATA = "bnpass.external_data"  # in graph.meta: the input kept its weights in other files
TRUSTED_LINKS = "bnpass.trust_external_data"  # in graph.meta: the caller vouches for links
_ORT_MAGIC = b"ORTM"  # the identifier of the flatbuffer, at offset 4
_EXTERNAL = onnx.TensorProto.EXTERNAL


def load(
    model: ModelLike,
    *,
    base_dir: str | os.PathLike[str] | None = None,
    trust_external_data: bool = False,
) -> ir.Model:
    """Load a model, its weights as late as possible.

    Args:
        model: A path, a ModelProto, or an onnx_ir model (which is checked and returned as it is).
        base_dir: Folder of the external data; needed only for a ModelProto that has some.
        trust_external_data: Accept symbolic and hard links as data files.

    Returns:
        The model.

    Raises:
        FileAccessError: A file is missing or cannot be read.
        UnsafeModelError: External data lie outside the model's folder, are links, or lie about their size.
        ModelError: It is no model, or one that bnpass could not write back as it is.
    """
    folders = [] if base_dir is None else [Path(os.path.realpath(base_dir))]
    if isinstance(model, ir.Model):
        _check_ir(model, folders, trust_links=trust_external_data)
        if trust_external_data:
            model.graph.meta[TRUSTED_LINKS] = True
        return model
    if isinstance(model, onnx.ModelProto):
        files = DataFiles("the model", folders, trust_external_data)
        return _build(model, files, Tokens(), [], None)
    path = Path(model)
    file = _open(path)
    if not folders:
        # A link to a model may have its data beside the link or beside the file it points to.
        folders = list(dict.fromkeys([Path(os.path.realpath(path.parent)), file.path.parent]))
    tokens = Tokens()
    proto, spans = _parse(path, file, tokens)
    return _build(proto, DataFiles(str(path), folders, trust_external_data), tokens, spans, file)


def _open(path: Path) -> DataFile:
    try:
        resolved = Path(os.path.realpath(path))
        mode = resolved.stat().st_mode
        if stat.S_ISDIR(mode):
            raise FileAccessError(f"{path}: is a folder; give the .onnx file in it")
        if not stat.S_ISREG(mode):
            raise FileAccessError(f"{path}: is not a regular file")
        return DataFile(resolved)
    except FileNotFoundError:
        raise FileAccessError(f"{path}: there is no such file") from None
    except OSError as error:
        raise FileAccessError(f"{path}: cannot be opened: {error.strerror}") from error
    except ValueError:
        raise FileAccessError(f"{str(path)!r}: is not the name of a file") from None


def _parse(path: Path, file: DataFile, tokens: Tokens) -> tuple[onnx.ModelProto, list[Span]]:
    size = file.stat.st_size
    if size == 0:
        raise ModelError(f"{path}: is empty; export or download it again")
    if path.suffix == ".ort" or file.read(8, 0)[4:] == _ORT_MAGIC:
        raise ModelError(f"{path}: is an ORT-format model; fold the .onnx model before converting it to .ort")
    if size > PROTOBUF_MAX:
        raise ModelError(f"{path}: has {size} bytes, protobuf reads up to 2 GiB; save it with external data")
    try:
        skeleton, spans = skim(file.read, size, tokens)
        proto = onnx.ModelProto.FromString(skeleton)
    except (MalformedError, DecodeError) as error:
        reason = f": {error}" if isinstance(error, MalformedError) else ""
        raise ModelError(f"{path}: is not an ONNX model, or is cut off{reason}; export or download it again") from error
    known = proto.ByteSize()
    proto.DiscardUnknownFields()  # in place: the message is ours
    if proto.HasField("graph") and proto.ByteSize() != known:
        raise ModelError(f"{path}: {UNKNOWN_FIELDS}")
    return proto, spans


def _build(
    proto: onnx.ModelProto, files: DataFiles, tokens: Tokens, spans: Sequence[Span], file: DataFile | None
) -> ir.Model:
    check_structure(proto, files.model)

    def length_of(payload: bytes) -> int:
        index = tokens.index(payload)
        return len(payload) if index is None else spans[index].length

    has_external = False
    for tensor in tensors_of(proto, files.model):
        external = tensor.data_location == _EXTERNAL
        dtype = check_tensor(tensor, files.model, length_of, external=external)
        if external:
            files.open(external_of(tensor, files.model, dtype))
            has_external = True
    model = _deserialize(proto, files.model)
    for slot in slots(model):
        old = slot.tensor
        if isinstance(old, ir.ExternalTensor):
            slot.put(ContainedTensor(old, *files.open(external_of_ir(old))))
        elif isinstance(old, ir.serde.TensorProtoTensor):
            index = tokens.index(old.raw.raw_data) if old.raw.HasField("raw_data") else None
            if file is None:
                slot.put(_detached(old))
            elif index is not None:
                slot.put(InlineTensor(old.raw, file, spans[index].offset))
    if has_external:
        model.graph.meta[HELD_EXTERNAL_DATA] = True
    return model


def _detached(tensor: ir.serde.TensorProtoTensor) -> ir.TensorProtocol:
    """Return a tensor that can be renamed without a change to the caller's message; large data are shared."""
    if tensor.raw.HasField("raw_data") and tensor.nbytes >= MINIMUM:
        return ir.LazyTensor(
            lambda: tensor,
            tensor.dtype,
            tensor.shape,
            name=tensor.name,
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props) or None,
        )
    proto = onnx.TensorProto()
    proto.CopyFrom(tensor.raw)
    return ir.serde.TensorProtoTensor(proto)


def _deserialize(proto: onnx.ModelProto, where: str) -> ir.Model:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # onnx repeats what external_of has logged
            return ir.serde.deserialize_model(proto)
    except BnpassError:
        raise
    except Exception as error:  # onnx_ir wraps whatever a hostile model provokes
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        text = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        raise ModelError(f"{where}: is not a model that can be represented: {text[:200]}") from error


def external_of_ir(tensor: ir.ExternalTensor) -> External:
    """Say what an onnx_ir tensor says about its place."""
    dims = tuple(tensor.shape.numpy())
    return External(
        tensor.name or "", os.fspath(tensor.location), tensor.offset or 0, tensor.length, tensor.dtype, dims
    )


def _check_ir(model: ir.Model, folders: Sequence[Path], *, trust_links: bool) -> None:
    """Check the external tensors of a caller's model; those that `load` made were checked before."""
    files: dict[Path, DataFiles] = {}
    for slot in slots(model):
        tensor = slot.tensor
        if isinstance(tensor, ir.ExternalTensor) and not isinstance(tensor, ContainedTensor):
            folder = Path(os.path.realpath(tensor.base_dir or next(iter(folders), ".")))
            opened = files.setdefault(folder, DataFiles("the model", [folder], trust_links))
            opened.open(external_of_ir(tensor))
