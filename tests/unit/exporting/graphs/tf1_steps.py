"""Steps of training of TensorFlow 1, in a process of its own: ``python -m … v1 FOLDER``, or v2.

Each step runs the outputs and the updates in one session, and the exported model, whose updated state is fed back to
it. Prints what was found, as JSON. TF_USE_LEGACY_KERAS=1 must be set, as for tf1_models.py.
"""

import json
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

STEPS = 4
SHAPE = (4, 6, 6, 3)

Write = Callable[[Any], Any]
Case = Callable[[Path], dict[str, object]]


@dataclass(frozen=True)
class Live:
    """A graph in a session.

    Attributes:
        graph: Its input is x, its output y.
        session: With variables that are not those of a fresh model.
        feeds: Besides x.
    """

    graph: Any
    session: Any
    feeds: Mapping[str, Any]

    @property
    def updates(self) -> list[Any]:
        """Return those that a session of the graph can run."""
        found = [getattr(one, "op", one) for one in self.graph.get_collection("update_ops")]
        return [op for op in found if op.graph is self.graph and self.graph.is_fetchable(op)]

    def variables(self) -> dict[str, np.ndarray]:
        found = self.graph.get_collection("variables")
        return {v.op.name: np.asarray(value) for v, value in zip(found, self.session.run(found), strict=True)}


def live(write: Write, *, resource: bool, **feeds: Any) -> Live:
    """Build a graph and give its variables values."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    with tf.Graph().as_default() as graph:
        tf.compat.v1.set_random_seed(1)
        x = tf.compat.v1.placeholder("float32", [None, *SHAPE[1:]], "x")
        with tf.compat.v1.variable_scope("net", use_resource=resource):
            y = write(x)
        tf.identity(y, "y")
        session = tf.compat.v1.Session(graph=graph)
        session.run(tf.compat.v1.global_variables_initializer())
        for variable in tf.compat.v1.global_variables():
            if variable.dtype.base_dtype.is_floating:
                low = -0.2 if "mean" in variable.name else 0.5
                variable.load(rng.uniform(low, 1 + low, variable.shape.as_list()).astype("f"), session)
    return Live(graph, session, {f"net/{name}:0": value for name, value in feeds.items()})


def steps(model: Live, *, checked: bool) -> dict[str, object]:
    """Export a graph, train it and the export, and say how they differ."""
    from bnpass.exporting.graphs import trace_graph

    traced = trace_graph(model.graph, model.session, ["x"], ["y"], training=True)
    return compared(traced, lambda X: step_of(model, X), model.variables(), checked=checked)


def step_of(model: Live, X: np.ndarray) -> tuple[list[Any], Mapping[str, np.ndarray]]:
    """Run a step in TensorFlow; return its output, with the sum of its losses, and its variables."""
    losses = list(model.graph.get_collection("regularization_losses"))
    y, loss, _ = model.session.run(["y:0", losses, model.updates], {"x:0": X, **model.feeds})
    return [y, *([np.float32(sum(loss))] if losses else [])], model.variables()


def compared(
    traced: Any, step: Callable[[np.ndarray], Any], before: Mapping[str, np.ndarray], *, checked: bool = False
) -> dict[str, object]:
    """Train an export beside what it was made of; errors are relative to the largest number.

    Args:
        traced: The export.
        step: Runs a step of what it was made of; returns its outputs and then its variables.
        before: The variables.
        checked: Whether an export's own check is run too.
    """
    from bnpass.exporting.model import finish
    from bnpass.exporting.options import ExportOptions
    from bnpass.exporting.partners import GraphPartner
    from bnpass.exporting.round_trip import check_round_trip
    from tests.unit.exporting.graphs.models import ops, run

    options = ExportOptions(training=True)
    exported = finish(traced, options)
    names = [str(value.name) for value in exported.model.graph.outputs]
    state = {s.input: s.for_onnx(s.state.default) for s in exported.state}
    rng, errors, moved = np.random.default_rng(2), {}, {}
    for number in range(STEPS):
        X = (rng.standard_normal(SHAPE) * (1 + number) + number).astype("f")
        got = dict(zip(names, run(exported, {traced.inputs[0].name: X, **state}), strict=True))
        values, after = step(X)
        wants = dict(zip(names, values, strict=False)) | {
            s.output: after[s.state.name] for s in exported.state if s.output
        }
        assert list(wants) == names, (list(wants), names)
        for name, want in wants.items():
            assert (got[name].shape, got[name].dtype) == (want.shape, want.dtype), name
            error = float(np.abs(got[name] - want).max() / np.abs(want).max())
            errors[name] = max(error, errors.get(name, 0.0))
        state |= {s.input: got[s.output] for s in exported.state if s.output}
        moved |= {s.state.name: float(np.abs(after[s.state.name] - before[s.state.name]).max()) for s in exported.state}
    check = check_round_trip(GraphPartner(traced.origin, exported), exported, options) if checked else None
    return {
        "errors": errors,
        "moved": sorted(name for name, distance in moved.items() if distance),
        "changed": sorted(name for name, value in after.items() if not np.array_equal(value, before[name])),
        "updated": sorted(s.state.name for s in exported.state if s.output),
        "state": sorted(s.state.name for s in exported.state),
        "trainable": sorted(s.state.name for s in exported.state if s.state.trainable),
        "notes": list(traced.origin.notes),
        "ops": dict(ops(exported)),
        "check": [check.status.name, *(one.name for one in check.outputs)] if check else None,
    }


def layer(**arguments: Any) -> Write:
    """Write two layers with a convolution in between."""

    def write(x: Any) -> Any:
        import tensorflow as tf

        layers = tf.compat.v1.layers
        x = layers.batch_normalization(x, name="bn0", **arguments)
        x = layers.conv2d(x, 4, 3, name="conv")
        return layers.batch_normalization(x, name="bn1", **arguments)

    return write


def of_placeholder(**arguments: Any) -> Write:
    def write(x: Any) -> Any:
        import tensorflow as tf

        return layer(training=tf.compat.v1.placeholder("bool", [], "training"), **arguments)(x)

    return write


def layer_of_keras(x: Any) -> Any:
    """Write a layer that puts its updates nowhere; half of them are put into the collection here."""
    import tensorflow as tf
    from tf_keras.src.layers.normalization.batch_normalization_v1 import BatchNormalization

    for name in ("told", "untold"):
        norm = BatchNormalization(momentum=0.7, name=name)
        x = norm(x, training=True)
        if name == "told":
            for update in norm.updates:
                tf.compat.v1.add_to_collection("update_ops", update)
    return x


def regularized(x: Any) -> Any:
    import tensorflow as tf

    def penalty(w: Any) -> Any:
        return 0.1 * tf.reduce_sum(tf.square(w))

    layers = tf.compat.v1.layers
    x = layers.conv2d(x, 4, 3, kernel_regularizer=penalty, name="conv")
    return layers.batch_normalization(x, gamma_regularizer=penalty, training=True, name="bn")


def run_by_the_output(x: Any) -> Any:
    """Write an idiom of training loops: the output comes after the updates."""
    import tensorflow as tf

    y = layer(**FAST)(x)
    with tf.control_dependencies(tf.compat.v1.get_collection("update_ops")):
        y = tf.identity(y)
    tf.compat.v1.get_collection_ref("update_ops").clear()
    return y


def read_afterwards(x: Any) -> Any:
    """Write a moving average that the output reads before an update, after it, and after a second one."""
    import tensorflow as tf

    x = tf.compat.v1.layers.batch_normalization(x, training=True, name="bn")
    moving = tf.compat.v1.get_variable("moving_mean", [3], trainable=False)
    before = tf.identity(moving) * 2.0
    with tf.control_dependencies([before, x]):
        first = tf.compat.v1.assign_add(moving, 0.5 * tf.reduce_mean(x, [0, 1, 2]) + 0.25)
    with tf.control_dependencies([first]):
        between = tf.identity(moving) * 3.0
    with tf.control_dependencies([between]):
        second = tf.compat.v1.assign(moving, between * 0.1)
    with tf.control_dependencies([second]):
        return x + before + between + tf.identity(moving)


def behind_a_condition(x: Any) -> Any:
    """Write updates that a decided condition comes after, and nothing else: it, or what it is a condition of."""
    import tensorflow as tf

    mode = tf.compat.v1.placeholder("bool", [], "training")
    first, second = (tf.compat.v1.get_variable(name, [3], trainable=False) for name in ("first", "second"))
    with tf.control_dependencies([tf.compat.v1.assign_sub(first, tf.reduce_mean(x, [0, 1, 2]))]):
        x = tf.cond(mode, lambda: tf.abs(x), lambda: x)
    with tf.control_dependencies([tf.compat.v1.assign_add(second, tf.reduce_mean(x, [0, 1, 2]))]):
        mode = tf.identity(mode)
    return tf.cond(mode, lambda: tf.square(x), lambda: x)


def shared(x: Any) -> Any:
    """Write one layer twice; the second update comes after the first one, as both say."""
    import tensorflow as tf

    for reuse in (False, True):
        with tf.control_dependencies(tf.compat.v1.get_collection("update_ops")):
            x = tf.identity(x)
            x = tf.compat.v1.layers.batch_normalization(x, name="bn", reuse=reuse, **FAST)
    return x


def in_no_order(x: Any) -> Any:
    """Write two sums into one variable: TensorFlow may take either first."""
    import tensorflow as tf

    total = tf.compat.v1.get_variable("total", [], trainable=False)
    for factor in (1.0, 2.0):
        update = tf.compat.v1.assign_add(total, factor * tf.reduce_mean(x))
        tf.compat.v1.add_to_collection("update_ops", update.op)
    return x * tf.compat.v1.get_variable("scale", [3])


def branches(x: Any) -> Any:
    import tensorflow as tf

    """Write batch normalization in a branch: in TensorFlow 1 its updates are run through what the branch returns."""

    def norm(training: bool) -> Any:
        y = tf.compat.v1.layers.batch_normalization(x, training=training, name="bn", reuse=tf.compat.v1.AUTO_REUSE)
        with tf.control_dependencies(tf.compat.v1.get_collection("update_ops") if training else []):
            return tf.identity(y)

    return tf.cond(tf.compat.v1.placeholder("bool", [], "training"), lambda: norm(True), lambda: norm(False))


def others(x: Any) -> Any:
    """Write an update that wants another input, a metric, and an embedding."""
    import tensorflow as tf

    v1 = tf.compat.v1
    other = v1.placeholder("float32", [3], "other")
    v1.add_to_collection("update_ops", v1.assign(v1.get_variable("last", [3], trainable=False), other))
    v1.assign_add(v1.get_variable("count", [], trainable=False), tf.reduce_sum(x))
    table = v1.get_variable("table", [5, 3])
    ids = tf.cast(tf.clip_by_value(x[..., 0], 0, 4), "int32")
    y = v1.layers.batch_normalization(x + tf.nn.embedding_lookup(table, ids), name="bn", **FAST)
    return y + tf.reduce_sum(tf.cast(tf.shape(table), "float32"))


def case(write: Write, *, resource: bool = True, checked: bool = False, **feeds: Any) -> Case:
    return lambda _: steps(live(write, resource=resource, **feeds), checked=checked)


def saved(folder: Path) -> dict[str, object]:
    """Save a model of TensorFlow 1 with its collections, and export the file."""
    import tensorflow as tf

    from bnpass.exporting.graphs import trace_saved_model

    model = live(of_placeholder(momentum=0.7), resource=True, training=True)
    with model.graph.as_default():
        ends = {"image": "x:0", "is_training": "net/training:0"}, {"logits": "y:0"}
        tensors = [{key: model.graph.get_tensor_by_name(name) for key, name in end.items()} for end in ends]
        tf.compat.v1.saved_model.simple_save(model.session, str(folder / "saved"), *tensors)
    traced = trace_saved_model(folder / "saved", training=True)
    return compared(traced, lambda X: step_of(model, X), model.variables())


FAST = {"training": True, "momentum": 0.7, "epsilon": 2e-3}
SLOW_RENORM = {"renorm": True, "renorm_momentum": 0.6}
CLIPPED = {"renorm_clipping": {"rmax": 1.5, "rmin": 0.6, "dmax": 0.8}}

CASES: dict[str, Case] = {
    "fused": case(layer(fused=True, **FAST), checked=True),
    "fused-reference": case(layer(fused=True, **FAST), resource=False),
    "composed": case(layer(fused=False, **FAST)),
    "composed-reference": case(layer(fused=False, **FAST), resource=False, checked=True),
    "renorm": case(layer(**SLOW_RENORM, **CLIPPED, **FAST), checked=True),
    "renorm-reference": case(layer(**SLOW_RENORM, **FAST), resource=False),
    "ghost": case(layer(virtual_batch_size=2, **FAST), checked=True),
    "axes": case(layer(axis=[1, 3], **FAST)),
    "not-trainable": case(layer(trainable=False, **FAST)),
    "placeholder-fused": case(of_placeholder(fused=True, momentum=0.7), training=True),
    "placeholder-composed": case(of_placeholder(fused=False, momentum=0.7), training=True),
    "keras": case(layer_of_keras),
    "regularized": case(regularized, checked=True),
    "run-by-the-output": case(run_by_the_output),
    "read-afterwards": case(read_afterwards, checked=True),
    "behind-a-condition": case(behind_a_condition, training=True),
    "shared": case(shared),
    "in-no-order": case(in_no_order),
    "branches": case(branches, training=True),
    "others": case(others, other=[1.0, 2.0, 3.0]),
    "saved": saved,
}

WITH_CONTROL_FLOW = ["placeholder-fused", "placeholder-composed", "behind-a-condition", "branches", "saved", "keras"]
"""What TensorFlow 1 writes differently."""

if __name__ == "__main__":
    import tensorflow as tf

    warnings.simplefilter("ignore")
    if sys.argv[1] == "v1":
        tf.compat.v1.disable_v2_behavior()
    tf.get_logger().setLevel("ERROR")
    place, chosen = Path(sys.argv[2]), WITH_CONTROL_FLOW if sys.argv[1] == "v1" else CASES
    for name in sys.argv[3:] or chosen:
        (place / name).mkdir()
        print(json.dumps({name: CASES[name](place / name)}), flush=True)  # noqa: T201
