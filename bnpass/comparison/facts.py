"""What two models are to their callers: inputs, outputs, opsets; and who made them, which does not count."""

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from bnpass.comparison.result import Fact

DEFAULTS_FROM = 4
"""From this IR version on, an initializer that is also an input is a default that callers may override."""


def inputs_of(model: ir.Model) -> list[ir.Value]:
    """Return the inputs that a caller has to give."""
    return [value for value in model.graph.inputs if not value.is_initializer()]


def outputs_of(model: ir.Model) -> list[ir.Value]:
    """Return what a caller gets."""
    return list(model.graph.outputs)


def defaults_of(model: ir.Model) -> list[ir.Value]:
    """Return the inputs that a caller may give."""
    if model.ir_version < DEFAULTS_FROM:
        return []
    return [value for value in model.graph.inputs if value.is_initializer()]


def matched(a: Sequence[ir.Value], b: Sequence[ir.Value]) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Yield values of the same name; then, of the others, those at the same place among them."""
    theirs = {value.name: value for value in b}
    names = {value.name for value in a}
    yield from ((value, theirs[value.name]) for value in a if value.name in theirs)
    yield from zip(
        (value for value in a if value.name not in theirs),
        (value for value in b if value.name not in names),
        strict=False,
    )


def interface(a: ir.Model, b: ir.Model) -> Iterator[Fact]:
    """Yield what differs for a caller."""
    dims = renamed_dims(a, b)
    yield from _values("input", inputs_of(a), inputs_of(b), dims)
    yield from _values("input with a default", defaults_of(a), defaults_of(b), dims)
    yield from _values("output", a.graph.outputs, b.graph.outputs, dims)
    used = _domains(a, b)
    yield from (fact for domain, fact in _opsets(a.opset_imports, b.opset_imports) if domain in used)


def renamed_dims(a: ir.Model, b: ir.Model) -> dict[str, str]:
    """Return the names of open dimensions that stand for each other wherever callers see them, and differ.

    A name says which lengths are equal, and nothing else; so another one that says the same is as good.
    """
    pairs = [
        (x, y)
        for given in (inputs_of, defaults_of, outputs_of)
        for v, w in matched(given(a), given(b))
        for x, y in zip(_dims(v), _dims(w), strict=False)
        if isinstance(x, str) and isinstance(y, str)
    ]
    return {x: y for x, y in pairs if x != y and all((p == x) == (q == y) for p, q in pairs)}


def runs_alike(a: ir.Model, b: ir.Model) -> bool:
    """Whether both take and give values of the same names and types, so that they can be run on the same inputs."""
    left, right = (
        [[(v.name, str(v.type)) for v in given(model)] for given in (inputs_of, outputs_of)] for model in (a, b)
    )
    return left == right


def uncounted(a: ir.Model, b: ir.Model) -> Iterator[Fact]:
    """Yield what differs and makes no difference."""
    used = _domains(a, b)
    yield from (fact for domain, fact in _opsets(a.opset_imports, b.opset_imports) if domain not in used)
    for what in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
        yield from _fact(what, getattr(a, what), getattr(b, what))
    yield from _fact("name of the graph", a.graph.name, b.graph.name)
    yield from _fact("doc_string of the graph", a.graph.doc_string, b.graph.doc_string)
    for key in sorted({*a.metadata_props, *b.metadata_props}):
        yield from _fact(f"metadata '{key}'", a.metadata_props.get(key), b.metadata_props.get(key))


def opsets(a: Mapping[str, int], b: Mapping[str, int]) -> Iterator[Fact]:
    """Yield the versions that differ, by domain."""
    yield from (fact for _, fact in _opsets(a, b))


def described(value: ir.Value, dims: Mapping[str, str] | None = None) -> str:
    """Return a name with its type and shape; open dimensions as they are called in ``dims``."""
    names = [(dims or {}).get(dim, dim) if isinstance(dim, str) else dim for dim in _dims(value)]
    shape = "" if value.shape is None else f"[{','.join('?' if d is None else str(d) for d in names)}]"
    return f"'{value.name}' {value.type or 'of no type'}{shape}"


def _dims(value: ir.Value) -> list[int | str | None]:
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape or ()]


def _values(what: str, a: Sequence[ir.Value], b: Sequence[ir.Value], dims: Mapping[str, str]) -> Iterator[Fact]:
    pairs = list(matched(a, b))
    for x, y in pairs:
        if described(x, dims) != described(y):
            yield Fact(what, described(x), described(y))
    left, right = ({pair[place] for pair in pairs} for place in (0, 1))
    yield from (Fact(what, described(x), "") for x in a if x not in left)
    yield from (Fact(what, "", described(y)) for y in b if y not in right)
    names = [[str(value.name) for value in values] for values in (a, b)]
    if names[0] != names[1] and sorted(names[0]) == sorted(names[1]):
        yield Fact(f"order of {what}s", ", ".join(names[0]), ", ".join(names[1]))


def _opsets(a: Mapping[str, int], b: Mapping[str, int]) -> Iterator[tuple[str, Fact]]:
    old, new = ({"" if d == "ai.onnx" else d: v for d, v in imports.items()} for imports in (a, b))
    for domain in sorted({*old, *new}):
        for fact in _fact(f"opset of '{domain or 'ai.onnx'}'", old.get(domain), new.get(domain)):
            yield domain, fact


def _fact(what: str, before: object, after: object) -> Iterator[Fact]:
    texts = ["" if value is None else str(value) for value in (before, after)]
    if texts[0] != texts[1]:
        yield Fact(what, *texts)


def _domains(a: ir.Model, b: ir.Model) -> set[str]:
    """Return the domains of all nodes."""
    return {node.domain for model in (a, b) for graph in _graphs(model) for node in graph}


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    yield from model.graphs()
    for function in model.functions.values():
        yield function.graph
        yield from function.subgraphs()
