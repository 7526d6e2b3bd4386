"""Run a case on several replicas, by tf.distribute.MirroredStrategy on logical CPU devices."""

from functools import cache
from typing import Any

import tensorflow as tf

from tests.conformance.layers.cases import Case
from tests.conformance.layers.exchange import Arrays
from tests.conformance.layers.oracle import build
from tests.conformance.layers.oracle.eager import layer_call, mask_tensor


def run(case: Case, arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
    """Run the steps of a case; results as in ``eager.run``, those of replica r below ``s/r``.

    The variables are each replica's own copy. Gradients of gamma and beta are local to each replica.
    """
    count = len(case.shares)
    replicas = strategy(count)
    with replicas.scope():
        layer = build.new_layer(case)
        layer.build(build.build_shape(case))
        if not case.own_start:
            build.set_start(layer, arrays)
    call = layer_call(layer)
    dtype = tf.dtypes.as_dtype(case.dtype)

    @tf.function
    def one_step(x: Any, w: Any, mask: Any, training: bool) -> Any:
        return replicas.run(call, args=(x, w, mask, training))

    found: Arrays = {}
    for step, training in enumerate(case.steps):
        xs = [tf.constant(arrays[f"x/{step}/{r}"], dtype) for r in range(count)]
        ws = [tf.constant(arrays[f"w/{step}/{r}"], build.internal_dtype(case)) for r in range(count)]
        masks = [mask_tensor(case, arrays, step, r) for r in range(count)]
        y, gradients = one_step(spread(replicas, xs), spread(replicas, ws), spread(replicas, masks), training)
        for r, local in enumerate(replicas.experimental_local_results(y)):
            found[f"{step}/{r}/y"] = build.as_float64(local)
        for name, gradient in gradients.items():
            for r, local in enumerate(replicas.experimental_local_results(gradient)):
                found[f"{step}/{r}/d{name}"] = build.as_float64(local) if name == "x" else build.flat(local)
        for name, variable in build.variables(layer).items():
            for r, local in enumerate(replicas.experimental_local_results(build.raw(variable))):
                found[f"{step}/{r}/{name}"] = build.flat(local)
    return build.facts(layer), found


@cache
def strategy(count: int) -> Any:
    """Return the one strategy of the process: a second one would use the names of collectives again, and fail."""
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)])


def spread(replicas: Any, values: list[Any]) -> Any:
    """Hand each replica its own value."""
    if values[0] is None:
        return None
    return replicas.experimental_distribute_values_from_function(lambda ctx: values[ctx.replica_id_in_sync_group])
