"""A live model against its export: inference, and steps of training in which each keeps its own state."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bnpass.exporting.model import Exported, export_model
from bnpass.exporting.options import ExportOptions
from bnpass.exporting.trace import named_variables
from tests.exporting.stepping import Array, Stepper

STEPS = 3

TOLERANCES = {"float32": 2e-5, "float64": 2e-6, "float16": 4e-3, "statistics of float16": 4e-5}
"""Allowed difference, relative to the largest element and to 1.

float32: sums of n ≤ 64 terms are off by about √n·2⁻²⁴ on either side, and the division by a deviation of at least 0.1
makes ten times as much of it: 5e-6 for a layer, of which a model here has up to four. float64: epsilon and momentum
are float attributes in ONNX, which moves an update by up to 9.5e-7 (deviation float_attributes), on two layers.
float16: half a last place, 2⁻¹¹, for each tensor between layers, up to eight of them; a step moves a running statistic
by 1 − momentum = 0.01 of what the batch differs.
"""


def close(found: Any, wanted: Any, what: str = "", *, computed_in: str = "") -> None:
    """Assert that an array of ours is the framework's; it may have been computed from tensors of a coarser type."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype), what
    if not np.issubdtype(wanted.dtype, np.floating):
        np.testing.assert_array_equal(found, wanted, err_msg=what)
        return
    allowed = TOLERANCES[computed_in or wanted.dtype.name] * max(1.0, float(np.abs(wanted).max(initial=0.0)))
    difference = float(np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max(initial=0.0))
    assert difference <= allowed, f"{what}: off by {difference:.2g}, allowed {allowed:.2g}"


def flat(value: Any) -> list[Array]:
    """Return the tensors of a structure in the order in which TensorFlow flattens it."""
    import tensorflow as tf

    return [np.asarray(tensor) for tensor in tf.nest.flatten(value)]


def variable_values(model: Any) -> dict[str, Array]:
    """Return what the variables of a model hold, by the names that an export has for them."""
    return {name: np.asarray(variable.numpy()) for name, variable in named_variables(model).items()}


def export(model: Any, *, training: bool, **options: Any) -> tuple[Exported, Stepper]:
    """Export a model, and load what came of it."""
    exported = export_model(model, ExportOptions(training=training, **options))
    return exported, Stepper(exported.model)


def draw_like(tensors: Any, seed: int) -> Any:
    """Return numbers of the shapes and types of some inputs; integers and booleans stay as they are."""
    import tensorflow as tf

    rng = np.random.default_rng(seed)

    def draw(given: Any) -> Any:
        array = np.asarray(given)
        if not np.issubdtype(array.dtype, np.floating):
            return array
        return (rng.normal(size=array.shape) * rng.uniform(0.5, 2) + rng.normal()).astype(array.dtype)

    return tf.nest.map_structure(draw, tensors)


def make_lively(model: Any, seed: int = 0) -> None:
    """Give every variable numbers that are neither 0 nor 1; variances are positive."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        shape, name = tuple(variable.shape), str(variable.name)
        if not np.issubdtype(np.asarray(variable.numpy()).dtype, np.floating):
            continue
        positive = any(word in name for word in ("variance", "stddev"))
        variable.assign(rng.uniform(0.3, 2, shape) if positive else rng.normal(0, 0.5, shape))


def infers_alike(model: Any, given: Any, **options: Any) -> tuple[Exported, Stepper]:
    """Assert that the export computes what the model computes in inference."""
    exported, run = export(model, training=False, **options)
    assert run.pairs == []
    for step in range(2):
        x = draw_like(given, step)
        outputs_agree(run(*flat(x)), flat(model(x, training=False)))
    return exported, run


def trains_alike(model: Any, given: Any, **options: Any) -> tuple[Exported, Stepper]:
    """Assert that three steps in training give the same outputs and leave the same statistics."""
    exported, run = export(model, training=True, **options)
    before = variable_values(model)
    for step in range(STEPS):
        x = draw_like(given, step)
        found, wanted = run(*flat(x)), flat(model(x, training=True))
        outputs_agree(found, wanted)
        half = any(value.dtype == np.float16 for value in wanted)  # statistics of what was rounded to 16 bits
        state_agrees(run, before, variable_values(model), computed_in="statistics of float16" if half else "")
    return exported, run


def agrees(model: Any, given: Any, **options: Any) -> tuple[Exported, Exported]:
    """Assert both; return what was exported for inference and for training."""
    make_lively(model)
    inference, _ = infers_alike(model, given, **options)
    training, _ = trains_alike(model, given, **options)
    return inference, training


def outputs_agree(found: Sequence[Array], wanted: Sequence[Array]) -> None:
    """Assert that all outputs are the framework's."""
    assert len(found) == len(wanted)
    for number, pair in enumerate(zip(found, wanted, strict=True)):
        close(*pair, f"output {number}")


def state_agrees(
    run: Stepper, before: Mapping[str, Array], after: Mapping[str, Array], *, computed_in: str = ""
) -> None:
    """Assert that what the framework has changed is an output, with its value, and that nothing else is."""
    updated = run.updated
    changed = {name for name in after if not np.array_equal(before[name], after[name])}
    assert set(updated) >= changed
    for name, value in updated.items():
        close(value, after[name], name, computed_in=computed_in)
