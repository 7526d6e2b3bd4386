"""A node that stands for a call while TensorFlow and tf2onnx work on the graph around it."""

from collections.abc import Sequence
from typing import Any


def mark(token: str, inputs: Sequence[Any], outputs: Sequence[tuple[Any, Any]]) -> Sequence[Any]:
    """Write a marker and return its outputs.

    It is a ``PyFuncStateless``, which any TensorFlow can hold in a graph; it is never run.

    Args:
        token: Which call it stands for.
        inputs: Tensors that it reads.
        outputs: Type and static shape of each of its outputs.
    """
    import tensorflow as tf

    made = tf.raw_ops.PyFuncStateless(input=list(inputs), token=token, Tout=[dtype for dtype, _ in outputs])
    # a shape that is merely set is lost when the graph is frozen, and with it the next convolution
    return [tf.ensure_shape(tensor, shape) for tensor, (_, shape) in zip(made, outputs, strict=True)]
