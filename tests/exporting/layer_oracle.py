"""Export and run real layers: ``python -m tests.exporting.layer_oracle legacy|keras3 REQUEST RESULT``.

Each case becomes a model of one layer, which is exported in both modes and then takes its steps eagerly. What goes
wrong is a result too.
"""

import sys
import traceback
from pathlib import Path
from typing import Any

import onnx_ir as ir
import tensorflow as tf

from bnpass.exporting.model import export_model
from bnpass.exporting.options import ExportOptions
from tests.conformance.layers.cases import Case, from_plain
from tests.conformance.layers.exchange import Arrays, part, read, write
from tests.conformance.layers.oracle import build
from tests.conformance.layers.oracle.eager import mask_tensor


def keras_of(case: Case) -> Any:
    """Return the package that the class of a case belongs to."""
    if case.api == "keras3":
        import keras
    else:
        import tf_keras as keras
    return keras


def dynamic_shape(case: Case) -> list[int | None]:
    """Return the shape of the input, of any batch where axis 0 holds no channels."""
    return list(case.shape) if 0 in case.axes else [None, *case.shape[1:]]


def functional(case: Case, layer: Any) -> Any:
    """Return a functional model of a layer that takes its input alone."""
    keras = keras_of(case)
    given = keras.Input(batch_shape=dynamic_shape(case), dtype=case.dtype, name="x")
    return keras.Model(given, layer(given))


def subclassed(case: Case, layer: Any) -> Any:
    """Return a subclassed model, whose call hands a mask and a mode on to the layer."""
    keras = keras_of(case)

    class Handing(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(dtype=case.dtype)  # it casts what it is given
            self.norm = layer

        def call(self, inputs: Any, training: Any = None) -> Any:
            x, *more = inputs if isinstance(inputs, list | tuple) else [inputs]
            mask = {"mask": more.pop(0)} if case.mask else {}
            return self.norm(x, training=more.pop() if more else training, **mask)

    return Handing()


def inputs_of(case: Case, arrays: Arrays, step: int) -> Any:
    """Return what the model is called with."""
    given = [tf.constant(arrays[f"x/{step}/0"], case.dtype)]
    given += [mask_tensor(case, arrays, step, 0)] if case.mask else []
    given += [tf.constant(case.steps[step])] if case.training == "tensor" else []
    return given if len(given) > 1 else given[0]


def signature_of(case: Case, arrays: Arrays) -> list[tuple[list[int | None], str]]:
    """Return shapes and types of the inputs of a subclassed model."""
    given = inputs_of(case, arrays, 0)
    tensors = given if isinstance(given, list) else [given]
    shapes = [dynamic_shape(case), *(list(tensor.shape) for tensor in tensors[1:])]
    if case.mask and 0 not in case.axes:
        shapes[1][0] = None
    return [(shape, tensor.dtype.name) for shape, tensor in zip(shapes, tensors, strict=True)]


def run(case: Case, arrays: Arrays, folder: Path) -> tuple[dict[str, Any], Arrays]:
    """Export the layer of a case and take its steps.

    Returns:
        The name of each variable; ``inference/0/y``; and ``s/0/y``, ``s/loss``, ``s/0/moving_mean`` and so on.
    """
    layer = build.new_layer(case)
    dtype = tf.dtypes.as_dtype(case.dtype)
    if case.api == "tf1":
        layer(tf.zeros(case.shape, dtype), training=False)
    else:
        layer.build(case.shape)
    if not case.own_start:
        build.set_start(layer, arrays)
    plain = not case.mask and case.training == "bool" and case.api != "tf1"
    model = functional(case, layer) if plain else subclassed(case, layer)
    first = inputs_of(case, arrays, 0)
    found: Arrays = {"inference/0/y": build.as_float64(model(first, training=False))} if case.training == "bool" else {}
    signature = None if plain else signature_of(case, arrays)
    for training in (False, True):
        exported = export_model(model, ExportOptions(training=training, signature=signature))
        ir.save(exported.model, folder / f"{case.id}.{'training' if training else 'inference'}.onnx")
    call = tf.function(model, autograph=False) if case.training == "tensor" else model
    for step in range(len(case.steps)):
        given = inputs_of(case, arrays, step)
        found[f"{step}/0/y"] = build.as_float64(call(given, training=True))
        found[f"{step}/loss"] = build.as_float64(tf.add_n([tf.cast(v, tf.float64) for v in model.losses] or [0.0]))
        found |= {f"{step}/0/{name}": build.flat(build.raw(v)) for name, v in build.variables(layer).items()}
    return {"names": {name: variable_name(v) for name, v in build.variables(layer).items()}}, found


def variable_name(variable: Any) -> str:
    """Return a variable's name, with the layers that it is in."""
    return str(getattr(variable, "path", None) or variable.name).split(":")[0]


def main(process: str, request: Path, result: Path) -> None:
    """Run every case of a request."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    plain, arrays = read(request)
    result.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {}
    found: Arrays = {}
    for one in plain:
        case = from_plain(one)
        assert (case.api == "keras3") == (process == "keras3"), case.id
        try:
            fact, values = run(case, part(arrays, case.id), result)
        except Exception:  # noqa: BLE001  the test of this case shows it
            fact, values = {"error": traceback.format_exc()[-3000:]}, {}
        facts[case.id] = fact
        found |= {f"{case.id}/{key}": value for key, value in values.items()}
    write(result, facts, found)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
