"""Writing models: all of it or nothing.

`stage` writes a complete model beside the target, data file first, under names nobody reads; `commit`
makes it the target in one step. Whatever happens in between, crashes included, the target is the old
pair of files or the new one. The data file is named by its content, so a new one never overwrites one
that an old model still needs.
"""

import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from bnpass.errors import BnpassError, SaveError
from bnpass.model_io.layout import Layout, Policy, Writer, plan
from bnpass.model_io.load import PROTOBUF_MAX
from bnpass.model_io.structure import tensors_of
from bnpass.model_io.tensors import CHUNK, DataFile
from bnpass.model_io.wire import MalformedError, Tokens, skim

TEMPORARY_PREFIX = ".bnpass-"
_DIGEST = 12
_MODE_BITS = 0o777
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_NO_FOLDER_SYNC = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}


@dataclass(frozen=True)
class SavedFiles:
    """What was written.

    Attributes:
        model: The `.onnx` file; where the target was a symbolic link, the file it points to.
        data: Its data files.
        bytes: Length of all of them together.
    """

    model: Path
    data: tuple[Path, ...]
    bytes: int


@dataclass
class Staged:
    """A complete model that is not yet the target.

    Attributes:
        path: The temporary `.onnx` file; any runtime can load it.
        data: Data files, under their final names.
        bytes: Length of all files together.
    """

    path: Path
    data: tuple[Path, ...]
    bytes: int
    _target: Path
    _force: bool
    _saved: SavedFiles | None = field(default=None, repr=False)

    def commit(self) -> SavedFiles:
        """Make the staged files the target, and remove data files that nothing needs any more.

        Returns:
            The files that were written; the same again if called twice.

        Raises:
            SaveError: The target has come into being meanwhile, or the disk fails.
        """
        if self._saved is not None:
            return self._saved
        target = self._target
        with _as_save_error(target):
            _sync_folder(target.parent)  # the data file's name must be on disk before it is needed
            stale = _stale_data(target, self.data) if self._force else ()
            if self._force:
                os.replace(self.path, target)  # noqa: PTH105  # one system call, by its name
            else:
                _move_to_free_name(self.path, target)
        self._saved = SavedFiles(target, self.data, self.bytes)
        try:
            _sync_folder(target.parent)
        except OSError as error:
            raise SaveError(f"{target}: is written, but might not survive a power failure: {error.strerror}") from error
        for path in stale:
            with suppress(OSError):
                path.unlink()
        return self._saved


@contextmanager
def stage(
    model: ir.Model,
    path: str | os.PathLike[str],
    *,
    force: bool = False,
    external_data: Policy = "auto",
    threshold: int = 1024,
) -> Iterator[Staged]:
    """Write a model beside its target, to be checked before it is committed.

    Leaving the block without a commit removes everything that was written.

    Args:
        model: The model; it is not changed.
        path: The target. Through a symbolic link, the file it points to is replaced.
        force: Replace an existing target.
        external_data: "auto" keeps weights where they were, inline or external, and goes external above
            1.9 GiB; "always" and "never" decide otherwise.
        threshold: With external data, tensors of more bytes than this go to the data file.

    Yields:
        The staged files.

    Raises:
        SaveError: The target exists, or cannot be written; nothing is left behind.
        ModelError: The model cannot be serialized, or its data were changed meanwhile.
        FileAccessError: External data cannot be read.
    """
    target = _target(path, force=force)
    mode = stat.S_IMODE(target.stat().st_mode) & _MODE_BITS if target.exists() else None
    written: list[Path] = []
    staged: Staged | None = None
    try:
        with _as_save_error(target):
            staged = _write(plan(model, external_data, threshold), target, mode, written, force=force)
        yield staged
    finally:
        committed = staged is not None and staged._saved is not None  # noqa: SLF001  # its own module
        for file in written:
            if not (committed and staged is not None and file in staged.data):
                with suppress(OSError):
                    file.unlink()


def save(
    model: ir.Model,
    path: str | os.PathLike[str],
    *,
    force: bool = False,
    external_data: Policy = "auto",
    threshold: int = 1024,
) -> SavedFiles:
    """Write a model in one atomic step; see `stage` for arguments and errors.

    Returns:
        The files that were written.
    """
    with stage(model, path, force=force, external_data=external_data, threshold=threshold) as staged:
        return staged.commit()


def _target(path: str | os.PathLike[str], *, force: bool) -> Path:
    if "\0" in os.fspath(path):
        raise SaveError(f"{os.fspath(path)!r}: is not the name of a file")
    with _as_save_error(Path(path)):
        target = Path(os.path.realpath(path))
        if not target.parent.is_dir():
            raise SaveError(f"{path}: the folder {target.parent} does not exist; make it first")
        if target.is_dir():
            raise SaveError(f"{path}: is a folder; give the name of a file in it")
        if os.path.lexists(target) and not target.is_file():
            raise SaveError(f"{path}: is not a regular file; choose another name")
        if target.exists() and not force:
            raise SaveError(f"{path}: exists already; choose another name or allow it with force (--force)")
    return target


def _write(layout: Layout, target: Path, mode: int | None, written: list[Path], *, force: bool) -> Staged:
    data: tuple[Path, ...] = ()
    size = 0
    if layout.external:
        final, size = _write_data(layout, target, mode, written)
        data = (final,)
    pieces, length = layout.pieces(data[0].name if data else "")
    if length > PROTOBUF_MAX:
        raise SaveError(
            f"{target}: the file would have {length} bytes, protobuf reads up to 2 GiB; use external_data='always'"
        )
    temporary = _temporary(target, ".onnx")
    with _created(temporary, mode, written) as fd:
        writer = Writer(fd)
        while pieces:  # taken off one by one, so that nothing is held longer than needed
            piece = pieces.pop(0)
            if isinstance(piece, bytes):
                writer.write(piece)
            else:
                writer.tensor(piece)
        writer.flush()
    return Staged(temporary, data, size + length, target, force)


def _write_data(layout: Layout, target: Path, mode: int | None, written: list[Path]) -> tuple[Path, int]:
    temporary = _temporary(target, ".data")
    with _created(temporary, mode, written) as fd:
        writer = Writer(fd, hashed=True)
        layout.write_data(writer)
    digest = writer.hash.hexdigest() if writer.hash is not None else ""
    final = target.with_name(f"{target.stem}.{digest[:_DIGEST]}.data")
    if not os.path.lexists(final):
        # Not by a hard link: killed half-way, it would leave data with two names, which `load` refuses.
        os.replace(temporary, final)  # noqa: PTH105  # one system call, by its name
        written.append(final)
        return final, writer.count
    # Saved before, by us or by another process: the same bytes serve, and are not ours to remove.
    if final.is_symlink() or not final.is_file() or _sha256(final) != digest:
        raise SaveError(f"{final}: exists with other content; remove it or choose another name")
    if final.stat().st_nlink > 1:
        os.replace(temporary, final)  # noqa: PTH105  # the same bytes under a name of their own
    else:
        temporary.unlink()
    return final, writer.count


def _temporary(target: Path, suffix: str) -> Path:
    return target.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}{suffix}")


@contextmanager
def _created(path: Path, mode: int | None, written: list[Path]) -> Iterator[int]:
    """Create a file, give its descriptor, and have it on disk at the end."""
    fd = os.open(path, _CREATE, 0o666)  # the kernel applies the umask
    written.append(path)
    try:
        if mode is not None:
            os.fchmod(fd, mode)
        yield fd
        os.fsync(fd)
    finally:
        os.close(fd)


def _move_to_free_name(source: Path, target: Path) -> None:
    """Rename without ever replacing: what `os.rename` cannot promise.

    Raises:
        FileExistsError: The target exists.
    """
    try:
        os.link(source, target)  # fails where the target exists, atomically
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.close(os.open(target, _CREATE, 0o666))  # no hard links here: reserve the name first
        try:
            os.replace(source, target)  # noqa: PTH105
        except OSError:
            target.unlink()
            raise
    else:
        source.unlink()


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(fd)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def _stale_data(target: Path, keep: tuple[Path, ...]) -> tuple[Path, ...]:
    """Return the data files that bnpass wrote for the model that is about to be replaced.

    They have our name with the target's stem, the old model refers to them, and no other model in the
    folder mentions them. When in doubt, a file stays.
    """
    old = _skeleton(target)
    if old is None:
        return ()
    try:
        tensors = list(tensors_of(onnx.ModelProto.FromString(old), str(target)))
    except (DecodeError, BnpassError):
        return ()
    named = {entry.value for t in tensors for entry in t.external_data if entry.key == "location"}
    ours = re.compile(re.escape(target.stem) + rf"\.[0-9a-f]{{{_DIGEST}}}\.data")
    candidates = {name for name in named if ours.fullmatch(name)} - {path.name for path in keep}
    for other in sorted(target.parent.iterdir()) if candidates else ():
        if ".onnx" in other.name and other != target and not other.name.startswith(TEMPORARY_PREFIX):
            text = _skeleton(other)
            candidates = {name for name in candidates if text is not None and name.encode() not in text}
    paths = (target.with_name(name) for name in sorted(candidates))
    return tuple(path for path in paths if path.is_file() and not path.is_symlink())


def _skeleton(path: Path) -> bytes | None:
    """Read a model file without its weights, or None if it cannot be read as one."""
    try:
        file = DataFile(Path(os.path.realpath(path)))
        return skim(file.read, file.stat.st_size, Tokens())[0]
    except (OSError, BnpassError, MalformedError):
        return None


@contextmanager
def _as_save_error(target: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise SaveError(f"{target}: exists already; choose another name or allow it with force (--force)") from error
    except OSError as error:
        raise SaveError(f"{target}: cannot be written: {error.strerror}; nothing was changed") from error
