"""Each kind of batch normalization that was expanded, alone, against the float64 reference; in replicas, too."""

from collections.abc import Iterator, Sequence

import numpy as np

from bnpass.checks.trial import Array, Trial, kind_of
from bnpass.errors import VerificationError
from bnpass.expansion.options import ExpandOptions
from bnpass.expansion.result import Expanded
from bnpass.report import Check, counted
from bnpass.verification.replicas import run_replicas

_ROUNDINGS = 64
"""How many roundings may lie between an input and an output: a sum of a few dozen terms, and the formula."""
_EPSILON = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}


def each_alone(expanded: Sequence[Expanded], options: ExpandOptions) -> Check:
    """Expand a small copy of each kind of node in the model, and hold what it computes against the reference.

    Args:
        expanded: What was expanded.
        options: How.

    Returns:
        What was found.

    Raises:
        VerificationError: Something is computed wrong, which is a bug in bnpass.
    """
    trials = [Trial(kind, options) for kind in dict.fromkeys(map(kind_of, expanded))]
    worst, runs = 0.0, 0
    for trial in trials:
        for share in trial.shares:
            runs += 1
            for name, error in _errors(trial, share):
                worst = max(worst, error)
                if not error <= 1:
                    raise VerificationError(
                        f"{trial} in replicas of {share} samples: '{name}' is {error:.3g} times as far from the "
                        "reference as rounding permits; nothing was written, please report this"
                    )
    text = f"{counted(len(trials), 'kind')} of batch normalization alone, against the float64 reference"
    if trials:
        text += f"; {counted(runs, 'group')} of replicas; largest deviation {worst:.2f} of what rounding permits"
    return Check("local", ran=True, text=text, details={"kinds": len(trials), "largest_error": worst})


def _errors(trial: Trial, share: Sequence[int]) -> Iterator[tuple[str, float]]:
    """Yield for every output how far it is from the reference, over what rounding permits."""
    case = trial.case(share)
    for replica, expected in zip(run_replicas(trial.model(), case.feeds), case.wanted, strict=True):
        for name, value in expected.items():
            yield name, _error(replica[name], value, trial.least_epsilon if name != "count" else 0.0)


def _error(found: Array, expected: Array, least_epsilon: float) -> float:
    if found.shape != expected.shape:
        return np.inf
    off = np.abs(found.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0)
    epsilon = max(_EPSILON[found.dtype.name], least_epsilon)
    return float(off / (_ROUNDINGS * epsilon * np.abs(expected).max(initial=0.0))) if off else 0.0
