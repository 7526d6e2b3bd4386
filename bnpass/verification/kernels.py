"""One model, its ``bnpass`` operators run in every way there is: by kernels, by their bodies, from their definition.

1. The whole model with kernels against the whole model with bodies, as two models are compared, on a float64
   evaluation in which our operators are their definition (:mod:`.definition_ops`).
2. Each node alone (:mod:`.node_check`), so that what is wrong has a name.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from bnpass.ops.bodies import add_bodies
from bnpass.runtime import get_library_path
from bnpass.verification.inputs import make_draws
from bnpass.verification.node_check import Runs, check_nodes
from bnpass.verification.result import Status, Verification
from bnpass.verification.verifier import Sides, check_call, compare, library_of
from bnpass.verification.windows import Array

__all__ = ["verify_kernels"]


def verify_kernels(
    model: ir.Model,
    *,
    truth: ir.Model | None = None,
    draws: int = 3,
    seed: int = 0,
    shapes: Mapping[str, Sequence[int]] | None = None,
    data: Mapping[str, Array] | None = None,
    provider: str = "cpu",
    timeout_s: float = 600.0,
) -> Verification:
    """Hold the kernels of a model's operators against their bodies and their definition.

    Args:
        model: A model with operators of bnpass; it is not changed.
        truth: The model that is evaluated in float64; None for the same one.
        draws: How many sets of random inputs.
        seed: The seed of the first; the next has the next.
        shapes: Input shapes by name, where the model leaves them open.
        data: Input arrays by name, in place of random ones.
        provider: ``"cpu"`` or ``"cuda"``.
        timeout_s: After so many seconds ONNX Runtime is stopped; there are up to three runs.

    Returns:
        The result: ``checks`` has two lines per node, ``outputs`` those of the whole model.

    Raises:
        UsageError: The call does not fit the model.
        MissingDependencyError: ONNX Runtime is not installed, or not for this provider; or there are no kernels.
        ModelError: The model is too old for bodies.
    """
    check_call(draws, provider, timeout_s)
    library = get_library_path(library_of(provider))
    given = {name: np.asarray(array) for name, array in (data or {}).items()}
    candidates = make_draws(model, draws=draws, seed=seed, shapes=shapes or {}, data=given)
    bodies = model.clone()
    add_bodies(bodies)
    sides = Sides("new", library, "model with bodies", "model with kernels", truth)
    whole = compare((bodies, bodies), (bodies, bodies), candidates, seed, provider, timeout_s, sides=sides)
    if whole.status is Status.NOT_RUN:
        return whole
    with tempfile.TemporaryDirectory(prefix="bnpass-verify-") as folder:
        alone = check_nodes(bodies, candidates, Runs(provider, timeout_s, library), seed, Path(folder))
    is_wrong = bool(alone.failure) or not all(check.ok for check in alone.checks)
    return replace(
        whole,
        status=Status.MISMATCH if is_wrong else whole.status,
        failure="; ".join(filter(None, (whole.failure, alone.failure))),
        checks=alone.checks,
        notes=(*whole.notes, *alone.notes),
    )
