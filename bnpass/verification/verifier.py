"""Compare two models numerically: the steps of :func:`verify`, in order.

1. The interfaces: the same inputs, the same outputs.
2. What to compare (:mod:`.compare_points`), and inputs to compare it on (:mod:`.inputs`).
3. Both models, and copies of the original with its weights moved by one ULP (:mod:`.perturb`), in ONNX
   Runtime without graph optimizations, in a child process (:mod:`.runner`).
4. The original in float64 (:mod:`.float64`), and the judgement (:mod:`.bound`).

A model that ONNX Runtime cannot load at all (float64 convolutions, opsets before 7) is evaluated in float64
instead, new and old alike; the result says so.
"""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from bnpass.errors import UsageError
from bnpass.model_io import ModelLike, load
from bnpass.verification.bound import Judgement, judge, judge_within
from bnpass.verification.compare_points import ComparePoints, NotCompared, compare_points
from bnpass.verification.float64 import Float64Model, NoFloat64Error
from bnpass.verification.inputs import Draw, make_draws, model_inputs
from bnpass.verification.perturb import perturbed
from bnpass.verification.result import OutputComparison, Status, Verification
from bnpass.verification.retype import cast_array, retype, uses_type
from bnpass.verification.runner import ORIGINAL, Outcome, run_models, write_inputs
from bnpass.verification.windows import Array

__all__ = ["verify"]

_NEW = "new"
_BFLOAT16 = frozenset({ir.DataType.BFLOAT16})
# Weights move by chance; with few outputs a single copy may hardly move them.
_COPIES_SMALL, _COPIES_LARGE, _SMALL_BYTES = 4, 2, 64 << 20
_EXTERNAL_BYTES = 256 << 20

_REMEDY = "give sizes it can run at with --shape name:1,3,224,224"

# Returns what a model gave in a draw, by output name; None if it was not run.
_Outputs: TypeAlias = Callable[[str, int], Mapping[str, Array] | None]


@dataclass(frozen=True)
class _Tolerance:
    atol: float
    rtol: float


def _weight_bytes(model: ir.Model) -> int:
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


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


def _exposed(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Return a copy with the named inner values as further outputs."""
    copy = model.clone()
    wanted = set(names)
    found = {v.name: v for node in copy.graph for v in node.outputs if v.name in wanted}
    copy.graph.outputs.extend(found[name] for name in names)
    return copy


class _Models:
    """The models as they are run: prepared copies, and where their files are."""

    def __init__(
        self,
        given: tuple[ModelLike, ModelLike],
        loaded: tuple[ir.Model, ir.Model],
        inner: Sequence[str],
        seed: int,
    ) -> None:
        self._given = dict(zip((ORIGINAL, _NEW), given, strict=True))
        self._inner = tuple(inner)
        self._seed = seed
        self.old, self.new = loaded
        self.through_float32 = any(uses_type(m, ir.DataType.BFLOAT16) for m in (self.old, self.new))
        small = _weight_bytes(self.old) <= _SMALL_BYTES
        self.copies = tuple(f"perturbed{i}" for i in range(_COPIES_SMALL if small else _COPIES_LARGE))

    def model(self, name: str) -> ir.Model | None:
        """Return the model of this name as it is run; None if it has no weights to perturb."""
        model: ir.Model | None = self.new if name == _NEW else self.old
        if name in self.copies:
            model = perturbed(self.old, self._seed + 1000 + self.copies.index(name))
        if model is None:
            return None
        if self._inner:
            model = _exposed(model, self._inner)
        if self.through_float32:
            model = model.clone()
            retype(model, _BFLOAT16, ir.DataType.FLOAT)
        return model

    def files(self, folder: Path, *, with_copies: bool) -> list[tuple[str, Path]]:
        """Write what is not a file already as it is to be run."""
        found = []
        for name in (ORIGINAL, _NEW, *(self.copies if with_copies else ())):
            given = self._given.get(name)
            if isinstance(given, str | os.PathLike) and not self._inner and not self.through_float32:
                found.append((name, Path(given)))
                continue
            model = self.model(name)
            if model is not None:
                found.append((name, _write(model, folder / f"{name}.onnx")))
        return found


def _write(model: ir.Model, path: Path) -> Path:
    large = _weight_bytes(model) > _EXTERNAL_BYTES
    ir.save(model, path, external_data=f"{path.name}.data" if large else None)
    return path


def _reference(
    model: ir.Model, draws: Mapping[int, Draw], names: Sequence[str]
) -> tuple[dict[int, Mapping[str, Array]], str]:
    """Evaluate the original in float64 on every draw, or say why not."""
    try:
        evaluated = Float64Model(model)
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
) -> tuple[dict[str, list[tuple[int, Judgement]]], list[NotCompared]]:
    judged: dict[str, list[tuple[int, Judgement]]] = {name: [] for name in names}
    skipped: dict[str, NotCompared] = {}
    for number in draws:
        old, new = outputs(ORIGINAL, number) or {}, outputs(_NEW, number) or {}
        moved = [values for copy in copies if (values := outputs(copy, number)) is not None]
        for name in names:
            if name not in old or name not in new:
                skipped[name] = NotCompared(name, "it is not a tensor")
                continue
            if tolerance is not None:
                judgement = judge_within(old[name], new[name], atol=tolerance.atol, rtol=tolerance.rtol)
            else:
                others = [values[name] for values in moved if name in values]
                judgement = judge(old[name], new[name], references.get(number, {}).get(name), others)
            judged[name].append((number, judgement))
    return {name: found for name, found in judged.items() if found}, list(skipped.values())


@dataclass(frozen=True)
class _Case:
    """Everything about one comparison that its steps share."""

    models: _Models
    points: ComparePoints
    draws: tuple[tuple[Draw, ...], ...]
    seed: int
    tolerance: _Tolerance | None
    notes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return self.points.outputs + self.points.inner

    def stopped(self, status: Status, failure: str) -> Verification:
        return Verification(status, self.seed, not_compared=self.points.not_compared, failure=failure, notes=self.notes)

    def judged(self, draws: Mapping[int, Draw], outputs: _Outputs, notes: Sequence[str]) -> Verification:
        """Judge finished runs."""
        references: dict[int, Mapping[str, Array]] = {}
        reason = "tolerances were given"
        if self.tolerance is None:
            references, reason = _reference(self.models.old, draws, self.names)
        judgements, skipped = _judgements(self.names, draws, outputs, references, self.models.copies, self.tolerance)
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
            "float64" if not reason else f"original model ({reason})",
            (*self.points.not_compared, *skipped),
            notes=(*self.notes, *notes),
        )


def _runtime_inputs(case: _Case, folder: Path) -> list[list[Path]]:
    return [
        [
            write_inputs(
                folder / f"draw{number}-{which}.npz",
                [cast_array(array, _BFLOAT16, ir.DataType.FLOAT) for array in draw.arrays.values()],
            )
            for which, draw in enumerate(candidates)
        ]
        for number, candidates in enumerate(case.draws)
    ]


def _through_runtime(case: _Case, folder: Path, provider: str, timeout_s: float) -> Verification:
    files = case.models.files(folder, with_copies=case.tolerance is None)
    outcome = run_models(
        files,
        list(case.draws[0][0].arrays),
        _runtime_inputs(case, folder),
        folder=folder,
        provider=provider,
        timeout_s=timeout_s,
    )
    if (ORIGINAL, None) in outcome.failures:
        return _through_float64(case, outcome.failures[ORIGINAL, None])
    stopped = _stopped(case, outcome)
    if stopped is not None:
        return stopped
    draws = {number: case.draws[number][which] for number, which in sorted(outcome.candidates.items())}
    notes = [f"ONNX Runtime {outcome.version}, {provider}, graph optimizations off"] if outcome.version else []
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
        status = Status.MISMATCH if outcome.crashed_model == _NEW else Status.NOT_RUN
        return case.stopped(status, outcome.crash)
    if not outcome.candidates:
        why = outcome.failures.get((ORIGINAL, 0), "no reason was given")
        return case.stopped(Status.NOT_RUN, f"The original ran at none of the sizes that were tried ({why}): {_REMEDY}")
    for draw in (None, *outcome.candidates):
        if (_NEW, draw) in outcome.failures:
            where = "be loaded" if draw is None else f"run draw {draw}, which the original can"
            return case.stopped(Status.MISMATCH, f"The new model cannot {where}: {outcome.failures[_NEW, draw]}")
    return None


def _through_float64(case: _Case, why: str) -> Verification:
    """Compare by evaluating both models in float64, since ONNX Runtime cannot load the original."""
    cannot = f"ONNX Runtime cannot load the original model: {why}"
    prepared = {name: case.models.model(name) for name in (ORIGINAL, _NEW, *case.models.copies)}
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
        for name in (_NEW, *case.models.copies):
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


def _check_call(draws: int, provider: str, timeout_s: float) -> None:
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

    Returns:
        The result; whether they agree is in `ok`.

    Raises:
        UsageError: The call does not fit the models.
        MissingDependencyError: ONNX Runtime is not installed, or not for this provider.
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
    _check_call(draws, provider, timeout_s)
    tolerance = _tolerance(atol, rtol)
    old, new = load(a), load(b)
    difference = _interface_difference(old, new)
    if difference:
        return Verification(Status.MISMATCH, seed, failure=difference)
    given = {name: np.asarray(array) for name, array in (data or {}).items()}
    candidates = make_draws(old, draws=draws, seed=seed, shapes=shapes or {}, data=given)
    points = compare_points(old, new)
    models = _Models((a, b), (old, new), points.inner, seed)
    notes = (
        ["bfloat16 was run through float32: ONNX Runtime has few bfloat16 kernels"] if models.through_float32 else []
    )
    case = _Case(models, points, candidates, seed, tolerance, tuple(notes))
    with tempfile.TemporaryDirectory(prefix="bnpass-verify-") as folder:
        return _through_runtime(case, Path(folder), provider, timeout_s)
