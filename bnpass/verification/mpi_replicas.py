"""Several replicas of one model, each a process of MPI with the kernels, against one replica on the whole batch.

The batch is dealt out in equal parts, in unequal ones, and such that one replica has no sample. What the replicas give
is put together (:mod:`.shares`) and held against one replica that sees all samples, and a float64 evaluation of it.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from bnpass.errors import UsageError
from bnpass.ops import DOMAIN
from bnpass.ops.bodies import add_bodies
from bnpass.runtime import get_library_path
from bnpass.runtime.launch import Launcher, find_launcher
from bnpass.verification.bound import Judgement, judge
from bnpass.verification.float64 import Float64Model, NoFloat64Error
from bnpass.verification.inputs import Draw, make_draws
from bnpass.verification.node_check import Runs
from bnpass.verification.node_model import is_ours
from bnpass.verification.prepared import NEW, PreparedModels, write_draws
from bnpass.verification.ranks import Ranks, listed
from bnpass.verification.result import PartCheck, Status, Verification
from bnpass.verification.runner import ORIGINAL, Outcome, shortened
from bnpass.verification.shares import Arrays, CannotSplitError, WholeBatch, dealt_inputs
from bnpass.verification.verifier import check_call, library_of
from bnpass.verification.windows import Array

__all__ = ["verify_replicas"]


@dataclass(frozen=True)
class _Job:
    """What is run, and how."""

    model: ir.Model
    count: int
    groups: tuple[str, ...]
    prepared: PreparedModels
    draws: tuple[tuple[Draw, ...], ...]
    dealt: frozenset[str]
    runs: Runs
    launcher: Launcher
    truth: ir.Model
    seed: int
    folder: Path

    @property
    def inputs(self) -> list[str]:
        return list(self.draws[0][0].arrays)

    def ranks(self, model: Path) -> Ranks:
        return Ranks(
            model, self.count, self.inputs, self.groups, self.runs.provider, self.runs.timeout_s, self.launcher
        )


def verify_replicas(
    model: ir.Model,
    count: int,
    *,
    truth: ir.Model | None = None,
    draws: int = 3,
    seed: int = 0,
    shapes: Mapping[str, Sequence[int]] | None = None,
    data: Mapping[str, Array] | None = None,
    provider: str = "cpu",
    timeout_s: float = 600.0,
) -> Verification:
    """Start replicas of a model as processes of MPI, and compare them with one replica on the whole batch.

    Args:
        model: A model with operators of bnpass that share all their statistics; it is not changed.
        count: How many replicas, at least 2.
        truth: The model that is evaluated in float64; None for the same one.
        draws: How many sets of random inputs.
        seed: The seed of the first; the next has the next.
        shapes: Shapes of the whole batch by input, where the model leaves them open; else it has 2 samples a replica.
        data: The whole batch by input, in place of random ones.
        provider: ``"cpu"`` or ``"cuda"``.
        timeout_s: After so many seconds the replicas are ended.

    Returns:
        The result: ``checks`` has a line for one replica, and one for each way to deal the batch out.

    Raises:
        UsageError: The call does not fit the model, or its replicas are not, together, one replica.
        MissingDependencyError: ONNX Runtime, its provider, the kernels or MPI is not there.
        ModelError: The model is too old for bodies.
    """
    check_call(draws, provider, timeout_s)
    if count < 2:
        raise UsageError(f"there are {count} replicas; several are at least 2")
    library = get_library_path(library_of(provider))
    launcher = find_launcher()
    groups = _shared_groups(model)
    given = {name: np.asarray(array) for name, array in (data or {}).items()}
    try:
        dealt = dealt_inputs(model)
    except CannotSplitError as error:
        raise UsageError(str(error)) from error
    candidates = make_draws(model, draws=draws, seed=seed, shapes=shapes or {}, data=given, batch=2 * count)
    bodies = model.clone()
    add_bodies(bodies)
    prepared = PreparedModels((bodies, bodies), (bodies, bodies), (), seed)
    with tempfile.TemporaryDirectory(prefix="bnpass-verify-") as folder:
        runs = Runs(provider, timeout_s, library)
        return _run(
            _Job(bodies, count, groups, prepared, candidates, dealt, runs, launcher, truth or model, seed, Path(folder))
        )


def _run(job: _Job) -> Verification:
    files = job.prepared.files(job.folder, with_copies=True)
    outcome = job.runs.run(files, job.inputs, write_draws(job.draws, job.folder), job.folder / "one", [NEW])
    problem = _one_replica_fails(outcome)
    if problem is not None:
        return Verification(problem[0], job.seed, failure=problem[1])
    draws = {number: job.draws[number][which] for number, which in sorted(outcome.candidates.items())}
    references, why = _references(job, draws)
    batches = {
        number: WholeBatch(
            draw.arrays,
            job.dealt,
            _samples(draw, job.dealt),
            references.get(number, {}),
            outcome.outputs(ORIGINAL, number) or {},
            [moved for copy in job.prepared.copies if (moved := outcome.outputs(copy, number)) is not None],
        )
        for number, draw in draws.items()
    }
    checks = [_one_replica(batches, outcome)]
    shares, notes = _shares(job, batches)
    ran = job.ranks(dict(files)[NEW]).run(batches, shares, job.folder / "ranks")
    failure = ran.failure
    for number, batch in batches.items() if not failure else ():
        for share in shares[number]:
            judged = batch.judge(ran.outputs[number, share], share)
            name = f"{job.count} replicas of {listed(share)} samples"
            checks.append(PartCheck.worst(name, [(value, number, judgement) for value, judgement in judged]))
    by = f"ONNX Runtime {outcome.version}, {job.runs.provider}, kernels of {Path(job.runs.library).name}"
    return Verification(
        Status.AGREE if not failure and all(check.ok for check in checks) else Status.MISMATCH,
        job.seed,
        len(draws),
        tuple(f"{draw.sizes} ({draw.kind})" for draw in draws.values()),
        reference="float64" if not why else f"one replica with bodies ({why})",
        failure=failure,
        notes=(f"{by}; {job.count} processes of {ran.mpi or job.launcher.version}", *notes),
        checks=tuple(_merged(checks)),
    )


def _shared_groups(model: ir.Model) -> tuple[str, ...]:
    """Return the groups that a model names; refuse one whose replicas are not, together, one replica."""
    graphs = [model.graph, *(f.graph for key, f in model.functions.items() if key[0] != DOMAIN)]
    nodes = [node for graph in graphs for node in ir.traversal.RecursiveGraphIterator(graph)]
    training = [node for node in nodes if is_ours(node) and not _is_inference(node)]
    groups = {node.attributes.get_string("group", "") or "" for node in training}
    if not groups - {""}:
        remedy = "expand --sync world --as-functions shares those of BatchNormalization"
        raise UsageError(f"no statistics are shared: each replica is a model for itself ({remedy})")
    if "" in groups or any(_is_unshared(node) for node in nodes):
        raise UsageError("not all statistics are shared by all replicas: they are not, together, one replica")
    if any(node.attributes.get_int("virtual_batch_size", 0) for node in training):
        raise UsageError("ghost batches of several replicas are no ghost batches of the whole batch")
    return tuple(sorted(groups))


def _is_inference(node: ir.Node) -> bool:
    return node.op_type == "SyncBatchNormalization" and not node.attributes.get_int("training_mode", 0)


def _is_unshared(node: ir.Node) -> bool:
    """Tell whether a node is ONNX's own batch normalization in training mode."""
    trains = node.attributes.get_int("training_mode", 0) or len(node.outputs) > 1
    return node.op_type == "BatchNormalization" and node.domain in ("", "ai.onnx") and bool(trains)


def _one_replica_fails(outcome: Outcome) -> tuple[Status, str] | None:
    """Say why one replica on the whole batch could not be run, by bodies or by kernels; None if it could."""
    if outcome.crash and outcome.crashed_model in (ORIGINAL, NEW):
        status = Status.MISMATCH if outcome.crashed_model == NEW else Status.NOT_RUN
        return status, f"{outcome.crash} (original: with bodies; new: with kernels)"
    if (ORIGINAL, None) in outcome.failures:
        return Status.NOT_RUN, f"ONNX Runtime cannot load the model with bodies: {outcome.failures[ORIGINAL, None]}"
    if not outcome.candidates:
        why = outcome.failures.get((ORIGINAL, 0), "no reason was given")
        return Status.NOT_RUN, (
            f"One replica with bodies ran at none of the sizes that were tried ({why}): "
            "give sizes it can run at with --shape name:8,3,224,224"
        )
    for draw in (None, *outcome.candidates):
        if (NEW, draw) in outcome.failures:
            return Status.MISMATCH, f"One replica with kernels cannot be run: {outcome.failures[NEW, draw]}"
    return None


def _references(job: _Job, draws: Mapping[int, Draw]) -> tuple[dict[int, Arrays], str]:
    """Evaluate one replica in float64 on every draw, or say why not."""
    names = [str(value.name) for value in job.truth.graph.outputs]
    try:
        evaluated = Float64Model(job.truth, by_definition=True)
        return {number: evaluated.run(draw.arrays, names) for number, draw in draws.items()}, ""
    except NoFloat64Error as error:
        return {}, str(error)


def _samples(draw: Draw, dealt: frozenset[str]) -> int:
    lengths = {len(draw.arrays[name]) for name in dealt}
    if len(lengths) > 1:
        raise UsageError(f"the inputs hold different numbers of samples: {draw.sizes}")
    return lengths.pop()


def _one_replica(batches: Mapping[int, WholeBatch], outcome: Outcome) -> PartCheck:
    judged: list[tuple[str, int, Judgement]] = []
    for number, batch in batches.items():
        found = outcome.outputs(NEW, number) or {}
        for name, old in batch.found.items():
            moved = [other[name] for other in batch.moved if name in other]
            judged.append((name, number, judge(old, found[name], batch.reference.get(name), moved)))
    return PartCheck.worst("one replica on all samples, kernels against bodies", judged)


def _shares(
    job: _Job, batches: Mapping[int, WholeBatch]
) -> tuple[dict[int, tuple[tuple[int, ...], ...]], tuple[str, ...]]:
    """Return the ways in which the batch of each draw is dealt out; without an empty share if the model cannot."""
    wanted = {number: _ways(batch.samples, job.count) for number, batch in batches.items()}
    batch = next(iter(batches.values()))
    nothing = Draw("empty", next(iter(batch.parts((0, batch.samples)))))
    folder = job.folder / "nothing"
    folder.mkdir()
    path = [(ORIGINAL, job.folder / f"{NEW}.onnx")]
    alone = job.runs.run(path, job.inputs, write_draws([[nothing]], folder), folder / "run", [ORIGINAL])
    if alone.candidates and not alone.crash:
        return wanted, ()
    why = alone.crash or alone.failures.get((ORIGINAL, 0), "")
    left = {number: tuple(share for share in ways if 0 not in share) for number, ways in wanted.items()}
    if not all(left.values()):
        few = f"{min(batch.samples for batch in batches.values())} samples are too few for {job.count} replicas"
        raise UsageError(f"{few} of a model that needs one ({why})")
    return left, (f"a replica without samples cannot run this model: {shortened(why)}",)


def _ways(samples: int, count: int) -> tuple[tuple[int, ...], ...]:
    """Return equal shares, unequal ones, and some of which the last is empty."""
    equal = tuple(len(part) for part in np.array_split(np.arange(samples), count))
    uneven = (samples - count + 1, *(1,) * (count - 1))
    empty = (samples - count + 2, *(1,) * (count - 2), 0)
    return tuple(dict.fromkeys(share for share in (equal, uneven, empty) if min(share) >= 0))


def _merged(checks: Sequence[PartCheck]) -> list[PartCheck]:
    """Return one check of each name: the worst of its draws."""
    worst: dict[str, PartCheck] = {}
    for check in checks:
        known = worst.get(check.name)
        if known is None or (not check.ok, check.largest) > (not known.ok, known.largest):
            worst[check.name] = check
    return list(worst.values())
