"""External data must lie in the model's folder and say the truth about its place there.

Locations are resolved and then compared, never compared as text; the descriptor that was opened is
compared with the file that was checked. Nothing outside the folder is opened. Refused are absolute
paths, `..`, links, names shared with other files, anything but a regular file, and ranges that do not
fit the file or the tensor. onnx_ir's own check has two doors (an empty base folder, and tensors in
functions), so it is not relied on.
"""

import logging
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

import onnx
import onnx_ir as ir

from bnpass.errors import FileAccessError, ModelError, UnsafeModelError
from bnpass.model_io.tensors import DataFile, byte_count

logger = logging.getLogger(__name__)

_KEYS = frozenset({"location", "offset", "length", "checksum", "basepath"})
_DIGITS_MAX = 18  # 10**18 bytes are an exabyte; more digits are an attack on int()
_OPEN_FILES_MAX = 64  # one file per tensor is common; descriptors are few
_TRUST = "pass trust_external_data=True (--trust-external-data) if you trust where the model came from"


@dataclass(frozen=True)
class External:
    """What a model says about one external tensor."""

    name: str
    location: str
    offset: int
    length: int | None
    dtype: ir.DataType
    dims: tuple[int, ...]


@dataclass
class DataFiles:
    """The data files of one model, each checked and opened once.

    Attributes:
        model: What to call the model in messages.
        folders: Resolved folders in which data may lie, in order of preference.
        trust_links: Accept symbolic and hard links.
    """

    model: str
    folders: Sequence[Path]
    trust_links: bool = False
    _opened: dict[str, tuple[DataFile, Path]] = field(default_factory=dict)

    def open(self, tensor: External) -> tuple[DataFile, Path]:
        """Check one tensor's location and range; return its file and the folder it was found in.

        Raises:
            UnsafeModelError: It leaves the folder, is a link, or its range lies.
            FileAccessError: The file is missing or not readable.
        """
        subject = f"{self.model}: external data of tensor {tensor.name!r}"
        found = self._opened.get(tensor.location)
        if found is None:
            found = self._opened[tensor.location] = self._open(tensor.location, subject)
        _check_range(tensor, found[0].stat.st_size, subject)
        return found

    def _open(self, location: str, subject: str) -> tuple[DataFile, Path]:
        _check_text(location, subject)
        folder = self._folder_of(location, subject)
        named = folder / location
        resolved = Path(os.path.realpath(named))
        if named.is_symlink() and not self.trust_links:
            raise UnsafeModelError(f"{subject}: {location!r} is a symbolic link; {_TRUST}")
        if not resolved.is_relative_to(folder) and not self.trust_links:
            raise UnsafeModelError(f"{subject}: {location!r} leads out of the folder {folder}; {_TRUST}")
        try:
            status = resolved.stat()
            if not stat.S_ISREG(status.st_mode):  # before opening: a device may act on it
                raise UnsafeModelError(
                    f"{subject}: {location!r} is not a regular file; keep the data in the model's folder"
                )
            if status.st_nlink > 1 and not self.trust_links:
                raise UnsafeModelError(
                    f"{subject}: {location!r} is a hard link, it has {status.st_nlink} names; {_TRUST}"
                )
            file = DataFile(resolved, keep_open=len(self._opened) < _OPEN_FILES_MAX)
        except OSError as error:
            raise FileAccessError(f"{subject}: {location!r} cannot be opened: {error.strerror}") from error
        if not os.path.samestat(status, file.stat):
            raise UnsafeModelError(f"{subject}: {location!r} was exchanged while it was being opened")
        return file, folder

    def _folder_of(self, location: str, subject: str) -> Path:
        for folder in self.folders:
            if os.path.lexists(folder / location):
                return folder
        if not self.folders:
            raise ModelError(
                f"{subject} is in the file {location!r}, but its folder is unknown: pass base_dir=<folder>"
            )
        raise FileAccessError(f"{subject}: {location!r} is missing; copy it into {self.folders[0]}")


def _check_text(location: str, subject: str) -> None:
    """Refuse what no honest location contains, before any file is looked at."""
    windows = PureWindowsPath(location)  # splits at both kinds of slash
    if not location or "\0" in location:
        raise UnsafeModelError(f"{subject}: {location!r} is not the name of a file; export the model again")
    if location.startswith("/") or windows.drive or windows.root:
        raise UnsafeModelError(f"{subject}: {location!r} is an absolute path; it must be relative to the model")
    if ".." in windows.parts:
        raise UnsafeModelError(f"{subject}: {location!r} contains '..'; keep the data in the model's folder")


def _check_range(tensor: External, size: int, subject: str) -> None:
    expected = byte_count(tensor.dtype, tensor.dims)
    if tensor.length is not None and tensor.length != expected:
        raise UnsafeModelError(
            f"{subject}: length is {tensor.length}, but its shape and type take {expected} bytes; "
            "export the model again"
        )
    if tensor.offset + expected > size:
        raise UnsafeModelError(
            f"{subject}: bytes {tensor.offset} to {tensor.offset + expected} are asked for, "
            f"but {tensor.location!r} has {size}; copy or export it again"
        )


def external_of(proto: onnx.TensorProto, model: str, dtype: ir.DataType) -> External:
    """Read the external-data entries of a tensor; unknown keys are ignored with a warning.

    Raises:
        UnsafeModelError: An offset or length is not a non-negative integer.
    """
    entries = {entry.key: entry.value for entry in proto.external_data}
    if unknown := sorted(set(entries) - _KEYS):
        logger.warning("%s: tensor %r: ignoring unknown external data keys %.200s", model, proto.name, unknown)
    numbers: dict[str, int | None] = {}
    for key in ("offset", "length"):
        text = entries.get(key)
        if text is not None and not (text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX):
            raise UnsafeModelError(
                f"{model}: external data of tensor {proto.name!r}: {key} is {text[:40]!r}, not a whole number; "
                "export the model again"
            )
        numbers[key] = None if text is None else int(text)
    location = entries.get("location", "")
    return External(proto.name, location, numbers["offset"] or 0, numbers["length"], dtype, tuple(proto.dims))
