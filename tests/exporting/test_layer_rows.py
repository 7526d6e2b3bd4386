"""Every argument of every batch-normalization class: the exported model computes what the live layer computes.

The tolerances are those of the conformance suite: how far a correct evaluation in the arithmetic of TensorFlow may be
off, plus how far one of ours may be, from a running error analysis of that case (``layers/bounds.py``).
"""

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
import onnx
import pytest

from bnpass.ops import DOMAIN
from bnpass.semantics.resolved import Resolved
from tests.conformance.layers import meaning
from tests.conformance.layers.arrays import draw
from tests.conformance.layers.bounds import Bounds
from tests.conformance.layers.cases import DTYPES, Case
from tests.conformance.layers.exchange import Arrays, part
from tests.conformance.layers.judge import SAFETY, compare, inputs_of
from tests.exporting.conftest import Outcome
from tests.exporting.layer_cases import cases
from tests.exporting.stepping import Stepper

pytestmark = pytest.mark.keras

Exported = Callable[[Case], Outcome]

every_case = pytest.mark.parametrize("case", cases(), ids=lambda case: case.id)
told_by_a_bool = pytest.mark.parametrize(
    "case", [case for case in cases() if case.training == "bool"], ids=lambda case: case.id
)
NORMALIZING = {"BatchNormalization", "SyncBatchNormalization"}


@told_by_a_bool
def test_inference_equals_the_layer(case: Case, exported_layer: Exported) -> None:
    outcome = exported_layer(case)
    arrays, model = draw(case), stepper(case, outcome, "inference")
    (Y,) = model(*feeds(case, arrays, 0))
    holds(case, arrays, {"0/y": Y}, part(outcome.arrays, "inference"), Judged(case, arrays), 0, training=False)


@every_case
def test_steps_of_training_equal_those_of_the_layer(case: Case, exported_layer: Exported) -> None:
    outcome = exported_layer(case)
    arrays, model, bounds = draw(case), stepper(case, outcome, "training"), None
    bounds = Judged(case, arrays)
    names = {variable: name for name, variable in outcome.facts["names"].items()}
    for step, training in enumerate(case.steps):
        Y, *loss = model(*feeds(case, arrays, step))
        found = {"0/y": Y} | {f"0/{names[variable]}": value for variable, value in model.updated.items()}
        found |= {"loss": loss[0]} if loss else {}
        holds(case, arrays, found, part(outcome.arrays, str(step)), bounds, step, training=training)


@every_case
def test_only_what_the_layer_updates_is_an_output(case: Case, exported_layer: Exported) -> None:
    outcome = exported_layer(case)
    model, layer = stepper(case, outcome, "training"), meaning.layer(case)
    names = {variable: name for name, variable in outcome.facts["names"].items()}
    moved = {"moving_mean", "moving_variance"} if layer.updates_statistics(True) else set()
    if layer.renorm is not None and layer.updates_statistics(True):
        moved |= {"moving_stddev"}
    if layer.renorm is not None and layer.updates_renorm(True):
        moved |= {"renorm_mean", "renorm_stddev"}
    assert {names[pair["variable"]] for pair in model.pairs if pair["output"]} == moved


@every_case
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_one_node_per_call(case: Case, mode: str, exported_layer: Exported) -> None:
    outcome = exported_layer(case)
    assert "error" not in outcome.facts, outcome.facts["error"]
    model = onnx.load(outcome.folder / f"{case.id}.{mode}.onnx")
    top, inner = normalizing(model.graph), Counter[str]()
    for node in model.graph.node:
        for attribute in node.attribute:
            inner += normalizing(attribute.g)
    layer = meaning.layer(case)
    if case.training == "tensor" and layer.uses_batch_statistics(True):
        assert (top.total(), inner.total()) == (0, 2), "one for each mode, under an If"
    else:
        assert (top.total(), inner.total()) == (1, 0)
    domains = {node.domain for node in model.graph.node}
    assert domains <= {"", DOMAIN}


class Judged:
    """How far each side of a comparison may be off."""

    def __init__(self, case: Case, arrays: Arrays) -> None:
        start = meaning.started(case, arrays)
        self._sides = [Bounds(case, start, is_product=is_product) for is_product in (False, True)]

    def step(self, case: Case, arrays: Arrays, step: int, *, training: bool) -> Arrays:
        """Return what is allowed of every quantity of a step."""
        loss = SAFETY * sum(side.loss().error for side in self._sides)
        a, b = (side.step(*inputs_of(case, arrays, step), training) for side in self._sides)
        return {key: SAFETY * (a[key].error + b[key].error) for key in a} | {"loss": loss}


def holds(
    case: Case, arrays: Arrays, found: Arrays, wanted: Arrays, bounds: Judged, step: int, *, training: bool
) -> None:
    """Assert that every array that was found is the one that was wanted, and that what was not found did not move."""
    with np.errstate(all="ignore"):
        allowed = bounds.step(case, arrays, step, training=training)
        start = meaning.started(case, arrays)
        for key, value in wanted.items():
            unmoved = 0.0 if key == "loss" else start.get(key.removeprefix("0/"), np.zeros(0))
            mine = np.asarray(found.get(key, unmoved), np.float64)
            finding = compare(key, mine if key in ("0/y", "loss") else mine.ravel(), value, allowed[key])
            assert finding.ratio <= 1, finding
    assert set(found) <= set(wanted)


def stepper(case: Case, outcome: Outcome, mode: str) -> Stepper:
    """Return the exported model of a case."""
    assert "error" not in outcome.facts, outcome.facts["error"]
    return Stepper(outcome.folder / f"{case.id}.{mode}.onnx")


def feeds(case: Case, arrays: Arrays, step: int) -> list[object]:
    """Return the inputs of a step: X, a mask, the mode."""
    layer: Resolved = meaning.layer(case)
    given: list[object] = [arrays[f"x/{step}/0"].astype(DTYPES[case.dtype])]
    if case.mask:
        kind = layer.parameter_dtype if case.mask == "fractional" else bool
        given.append(arrays[f"mask/{step}/0"].astype(kind))
    return [*given, *([np.asarray(case.steps[step])] if case.training == "tensor" else [])]


def normalizing(graph: onnx.GraphProto) -> Counter[str]:
    """Count the nodes of a graph that normalize, without its subgraphs."""
    nodes: Iterable[onnx.NodeProto] = graph.node
    return Counter(node.op_type for node in nodes if node.op_type in NORMALIZING)
