"""The state of a layer, and what happens to it outside a step: how it begins, its penalty, and its projection."""

from dataclasses import dataclass, replace

import numpy as np

from bnpass.semantics.canonical import Array
from bnpass.semantics.parameters import constrained, initial_value, regularization_loss
from bnpass.semantics.resolved import Resolved
from bnpass.semantics.spec import BatchNormSpec


@dataclass(frozen=True)
class State:
    """The parameters and statistics of a layer, each [C] in float64; the last three belong to renorm."""

    scale: Array
    B: Array
    running_mean: Array
    running_var: Array
    running_stddev: Array | None = None
    renorm_mean: Array | None = None
    renorm_stddev: Array | None = None


def initial_state(spec: BatchNormSpec, layer: Resolved, rng: np.random.Generator) -> State:
    """Return the state in which a layer begins; parameters that it does not have are 1 and 0.

    Renorm's statistics begin with the moving ones, its standard deviations with the root of the variance.

    Args:
        spec: The layer's arguments.
        layer: What they mean at its shape.
        rng: Source of random numbers: Keras's distributions, not its numbers.

    Raises:
        ParameterError: An initializer does not fit the parameters' shape.
    """
    shape = layer.parameter_shape
    scale = initial_value(spec.gamma_initializer, shape, rng).ravel() if layer.scale else np.ones(layer.channels)
    B = initial_value(spec.beta_initializer, shape, rng).ravel() if layer.center else np.zeros(layer.channels)
    mean = initial_value(spec.moving_mean_initializer, shape, rng).ravel()
    var = initial_value(spec.moving_variance_initializer, shape, rng).ravel()
    if layer.renorm is None:
        return State(scale, B, mean, var)
    return State(scale, B, mean, var, np.sqrt(var), mean, np.sqrt(var))


def penalty(spec: BatchNormSpec, layer: Resolved, state: State) -> float:
    """Return what the regularizers of scale and B add to the loss.

    Raises:
        ParameterError: A regularizer does not fit the parameters' shape.
    """
    terms = ((layer.scale, spec.gamma_regularizer, state.scale), (layer.center, spec.beta_regularizer, state.B))
    return sum(regularization_loss(r, w.reshape(layer.parameter_shape)) for has, r, w in terms if has)


def projected(spec: BatchNormSpec, layer: Resolved, state: State) -> State:
    """Return the state after the constraints of scale and B, which an optimizer applies after its update.

    Raises:
        ParameterError: A constraint does not fit the parameters' shape.
    """
    scale, B = (w.reshape(layer.parameter_shape) for w in (state.scale, state.B))
    return replace(
        state,
        scale=constrained(spec.gamma_constraint, scale).ravel() if layer.scale else state.scale,
        B=constrained(spec.beta_constraint, B).ravel() if layer.center else state.B,
    )
