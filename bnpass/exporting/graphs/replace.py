"""A marker takes the place of each batch normalization that was recognised."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bnpass.exporting.capture.calls import Calls, NormCall
from bnpass.exporting.capture.marker import mark
from bnpass.exporting.graphs.facts import shape_of
from bnpass.exporting.graphs.found import Found
from bnpass.exporting.graphs.fused import channels_of
from bnpass.exporting.graphs.proto import rename_tensors
from bnpass.layers.modes import moved_by_training
from bnpass.semantics.resolved import Resolved


def replaced(graph: Any, found: Sequence[Found], calls: Calls) -> tuple[Any, dict[str, str]]:  # noqa: ANN401
    """Write markers.

    Args:
        graph: Changed: the markers are added to it.
        found: In the order of the graph.
        calls: Where they are recorded.

    Returns:
        The GraphDef in which all others read the markers, and by old names the new names of the tensors.
    """
    old = {op.name for op in graph.get_operations()}
    new: dict[str, Any] = {}
    with graph.as_default():
        for norm in found:
            _write(norm, calls, new)
    graph_def = graph.as_graph_def()
    names = {name: tensor.name for name, tensor in new.items()}
    rename_tensors([node for node in graph_def.node if node.name in old], names)
    return graph_def, names


def _write(norm: Found, calls: Calls, new: dict[str, Any]) -> None:
    """Write one marker; ``new`` is read and filled."""
    import tensorflow as tf

    layer = _resolved(norm)
    with tf.name_scope(f"{norm.name}/marker/"):
        X = _current(norm.X, new)
        operands = {"X": X, **{name: _vector(t, layer, new) for name, t in _vectors(norm, layer).items()}}
        outputs = ("Y", *(moved_by_training(layer) if norm.training else ()))
        kinds = [(X.dtype, norm.Y.shape)]
        kinds += [(tf.as_dtype(layer.parameter_dtype), [layer.channels]) for _ in outputs[1:]]
        record = NormCall(norm.layer_name, layer, norm.training, tuple(operands), outputs)
        made = dict(zip(outputs, mark(calls.add(norm, record), list(operands.values()), kinds), strict=True))
    new[norm.Y.name] = made["Y"]
    new |= {tensor.name: made[name] for name, tensor in norm.moved.items()}
    new |= {name: _current(tensor, new) for name, tensor in norm.passed.items()}


def _resolved(norm: Found) -> Resolved:
    """Return what a batch normalization means, with the length of its channel axis known."""
    shape = shape_of(norm.X) or (None,) * norm.Y.shape.rank
    if norm.fused:
        channels = channels_of(norm.Y.op, norm)
        shape = tuple(channels if i in norm.axes else n for i, n in enumerate(shape))
    return norm.resolved(shape)


def _vectors(norm: Found, layer: Resolved) -> dict[str, Any]:
    """Return parameters and statistics; in training those that do not matter are constants."""
    import tensorflow as tf

    dtype = layer.parameter_dtype
    given = {"scale": norm.scale, "B": norm.B}
    mean = tf.constant(np.zeros(layer.channels), dtype) if norm.mean is None else norm.mean
    var = tf.constant(np.ones(layer.channels), dtype) if norm.var is None else norm.var
    return {name: t for name, t in given.items() if t is not None} | {"input_mean": mean, "input_var": var}


def _vector(tensor: Any, layer: Resolved, new: dict[str, Any]) -> Any:  # noqa: ANN401
    import tensorflow as tf

    return tf.reshape(tf.cast(_current(tensor, new), layer.parameter_dtype), [layer.channels])


def _current(tensor: Any, new: dict[str, Any]) -> Any:  # noqa: ANN401
    """Return a tensor, or what has taken its place."""
    return new.get(tensor.name, tensor)
