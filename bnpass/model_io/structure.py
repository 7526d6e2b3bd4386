"""What is refused before a ModelProto becomes an onnx_ir model.

onnx_ir is lenient: it logs an undefined input and goes on, drops sparse initializers and training
information, and reads a tensor without data as zeros. Whoever rewrites a graph cannot afford that, so
each of these is a ModelError here. This is not onnx.checker: operators are not looked up.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

import onnx
import onnx_ir as ir
from google.protobuf.unknown_fields import UnknownFieldSet  # type: ignore[import-untyped]

from bnpass.errors import ModelError
from bnpass.model_io.tensors import byte_count

MAX_NODES = 500_000  # of all graphs and functions: real models have some thousands, and beyond this all takes minutes
MAX_NESTING = 30  # graphs within graphs: protobuf reads no deeper than 100 messages, three per graph
UNKNOWN_FIELDS = "holds fields that this onnx does not know and that would be lost; upgrade onnx"
_RANK_MAX = 64  # as in NumPy; keeps the product of the dimensions a small computation
_ATTRIBUTE = onnx.AttributeProto
_SPARSE = (_ATTRIBUTE.SPARSE_TENSOR, _ATTRIBUTE.SPARSE_TENSORS)
_BYTE = 8
_FIELD_OF = {
    "FLOAT": "float_data",
    "COMPLEX64": "float_data",
    "DOUBLE": "double_data",
    "COMPLEX128": "double_data",
    "INT64": "int64_data",
    "UINT64": "uint64_data",
    "UINT32": "uint64_data",
    "STRING": "string_data",
}


@dataclass(frozen=True)
class _Scope:
    """The names that a node may read, and where the graph lies."""

    names: set[str]
    outer: "_Scope | None"
    depth: int

    def sees(self, name: str) -> bool:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.names:
                return True
            scope = scope.outer
        return False


def check_structure(proto: onnx.ModelProto, where: str) -> None:
    """Refuse a model that onnx_ir could not keep, or whose meaning is not certain.

    Args:
        proto: The model; its large payloads may be tokens.
        where: What to call the model in messages.

    Raises:
        ModelError: With one sentence on the first thing found.
    """
    if not proto.HasField("graph"):
        raise ModelError(f"{where}: has no graph: it is not an ONNX model, or is cut off; export it again")
    _check_versions(proto, where)
    _check_kept_fields(proto, where)
    check = _Checker(where)
    check.graph(proto.graph, None)
    keys = [(f.domain, f.name, f.overload) for f in proto.functions]
    if len(set(keys)) != len(keys):
        raise ModelError(f"{where}: two model-local functions have the same name")
    for function in proto.functions:
        check.function(function)
    _check_calls(proto.functions, where)
    if check.uses_default_domain and not _default_version([*proto.opset_import]):
        raise ModelError(f"{where}: uses ONNX operators without an opset import; export it again")


def _default_version(imports: Sequence[onnx.OperatorSetIdProto]) -> int | None:
    return next((entry.version for entry in imports if entry.domain in {"", "ai.onnx"}), None)


def _check_versions(proto: onnx.ModelProto, where: str) -> None:
    if not proto.ir_version:
        raise ModelError(f"{where}: has no ir_version: it is not an ONNX model, or is cut off; export it again")
    if not 1 <= proto.ir_version <= onnx.IR_VERSION:
        raise ModelError(
            f"{where}: has IR version {proto.ir_version}, this onnx knows up to {onnx.IR_VERSION}; upgrade it"
        )
    if not proto.opset_import:
        raise ModelError(f"{where}: has no opset import, so its operators have no meaning; export it again")
    newest = onnx.defs.onnx_opset_version()
    for imports in (proto.opset_import, *(function.opset_import for function in proto.functions)):
        versions: dict[str, int] = {}
        for entry in imports:
            domain = "" if entry.domain == "ai.onnx" else entry.domain
            if entry.version < 1 or versions.setdefault(domain, entry.version) != entry.version:
                raise ModelError(f"{where}: the opset imports of domain {domain!r} are not usable; export it again")
        if (default := versions.get("", 1)) > newest:
            raise ModelError(f"{where}: needs opset {default}, this onnx knows up to {newest}; upgrade onnx")


def _check_kept_fields(proto: onnx.ModelProto, where: str) -> None:
    if proto.training_info:
        raise ModelError(f"{where}: holds training_info, which would be lost; export the inference graph alone")
    for message in (proto, proto.graph):
        if len(UnknownFieldSet(message)) > 0:
            raise ModelError(f"{where}: {UNKNOWN_FIELDS}")


class _Checker:
    """One walk over graphs and functions: every name once, defined before it is read."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.uses_default_domain = False
        self.count = 0

    def fail(self, text: str) -> ModelError:
        remedy = "" if ";" in text else "; export it again"
        return ModelError(f"{self.where}: {text}{remedy}")

    def graph(self, graph: onnx.GraphProto, outer: _Scope | None) -> None:
        scope = _Scope(set(), outer, 0 if outer is None else outer.depth + 1)
        if scope.depth > MAX_NESTING:
            raise self.fail(f"subgraphs are nested more than {MAX_NESTING} levels deep")
        if graph.sparse_initializer:
            name = graph.sparse_initializer[0].values.name
            raise self.fail(f"sparse initializer {name!r} would be lost; make it dense first")
        for info in graph.input:
            self.define(info.name, scope, "graph input")
            self.type_is_kept(info.type, info.name)
        inputs = set(scope.names)
        initializers: set[str] = set()
        for tensor in graph.initializer:
            if not tensor.name:
                raise self.fail("an initializer has no name")
            if tensor.name in initializers:
                raise self.fail(f"value {tensor.name!r} is defined twice, by two initializers")
            initializers.add(tensor.name)
        scope.names.update(initializers | inputs)
        for info in graph.value_info:
            self.type_is_kept(info.type, info.name)
        self.nodes(graph.node, scope)
        for info in graph.output:
            self.type_is_kept(info.type, info.name)
            if not scope.sees(info.name):
                raise self.fail(f"graph output {info.name!r} is not produced by anything")

    def function(self, function: onnx.FunctionProto) -> None:
        scope = _Scope(set(), None, 0)
        for name in function.input:
            self.define(name, scope, f"function {function.name}")
        default = _default_version([*function.opset_import])
        used, self.uses_default_domain = self.uses_default_domain, False
        self.nodes(function.node, scope)
        if self.uses_default_domain and default is None:
            raise self.fail(f"function {function.name!r} uses ONNX operators without an opset import")
        self.uses_default_domain = used
        for name in function.output:
            if not scope.sees(name):
                raise self.fail(f"output {name!r} of function {function.name!r} is not produced by anything")

    def nodes(self, nodes: Sequence[onnx.NodeProto], scope: _Scope) -> None:
        self.count += len(nodes)
        if self.count > MAX_NODES:
            raise self.fail(f"has more than {MAX_NODES:,} nodes; export it in parts")
        produced: dict[str, int] | None = None
        for index, node in enumerate(nodes):
            label = node.name or next(iter(node.output), "") or f"#{index}"
            self.uses_default_domain = self.uses_default_domain or node.domain in {"", "ai.onnx"}
            for name in node.input:
                if name and not scope.sees(name):
                    produced = produced or {out: i for i, other in enumerate(nodes) for out in other.output}
                    if name in produced:
                        raise self.fail(
                            f"node {label!r} reads {name!r} before it is produced: not in topological order"
                        )
                    raise self.fail(f"node {label!r} reads {name!r}, which nothing defines")
            self.attributes(node, label, scope)
            for name in node.output:
                if name:
                    self.define(name, scope, f"node {label!r}")

    def attributes(self, node: onnx.NodeProto, label: str, scope: _Scope) -> None:
        seen: set[str] = set()
        for attribute in node.attribute:
            if attribute.name in seen:
                raise self.fail(f"node {label!r} has the attribute {attribute.name!r} twice")
            seen.add(attribute.name)
            if attribute.type in _SPARSE:
                raise self.fail(f"node {label!r} holds a sparse tensor, which is not supported; make it dense first")
            if attribute.type == _ATTRIBUTE.UNDEFINED and not attribute.ref_attr_name:
                raise self.fail(f"attribute {attribute.name!r} of node {label!r} has no type; export it again")
            if attribute.type == _ATTRIBUTE.GRAPH and not attribute.ref_attr_name:
                self.graph(attribute.g, scope)
            for graph in attribute.graphs:
                self.graph(graph, scope)

    def define(self, name: str, scope: _Scope, by: str) -> None:
        if name in scope.names:
            raise self.fail(f"value {name!r} is defined twice, the second time by {by}")
        scope.names.add(name)

    def type_is_kept(self, proto: onnx.TypeProto, name: str) -> None:
        kind = proto.WhichOneof("value")
        while kind in {"sequence_type", "optional_type"}:
            proto = getattr(proto, str(kind)).elem_type
            kind = proto.WhichOneof("value")
        if kind in {"map_type", "opaque_type"}:
            raise self.fail(f"value {name!r} is of a {str(kind)[:-5]} type, which is not supported")


def _check_calls(functions: Sequence[onnx.FunctionProto], where: str) -> None:
    """Refuse functions that call themselves, directly or through others."""
    calls = {(f.domain, f.name, f.overload): set(_called(f.node, 0, where)) for f in functions}
    try:
        TopologicalSorter(calls).prepare()
    except CycleError as error:
        names = ", ".join(name for _, name, _ in error.args[1])
        raise ModelError(f"{where}: model-local functions call each other in a circle: {names[:200]}") from None


def _called(nodes: Sequence[onnx.NodeProto], depth: int, where: str) -> Iterator[tuple[str, str, str]]:
    if depth > MAX_NESTING:
        raise ModelError(f"{where}: subgraphs are nested more than {MAX_NESTING} levels deep")
    for node in nodes:
        yield node.domain, node.op_type, node.overload
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _called(graph.node, depth + 1, where)


def tensors_of(proto: onnx.ModelProto, where: str) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a model: initializers, sparse ones, attributes, in subgraphs and functions.

    Raises:
        ModelError: Subgraphs are nested too deep.
    """
    yield from _graph_tensors(proto.graph, 0, where)
    for function in proto.functions:
        for attribute in function.attribute_proto:
            yield from _attribute_tensors(attribute, 0, where)
        yield from _node_tensors(function.node, 0, where)
    for info in proto.training_info:
        for graph in (info.initialization, info.algorithm):
            yield from _graph_tensors(graph, 0, where)


def _graph_tensors(graph: onnx.GraphProto, depth: int, where: str) -> Iterator[onnx.TensorProto]:
    if depth > MAX_NESTING:
        raise ModelError(f"{where}: subgraphs are nested more than {MAX_NESTING} levels deep")
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node, depth, where)


def _node_tensors(nodes: Sequence[onnx.NodeProto], depth: int, where: str) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from _attribute_tensors(attribute, depth, where)


def _attribute_tensors(attribute: onnx.AttributeProto, depth: int, where: str) -> Iterator[onnx.TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    sparse_tensors = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
    for sparse in (*sparse_tensors, *attribute.sparse_tensors):
        yield from (sparse.values, sparse.indices)
    graphs = [attribute.g] if attribute.HasField("g") else []
    for graph in (*graphs, *attribute.graphs):
        yield from _graph_tensors(graph, depth + 1, where)


def check_tensor(
    proto: onnx.TensorProto, where: str, raw_length: Callable[[bytes], int], *, external: bool
) -> ir.DataType:
    """Refuse a tensor whose type, shape and data do not belong together; return its type.

    Args:
        proto: The tensor.
        where: What to call the model in messages.
        raw_length: Length of the data that a ``raw_data`` field stands for.
        external: The data lie in another file, whose range is checked elsewhere.

    Raises:
        ModelError: The tensor lies about its size, or has no valid type.
    """
    subject = f"{where}: tensor {proto.name!r}"
    try:
        dtype = ir.DataType(proto.data_type)
    except ValueError:
        raise ModelError(f"{subject} is of an unknown type, number {proto.data_type}") from None
    if dtype == ir.DataType.UNDEFINED or (external and dtype == ir.DataType.STRING):
        raise ModelError(f"{subject} cannot be of type {dtype.name}")
    if len(proto.dims) > _RANK_MAX or any(dim < 0 for dim in proto.dims) or proto.HasField("segment"):
        raise ModelError(f"{subject} has the shape {list(proto.dims)[:20]} or a segment, which cannot be stored")
    if external:
        return dtype
    elements = 1
    for dim in proto.dims:
        elements *= dim
    if proto.HasField("raw_data"):
        if dtype == ir.DataType.STRING:
            raise ModelError(f"{subject} holds strings as raw_data, which is not allowed")
        actual, expected = raw_length(proto.raw_data), byte_count(dtype, tuple(proto.dims))
        unit = "bytes of data"
    else:
        actual, expected = len(getattr(proto, _FIELD_OF.get(dtype.name, "int32_data"))), elements
        if dtype.name.startswith("COMPLEX"):
            expected *= 2
        elif dtype != ir.DataType.STRING and dtype.bitwidth < _BYTE and actual != expected:
            expected = byte_count(dtype, tuple(proto.dims))  # packed, one byte per entry
        unit = "values"
    if actual != expected:
        raise ModelError(
            f"{subject} has {actual} {unit} where its shape and type take {expected}; it is cut off; export it again"
        )
    return dtype
