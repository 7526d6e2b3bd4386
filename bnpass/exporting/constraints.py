"""What an optimizer applies to weights after each step, as a model of its own: weights in, projected weights out."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from bnpass.exporting.capture.calls import Calls
from bnpass.exporting.converter import converted
from bnpass.exporting.errors import ExportError, first_line
from bnpass.exporting.interface import Settled, settle
from bnpass.exporting.ports import Port
from bnpass.exporting.trace import Traced, frozen, named_variables

CONSTRAINTS = "bnpass.constraints"
"""The key of the metadata that pairs weights with their projections."""

Constraint = Callable[[Any], Any]


def constraints_model(model: Any, state: Sequence[Settled], opset: int) -> ir.Model | None:  # noqa: ANN401
    """Return a model that applies the constraints of a model's variables; None if it has none.

    Args:
        model: Of Keras 3 or tf_keras.
        state: Its variables in the exported model, whose names and layouts the weights have here as well.
        opset: Version of the default ONNX domain.

    Raises:
        ExportError: A constraint cannot be traced or converted; its variable is named.
    """
    variables = named_variables(model)
    held = [(one, getattr(variables[one.state.name], "constraint", None)) for one in state]
    constrained = [(one, constraint) for one, constraint in held if constraint is not None]
    if not constrained:
        return None
    traced = _traced(constrained)
    found = converted(traced, opset)
    settle(found, traced)
    for domain in [domain for domain in found.opset_imports if domain]:
        del found.opset_imports[domain]
    found.producer_name, found.producer_version, found.graph.name = "bnpass", None, "constraints"
    lines = [
        {"variable": one.state.name, "input": one.input, "output": str(value.name)}
        for (one, _), value in zip(constrained, found.graph.outputs, strict=True)
    ]
    found.metadata_props[CONSTRAINTS] = json.dumps(lines)
    ShapeInferencePass(check_type=True, strict_mode=False, data_prop=False)(found)
    return found


def _traced(constrained: Sequence[tuple[Settled, Constraint]]) -> Traced:
    """Trace the constraints of some variables in one graph."""
    import tensorflow as tf

    def run(values: Sequence[Any]) -> Sequence[Any]:
        return [_projected(one, f, value) for (one, f), value in zip(constrained, values, strict=True)]

    defaults = [one.for_onnx(one.state.default) for one, _ in constrained]
    specs = [tf.TensorSpec(value.shape, value.dtype) for value in defaults]
    concrete = tf.function(run, autograph=False).get_concrete_function(specs)
    graph_def, _ = frozen(concrete, concrete.inputs[: len(specs)], concrete.outputs)
    inputs, outputs = [], []
    for (one, _), spec, given, made in zip(constrained, specs, concrete.inputs, concrete.outputs, strict=False):
        shape = tuple(spec.shape.as_list())
        inputs.append(Port(one.input, given.name, shape, spec.dtype.name))
        outputs.append(Port(f"{one.input}/constrained", made.name, shape, spec.dtype.name))
    return Traced(graph_def, tuple(inputs), tuple(outputs), (), Calls())


def _projected(one: Settled, constraint: Constraint, value: Any) -> Any:  # noqa: ANN401
    """Apply a constraint, which knows the framework's layout, to a weight in that of ONNX."""
    import tensorflow as tf

    autograph = tf.__internal__.autograph
    apply = autograph.tf_convert(lambda weight: constraint(weight), autograph.control_status_ctx())  # noqa: PLW0108
    order = one.permutation
    try:
        with tf.name_scope(f"constraint_of_{one.state.name.replace('/', '_')}"):
            weight = value if order is None else tf.transpose(value, np.argsort(order))
            result = tf.ensure_shape(tf.cast(apply(weight), value.dtype), weight.shape)
            return tf.identity(result if order is None else tf.transpose(result, order))
    except Exception as error:
        raise ExportError(f"the constraint of '{one.state.name}' cannot be traced: {first_line(error)}") from error
