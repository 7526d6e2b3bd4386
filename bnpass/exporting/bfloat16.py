"""bfloat16, of which ONNX Runtime's CPU has hardly a kernel: every op computes in float32 and rounds what it has made.

tf2onnx would write float16 for it. So a frozen graph is rewritten before tf2onnx sees it:

    op (bfloat16)  ──>  op (float32) ── Cast to bfloat16 ── Cast to float32 ──> readers

Where an op only moves or picks numbers its result is a bfloat16 number already, and both Casts are left out. Inputs and
outputs of the model, of batch normalization and of Dropout keep their type, and so do random numbers. Bodies of loops
and branches take and return float32.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np

from bnpass.exporting.function_bodies import as_function, as_graph, callees
from bnpass.exporting.random_ops import RANDOM_OPS

_NATIVE = frozenset({"Placeholder", "PyFuncStateless"}) | RANDOM_OPS
"""Ops that become nodes of bfloat16; in the body of a loop, arguments do not."""

# fmt: off
_EXACT = frozenset({
    "Const", "Identity", "IdentityN", "EnsureShape", "StopGradient", "PreventGradient", "Snapshot", "Reshape",
    "Transpose", "Squeeze", "ExpandDims", "Concat", "ConcatV2", "Split", "SplitV", "Pack", "Unpack", "Slice",
    "StridedSlice", "Gather", "GatherV2", "GatherNd", "Tile", "BroadcastTo", "ReverseV2", "Pad", "PadV2",
    "MirrorPad", "SpaceToDepth", "DepthToSpace", "SpaceToBatchND", "BatchToSpaceND", "ResizeNearestNeighbor",
    "Fill", "OnesLike", "ZerosLike", "MatrixDiagV3", "MatrixDiagPartV3", "Relu", "Relu6", "MaxPool", "MaxPoolV2",
    "MaxPool3D", "Max", "Min", "Maximum", "Minimum", "Neg", "Abs", "Sign", "Select", "SelectV2", "ClipByValue",
    "Floor", "Ceil", "Round", "Rint", "TopK", "TopKV2", "Unique", "Placeholder",
    "While", "StatelessWhile", "If", "StatelessIf", "TensorListStack", "TensorListGetItem", "TensorListConcatV2",
    "TensorListGather",
})
# fmt: on
"""Ops whose results are among the numbers that they read, or need no more digits than those."""


def widened(graph_def: Any, outputs: Sequence[str]) -> Any:  # noqa: ANN401  a GraphDef
    """Return a frozen graph in which bfloat16 stands between Casts; one without it is returned as it is.

    Args:
        graph_def: The graph.
        outputs: Its tensors that are wanted; they keep name and type.
    """
    parts = [graph_def.node, *(function.node_def for function in graph_def.library.function)]
    if not any(_has_bfloat16(node) for nodes in parts for node in nodes):
        return graph_def
    library = _wide_library(graph_def.library)
    wide = _rewritten(graph_def, {name.split(":")[0] for name in outputs}, _NATIVE)
    wide.graph_def.library.CopyFrom(library)
    return wide.graph_def


def _wide_library(library: Any) -> Any:  # noqa: ANN401
    """Return the bodies of loops and branches in float32: what goes in and out of them are bfloat16 numbers."""
    old = {function.signature.name: function for function in library.function}
    new = type(library)()
    done: set[str] = set()

    def add(name: str) -> None:
        if name in done or name not in old:
            return
        done.add(name)
        for callee in sorted(callees(old[name])):
            add(callee)
        graph_def, returned = as_graph(old[name], library)
        wide = _rewritten(graph_def, set(), _NATIVE - {"Placeholder"})
        tensors = [wide.in_float32(tensor) for tensor in returned]
        wide.graph_def.library.CopyFrom(new)
        new.function.append(as_function(wide.graph_def, tensors, old[name]))

    for name in old:
        add(name)
    return new


def _rewritten(graph_def: Any, outputs: set[str], native: frozenset[str]) -> "_Wide":  # noqa: ANN401
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    types = {op.name: [tensor.dtype == tf.bfloat16 for tensor in op.outputs] for op in graph.get_operations()}
    wide = _Wide(types, outputs, native)
    nodes = {node.name: node for node in graph_def.node}
    for op in graph.get_operations():  # in an order in which what is read is made before
        wide.add(nodes[op.name])
    wide.graph_def.versions.CopyFrom(graph_def.versions)
    return wide


@contextlib.contextmanager
def as_it_is() -> Iterator[None]:
    """Let tf2onnx write bfloat16 as bfloat16, and keep the Casts that round."""
    import onnx
    from tensorflow.core.framework import types_pb2
    from tf2onnx import tf_utils, utils
    from tf2onnx.optimizer import back_to_back_optimizer

    bfloat16 = onnx.TensorProto.BFLOAT16
    with (
        mock.patch.dict(tf_utils.TF_TO_ONNX_DTYPE, {types_pb2.DT_BFLOAT16: bfloat16}),
        mock.patch.dict(utils.ONNX_TO_NUMPY_DTYPE, {bfloat16: ml_dtypes.bfloat16}),
        mock.patch.dict(back_to_back_optimizer._func_map),  # noqa: SLF001
    ):
        del back_to_back_optimizer._func_map["Cast",]  # noqa: SLF001  float32 to float16 and back is not nothing
        yield


def _has_bfloat16(node: Any) -> bool:  # noqa: ANN401
    from tensorflow.core.framework import types_pb2

    kind = types_pb2.DT_BFLOAT16
    return any(value.type == kind or kind in value.list.type for value in node.attr.values())


class _Wide:
    """A graph that is written anew.

    Args:
        types: Of each op, which of its outputs are bfloat16.
        outputs: Nodes that keep their names and types.
        native: Ops that become nodes of bfloat16.
    """

    def __init__(self, types: Mapping[str, Sequence[bool]], outputs: set[str], native: frozenset[str]) -> None:
        import tensorflow as tf

        self.graph_def = tf.compat.v1.GraphDef()
        self._types, self._outputs, self._native = types, outputs, native
        self._narrow: dict[str, str] = {}
        """Tensors of the old graph that are bfloat16 in the new one, and what they are called there."""
        self._as_float32: dict[str, str] = {}

    def add(self, old: Any) -> None:  # noqa: ANN401
        """Write a node; those that it reads are written."""
        node = self.graph_def.node.add()
        node.CopyFrom(old)
        made = [i for i, narrow in enumerate(self._types[old.name]) if narrow]
        native = old.op in self._native
        if made and old.name in self._outputs and not native:
            node.name = f"{old.name}/float32"
        if not native:
            _widen(node)
        for index, name in enumerate(node.input):
            node.input[index] = self._read(name, narrow=native)
        for index in made:
            self._made(old, node, index, native=native)

    def in_float32(self, name: str) -> str:
        """Return what a tensor of the old graph is called, if need be in float32."""
        return self._read(name, narrow=False)

    def _made(self, old: Any, node: Any, index: int, *, native: bool) -> None:  # noqa: ANN401
        """Note where an output is to be had in bfloat16 and in float32."""
        key = _key(f"{old.name}:{index}")
        if native:
            self._narrow[key] = f"{node.name}:{index}"
        elif old.op not in _EXACT or old.name in self._outputs:
            name = old.name if old.name in self._outputs else f"{old.name}/bfloat16_{index}"
            self._narrow[key] = self._cast(name, f"{node.name}:{index}", "float32", "bfloat16")
        else:
            self._as_float32[key] = f"{node.name}:{index}"

    def _read(self, name: str, *, narrow: bool) -> str:
        """Return the tensor that an input of the new graph reads, made if it is not there yet."""
        key = _key(name)
        if name.startswith("^") or not self._is_narrow(key):
            return name
        if narrow and key not in self._narrow:
            self._narrow[key] = self._cast(f"{_flat(key)}/bfloat16", self._as_float32[key], "float32", "bfloat16")
        if not narrow and key not in self._as_float32:
            self._as_float32[key] = self._cast(f"{_flat(key)}/rounded", self._narrow[key], "bfloat16", "float32")
        return self._narrow[key] if narrow else self._as_float32[key]

    def _is_narrow(self, key: str) -> bool:
        name, index = key.rsplit(":", 1)
        return name in self._types and int(index) < len(self._types[name]) and self._types[name][int(index)]

    def _cast(self, name: str, value: str, old_type: str, new_type: str) -> str:
        import tensorflow as tf

        node = self.graph_def.node.add(name=name, op="Cast", input=[value])
        node.attr["SrcT"].type = tf.as_dtype(old_type).as_datatype_enum
        node.attr["DstT"].type = tf.as_dtype(new_type).as_datatype_enum
        return f"{name}:0"


def _widen(node: Any) -> None:  # noqa: ANN401
    """Let a node compute in float32."""
    import tensorflow as tf
    from tensorflow.core.framework import types_pb2

    narrow, wide = types_pb2.DT_BFLOAT16, types_pb2.DT_FLOAT
    if node.op == "Const" and node.attr["dtype"].type == narrow:
        value = tf.make_ndarray(node.attr["value"].tensor).astype(np.float32)
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    if node.op == "LeakyRelu" and node.attr["T"].type == narrow:
        node.attr["alpha"].f = float(ml_dtypes.bfloat16(node.attr["alpha"].f))
    for value in node.attr.values():
        if value.type == narrow:
            value.type = wide
        if narrow in value.list.type:
            value.list.type[:] = [wide if kind == narrow else kind for kind in value.list.type]


def _key(name: str) -> str:
    return name if ":" in name else f"{name}:0"


def _flat(key: str) -> str:
    return key.replace(":", "/")
