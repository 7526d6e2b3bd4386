"""Inputs and outputs are those that are named, or those that are found; what is missing is said in one line."""

from typing import Any

import numpy as np
import pytest

from bnpass.exporting.errors import ExportError
from bnpass.exporting.graphs import trace_graph, trace_graph_def
from bnpass.exporting.model import finish
from bnpass.exporting.options import ExportOptions
from tests.unit.exporting.graphs.models import close, norms, run, vectors

pytestmark = pytest.mark.keras

C = 3


def graph() -> Any:
    """Return a graph of two inputs, two outputs, and nodes that belong to neither."""
    import tensorflow as tf

    with tf.Graph().as_default() as made:
        a = tf.compat.v1.placeholder("float32", [None, C], "a")
        b = tf.compat.v1.placeholder("float32", [None, C], "b")
        keep = tf.compat.v1.placeholder_with_default(tf.constant(1.0), [], "keep")
        y = tf.nn.batch_normalization(a, *(tf.constant(v) for v in vectors(C)), 1e-3)
        tf.multiply(y, keep, "scaled")
        tf.split(tf.add(y, b, "sum"), 3, axis=1, name="parts")
        tf.constant(1.0, name="unused")
        tf.no_op("init")
    return made


def test_placeholders_without_a_default_and_what_nothing_reads_are_found() -> None:
    traced = trace_graph_def(graph().as_graph_def())
    assert [(p.name, p.tensor, p.shape, p.dtype) for p in traced.inputs] == [
        ("a", "a:0", (None, C), "float32"),
        ("b", "b:0", (None, C), "float32"),
    ]
    assert [p.name for p in traced.outputs] == ["scaled", "parts", "parts_1", "parts_2"]


def test_named_ends_keep_their_order_and_names() -> None:
    graph_def = graph().as_graph_def()
    before = graph_def.SerializeToString(deterministic=True)
    exported = finish(trace_graph_def(graph_def, ["b:0", "a"], ["parts:2", "sum"]), ExportOptions())
    assert graph_def.SerializeToString(deterministic=True) == before
    assert [value.name for value in exported.model.graph.inputs] == ["b", "a"]
    assert [value.name for value in exported.model.graph.outputs] == ["parts_2", "sum"]
    assert norms(exported) == 1


def test_an_output_can_be_the_batch_normalization_itself_and_an_input_any_value() -> None:
    made = graph()
    exported = finish(trace_graph_def(made.as_graph_def(), ["sum"], ["parts"]), ExportOptions())
    X = np.arange(6, dtype="f").reshape(2, 3)
    assert norms(exported) == 0
    close(run(exported, {"sum": X})[0], X[:, :1])
    exported = finish(trace_graph_def(made.as_graph_def(), ["a"], ["batchnorm/add_1"]), ExportOptions())
    assert [value.name for value in exported.model.graph.outputs] == ["batchnorm/add_1"]
    m, v, b, g = vectors(C)
    close(run(exported, {"a": X})[0], (X - m) / np.sqrt(v + np.float32(1e-3)) * g + b)


def test_an_input_that_no_output_needs_stays_one() -> None:
    traced = trace_graph_def(graph().as_graph_def(), ["a", "b"], ["scaled"])
    exported = finish(traced, ExportOptions())
    assert [value.name for value in exported.model.graph.inputs] == ["a", "b"]


def test_a_placeholder_with_a_default_can_be_made_an_input() -> None:
    exported = finish(trace_graph_def(graph().as_graph_def(), ["a", "keep"], ["scaled"]), ExportOptions())
    X = np.ones((1, C), "f")
    one, two = (run(exported, {"a": X, "keep": np.array(k, "f")})[0] for k in (1, 2))
    close(two, 2 * one)


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        (["a"], ["parts"], "the outputs depend on 'b' (Placeholder), which is not among the inputs"),
        (["z"], ["parts"], "the graph has no node 'z'"),
        (["a"], ["z"], "the graph has no node 'z'"),
        (["a"], ["scaled:1"], "the graph has no tensor 'scaled:1'"),
        (["a"], ["^scaled"], "'^scaled:0' is not the name of a tensor"),
        (["a", "a:0"], ["scaled"], "'a:0' is named twice"),
        (["a"], [], "the graph has no outputs"),
        (["parts"], ["scaled"], "'parts:0' (Split) is one of several results, and cannot be an input"),
        ([], None, "the graph has no output that depends on an input: name its outputs"),
    ],
)
def test_wrong_ends_are_refused_in_one_line(inputs: list[str], outputs: list[str] | None, message: str) -> None:
    with pytest.raises(ExportError) as refused:
        trace_graph_def(graph().as_graph_def(), inputs, outputs)
    assert str(refused.value) == message


def test_variables_need_their_session() -> None:
    import tensorflow as tf

    with tf.Graph().as_default() as made:
        x = tf.compat.v1.placeholder("float32", [None, C], "x")
        mean, var, B, scale = (
            tf.compat.v1.get_variable(n, initializer=v) for n, v in zip("mvbg", vectors(C), strict=True)
        )
        tf.identity(tf.nn.batch_normalization(x, mean, var, B, scale, 1e-3), "y")
        with pytest.raises(
            ExportError, match=r"^'[mvbg]' \(\w+\) is a variable: freeze the graph, or give its session"
        ):
            trace_graph_def(made.as_graph_def(), ["x"], ["y"])
        with tf.compat.v1.Session(graph=made) as session:
            with pytest.raises(ExportError, match=r"^the variables cannot be made constants: "):
                trace_graph(made, session, ["x"], ["y"])
            session.run(tf.compat.v1.global_variables_initializer())
            exported = finish(trace_graph(made, session, ["x"], ["y"]), ExportOptions())
            X = np.ones((2, C), "f")
            close(run(exported, {"x": X})[0], session.run("y:0", {"x:0": X}))
    assert norms(exported) == 1


def test_a_variable_that_is_read_after_it_was_changed_is_refused_by_name() -> None:
    import tensorflow as tf

    with tf.Graph().as_default() as made:
        x = tf.compat.v1.placeholder("float32", [None, C], "x")
        mean = tf.compat.v1.get_variable("mean", initializer=vectors(C)[0], use_resource=True)
        with tf.control_dependencies([mean.assign_add(tf.reduce_mean(x, 0))]):
            tf.subtract(x, mean.read_value(), "y")
            tf.identity(x * 2, "z")
        with tf.compat.v1.Session(graph=made) as session:
            session.run(tf.compat.v1.global_variables_initializer())
            with pytest.raises(ExportError, match=r"reads variable 'mean' after the graph has changed it"):
                trace_graph(made, session, ["x"], ["y"])
            traced = trace_graph(made, session, ["x"], ["z"])
            assert not [node for node in traced.graph_def.node if "Assign" in node.op]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda tf, x: tf.numpy_function(lambda v: v, [x], "float32"), r"\(PyFunc\w*\) calls Python"),
        (
            lambda tf, _: tf.io.decode_raw(tf.io.read_file("/etc/passwd"), "uint8"),
            r"\(ReadFile\) reads or writes files",
        ),
        (lambda tf, x: tf.strings.as_string(x), "is of type string, which is not exported"),
        (
            lambda tf, x: tf.raw_ops.PyFuncStateless(input=[x], token="bnpass:0", Tout=["float32"])[0],  # noqa: S106
            r"\(PyFuncStateless\) calls Python",
        ),
    ],
)
def test_what_onnx_cannot_hold_is_refused_by_name(write: Any, message: str) -> None:
    import tensorflow as tf

    with tf.Graph().as_default() as made:
        x = tf.compat.v1.placeholder("float32", [None, C], "x")
        tf.identity(write(tf, x), "y")
    with pytest.raises(ExportError, match=message):
        trace_graph_def(made.as_graph_def(), ["x"], ["y"])


def test_an_output_can_be_an_input_or_a_constant() -> None:
    import tensorflow as tf

    with tf.Graph().as_default() as made:
        x = tf.compat.v1.placeholder("float32", [None, C], "x")
        tf.constant([1.0, 2.0], name="two")
        tf.nn.relu(x, "y")
    exported = finish(trace_graph_def(made.as_graph_def(), ["x"], ["two", "x", "y"]), ExportOptions())
    X = np.ones((2, C), "f")
    two, same, y = run(exported, {"x": X})
    assert (two == [1, 2]).all()
    assert (same == X).all()
    assert (y == X).all()


def test_batch_normalization_before_and_behind_a_loop_is_recognised() -> None:
    import tensorflow as tf

    with tf.Graph().as_default() as made:
        x = tf.compat.v1.placeholder("float32", [2, C], "x")
        y = tf.nn.batch_normalization(x, *(tf.constant(v) for v in vectors(C)), 1e-3)
        y = tf.while_loop(lambda i, _: i < 3, lambda i, v: (i + 1, v * 1.5), [0, y])[1]
        tf.nn.batch_normalization(y, *(tf.constant(v) for v in vectors(C)), 1e-3, "z")
    exported = finish(trace_graph_def(made.as_graph_def(), ["x"], ["z/add_1"]), ExportOptions())
    X = np.ones((2, C), "f")
    with tf.compat.v1.Session(graph=made) as session:
        close(run(exported, {"x": X})[0], session.run("z/add_1:0", {"x:0": X}))
    assert norms(exported) == 2
