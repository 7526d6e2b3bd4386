"""An expanded model run by several replicas at once, against the original on the whole batch."""

import time
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bnpass.errors import VerificationError
from bnpass.expansion.result import Expanded
from bnpass.report import Check, counted
from bnpass.verification.compare_points import compare_points
from bnpass.verification.float64 import Float64Model, NoFloat64Error
from bnpass.verification.inputs import make_draws
from bnpass.verification.perturb import perturbed
from bnpass.verification.replicas import ReplicaError, run_replicas
from bnpass.verification.shares import Arrays, CannotSplitError, WholeBatch, dealt_inputs

SHARES = ((4, 4), (5, 2, 1), (5, 2, 1, 0))
"""Samples of each replica: equal ones, unequal ones, and one replica that has none."""
SAMPLES = 8

_NAME = "replicas"
_SLOW_S = 20.0
_COPIES = 2


def in_replicas(original: ir.Model, expanded: ir.Model, sites: Sequence[Expanded], seed: int) -> Check:
    """Run the expanded model in replicas and compare what they give with the original on all their samples.

    Args:
        original: The model before.
        expanded: The model after.
        sites: What was expanded in it.
        seed: Seed of the inputs.

    Returns:
        What was found, or why it was not run.

    Raises:
        VerificationError: Replicas disagree with each other or with the original.
    """
    try:
        _check_shared(sites)
        whole = _whole(original, expanded, seed)
    except (NoFloat64Error, ReplicaError, CannotSplitError) as error:
        return Check(_NAME, ran=False, text=str(error))
    worst, notes, ran = None, [], 0
    for share in SHARES:
        try:
            given = run_replicas(expanded, list(whole.parts(share)))
        except ReplicaError as error:
            if 0 not in share:
                raise VerificationError(f"replicas with {share} samples fail: {error}") from error
            notes.append(f"a replica without samples cannot run this model ({error})")
            continue
        ran += 1
        for name, judgement in whole.judge(given, share):
            if not judgement.ok:
                raise VerificationError(f"replicas with {share} samples: output '{name}': {judgement.reason}")
            worst = max(worst or (0.0, ""), (judgement.error / judgement.allowed if judgement.allowed else 0.0, name))
    text = f"{counted(ran, 'group')} of replicas, against one replica on all {SAMPLES} samples"
    if worst is not None:
        text += f"; largest error of '{worst[1]}', {worst[0]:.2g} of what is allowed"
    return Check(_NAME, ran=ran > 0, text="; ".join([text, *notes]))


def _check_shared(sites: Sequence[Expanded]) -> None:
    """Refuse models whose replicas are not, together, one replica."""
    training = [site for site in sites if site.kind != "inference"]
    if not any(site.group for site in training):
        raise CannotSplitError("no statistics are shared: each replica is a model for itself")
    if len({site.group for site in training}) > 1:
        raise CannotSplitError("not all statistics are shared by the same replicas")
    if any(site.virtual_batch_size for site in training):
        raise CannotSplitError("ghost batches of several replicas are no ghost batches of the whole batch")


def _whole(original: ir.Model, expanded: ir.Model, seed: int) -> WholeBatch:
    dealt = dealt_inputs(original)
    feeds, names = _samples(original, dealt, seed), compare_points(original, expanded).outputs
    if not names:
        raise CannotSplitError("all outputs depend on random operators")
    reference = Float64Model(original).run(feeds, names)
    begun = time.monotonic()
    found = run_replicas(expanded, [feeds])[0]
    if time.monotonic() - begun > _SLOW_S:
        raise CannotSplitError("several replicas of this model would take too long in one process")
    copies = [copy for i in range(_COPIES) if (copy := perturbed(expanded, seed + 1000 + i)) is not None]
    found = {name: array for name, array in found.items() if name in names}
    return WholeBatch(feeds, dealt, SAMPLES, reference, found, [run_replicas(copy, [feeds])[0] for copy in copies])


def _samples(model: ir.Model, dealt: frozenset[str], seed: int) -> Arrays:
    """Draw ``SAMPLES`` samples for every input that is dealt out, several draws put together."""
    first = make_draws(model, draws=1, seed=seed, shapes={}, data={})[0][0].arrays
    shapes = {name: array.shape for name, array in first.items()}  # draws of their own would differ in them
    draws = [found[0].arrays for found in make_draws(model, draws=SAMPLES, seed=seed, shapes=shapes, data={})]
    return {
        name: np.concatenate([draw[name] for draw in draws])[:SAMPLES] if name in dealt else array
        for name, array in draws[0].items()
    }
