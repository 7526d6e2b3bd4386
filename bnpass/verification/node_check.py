"""The ``bnpass`` nodes of a model, each alone: kernel against definition, and body against definition.

A run of the model with its bodies records what the nodes read. On these numbers each node is run by its kernel, by its
body, and in float64 by its definition: a result may be off by a few dozen roundings of the doubles that statistics are
made of, and one unit in the last place of its own type (:func:`.bound.judge_against`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from bnpass.ops.schemas import register
from bnpass.verification.bound import EPSILON, SHIFT, Judgement, judge_against
from bnpass.verification.float64 import Float64Model, NoFloat64Error
from bnpass.verification.inputs import Draw
from bnpass.verification.node_model import BFLOAT16, LonelyNode, lonely_model, lonely_nodes, recorded_values
from bnpass.verification.prepared import NEW, PreparedModels, write_draws, write_model
from bnpass.verification.result import PartCheck
from bnpass.verification.retype import uses_type
from bnpass.verification.runner import ORIGINAL, Outcome, run_models
from bnpass.verification.windows import Array

__all__ = ["NodeChecks", "Runs", "check_nodes"]

_COPIES = 2
_DOUBLE = np.dtype(np.float64)

_TYPED_LIKE = {
    **dict.fromkeys(("Y", "dX"), "X"),
    **dict.fromkeys(("dscale", "dB"), "scale"),
    "running_mean": "input_mean",
    "running_var": "input_var",
}
"""Outputs that have the type of an input; all others are double."""


@dataclass(frozen=True)
class Runs:
    """How models are run.

    Attributes:
        provider: ``"cpu"`` or ``"cuda"``.
        timeout_s: After so many seconds ONNX Runtime is stopped.
        library: The kernel library.
    """

    provider: str
    timeout_s: float
    library: str

    def run(
        self,
        models: Sequence[tuple[str, Path]],
        inputs: Sequence[str],
        draws: Sequence[Sequence[Path]],
        folder: Path,
        kernels: Sequence[str] = (),
    ) -> Outcome:
        """Run models on draws, those whose names are in ``kernels`` by the kernels; see ``run_models``."""
        folder.mkdir()
        return run_models(
            models,
            inputs,
            draws,
            folder=folder,
            provider=self.provider,
            timeout_s=self.timeout_s,
            library=self.library,
            with_kernels=kernels,
        )


@dataclass(frozen=True)
class NodeChecks:
    """What was found.

    Attributes:
        checks: Two for each node: of its kernel and of its body.
        failure: Why the nodes could not be run by the kernels; empty if they could.
        notes: What was left out, and why.
    """

    checks: tuple[PartCheck, ...] = ()
    failure: str = ""
    notes: tuple[str, ...] = ()


def check_nodes(model: ir.Model, draws: Sequence[Sequence[Draw]], runs: Runs, seed: int, folder: Path) -> NodeChecks:
    """Run every node of ours in the main graph alone.

    Args:
        model: With bodies; it is not changed.
        draws: Per draw, inputs of the model to try in turn.
        runs: How they are run.
        seed: Of the directions in which inputs move.
        folder: Where files may be written.

    Returns:
        What was found.

    Raises:
        MissingDependencyError: ONNX Runtime cannot load the kernel library.
    """
    nodes = lonely_nodes(model)
    if not nodes:
        return NodeChecks(notes=("the bnpass nodes stand in subgraphs or functions: none of them was run alone",))
    recorded = _recorded(model, nodes, draws, runs, folder / "recorded")
    if not recorded:
        return NodeChecks(notes=("no bnpass node was run alone: what they read could not be recorded",))
    types = _types(nodes, next(iter(recorded.values())))
    alone = lonely_model(model, nodes, types)
    path, inputs = write_model(alone, folder / "nodes.onnx"), [str(value.name) for value in alone.graph.inputs]
    given = [[Draw("recorded", {name: feeds[name] for name in inputs})] for feeds in recorded.values()]
    outcome = runs.run([(ORIGINAL, path), (NEW, path)], inputs, write_draws(given, folder), folder / "alone", [NEW])
    if why := outcome.crash or "; ".join(dict.fromkeys(outcome.failures.values())):
        return NodeChecks(failure=f"The bnpass nodes cannot be run alone: {why}")
    try:
        judged = _judged(nodes, types, alone, recorded, outcome, seed)
    except NoFloat64Error as error:
        return NodeChecks(notes=(f"no bnpass node was held against its definition: {error}",))
    return NodeChecks(tuple(PartCheck.worst(name, found) for name, found in judged.items()))


def _recorded(
    model: ir.Model, nodes: Sequence[LonelyNode], draws: Sequence[Sequence[Draw]], runs: Runs, folder: Path
) -> dict[int, dict[str, Array]]:
    """Return what the nodes read in every draw that can be run, in the types in which they read it."""
    typed = _with_types(model)
    outputs = {str(value.name) for value in model.graph.outputs}
    wanted = recorded_values(nodes)
    prepared = PreparedModels((model, model), (model, model), [name for name in wanted if name not in outputs], 0)
    runnable = prepared.model(ORIGINAL)
    assert runnable is not None  # noqa: S101  only copies with moved weights may be None
    folder.mkdir()
    path = write_model(runnable, folder / "model.onnx")
    files = write_draws(draws, folder)
    outcome = runs.run([(ORIGINAL, path)], list(draws[0][0].arrays), files, folder / "run")
    found: dict[int, dict[str, Array]] = {}
    for number, which in outcome.candidates.items():
        values = {**draws[number][which].arrays, **(outcome.outputs(ORIGINAL, number) or {})}
        found[number] = {
            name: _narrow(_constant(value, values), typed.get(str(value.name)))
            for node in nodes
            for name, value in node.reads
        }
    return found


def _with_types(model: ir.Model) -> dict[str, ir.DataType]:
    """Return the types of values that are bfloat16, which no runtime hands out as it is."""
    if not uses_type(model, ir.DataType.BFLOAT16):
        return {}
    register()
    inferred = ShapeInferencePass()(model.clone()).model.graph
    values = [*inferred.inputs, *inferred.initializers.values(), *(v for node in inferred for v in node.outputs)]
    return {str(value.name): value.dtype for value in values if value.dtype is ir.DataType.BFLOAT16}


def _constant(value: ir.Value, values: Mapping[str, Array]) -> Array:
    return values[str(value.name)] if value.const_value is None else value.const_value.numpy()


def _narrow(array: Array, dtype: ir.DataType | None) -> Array:
    return array.astype(BFLOAT16) if dtype is ir.DataType.BFLOAT16 else array


def _types(nodes: Sequence[LonelyNode], recorded: Mapping[str, Array]) -> dict[str, np.dtype[np.generic]]:
    """Return the type of every input and output of the nodes."""
    types = {name: array.dtype for name, array in recorded.items()}
    for node in nodes:
        slots = {node.slot(name): types[name] for name, _ in node.reads}
        types |= {name: slots[_TYPED_LIKE[slot]] if slot in _TYPED_LIKE else _DOUBLE for name, slot in node.gives}
    return types


def _judged(
    nodes: Sequence[LonelyNode],
    types: Mapping[str, np.dtype[np.generic]],
    alone: ir.Model,
    recorded: Mapping[int, Mapping[str, Array]],
    outcome: Outcome,
    seed: int,
) -> dict[str, list[tuple[str, int, Judgement]]]:
    """Judge kernel and body of every node in every draw."""
    definition, names = Float64Model(alone, by_definition=True), [name for node in nodes for name, _ in node.gives]
    judged: dict[str, list[tuple[str, int, Judgement]]] = {}
    for position, (number, feeds) in enumerate(recorded.items()):
        truth = definition.run(feeds, names)
        shifted = [definition.run(_shifted(feeds, seed + copy), names) for copy in range(_COPIES)]
        for node in nodes:
            for by, model in (("kernel", NEW), ("body", ORIGINAL)):
                found = outcome.outputs(model, position) or {}
                results = judged.setdefault(f"{node.label}, {by}", [])
                for name, slot in node.gives:
                    result, moved = found[name].astype(types[name]), [copy[name] for copy in shifted]
                    results.append((slot, number, judge_against(truth[name], result, moved)))
    return judged


def _shifted(feeds: Mapping[str, Array], seed: int) -> dict[str, Array]:
    """Return the inputs in float64, each number moved by ``SHIFT``."""
    rng = np.random.default_rng(seed)
    return {
        name: array.astype(np.float64) * (1 + SHIFT * rng.choice((-1.0, 1.0), array.shape))
        if array.dtype in EPSILON
        else array
        for name, array in feeds.items()
    }
