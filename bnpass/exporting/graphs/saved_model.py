"""A SavedModel is read, and of what it can run only the restoring of its variables is run."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bnpass.errors import FileAccessError
from bnpass.exporting.errors import ExportError
from bnpass.exporting.graphs.collected import of_meta_graph
from bnpass.exporting.graphs.files import read_saved_model
from bnpass.exporting.graphs.freeze import VARIABLES, plain_errors
from bnpass.exporting.graphs.mode import bind, says_training
from bnpass.exporting.graphs.proto import attribute, by_name, in_one_line, node_of
from bnpass.exporting.graphs.trace import trace_ends
from bnpass.exporting.trace import Traced

DEFAULT = "serving_default"

_RESTORING = {
    *("Restore", "RestoreV2", "RestoreSlice", "Assign", "AssignVariableOp", "NoOp", "Identity", "IdentityN", "Const"),
    *("Placeholder", "PlaceholderWithDefault", "VariableV2", "Variable", "VarHandleOp", "Reshape", "Cast", "Pack"),
    *("PartitionedCall", "StatefulPartitionedCall", "DisableCopyOnRead", "StringJoin", "ReadVariableOp"),
}
"""What restores variables: none of these ops does anything else."""


def trace_saved_model(path: str | Path, signature_key: str | None = None, training: bool = False) -> Traced:
    """Trace a signature of a SavedModel of TensorFlow 1 or 2; inputs and outputs have the names that it gives them.

    Args:
        path: Its folder.
        signature_key: By default ``serving_default``, or the only one that there is.
        training: What a boolean input that says `training` is bound to. In training the variables are inputs, as in
            ``trace_graph``.

    Raises:
        FileAccessError: The folder cannot be read.
        ExportError: It is no SavedModel, has no such signature, or something in it cannot be exported.
    """
    meta = read_saved_model(path)
    with in_one_line(f"'{path}' cannot be read"):
        signature = _signature(meta, signature_key, Path(path))
        inputs, outputs = (_tensors(ends, Path(path)) for ends in (signature.inputs, signature.outputs))
        modes = frozenset(node_of(tensor) for name, tensor in inputs.items() if says_training(name))
        with _session(meta, Path(path)) as session:
            bound = bind(meta.graph_def, training=training, names=modes)
            left = {name: tensor for name, tensor in inputs.items() if node_of(tensor) not in bound}
            collected = of_meta_graph(meta) if training else None
            return trace_ends(meta.graph_def, session, left, outputs, collected)


def _signature(meta: Any, key: str | None, path: Path) -> Any:  # noqa: ANN401  untyped protobufs
    """Return the signature that is meant.

    Raises:
        ExportError: There is none, or there are several.
    """
    known = {k: s for k, s in meta.signature_def.items() if not k.startswith("_") and s.outputs}
    if key is None:
        key = DEFAULT if DEFAULT in known or len(known) != 1 else next(iter(known))
    if key not in known:
        listed = ", ".join(f"'{k}'" for k in sorted(known)) or "none"
        raise ExportError(f"'{path}' has no signature '{key}'; it has {listed}")
    return known[key]


def _tensors(ends: Any, path: Path) -> dict[str, str]:  # noqa: ANN401
    for name, info in ends.items():
        if not info.name:
            raise ExportError(f"'{path}': '{name}' of its signature is sparse or ragged, which is not exported")
    return {str(name): str(ends[name].name) for name in sorted(ends)}


@contextlib.contextmanager
def _session(meta: Any, path: Path) -> Iterator[Any]:  # noqa: ANN401
    """Give a session with the variables of a SavedModel; None if it has none."""
    import tensorflow as tf

    if not any(node.op in VARIABLES for node in meta.graph_def.node):
        yield None
        return
    _check_restoring(meta)
    values = path / "variables" / "variables"
    if not values.with_suffix(".index").is_file():
        raise FileAccessError(f"'{path}' lacks the values of its variables ({values.with_suffix('.index').name})")
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        with in_one_line(f"the variables of '{path}' cannot be restored"), plain_errors():
            bare = type(meta)()
            bare.CopyFrom(meta)
            bare.collection_def.clear()
            for node in bare.graph_def.node:
                node.device = ""
            tf.compat.v1.train.import_meta_graph(bare, clear_devices=True).restore(session, str(values))
        yield session


def _check_restoring(meta: Any) -> None:  # noqa: ANN401
    """Refuse a SavedModel that runs anything but restoring where its variables are restored and read."""
    nodes = by_name(meta.graph_def)
    functions = {function.signature.name: list(function.node_def) for function in meta.graph_def.library.function}
    start = [node_of(meta.saver_def.restore_op_name)]
    for node in meta.graph_def.node:
        if node.op in VARIABLES:
            start += [node.name, f"{node.name}/Read/ReadVariableOp"]
    seen, waiting = set(start), [nodes[name] for name in dict.fromkeys(start) if name in nodes]
    while waiting:
        node = waiting.pop()
        if node.op not in _RESTORING:
            raise ExportError(f"'{node.name}' ({node.op}) would be run where variables are restored: it is refused")
        waiting += functions.pop(attribute(node, "f").func.name, [])
        for name in (node_of(reference) for reference in node.input):
            if name in nodes and name not in seen:
                seen.add(name)
                waiting.append(nodes[name])
