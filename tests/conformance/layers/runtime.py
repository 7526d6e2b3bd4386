"""Run a model on one or several replicas in ONNX Runtime, fed with and giving float64 arrays."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from tests.conformance.layers.exchange import Arrays

Run = Callable[[Sequence[Arrays]], list[Arrays]]


def at_the_border(model: ir.Model) -> None:
    """Let a model take and give float32 where it has bfloat16, which no array of ONNX Runtime can hold."""
    for i, value in enumerate(model.graph.inputs):
        if value.dtype == ir.DataType.BFLOAT16:
            outer = ir.val(f"{value.name}", ir.DataType.FLOAT, value.shape)
            value.name = f"{value.name}_inside"
            cast = ir.node("Cast", [outer], {"to": int(ir.DataType.BFLOAT16)}, num_outputs=1)
            inside = cast.outputs[0]
            inside.name, inside.dtype, inside.shape = value.name, value.dtype, value.shape
            ir.convenience.replace_all_uses_with(value, inside)
            model.graph.inputs[i] = outer
            model.graph.insert_before(model.graph[0], cast)
    for i, value in enumerate(model.graph.outputs):
        if value.dtype == ir.DataType.BFLOAT16:
            cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, num_outputs=1)
            outer = cast.outputs[0]
            outer.name, outer.dtype, outer.shape = str(value.name), ir.DataType.FLOAT, value.shape
            value.name = f"{value.name}_inside"
            model.graph.outputs[i] = outer
            model.graph.append(cast)


def runner(model: ir.Model, replicas: int, *, kernels: bool = False) -> Run:
    """Return a function that runs a model on some replicas, in stock ONNX Runtime or by our kernels."""
    at_the_border(model)
    types = {str(value.name): value.dtype.numpy() for value in model.graph.inputs if value.dtype is not None}
    names = [str(value.name) for value in model.graph.outputs]
    if kernels:
        run = _with_kernels(model, names, replicas)
    else:
        run = _one(model, names) if replicas == 1 else _several(model, names)

    def typed(feeds: Sequence[Arrays]) -> list[Arrays]:
        given = [{name: np.asarray(feed[name], kind) for name, kind in types.items()} for feed in feeds]
        return [{name: np.asarray(value, np.float64) for name, value in one.items()} for one in run(given)]

    return typed


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return options


def _one(model: ir.Model, names: list[str]) -> Run:
    proto = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(proto, _options(), providers=["CPUExecutionProvider"])

    def run(feeds: Sequence[Arrays]) -> list[Arrays]:
        (feed,) = feeds
        return [dict(zip(names, session.run(names, feed), strict=True))]

    return run


def _several(model: ir.Model, names: list[str]) -> Run:
    from bnpass.verification.replicas import run_replicas

    def run(feeds: Sequence[Arrays]) -> list[Arrays]:
        return [{name: one[name] for name in names} for one in run_replicas(model, feeds)]

    return run


def _with_kernels(model: ir.Model, names: list[str], replicas: int) -> Run:
    from bnpass.runtime import session, threads

    proto = ir.to_proto(model)
    groups = threads(replicas)
    sessions = [session(proto, group=group, options=_options()) for group in groups]

    def run(feeds: Sequence[Arrays]) -> list[Arrays]:
        assert len(groups) == len(feeds)  # a group that is forgotten would have left
        with ThreadPoolExecutor(replicas) as pool:
            futures = [pool.submit(one.run, names, feed) for one, feed in zip(sessions, feeds, strict=True)]
            return [dict(zip(names, future.result(), strict=True)) for future in futures]

    return run
