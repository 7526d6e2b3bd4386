"""Models of TensorFlow 1, built and compared in a process of its own: ``python -m … v1 FOLDER``, or v2.

TF_USE_LEGACY_KERAS=1 must be set: tf.compat.v1.layers are then those of tf_keras. Prints what was found, as JSON.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

EPSILON = 2e-3


def network(x: Any, training: Any, *, fused: bool, axis: int = -1) -> Any:
    import tensorflow as tf

    layers = tf.compat.v1.layers
    for i, filters in enumerate((4, 6)):
        x = layers.conv2d(x, filters, 3, padding="same", name=f"conv{i}")
        x = layers.batch_normalization(x, axis, epsilon=EPSILON, training=training, fused=fused, name=f"bn{i}")
        x = tf.nn.relu(x)
    x = layers.dense(layers.flatten(x), 5, name="dense")
    x = layers.batch_normalization(x, training=training, center=False, name="bn2")
    return tf.identity(x, "y")


def main(case: str, folder: Path) -> dict[str, object]:
    return CASES[case](folder)


def prepared(write: Callable[[Any], Any], *, resource: bool = False) -> tuple[Any, Any, np.ndarray]:
    """Return a graph with statistics that are not those of a fresh model, a session and data."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    with tf.Graph().as_default() as graph:
        tf.compat.v1.set_random_seed(1)
        x = tf.compat.v1.placeholder("float32", [None, 8, 8, 3], "x")
        with tf.compat.v1.variable_scope("net", use_resource=resource):
            write(x)
        session = tf.compat.v1.Session(graph=graph)
        session.run(tf.compat.v1.global_variables_initializer())
        for variable in tf.compat.v1.global_variables():
            low = -0.2 if "moving_mean" in variable.name else 0.5  # or relu would be 0 everywhere
            if "moving" in variable.name or "gamma" in variable.name:
                variable.load(rng.uniform(low, 1 + low, variable.shape.as_list()).astype("f"), session)
    return graph, session, rng.standard_normal((4, 8, 8, 3)).astype("f")


def result(traced: Any, X: np.ndarray, wants: Sequence[np.ndarray]) -> dict[str, object]:
    """Export, run, and say what there is."""
    from bnpass.exporting.model import finish
    from bnpass.exporting.options import ExportOptions
    from tests.unit.exporting.graphs.models import ops, run

    exported = finish(traced, ExportOptions())
    gots = run(exported, {traced.inputs[0].name: X})[: len(traced.outputs)]  # what a step updates: see tf1_steps.py
    assert all(np.ptp(w) > 0 and (w.ndim < 2 or np.ptp(w, axis=0).max() > 0.1) for w in wants)
    errors = [float(np.abs(g - w).max() / np.abs(w).max()) for g, w in zip(gots, wants, strict=True)]
    return {
        "inputs": [p.name for p in traced.inputs],
        "outputs": [p.name for p in traced.outputs],
        "layers": dict(exported.assembled.layers),
        "ops": dict(ops(exported)),
        "error": max(errors),
    }


def live(training: bool, fused: bool, resource: bool) -> Callable[[Path], dict[str, object]]:
    def case(_: Path) -> dict[str, object]:
        from bnpass.exporting.graphs import trace_graph

        graph, session, X = prepared(lambda x: network(x, training, fused=fused), resource=resource)
        traced = trace_graph(graph, session, ["x"], ["net/y"])
        return result(traced, X, [session.run("net/y:0", {"x:0": X})])

    return case


def placeholder(mode: bool) -> Callable[[Path], dict[str, object]]:
    def case(_: Path) -> dict[str, object]:
        import tensorflow as tf

        from bnpass.exporting.graphs import trace_graph

        def write(x: Any) -> Any:
            return network(x, tf.compat.v1.placeholder("bool", [], "is_training"), fused=True)

        graph, session, X = prepared(write, resource=tf.compat.v1.control_flow_v2_enabled())
        traced = trace_graph(graph, session, ["x"], ["net/y"], training=mode)
        return result(traced, X, [session.run("net/y:0", {"x:0": X, "net/is_training:0": mode})])

    return case


def frozen(folder: Path) -> dict[str, object]:
    import tensorflow as tf

    from bnpass.exporting.graphs import read_graph_def, trace_graph_def

    graph, session, X = prepared(lambda x: network(x, False, fused=False))
    constant = tf.compat.v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["net/y"])
    (folder / "frozen.pb").write_bytes(constant.SerializeToString())
    traced = trace_graph_def(read_graph_def(folder / "frozen.pb"))
    return result(traced, X, [session.run("net/y:0", {"x:0": X})])


def saved(mode: bool) -> Callable[[Path], dict[str, object]]:
    def case(folder: Path) -> dict[str, object]:
        import tensorflow as tf

        from bnpass.exporting.graphs import trace_saved_model

        def write(x: Any) -> Any:
            return network(x, tf.compat.v1.placeholder_with_default(False, [], "mode"), fused=True)

        graph, session, X = prepared(write, resource=tf.compat.v1.control_flow_v2_enabled())
        names = {"image": "x:0", "is_training": "net/mode:0"}
        inputs = {key: graph.get_tensor_by_name(name) for key, name in names.items()}
        with graph.as_default():
            tf.compat.v1.saved_model.simple_save(
                session, str(folder / "saved"), inputs, {"logits": graph.get_tensor_by_name("net/y:0")}
            )
        want = session.run("net/y:0", {"x:0": X, "net/mode:0": mode})
        return result(trace_saved_model(folder / "saved", training=mode), X, [want])

    return case


def updates(_: Path) -> dict[str, object]:
    """Moving averages are computed in the graph and are outputs; a step is run for the sake of its y alone."""
    import tensorflow as tf

    from bnpass.exporting.graphs import trace_graph

    def write(x: Any) -> Any:
        y, mean, var = tf.compat.v1.nn.fused_batch_norm(x, [1.0, 2, 3], [0.0, 1, 2], is_training=True, name="bn/fused")
        moving = tf.compat.v1.get_variable("moving_mean", [3])
        update = tf.compat.v1.assign(moving, 0.9 * moving + 0.1 * mean)
        with tf.control_dependencies([update]):
            tf.identity(y, "y")
        tf.add(0.9 * moving, 0.1 * mean, "mean")
        tf.multiply(0.1, var, "var")

    graph, session, X = prepared(write)
    traced = trace_graph(graph, session, ["x"], ["net/mean", "net/var", "net/y"])
    wants = session.run(["net/mean:0", "net/var:0"], {"x:0": X})
    return result(traced, X, [*wants, session.run("net/y:0", {"x:0": X})])


def averages(_: Path) -> dict[str, object]:
    """The idiom of tutorials of 2016: tf.cond over batch moments and an ExponentialMovingAverage."""
    import tensorflow as tf

    from bnpass.exporting.graphs import trace_graph

    def write(x: Any) -> Any:
        phase = tf.compat.v1.placeholder("bool", [], "phase_train")
        beta, gamma = (tf.compat.v1.get_variable(n, [3], initializer=tf.ones_initializer()) for n in ("beta", "gamma"))
        batch_mean, batch_var = tf.nn.moments(x, [0, 1, 2], name="moments")
        ema = tf.compat.v1.train.ExponentialMovingAverage(decay=0.5)

        def with_update() -> Any:
            with tf.control_dependencies([ema.apply([batch_mean, batch_var])]):
                return tf.identity(batch_mean), tf.identity(batch_var)

        mean, var = tf.cond(phase, with_update, lambda: (ema.average(batch_mean), ema.average(batch_var)))
        tf.identity(tf.nn.batch_normalization(x, mean, var, beta, gamma, 1e-3), "y")

    graph, session, X = prepared(write, resource=tf.compat.v1.control_flow_v2_enabled())
    for _ in range(3):
        session.run("net/y:0", {"x:0": X * 2 + 1, "net/phase_train:0": True})
    traced = trace_graph(graph, session, ["x"], ["net/y"])
    return result(traced, X, [session.run("net/y:0", {"x:0": X, "net/phase_train:0": False})])


CASES: dict[str, Callable[[Path], dict[str, object]]] = {
    "inference": live(training=False, fused=True, resource=False),
    "inference-not-fused": live(training=False, fused=False, resource=True),
    "training": live(training=True, fused=True, resource=True),
    "training-not-fused": live(training=True, fused=False, resource=False),
    "placeholder-false": placeholder(mode=False),
    "placeholder-true": placeholder(mode=True),
    "frozen": frozen,
    "saved": saved(mode=False),
    "saved-training": saved(mode=True),
    "updates": updates,
    "averages": averages,
}

WITH_CONTROL_FLOW = ["inference", "placeholder-false", "placeholder-true", "saved-training", "updates", "averages"]
"""What TensorFlow 1 writes differently: variables that are references, Switch and Merge."""

if __name__ == "__main__":
    import tensorflow as tf

    if sys.argv[1] == "v1":
        tf.compat.v1.disable_v2_behavior()
    tf.get_logger().setLevel("ERROR")
    place = Path(sys.argv[2])
    for name in CASES if sys.argv[1] == "v2" else WITH_CONTROL_FLOW:
        (place / name).mkdir()
        print(json.dumps({name: main(name, place / name)}), flush=True)  # noqa: T201
