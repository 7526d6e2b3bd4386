"""Graphs of TensorFlow, run by TensorFlow and, exported, by ONNX Runtime."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from bnpass.exporting.graphs.trace import trace_graph_def
from bnpass.exporting.model import Exported, finish
from bnpass.exporting.options import ExportOptions
from bnpass.exporting.trace import Traced

Arrays = Mapping[str, np.ndarray]

BOUNDS = {"float16": 2**-10, "bfloat16": 2**-7, "float32": 2**-21, "float64": 2**-22}
"""Of the largest output, by type: one rounding of 16 bits; in float32 the roundings of two orders of one formula; in
float64 the epsilon, which ONNX keeps in float32 (see layers.md)."""


@dataclass(frozen=True)
class Built:
    """A graph with its data.

    Attributes:
        graph_def: The graph.
        outputs: Names of its outputs.
        feeds: By the names of its inputs.
    """

    graph_def: Any
    outputs: Sequence[str]
    feeds: Arrays


def vectors(channels: int, dtype: str = "float32", seed: int = 0) -> tuple[np.ndarray, ...]:
    """Return mean, var, offset and scale."""
    rng = np.random.default_rng(seed)
    mean, offset, scale = (rng.standard_normal(channels) for _ in range(3))
    return tuple(a.astype(dtype) for a in (mean, rng.uniform(0.5, 2, channels), offset, scale))


def built(write: Callable[[Any], Any], shape: Sequence[int | None], dtype: str = "float32", size: int = 3) -> Built:
    """Build a graph of one input x; each length that is None is ``size`` when it is run."""
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(dtype, shape, "x")
        made = tf.nest.flatten(write(x))
        outputs = [tf.identity(y, f"y{i}").name.split(":")[0] for i, y in enumerate(made)]
    rng = np.random.default_rng(1)
    value = rng.standard_normal([size if n is None else n for n in shape])
    return Built(graph.as_graph_def(), outputs, {"x": value.astype(tf.as_dtype(dtype).as_numpy_dtype)})


def expected(model: Built) -> list[np.ndarray]:
    """Run a graph in TensorFlow."""
    import tensorflow as tf

    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        tf.import_graph_def(model.graph_def, name="")
        feeds = {f"{name}:0": value for name, value in model.feeds.items()}
        return list(session.run([f"{name}:0" for name in model.outputs], feeds))


def traced(model: Built, *, training: bool = False) -> Traced:
    return trace_graph_def(model.graph_def, list(model.feeds), model.outputs, training=training)


def run(exported: Exported, feeds: Arrays) -> list[np.ndarray]:
    """Run an exported model in ONNX Runtime, with nothing optimized."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    data = ir.to_proto(exported.model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def ops(exported: Exported) -> Counter[str]:
    """Count the ops of the graph; constants do not count."""
    return Counter(
        node.op_type for node in exported.model.graph.all_nodes() if node.op_type not in ("Constant", "Identity")
    )


def norms(exported: Exported) -> int:
    """Count the batch normalization in the graph."""
    counted = ops(exported)
    return counted["BatchNormalization"] + counted["SyncBatchNormalization"]


def agree(model: Built, *, norm_count: int = 1, training: bool = False, bound: float | None = None) -> Exported:
    """Export a graph, compare it with TensorFlow, and count its batch normalization."""
    exported = finish(traced(model, training=training), ExportOptions())
    assert exported.assembled.norms == norms(exported) == norm_count
    for got, want in zip(run(exported, model.feeds), expected(model), strict=True):
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        close(got, want, bound)
    return exported


def close(got: np.ndarray, want: np.ndarray, bound: float | None = None) -> None:
    """Compare in the max-norm."""
    if not want.size:
        return
    allowed = (BOUNDS[want.dtype.name] if bound is None else bound) * np.abs(want.astype("f8")).max()
    assert np.abs(got.astype("f8") - want.astype("f8")).max() <= allowed
