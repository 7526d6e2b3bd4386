"""The gradient of batch normalization, written out: the centred form (semantics B2).

    S1 = Σ dY      S2 = Σ dY·(x − mean) = Σ dY·D − r·S1        D = x − K, K = float(mean), r = mean − K
    dscale = inv_std·S2      dB = S1                           of this replica alone, summed over ghost batches
    message [S1, S2]:        T1, T2 their sums over the replicas

    c1 = scale·inv_std       c2 = −c1·inv_std²·T2 / M          c3 = −c1·T1 / M − r·c2
    dX = c1·dY + c2·D + c3

M = 0 stands for statistics that were constants: then c2 = c3 = 0.
"""

from bnpass.expansion.forward import Results
from bnpass.expansion.message import Replicas
from bnpass.expansion.sites import DOUBLE, Site
from bnpass.expansion.terms import Formulas
from bnpass.expansion.view import View


def gradient(op: Formulas, site: Site) -> Results:
    """Write dX, dscale and dB."""
    view = View(op, site)
    mean, inv_std, M = view.parameter("saved_mean"), view.parameter("saved_inv_std"), view.parameter("count")
    dY, K = view.upstream(), mean.to(view.dtype)
    D = view.x - view.spread(K)
    r = None if K is mean else mean - K.to(DOUBLE)

    S1, S2 = view.sum(dY), view.sum(dY * D)
    if r is not None:
        S2 = S2 - r * S1
    T1, T2 = Replicas(op, site, view).total(S1, S2)

    c1 = view.parameter("scale") * inv_std
    share = c1 / M.at_least(1.0)
    c2 = (-(share * inv_std * inv_std * T2)).where_positive(M, 0.0)
    c3 = (-(share * T1)).where_positive(M, 0.0)
    if r is not None:
        c3 = c3 - r * c2
    by_dY, by_D, constant = (view.spread(c.to(view.dtype)) for c in (c1, c2, c3))
    return {
        "dX": view.leave(by_dY * dY + by_D * D + constant, "dX"),
        "dscale": view.over_groups(inv_std * S2),
        "dB": view.over_groups(S1),
    }
