"""What is known about shapes and types: what is declared, what neighbours say, and, only if asked, ONNX's inference.

Dimensions are ints, names, or None. The model is not annotated: what was found out is kept beside it.
"""

from collections.abc import Iterable, Iterator

import onnx
import onnx_ir as ir

from bnpass.graph.constants import Constant, find, integer_argument
from bnpass.graph.nodes import Scope, is_standard, operand
from bnpass.semantics.regroup import Dim

Dims = tuple[Dim, ...]
Fact = tuple[Dims | None, ir.DataType | None]
"""Dimensions and element type, as far as they are known."""

SMALL_BYTES = 1024
"""Initializers up to this size are shown to the inference, which may read shapes from them."""

_MAX_STEPS = 32
_SAME_SHAPE = ("Relu", "Identity", "Dropout", "Cast", "BatchNormalization", "Sigmoid", "Tanh", "LeakyRelu", "Clip")
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
_LINEAR = ("Conv", "ConvTranspose", "Gemm")


class Shapes:
    """Answers for one model."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._inferred: dict[ir.Value, Fact] | None = None
        self._alike: dict[ir.Value, ir.Value] = {}

    def note_alike(self, result: ir.Value, data: ir.Value) -> None:
        """Remember that an op does not change the shape of its data."""
        self._alike[result] = data

    def dims(self, value: ir.Value, scope: Scope) -> Dims | None:
        """Return all that can be known of the dimensions of a value; None if not even its rank is."""
        near = self.near(value, scope)
        if near is not None and None not in near:
            return near
        inferred = self._infer(value, scope)[0]
        if near is None or inferred is None or len(near) != len(inferred):
            return inferred if near is None else near
        return tuple(b if a is None else a for a, b in zip(near, inferred, strict=True))

    def near(self, value: ir.Value, scope: Scope) -> Dims | None:
        """Return what is declared or else what the neighbours say; inference is asked only after that."""
        local = self._local(value, scope, 0)
        return self._infer(value, scope)[0] if local is None else local

    def rank(self, value: ir.Value, scope: Scope) -> int | None:
        """Return the rank of a value, if known."""
        near = self.near(value, scope)
        return None if near is None else len(near)

    def dtype(self, value: ir.Value, scope: Scope) -> ir.DataType | None:
        """Return the element type of a value, if known."""
        if value.dtype is not None:
            return value.dtype
        if value in self._alike:
            return self.dtype(self._alike[value], scope)
        node = value.producer()
        if node is not None and is_standard(node, *_LINEAR, "MatMul"):
            for one in node.inputs:
                found = find(one, scope) if one is not None else None
                if isinstance(found, Constant):
                    return found.dtype
        return self._infer(value, scope)[1]

    def _local(self, value: ir.Value, scope: Scope, steps: int) -> Dims | None:
        """Read off what is near: enough for most files without shapes, and for function bodies, which have none."""
        if value.shape is not None:
            return tuple(d if isinstance(d, int) else d.value for d in value.shape)
        if steps > _MAX_STEPS:
            return None
        node = value.producer()
        data = self._alike.get(value)
        if data is None and node is not None and is_standard(node, *_SAME_SHAPE) and value is node.outputs[0]:
            data = node.inputs[0]
        if data is not None:
            return self._local(data, scope, steps + 1) or _read_by(value, scope)
        found = self._made_by(node, scope, steps) if node is not None else None
        return _read_by(value, scope) if found is None else found

    def _made_by(self, node: ir.Node, scope: Scope, steps: int) -> Dims | None:
        """Return the dimensions of a node's first output, from its weight or from its first input."""
        if is_standard(node, *_LINEAR):
            return _out_of(node, scope)
        if not is_standard(node, "MatMul", "Transpose", "Squeeze", *_POOLS) or node.inputs[0] is None:
            return None
        data = self._local(node.inputs[0], scope, steps + 1)
        if data is None or node.op_type in _POOLS:
            return data if data is None else (*data[:2], *(None for _ in data[2:]))
        if node.op_type == "MatMul":
            weight = _weight_shape(node, scope)
            return (*data[:-1], weight[1]) if weight is not None and len(weight) == 2 and len(data) > 1 else None
        if node.op_type == "Transpose":
            perm = node.attributes.get_ints("perm", tuple(reversed(range(len(data)))))
            return tuple(data[i] for i in perm) if sorted(perm) == list(range(len(data))) else None
        axes = integer_argument(node, "axes", scope)
        gone = {a % len(data) for a in axes} if axes and data else None
        return None if gone is None else tuple(d for i, d in enumerate(data) if i not in gone)

    def _infer(self, value: ir.Value, scope: Scope) -> Fact:
        """Return what ONNX's inference says of a value; it does not reach into functions."""
        if scope.is_function:
            return None, None
        if self._inferred is None:
            self._inferred = {}
            _infer_all(self._model, self._inferred)
        while value not in self._inferred and value in self._alike:  # a new value is known by the one it resembles
            value = self._alike[value]
        return self._inferred.get(value, (None, None))


def _weight_shape(node: ir.Node, scope: Scope) -> tuple[int, ...] | None:
    weight = operand(node, 1)
    for op_type in ("DequantizeLinear", "QuantizeLinear"):  # which change no shape
        maker = weight.producer() if weight is not None else None
        weight = maker.inputs[0] if maker is not None and is_standard(maker, op_type) else weight
    found = find(weight, scope) if weight is not None else None
    return found.shape if isinstance(found, Constant) and len(found.shape) >= 2 else None


def _out_of(node: ir.Node, scope: Scope) -> Dims | None:
    weight = _weight_shape(node, scope)
    if weight is None:
        return None
    if node.op_type == "Gemm":
        return (None, weight[0] if node.attributes.get_int("transB", 0) else weight[1])
    group = node.attributes.get_int("group", 1)
    channels = weight[0] if node.op_type == "Conv" else weight[1] * group
    return (None, channels, *(None for _ in weight[2:]))


def _read_by(value: ir.Value, scope: Scope) -> Dims | None:
    """Return what a convolution that reads the value says of it."""
    for node, index in value.uses():
        weight = _weight_shape(node, scope) if is_standard(node, "Conv", "ConvTranspose") and index == 0 else None
        if weight is not None:
            channels = weight[1] * node.attributes.get_int("group", 1) if node.op_type == "Conv" else weight[0]
            return (None, channels, *(None for _ in weight[2:]))
    return None


def _infer_all(model: ir.Model, facts: dict[ir.Value, Fact]) -> None:
    """Run ONNX's inference over the nodes and declarations of a model: large weights stay where they are."""
    proto = onnx.ModelProto(ir_version=max(4, model.ir_version))  # below 4 initializers would have to be inputs too
    for domain, version in model.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    proto.functions.extend(ir.serde.serialize_function(function) for function in model.functions.values())
    graph = proto.graph
    graph.name = model.graph.name or "graph"
    for value in dict.fromkeys([*model.graph.inputs, *model.graph.initializers.values()]):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes <= SMALL_BYTES and value.is_initializer():
            graph.initializer.append(ir.serde.serialize_tensor(tensor))
        else:
            graph.input.append(ir.serde.serialize_value(value))
    graph.node.extend(ir.serde.serialize_node(node) for node in model.graph)
    declared = (v for node in model.graph for v in node.outputs if v.shape is not None and v.name)
    graph.value_info.extend(ir.serde.serialize_value(v) for v in declared if not v.is_graph_output())
    graph.output.extend(ir.serde.serialize_value(v) for v in model.graph.outputs)
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):  # then nothing more is known
        return
    _collect(model.graph, inferred.graph, facts)


def _collect(graph: ir.Graph, proto: onnx.GraphProto, facts: dict[ir.Value, Fact]) -> None:
    """Read the facts graph by graph: bodies beside each other may use one name for two values."""
    named = {value.name: value for node in graph for value in node.outputs if value.name}
    for info in (*proto.value_info, *proto.output):
        tensor = info.type.tensor_type
        if info.name in named:
            dims = tuple(_dims(tensor.shape.dim)) if tensor.HasField("shape") else None
            facts[named[info.name]] = (dims, ir.DataType(tensor.elem_type) if tensor.elem_type else None)
    for node, node_proto in zip(graph, proto.node, strict=True):
        bodies = {a.name: [a.g] if a.HasField("g") else list(a.graphs) for a in node_proto.attribute}
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                _collect(attribute.as_graph(), bodies[attribute.name][0], facts)
            elif attribute.type == ir.AttributeType.GRAPHS:
                for body, body_proto in zip(attribute.as_graphs(), bodies[attribute.name], strict=True):
                    _collect(body, body_proto, facts)


def _dims(dims: Iterable[onnx.TensorShapeProto.Dimension]) -> Iterator[Dim]:
    for d in dims:
        yield d.dim_value if d.HasField("dim_value") else d.dim_param or None
