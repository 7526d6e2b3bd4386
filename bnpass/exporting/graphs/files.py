"""Files of graphs, which are data from somebody else: what is not one is refused with one line."""

from pathlib import Path
from typing import Any

from bnpass.errors import FileAccessError
from bnpass.exporting.errors import ExportError

SAVED_MODEL = "saved_model.pb"
_LIMIT = 2**31 - 1
"""Protobuf holds no more bytes."""


def read_graph_def(path: str | Path) -> Any:  # noqa: ANN401  untyped protobufs
    """Read a frozen graph: a ``.pb`` file, or as text a ``.pbtxt`` file.

    Raises:
        FileAccessError: The file cannot be read.
        ExportError: It is no GraphDef.
    """
    from tensorflow.core.framework import graph_pb2

    file = Path(path)
    if file.name == SAVED_MODEL:
        raise ExportError(f"'{file}' belongs to a SavedModel: name its folder")
    graph_def = _parsed(file, graph_pb2.GraphDef())
    if not graph_def.node or any(not node.op or not node.name for node in graph_def.node):
        raise ExportError(f"'{file}' is no GraphDef: it has no nodes")
    return graph_def


def read_saved_model(folder: str | Path) -> Any:  # noqa: ANN401
    """Read the one graph that is meant to be served, of a SavedModel.

    Raises:
        FileAccessError: The folder cannot be read, or has no SavedModel.
        ExportError: What is there is no SavedModel, or has no such graph.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    place = Path(folder)
    if not place.is_dir():
        raise FileAccessError(f"'{place}' is no folder")
    if not (place / SAVED_MODEL).exists():
        raise FileAccessError(f"'{place}' has no {SAVED_MODEL}")
    found = _parsed(place / SAVED_MODEL, saved_model_pb2.SavedModel())
    graphs = [m for m in found.meta_graphs if "serve" in m.meta_info_def.tags]
    if not graphs:
        raise ExportError(f"'{place}' is no SavedModel with a graph of the tag 'serve'")
    return min(graphs, key=lambda m: len(m.meta_info_def.tags))


def _parsed(file: Path, message: Any) -> Any:  # noqa: ANN401
    from google.protobuf import text_format  # type: ignore[import-untyped]
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        if not file.is_file():
            raise FileAccessError(f"'{file}' is no file")
        if file.stat().st_size > _LIMIT:
            raise ExportError(f"'{file}' is larger than 2 GiB, which no file of this kind can be")
        if file.suffix == ".pbtxt":
            text_format.Parse(file.read_bytes(), message)
        else:
            message.ParseFromString(file.read_bytes())
    except OSError as error:
        raise FileAccessError(f"'{file}' cannot be read: {error.strerror}") from error
    except (DecodeError, text_format.ParseError, UnicodeDecodeError) as error:
        raise ExportError(f"'{file}' is no {type(message).__name__}, or only a part of one") from error
    return message
