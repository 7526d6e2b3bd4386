"""A model against what the framework that it comes from computed on the same inputs.

The bound is that of two models, with the exported one as the original: the framework may be as far from the float64
evaluation of the graph as twice ONNX Runtime is, plus what one unit in the last place of weights and inputs moves, in
ONNX Runtime or in the framework itself, plus what the framework loses where it takes the statistics of a batch.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnpass.verification.bound import EPSILON, Judgement, judge
from bnpass.verification.compare_points import ComparePoints, NotCompared, compare_points
from bnpass.verification.float64 import Float64Model, NoFloat64Error
from bnpass.verification.inputs import Draw, model_inputs
from bnpass.verification.perturb import move_one_ulp
from bnpass.verification.prepared import NEW, PreparedModels, write_draws, write_model
from bnpass.verification.result import OutputComparison, Status, Verification
from bnpass.verification.runner import ORIGINAL, Outcome, run_models
from bnpass.verification.summation import with_rounded_statistics

Array = NDArray[Any]

_ROUNDED = "rounded statistics"


@dataclass(frozen=True)
class Call:
    """One call of the framework.

    Attributes:
        feeds: What went in: every input of the model, those with a default too.
        results: What came out, by the names of the model's outputs.
        moved: The same for inputs moved by one unit in the last place, some times over.
    """

    feeds: Mapping[str, Array]
    results: Mapping[str, Array]
    moved: Sequence[Mapping[str, Array]]


def verify_against(model: ir.Model, calls: Sequence[Call], *, seed: int = 0, timeout_s: float = 600.0) -> Verification:
    """Run a model on the inputs of a framework and compare what comes out.

    Args:
        model: The exported model; it is not changed.
        calls: What the framework did.
        seed: Of the directions in which weights and inputs are moved.
        timeout_s: After so many seconds ONNX Runtime is stopped.

    Returns:
        The result; outputs behind random operators are listed as not compared.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
    """
    points = compare_points(model, model)
    models = PreparedModels((model, model), (model, model), (), seed)
    rng = np.random.default_rng(seed)
    draws = [(Draw("given", call.feeds),) for call in calls]
    draws += [(Draw("moved", {n: moved_by_one_ulp(a, rng) for n, a in call.feeds.items()}),) for call in calls]
    with tempfile.TemporaryDirectory(prefix="bnpass-verify-") as name:
        folder = Path(name)
        files = [(which, path) for which, path in models.files(folder, with_copies=True) if which != NEW]
        rounded = with_rounded_statistics(model, seed)
        if rounded is not None:
            files.append((_ROUNDED, write_model(rounded, folder / f"{_ROUNDED}.onnx")))
        outcome = run_models(
            files, list(calls[0].feeds), write_draws(draws, folder), folder=folder, provider="cpu", timeout_s=timeout_s
        )
        return _judged(model, calls, points, models, outcome, seed)


def _judged(
    model: ir.Model,
    calls: Sequence[Call],
    points: ComparePoints,
    models: PreparedModels,
    outcome: Outcome,
    seed: int,
) -> Verification:
    failed = next((text for (which, _), text in outcome.failures.items() if which == ORIGINAL), outcome.crash)
    if failed:
        return Verification(Status.MISMATCH, seed, failure=f"ONNX Runtime cannot run the exported model: {failed}")
    references, reason = _references(model, calls, points.outputs)
    judged: dict[str, list[tuple[int, Judgement]]] = {name: [] for name in points.outputs}
    for number, call in enumerate(calls):
        found = outcome.outputs(ORIGINAL, number) or {}
        others = [outcome.outputs(copy, number) for copy in (*models.copies, _ROUNDED)]
        others.append(outcome.outputs(ORIGINAL, len(calls) + number))
        for name in points.outputs:
            given = call.results[name].astype(found[name].dtype)
            moved = [values[name] for values in others if values is not None]
            moved += [_shifted(found[name], call.results[name], again[name]) for again in call.moved]
            truth = references.get(number, {}).get(name)
            judged[name].append((number, judge(found[name], given, truth, moved, own_order=True)))
    compared = tuple(OutputComparison.worst(name, every, inner=False) for name, every in judged.items())
    if not compared:
        return Verification(Status.NOT_RUN, seed, not_compared=points.not_compared, failure="nothing can be compared")
    return Verification(
        Status.AGREE if all(output.ok for output in compared) else Status.MISMATCH,
        seed,
        len(calls),
        tuple(_sizes(model, call) for call in calls),
        compared,
        "float64" if not reason else f"the exported model itself ({reason})",
        tuple(NotCompared(one.name, one.reason.partition(";")[0]) for one in points.not_compared),
        notes=(f"ONNX Runtime {outcome.version}, graph optimizations off",),
    )


def _references(
    model: ir.Model, calls: Sequence[Call], names: Sequence[str]
) -> tuple[dict[int, Mapping[str, Array]], str]:
    """Evaluate the exported model in float64, or say why not."""
    try:
        evaluated = Float64Model(model, by_definition=True)
        return {number: evaluated.run(call.feeds, names) for number, call in enumerate(calls)}, ""
    except NoFloat64Error as error:
        return {}, str(error)


def _shifted(found: Array, results: Array, again: Array) -> Array:
    """Return what ONNX Runtime found, moved as far as the framework has moved."""
    if found.dtype not in EPSILON or found.shape != again.shape:
        return found
    return found.astype(np.float64) + (again.astype(np.float64) - results.astype(np.float64))


def _sizes(model: ir.Model, call: Call) -> str:
    return Draw("given", {str(v.name): call.feeds[str(v.name)] for v in model_inputs(model)}).sizes


def moved_by_one_ulp(array: Array, rng: np.random.Generator) -> Array:
    """Move the numbers of an array of floats by one unit in the last place; other arrays stay as they are."""
    return move_one_ulp(array, rng) if array.dtype in EPSILON else array
