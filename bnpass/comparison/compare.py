"""Compare two models from end to end: match, then list what differs.

The models are the same if each node has a counterpart with the same op, the same attributes and, bit for bit, the same
constants, that reads and gives the same; what nodes, values, weights and open dimensions are called, and the order of
nodes, does not count. Nor does it count which of several copies of one computation somebody reads.
"""

from collections.abc import Iterator

import onnx_ir as ir

from bnpass.comparison.changes import Changes
from bnpass.comparison.contents import Digests, type_of
from bnpass.comparison.facts import (
    DEFAULTS_FROM,
    defaults_of,
    inputs_of,
    interface,
    matched,
    opsets,
    renamed_dims,
    uncounted,
)
from bnpass.comparison.pairs import Matcher, Pairs
from bnpass.comparison.prints import Prints, combined
from bnpass.comparison.result import ChangedNode, Comparison, OnlyNode, Renamed
from bnpass.comparison.weights import changed_weights, only_weights, pair_weights


def compare(a: ir.Model, b: ir.Model) -> Comparison:
    """List everything that differs between two models; neither is changed.

    Args:
        a: The first.
        b: The second.

    Returns:
        The differences, and what is only called something else.

    Raises:
        ModelError: The nodes of a model are not in topological order.
    """
    if a is b:
        return Comparison(_nodes(a, b), _weights(a, b))
    digests, pairs = Digests(), Pairs()
    exact, shapes = Prints(digests), Prints(lambda tensor: type_of(tensor).encode())
    for prints in (exact, shapes):
        _seed(prints, a, b)
        _print(prints, a)
        _print(prints, b)
    matcher = Matcher(pairs, exact, shapes)
    for given in (inputs_of, defaults_of):
        for x, y in matched(given(a), given(b)):
            pairs.add_values(x, y)
    matcher.match("", a.graph, b.graph)
    for key in (key for key in a.functions if key in b.functions):
        f, g = a.functions[key], b.functions[key]
        for x, y in zip(f.inputs, g.inputs, strict=False):
            pairs.add_values(x, y)
        matcher.match(_called(f), f.graph, g.graph)
    pair_weights(pairs, digests)
    changes = Changes(pairs, exact)
    return Comparison(
        nodes=_nodes(a, b),
        weights=_weights(a, b),
        only_nodes=(*changes.only(), *_only_functions(a, b)),
        changed_nodes=(*changes.changed(), *_changed_functions(a, b, exact)),
        interface=tuple(interface(a, b)),
        only_weights=tuple(only_weights(pairs)),
        changed_weights=(*changed_weights(pairs, digests), *changes.tensors()),
        renamed=(*changes.renamed(), *(Renamed("dimension", *names) for names in renamed_dims(a, b).items())),
        uncounted=tuple(uncounted(a, b)),
    )


def _seed(prints: Prints, a: ir.Model, b: ir.Model) -> None:
    """Give inputs that are counterparts the same prints, and all others prints of their own."""
    pairs = [pair for given in (inputs_of, defaults_of) for pair in matched(given(a), given(b))]
    for number, pair in enumerate(pairs):
        prints.values |= dict.fromkeys(pair, combined("input", number))
    for side, model in enumerate((a, b)):
        for value in model.graph.inputs:
            own = combined("input of", side, str(value.name))
            old = model.ir_version < DEFAULTS_FROM and value.is_initializer()
            prints.values.setdefault(value, prints.constant(value) if old else own)


def _print(prints: Prints, model: ir.Model) -> None:
    prints.add(model.graph)
    for function in model.functions.values():
        prints.add(function.graph)


def _only_functions(a: ir.Model, b: ir.Model) -> Iterator[OnlyNode]:
    yield from (OnlyNode("a", "", _called(f), "function") for key, f in a.functions.items() if key not in b.functions)
    yield from (OnlyNode("b", "", _called(f), "function") for key, f in b.functions.items() if key not in a.functions)


def _changed_functions(a: ir.Model, b: ir.Model, exact: Prints) -> Iterator[ChangedNode]:
    """Yield what differs about functions besides their nodes."""
    for key, f in a.functions.items():
        g = b.functions.get(key)
        if g is None:
            continue
        name = _called(f)
        for fact in opsets(f.opset_imports, g.opset_imports):
            yield ChangedNode(name, "", "", fact.what, fact.before, fact.after)
        old, new = ({n: exact.attribute(attr) for n, attr in h.attributes.items()} for h in (f, g))
        for attribute in sorted({*old, *new}):
            if old.get(attribute) != new.get(attribute):
                before, after = ("there" if attribute in h else "nothing" for h in (old, new))
                yield ChangedNode(name, "", "", f"attribute {attribute}", before, after)


def _called(function: ir.Function) -> str:
    return "function '" + ".".join(filter(None, (function.domain, function.name, function.overload))) + "'"


def _nodes(a: ir.Model, b: ir.Model) -> tuple[int, int]:
    first, second = (sum(len(graph) for graph in _graphs(model)) for model in (a, b))
    return first, second


def _weights(a: ir.Model, b: ir.Model) -> tuple[int, int]:
    first, second = (sum(len(graph.initializers) for graph in _graphs(model)) for model in (a, b))
    return first, second


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    yield from model.graphs()
    for function in model.functions.values():
        yield function.graph
        yield from function.subgraphs()
