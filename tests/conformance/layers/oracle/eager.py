"""Run a case eagerly in one replica; in a tf.function where ``training`` is a tensor of run time."""

from typing import Any

import tensorflow as tf

from tests.conformance.layers.cases import Case
from tests.conformance.layers.exchange import Arrays
from tests.conformance.layers.oracle import build


def run(case: Case, arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
    """Run the steps of a case.

    Returns:
        Facts of the layer, and for each step s ``s/0/y``, ``s/0/dx``, ``s/0/dgamma``, ``s/0/dbeta``, the variables
        after it as ``s/0/gamma`` and so on, and ``s/loss`` of the regularizers.
    """
    layer = build.new_layer(case)
    dtype = tf.dtypes.as_dtype(case.dtype)
    if case.api == "tf1":  # its variables are made by a call, inside the scope that it manages
        layer(tf.zeros(case.shape, dtype), training=False)
    else:
        layer.build(case.shape)
    if not case.own_start:
        build.set_start(layer, arrays)
    optimizer = sgd(case)
    forward = tf.function(layer_call(layer)) if case.training == "tensor" else layer_call(layer)

    found: Arrays = {}
    found |= {f"before/{name}": build.flat(build.raw(v)) for name, v in build.variables(layer).items()}
    for step, training in enumerate(case.steps):
        x = tf.constant(arrays[f"x/{step}/0"], dtype)
        w = tf.constant(arrays[f"w/{step}/0"], build.internal_dtype(case))
        mask = mask_tensor(case, arrays, step, 0)
        told = tf.constant(training) if case.training == "tensor" else training
        y, gradients = forward(x, w, mask, told)
        found[f"{step}/loss"] = build.as_float64(tf.add_n([tf.cast(v, tf.float64) for v in layer.losses] or [0.0]))
        if optimizer is not None and training:
            apply(optimizer, [(gradients[name], v) for name, v in build.variables(layer).items() if name in gradients])
        found[f"{step}/0/y"] = build.as_float64(y)
        found |= {f"{step}/0/d{name}": build.as_float64(g) for name, g in gradients.items() if name == "x"}
        found |= {f"{step}/0/d{name}": build.flat(g) for name, g in gradients.items() if name != "x"}
        found |= {f"{step}/0/{name}": build.flat(build.raw(v)) for name, v in build.variables(layer).items()}
    return {**build.facts(layer), "y_type": y.dtype.name}, found


def mask_tensor(case: Case, arrays: Arrays, step: int, replica: int) -> Any:
    """Return the mask of a step: boolean, unless it holds fractions."""
    if not case.mask:
        return None
    dtype = build.internal_dtype(case) if case.mask == "fractional" else tf.bool
    return tf.cast(tf.constant(arrays[f"mask/{step}/{replica}"]), dtype)


def layer_call(layer: Any) -> Any:
    """Return the function of one step: Y, and the gradients of sum(Y·w)."""

    def call(x: Any, w: Any, mask: Any, training: Any) -> Any:
        parameters = build.trained(layer)
        with tf.GradientTape() as tape:
            tape.watch(x)
            for parameter in parameters.values():
                tape.watch(parameter)
            y = layer(x, training=training) if mask is None else layer(x, training=training, mask=mask)
            loss = tf.reduce_sum(tf.cast(y, w.dtype) * w)
        gradients = tape.gradient(loss, {"x": x, **parameters}, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return y, gradients

    return call


def sgd(case: Case) -> Any:
    """Return the optimizer of the generation, which applies the constraints; None if nothing learns."""
    if not case.learning_rate:
        return None
    if case.api == "keras3":
        import keras

        return keras.optimizers.SGD(case.learning_rate)
    if case.api == "tf1" or case.graph:
        return tf.compat.v1.train.GradientDescentOptimizer(case.learning_rate)
    import tf_keras

    return tf_keras.optimizers.SGD(case.learning_rate)


def apply(optimizer: Any, pairs: list[Any]) -> None:
    """Let the variables learn."""
    if pairs:
        optimizer.apply_gradients(pairs)
