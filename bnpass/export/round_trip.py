"""The exported model against the live one, on the same inputs: calls in inference, steps in training."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnpass.export.capture.calls import NormCall
from bnpass.export.capture.interception import norm_layers
from bnpass.export.capture.state import plain
from bnpass.export.model import Exported
from bnpass.export.options import ExportOptions
from bnpass.export.signature import signature_of
from bnpass.export.trace import named_variables
from bnpass.verification.framework import Call, moved_by_one_ulp, verify_against
from bnpass.verification.inputs import make_draws
from bnpass.verification.result import Verification

Array = NDArray[Any]

_STEPS = 5
"""Fewer steps in training would not show statistics that drift."""

_BATCH = 4
"""Samples of a call, where ghost batches do not want more."""

_AGAIN = 3
"""Calls on inputs moved by one unit in the last place, which show how much the framework itself rounds."""


def check_round_trip(model: Any, exported: Exported, options: ExportOptions) -> Verification:  # noqa: ANN401
    """Compare an exported model with the live one that it comes from; the live one ends as it began.

    In training every step starts from the statistics that the framework has then, so that each is judged alone.

    Raises:
        UsageError: No inputs can be drawn.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    count = max(options.check, _STEPS) if options.training else options.check
    ghosts = [c.layer.virtual_batch_size for c in _norms(exported)]
    batch = math.lcm(_BATCH, *(size for size in ghosts if size))
    candidates = make_draws(exported.model, draws=count, seed=options.seed, shapes={}, data={}, batch=batch)
    with _restored(model), _two_passes(model):
        calls = [_call(model, exported, offered[0].arrays, options) for offered in candidates]
    return verify_against(exported.model, calls, seed=options.seed)


def _norms(exported: Exported) -> Sequence[NormCall]:
    return [record for record in exported.traced.calls.records if isinstance(record, NormCall)]


def _call(model: Any, exported: Exported, arrays: Mapping[str, Array], options: ExportOptions) -> Call:  # noqa: ANN401
    """Call the live model, a few times with the same state, and return what went in and what came out."""
    rng, state, moved = np.random.default_rng(options.seed), _state(model, exported), []
    for _ in range(_AGAIN):
        with _restored(model):
            again = {name: moved_by_one_ulp(array, rng) for name, array in arrays.items()}
            moved.append(_results(model, exported, again, options))
    return Call({**arrays, **state}, _results(model, exported, arrays, options), moved)


def _results(
    model: Any,  # noqa: ANN401
    exported: Exported,
    arrays: Mapping[str, Array],
    options: ExportOptions,
) -> dict[str, Array]:
    """Call the live model and return what comes out, by the names of the exported one."""
    import tensorflow as tf

    called = signature_of(model, options.signature)
    tensors = [tf.constant(arrays[port.name]) for port in exported.traced.inputs]
    outputs = tf.nest.flatten(model(called.pack(tensors), training=options.training))
    if len(exported.traced.outputs) > len(outputs):
        outputs.append(tf.add_n([tf.cast(part, tf.float32) for part in model.losses]))
    names = [str(value.name) for value in exported.model.graph.outputs]
    results = {name: np.asarray(value) for name, value in zip(names, outputs, strict=False)}
    new = _state(model, exported)
    return results | {s.output: new[s.input] for s in exported.state if s.output}


@contextmanager
def _two_passes(model: Any) -> Iterator[None]:  # noqa: ANN401
    """Let synchronized layers compute as others do: the same in one replica, but for E[x²] − E[x]², which rounds."""
    layers = [layer for layer in norm_layers(model) if getattr(layer, "synchronized", False)]
    try:
        for layer in layers:
            layer.synchronized = False
        yield
    finally:
        for layer in layers:
            layer.synchronized = True


@contextmanager
def _restored(model: Any) -> Iterator[None]:  # noqa: ANN401
    """Give the variables of a model back the values that they had."""
    variables = {id(plain(v)): v for v in model.variables}.values()
    before = [np.array(plain(v).numpy()) for v in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)


def _state(model: Any, exported: Exported) -> dict[str, Array]:  # noqa: ANN401
    """Return the variables of a model by the inputs that they are in the exported one."""
    variables = named_variables(model) if exported.state else {}
    return {s.input: s.for_onnx(np.array(plain(variables[s.state.name]).numpy())) for s in exported.state}
