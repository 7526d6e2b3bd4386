"""What cannot be said as a case: one function for each, of the cases whose name begins with its own."""

import warnings
from typing import Any

import numpy as np
import tensorflow as tf

from tests.conformance.layers.cases import Case
from tests.conformance.layers.exchange import Arrays
from tests.conformance.layers.oracle import build, replicas

Result = tuple[dict[str, Any], Arrays]
v1 = tf.compat.v1


def run(case: Case, arrays: Arrays) -> Result:
    """Run the probe that a case names."""
    found: Result = globals()[case.name.partition(" ")[0]](case, arrays)
    return found


def _built(case: Case, arrays: Arrays) -> Any:
    layer = build.new_layer(case)
    layer.build(case.shape)
    if not case.own_start:
        build.set_start(layer, arrays)
    return layer


def _values(layer: Any) -> Arrays:
    return {name: build.flat(build.raw(v)) for name, v in build.variables(layer).items()}


def fused_mask_warning(case: Case, arrays: Arrays) -> Result:
    """Give the warnings of a fused layer that is called with a mask."""
    layer = _built(case, arrays)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        layer(tf.constant(arrays["x/0/0"], tf.float32), training=True, mask=tf.constant(arrays["mask/0/0"]) > 0)
    return {"warnings": [str(w.message) for w in seen]}, {}


def mean_of_copies(case: Case, arrays: Arrays) -> Result:
    """Give what a program reads of a statistic of which each replica has a copy."""
    strategy = replicas.strategy(len(case.shares))
    with strategy.scope():
        layer = build.new_layer(case)
        layer.build(build.build_shape(case))
        build.set_start(layer, arrays)
    xs = [tf.constant(arrays[f"x/0/{r}"], tf.float32) for r in range(len(case.shares))]
    strategy.run(lambda x: layer(x, training=True), args=(replicas.spread(strategy, xs),))
    copies = strategy.experimental_local_results(layer.moving_mean)
    found = {f"copy/{r}": build.flat(copy) for r, copy in enumerate(copies)}
    return {}, found | {"read": np.asarray(layer.moving_mean.numpy(), np.float64)}


def tf1_in_a_function(_: Case, arrays: Arrays) -> Result:
    """Call the function of tf.layers eagerly, and in a tf.function."""
    x = tf.constant(arrays["x/0/0"], tf.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        y = v1.layers.batch_normalization(x, training=True)
        try:
            tf.function(lambda value: v1.layers.batch_normalization(value, training=True))(x)
        except Exception as error:  # noqa: BLE001  what it raises is the result
            return {"error_in_function": type(error).__name__}, {"y": build.as_float64(y)}
    return {}, {"y": build.as_float64(y)}


def updates_not_run(_: Case, arrays: Arrays) -> Result:
    """Run the output of a training call in a graph, and no update."""
    with tf.Graph().as_default(), v1.Session() as session:
        y = v1.layers.batch_normalization(tf.constant(arrays["x/0/0"], tf.float32), training=True, name="bn")
        updates = v1.get_collection(v1.GraphKeys.UPDATE_OPS)
        variables = {v.op.name: v for v in v1.global_variables()}
        session.run(v1.global_variables_initializer())
        session.run(y)
        without = session.run(variables)
        session.run(updates)
        after = session.run(variables)
    facts = {"updates": len(updates), "variables": sorted(variables)}
    values = {f"without/{k.rpartition('/')[2]}": v.astype(np.float64) for k, v in without.items()}
    return facts, values | {f"after/{k.rpartition('/')[2]}": v.astype(np.float64) for k, v in after.items()}


def reuse(_: Case, arrays: Arrays) -> Result:
    """Call tf.layers twice with one name, and run the updates of the first call, then of the second."""
    keys = v1.GraphKeys
    with tf.Graph().as_default(), v1.Session() as session:
        xs = [tf.constant(arrays[f"x/{i}/0"], tf.float32) for i in (0, 1)]
        ys = [v1.layers.batch_normalization(x, training=True, name="stem", reuse=bool(i)) for i, x in enumerate(xs)]
        updates = v1.get_collection(keys.UPDATE_OPS)
        variables = {v.op.name: v for v in v1.global_variables()}
        trainable = [v.op.name for v in v1.get_collection(keys.TRAINABLE_VARIABLES)]
        for name in ("gamma", "beta", "moving_mean", "moving_variance"):
            variables[f"stem/{name}"].load(arrays[f"start/{name}"], session)
        outputs = session.run(ys)
        session.run(updates[:2])
        session.run(updates[2:])
        found = {f"after/{k.rpartition('/')[2]}": v.astype(np.float64) for k, v in session.run(variables).items()}
    found |= {f"y/{i}": y.astype(np.float64) for i, y in enumerate(outputs)}
    return {"updates": len(updates), "variables": sorted(variables), "trainable": sorted(trainable)}, found


def shared_layer(case: Case, arrays: Arrays) -> Result:
    """Call one layer twice in a step."""
    layer = _built(case, arrays)
    xs = [tf.constant(arrays[f"x/{i}/0"], tf.float32) for i in (0, 1)]
    ws = [tf.constant(arrays[f"w/{i}/0"], tf.float32) for i in (0, 1)]
    with tf.GradientTape() as tape:
        tape.watch(xs)
        ys = [layer(x, training=True) for x in xs]
        loss = tf.add_n([tf.reduce_sum(y * w) for y, w in zip(ys, ws, strict=True)])
    *dxs, dgamma, dbeta = tape.gradient(loss, [*xs, layer.gamma, layer.beta])
    found = {f"after/{name}": value for name, value in _values(layer).items()}
    found |= {f"y/{i}": build.as_float64(y) for i, y in enumerate(ys)}
    found |= {f"dx/{i}": build.as_float64(dx) for i, dx in enumerate(dxs)}
    return {}, found | {"dgamma": build.flat(dgamma), "dbeta": build.flat(dbeta)}


def config(case: Case, _: Arrays) -> Result:
    """Give the config of a layer before and after it is built."""
    layer = build.new_layer(case)
    before = layer.get_config()
    layer.build(case.shape)
    after = layer.get_config()
    adjusted = type(layer)(adjustment=lambda _: (1.0, 0.0), fused=False).get_config()
    again = type(layer).from_config(after)
    return {
        "axis": [before["axis"], list(after["axis"])],
        "keys": sorted(after),
        "keys_adjusted": sorted(adjusted),
        "synchronized": [bool(layer.synchronized), bool(again.synchronized)],
    }, {}


def renorm_arguments(_case: Case, _: Arrays) -> Result:
    """Give what Keras 3 says about wrong limits, and about unknown ones without renorm."""
    import keras

    made = keras.layers.BatchNormalization
    facts: dict[str, Any] = {"kept": made(renorm_clipping={"nine": 9.0}).get_config()["renorm_clipping"]}
    for name, clipping in (("rmax", {"rmax": 0.5, "rmin": 1.0}), ("dmax", {"dmax": -1.0})):
        try:
            made(renorm=True, renorm_clipping=clipping)
        except ValueError as error:
            facts[name] = str(error)
    return facts, {}


def its_own_output(case: Case, arrays: Arrays) -> Result:
    """Call a layer on what it gave the step before; all but the last in a tf.function of its own, if asked for."""
    layer = _built(case, arrays)
    y = tf.constant(arrays["x/0/0"], tf.float32)
    found: Arrays = {}
    for step, training in enumerate(case.steps):
        wrapped = case.training == "tensor" and step + 1 < len(case.steps)
        call = tf.function(layer) if wrapped else layer
        y = call(y, training=training)
        found |= {f"{step}/y": build.as_float64(y)}
        found |= {f"{step}/{name}": value for name, value in _values(layer).items()}
    return {}, found


def partial_batches(case: Case, arrays: Arrays) -> Result:
    """Call a layer on an empty batch, in a strategy that is told to expect one."""
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    strategy.extended.enable_partial_batch_handling = True
    with strategy.scope():
        layer = _built(case, arrays)

    def step() -> Any:
        parameters = build.trained(layer)
        with tf.GradientTape() as tape:
            y = layer(tf.constant(arrays["x/0/0"], tf.float32), training=True)
            loss = tf.reduce_sum(y)
        return y, tape.gradient(loss, parameters), [v.name for v in tape.watched_variables()]

    y, gradients, watched = strategy.run(step)
    found = {"y": build.as_float64(y)} | {f"d{name}": build.flat(value) for name, value in gradients.items()}
    return {"watched": watched, "fused": layer.fused}, found | _values(layer)
