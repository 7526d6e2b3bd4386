"""An expanded model run by several replicas at once, against the original on the whole batch.

Replicas that share every statistic are, together, one replica that sees all their samples: that is what is compared.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnpass.errors import VerificationError
from bnpass.expansion.result import Expanded
from bnpass.report import Check, counted
from bnpass.verification.bound import Judgement, judge
from bnpass.verification.float64 import Float64Model, NoFloat64Error
from bnpass.verification.inputs import make_draws, model_inputs
from bnpass.verification.perturb import perturbed
from bnpass.verification.replicas import ReplicaError, run_replicas

Arrays = Mapping[str, NDArray[np.generic]]

SHARES = ((4, 4), (5, 2, 1), (5, 2, 1, 0))
"""Samples of each replica: equal ones, unequal ones, and one replica that has none."""
SAMPLES = 8

_NAME = "replicas"
_SLOW_S = 20.0
_COPIES = 2


@dataclass(frozen=True)
class _Whole:
    """One replica on the whole batch.

    Attributes:
        feeds: The inputs.
        dealt: Those that hold samples.
        reference: The original, in float64.
        found: The expanded model.
        moved: The expanded model with its weights moved by one unit in the last place.
    """

    feeds: Arrays
    dealt: frozenset[str]
    reference: Arrays
    found: Arrays
    moved: Sequence[Arrays]


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
    except (NoFloat64Error, ReplicaError, _CannotSplitError) as error:
        return Check(_NAME, ran=False, text=str(error))
    worst, notes, ran = None, [], 0
    for share in SHARES:
        try:
            given = run_replicas(expanded, list(_parts(whole, share)))
        except ReplicaError as error:
            if 0 not in share:
                raise VerificationError(f"replicas with {share} samples fail: {error}") from error
            notes.append(f"a replica without samples cannot run this model ({error})")
            continue
        ran += 1
        for name, judgement in _judged(whole, given, share):
            if not judgement.ok:
                raise VerificationError(f"replicas with {share} samples: output '{name}': {judgement.reason}")
            worst = max(worst or (0.0, ""), (judgement.error / judgement.allowed if judgement.allowed else 0.0, name))
    text = f"{counted(ran, 'group')} of replicas, against one replica on all {SAMPLES} samples"
    if worst is not None:
        text += f"; largest error of '{worst[1]}', {worst[0]:.2g} of what is allowed"
    return Check(_NAME, ran=ran > 0, text="; ".join([text, *notes]))


class _CannotSplitError(Exception):
    """The inputs cannot be dealt out to replicas; the message says why."""


def _check_shared(sites: Sequence[Expanded]) -> None:
    """Refuse models whose replicas are not, together, one replica."""
    training = [site for site in sites if site.kind != "inference"]
    if not any(site.group for site in training):
        raise _CannotSplitError("no statistics are shared: each replica is a model for itself")
    if len({site.group for site in training}) > 1:
        raise _CannotSplitError("not all statistics are shared by the same replicas")
    if any(site.virtual_batch_size for site in training):
        raise _CannotSplitError("ghost batches of several replicas are no ghost batches of the whole batch")


def _whole(original: ir.Model, expanded: ir.Model, seed: int) -> _Whole:
    dealt = _dealt(original)
    feeds, names = _samples(original, dealt, seed), [v.name or "" for v in original.graph.outputs]
    reference = Float64Model(original).run(feeds, names)
    begun = time.monotonic()
    found = run_replicas(expanded, [feeds])[0]
    if time.monotonic() - begun > _SLOW_S:
        raise _CannotSplitError("several replicas of this model would take too long in one process")
    copies = [copy for i in range(_COPIES) if (copy := perturbed(expanded, seed + 1000 + i)) is not None]
    return _Whole(feeds, dealt, reference, found, [run_replicas(copy, [feeds])[0] for copy in copies])


def _dealt(model: ir.Model) -> frozenset[str]:
    """Return the inputs that hold samples: those with an open first dimension; all replicas get the others whole."""
    found = frozenset(v.name or "" for v in model_inputs(model) if v.shape and not isinstance(v.shape[0], int))
    if not found:
        raise _CannotSplitError("no input has an open batch dimension to deal out")
    return found


def _samples(model: ir.Model, dealt: frozenset[str], seed: int) -> Arrays:
    """Draw ``SAMPLES`` samples for every input that is dealt out, several draws put together."""
    draws = [candidates[0].arrays for candidates in make_draws(model, draws=SAMPLES, seed=seed, shapes={}, data={})]
    return {
        name: np.concatenate([draw[name] for draw in draws])[:SAMPLES] if name in dealt else array
        for name, array in draws[0].items()
    }


def _parts(whole: _Whole, share: Sequence[int]) -> Iterator[Arrays]:
    for end, size in zip(np.cumsum(share), share, strict=True):
        yield {name: a[end - size : end] if name in whole.dealt else a for name, a in whole.feeds.items()}


def _judged(whole: _Whole, given: Sequence[Arrays], share: Sequence[int]) -> Iterator[tuple[str, Judgement]]:
    """Judge every output: one with a row per sample is put together, one without has to be the same everywhere."""
    for name, old in whole.found.items():
        parts = [result[name] for result in given]
        if old.shape[:1] == (SAMPLES,) and all(p.shape[:1] == (n,) for p, n in zip(parts, share, strict=True)):
            new = np.concatenate(parts)
        elif all(np.array_equal(part, parts[0], equal_nan=part.dtype.kind == "f") for part in parts):
            new = parts[0]
        else:
            raise VerificationError(f"replicas with {share} samples: they disagree about output '{name}'")
        yield name, judge(old, new, whole.reference.get(name), [moved[name] for moved in whole.moved])
