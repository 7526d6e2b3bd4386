"""Pairwise covering arrays: few rows in which every legal pair of levels stands beside each other at least once.

Greedy, as in AETG (Cohen, Dalal, Fredman, Patton 1997): among some random completions of a pair that is still
missing, the one that covers most missing pairs. The random numbers come from a fixed seed: same factors, same rows.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

Row = dict[str, str]
Pair = tuple[tuple[str, str], tuple[str, str]]
Legal = Callable[[Row], bool]

_COMPLETIONS = 60
_ATTEMPTS = 300
"""A pair of which that many completions are illegal counts as illegal itself."""


def pairs_of(row: Mapping[str, str]) -> set[Pair]:
    """Return the pairs that a row covers."""
    return set(combinations(row.items(), 2))


def all_pairs(factors: Mapping[str, Sequence[str]]) -> list[Pair]:
    """Return every pair of levels of two factors."""
    return [((a, x), (b, y)) for (a, xs), (b, ys) in combinations(factors.items(), 2) for x in xs for y in ys]


def completion(pair: Pair, factors: Mapping[str, Sequence[str]], legal: Legal, rng: random.Random) -> Row | None:
    """Return a legal row with that pair, or None if none was found."""
    for _ in range(_ATTEMPTS):
        row = {name: rng.choice(levels) for name, levels in factors.items()} | dict(pair)
        # most levels are legal where the others are plain: every second draw is mostly plain
        if rng.random() < 0.7:
            row = {name: levels[0] if rng.random() < 0.6 else row[name] for name, levels in factors.items()} | dict(
                pair
            )
        if legal(row):
            return row
    return None


def covering(factors: Mapping[str, Sequence[str]], legal: Legal, seed: int = 0) -> list[Row]:
    """Return rows that cover every legal pair.

    Args:
        factors: The levels of each factor, the plain one first.
        legal: Whether a whole row may be.
        seed: Of the random numbers.
    """
    rng = random.Random(seed)  # noqa: S311  a covering array is no secret
    missing = dict.fromkeys(all_pairs(factors))
    rows: list[Row] = []
    while missing:
        pair = next(iter(missing))
        found = [row for _ in range(_COMPLETIONS) if (row := completion(pair, factors, legal, rng)) is not None]
        if not found:
            del missing[pair]
            continue
        best = max(found, key=lambda row: sum(p in missing for p in pairs_of(row)))
        rows.append(best)
        for covered in pairs_of(best):
            missing.pop(covered, None)
    return rows
