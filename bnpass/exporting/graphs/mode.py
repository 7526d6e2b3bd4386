"""A boolean that says which mode is meant becomes a constant.

Only a scalar whose name says so is taken for it; any other boolean stays an input.
"""

import re
from typing import Any

from bnpass.exporting.graphs.proto import attribute

_NAMES = re.compile(
    r"(is_?|mode_)?(train|training|trainmode|phase|learning_phase)(_?(mode|phase|flag|train))?", re.IGNORECASE
)
_PREFIXES = ("serving_default_", "keras_")
_PLACEHOLDERS = ("Placeholder", "PlaceholderV2", "PlaceholderWithDefault")


def says_training(name: str) -> bool:
    """Whether a name is one for the mode: training, is_training, keras_learning_phase, phase_train, ..."""
    last = name.split(":")[0].split("/")[-1]
    for prefix in _PREFIXES:
        last = last.removeprefix(prefix)
    return _NAMES.fullmatch(re.sub(r"_\d+$", "", last)) is not None


def bind(graph_def: Any, *, training: bool, names: frozenset[str] = frozenset()) -> frozenset[str]:  # noqa: ANN401
    """Make constants of the placeholders that say the mode.

    Args:
        graph_def: Changed in place.
        training: The mode.
        names: Nodes that a signature calls by such a name, whatever they are called themselves.

    Returns:
        The nodes that are constants now.
    """
    from tensorflow.core.framework import tensor_pb2, types_pb2

    bound = set()
    for node in graph_def.node:
        if node.op not in _PLACEHOLDERS or attribute(node, "dtype").type != types_pb2.DT_BOOL or not _is_scalar(node):
            continue
        if node.name in names or says_training(node.name):
            value = tensor_pb2.TensorProto(dtype=types_pb2.DT_BOOL, bool_val=[training])
            value.tensor_shape.SetInParent()
            node.op = "Const"
            del node.input[:]
            node.attr.clear()
            node.attr["dtype"].type = types_pb2.DT_BOOL
            node.attr["value"].tensor.CopyFrom(value)
            bound.add(node.name)
    return frozenset(bound)


def _is_scalar(node: Any) -> bool:  # noqa: ANN401
    """Whether a placeholder is a scalar, or says nothing of its shape."""
    return not attribute(node, "shape").shape.dim
