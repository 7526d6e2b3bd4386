"""How cases and results travel between processes: JSON beside one npz of float64 arrays.

Every type of a layer fits into float64 without loss, so no array needs a type of its own; a mask is 0 and 1.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.conformance.layers.cases import Array

Arrays = dict[str, Array]


def write(folder: Path, what: Any, arrays: Mapping[str, Array]) -> None:
    """Write plain data and arrays into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plain.json").write_text(json.dumps(what), encoding="utf-8")
    # one npz member per array would cost more than the arrays: all numbers in one, and where each begins
    shapes = {key: list(np.shape(value)) for key, value in arrays.items()}
    flat = [np.asarray(value, np.float64).ravel() for value in arrays.values()]
    (folder / "shapes.json").write_text(json.dumps(shapes), encoding="utf-8")
    np.save(folder / "numbers.npy", np.concatenate([*flat, np.zeros(0)]), allow_pickle=False)


def read(folder: Path) -> tuple[Any, Arrays]:
    """Read what ``write`` wrote."""
    what = json.loads((folder / "plain.json").read_text(encoding="utf-8"))
    shapes = json.loads((folder / "shapes.json").read_text(encoding="utf-8"))
    numbers = np.load(folder / "numbers.npy", allow_pickle=False)
    arrays: Arrays = {}
    position = 0
    for key, shape in shapes.items():
        size = int(np.prod(shape))
        arrays[key] = numbers[position : position + size].reshape(shape)
        position += size
    return what, arrays


def part(arrays: Arrays, prefix: str) -> Arrays:
    """Return the arrays below a prefix, without it."""
    start = f"{prefix}/"
    return {key.removeprefix(start): value for key, value in arrays.items() if key.startswith(start)}
