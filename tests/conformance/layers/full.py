"""The full product: every legal combination of the arguments that change the formula, the other factors drawn.

Far more cases than a test run can take: ``python -m tools.conformance.full`` runs them.
"""

import random
import zlib
from collections.abc import Iterator
from itertools import product

from tests.conformance.layers.cases import APIS, Api, Case
from tests.conformance.layers.covering import Row
from tests.conformance.layers.factors import FACTORS, PLACES, case_of, legal, plain

COMBINED = ("place", "renorm", "fused", "ghost", "adjustment", "training", "mask", "trainable")
"""Combined in full; of the other factors each combination gets one draw."""

LEVELS = {
    "renorm": ("no", "clipped"),
    "adjustment": ("no", "mixed"),
    "mask": ("no", "partial"),
}
"""Fewer levels than the covering arrays have, where the others differ in numbers alone."""

KERAS3 = ("place", "center", "scale", "renorm", "mask", "trainable")
"""It has fewer arguments, and so all levels of them."""

_TRIES = 40


def combinations(api: Api) -> Iterator[Row]:
    """Yield every legal combination of the combined factors."""
    factors = dict(FACTORS[api])
    factors["place"] = [p for p, (_, axis) in PLACES.items() if not (api == "keras3" and isinstance(axis, list))]
    chosen = {name: factors[name] for name in KERAS3}
    if api != "keras3":
        chosen = {name: LEVELS.get(name, factors[name]) for name in COMBINED if name in factors}
    for levels in product(*chosen.values()):
        row = dict(zip(chosen, levels, strict=True))
        if legal(api, row | _plain_rest(api, row)):
            yield row


def _plain_rest(api: Api, row: Row) -> Row:
    """Return the levels that go with most: renorm of a frozen V1 layer is a matter of the way it is run."""
    frozen = row.get("trainable") == "no" and row.get("renorm") != "no"
    ways = {"tf1": "graph", "keras_v1": "eager"}
    return {"way": ways[api]} if frozen and api in ways else {}


def cases(api: Api) -> Iterator[Case]:
    """Yield the cases of the full product of a class."""
    for number, row in enumerate(combinations(api)):
        rng = random.Random(zlib.crc32(f"{api}{number}".encode()))  # noqa: S311
        rest = {name: levels for name, levels in FACTORS[api].items() if name not in row}
        whole = row | _plain_rest(api, row)
        for _ in range(_TRIES):
            drawn = row | {name: rng.choice(levels) for name, levels in rest.items()}
            if legal(api, drawn):
                whole = drawn
                break
        levels = plain(api) | whole
        yield case_of(api, {k: v for k, v in levels.items() if k in FACTORS[api]}, "full", f"{number:05}")


def every_case() -> list[Case]:
    """Return the full product of all classes."""
    return [case for api in APIS for case in cases(api)]
