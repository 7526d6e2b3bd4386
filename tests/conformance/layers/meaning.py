"""What a case means to bnpass: its spec, its layer, the state it starts from, and how its parameters learn."""

from typing import Any

import numpy as np

from bnpass.semantics.parameters import constrained, initial_value, regularization_loss
from bnpass.semantics.reference import State
from bnpass.semantics.resolved import Resolved
from bnpass.semantics.spec import BatchNormSpec
from tests.conformance.layers.adjustments import NumPy, adjustment
from tests.conformance.layers.cases import Array, Case
from tests.conformance.layers.exchange import Arrays, part

Named = dict[str, Array]

FIELDS = {
    "gamma": "scale",
    "beta": "B",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "moving_stddev": "running_stddev",
    "renorm_mean": "renorm_mean",
    "renorm_stddev": "renorm_stddev",
}
"""The names of Keras, and those of the reference."""


def spec(case: Case) -> BatchNormSpec:
    """Return the spec of a case.

    Raises:
        SpecError: The class would not take these arguments.
    """
    arguments: dict[str, Any] = dict(case.arguments)
    if "adjustment" in arguments:
        arguments["adjustment"] = adjustment(arguments["adjustment"], case.axes, len(case.shape), NumPy, np.float64)
    if arguments.get("renorm_clipping"):
        clipping = arguments["renorm_clipping"]
        arguments["renorm_clipping"] = {k: "tensor" if isinstance(v, str) else v for k, v in clipping.items()}
    return BatchNormSpec(case.api, **arguments)


def layer(case: Case, replica: int = 0) -> Resolved:
    """Return the layer of a case for the share of one replica."""
    return spec(case).resolve(case.shares[replica], case.dtype, training=any(case.steps))


def started(case: Case, arrays: Arrays) -> Named:
    """Return the variables before the first step, by their Keras names: given, or from the initializers."""
    resolved = layer(case)
    absent = {name for name, has in (("gamma", resolved.scale), ("beta", resolved.center)) if not has}
    if not case.own_start:
        return {name: value for name, value in part(arrays, "start").items() if name not in absent}
    described, rng = spec(case), np.random.default_rng(0)
    start = {
        name: initial_value(getattr(described, f"{name}_initializer"), resolved.parameter_shape, rng).ravel()
        for name in ("gamma", "beta", "moving_mean", "moving_variance")
        if name not in absent
    }
    if resolved.renorm is not None:
        start["moving_stddev"] = start["renorm_stddev"] = np.sqrt(start["moving_variance"])
        start["renorm_mean"] = start["moving_mean"]
    return start


def state_of(resolved: Resolved, values: Named) -> State:
    """Return the state of the reference: absent parameters are 1 and 0."""
    one, zero = np.ones(resolved.channels), np.zeros(resolved.channels)
    return State(**{"scale": one, "B": zero} | {FIELDS[name]: value for name, value in values.items()})


def values_of(state: State, names: Named) -> Named:
    """Return the state by Keras names."""
    return {name: np.asarray(getattr(state, FIELDS[name])) for name in names}


def learnt(case: Case, name: str, value: Array, gradient: Array) -> Array:
    """Return gamma or beta after a step of SGD and its constraint."""
    moved = (value - case.learning_rate * gradient).reshape(layer(case).parameter_shape)
    return constrained(getattr(spec(case), f"{name}_constraint"), moved).ravel()


def loss(case: Case, values: Named) -> float:
    """Return the sum of the regularizers' terms."""
    described, shape = spec(case), layer(case).parameter_shape
    return sum(
        regularization_loss(getattr(described, f"{name}_regularizer"), values[name].reshape(shape))
        for name in ("gamma", "beta")
        if name in values
    )
