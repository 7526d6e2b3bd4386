"""Which initializer of one model is which of the other, and how they differ."""

from collections.abc import Iterator

import onnx_ir as ir

from bnpass.comparison.contents import Digests, difference, type_of
from bnpass.comparison.pairs import Pairs
from bnpass.comparison.prints import operands
from bnpass.comparison.result import ChangedWeight, OnlyWeight, Side


def pair_weights(pairs: Pairs, digests: Digests) -> None:
    """Match initializers: those that hold the same and are read at the same place, then by name, place, and content.

    Args:
        pairs: What is matched; it grows.
        digests: The digests of constants.
    """
    slots = list(_slots(pairs))
    for a, b in slots:
        if _content(a, digests) == _content(b, digests):
            pairs.add_weights(a, b)
    for _, x, y in pairs.graphs:
        for name in (name for name in x.initializers if name in y.initializers):
            pairs.add_weights(x.initializers[name], y.initializers[name])
    for a, b in slots:
        pairs.add_weights(a, b)
    for _, x, y in pairs.graphs:
        _pair_contents(pairs, x, y, digests)


def _pair_contents(pairs: Pairs, x: ir.Graph, y: ir.Graph, digests: Digests) -> None:
    left: dict[bytes, list[ir.Value]] = {}
    for b in y.initializers.values():
        if b not in pairs.taken_weights:
            left.setdefault(_content(b, digests), []).append(b)
    for a in x.initializers.values():
        if a not in pairs.weights and (same := left.get(_content(a, digests))):
            pairs.add_weights(a, same.pop(0))


def changed_weights(pairs: Pairs, digests: Digests) -> Iterator[ChangedWeight]:
    """Yield the initializers whose counterparts hold something else."""
    for a, b in pairs.weights.items():
        x, y = a.const_value, b.const_value
        if x is not None and y is not None and digests(x) != digests(y):
            yield changed_tensor(str(a.name), x, y)


def changed_tensor(name: str, a: ir.TensorProtocol, b: ir.TensorProtocol) -> ChangedWeight:
    """Return how two constants that are not the same differ."""
    before, after = type_of(a), type_of(b)
    if before != after:
        return ChangedWeight(name, before, after, 0, 0, None, None)
    found = difference(a, b)
    return ChangedWeight(name, before, after, found.elements, found.differing, found.max_abs, found.max_rel)


def only_weights(pairs: Pairs) -> Iterator[OnlyWeight]:
    """Yield the initializers without a counterpart, those of the first model first."""
    for _, x, _ in pairs.graphs:
        yield from (_only("a", value) for value in x.initializers.values() if value not in pairs.weights)
    for _, _, y in pairs.graphs:
        yield from (_only("b", value) for value in y.initializers.values() if value not in pairs.taken_weights)


def _only(side: Side, value: ir.Value) -> OnlyWeight:
    return OnlyWeight(side, str(value.name), "" if value.const_value is None else type_of(value.const_value))


def _slots(pairs: Pairs) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Yield the initializers that matched nodes read at the same places."""
    for x, y in pairs.nodes.items():
        for a, b in zip(operands(x), operands(y), strict=False):
            if a is not None and b is not None and a.is_initializer() and b.is_initializer():
                yield a, b


def _content(value: ir.Value, digests: Digests) -> bytes:
    return b"" if value.const_value is None else digests(value.const_value)
