"""Batch normalization forward, written out.

    inv_std = 1 / √(var + epsilon)      a = scale·inv_std
    Y = D·a + (B + (K − mean)·a)        D = x − K, K near the mean, a and the shift in double, rounded once

    running_mean = momentum·input_mean + (1 − momentum)·A(mean)
    running_var  = momentum·input_var  + (1 − momentum)·A(var)·M / max(M − correction, 1)

A is the average over ghost batches. Without elements on any replica, M = 0, the inputs are the statistics.
"""

from collections.abc import Mapping

from bnpass.expansion.message import Replicas
from bnpass.expansion.options import Statistics
from bnpass.expansion.sites import DOUBLE, Site
from bnpass.expansion.statistics import Batch, batch_statistics
from bnpass.expansion.terms import Formulas, Term
from bnpass.expansion.view import View

Results = Mapping[str, Term]
"""What a site computes, by the name of its output; statistics in double."""


def training(op: Formulas, site: Site, stats: Statistics) -> Results:
    """Write the normalization with the statistics of the batch, and the step of the running ones."""
    view = View(op, site)
    batch = batch_statistics(view, Replicas(op, site, view), stats)
    M = batch.count
    before_mean, before_var = view.parameter("input_mean"), view.parameter("input_var")
    mean, var = batch.mean, batch.var
    if view.may_be_empty:
        mean, var = mean.where_positive(M, before_mean), var.where_positive(M, before_var)
    unbiased = var * (M / (M - 1.0).at_least(1.0)) if site.correction else var

    def after(before: Term, statistic: Term, name: str) -> Term:
        step = site.momentum * before + (1.0 - site.momentum) * view.mean_over_groups(statistic)
        return (step.where_positive(M, before) if view.may_be_empty else step).named(name)

    inv_std = (1.0 / (var + site.epsilon).sqrt()).named("inv_std")
    return {
        "Y": _normalized(view, batch, inv_std),
        "running_mean": after(before_mean, mean, "running_mean"),
        "running_var": after(before_var, unbiased, "running_var"),
        "saved_mean": mean,
        "saved_inv_std": inv_std,
        "count": view.scalar(M),
    }


def inference(op: Formulas, site: Site) -> Results:
    """Write the normalization with given statistics: one per channel, or per channel and ghost batch."""
    view = View(op, site)
    mean, var = view.statistics(view.parameter("input_mean")), view.statistics(view.parameter("input_var"))
    K = mean.to(view.dtype)
    none = op.number(0.0)
    rest = None if K is mean else K.to(DOUBLE) - mean
    batch = Batch(mean, var, none, K, view.x - view.spread(K), rest)
    inv_std = (1.0 / (var + site.epsilon).sqrt()).named("inv_std")
    return {
        "Y": _normalized(view, batch, inv_std),
        "saved_mean": mean,
        "saved_inv_std": inv_std,
        "count": view.scalar(none),
    }


def moments(op: Formulas, site: Site, stats: Statistics) -> Results:
    """Write mean, population variance and count of the batch; all 0 where there are no elements."""
    view = View(op, site)
    batch = batch_statistics(view, Replicas(op, site, view), stats)
    return {"mean": batch.mean, "var": batch.var, "count": view.scalar(batch.count)}


def _normalized(view: View, batch: Batch, inv_std: Term) -> Term:
    a, shift = view.parameter("scale") * inv_std, view.parameter("B")
    if batch.rest is not None:
        shift = shift + batch.rest * a
    Y = batch.centred * view.spread(a.to(view.dtype)) + view.spread(shift.to(view.dtype))
    return view.leave(Y, "Y")
