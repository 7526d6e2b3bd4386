"""The numbers that a case is fed: the same for the same case, on every machine.

For step s and replica r: ``x/s/r``, ``w/s/r`` (the gradient of the loss with regard to Y) and ``mask/s/r``; before the
first step ``start/gamma`` and so on. All of them fit exactly into the type that the layer holds them in.
"""

import zlib

import numpy as np

from tests.conformance.layers import given
from tests.conformance.layers.cases import DTYPES, Array, Case
from tests.conformance.layers.exchange import Arrays

STATISTICS = ("moving_mean", "moving_variance")
RENORM_STATISTICS = ("moving_stddev", "renorm_mean", "renorm_stddev")

OFFSETS = {"normal": 0.5, "mean 1e2": 1e2, "mean 1e3": 1e3, "mean 1e4": 1e4, "mean 1e5": 1e5}
DATA = (*OFFSETS, "constant", "large", "tiny", "wide", "nan", "inf", "masked nan", "integers", *given.DATA)


def rounded(values: Array, dtype: str) -> Array:
    """Round to a type, and say it in float64."""
    return np.asarray(values, np.float64).astype(DTYPES[dtype]).astype(np.float64)


def draw(case: Case) -> Arrays:
    """Return every array of a case."""
    rng = np.random.default_rng(zlib.crc32(case.id.encode()))
    arrays: Arrays = {}
    for name, value in start(case, rng).items():
        arrays[f"start/{name}"] = value
    for step in range(len(case.steps)):
        for replica, shape in enumerate(case.shares):
            arrays[f"x/{step}/{replica}"] = rounded(_data(case, shape, rng, step, replica), case.dtype)
            arrays[f"w/{step}/{replica}"] = rounded(rng.normal(size=shape), case.dtype)
            if case.mask:
                arrays[f"mask/{step}/{replica}"] = mask(case.mask, shape, rng, replica)
    return arrays


def start(case: Case, rng: np.random.Generator) -> Arrays:
    """Return weights and statistics that are neither 0 nor 1, each [C]."""
    kind = "float64" if case.dtype == "float64" else "float32"
    size = case.channels
    values = {
        "gamma": rng.uniform(0.5, 1.5, size) * rng.choice([1, 1, -1], size),
        "beta": rng.normal(size=size),
        "moving_mean": rng.normal(size=size),
        "moving_variance": rng.uniform(0.3, 2.0, size),
    }
    if case.arguments.get("renorm"):
        # near the statistics of the data, so that some channels are clipped and some are not
        values["moving_stddev"] = rng.uniform(0.6, 1.4, size)
        values["renorm_mean"] = OFFSETS.get(case.data, 0.5) + 0.5 * rng.normal(size=size)
        values["renorm_stddev"] = rng.uniform(0.6, 1.6, size)
    return {name: rounded(value, kind) for name, value in values.items()}


def _data(case: Case, shape: tuple[int, ...], rng: np.random.Generator, step: int, replica: int) -> Array:
    if case.data in given.DATA:
        return given.DATA[case.data](shape, replica)
    values = rng.normal(size=shape)
    channel = [n if axis in case.axes else 1 for axis, n in enumerate(shape)]
    spread = rng.uniform(0.5, 1.5, channel)
    offset = rng.normal(size=channel)
    if case.data == "constant":
        return np.broadcast_to(offset, shape) + 0 * values
    if case.data == "large":
        return values * 1000
    if case.data == "integers":  # their sums and sums of squares are exact in float32
        return rng.integers(995, 1010, shape).astype(np.float64)
    if case.data == "tiny":
        return values * 1e-3
    if case.data == "wide":
        return values * 10 + 5
    values = values * spread + offset + OFFSETS.get(case.data, 0.5)
    if case.data in {"nan", "inf"} and values.size and step == 1:
        values.flat[0] = np.nan if case.data == "nan" else np.inf
    if case.data == "masked nan" and step == 1:
        values.flat[-1] = np.nan  # "partial" masks the last position
    return values


def mask(kind: str, shape: tuple[int, ...], rng: np.random.Generator, replica: int) -> Array:
    """Return a mask of one dimension less than the input.

    Kinds: "partial", "none left" (all masked), "first masked" (all of the first replica), "broadcast" (length 1 along
    the second axis), "fractional" (weights), "one left" (W = 1), "two left" (W = 2), and the given ones.
    """
    outer = shape[:-1]
    if kind in given.MASKS:
        return given.MASKS[kind](outer)
    if kind == "none left" or (kind == "first masked" and replica == 0):
        return np.zeros(outer)
    if kind in {"one left", "two left"}:
        left = np.zeros(outer)
        left.flat[: 1 if kind == "one left" else 2] = 1
        return left
    if kind == "broadcast":
        outer = (outer[0], 1, *outer[2:])
    if kind == "fractional":
        return rng.integers(1, 8, outer) / 4
    drawn = (rng.uniform(size=outer) < 0.6).astype(np.float64)
    if drawn.size:
        drawn.flat[0], drawn.flat[-1] = 1, 0
    return drawn
