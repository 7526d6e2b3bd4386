"""Keras initializers, regularizers and constraints of a layer's parameters, in NumPy float64.

Each may be given as Keras takes it: a name, a config dict ``{"class_name": ..., "config": ...}`` or a
callable; initializers also as an array, which means those very numbers. The formulas are those of
tf_keras 2.21 and Keras 3.15. The two know different names, but no name means two things.

A parameter has the shape of ``Resolved.parameter_shape``: [C], or the rank of the layer's input where it
has several axes or virtual batches. Norms over an axis and fans of an initializer depend on that shape.

Random initializers have Keras's distributions but not its numbers: these come from the generator
passed in, and a seed in a config is not used. What needs a matrix or a kernel (Orthogonal, Identity,
OrthogonalRegularizer, RadialConstraint) is refused.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Shape = tuple[int, ...]
Generation = Literal["tf_keras", "keras3"]
Initializer = str | Mapping[str, Any] | Callable[..., Any] | Array
Regularizer = str | Mapping[str, Any] | Callable[..., Any]
Constraint = str | Mapping[str, Any] | Callable[..., Any]

EPSILON = 1e-7
"""Keras's fuzz factor, as it is set by default."""

TRUNCATED_STDDEV = 0.87962566103423978
"""Standard deviation of a standard normal distribution cut off at ±2: Keras divides by it."""

KEYS_OF_ONE_GENERATION: dict[str, Generation] = {"input_axes": "keras3", "output_axes": "keras3", "l": "tf_keras"}


class ParameterError(ValueError):
    """An initializer, regularizer or constraint that is unknown, malformed or does not fit the parameter."""


def check_initializer(initializer: Initializer, keras: Generation) -> None:
    """Refuse an initializer that this generation of Keras does not take.

    Raises:
        ParameterError: The name or a key of the config is unknown, or a value is out of range.
    """
    if not isinstance(initializer, np.ndarray):
        _understood("initializer", initializer, keras)


def check_regularizer(regularizer: Regularizer | None, keras: Generation) -> None:
    """Refuse a regularizer that this generation of Keras does not take; None is none.

    Raises:
        ParameterError: The name or a key of the config is unknown, or a factor is not a finite number
            (in Keras 3: not a non-negative one).
    """
    if regularizer is None:
        return
    _refuse_class(regularizer, keras)
    understood = _understood("regularizer", regularizer, keras)
    if keras == "keras3" and isinstance(understood, _L1L2) and min(understood.l1, understood.l2) < 0:
        raise ParameterError("Keras 3 takes no negative factor")


def check_constraint(constraint: Constraint | None, keras: Generation) -> None:
    """Refuse a constraint that this generation of Keras does not take; None is none.

    Raises:
        ParameterError: The name or a key of the config is unknown, or a value is not a number.
    """
    if constraint is not None:
        _refuse_class(constraint, keras)
        _understood("constraint", constraint, keras)


def initial_value(initializer: Initializer, shape: Shape, rng: np.random.Generator, dtype: str = "float32") -> Array:
    """Return the value a parameter starts from.

    Args:
        initializer: Name, config dict, array with one or as many elements as the parameter, or a
            callable ``(shape, dtype=...)``.
        shape: Shape of the parameter as the layer keeps it.
        rng: Source of random numbers.
        dtype: The type asked of a callable; a seeded Keras object gives other numbers for another type.

    Returns:
        float64, of ``shape``.

    Raises:
        ParameterError: The initializer is not understood, or cannot fill this shape.
    """
    if isinstance(initializer, np.ndarray):
        return _Constant(initializer)(shape, rng)
    understood = _understood("initializer", initializer)
    if isinstance(understood, _BUILT_IN):
        return np.asarray(understood(shape, rng), np.float64)
    return _numbers(understood(shape, dtype=dtype), shape, "an initializer")


def regularization_loss(regularizer: Regularizer | None, w: Array) -> float:
    """Return the term a parameter adds to the loss; 0 without a regularizer.

    Args:
        regularizer: Name, config dict or callable ``(w)`` that returns a scalar.
        w: The parameter, in the shape in which the layer keeps it.

    Raises:
        ParameterError: The regularizer is not understood, or does not fit a parameter of this shape.
    """
    if regularizer is None:
        return 0.0
    understood = _understood("regularizer", regularizer)
    return float(_numbers(understood(np.asarray(w, np.float64)), (), "a regularizer"))


def constrained(constraint: Constraint | None, w: Array) -> Array:
    """Return the parameter as projected after a step of the optimizer; unchanged without a constraint.

    Args:
        constraint: Name, config dict or callable ``(w)`` that returns an array of the same shape.
        w: The parameter, in the shape in which the layer keeps it.

    Returns:
        float64, of the shape of ``w``.

    Raises:
        ParameterError: The constraint is not understood, or does not fit a parameter of this shape.
    """
    w = np.asarray(w, np.float64)
    if constraint is None:
        return w
    return _numbers(_understood("constraint", constraint)(w), w.shape, "a constraint")


def _numbers(value: object, shape: Shape, what: str) -> Array:
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ParameterError(f"{what} returned {type(value).__name__}, not numbers") from error
    if array.shape != shape:
        raise ParameterError(f"{what} returned shape {array.shape} where {shape} is needed")
    return array


def _number(value: object, name: str) -> float:
    if isinstance(value, int | float | np.floating | np.integer):
        return float(value)
    raise ParameterError(f"{name} must be a number, got {value!r}")


def _fans(shape: Shape, input_axes: list[int] | None, output_axes: list[int] | None) -> tuple[int, int]:
    """Return fan-in and fan-out of a shape: axes before the last two are taken for those of a kernel."""
    if input_axes is not None and output_axes is not None:
        return math.prod(shape[a] for a in input_axes), math.prod(shape[a] for a in output_axes)
    if len(shape) < 2:
        return math.prod(shape), math.prod(shape)
    kernel = math.prod(shape[:-2])
    return kernel * shape[-2], kernel * shape[-1]


def _truncated_normal(shape: Shape, rng: np.random.Generator) -> Array:
    """Draw from a standard normal distribution; what lies outside ±2 is drawn again."""
    x = rng.standard_normal(shape)
    while (outside := np.abs(x) > 2).any():
        x[outside] = rng.standard_normal(int(outside.sum()))
    return x


@dataclass(frozen=True)
class _Zeros:
    def __call__(self, shape: Shape, _rng: np.random.Generator) -> Array:
        return np.zeros(shape)


@dataclass(frozen=True)
class _Ones:
    def __call__(self, shape: Shape, _rng: np.random.Generator) -> Array:
        return np.ones(shape)


@dataclass(frozen=True, eq=False)
class _Constant:
    value: Any = 0

    def __call__(self, shape: Shape, _rng: np.random.Generator) -> Array:
        value = self.value
        if isinstance(value, Mapping) and isinstance(value.get("config"), Mapping):  # an array as Keras writes it
            value = value["config"].get("value")
        try:
            array = np.asarray(value, np.float64)
        except (TypeError, ValueError) as error:
            raise ParameterError("the value of a constant must be numbers") from error
        if array.size not in (1, math.prod(shape)):
            raise ParameterError(f"a constant of {array.size} elements does not fill shape {shape}")
        return np.full(shape, array.item()) if array.size == 1 else array.reshape(shape)


@dataclass(frozen=True)
class _RandomNormal:
    mean: float = 0.0
    stddev: float = 0.05
    seed: object = None

    def __post_init__(self) -> None:
        _number(self.mean, "mean"), _number(self.stddev, "stddev")

    def __call__(self, shape: Shape, rng: np.random.Generator) -> Array:
        return self.mean + self.stddev * rng.standard_normal(shape)


@dataclass(frozen=True)
class _TruncatedNormal(_RandomNormal):
    def __call__(self, shape: Shape, rng: np.random.Generator) -> Array:
        return self.mean + self.stddev * _truncated_normal(shape, rng)


@dataclass(frozen=True)
class _RandomUniform:
    minval: float = -0.05
    maxval: float = 0.05
    seed: object = None

    def __post_init__(self) -> None:
        _number(self.minval, "minval"), _number(self.maxval, "maxval")

    def __call__(self, shape: Shape, rng: np.random.Generator) -> Array:
        return self.minval + (self.maxval - self.minval) * rng.random(shape)


@dataclass(frozen=True)
class _VarianceScaling:
    scale: float = 1.0
    mode: str = "fan_in"
    distribution: str = "truncated_normal"
    seed: object = None
    input_axes: list[int] | None = None
    output_axes: list[int] | None = None

    def __post_init__(self) -> None:
        if not _number(self.scale, "scale") > 0:
            raise ParameterError(f"scale must be positive, got {self.scale}")
        if self.mode not in ("fan_in", "fan_out", "fan_avg"):
            raise ParameterError(f"mode must be fan_in, fan_out or fan_avg, got {self.mode!r}")
        if str(self.distribution).lower() not in ("normal", "truncated_normal", "untruncated_normal", "uniform"):
            raise ParameterError(f"unknown distribution {self.distribution!r}")

    def __call__(self, shape: Shape, rng: np.random.Generator) -> Array:
        fan_in, fan_out = _fans(shape, self.input_axes, self.output_axes)
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.mode]
        variance = self.scale / max(1.0, fan)
        match self.distribution.lower():
            case "uniform":
                return math.sqrt(3 * variance) * (2 * rng.random(shape) - 1)
            case "untruncated_normal":
                return math.sqrt(variance) * rng.standard_normal(shape)
            case _:
                return math.sqrt(variance) / TRUNCATED_STDDEV * _truncated_normal(shape, rng)


def _family(scale: float, mode: str, distribution: str) -> Callable[..., _VarianceScaling]:
    """Return what makes a variance scaling with these settings; the config may hold the rest."""

    def make(
        seed: object = None, input_axes: list[int] | None = None, output_axes: list[int] | None = None
    ) -> _VarianceScaling:
        return _VarianceScaling(scale, mode, distribution, seed, input_axes, output_axes)

    return make


@dataclass(frozen=True)
class _NoLoss:
    def __call__(self, _w: Array) -> float:
        return 0.0


@dataclass(frozen=True)
class _L1L2:
    """``l1·Σ|w| + l2·Σw²``; a factor of 0 leaves its term out."""

    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        for name in ("l1", "l2"):
            if not math.isfinite(_number(getattr(self, name), name)):
                raise ParameterError(f"{name} must be finite")

    def __call__(self, w: Array) -> float:
        loss = self.l1 * np.abs(w).sum() if self.l1 else 0.0
        return float(loss + (self.l2 * np.square(w).sum() if self.l2 else 0.0))


def _l1(l1: float | None = 0.01, l: float | None = None) -> _L1L2:  # noqa: E741  # tf_keras's old name
    given = l1 if l is None else l
    return _L1L2(l1=0.01 if given is None else given)


def _l2(l2: float | None = 0.01, l: float | None = None) -> _L1L2:  # noqa: E741
    given = l2 if l is None else l
    return _L1L2(l2=0.01 if given is None else given)


def _l1l2(l1: float | None = 0.0, l2: float | None = 0.0) -> _L1L2:
    return _L1L2(0.0 if l1 is None else l1, 0.0 if l2 is None else l2)


def _l1_l2(l1: float | None = 0.01, l2: float | None = 0.01) -> _L1L2:
    return _l1l2(l1, l2)


def _norms(w: Array, axis: int | list[int] | None) -> Array:
    try:
        over = tuple(axis) if isinstance(axis, list) else axis
        return np.asarray(np.sqrt(np.square(w).sum(axis=over, keepdims=True)))
    except (TypeError, ValueError) as error:
        raise ParameterError(f"a norm over axis {axis} of a parameter of shape {w.shape}") from error


@dataclass(frozen=True)
class _NoConstraint:
    def __call__(self, w: Array) -> Array:
        return w


@dataclass(frozen=True)
class _NonNeg:
    def __call__(self, w: Array) -> Array:
        return np.maximum(w, 0)


@dataclass(frozen=True)
class _UnitNorm:
    axis: Any = 0

    def __call__(self, w: Array) -> Array:
        return w / (EPSILON + _norms(w, self.axis))


@dataclass(frozen=True)
class _MinMaxNorm:
    """``w·(rate·clip(norm, min, max) + (1 - rate)·norm) / (1e-7 + norm)``; where min > max, min wins."""

    min_value: float = 0.0
    max_value: float = 1.0
    rate: float = 1.0
    axis: Any = 0

    def __post_init__(self) -> None:
        for name in ("min_value", "max_value", "rate"):
            _number(getattr(self, name), name)

    def __call__(self, w: Array) -> Array:
        norms = _norms(w, self.axis)
        clipped = np.maximum(np.minimum(norms, self.max_value), self.min_value)
        wanted = self.rate * clipped + (1 - self.rate) * norms
        return np.asarray(w * (wanted / (EPSILON + norms)))


def _max_norm(max_value: float = 2, axis: object = 0) -> _MinMaxNorm:
    return _MinMaxNorm(max_value=max_value, axis=axis)


@dataclass(frozen=True)
class _NeedsMoreAxes:
    """Known to Keras, but not for the parameters of batch normalization."""

    what: str

    def __call__(self, *_: object) -> Array:
        raise ParameterError(f"{self.what} needs a matrix or a kernel; the parameters here are vectors")


def _needs_more_axes(what: str) -> Callable[..., _NeedsMoreAxes]:
    def make(**_: object) -> _NeedsMoreAxes:
        return _NeedsMoreAxes(what)

    return make


_BUILT_IN = (_Zeros, _Ones, _Constant, _RandomNormal, _RandomUniform, _VarianceScaling, _NeedsMoreAxes)

Table = dict[str, Callable[..., Any]]


def _with_snake_case(table: Table) -> Table:
    return table | {re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower(): make for name, make in table.items()}


_SCALINGS: Table = {
    "GlorotNormal": _family(1.0, "fan_avg", "truncated_normal"),
    "GlorotUniform": _family(1.0, "fan_avg", "uniform"),
    "HeNormal": _family(2.0, "fan_in", "truncated_normal"),
    "HeUniform": _family(2.0, "fan_in", "uniform"),
    "LecunNormal": _family(1.0, "fan_in", "truncated_normal"),
    "LecunUniform": _family(1.0, "fan_in", "uniform"),
}
_INITIALIZERS: Table = _SCALINGS | {
    "Zeros": _Zeros,
    "Ones": _Ones,
    "Constant": _Constant,
    "RandomNormal": _RandomNormal,
    "RandomUniform": _RandomUniform,
    "TruncatedNormal": _TruncatedNormal,
    "VarianceScaling": _VarianceScaling,
    "Orthogonal": _needs_more_axes("Orthogonal"),
    "Identity": _needs_more_axes("Identity"),
}
_SHORT: Table = {"zero": _Zeros, "one": _Ones, "normal": _RandomNormal, "uniform": _RandomUniform}
_REGULARIZERS: Table = {
    "Regularizer": _NoLoss,
    "L1": _l1,
    "l1": _l1,
    "L2": _l2,
    "l2": _l2,
    "L1L2": _l1l2,
    "OrthogonalRegularizer": _needs_more_axes("OrthogonalRegularizer"),
    "orthogonal_regularizer": _needs_more_axes("OrthogonalRegularizer"),
}
_CONSTRAINTS: Table = _with_snake_case(
    {"MaxNorm": _max_norm, "NonNeg": _NonNeg, "UnitNorm": _UnitNorm, "MinMaxNorm": _MinMaxNorm}
) | {"Constraint": _NoConstraint}


def _constant(value: object) -> _Constant:
    """Make Keras 3's Constant, which cannot be had without its value."""
    return _Constant(value)


_KNOWN: dict[str, dict[Generation, Table]] = {
    "initializer": {
        "tf_keras": _with_snake_case(_INITIALIZERS)
        | _SHORT
        | {f"{name}V2": make for name, make in (_INITIALIZERS | _with_snake_case(_SCALINGS)).items()},
        "keras3": _with_snake_case(_INITIALIZERS | {"Constant": _constant}) | _SHORT,
    },
    "regularizer": {
        "tf_keras": _REGULARIZERS | {"l1_l2": _l1_l2},
        "keras3": _REGULARIZERS | {"l1l2": _l1l2, "regularizer": _NoLoss},
    },
    "constraint": {
        "tf_keras": _CONSTRAINTS
        | {"maxnorm": _max_norm, "nonneg": _NonNeg, "unitnorm": _UnitNorm}
        | dict.fromkeys(("RadialConstraint", "radial_constraint"), _needs_more_axes("RadialConstraint")),
        "keras3": _CONSTRAINTS | {"constraint": _NoConstraint},
    },
}


def _understood(kind: str, given: object, keras: Generation | None = None) -> Callable[..., Any]:
    """Return what a name, config or callable stands for; without ``keras``, either generation may know it."""
    if isinstance(given, type):
        return _called(given, {}, kind, given.__name__)
    if isinstance(given, str):
        return _called(_factory(kind, given, keras), {}, kind, given)
    if isinstance(given, Mapping):
        name, config = _parts(kind, given, keras)
        return _called(_factory(kind, name, keras), config, kind, name)
    if callable(given):
        return given
    raise ParameterError(f"{kind}: {given!r} is neither a name nor a config nor callable")


def _factory(kind: str, name: str, keras: Generation | None) -> Callable[..., Any]:
    tables = _KNOWN[kind]
    known = tables["keras3"] | tables["tf_keras"] if keras is None else tables[keras]
    if name not in known:
        raise ParameterError(f"{kind} {name!r} is not known{'' if keras is None else f' to {keras}'}")
    return known[name]


def _parts(kind: str, given: Mapping[str, Any], keras: Generation | None) -> tuple[str, Mapping[str, Any]]:
    name, config = given.get("class_name"), given.get("config", None if keras == "tf_keras" else {})
    if not isinstance(name, str) or not isinstance(config, Mapping):
        raise ParameterError(f"{kind}: a config dict needs a class_name and a config, got {dict(given)!r}")
    module = given.get("module", "keras")
    if not isinstance(module, str) or module.split(".")[0] not in ("keras", "tf_keras") or given.get("registered_name"):
        raise ParameterError(f"{kind} {name!r} is not one of Keras's own: give it as a callable")
    alien = [k for k in config if KEYS_OF_ONE_GENERATION.get(k, keras) != keras]
    if keras is not None and alien:
        raise ParameterError(f"{kind} {name!r} has no {alien[0]!r} in {keras}")
    return name, config


def _called(make: Callable[..., Any], config: Mapping[str, Any], kind: str, name: str) -> Callable[..., Any]:
    try:
        made: Callable[..., Any] = make(**config)
    except TypeError as error:
        raise ParameterError(f"{kind} {name!r}: {error}") from error
    return made


def _refuse_class(given: object, keras: Generation) -> None:
    if isinstance(given, type) and keras == "tf_keras":
        raise ParameterError(f"tf_keras takes an object here, not the class {given.__name__}")
