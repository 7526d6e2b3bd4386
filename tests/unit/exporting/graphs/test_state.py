"""Variables of a graph in training: what becomes of them, what is refused, and what is said."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnpass.exporting.errors import ExportError
from bnpass.exporting.graphs import trace_graph, trace_graph_def, trace_saved_model
from bnpass.exporting.model import finish
from bnpass.exporting.options import ExportOptions
from bnpass.exporting.partners import GraphPartner
from bnpass.exporting.trace import Traced
from bnpass.exporting.work import carry_out_graph
from tests.unit.exporting.graphs.models import built, close, run

pytestmark = pytest.mark.keras

C = 3
Write = Callable[[Any], Any]
TRAINING = ExportOptions(training=True)


def variable(name: str, shape: tuple[int, ...] = (C,), **arguments: Any) -> Any:
    import tensorflow as tf

    start = tf.compat.v1.constant_initializer(np.linspace(0.5, 1.5, int(np.prod(shape))).reshape(shape))
    return tf.compat.v1.get_variable(name, shape, initializer=start, **arguments)


def traced(write: Write, *, resource: bool = True, inputs: Any = ("x",), outputs: Any = ("y",)) -> Traced:
    """Trace what is written for x of [N, 4, C]."""
    import tensorflow as tf

    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        x = tf.compat.v1.placeholder("float32", [None, 4, C], "x")
        with tf.compat.v1.variable_scope("", use_resource=resource):
            tf.identity(write(x), "y")
        session.run(tf.compat.v1.global_variables_initializer())
        return trace_graph(graph, session, inputs, outputs, training=True)


def update(op: Any) -> None:
    import tensorflow as tf

    tf.compat.v1.add_to_collection("update_ops", op)


def scattered(x: Any) -> Any:
    import tensorflow as tf

    update(tf.compat.v1.scatter_update(variable("v", (4, C)), [0], tf.reduce_mean(x, [0, 1])[None]))
    return x


def minimized(x: Any) -> Any:
    import tensorflow as tf

    y = x * variable("v")
    with tf.control_dependencies([tf.compat.v1.train.GradientDescentOptimizer(0.1).minimize(tf.reduce_mean(y))]):
        return tf.identity(y)


def read_in_a_loop(x: Any) -> Any:
    import tensorflow as tf

    v = variable("v")
    return tf.while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, y * v), [0, x])[1]


def written_in_a_branch(x: Any) -> Any:
    import tensorflow as tf

    v = variable("v")

    def taken() -> Any:
        with tf.control_dependencies([v.assign_add([1.0] * C)]):
            return x + 1

    return tf.cond(tf.reduce_sum(x) > 0, taken, lambda: x)


def loss_of_many(x: Any) -> Any:
    import tensorflow as tf

    v = variable("v")
    tf.compat.v1.add_to_collection("regularization_losses", tf.square(v))
    return x * v


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (scattered, r"^'ResourceScatterUpdate' \(ResourceScatterUpdate\) changes a variable in a way that "),
        (minimized, r"^'\S+' \(ResourceApplyGradientDescent\) changes a variable in a way that a training export "),
        (read_in_a_loop, r"^'while' \(While\), a loop or a branch that is not decided, uses variable 'v', which "),
        (written_in_a_branch, r"^'cond' \(If\), a loop or a branch that is not decided, uses variable 'v', "),
        (loss_of_many, r"^regularization loss 'Square:0' is no number but has the shape \(3,\)"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)  # fmt: skip
def test_what_no_input_or_output_can_be_is_refused_by_name(write: Write, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        traced(write)


def switched(write: Write) -> Traced:
    """Trace with the loops and branches of TensorFlow 1."""
    import tensorflow as tf

    tf.compat.v1.disable_control_flow_v2()
    try:
        return traced(write)
    finally:
        tf.compat.v1.enable_control_flow_v2()


def test_a_write_behind_a_switch_is_refused_by_name() -> None:
    with pytest.raises(
        ExportError, match=r"^'\S+' \(AssignAdd\w*\) changes variable 'v' in a loop or a branch that is"
    ):
        switched(written_in_a_branch)


def test_a_loop_of_tensorflow_1_reads_an_input() -> None:
    exported = finish(switched(read_in_a_loop), TRAINING)
    x, v = np.ones((2, 4, C), "f"), np.float32([2, 3, 4])
    close(run(exported, {"x": x, "v": v})[0], x * v**3)


def test_a_reference_that_a_function_takes_is_read_before() -> None:
    import tensorflow as tf

    def write(x: Any) -> Any:
        v = variable("v")
        return tf.while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, y * v), [0, x])[1]

    exported = finish(traced(write, resource=False), TRAINING)
    x, v = np.ones((2, 4, C), "f"), np.float32([2, 3, 4])
    close(run(exported, {"x": x, "v": v})[0], x * v**3)


def test_an_update_is_no_output_that_is_found() -> None:
    import tensorflow as tf

    def write(x: Any) -> Any:
        update(tf.identity(variable("v").assign_sub(tf.reduce_mean(x, [0, 1])) + tf.reduce_mean(x), "update"))
        return x

    found = traced(write, outputs=None)
    assert [port.name for port in found.outputs] == ["y"]
    assert [one.output.name for one in found.state if one.output] == ["v/updated"]


def test_gathers_of_rows_and_of_elements() -> None:
    import tensorflow as tf

    def write(x: Any) -> Any:
        table = variable("table", (4, C))
        ids = tf.cast(x[:, :, 0], "int32")
        return tf.gather(table, ids) + tf.gather_nd(table, tf.stack([ids, ids * 0 + 1], -1))[..., None]

    found = traced(write)
    assert {node.op for node in found.origin.graph_def.node} >= {"GatherV2", "GatherNd"}  # type: ignore[union-attr]
    exported = finish(found, TRAINING)
    x = np.tile(np.float32([0, 2, 1, 3])[None, :, None], (2, 1, C))
    table = np.arange(12, dtype="f").reshape(4, C)
    ids = x[:, :, 0].astype(int)
    close(run(exported, {"x": x, "table": table})[0], table[ids] + table[ids, 1][..., None])


def test_what_an_export_is_compared_with_moves_and_is_given_back() -> None:
    def write(x: Any) -> Any:
        v = variable("v")
        update(v.assign_add([1.0] * C).op)
        return x * v

    found = traced(write)
    partner = GraphPartner(found.origin, finish(found, TRAINING))  # type: ignore[arg-type]
    x = np.ones((1, 4, C), "f")
    with partner.restored():
        ys = [partner.results({"x": x})["y"][0, 0] for _ in range(3)]
        close(partner.state()["v"], np.float32([3.5, 4, 4.5]))
    close(np.stack(ys), np.float32([[0.5, 1, 1.5], [1.5, 2, 2.5], [2.5, 3, 3.5]]))
    close(partner.state()["v"], np.float32([0.5, 1, 1.5]))


def test_a_graph_without_variables_has_no_state_and_that_is_said() -> None:
    found = trace_graph_def(built(lambda x: x * 2, [None, C]).graph_def, training=True)
    assert found.state == ()
    assert carry_out_graph(found, TRAINING).notes == (
        "the graph has no variables: its weights are constants, and no statistics come out",
    )
    assert found.origin.notes == carry_out_graph(found, TRAINING).notes  # type: ignore[union-attr]


def test_statistics_that_the_graph_rounds_are_not_taken_from_our_operator() -> None:
    import tensorflow as tf

    def write(x: Any) -> Any:
        half = tf.cast(x, "float16")
        mean, var = tf.nn.moments(half, [0, 1])
        update(variable("v", trainable=False).assign(tf.cast(mean, "float32")))
        return tf.nn.batch_normalization(half, mean, var, None, None, 1e-3)

    exported = finish(traced(write), TRAINING)
    x = np.random.default_rng(0).standard_normal((5, 4, C)).astype("f")
    new = run(exported, {"x": x})[1]
    assert np.array_equal(new, new.astype("f2"))
    assert exported.assembled.norms == 1


def test_statistics_of_another_type_are_not_taken_from_our_operator() -> None:
    import tensorflow as tf

    def write(x: Any) -> Any:
        mean, var = tf.nn.moments(tf.cast(x, "float64"), [0, 1])
        update(variable("v", trainable=False, dtype="float64").assign(mean))
        return tf.nn.batch_normalization(x, tf.cast(mean, "float32"), tf.cast(var, "float32"), None, None, 1e-3)

    exported = finish(traced(write), TRAINING)
    x = np.random.default_rng(0).standard_normal((5, 4, C)).astype("f")
    assert np.abs(run(exported, {"x": x})[1] - x.astype("f8").mean((0, 1))).max() < 1e-15
    assert exported.assembled.norms == 1


def test_outputs_read_before_updates_that_the_graph_does_not_order() -> None:
    def write(x: Any) -> Any:
        v = variable("v")
        update(v.assign_add([1.0] * C).op)
        return x + v

    y, new = run(finish(traced(write), TRAINING), {"x": np.zeros((1, 4, C), "f"), "v": np.float32([1, 2, 3])})
    close(y[0, 0], np.float32([1, 2, 3]))
    close(new, np.float32([2, 3, 4]))


def test_updates_come_before_what_outputs_run_where_the_graph_does_not_order_them() -> None:
    import tensorflow as tf

    def write(x: Any) -> Any:
        v = variable("v")
        update(v.assign_add([1.0] * C).op)
        with tf.control_dependencies([v.assign(v * 2.0)]):
            return x + v

    found = traced(write)
    y, new = run(finish(found, TRAINING), {"x": np.zeros((1, 4, C), "f"), "v": np.float32([1, 2, 3])})
    close(y[0, 0], np.float32([4, 6, 8]))
    close(new, np.float32([4, 6, 8]))
    assert [note.split("'")[1] for note in found.origin.notes] == ["v"]  # type: ignore[union-attr]


class Module:
    """A module of TensorFlow 2 in training, made in ``saved``."""

    @staticmethod
    def made() -> Any:
        import tensorflow as tf

        module = tf.Module()
        names = {"moving": False, "scale": True, "unused": True}
        for i, (name, trainable) in enumerate(names.items()):
            setattr(module, name, tf.Variable([1.0 + i] * C, trainable=trainable, name="same"))

        @tf.function(
            input_signature=[tf.TensorSpec([None, 4, C], name="x"), tf.TensorSpec([], tf.bool, name="training")]
        )
        def step(x: Any, training: Any) -> Any:
            if training:
                module.moving.assign_sub(0.5 * (module.moving - tf.reduce_mean(x, [0, 1])))
            return {"out": x * module.scale + module.moving}

        module.step = step
        return module


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tensorflow as tf

    module, folder = Module.made(), tmp_path_factory.mktemp("modules") / "module"
    tf.saved_model.save(module, str(folder), signatures={"step": module.step})
    return folder


def test_a_signature_of_tensorflow_2_updates_what_it_writes(saved: Path) -> None:
    found = trace_saved_model(saved, training=True)
    assert len(found.state) == 2
    (moving,) = (one for one in found.state if one.output)
    (scale,) = (one for one in found.state if not one.output)
    assert (moving.trainable, scale.trainable) == (False, True)
    assert (moving.default[0], scale.default[0]) == (1, 2)
    x = np.random.default_rng(0).standard_normal((5, 4, C)).astype("f")
    module, state = Module.made(), {}
    exported = finish(found, TRAINING)
    for factor in (1, 2, 3):
        y, new = run(exported, {"x": factor * x, **state})
        close(y, module.step(factor * x, True)["out"].numpy())
        close(new, module.moving.numpy())
        state = {moving.input.name: new}
    assert carry_out_graph(found, TRAINING).notes == ()


def test_a_signature_in_inference_writes_nothing(saved: Path) -> None:
    found = trace_saved_model(saved)
    assert found.state == ()
    assert found.origin.notes == ()  # type: ignore[union-attr]


def test_a_file_that_does_not_say_what_is_trainable(tmp_path: Path) -> None:
    import tensorflow as tf

    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        x = tf.compat.v1.placeholder("float32", [None, 4, C], "x")
        update(variable("moving").assign(tf.reduce_mean(x, [0, 1])))
        count = tf.compat.v1.get_variable("count", initializer=3)
        y = x * variable("scale") * tf.cast(count, "float32")
        session.run(tf.compat.v1.global_variables_initializer())
        graph.clear_collection("trainable_variables")
        tf.compat.v1.saved_model.simple_save(session, str(tmp_path / "saved"), {"x": x}, {"y": y})
    found = trace_saved_model(tmp_path / "saved", training=True)
    assert {one.name: one.trainable for one in found.state} == {"moving": False, "count": False, "scale": True}
    (note,) = found.origin.notes  # type: ignore[union-attr]
    assert note.startswith("the file does not say which variables are trainable")
