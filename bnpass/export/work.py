"""One export of a live model from end to end: converted, compared with the framework, and told about."""

import importlib.util
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from bnpass.errors import UsageError, VerificationError
from bnpass.export.model import Exported, export_model
from bnpass.export.options import ExportOptions
from bnpass.export.round_trip import check_round_trip
from bnpass.verification.result import Status, Verification


@dataclass(frozen=True)
class Done:
    """What an export made.

    Attributes:
        model: The ONNX model.
        framework: What the model came from, with the version.
        norms: By layer of batch normalization, how many nodes stand for it.
        state: Variables that go in, and those of them that come out.
        notes: What a reader should know besides.
        found: The comparison with the framework; None if there was none.
        why_not: Why there was none.
    """

    model: ir.Model
    framework: str
    norms: dict[str, int]
    state: tuple[int, int]
    notes: tuple[str, ...]
    found: Verification | None
    why_not: str


def carry_out(model: Any, options: ExportOptions) -> Done:  # noqa: ANN401  a model of Keras
    """Export a live model and compare the result with it.

    Raises:
        UsageError: The shapes of the inputs are not known.
        ExportError: A layer or an op cannot be exported.
        VerificationError: The result does not compute what the model computes.
    """
    exported = export_model(model, options)
    found, why_not = _compared(model, exported, options)
    state = (len(exported.state), sum(one.output is not None for one in exported.state))
    norms = dict(exported.assembled.layers)
    return Done(exported.model, framework_of(model), norms, state, _notes(exported, found), found, why_not)


def framework_of(model: Any) -> str:  # noqa: ANN401
    """Return the framework of a live model with its version."""
    import sys

    package = "tf_keras" if any(b.__module__.startswith("tf_keras.") for b in type(model).__mro__) else "keras"
    return f"{'tf_keras' if package == 'tf_keras' else 'Keras'} {sys.modules[package].__version__}"


def _compared(model: Any, exported: Exported, options: ExportOptions) -> tuple[Verification | None, str]:  # noqa: ANN401
    if not options.check:
        return None, "switched off (--check 0)"
    if importlib.util.find_spec("onnxruntime") is None:
        return None, 'ONNX Runtime is not installed: pip install "bnpass[cpu]"'
    try:
        found = check_round_trip(model, exported, options)
    except UsageError as error:  # no inputs could be drawn
        return None, str(error)
    if found.status is Status.NOT_RUN:
        return None, found.failure
    try:
        found.raise_for_mismatch()
    except VerificationError as error:
        error.add_note("the export does not compute what the model does; nothing was written, please report this")
        raise
    return found, ""


def _notes(exported: Exported, found: Verification | None) -> tuple[str, ...]:
    notes = [f"no output depends on batch normalization '{name}': it is not in the file" for name in exported.assembled.unused]
    notes += [f"not compared: '{one.name}': {one.reason}" for one in (found.not_compared if found else ())]
    return tuple(notes)
