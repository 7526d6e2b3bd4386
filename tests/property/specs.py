"""Random layers: every argument of every class, at shapes of every kind, with numbers chosen to hurt.

As in ``graphs``, one generator serves hypothesis and the fuzzer: both are a source of integers. A case is a spec, the
place where it stands, how it is run, and what each of its replicas is fed with.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from bnpass.semantics.resolved import Resolved
from bnpass.semantics.spec import APIS, BatchNormSpec, Shape
from tests.property.graphs import Choices, DrawnChoices, chance, pick
from tests.support.build import BFLOAT16
from tests.support.float64 import Array

Feed = dict[str, Array]
Named = dict[str, Any]

FLOATS = {"float16": np.float16, "bfloat16": BFLOAT16, "float32": np.float32, "float64": np.float64}
TYPES = ("float32", "float32", "float32", "float64", "float16", "bfloat16")
LARGEST_MEAN = {"float16": 3e2, "bfloat16": 1e2, "float32": 1e5, "float64": 1e8}
"""Over the standard deviation; 16 bits hold few numbers near a large one, which is a hard case of its own."""
KINDS = MODERATE, FAR, CONSTANT, TINY = "moderate", "far from zero", "some constant", "tiny variances"
OPSETS = (18, 15, 16, 17, 19, 20, 21, 22, 23)
LIMITS = ("rmin", "rmax", "dmax")
PER_REPLICA = ("X", "dY", "mask", "adjust_scale", "adjust_bias")
GROUP = "world"

INITIALIZERS = ("zeros", "ones", {"class_name": "Constant", "config": {"value": 0.5}}, "random_uniform")
REGULARIZERS = (None, "l2", {"class_name": "L1L2", "config": {"l1": 0.1, "l2": 0.25}})
CONSTRAINTS = (None, "non_neg", {"class_name": "MaxNorm", "config": {"max_value": 1.5, "axis": 0}})


@dataclass(frozen=True)
class LayerCase:
    """One example.

    Attributes:
        spec: The arguments.
        layer: What they mean here.
        built: The mode that the model is built for; None: an input decides.
        training: The mode that it is run in.
        shares: Samples of each replica.
        feeds: What each replica is fed with, by the names of the inputs of its model.
        opset: Of the model.
    """

    spec: BatchNormSpec
    layer: Resolved
    built: bool | None
    training: bool
    shares: tuple[int, ...]
    feeds: tuple[Feed, ...]
    opset: int

    @property
    def masked(self) -> bool:
        """Whether the layer is called with a mask."""
        return "mask" in self.feeds[0]

    @property
    def group(self) -> str:
        """The group of the model."""
        return GROUP if self.layer.synchronized else ""

    @property
    def together(self) -> bool:
        """Whether the replicas share their statistics in this run."""
        selects = self.masked and self.layer.mask_rule == "select"
        return self.layer.synchronized and not selects and self.layer.uses_batch_statistics(self.training)

    def __str__(self) -> str:
        shapes = [feed["X"].shape for feed in self.feeds]
        how = f"built for {self.built}, run in {self.training}, opset {self.opset}, mask {self.masked}"
        return f"{self.spec}\non {self.layer.dtype}{list(self.layer.input_shape)}, fed {shapes}, {how}"


@dataclass(frozen=True)
class _Place:
    """Where a layer stands.

    Attributes:
        shape: The shape of X with 1 where the samples are dealt out.
        axes: The channel axes, ascending.
        dealt: The axis along which replicas have different lengths; None: every axis is a channel axis.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    dealt: int | None


def layer_case(
    choices: Choices, *, several: bool | None = None, tame: bool = False, dtypes: Sequence[str] = TYPES
) -> LayerCase:
    """Build one case from a source of decisions.

    Args:
        choices: The source.
        several: Whether statistics are shared by several replicas; None: that is drawn, too.
        tame: Plain training of moderate numbers: no mask, no renorm, no adjustment, no empty batch, always trainable.
        dtypes: The types to choose from.
    """
    api = pick(choices, ("sync", "tf_keras", "keras3")) if several else pick(choices, APIS)
    dtype = pick(choices, dtypes)
    place = _place(choices, api)
    arguments = _arguments(choices, api, place, several=several, tame=tame)
    spec = _legal(api, arguments, place, dtype)
    resolved = spec.resolve(place.shape, dtype, training=False)
    shares = _shares(choices, resolved, place, several=several, tame=tame)
    declared = _declared(choices, place, shares)
    layer = spec.resolve(declared, dtype)
    built = True if tame else pick(choices, (True, True, True, None, False))
    training = pick(choices, (True, True, False)) if built is None else built
    masked = not tame and not layer.virtual_batch_size and chance(choices, 60 if api == "keras3" else 30)
    opset = pick(choices, OPSETS[:1] if tame else OPSETS)
    opset = max(opset, 16) if dtype == "bfloat16" else opset
    rng = np.random.default_rng(choices.below(1 << 30))
    shapes = [tuple(n if i == place.dealt else m for i, m in enumerate(place.shape)) for n in shares]
    kind = MODERATE if tame else pick(choices, KINDS)
    feeds = _feeds(rng, layer, shapes, masked=masked, built=built, training=training, kind=kind)
    return LayerCase(spec, layer, built, training, shares, feeds, opset)


@st.composite
def layer_cases(
    draw: Any, *, several: bool | None = None, tame: bool = False, dtypes: Sequence[str] = TYPES
) -> LayerCase:
    """Return cases for hypothesis."""
    return layer_case(DrawnChoices(draw), several=several, tame=tame, dtypes=dtypes)


# --- the layer ------------------------------------------------------------------------------------------------------


def _place(choices: Choices, api: str) -> _Place:
    rank = 1 + pick(choices, (1, 2, 3, 3, 4, 4, 0, 5))
    count = 1 if api == "keras3" or rank == 1 or not chance(choices, 30) else 2 + choices.below(min(rank, 3) - 1)
    free = list(range(rank))
    axes = [rank - 1] if not chance(choices, 60) else [free[choices.below(rank)]]
    while len(axes) < count:
        axes.append(pick(choices, [i for i in free if i not in axes]))
    rest = [i for i in free if i not in axes]
    lengths = (2, 3, 1) if rank < 5 else (2, 1)
    shape = [pick(choices, lengths) for _ in free]
    if len(rest) > 1 and chance(choices, 3):
        shape[rest[-1]] = 0  # no positions, whatever the batch
    dealt = rest[0] if rest else None
    if dealt is not None:
        shape[dealt] = 1
    return _Place(tuple(shape), tuple(sorted(axes)), dealt)


def _arguments(choices: Choices, api: str, place: _Place, *, several: bool | None, tame: bool) -> Named:
    """Return arguments that the class takes, but for ``fused``, which depends on the rest."""
    rank = len(place.shape)
    given = [a - rank if chance(choices, 40) else a for a in place.axes]
    if len(given) > 1 and chance(choices, 30):
        given.reverse()
    arguments: Named = {
        "axis": given[0] if len(given) == 1 and (api == "keras3" or not chance(choices, 10)) else given,
        "momentum": pick(choices, (0.99, 0.875, 0.5, 0.0, 1.0)),
        "epsilon": pick(choices, (1e-3, 2.0**-6, 1e-5, 1e-7, 1.0)),
        "center": not chance(choices, 20),
        "scale": not chance(choices, 20),
        "trainable": tame or not chance(choices, 15),
        "fused": None,
    }
    if api in ("tf_keras", "keras3", "keras_v1"):
        arguments["synchronized"] = bool(several) or (several is None and chance(choices, 40))
    if api in ("tf1", "keras_v1", "tf_keras"):
        arguments["fused"] = pick(choices, (None, True, False))
    arguments |= _learning(choices)
    if not tame:
        arguments |= _renorm(choices) | _special(choices, api, place)
    return arguments


def _learning(choices: Choices) -> Named:
    """Return the arguments that say how parameters start and learn; they do not touch a step."""
    found: Named = {"name": pick(choices, (None, "bn"))}
    for parameter in ("beta", "gamma"):
        found[f"{parameter}_initializer"] = pick(choices, INITIALIZERS)
        found[f"{parameter}_regularizer"] = pick(choices, REGULARIZERS)
        found[f"{parameter}_constraint"] = pick(choices, CONSTRAINTS)
    found["moving_mean_initializer"] = pick(choices, INITIALIZERS)
    found["moving_variance_initializer"] = pick(choices, INITIALIZERS[1:])
    return found


def _renorm(choices: Choices) -> Named:
    if not chance(choices, 30):
        return {}
    found: Named = {"renorm": True, "renorm_momentum": pick(choices, (0.99, 0.75, 0.0))}
    limits = {"rmin": (0.8, 0.0, 1.0, "tensor", None), "rmax": (1.25, 1.0, math.inf, "tensor", None)}
    limits["dmax"] = (0.25, 0.0, math.inf, "tensor", None)
    if chance(choices, 60):
        found["renorm_clipping"] = {key: pick(choices, v) for key, v in limits.items() if chance(choices, 70)}
    return found


def _ones(shape: tuple[int, ...]) -> tuple[Array, Array]:
    return np.ones(shape), np.zeros(shape)


def _special(choices: Choices, api: str, place: _Place) -> Named:
    """Return ghost batches or an adjustment, which exclude each other."""
    what = pick(choices, ("", "ghost", "adjustment", "", "ghost"))
    if api == "keras3" or not what or (what == "ghost" and place.dealt != 0):
        return {}
    return {"virtual_batch_size": 1 + choices.below(3)} if what == "ghost" else {"adjustment": _ones}


def _legal(api: str, arguments: Named, place: _Place, dtype: str) -> BatchNormSpec:
    """Return the spec, ``fused`` left out where the class would refuse it (see the rules of V2 in ``spec``)."""
    if api in ("sync", "keras3", "tf1", "keras_v1"):
        arguments["fused"] = arguments["fused"] if api in ("tf1", "keras_v1") else None
        return BatchNormSpec(api, **arguments)  # type: ignore[arg-type]
    rank = len(place.shape)
    last_or_second = len(place.axes) == 1 and place.axes[0] in (1, rank - 1)
    busy = any(arguments.get(name) for name in ("renorm", "virtual_batch_size", "adjustment", "synchronized"))
    can = rank in (4, 5) and dtype != "float64" and last_or_second and not busy
    first_of_four = rank == 4 and arguments["axis"] in (-4, [-4]) and dtype != "float64" and not busy
    if (arguments["fused"] and not can) or (arguments["fused"] is None and first_of_four):
        arguments["fused"] = False
    return BatchNormSpec("tf_keras", **arguments)


def _shares(choices: Choices, layer: Resolved, place: _Place, *, several: bool | None, tame: bool) -> tuple[int, ...]:
    """Return how many samples each replica has."""
    count = (2 + choices.below(3)) if several or (several is None and layer.synchronized and chance(choices, 60)) else 1
    if place.dealt is None:
        return (1,) * count
    if layer.virtual_batch_size:
        return (layer.virtual_batch_size * (1 + choices.below(3)),) * count
    if tame:
        return tuple(2 + choices.below(5) for _ in range(count))
    return tuple(pick(choices, (4, 2, 1, 7, 0, 3)) for _ in range(count))


def _declared(choices: Choices, place: _Place, shares: tuple[int, ...]) -> Shape:
    """Return the shape that the model declares: known lengths are left open here and there, but not of channels."""
    shape: list[int | None] = list(place.shape)
    if place.dealt is not None:
        shape[place.dealt] = shares[0] if len(set(shares)) == 1 and chance(choices, 50) else None
    for i in range(len(shape)):
        if i not in place.axes and i != place.dealt and chance(choices, 20):
            shape[i] = None
    return tuple(shape)


# --- the numbers ----------------------------------------------------------------------------------------------------


def _feeds(
    rng: np.random.Generator,
    layer: Resolved,
    shapes: list[tuple[int, ...]],
    *,
    masked: bool,
    built: bool | None,
    training: bool,
    kind: str,
) -> tuple[Feed, ...]:
    shared = _state(rng, layer, kind) | ({"training": np.array(training)} if built is None else {})
    from_batch = layer.uses_batch_statistics(built is not False)
    if not (from_batch and layer.renorm is not None):
        shared = {k: v for k, v in shared.items() if k not in ("input_stddev", "renorm_mean", "renorm_stddev", *LIMITS)}
    means, stds = _levels(rng, layer, kind)
    feeds = []
    for shape in shapes:
        feed = shared | {"X": _data(rng, layer, shape, means, stds), "dY": _gradient(rng, layer, shape)}
        if masked:
            feed["mask"] = _mask(rng, layer, shape)
        if from_batch and layer.adjustment is not None:
            feed |= _adjustment(rng, layer, shape)
        feeds.append(feed)
    return tuple(feeds)


def _state(rng: np.random.Generator, layer: Resolved, kind: str) -> Feed:
    C, dtype = layer.channels, FLOATS[layer.parameter_dtype]
    tiny = kind == TINY
    values = {
        "scale": rng.uniform(0.5, 2, C) * rng.choice([-1, 1], C),
        "B": rng.normal(size=C) * rng.choice([1, 0, 10], C),
        "input_mean": rng.normal(size=C) * rng.choice([1, 100], C),
        "input_var": rng.uniform(0.25, 2, C) * (rng.choice([1, 0, 1e-6], C) if tiny else 1),
        "input_stddev": rng.uniform(0.5, 2, C) * (rng.choice([1, 0], C) if tiny else 1),
        "renorm_mean": rng.normal(size=C),
        "renorm_stddev": 10.0 ** rng.uniform(-3, 0.5, C) * (rng.choice([1, 0], C) if tiny else 1),
    }
    limits = {} if layer.renorm is None else {k: v for k, v in _LATE.items() if getattr(layer.renorm, k) is None}
    absent = {name for name, has in (("scale", layer.scale), ("B", layer.center)) if not has}
    return {name: np.asarray(v, dtype) for name, v in (values | limits).items() if name not in absent}


_LATE: Mapping[str, Any] = {"rmin": 0.75, "rmax": 1.125, "dmax": 0.25}


def _levels(rng: np.random.Generator, layer: Resolved, kind: str) -> tuple[Array, Array]:
    """Return mean and standard deviation of every channel; 0 for a constant one."""
    C = layer.channels
    if kind == MODERATE:
        return rng.normal(size=C), rng.uniform(0.5, 2, C)
    if kind == FAR:
        return rng.choice([-1, 1], C) * LARGEST_MEAN[layer.dtype] * rng.uniform(0.1, 1, C), np.ones(C)
    if kind == CONSTANT:
        return rng.normal(size=C) * 3, rng.choice([0.0, 1.0], C)
    return rng.normal(size=C) * 1e-3, 10.0 ** rng.uniform(-6, -2, C)


def _data(rng: np.random.Generator, layer: Resolved, shape: tuple[int, ...], means: Array, stds: Array) -> Array:
    along = [n if i in layer.axes else 1 for i, n in enumerate(shape)]
    x = rng.normal(size=shape) * stds.reshape(along) + means.reshape(along)
    return np.asarray(x, FLOATS[layer.dtype])


def _gradient(rng: np.random.Generator, layer: Resolved, shape: tuple[int, ...]) -> Array:
    return np.asarray(rng.normal(size=shape) + rng.choice([0, 1]), FLOATS[layer.dtype])


def _mask(rng: np.random.Generator, layer: Resolved, shape: tuple[int, ...]) -> Array:
    lengths = [n if rng.random() < 0.7 else 1 for n in shape[:-1]]
    weights = rng.choice([0.0, 1.0, 0.25, 0.75] if rng.random() < 0.5 else [0.0, 1.0], lengths)
    if rng.random() < 0.1:
        weights = np.zeros(lengths)
    return np.asarray(weights != 0) if layer.mask_rule == "select" else np.asarray(weights, FLOATS[layer.dtype])


def _adjustment(rng: np.random.Generator, layer: Resolved, shape: tuple[int, ...]) -> Feed:
    dtype = FLOATS[layer.parameter_dtype]
    lengths = [[n if rng.random() < 0.5 else 1 for n in shape] for _ in range(2)]
    a, c = rng.uniform(0.5, 1.5, lengths[0]), rng.normal(size=lengths[1])
    return {"adjust_scale": np.asarray(a, dtype), "adjust_bias": np.asarray(c, dtype)}
