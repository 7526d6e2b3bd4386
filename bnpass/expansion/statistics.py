"""Mean and variance of the batch, over one replica or a group of them.

exact, float (Chan, Golub, LeVeque 1983: sums around a shift K near the mean, so that nothing cancels):

    K = float(Σ x / n)      D = x − K      d1 = Σ D / n      d2 = Σ D²      (sums end in double, see ``view``)
    mean_r = K + d1         M2_r = d2 − n·d1²
    message [n, n·mean_r, M2_r + n·mean_r²]:      M, S1, S2 its sums over the replicas
    mean = S1 / M           var = S2 / M − mean²

All that is left to cancel is S2/M − mean², in double: relative error (mean/std)²·2⁻⁵³, 4e-8 at mean/std = 1e4 with the
roundings before it. One replica has var = M2 / n. exact, double, needs two messages for that:

    [n, Σ x]: mean = S / M          [Σ (x − mean)²]: var = M2 / M

keras (``_sync_calculate_mean_and_var`` of tf_keras, all in the type of the parameters, three messages):

    mean = Σ x / M          var = max(Σ x² / M − mean², 0)          0 / 0 = 0

A batch without elements has n = 0 and sums of 0; its divisors are 1.
"""

from dataclasses import dataclass

from bnpass.expansion.message import Replicas
from bnpass.expansion.options import Statistics
from bnpass.expansion.sites import DOUBLE
from bnpass.expansion.terms import Term
from bnpass.expansion.view import View


@dataclass(frozen=True)
class Batch:
    """The statistics of a batch.

    Attributes:
        mean: Double, [C] or [G, C]; 0 where there are no elements.
        var: Population variance, likewise.
        count: M, elements per channel and ghost batch over all replicas: double, [1].
        shift: K, in the type of ``x``, likewise [C] or [G, C].
        centred: x − K, in the type and shape of ``x``.
        rest: K − mean in double; None where K is the mean.
    """

    mean: Term
    var: Term
    count: Term
    shift: Term
    centred: Term
    rest: Term | None


def batch_statistics(view: View, replicas: Replicas, stats: Statistics) -> Batch:
    """Write mean, variance and count of the batch."""
    if stats == "keras":
        return _keras(view, replicas)
    return _exact_double(view, replicas) if view.dtype == DOUBLE else _exact_float(view, replicas)


def _exact_float(view: View, replicas: Replicas) -> Batch:
    x, n = view.x, view.count
    divisor = _divisor(n, view)
    K = (view.sum(x) / divisor).to(view.dtype).named("K")
    D = (x - view.spread(K)).named("D")
    sum_D, d2 = view.sum(D), view.sum(D * D)
    d1 = sum_D / divisor
    M2 = (d2 - sum_D * d1).at_least(0.0)
    mean = K.to(DOUBLE) + d1
    if replicas.alone:
        mean.named("mean")
        return Batch(mean, (M2 / divisor).named("var"), n, K, D, -d1)
    n_mean = n * mean
    M, S1, S2 = replicas.total_with_count(n, n_mean, M2 + n_mean * mean)
    divisor = _divisor(M, view)
    mean = (S1 / divisor).named("mean")
    var = (S2 / divisor - mean * mean).at_least(0.0).named("var")
    return Batch(mean, var, M, K, D, K.to(DOUBLE) - mean)


def _exact_double(view: View, replicas: Replicas) -> Batch:
    M, S = replicas.total_with_count(view.count, view.sum(view.x))
    divisor = _divisor(M, view)
    mean = (S / divisor).named("mean")
    D = (view.x - view.spread(mean)).named("D")
    (M2,) = replicas.total(view.sum(D * D))
    return Batch(mean, (M2 / divisor).named("var"), M, mean, D, None)


def _keras(view: View, replicas: Replicas) -> Batch:
    x, n = view.x, view.count.to(view.dtype)
    (S,) = replicas.total(view.sum_at_once(x))
    (Q,) = replicas.total(view.sum_at_once(x * x))
    M = replicas.total_count(n)
    divisor = _divisor(M, view)
    mean = (S / divisor).named("mean")
    var = (Q / divisor - mean * mean).at_least(0.0).named("var")
    D = (x - view.spread(mean)).named("D")
    return Batch(mean.to(DOUBLE), var.to(DOUBLE), M.to(DOUBLE), mean, D, None)


def _divisor(M: Term, view: View) -> Term:
    """Write max(M, 1) for n or M; with elements here, either is at least that already."""
    return M.at_least(1.0) if view.may_be_empty else M
