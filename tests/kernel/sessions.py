"""Models whose nodes can only be run by the kernels, and sessions that run them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from bnpass.runtime import session
from tests.unit.ops.body_cases import Case

if TYPE_CHECKING:
    from bnpass.runtime import Groups

Array = NDArray[Any]
Feeds = Mapping[str, Array]


def without_bodies(case: Case, **attributes: Any) -> onnx.ModelProto:
    """Return the model of a case without functions: a session without the kernels cannot run it."""
    model = case.model(18)
    del model.functions[:]
    for attribute in model.graph.node[-1 - _casts_behind(model)].attribute:
        if attribute.name in attributes:
            attribute.CopyFrom(onnx.helper.make_attribute(attribute.name, attributes[attribute.name]))
    return model


def _casts_behind(model: onnx.ModelProto) -> int:
    nodes = list(model.graph.node)
    return next(i for i, node in enumerate(reversed(nodes)) if node.domain == "bnpass")


def opened(model: onnx.ModelProto, *, threads: int = 1, group: "Groups | None" = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    return session(model, group=group, options=options)


def run(model: onnx.ModelProto, feeds: Feeds, *, threads: int = 1, group: "Groups | None" = None) -> Sequence[Array]:
    return [np.asarray(found) for found in opened(model, threads=threads, group=group).run(None, dict(feeds))]
