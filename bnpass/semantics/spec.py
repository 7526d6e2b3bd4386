"""BatchNormSpec: every argument of the batch-normalization layers, validated once, by the rules of each class.

The classes are those of TensorFlow 2.21, tf_keras 2.21 and Keras 3.15:

    "sync"      tf_keras.layers.experimental.SyncBatchNormalization
    "tf1"       tf.compat.v1.layers.batch_normalization, a function, in a graph
    "keras_v1"  tf.keras.layers.BatchNormalization of TensorFlow 1.15 (batch_normalization_v1)
    "tf_keras"  tf_keras.layers.BatchNormalization
    "keras3"    keras.layers.BatchNormalization

Where a class does something else than its documentation says, the class is followed. The V1 classes
(tf1, keras_v1) never refuse ``fused=True`` but fall back, keep batch statistics under
``trainable=False``, and keras_v1 ignores ``synchronized``. Nothing checks ``renorm_clipping`` unless
``renorm`` is set. What a class accepts and then fails on, or what gives NaN alone, is refused here at
once: a number that is none, an epsilon below 0, an empty list of axes, a name that Keras does not know.
Two things mean here what they say where the classes of tf_keras mix up types and fail: renorm in
float64, and a momentum or epsilon that is an int.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args

import numpy as np

from bnpass.semantics.parameters import (
    Constraint,
    Generation,
    Initializer,
    ParameterError,
    Regularizer,
    check_constraint,
    check_initializer,
    check_regularizer,
    constrained,
    initial_value,
    regularization_loss,
)
from bnpass.semantics.resolved import Adjustment, Renorm, Resolved

Api = Literal["sync", "tf1", "keras_v1", "tf_keras", "keras3"]
Shape = tuple[int | None, ...]
Clipping = Mapping[str, float | str | None]

APIS: tuple[str, ...] = get_args(Api)
V1 = ("tf1", "keras_v1")
DTYPES = ("float16", "bfloat16", "float32", "float64")
CLIPPING_KEYS = ("rmax", "rmin", "dmax")
TENSOR = "tensor"
"""As a value of renorm_clipping: a scalar given at run time."""

PARAMETERS = ("beta", "gamma", "moving_mean", "moving_variance")
FLAGS = ("center", "scale", "renorm", "trainable", "synchronized")
FUSIBLE_AXES = (-4, -3, -1, 1, 3, 4)
"""The values of ``axis``, as given, with which a V2 class considers the fused path."""

ABSENT: dict[str, tuple[str, ...]] = {
    "sync": ("reuse", "synchronized"),
    "tf1": ("synchronized",),
    "keras_v1": ("reuse",),
    "tf_keras": ("reuse",),
    "keras3": ("reuse", "fused", "virtual_batch_size", "adjustment"),
}
"""Arguments that a class does not have; the sync class sets ``synchronized`` itself."""

CHECKS: dict[str, Callable[[Any, Generation], None]] = {
    "initializer": check_initializer,
    "regularizer": check_regularizer,
    "constraint": check_constraint,
}

SCOPE_NAME = re.compile(r"(?!_)[\w.][\w.\\/>-]*", re.ASCII)


class SpecError(ValueError):
    """The arguments of a layer contradict each other, or its class does not take them."""


@dataclass(frozen=True)
class BatchNormSpec:
    """The arguments of a batch-normalization layer, under their Keras names and with their defaults.

    Attributes:
        api: The class whose rules hold, see the top of this file.
        axis: Channel axis, or several (not in keras3); negative ones count from the end.
        momentum: The fraction kept of the moving statistics in a step.
        epsilon: Added to the variance.
        center: Whether the layer has beta.
        scale: Whether the layer has gamma.
        beta_initializer: Name, config dict, callable or array, as in ``parameters``. An array becomes
            the config of a Constant.
        gamma_initializer: As beta_initializer.
        moving_mean_initializer: As beta_initializer.
        moving_variance_initializer: As beta_initializer; the standard deviations of renorm start from its root.
        beta_regularizer: Name, config dict or callable.
        gamma_regularizer: As beta_regularizer.
        beta_constraint: Name, config dict or callable.
        gamma_constraint: As beta_constraint.
        renorm: Whether to use batch renormalization.
        renorm_clipping: Limits by the keys rmax, rmin and dmax: numbers, or "tensor" for a scalar given
            at run time. A key that is missing or None sets no limit.
        renorm_momentum: The fraction kept of the renorm averages in a step.
        fused: True, False, or None to leave the choice to the class.
        virtual_batch_size: Samples in a ghost batch.
        adjustment: Called with the shape of the input, returns (a, c).
        trainable: Whether a training step changes the layer; in the V2 classes and keras3, False is inference mode.
        name: Name of the layer.
        reuse: Whether to reuse variables (tf1).
        synchronized: Whether replicas share batch statistics (tf_keras, keras3).

    Raises:
        SpecError: The class would not take these arguments.
    """

    api: Api
    axis: int | Sequence[int] = -1
    momentum: float = 0.99
    epsilon: float = 1e-3
    center: bool = True
    scale: bool = True
    beta_initializer: Initializer = "zeros"
    gamma_initializer: Initializer = "ones"
    moving_mean_initializer: Initializer = "zeros"
    moving_variance_initializer: Initializer = "ones"
    beta_regularizer: Regularizer | None = None
    gamma_regularizer: Regularizer | None = None
    beta_constraint: Constraint | None = None
    gamma_constraint: Constraint | None = None
    renorm: bool = False
    renorm_clipping: Clipping | None = None
    renorm_momentum: float = 0.99
    fused: bool | None = None
    virtual_batch_size: int | None = None
    adjustment: Adjustment | None = None
    trainable: bool = True
    name: str | None = None
    reuse: bool | None = None
    synchronized: bool = False

    def __post_init__(self) -> None:
        if self.api not in APIS:
            raise SpecError(f"api must be one of {', '.join(APIS)}, got {self.api!r}")
        for argument in fields(self):
            if argument.name in ABSENT[self.api] and getattr(self, argument.name) != argument.default:
                raise SpecError(f"{self.api} has no argument {argument.name}")
        self._set("axis", _axis(self.axis))
        for name in ("momentum", "epsilon", "renorm_momentum"):
            self._set(name, _number(name, getattr(self, name)))
        if self.epsilon < 0:
            raise SpecError(f"epsilon must not be negative, got {self.epsilon}")
        self._check_kinds()
        self._check_clipping()
        self._check_contradictions()
        self._check_parameter_arguments()

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def _keras(self) -> Generation:
        return "keras3" if self.api == "keras3" else "tf_keras"

    def _check_kinds(self) -> None:
        """Refuse values that are not of the type their argument needs."""
        for name in FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise SpecError(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name in ("fused", "reuse"):
            if not isinstance(getattr(self, name), bool | None):
                raise SpecError(f"{name} must be True, False or None, got {getattr(self, name)!r}")
        size = self.virtual_batch_size
        if size is not None and (not _is_int(size) or size < 1):
            raise SpecError(f"virtual_batch_size must be a positive int, got {size!r}")
        if self.adjustment is not None and not callable(self.adjustment):
            raise SpecError(f"adjustment must be a function, got {self.adjustment!r}")
        if not isinstance(self.name, str | None):
            raise SpecError(f"name must be a string, got {self.name!r}")

    def _check_clipping(self) -> None:
        """Check the limits of renorm, which no class looks at without renorm."""
        given = self.renorm_clipping
        if not isinstance(given, Mapping | None):
            raise SpecError(f"renorm_clipping must be a mapping, got {given!r}")
        if given is None or not self.renorm:
            self._set("renorm_clipping", None if given is None else _copied(given))
            return
        unknown = set(given) - set(CLIPPING_KEYS)
        if unknown:
            raise SpecError(f"renorm_clipping has keys other than rmax, rmin and dmax: {sorted(map(str, unknown))}")
        limits = {k: v if v is None or (isinstance(v, str) and v == TENSOR) else _limit(k, v) for k, v in given.items()}
        self._set("renorm_clipping", limits)
        if self.api == "keras3":
            rmin, rmax, dmax = (v if isinstance(v := limits.get(k), float) else None for k in ("rmin", "rmax", "dmax"))
            if rmin is not None and rmax is not None and rmax < rmin:
                raise SpecError(f"Keras 3 wants rmax of at least rmin, got rmax {rmax} and rmin {rmin}")
            if dmax is not None and dmax < 0:
                raise SpecError(f"Keras 3 wants a dmax of at least 0, got {dmax}")

    def _check_contradictions(self) -> None:
        if self.api == "keras3" and not isinstance(self.axis, int):
            raise SpecError("Keras 3 takes one axis")
        if self.virtual_batch_size is not None and self.adjustment is not None:
            raise SpecError("virtual_batch_size and adjustment cannot be had together")
        if self.name and self.api == "keras3" and "/" in self.name:
            raise SpecError(f"a name in Keras 3 has no '/', got {self.name!r}")
        if self.name and self.api == "tf1" and not SCOPE_NAME.fullmatch(self.name):
            raise SpecError(f"{self.name!r} is not a name of a TensorFlow scope")
        if self.fused and self.api not in V1:
            obstacle = self._obstacle_to_fused(self._given_axes())
            if obstacle:
                raise SpecError(f"fused=True does not go with {obstacle}")

    def _check_parameter_arguments(self) -> None:
        """Copy what describes the parameters, and refuse what this generation of Keras does not know."""
        for parameter in PARAMETERS:
            for what, check in CHECKS.items():
                name = f"{parameter}_{what}"
                if not hasattr(self, name):
                    continue
                self._set(name, _copied(getattr(self, name)))
                try:
                    check(getattr(self, name), self._keras)
                except ParameterError as error:
                    raise SpecError(f"{name}: {error}") from error

    def resolve(self, input_shape: Sequence[int | None], dtype: str = "float32", *, training: bool = True) -> Resolved:
        """Return what the layer means for an input of this shape.

        Args:
            input_shape: Shape of X; None where a length is not known.
            dtype: Type the layer computes in, and so of X and Y.
            training: Whether a call in training is meant. In inference alone, virtual batches need not
                divide the batch.

        Raises:
            SpecError: The layer could not be built for this shape and type, or not be called in training.
        """
        shape = _shape(input_shape)
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise SpecError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        axes = self._axes(shape)
        self._check_virtual_batch(shape, axes, training)
        parameter_shape = self._parameter_shape(shape, axes)
        self._check_parameters(parameter_shape)
        fused = self._is_fused(len(shape), axes, dtype)
        return Resolved(
            api=self.api,
            input_shape=shape,
            dtype=dtype,
            parameter_dtype="float64" if dtype == "float64" else "float32",
            parameter_shape=parameter_shape,
            axes=axes,
            momentum=self.momentum,
            epsilon=self.epsilon,
            center=self.center,
            scale=self.scale,
            trainable=self.trainable,
            fused=fused,
            synchronized=self._is_synchronized,
            running_var_correction=int(fused),
            virtual_batch_size=self.virtual_batch_size or 0,
            renorm=self._resolved_renorm(),
            adjustment=self.adjustment,
            mask_rule="ignored" if fused else "select" if self.api == "keras3" else "weights",
        )

    @property
    def _is_synchronized(self) -> bool:
        return self.api == "sync" or (self.synchronized and self.api != "keras_v1")

    def _given_axes(self) -> tuple[int, ...]:
        return (self.axis,) if isinstance(self.axis, int) else tuple(self.axis)

    def _axes(self, shape: Shape) -> tuple[int, ...]:
        rank = len(shape)
        if any(not -rank <= a < rank for a in self._given_axes()):
            raise SpecError(f"axis {self.axis} is out of range for an input of rank {rank}")
        axes = tuple(sorted(a % rank for a in self._given_axes()))
        if len(set(axes)) != len(axes):
            raise SpecError(f"axis {self.axis} names an axis twice")
        return axes

    def _check_virtual_batch(self, shape: Shape, axes: tuple[int, ...], training: bool) -> None:
        size, batch = self.virtual_batch_size, shape[0]
        if size is None:
            return
        if 0 in axes:
            raise SpecError("virtual batches divide axis 0, which is a channel axis here")
        divided = training and (self.trainable or self.api in V1)
        if divided and batch is not None and batch % size:
            raise SpecError(f"virtual_batch_size {size} does not divide the batch of {batch}")

    def _parameter_shape(self, shape: Shape, axes: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the layer's own parameters (BatchNormalizationBase.build)."""
        full = [1] * len(shape)
        for axis in axes:
            length = shape[axis]
            if length is None:
                raise SpecError(f"the length of channel axis {axis} must be known, got shape {shape}")
            full[axis] = length
        if self.virtual_batch_size is not None:
            return (full[0], 1, *full[1:])
        return tuple(full) if len(axes) > 1 else (full[axes[0]],)

    def _check_parameters(self, shape: tuple[int, ...]) -> None:
        """Refuse what cannot fill, weigh or project a parameter of this shape; callables are not tried."""
        rng = np.random.default_rng(0)
        trials: dict[str, Callable[[Any], object]] = {
            "initializer": lambda given: initial_value(given, shape, rng),
            "regularizer": lambda given: regularization_loss(given, np.ones(shape)),
            "constraint": lambda given: constrained(given, np.ones(shape)),
        }
        used = [p for p in PARAMETERS if {"beta": self.center, "gamma": self.scale}.get(p, True)]
        for name, what in ((f"{p}_{what}", what) for p in used for what in trials):
            given = getattr(self, name, None)
            if given is None or callable(given):
                continue
            try:
                trials[what](given)
            except ParameterError as error:
                raise SpecError(f"{name}: {error}") from error

    def _obstacle_to_fused(self, axes: tuple[int, ...]) -> str | None:
        """Return what keeps the layer from TensorFlow's fused kernel whatever its input is."""
        if self._is_synchronized:
            return "synchronized statistics"
        if self.renorm:
            return "renorm"
        if len(axes) > 1 or axes[0] not in FUSIBLE_AXES:
            return f"axis {self.axis}"
        if self.virtual_batch_size is not None:
            return "virtual_batch_size"
        return "adjustment" if self.adjustment is not None else None

    def _is_fused(self, rank: int, axes: tuple[int, ...], dtype: str) -> bool:
        """Return whether the class takes the fused kernel (BatchNormalizationBase.__init__ and build)."""
        if self.api == "keras3" or self.fused is False:
            return False
        possible = rank in (4, 5) and dtype != "float64"
        if self.fused and self.api not in V1 and not possible:
            raise SpecError(f"fused=True needs an input of rank 4 or 5 and not float64, got rank {rank}, {dtype}")
        if not possible or self._obstacle_to_fused(axes if self.api in V1 else self._given_axes()):
            return False
        if axes in ((1,), (rank - 1,)):
            return True
        if rank == 4:
            raise SpecError(f"{self.api} takes axis {self.axis} of rank 4 for the fused kernel, which has axes 1 and 3")
        return False

    def _resolved_renorm(self) -> Renorm | None:
        if not self.renorm:
            return None
        given = self.renorm_clipping or {}

        def limit(key: str, default: float) -> float | None:
            value = given.get(key)
            return default if value is None else None if isinstance(value, str) else value

        return Renorm(
            rmin=limit("rmin", 0.0),
            rmax=limit("rmax", math.inf),
            dmax=limit("dmax", math.inf),
            momentum=self.renorm_momentum,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the arguments as plain data that strict JSON can hold; ``from_json`` reads it.

        Raises:
            SpecError: An argument is a function or another object that cannot be stored.
        """
        return {argument.name: _plain(argument.name, getattr(self, argument.name)) for argument in fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the spec that ``to_json`` wrote; arguments left out have their default.

        Raises:
            SpecError: A key is not an argument, or the class would not take the arguments.
        """
        unknown = set(data) - {argument.name for argument in fields(cls)}
        if unknown or "api" not in data:
            raise SpecError(f"not arguments of a layer: {sorted(unknown)}" if unknown else "the key api is missing")
        return cls(**{name: _restored(value) for name, value in data.items()})


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _axis(axis: object) -> int | tuple[int, ...]:
    axes = tuple(axis) if isinstance(axis, list | tuple) else (axis,)
    if not axes or not all(_is_int(a) for a in axes):
        raise SpecError(f"axis must be an int or ints, got {axis!r}")
    return axes if isinstance(axis, list | tuple) else axes[0]


def _shape(shape: Sequence[int | None]) -> Shape:
    found = tuple(shape)
    if not found or not all(n is None or (_is_int(n) and n >= 0) for n in found):
        raise SpecError(f"the shape of an input is lengths of at least one axis, got {found}")
    return found


def _limit(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer) or math.isnan(value):
        raise SpecError(f"{name} must be a number, got {value!r}")
    return float(value)


def _number(name: str, value: object) -> float:
    number = _limit(name, value)
    if math.isinf(number):
        raise SpecError(f"{name} must be finite, got {value!r}")
    return number


def _copied(value: object) -> object:
    """Return a config of our own, with lists for arrays; an array alone becomes the config of a Constant."""
    if isinstance(value, np.ndarray):
        return {"class_name": "Constant", "config": {"value": _listed(value)}}
    return _listed(value)


def _listed(value: object) -> object:
    if isinstance(value, np.ndarray):
        try:
            return np.asarray(value, np.float64).tolist()
        except (TypeError, ValueError) as error:
            raise SpecError(f"an array must hold numbers, got {value!r}") from error
    if isinstance(value, Mapping):
        return {k: _listed(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_listed(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value


def _plain(name: str, value: object) -> object:
    if isinstance(value, Mapping) and not any(str(k).startswith("$") for k in value):
        return {str(k): _plain(name, v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(name, v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if isinstance(value, str | int | float | None):
        return value
    raise SpecError(f"{name} cannot be stored: {value!r} is not plain data")


def _restored(value: object) -> Any:  # noqa: ANN401  # arguments of every type, checked by the constructor
    if isinstance(value, Mapping):
        if set(value) == {"$float"} and value["$float"] in ("inf", "-inf", "nan"):
            return float(value["$float"])
        return {k: _restored(v) for k, v in value.items()}
    return [_restored(v) for v in value] if isinstance(value, list) else value
