"""A live model becomes an ONNX model: traced, converted, assembled, settled."""

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from bnpass.collectives.order import order
from bnpass.exporting.assemble import Assembled, assemble
from bnpass.exporting.capture.calls import NormCall
from bnpass.exporting.converter import DOMAIN, MARKER, TOKEN, converted
from bnpass.exporting.errors import ExportError
from bnpass.exporting.fresh import reinitialized
from bnpass.exporting.interface import Settled, settle
from bnpass.exporting.options import ExportOptions
from bnpass.exporting.trace import Traced, trace
from bnpass.graph.idle import remove_idle
from bnpass.graph.nodes import scopes
from bnpass.graph.shapes import Shapes
from bnpass.ops.bodies import add_bodies
from bnpass.ops.schemas import register


@dataclass(frozen=True)
class Exported:
    """An exported model.

    Attributes:
        model: With the bodies of our operators, where it has any.
        traced: What it was converted from.
        assembled: What became of its batch normalization.
        state: Its variables, in training.
    """

    model: ir.Model
    traced: Traced
    assembled: Assembled
    state: tuple[Settled, ...]


def export_model(model: Any, options: ExportOptions) -> Exported:  # noqa: ANN401  a model of Keras
    """Export a live model of Keras 3 or tf_keras.

    Raises:
        UsageError: The shapes of the inputs are not known.
        ExportError: A layer or an op cannot be exported; it is named.
    """
    traced = trace(model, training=options.training, signature=options.signature)
    if options.reinitialize is not None:
        traced = reinitialized(model, traced, options.reinitialize, options.signature)
    return finish(traced, options)


def finish(traced: Traced, options: ExportOptions) -> Exported:
    """Make an ONNX model of a traced graph."""
    model = converted(traced, options.opset, options.seed)
    _check_markers(traced, model)
    assembled = assemble(model, traced.calls, group=options.group, seed=options.seed)
    state = settle(model, traced)
    model.graph.opset_imports.pop(DOMAIN, None)
    model.opset_imports.pop(DOMAIN, None)
    model.producer_name, model.producer_version = "bnpass", None
    model.graph.name = "model"
    order(model, _modes(model))
    register()
    add_bodies(model)
    ShapeInferencePass(check_type=True, strict_mode=False, data_prop=False)(model)
    remove_idle(next(scopes(model)), Shapes(model))  # where Transposes were, tf2onnx leaves Reshapes
    return Exported(model, traced, assembled, state)


def _check_markers(traced: Traced, model: ir.Model) -> None:
    """Make sure that the conversion has lost no call of batch normalization.

    Raises:
        ExportError: It has; the layer is named.
    """
    left = {node.attributes[TOKEN].as_string() for node in model.graph.all_nodes() if node.op_type == MARKER}
    for node in traced.graph_def.node:
        token = node.attr["token"].s.decode() if node.op == "PyFuncStateless" else ""
        call = traced.calls.of(token)
        if isinstance(call, NormCall) and token not in left:
            raise ExportError(f"the conversion has lost a call of batch normalization '{call.layer_name}'")


def _modes(model: ir.Model) -> list[str]:
    """Return the inputs that may decide about the mode: boolean scalars, the same on all replicas."""
    return [str(v.name) for v in model.graph.inputs if v.dtype == ir.DataType.BOOL and v.shape == ir.Shape([])]
