"""tf2onnx converts everything but the markers, which pass through it as nodes of a domain of their own."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
import onnx_ir as ir

from bnpass.exporting.bfloat16 import as_it_is, widened
from bnpass.exporting.capture.calls import Calls, NormCall
from bnpass.exporting.errors import ExportError, first_line
from bnpass.exporting.in_order import in_order
from bnpass.exporting.optimizing import optimized
from bnpass.exporting.random_ops import handlers, keyless
from bnpass.exporting.trace import Traced

MARKER = "BnpassMarker"
DOMAIN = "bnpass.export"
TOKEN = "token"  # noqa: S105  the name of an attribute

_BINARY = {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min"}


def converted(traced: Traced, opset: int, seed: int = 0) -> ir.Model:
    """Convert a frozen graph; inputs and outputs keep the names of their tensors.

    Args:
        traced: The graph.
        opset: Version of the default ONNX domain.
        seed: Of its random nodes.

    Raises:
        ExportError: An op has no counterpart in ONNX; the message names it and the layer that made it.
    """
    import tensorflow as tf
    import tf2onnx
    from onnx import helper

    for name in ("tf2onnx", "tf2onnx.tfonnx", "tf2onnx.tf_utils", "tf2onnx.optimizer"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    outputs = [port.tensor for port in (*traced.outputs, *(s.output for s in traced.state if s.output))]
    with _refusals():
        graph_def = widened(keyless(traced.graph_def, outputs), outputs)
    present = {node.name for node in graph_def.node}
    ports = [*traced.inputs, *(s.input for s in traced.state)]
    inputs = [port.tensor for port in ports if port.tensor.split(":")[0] in present]
    with in_order(), as_it_is(), tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        tf2onnx.tfonnx.clear_functions()
        with tf2onnx.tf_loader.tf_session(graph=graph), _settings(traced), _refusals():
            found = tf2onnx.tfonnx.process_tf_graph(
                graph,
                opset=opset,
                continue_on_error=False,
                custom_op_handlers={
                    "PyFuncStateless": (_handler(traced.calls), []),
                    "L2Loss": (_l2_loss, []),
                    "Erfc": (_erfc, []),
                    **handlers(seed),
                },
                extra_opset=[helper.make_opsetid(DOMAIN, 1)],
                input_names=inputs,
                output_names=outputs,
            )
        _widen_scalars(found)
        model: ir.Model = ir.from_proto(optimized(found).make_model("model"))
    _check_converted(model, opset)
    for value in model.graph.inputs:
        _lift_transposes(value)
    return model


@contextlib.contextmanager
def _settings(traced: Traced) -> Iterator[None]:
    """Keep tf2onnx from making LSTM and GRU of loops whose weights are inputs: it wants constants."""
    from tf2onnx import tfonnx

    names = [name for name in vars(tfonnx) if name.startswith("rewrite") and ("lstm" in name or "gru" in name)]
    skipped = {name: lambda _graph, ops: ops for name in names} if traced.state else {}
    with contextlib.ExitStack() as stack:
        for name, function in skipped.items():
            stack.enter_context(mock.patch.object(tfonnx, name, function))
        yield


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Make a refusal of whatever tf2onnx raises."""
    try:
        yield
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(f"tf2onnx does not convert the model: {type(error).__name__}: {first_line(error)}") from error


def _handler(calls: Calls) -> Any:  # noqa: ANN401
    def convert(ctx: Any, node: Any, name: str, _args: Any) -> None:  # noqa: ANN401
        token = node.get_attr("token").s.decode()
        call = calls.of(token)
        if call is None:
            raise ExportError(f"'{name}' calls Python (tf.py_function), which ONNX cannot")
        node.type, node.domain = MARKER, DOMAIN
        for attribute in list(node.attr):
            del node.attr[attribute]
        node.set_attr(TOKEN, token)
        _set_shapes(ctx, node, call)
        if isinstance(call, NormCall) and channels_last(call):
            rank = len(call.layer.input_shape)
            _turn(ctx, node, rank)

    return convert


def _l2_loss(ctx: Any, node: Any, _name: str, _args: Any) -> None:  # noqa: ANN401
    """Write Σx²/2, a regularizer of tf_keras, for which tf2onnx has no handler."""
    from tf2onnx import utils

    dtype, outputs = ctx.get_dtype(node.output[0]), list(node.output)
    half = ctx.make_const(utils.make_name(node.name), np.array(0.5, utils.map_onnx_to_numpy_type(dtype)))
    ctx.remove_node(node.name)
    squares = ctx.make_node("ReduceSumSquare", list(node.input), {"keepdims": 0}, shapes=[[]], dtypes=[dtype])
    ctx.make_node("Mul", [squares.output[0], half.output[0]], outputs=outputs, shapes=[[]], dtypes=[dtype])


def _erfc(ctx: Any, node: Any, _name: str, _args: Any) -> None:  # noqa: ANN401
    """Write erfc(x) as 1 − erf(x), of which gelu wants no more than absolute precision."""
    dtype, shape, output = ctx.get_dtype(node.output[0]), ctx.get_shape(node.output[0]), node.output[0]
    x = node.input[0]
    ctx.remove_node(node.name)
    from tf2onnx import utils

    erf = ctx.make_node("Erf", [x], shapes=[shape], dtypes=[dtype]).output[0]
    one = ctx.make_const(utils.make_name("one"), np.ones([], utils.map_onnx_to_numpy_type(dtype))).output[0]
    ctx.make_node("Sub", [one, erf], outputs=[output], shapes=[shape], dtypes=[dtype], name=node.name)


def _set_shapes(ctx: Any, node: Any, call: Any) -> None:  # noqa: ANN401
    """Say what comes out: TensorFlow does not know it of the op that a marker was."""
    ctx.copy_shape(node.input[0], node.output[0])
    if isinstance(call, NormCall):
        for output in node.output[1:]:
            ctx.set_shape(output, [call.layer.channels])


def channels_last(call: NormCall) -> bool:
    """Whether a marker is put on channels that come first, between two Transposes that cancel with their neighbours.

    Masks and adjustments have axes of their own: with them the marker keeps the order of axes.
    """
    rank = len(call.layer.input_shape)
    return rank > 2 and call.layer.axes == (rank - 1,) and not {"mask", "adjust_scale"} & set(call.inputs)


def _turn(ctx: Any, node: Any, rank: int) -> None:  # noqa: ANN401
    from tf2onnx import utils

    first, last = [0, rank - 1, *range(1, rank - 1)], [0, *range(2, rank), 1]
    shape = ctx.get_shape(node.input[0])
    before = ctx.insert_new_node_on_input(node, "Transpose", node.input[0], name=utils.make_name(node.name), perm=first)
    turned = None if shape is None else [shape[i] for i in first]
    after = ctx.insert_new_node_on_output("Transpose", node.output[0], name=utils.make_name(node.name), perm=last)
    for output, known in ((before.output[0], turned), (node.output[0], turned), (after.output[0], shape)):
        ctx.set_dtype(output, ctx.get_dtype(node.input[0]))
        if known is not None:
            ctx.set_shape(output, known)


def _widen_scalars(graph: Any) -> None:  # noqa: ANN401
    """Give scalar constants next to arrays the shape [1]: one alone makes tf2onnx give up on all its Transposes."""
    for node in list(graph.get_nodes()):
        if node.type not in _BINARY or len(node.input) != 2:
            continue
        for this, other in ((0, 1), (1, 0)):
            constant, shape = node.inputs[this], graph.get_shape(node.input[other])
            if constant is not None and constant.is_const() and shape and graph.get_shape(node.input[this]) == []:
                value = constant.get_tensor_value(as_list=False).reshape([1])
                node.input[this] = graph.make_const(f"{constant.name}_{node.name}", value).output[0]
    for node in graph.get_nodes():
        for inner in (node.get_body_graphs() or {}).values():
            _widen_scalars(inner)


def _lift_transposes(value: ir.Value) -> None:
    """Put the Transposes of a weight before its Casts, where they can be taken for its layout."""
    casts = [node for node, _ in value.uses() if node.op_type == "Cast"]
    for cast in casts:
        if len(cast.outputs[0].uses()) == 1 and not cast.outputs[0].is_graph_output():
            _lift_transposes(cast.outputs[0])
            ((after, _),) = cast.outputs[0].uses()
            if after.op_type == "Transpose":
                _swap(cast, after)


def _swap(cast: ir.Node, transpose: ir.Node) -> None:
    """Write Transpose, then Cast, for a Cast that a Transpose alone reads."""
    before = ir.Node("", "Transpose", [cast.inputs[0]], transpose.attributes.values(), name=transpose.name)
    after = ir.Node("", "Cast", [before.outputs[0]], cast.attributes.values(), name=cast.name)
    old, new = transpose.outputs[0], after.outputs[0]
    before.outputs[0].name, new.name = cast.outputs[0].name, old.name
    new.type, new.shape = old.type, old.shape if old.dtype is not None else None
    graph = transpose.graph
    if graph is None:
        return
    graph.insert_before(transpose, [before, after])
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove([transpose, cast], safe=True)


def _check_converted(model: ir.Model, opset: int) -> None:
    """Refuse what tf2onnx has left as an op of TensorFlow."""
    import onnx

    known: set[str] = {s.name for s in onnx.defs.get_all_schemas() if s.domain == ""}
    for node in model.graph.all_nodes():
        if node.op_type == MARKER:
            continue
        if node.domain not in ("", "ai.onnx") or node.op_type not in known:
            raise ExportError(f"op {node.op_type} of '{_layer_of(node)}' has no counterpart in ONNX (opset {opset})")


def _layer_of(node: ir.Node) -> str:
    """Return the scope that an op was made in: its layer."""
    parts: Sequence[str] = (node.name or "").split("/")
    return "/".join(parts[:-1]) or node.name or ""
