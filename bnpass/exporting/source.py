"""Which framework a file needs, and whether it may be loaded, found out before TensorFlow is imported."""

import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bnpass.errors import FileAccessError, MissingDependencyError, UnsafeModelError, UsageError
from bnpass.exporting.errors import ExportError, first_line
from bnpass.exporting.options import Content

Kind = Literal["keras3", "tf_keras", "saved_model", "graph_def"]

CONTENT: Mapping[Kind, Content] = {
    "keras3": "layers",
    "tf_keras": "layers",
    "saved_model": "signatures",
    "graph_def": "graph",
}
"""What a file of each kind holds."""

_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = b"PK\x03\x04"
_CONFIG_MAX = 256 << 20
"""No description of layers is larger; a zip file can claim anything."""


@dataclass(frozen=True)
class Source:
    """A file or folder that holds a model.

    Attributes:
        path: Where it is.
        kind: What is needed to read it: Keras 3, tf_keras, or TensorFlow alone.
        norms: Configs of its batch-normalization layers, where the file describes layers.
    """

    path: Path
    kind: Kind
    norms: tuple[Mapping[str, Any], ...] = ()


def identify(path: Path, *, trust: bool) -> Source:
    """Say what is in a file, without loading it.

    Args:
        path: A ``.keras``, ``.h5`` or ``.pb`` file, or the folder of a SavedModel.
        trust: Whether a file may hold what can run code when it is loaded: HDF5, Lambda layers.

    Raises:
        FileAccessError: It cannot be read.
        UsageError: It is an ONNX model already.
        ExportError: It is nothing that Keras or TensorFlow has saved, or cannot be loaded again.
        UnsafeModelError: It would have to be trusted.
    """
    if not path.exists():
        raise FileAccessError(f"{path}: no such file or folder")
    if path.is_dir():
        return _saved_model(path, trust=trust)
    if path.suffix == ".onnx":
        raise UsageError(f"{path}: is an ONNX model already")
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise FileAccessError(f"{path}: {error.strerror}") from error
    if head.startswith(_ZIP):
        return _checked(path, *_keras_zip(path), trust=trust)
    if head == _HDF5:
        if not trust:
            raise UnsafeModelError(f"{path}: HDF5 files can hold code that runs when they are loaded; "
                                   "give --trust-model (trust_model=True) if you know where it comes from")  # fmt: skip
        return _checked(path, *_hdf5(path), trust=True)
    if path.suffix in (".pb", ".pbtxt"):
        return Source(path, "graph_def")
    raise ExportError(f"{path}: is no model of Keras or TensorFlow: neither .keras, .h5, .pb nor a SavedModel folder")


def _checked(path: Path, version: str, config: Any, *, trust: bool) -> Source:  # noqa: ANN401  parsed JSON
    layers = list(_layers(config))
    lambdas = [layer for layer in layers if layer.get("class_name") == "Lambda"]
    if lambdas and not trust:
        name = (lambdas[0].get("config") or {}).get("name", "lambda")
        raise UnsafeModelError(f"{path}: layer '{name}' is a Lambda, which holds code; "
                               "give --trust-model (trust_model=True) if you know where it comes from")  # fmt: skip
    norms = [layer["config"] for layer in layers if _is_norm(layer)]
    for norm in norms:
        if norm.get("virtual_batch_size"):
            raise ExportError(
                f"{path}: layer '{norm.get('name')}' has virtual_batch_size, which tf_keras saves with an axis that is "
                "off by one, so the file cannot be loaded; export the live model instead"
            )
    return Source(path, "tf_keras" if version.startswith("2.") else "keras3", tuple(norms))


def _is_norm(layer: Mapping[str, Any]) -> bool:
    return "BatchNormalization" in str(layer.get("class_name")) and isinstance(layer.get("config"), dict)


def _keras_zip(path: Path) -> tuple[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            metadata, config = (_member(archive, name) for name in ("metadata.json", "config.json"))
            return str(json.loads(metadata)["keras_version"]), json.loads(config)
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, EOFError, OSError, NotImplementedError) as error:
        raise ExportError(f"{path}: is no complete .keras file: {first_line(error)}") from error


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > _CONFIG_MAX:
        raise ValueError(f"{name} claims {archive.getinfo(name).file_size} bytes")
    return archive.read(name)


def _hdf5(path: Path) -> tuple[str, Any]:
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError('h5py is needed to read HDF5: pip install "bnpass[keras]"') from error
    try:
        with h5py.File(path, "r") as file:
            config, version = file.attrs.get("model_config"), file.attrs.get("keras_version", "2.")
            if config is None:
                raise ExportError(f"{path}: holds weights without the model that they belong to")
            return str(version), json.loads(config)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ExportError(f"{path}: is no complete HDF5 file of Keras: {first_line(error)}") from error


def _saved_model(path: Path, *, trust: bool) -> Source:
    if not (path / "saved_model.pb").is_file():
        raise ExportError(f"{path}: is no SavedModel: it has no saved_model.pb")
    metadata = path / "keras_metadata.pb"
    if not metadata.is_file():
        return Source(path, "saved_model")
    text = metadata.read_bytes()
    if re.search(rb'"class_name":\s*"Lambda"', text) and not trust:
        raise UnsafeModelError(f"{path}: has a Lambda layer, which holds code; "
                               "give --trust-model (trust_model=True) if you know where it comes from")  # fmt: skip
    if re.search(rb'"virtual_batch_size":\s*[1-9]', text):
        raise ExportError(
            f"{path}: a layer has virtual_batch_size, which tf_keras saves with an axis that is off by one, so the "
            "model cannot be loaded; export the live model instead"
        )
    return Source(path, "tf_keras", ({},) if b"BatchNormalization" in text else ())


def _layers(config: Any) -> Iterator[Mapping[str, Any]]:  # noqa: ANN401  parsed JSON
    """Yield the descriptions of all objects inside of a config."""
    stack = [config]
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            if "class_name" in part:
                yield part
            stack += part.values()
        elif isinstance(part, list):
            stack += part
