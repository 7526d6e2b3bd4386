"""TensorFlow's fused batch normalization, called eagerly. For NCHW its CPU kernel transposes by itself."""

from typing import Any

import numpy as np
import tensorflow as tf
from layer import EPSILON, MOMENTUM, THREADS, Layer, Pass

NOTE = "FusedBatchNormV3 and FusedBatchNormGradV3, eager; they allocate their results; NCHW is transposed inside"


def start() -> None:
    """Set the threads."""
    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def version() -> str:
    """Return its version."""
    return f"tensorflow {tf.__version__}"


def opened(layer: Layer) -> dict[str, Pass]:
    """Make the tensors, and run forward once for what backward takes."""
    N, C = layer.shape[:2]
    shape = (N, 1, 1, C) if layer.layout == "NC" else layer.in_memory
    X, dY = (
        tf.constant(np.fromfile(layer.folder / name, np.float32, layer.elements).reshape(shape)) for name in ("x", "dy")
    )
    scale, B = tf.constant(layer.scale), tf.constant(layer.B)
    mean, var = tf.zeros(C), tf.ones(C)
    form: dict[str, Any] = {
        "epsilon": EPSILON, "data_format": "NCHW" if layer.layout == "NCHW" else "NHWC", "is_training": True,
    }  # fmt: skip

    def forward() -> list[tf.Tensor]:
        return tf.raw_ops.FusedBatchNormV3(
            x=X, scale=scale, offset=B, mean=mean, variance=var, exponential_avg_factor=1 - MOMENTUM, **form
        )

    saved = dict(zip(("reserve_space_1", "reserve_space_2", "reserve_space_3"), forward()[3:], strict=True))

    def backward() -> list[tf.Tensor]:
        return tf.raw_ops.FusedBatchNormGradV3(y_backprop=dY, x=X, scale=scale, **saved, **form)

    return {
        name: Pass(run, lambda run=run: run()[0].numpy())
        for name, run in (("forward", forward), ("backward", backward))
    }
