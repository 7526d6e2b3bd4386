"""Compare two models numerically: the steps of :func:`verify`, in order.

1. The interfaces: the same inputs, the same outputs.
2. What to compare (:mod:`.compare_points`), and inputs to compare it on (:mod:`.inputs`).
3. Both models, and copies of the original with its weights moved by one ULP (:mod:`.perturb`), in ONNX
   Runtime without graph optimizations, in a child process (:mod:`.runner`).
4. The original in float64 (:mod:`.float64`), and the judgement (:mod:`.bound`).

A model that ONNX Runtime cannot load at all (float64 convolutions, opsets before 7) is evaluated in float64
instead, new and old alike; the result says so.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from bnpass.errors import UsageError
from bnpass.model_io import ModelLike, load
from bnpass.runtime import get_library_path
from bnpass.runtime.library import Library
from bnpass.verification.bound import Judgement, judge, judge_within
from bnpass.verification.compare_points import ComparePoints, NotCompared, compare_points
from bnpass.verification.float64 import Float64Model, NoFloat64Error
from bnpass.verification.inputs import Draw, make_draws, model_inputs
from bnpass.verification.prepared import NEW, PreparedModels, write_draws
from bnpass.verification.result import OutputComparison, Status, Verification
from bnpass.verification.runner import ORIGINAL, Outcome, run_models
from bnpass.verification.windows import Array

__all__ = ["Sides", "check_call", "compare", "library_of", "verify"]

_REMEDY = "give sizes it can run at with --shape name:1,3,224,224"

# Returns what a model gave in a draw, by output name; None if it was not run.
_Outputs: TypeAlias = Callable[[str, int], Mapping[str, Array] | None]


@dataclass(frozen=True)
class _Tolerance:
    atol: float
    rtol: float


@dataclass(frozen=True)
class Sides:
    """What is held against what.

    Attributes:
        kernels: Which models the kernels run: none, the new one alone, or all of them.
        library: The kernel library, if any of them is run by kernels.
        old: What messages call the original.
        new: What messages call the new model.
        truth: The model that is evaluated in float64; None for the original itself.
    """

    kernels: Literal["none", "new", "all"] = "none"
    library: str | None = None
    old: str = "original"
    new: str = "new model"
    truth: ir.Model | None = None

    @property
    def legend(self) -> str:
        """What else a message about a crash has to say."""
        return " (new: run by the kernels)" if self.kernels == "new" else ""


def _interface_difference(old: ir.Model, new: ir.Model) -> str:
    """Say how the interfaces differ; empty if they do not."""

    def described(values: Sequence[ir.Value]) -> list[str]:
        return [f"{value.name}: {value.type}" for value in values]

    for what, before, after in (
        ("inputs", described(model_inputs(old)), described(model_inputs(new))),
        ("outputs", described(old.graph.outputs), described(new.graph.outputs)),
    ):
        if before != after:
            return f"The {what} differ: {', '.join(after) or 'none'} instead of {', '.join(before) or 'none'}"
    return ""


def _reference(
    model: ir.Model, draws: Mapping[int, Draw], names: Sequence[str], *, by_definition: bool
) -> tuple[dict[int, Mapping[str, Array]], str]:
    """Evaluate the original in float64 on every draw, or say why not."""
    try:
        evaluated = Float64Model(model, by_definition=by_definition)
        return {number: evaluated.run(draw.arrays, names) for number, draw in draws.items()}, ""
    except NoFloat64Error as error:
        return {}, str(error)


def _judgements(
    names: Sequence[str],
    draws: Mapping[int, Draw],
    outputs: _Outputs,
    references: Mapping[int, Mapping[str, Array]],
    copies: Sequence[str],
    tolerance: _Tolerance | None,
    own_order: bool,
) -> tuple[dict[str, list[tuple[int, Judgement]]], list[NotCompared]]:
    judged: dict[str, list[tuple[int, Judgement]]] = {name: [] for name in names}
    skipped: dict[str, NotCompared] = {}
    for number in draws:
        old, new = outputs(ORIGINAL, number) or {}, outputs(NEW, number) or {}
        moved = [values for copy in copies if (values := outputs(copy, number)) is not None]
        for name in names:
            if name not in old or name not in new:
                skipped[name] = NotCompared(name, "it is not a tensor")
                continue
            if tolerance is not None:
                judgement = judge_within(old[name], new[name], atol=tolerance.atol, rtol=tolerance.rtol)
            else:
                others = [values[name] for values in moved if name in values]
                truth = references.get(number, {}).get(name)
                judgement = judge(old[name], new[name], truth, others, own_order=own_order)
            judged[name].append((number, judgement))
    return {name: found for name, found in judged.items() if found}, list(skipped.values())


@dataclass(frozen=True)
class _Case:
    """Everything about one comparison that its steps share."""

    models: PreparedModels
    points: ComparePoints
    draws: tuple[tuple[Draw, ...], ...]
    seed: int
    tolerance: _Tolerance | None
    notes: tuple[str, ...]
    sides: Sides

    @property
    def names(self) -> tuple[str, ...]:
        return self.points.outputs + self.points.inner

    @property
    def _old_model(self) -> str:
        return "original model" if self.sides.old == "original" else self.sides.old

    def stopped(self, status: Status, failure: str) -> Verification:
        return Verification(status, self.seed, not_compared=self.points.not_compared, failure=failure, notes=self.notes)

    def judged(self, draws: Mapping[int, Draw], outputs: _Outputs, notes: Sequence[str]) -> Verification:
        """Judge finished runs."""
        references: dict[int, Mapping[str, Array]] = {}
        reason = "tolerances were given"
        if self.tolerance is None:
            truth, by_definition = self.sides.truth or self.models.old, self.sides.kernels != "none"
            references, reason = _reference(truth, draws, self.names, by_definition=by_definition)
        judgements, skipped = _judgements(
            self.names, draws, outputs, references, self.models.copies, self.tolerance, self.sides.kernels == "new"
        )
        inner = set(self.points.inner)
        compared = tuple(OutputComparison.worst(name, found, inner=name in inner) for name, found in judgements.items())
        if not compared:
            return self.stopped(Status.NOT_RUN, "There is no output that can be compared")
        return Verification(
            Status.AGREE if all(output.ok for output in compared) else Status.MISMATCH,
            self.seed,
            len(draws),
            tuple(f"{draw.sizes} ({draw.kind})" for draw in draws.values()),
            compared,
            "float64" if not reason else f"{self._old_model} ({reason})",
            (*self.points.not_compared, *skipped),
            notes=(*self.notes, *notes),
        )


def _through_runtime(case: _Case, folder: Path, provider: str, timeout_s: float) -> Verification:
    files, sides = case.models.files(folder, with_copies=case.tolerance is None), case.sides
    outcome = run_models(
        files,
        list(case.draws[0][0].arrays),
        write_draws(case.draws, folder),
        folder=folder,
        provider=provider,
        timeout_s=timeout_s,
        library=sides.library,
        with_kernels={"none": (), "new": (NEW,), "all": [name for name, _ in files]}[sides.kernels],
    )
    if (ORIGINAL, None) in outcome.failures:
        if sides.kernels != "none":
            why = outcome.failures[ORIGINAL, None]
            return case.stopped(Status.NOT_RUN, f"ONNX Runtime cannot load the {sides.old}: {why}")
        return _through_float64(case, outcome.failures[ORIGINAL, None])
    stopped = _stopped(case, outcome)
    if stopped is not None:
        return stopped
    draws = {number: case.draws[number][which] for number, which in sorted(outcome.candidates.items())}
    by = "" if sides.kernels == "none" else f", kernels of {Path(sides.library or '').name}"
    notes = [f"ONNX Runtime {outcome.version}, {provider}, graph optimizations off{by}"] if outcome.version else []
    if outcome.crash:
        notes.append(f"{outcome.crash}: its ULP is left out")
    notes += [
        f"draw {number} was not run: {outcome.failures[ORIGINAL, number]}"
        for number in range(len(case.draws))
        if number not in draws
    ]
    return case.judged(draws, outcome.outputs, notes)


def _stopped(case: _Case, outcome: Outcome) -> Verification | None:
    """Return the result if there is nothing to judge, else None."""
    if outcome.crash and outcome.crashed_model not in case.models.copies:
        status = Status.MISMATCH if outcome.crashed_model == NEW else Status.NOT_RUN
        return case.stopped(status, f"{outcome.crash}{case.sides.legend}")
    if not outcome.candidates:
        why = outcome.failures.get((ORIGINAL, 0), "no reason was given")
        ran = f"The {case.sides.old} ran at none of the sizes that were tried"
        return case.stopped(Status.NOT_RUN, f"{ran} ({why}): {_REMEDY}")
    for draw in (None, *outcome.candidates):
        if (NEW, draw) in outcome.failures:
            where = "be loaded" if draw is None else f"run draw {draw}, which the {case.sides.old} can"
            return case.stopped(Status.MISMATCH, f"The {case.sides.new} cannot {where}: {outcome.failures[NEW, draw]}")
    return None


def _through_float64(case: _Case, why: str) -> Verification:
    """Compare by evaluating both models in float64, since ONNX Runtime cannot load the original."""
    cannot = f"ONNX Runtime cannot load the original model: {why}"
    prepared = {name: case.models.model(name) for name in (ORIGINAL, NEW, *case.models.copies)}
    try:
        evaluated = {name: Float64Model(model) for name, model in prepared.items() if model is not None}
    except NoFloat64Error as error:
        return case.stopped(Status.NOT_RUN, f"{cannot}; nor can it be evaluated in float64: {error}")
    draws: dict[int, Draw] = {}
    results: dict[tuple[str, int], Mapping[str, Array]] = {}
    problem = ""
    for number, candidates in enumerate(case.draws):
        for draw in candidates:
            try:
                results[ORIGINAL, number] = evaluated[ORIGINAL].run(draw.arrays, case.names)
            except NoFloat64Error as error:
                problem = str(error)
                continue
            draws[number] = draw
            break
    if not draws:
        return case.stopped(Status.NOT_RUN, f"{cannot}; nor does it run in float64 ({problem}): {_REMEDY}")
    try:
        for name in (NEW, *case.models.copies):
            for number, draw in draws.items():
                if name in evaluated:
                    results[name, number] = evaluated[name].run(draw.arrays, case.names)
    except NoFloat64Error as error:
        return case.stopped(Status.MISMATCH, f"The new model cannot be run where the original can: {error}")
    return case.judged(
        draws, lambda name, number: results.get((name, number)), [f"{cannot}; both were evaluated in float64"]
    )


def _tolerance(atol: float | None, rtol: float | None) -> _Tolerance | None:
    for name, value in (("atol", atol), ("rtol", rtol)):
        if value is not None and not (isfinite(value) and value >= 0):
            raise UsageError(f"{name} is {value}; a tolerance is a finite number not below zero")
    return None if atol is None and rtol is None else _Tolerance(atol or 0.0, rtol or 0.0)


def check_call(draws: int, provider: str, timeout_s: float) -> None:
    """Refuse a call that cannot be carried out, with a UsageError."""
    if draws < 1:
        raise UsageError(f"draws is {draws}; at least one is needed")
    if provider not in ("cpu", "cuda"):
        raise UsageError(f"provider is '{provider}'; it is 'cpu' or 'cuda'")
    if not timeout_s > 0:
        raise UsageError(f"timeout_s is {timeout_s}; it is a number of seconds above zero")


def verify(
    a: ModelLike,
    b: ModelLike,
    *,
    draws: int = 3,
    seed: int = 0,
    shapes: Mapping[str, Sequence[int]] | None = None,
    data: Mapping[str, Array] | None = None,
    provider: str = "cpu",
    atol: float | None = None,
    rtol: float | None = None,
    timeout_s: float = 600.0,
    kernels: bool = False,
) -> Verification:
    """Compare two models on the same inputs.

    An output agrees if its error against a float64 evaluation of the original is at most twice the
    original's own error plus what one ULP of the weights is worth; see :mod:`bnpass.verification.bound`.
    Neither model is changed.

    Args:
        a: The original: a path, a ModelProto or an onnx_ir model.
        b: The new model.
        draws: How many sets of random inputs.
        seed: The seed of the first; the next has the next.
        shapes: Input shapes by name, where the model leaves them open.
        data: Input arrays by name, in place of random ones. If they cover every input, there is one draw.
        provider: ``"cpu"`` or ``"cuda"``.
        atol: Absolute tolerance between the two models, in place of the bound.
        rtol: Tolerance relative to the largest element of the original's output, in place of the bound.
        timeout_s: After so many seconds ONNX Runtime is stopped.
        kernels: Whether nodes of the domain ``bnpass`` are run by the kernels, in both models.

    Returns:
        The result; whether they agree is in `ok`.

    Raises:
        UsageError: The call does not fit the models.
        MissingDependencyError: ONNX Runtime is not installed, or not for this provider; or the kernels are not built.
        FileAccessError: A model cannot be read.
        ModelError: It is no model, or not one that may be read.

    Example:
        >>> x = ir.val("x", ir.DataType.FLOAT, (1, 2))
        >>> y = ir.node("Relu", [x]).outputs[0]
        >>> y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
        >>> model = ir.Model(ir.Graph([x], [y], nodes=[y.producer()], opset_imports={"": 20}), ir_version=9)
        >>> verify(model, model, draws=1).ok
        True

    """
    check_call(draws, provider, timeout_s)
    tolerance = _tolerance(atol, rtol)
    sides = Sides("all", get_library_path(library_of(provider))) if kernels else Sides()
    old, new = load(a), load(b)
    difference = _interface_difference(old, new)
    if difference:
        return Verification(Status.MISMATCH, seed, failure=difference)
    given = {name: np.asarray(array) for name, array in (data or {}).items()}
    candidates = make_draws(old, draws=draws, seed=seed, shapes=shapes or {}, data=given)
    return compare((a, b), (old, new), candidates, seed, provider, timeout_s, tolerance=tolerance, sides=sides)


def compare(
    given: tuple[ModelLike, ModelLike],
    loaded: tuple[ir.Model, ir.Model],
    candidates: tuple[tuple[Draw, ...], ...],
    seed: int,
    provider: str,
    timeout_s: float,
    *,
    tolerance: _Tolerance | None = None,
    sides: Sides | None = None,
) -> Verification:
    """Run two models of the same interface and judge the new one; the steps 2 to 4.

    Args:
        given: The models; a path stands for a file that can be run as it is.
        loaded: The same, loaded.
        candidates: Per draw, inputs to try in turn.
        seed: The seed that they were drawn with.
        provider: ``"cpu"`` or ``"cuda"``.
        timeout_s: After so many seconds ONNX Runtime is stopped.
        tolerance: In place of the bound.
        sides: What is held against what.

    Returns:
        The result.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed, or not for this provider; or cannot load the kernels.
    """
    points = compare_points(*loaded)
    models = PreparedModels(given, loaded, points.inner, seed)
    notes = (
        ["bfloat16 was run through float32: ONNX Runtime has few bfloat16 kernels"] if models.through_float32 else []
    )
    case = _Case(models, points, candidates, seed, tolerance, tuple(notes), sides or Sides())
    with tempfile.TemporaryDirectory(prefix="bnpass-verify-") as folder:
        return _through_runtime(case, Path(folder), provider, timeout_s)


def library_of(provider: str) -> Library:
    """Return the kernel library for a provider."""
    return "cuda" if provider == "cuda" else "cpu"
