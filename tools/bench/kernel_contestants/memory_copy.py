"""The floor: two threads copy memory."""

from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version as version_of

import numpy as np
from layer import COPIED_BYTES, THREADS, Layer, Pass

NOTE = "numpy.copyto, each thread a half"


def start() -> None:
    """Nothing to do."""


def version() -> str:
    """Return its version."""
    return f"numpy {version_of('numpy')}"


def opened(layer: Layer) -> dict[str, Pass]:  # noqa: ARG001  the same for all
    """Fill the memory."""
    source, target = np.ones(COPIED_BYTES, np.uint8), np.zeros(COPIED_BYTES, np.uint8)
    pairs = list(zip(np.array_split(target, THREADS), np.array_split(source, THREADS), strict=True))
    pool = ThreadPoolExecutor(THREADS)

    def copy() -> None:
        list(pool.map(lambda pair: np.copyto(*pair), pairs))  # which lets other threads run meanwhile

    def result() -> np.ndarray:
        copy()
        return target

    return {"copy": Pass(copy, result)}
