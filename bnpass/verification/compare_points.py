"""Which values of two models can be compared, and which stand behind a discrete or random operator.

An ArgMax over values that differ by one rounding may name another element, and then nothing behind it is
close to anything. Such outputs are not compared; the nearest floats above the discrete operator, as far as
both models know them by the same name, are compared in their stead. Three marks travel down the graph:

    depends   on a graph input (through anything but Shape and Size)
    inexact   a float that was computed, not only moved around
    behind    a discrete operator with inexact input, or a random one: its name

An integer that was made from an inexact float (Cast, comparison, QuantizeLinear) is treated in the same
way, but floats computed from it are compared: `x > 0 ? x : 0.1·x` is continuous.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from bnpass.ops import DOMAIN

__all__ = ["ComparePoints", "NotCompared", "compare_points"]

_DISCRETE = frozenset(
    {"ArgMax", "ArgMin", "Compress", "Hardmax", "MaxUnpool", "NonMaxSuppression", "NonZero", "Unique"}
)
_RANDOM = frozenset(
    {
        *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike"),
        *("RandomUniform", "RandomUniformLike"),
    }
)
# Contrib and other operators that search or sample: (com.microsoft) BeamSearch, GreedySearch, Sampling …
_DISCRETE_WORDS = ("BeamSearch", "GreedySearch", "Sampling", "NMS")

# Values come out as they went in.
_MOVES = frozenset(
    {
        *("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Concat"),
        *("Gather", "GatherND", "GatherElements", "Expand", "Tile", "Pad", "DepthToSpace", "SpaceToDepth"),
        *("Cast", "CastLike", "Neg", "Abs", "Relu", "ReverseSequence", "Where", "Constant"),
    }
)


@dataclass(frozen=True)
class NotCompared:
    """An output that was left out.

    Attributes:
        name: The graph output.
        reason: Why, one sentence.

    """

    name: str
    reason: str


@dataclass(frozen=True)
class ComparePoints:
    """What to compare.

    Attributes:
        outputs: Graph outputs.
        inner: Values inside both graphs, to be exposed.
        not_compared: Graph outputs that are left out, with reasons.

    """

    outputs: tuple[str, ...]
    inner: tuple[str, ...]
    not_compared: tuple[NotCompared, ...]


@dataclass
class _Marks:
    depends: set[ir.Value] = field(default_factory=set)
    inexact: set[ir.Value] = field(default_factory=set)
    behind: dict[ir.Value, str] = field(default_factory=dict)
    rounded: dict[ir.Value, str] = field(default_factory=dict)


def _is_exact_type(value: ir.Value) -> bool:
    """Tell whether the value is known to be of an integer, boolean or string type."""
    return value.dtype is not None and not value.dtype.is_floating_point()


def _label(node: ir.Node) -> str:
    return f"{node.op_type} '{node.name or node.outputs[0].name}'"


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """Inputs, and what subgraphs read from around them."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        graphs = (
            [attribute.as_graph()]
            if attribute.type is ir.AttributeType.GRAPH
            else list(attribute.as_graphs())
            if attribute.type is ir.AttributeType.GRAPHS
            else []
        )
        for graph in graphs:
            for inner in ir.traversal.RecursiveGraphIterator(graph):
                yield from (value for value in inner.inputs if value is not None and value.graph is node.graph)
            yield from (value for value in graph.outputs if value.graph is node.graph)


def _trains_dropout(node: ir.Node) -> bool:
    if node.op_type != "Dropout":
        return False
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        constant = ir.convenience.get_const_tensor(node.inputs[2])
        return constant is None or bool(constant.numpy().any())
    version = node.graph.opset_imports.get("", 0) if node.graph is not None else 0
    return 0 < version < 7 and not node.attributes.get_int("is_test", 0)


def _inner_nodes(node: ir.Node, model: ir.Model, seen: frozenset[ir.OperatorIdentifier]) -> Iterator[ir.Node]:
    """Nodes that run when this one does: in its subgraphs and in the function it calls."""
    scopes: list[ir.Graph | ir.Function] = []
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type is ir.AttributeType.GRAPH:
            scopes.append(attribute.as_graph())
        elif attribute.type is ir.AttributeType.GRAPHS:
            scopes.extend(attribute.as_graphs())
    identifier = node.op_identifier()
    if identifier in model.functions and identifier not in seen and node.domain != DOMAIN:  # ours jump nowhere
        scopes.append(model.functions[identifier])
    for scope in scopes:
        for inner in scope:
            yield inner
            yield from _inner_nodes(inner, model, seen | {identifier})


def _is_random(node: ir.Node) -> bool:
    return node.op_type in _RANDOM or _trains_dropout(node)


def _discrete_outputs(node: ir.Node) -> tuple[int, ...]:
    """Positions of the outputs that jump when inputs move a little."""
    everything = tuple(range(len(node.outputs)))
    if node.op_type == "TopK":
        # The sorted values themselves move no more than the input does.
        return (1,) if node.attributes.get_int("sorted", 1) else everything
    if node.op_type == "MaxPool":
        return everything[1:]
    if node.op_type in _DISCRETE or any(word in node.op_type for word in _DISCRETE_WORDS):
        return everything
    return ()


def _source(node: ir.Node, model: ir.Model, *, inexact: bool) -> tuple[tuple[int, ...], str]:
    """Positions of outputs behind this node's own discreteness or randomness, and its name."""
    everything = tuple(range(len(node.outputs)))
    if _is_random(node):
        return everything, f"the random {_label(node)}"
    if inexact and (positions := _discrete_outputs(node)):
        return positions, _label(node)
    for inner in _inner_nodes(node, model, frozenset()):
        if _is_random(inner) or (inexact and _discrete_outputs(inner)):
            return everything, f"{_label(inner)} inside {_label(node)}"
    return (), ""


def _mark(model: ir.Model) -> _Marks:
    marks = _Marks()
    marks.depends.update(model.graph.inputs)
    for node in model.graph:
        reads = list(dict.fromkeys(_reads(node)))
        is_size = node.op_type in ("Shape", "Size")
        depends = not is_size and any(value in marks.depends for value in reads)
        inexact = not is_size and any(value in marks.inexact for value in reads)
        behind = next((marks.behind[value] for value in reads if value in marks.behind), "")
        positions, label = _source(node, model, inexact=inexact)
        for position, value in enumerate(node.outputs):
            if depends:
                marks.depends.add(value)
            if inexact or (depends and node.op_type not in _MOVES and not _is_exact_type(value)):
                marks.inexact.add(value)
            if behind or position in positions:
                marks.behind[value] = behind or label
            if _is_exact_type(value) and not is_size:
                rounded = next((marks.rounded[v] for v in reads if v in marks.rounded), "")
                if rounded or (inexact and any(v in marks.inexact and not _is_exact_type(v) for v in reads)):
                    marks.rounded[value] = rounded or _label(node)
    return marks


def _typed(model: ir.Model) -> ir.Model:
    """Return a copy with as many value types as shape inference finds."""
    copy = model.clone()
    try:
        from onnx_ir.passes.common import ShapeInferencePass, shape_inference

        shape_inference.logger.disabled = True  # it prints a traceback where it finds nothing
        return ShapeInferencePass()(copy).model
    except Exception:  # noqa: BLE001  # a pass may raise anything; without types every value counts as a float, which is only less precise
        return copy


def _above(value: ir.Value, marks: _Marks, known: set[str]) -> Iterator[str]:
    """Yield the nearest comparable floats that `value` is computed from."""
    pending, seen = [value], {value}
    while pending:
        current = pending.pop()
        producer = current.producer()
        if producer is None:
            continue
        for read in _reads(producer):
            if read in seen:
                continue
            seen.add(read)
            comparable = read in marks.inexact and read not in marks.behind and not _is_exact_type(read)
            if comparable and read.name in known:
                yield str(read.name)
            elif read in marks.depends or read in marks.behind:
                pending.append(read)


def compare_points(original: ir.Model, new: ir.Model) -> ComparePoints:
    """Choose what to compare in two models with the same outputs.

    Args:
        original: The model as it was.
        new: The model as it became.

    Returns:
        Outputs to compare, inner values to expose in both, and what is left out.

    """
    old_model, new_model = _typed(original), _typed(new)
    old, fresh = _mark(old_model), _mark(new_model)
    known = {
        str(value.name)
        for node in new_model.graph
        for value in node.outputs
        if value.name and value not in fresh.behind and not _is_exact_type(value)
    }
    outputs, inner, left_out = [], {}, []
    graph_outputs = {str(value.name) for value in old_model.graph.outputs}
    for before, after in zip(old_model.graph.outputs, new_model.graph.outputs, strict=True):
        name = str(before.name)
        reason = old.behind.get(before) or fresh.behind.get(after)
        if not reason and _is_exact_type(before):
            reason = old.rounded.get(before) or fresh.rounded.get(after)
            if reason and not list(_above(before, old, known)):
                reason = None  # nothing else stands for it: it has to be equal
        if not reason:
            outputs.append(name)
            continue
        points = dict.fromkeys(_above(before, old, known))
        inner.update(points)
        stand_in = f"compared above it: {', '.join(points)}" if points else "nothing above it is comparable"
        left_out.append(NotCompared(name, f"it depends on {reason}; {stand_in}"))
    exposed = tuple(name for name in inner if name not in graph_outputs)
    # An inner point that is an output anyway is compared as that.
    outputs += [name for name in inner if name in graph_outputs and name not in outputs]
    return ComparePoints(tuple(outputs), exposed, tuple(left_out))
