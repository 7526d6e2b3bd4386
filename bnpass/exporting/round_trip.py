"""The exported model against what it comes from, on the same inputs: calls in inference, steps in training."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnpass.exporting.capture.calls import NormCall
from bnpass.exporting.model import Exported
from bnpass.exporting.options import ExportOptions
from bnpass.exporting.partners import Partner
from bnpass.verification.framework import Call, moved_by_one_ulp, verify_against
from bnpass.verification.inputs import make_draws
from bnpass.verification.result import Verification

_STEPS = 5
"""Fewer steps in training would not show statistics that drift."""

_BATCH = 4
"""Samples of a call, where ghost batches do not want more."""

_AGAIN = 3
"""Calls on inputs moved by one unit in the last place, which show how much the framework itself rounds."""


def check_round_trip(partner: Partner, exported: Exported, options: ExportOptions) -> Verification:
    """Compare an exported model with what it comes from, which ends as it began.

    In training every step starts from the statistics that the framework has then, so that each is judged alone.

    Raises:
        UsageError: No inputs can be drawn.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    count = max(options.check, _STEPS) if options.training else options.check
    norms = [record.layer for record in exported.traced.calls.records if isinstance(record, NormCall)]
    batch = math.lcm(_BATCH, *(layer.virtual_batch_size for layer in norms if layer.virtual_batch_size))
    candidates = make_draws(exported.model, draws=count, seed=options.seed, shapes={}, data={}, batch=batch)
    with partner.restored():
        calls = [_call(partner, offered[0].arrays, options.seed) for offered in candidates]
    return verify_against(exported.model, calls, seed=options.seed)


def _call(partner: Partner, arrays: Mapping[str, NDArray[Any]], seed: int) -> Call:
    """Call a partner, a few times with the same state, and return what went in and what came out."""
    rng, state, moved = np.random.default_rng(seed), partner.state(), []
    for _ in range(_AGAIN):
        with partner.restored():
            moved.append(partner.results({name: moved_by_one_ulp(array, rng) for name, array in arrays.items()}))
    return Call({**arrays, **state}, partner.results(arrays), moved)
