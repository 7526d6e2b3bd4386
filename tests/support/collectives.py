"""Models with collectives: from text, at random, and with their nodes in another order."""

from collections.abc import Iterator, Sequence
from random import Random

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from tests.support.build import Array, tensor

DOUBLE = TensorProto.DOUBLE
SHAPES: dict[str, list[int]] = {"vector": [3], "matrix": [2, 2], "scalar": []}


def parsed(graph: str, *, opset: int = 17, ir_version: int = 8) -> ir.Model:
    """Return the model of ``g (inputs) => (outputs) { nodes }``, functions behind it if there are any."""
    imports = f'["": {opset}, "bnpass": 1, "com.microsoft": 1, "own": 1]'
    return ir.from_proto(onnx.parser.parse_model(f"<ir_version: {ir_version}, opset_import: {imports}> {graph}"))


def ids(model: ir.Model) -> list[int]:
    """Return the ids of the collectives in file order."""
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return [int(n.attributes["collective_id"].value) for n in nodes if "collective_id" in n.attributes]


def shuffled(proto: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """Return the model with the nodes of every graph in another topological order, found by names alone."""
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    _shuffle(copy.graph, Random(seed))  # noqa: S311
    return copy


def _shuffle(graph: onnx.GraphProto, random: Random) -> None:
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    made = {name for node in nodes for name in node.output if name}
    there: set[str] = set()
    order: list[onnx.NodeProto] = []
    while nodes:
        ready = [node for node in nodes if all(name in there or name not in made for name in _reads(node))]
        node = random.choice(ready)
        nodes.remove(node)
        there.update(node.output)
        order.append(node)
    for node in order:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _shuffle(attribute.g, random)
    del graph.node[:]
    graph.node.extend(order)


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _reads(inner)


def totally_ordered(proto: onnx.ModelProto) -> bool:
    """Whether of any two nodes of the main graph with collectives one depends on the other, found by names alone."""
    behind: dict[str, set[int]] = {}  # the collectives that a value depends on
    count = 0
    for node in proto.graph.node:
        found = set().union(*(behind.get(name, set()) for name in _reads(node)))
        if _has_collective(node):
            if len(found) < count:
                return False
            found = {*found, count}
            count += 1
        behind.update({name: found for name in node.output if name})
    return True


def _has_collective(node: onnx.NodeProto) -> bool:
    inner = (n for attribute in node.attribute for n in attribute.g.node)
    return node.op_type == "AllReduce" or any(_has_collective(n) for n in inner)


def random_model(random: Random, nodes: int = 14) -> onnx.ModelProto:
    """Return a model of AllReduces, arithmetic, branches and loops; every value of the main graph is an output."""
    return _Writer(random).model(nodes)


def feeds(replicas: int, seed: int) -> list[dict[str, Array]]:
    """Return integers in double for every replica."""
    rng = np.random.default_rng(seed)
    return [
        {kind: rng.integers(-9, 9, shape).astype(np.float64) for kind, shape in SHAPES.items()} for _ in range(replicas)
    ]


class _Writer:
    def __init__(self, random: Random) -> None:
        self.random = random
        self.count = 0

    def model(self, nodes: int) -> onnx.ModelProto:
        values = {kind: [kind] for kind in SHAPES}
        written = self.nodes(values, nodes, 1)
        made = [(name, kind) for kind, names in values.items() for name in names[1:]]
        info = {name: helper.make_tensor_value_info(name, DOUBLE, SHAPES[kind]) for name, kind in made}
        inputs = [helper.make_tensor_value_info(kind, DOUBLE, shape) for kind, shape in SHAPES.items()]
        constants = [tensor(np.array(v), k) for k, v in {"yes": True, "no": False, "twice": 2, "ever": True}.items()]
        graph = helper.make_graph(written, "g", inputs, list(info.values()), constants)
        opsets = [helper.make_opsetid(*pair) for pair in (("", 17), ("bnpass", 1), ("com.microsoft", 1))]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    def name(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def nodes(self, values: dict[str, list[str]], count: int, depth: int) -> list[onnx.NodeProto]:
        """Write nodes over the values and add what they give."""
        written = []
        for _ in range(count):
            kind = self.random.choice(list(SHAPES))
            node = self.node(kind, values, depth)
            values[kind].append(node.output[0])
            written.append(node)
        return written

    def node(self, kind: str, values: dict[str, list[str]], depth: int) -> onnx.NodeProto:
        choice = self.random.randrange(10)
        x, y = (self.random.choice(values[kind]) for _ in range(2))
        if choice < 5:
            return self.all_reduce(x, values)
        if choice == 5 and depth:
            return self.branch(kind, values)
        if choice == 6 and depth:
            return self.loop(kind, x, values)
        if choice == 7:
            return helper.make_node("Add", [x, self.random.choice(values["scalar"])], [self.name()])
        return helper.make_node(self.random.choice(["Add", "Sub", "Max"]), [x, y], [self.name()])

    def all_reduce(self, x: str, values: dict[str, list[str]]) -> onnx.NodeProto:
        if self.random.random() < 0.15:
            return helper.make_node("AllReduce", [x], [self.name()], domain="com.microsoft")
        after = self.random.choice(values["scalar"]) if self.random.random() < 0.15 else ""
        group, reduction = self.random.choice(["world", "world", "g"]), self.random.choice(["sum", "sum", "max"])
        return helper.make_node(
            "AllReduce", [x, after], [self.name()], domain="bnpass", group=group, reduction=reduction, collective_id=0
        )

    def branch(self, kind: str, values: dict[str, list[str]]) -> onnx.NodeProto:
        graphs = {f"{side}_branch": self.body(kind, values, []) for side in ("then", "else")}
        return helper.make_node("If", [self.random.choice(["yes", "no"])], [self.name()], **graphs)

    def loop(self, kind: str, x: str, values: dict[str, list[str]]) -> onnx.NodeProto:
        state = self.name()
        inputs = [
            helper.make_tensor_value_info(self.name(), TensorProto.INT64, []),
            helper.make_tensor_value_info(self.name(), TensorProto.BOOL, []),
            helper.make_tensor_value_info(state, DOUBLE, SHAPES[kind]),
        ]
        body = self.body(kind, {**values, kind: [*values[kind], state]}, inputs)
        return helper.make_node("Loop", ["twice", "", x], [self.name()], body=body)

    def body(self, kind: str, values: dict[str, list[str]], inputs: Sequence[onnx.ValueInfoProto]) -> onnx.GraphProto:
        """Write a branch, or the body of a loop if there are inputs; it returns one value of the kind."""
        inner = {k: list(names) for k, names in values.items()}
        written = self.nodes(inner, self.random.randrange(1, 4), 0)
        result = helper.make_node("Identity", [inner[kind][-1]], [self.name()])
        outputs = [helper.make_tensor_value_info(result.output[0], DOUBLE, SHAPES[kind])]
        written.append(result)
        if inputs:
            written.append(helper.make_node("Identity", ["ever"], [self.name()]))
            outputs.insert(0, helper.make_tensor_value_info(written[-1].output[0], TensorProto.BOOL, []))
        return helper.make_graph(written, "body", list(inputs), outputs)
