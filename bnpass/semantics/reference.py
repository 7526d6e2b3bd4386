"""What a batch normalization layer computes: the definition, in float64, that everything else is judged by.

Forward, over the batch of one replica or the batches of all replicas together, per channel:

    mean = Σ w·x / W      var = Σ w·(x − mean)² / W      W = Σ w; without a mask w = 1 and W = M
    x̂    = (x − mean)·inv_std                            inv_std = 1 / √(var + epsilon)
    Y    = scale·(a·(x̂·r + d) + c) + B                   r, d: renorm; a, c: adjustment

Inference takes the running statistics for mean and var, and r = a = 1, d = c = 0. Backward, where r, d, a, c and the
running statistics are constants (semantics B1 to B7):

    dB = Σ dY      dscale = Σ dY·(a·(x̂·r + d) + c)      g = dY·scale·a·r
    dX = inv_std·(g − w/W·(Σ g + x̂·Σ g·x̂))             sums over all replicas; the second term only for batch statistics

Sources: S. Ioffe, C. Szegedy 2015 (batch normalization); S. Ioffe 2017 (batch renormalization); the rules of each
Keras generation as measured. Values are brought to the canonical form [b, G, S, C] first, statistics are [G, C].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bnpass.semantics.canonical import REDUCED, Array, Canonical
from bnpass.semantics.resolved import Renorm, Resolved
from bnpass.semantics.state import State

__all__ = ["Backward", "Forward", "State", "backward", "forward"]

Pair = tuple[Array, Array]

KERAS3_ETA = 1e-7
"""Keras 3 divides masked sums by W + this."""


@dataclass(frozen=True)
class Forward:
    """The outcome of ``forward``.

    Attributes:
        ys: Y of each replica, shaped as its x.
        state: The state after the step.
        mean: The mean that was used, [G, C].
        inv_std: 1/√(var + epsilon) of the variance that was used, [G, C].
        count: Elements per channel and ghost batch, over all replicas; 0 where the statistics are constants.
        r: Renorm's scale, [C].
        d: Renorm's shift, [C].
        forms: The canonical form of each replica's values.
        adjustments: (a, c) of each replica, canonical.
        shares: What each element weighs in the statistics, w/W, canonical; None for constants.
        lost: η/(W + η), [G, C]: what the weights lack to sum up to 1, in Keras 3's masked form.
        selects: Elements without a share are never looked at; else they take part with 0·NaN = NaN.
    """

    ys: list[Array]
    state: State
    mean: Array
    inv_std: Array
    count: float
    r: Array
    d: Array
    forms: list[Canonical] = field(repr=False)
    adjustments: list[Pair] = field(repr=False)
    shares: list[Array] | None = field(repr=False)
    lost: Array = field(repr=False)
    selects: bool


@dataclass(frozen=True)
class Backward:
    """The gradients of Σ Y·dY, per replica; those of the parameters are local, as data-parallel training wants them.

    Attributes:
        dxs: dX, shaped as x.
        dscales: dscale, [C].
        dBs: dB, [C].
        das: Gradient of the adjustment's a, shaped as x (sum it over the axes along which a was broadcast).
        dcs: The same for c.
    """

    dxs: list[Array]
    dscales: list[Array]
    dBs: list[Array]
    das: list[Array]
    dcs: list[Array]


def forward(
    layer: Resolved,
    xs: Sequence[Array],
    state: State,
    *,
    training: bool,
    symbolic: bool = False,
    masks: Sequence[Array] | None = None,
    adjustments: Sequence[Pair] | None = None,
    clip: Mapping[str, float] | None = None,
) -> Forward:
    """Apply a layer.

    Args:
        layer: The layer.
        xs: X of each replica that shares the statistics; one, unless the layer is synchronized.
        state: Parameters and statistics before the step.
        training: The mode that is asked for; what it means for a layer that is not trainable, the layer knows.
        symbolic: ``training`` is a tensor: ghost batches are then off, as in tf_keras.
        masks: For each replica, of x's shape without the last axis; True or a weight where an element counts.
        adjustments: (a, c) for each replica, where the layer's own function is not to be called.
        clip: rmin, rmax, dmax, where they are given at run time.

    Returns:
        Y, the new state, and what ``backward`` needs.

    Raises:
        ValueError: The batch does not fit ghost batches, or replicas cannot share statistics.
    """
    shares_statistics = layer.synchronized and not (masks is not None and layer.mask_rule == "select")
    if len(xs) != 1 and not shares_statistics:
        raise ValueError("replicas share nothing here: take one at a time")
    from_batch = layer.uses_batch_statistics(training)
    ghost = layer.virtual_batch_size if from_batch and not symbolic else 0
    forms = [Canonical(np.shape(x), layer.axes, ghost) for x in xs]
    if len({form.groups for form in forms}) > 1:
        raise ValueError("replicas with different numbers of ghost batches cannot pool them")
    parts = [form.pack(x) for form, x in zip(forms, xs, strict=True)]
    one: Array = np.ones(forms[0].channels)
    zero: Array = np.zeros(forms[0].channels)
    plain: list[Pair] = [(np.ones(()), np.zeros(()))] * len(xs)
    if not from_batch:
        mean, inv_std = state.running_mean[None], 1 / np.sqrt(state.running_var[None] + layer.epsilon)
        ys = _outputs(forms, parts, mean, inv_std, one, zero, plain, state)
        return Forward(ys, state, mean, inv_std, 0.0, one, zero, forms, plain, None, 0 * mean, True)

    weights = _weights(layer, forms, masks)
    selects = masks is not None and layer.mask_rule == "select"
    if selects:
        seen = [np.where(w == 0, 0, part) for part, w in zip(parts, weights, strict=True)]
        mean, var, shares, lost = _statistics(seen, weights, KERAS3_ETA)
    else:
        mean, var, shares, lost = _statistics(parts, weights)
    count = float(sum(form.elements for form in forms))
    r, d = one, zero
    if layer.renorm is not None and count:
        r, d = _renorm(layer, layer.renorm, mean, var, state, clip or {})
    adjusted = _adjustments(layer, forms, adjustments)
    inv_std = 1 / np.sqrt(var + layer.epsilon)
    ys = _outputs(forms, parts, mean, inv_std, r, d, adjusted, state)
    after = state
    if count and layer.updates_statistics(training):
        after = _updated(layer, after, mean, var, count)
    if count and layer.renorm is not None and layer.updates_renorm(training):
        after = _renorm_updated(layer, layer.renorm, after, mean, var)
    return Forward(ys, after, mean, inv_std, count, r, d, forms, adjusted, shares, lost, selects)


def backward(result: Forward, xs: Sequence[Array], dys: Sequence[Array]) -> Backward:
    """Return the gradients of a step.

    Args:
        result: What ``forward`` returned.
        xs: X of each replica, as it was given there.
        dys: The gradient with respect to Y of each replica, shaped as X.
    """
    normal, grads, found = [], [], Backward([], [], [], [], [])
    scale = result.state.scale
    for form, x, dy, (a, c) in zip(result.forms, xs, dys, result.adjustments, strict=True):
        x_hat = (form.pack(x) - result.mean[:, None]) * result.inv_std[:, None]
        renormed, dY = x_hat * result.r + result.d, form.pack(dy)
        normal.append(x_hat)
        grads.append(dY * scale * a * result.r)
        found.dscales.append((dY * (a * renormed + c)).sum((0, 1, 2)))
        found.dBs.append(dY.sum((0, 1, 2)))
        found.das.append(form.unpack(dY * scale * renormed))
        found.dcs.append(form.unpack(dY * scale))
    sum_g = _total(grads)[:, None]
    sum_gx = _total([g * x_hat for g, x_hat in zip(grads, normal, strict=True)])[:, None]
    inv_std, lost = result.inv_std[:, None], (result.inv_std * result.mean * result.lost)[:, None]
    shares = result.shares or [np.zeros(())] * len(grads)  # constants have no gradient
    for form, g, x_hat, share in zip(result.forms, grads, normal, shares, strict=True):
        through = share * (sum_g + (x_hat - lost) * sum_gx)
        if result.selects:
            through = np.where(share == 0, 0, through)
        found.dxs.append(form.unpack(inv_std * (g - through)))
    return found


def _total(parts: Sequence[Array]) -> Array:
    """Return Σ over the elements of all replicas, [G, C]."""
    return np.asarray(np.sum([part.sum(REDUCED) for part in parts], axis=0))


def _weights(layer: Resolved, forms: Sequence[Canonical], masks: Sequence[Array] | None) -> list[Array]:
    """Return how often each element counts, canonical."""
    if masks is None or layer.mask_rule == "ignored":
        return [form.pack(np.ones(())) for form in forms]
    if layer.mask_rule == "select":
        masks = [np.asarray(mask) != 0 for mask in masks]
    return [form.pack(np.asarray(mask, np.float64)[..., None]) for form, mask in zip(forms, masks, strict=True)]


def _statistics(
    parts: Sequence[Array], weights: Sequence[Array], eta: float = 0.0
) -> tuple[Array, Array, list[Array], Array]:
    """Return mean and population variance [G, C], the share of each element, and η/(W + η)."""
    total = _total(weights)
    shares = [np.divide(w, (total + eta)[:, None], out=np.zeros_like(w), where=total[:, None] > 0) for w in weights]
    mean = _total([share * part for share, part in zip(shares, parts, strict=True)])
    var = _total([share * (part - mean[:, None]) ** 2 for share, part in zip(shares, parts, strict=True)])
    lost = np.divide(eta, total + eta, out=np.zeros_like(total), where=total > 0)
    return mean, var, shares, lost


def _renorm(layer: Resolved, renorm: Renorm, mean: Array, var: Array, state: State, clip: Mapping[str, float]) -> Pair:
    """Return r and d, [C]: from the state before the step, and from the average of the ghost batches."""
    if state.renorm_mean is None or state.renorm_stddev is None:
        raise ValueError("the state lacks the statistics of renorm")
    rmin, rmax, dmax = (clip[k] if (v := getattr(renorm, k)) is None else v for k in ("rmin", "rmax", "dmax"))
    floor = np.maximum(state.renorm_stddev, np.sqrt(layer.epsilon))
    r = np.sqrt(var.mean(0) + layer.epsilon) / floor
    d = (mean.mean(0) - state.renorm_mean) / floor
    return np.minimum(np.maximum(r, rmin), rmax), np.clip(d, -dmax, dmax)


def _adjustments(layer: Resolved, forms: Sequence[Canonical], given: Sequence[Pair] | None) -> list[Pair]:
    """Return (a, c) of each replica, canonical."""
    if layer.adjustment is None:
        return [(np.ones(()), np.zeros(()))] * len(forms)
    pairs = given if given is not None else [layer.adjustment(form.shape) for form in forms]
    return [(form.pack(a), form.pack(c)) for form, (a, c) in zip(forms, pairs, strict=True)]


def _outputs(
    forms: Sequence[Canonical],
    parts: Sequence[Array],
    mean: Array,
    inv_std: Array,
    r: Array,
    d: Array,
    adjustments: Sequence[Pair],
    state: State,
) -> list[Array]:
    ys = []
    for form, part, (a, c) in zip(forms, parts, adjustments, strict=True):
        x_hat = (part - mean[:, None]) * inv_std[:, None]
        ys.append(form.unpack(state.scale * (a * (x_hat * r + d) + c) + state.B))
    return ys


def _updated(layer: Resolved, state: State, mean: Array, var: Array, count: float) -> State:
    """Return the state with momentum·before + (1 − momentum)·batch, from the average of the ghost batches."""
    m, batch_mean, batch_var = layer.momentum, mean.mean(0), var.mean(0)
    after = replace(state, running_mean=m * state.running_mean + (1 - m) * batch_mean)
    if layer.renorm is None:
        unbiased = batch_var * (count / max(count - layer.running_var_correction, 1.0))
        return replace(after, running_var=m * state.running_var + (1 - m) * unbiased)
    if state.running_stddev is None:
        raise ValueError("the state lacks the statistics of renorm")
    stddev = m * state.running_stddev + (1 - m) * np.sqrt(batch_var + layer.epsilon)
    return replace(after, running_stddev=stddev, running_var=np.maximum(stddev**2 - layer.epsilon, 0.0))


def _renorm_updated(layer: Resolved, renorm: Renorm, state: State, mean: Array, var: Array) -> State:
    """Return the state with renorm's own averages of mean and √(var + epsilon)."""
    if state.renorm_mean is None or state.renorm_stddev is None:
        raise ValueError("the state lacks the statistics of renorm")
    rho, batch_stddev = renorm.momentum, np.sqrt(var.mean(0) + layer.epsilon)
    return replace(
        state,
        renorm_mean=rho * state.renorm_mean + (1 - rho) * mean.mean(0),
        renorm_stddev=rho * state.renorm_stddev + (1 - rho) * batch_stddev,
    )
