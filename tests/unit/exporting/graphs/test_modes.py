"""A placeholder that says the mode is bound, and the branch that it chooses is taken; others decide at run time."""

from typing import Any

import numpy as np
import pytest

from bnpass.exporting.errors import ExportError
from bnpass.exporting.graphs.mode import says_training
from bnpass.exporting.graphs.trace import trace_graph_def
from bnpass.exporting.model import finish
from bnpass.exporting.options import ExportOptions
from tests.unit.exporting.graphs.models import close, norms, ops, run, vectors

pytestmark = pytest.mark.keras

C = 3
EPSILON = 1e-3


@pytest.mark.parametrize(
    "name",
    ["training", "is_training", "keras_learning_phase", "bn/phase_train", "train_phase", "serving_default_training:0",
     "training_1", "isTraining", "train", "phase", "train_mode", "training_flag", "mode_train"],
)  # fmt: skip
def test_names_of_the_mode(name: str) -> None:
    assert says_training(name)


@pytest.mark.parametrize("name", ["flip", "is_test", "constraining", "trained", "pretraining", "inference", "x"])
def test_other_names(name: str) -> None:
    assert not says_training(name)


def graph_of(kind: str, *, v2: bool, name: str = "training", inverted: bool = False) -> Any:
    """Return a graph with a mode: a placeholder, or one with a default; with branches of TensorFlow 1 or 2."""
    import tensorflow as tf

    (tf.compat.v1.enable_control_flow_v2 if v2 else tf.compat.v1.disable_control_flow_v2)()
    try:
        with tf.Graph().as_default() as graph:
            x = tf.compat.v1.placeholder("float32", [None, 4, 4, C], "x")
            if kind == "default":
                mode = tf.compat.v1.placeholder_with_default(False, [], name)
            else:
                mode = tf.compat.v1.placeholder("bool", [] if kind == "scalar" else None, name)
            mean, var, B, scale = (tf.constant(v) for v in vectors(C))

            def training() -> Any:
                batch_mean, batch_var = tf.nn.moments(x, [0, 1, 2])
                return tf.nn.batch_normalization(x, batch_mean, batch_var, B, scale, EPSILON), tf.constant(1.0)

            def inference() -> Any:
                y = tf.compat.v1.nn.fused_batch_norm(x, scale, B, mean, var, EPSILON, is_training=False)[0]
                return y, tf.constant(2.0)

            decided = tf.logical_not(mode) if inverted else mode
            y, number = tf.cond(decided, *((inference, training) if inverted else (training, inference)))
            tf.multiply(tf.nn.relu(y), number, "y")
        return graph.as_graph_def()
    finally:
        tf.compat.v1.enable_control_flow_v2()


def reference(graph_def: Any, X: np.ndarray, *, training: bool) -> np.ndarray:
    import tensorflow as tf

    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        tf.import_graph_def(graph_def, name="")
        return np.asarray(session.run("y:0", {"x:0": X, "training:0": training}))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("v2", [False, True], ids=["switch", "if"])
@pytest.mark.parametrize("kind", ["scalar", "default", "unknown"])
def test_the_branch_of_the_mode_is_taken(kind: str, v2: bool, inverted: bool, training: bool) -> None:
    graph_def = graph_of(kind, v2=v2, inverted=inverted)
    traced = trace_graph_def(graph_def, training=training)
    exported = finish(traced, ExportOptions())
    assert [port.name for port in traced.inputs] == ["x"]
    assert [port.name for port in traced.outputs] == ["y"]
    assert norms(exported) == exported.assembled.norms == 1
    assert ops(exported)["SyncBatchNormalization"] == int(training)
    assert not {"If", "Not"} & set(ops(exported))
    X = np.random.default_rng(0).standard_normal((2, 4, 4, C)).astype("f")
    close(run(exported, {"x": X})[0], reference(graph_def, X, training=training), 2**-19)


def test_the_mode_is_bound_even_if_it_is_named_as_an_input() -> None:
    traced = trace_graph_def(graph_of("scalar", v2=True), ["x", "training"], ["y"])
    assert [port.name for port in traced.inputs] == ["x"]


@pytest.mark.parametrize("v2", [False, True], ids=["switch", "if"])
def test_batch_normalization_behind_another_boolean_is_refused_by_name(v2: bool) -> None:
    with pytest.raises(
        ExportError, match=r"^batch normalization '[^']+' is (behind a Switch|inside of 'cond\S*' \(\w*If\)), "
    ):
        trace_graph_def(graph_of("scalar", v2=v2, name="flip"))


@pytest.mark.parametrize("training", [False, True])
def test_nested_branches_and_functions_are_taken_apart(training: bool) -> None:
    import tensorflow as tf

    mean, var, B, scale = (tf.constant(v) for v in vectors(C))

    @tf.function(jit_compile=True)
    def norm(x: Any) -> Any:
        return tf.nn.batch_normalization(x, mean, var, B, scale, EPSILON)

    @tf.function
    def inner(x: Any, training: Any) -> Any:
        return tf.cond(
            training, lambda: tf.cond(tf.logical_not(training), lambda: x, lambda: norm(x) + 1), lambda: norm(x)
        )

    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder("float32", [None, C], "x")
        mode = tf.compat.v1.placeholder("bool", [], "training")
        mean, var, B, scale = (tf.constant(v) for v in vectors(C))
        tf.identity(inner(x, mode), "y")
    exported = finish(trace_graph_def(graph.as_graph_def(), training=training), ExportOptions())
    assert ops(exported)["BatchNormalization"] == 1
    X = np.random.default_rng(0).standard_normal((2, C)).astype("f")
    m, v, b, g = vectors(C)
    close(run(exported, {"x": X})[0], (X - m) / np.sqrt(v + np.float32(EPSILON)) * g + b + int(training))


def test_batch_normalization_in_a_loop_is_refused_by_name() -> None:
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder("float32", [2, C], "x")
        count = tf.compat.v1.placeholder("int32", [], "count")
        constants = [tf.constant(v) for v in vectors(C)]

        def step(i: Any, y: Any) -> Any:
            return i + 1, tf.nn.batch_normalization(y, *[tf.constant(v) for v in vectors(C)], EPSILON)

        assert constants
        tf.identity(tf.while_loop(lambda i, _: i < count, step, [0, x])[1], "y")
    with pytest.raises(ExportError, match=r"^batch normalization '.*' is inside of '.*while.*' \(StatelessWhile\)"):
        trace_graph_def(graph.as_graph_def())
