"""One export of a live model from end to end: converted, compared with the framework, and told about."""

import importlib.util
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from bnpass.errors import UsageError, VerificationError
from bnpass.exporting.constraints import constraints_model
from bnpass.exporting.model import Exported, export_model, finish
from bnpass.exporting.options import ExportOptions
from bnpass.exporting.packages import version_of
from bnpass.exporting.partners import GraphPartner, KerasPartner, Partner
from bnpass.exporting.round_trip import check_round_trip
from bnpass.exporting.trace import Traced
from bnpass.verification.result import Status, Verification


@dataclass(frozen=True)
class Done:
    """What an export made.

    Attributes:
        model: The ONNX model.
        constraints: The model that projects its weights, in training, where it has constraints.
        framework: What the model came from, with the version.
        norms: By layer of batch normalization, how many nodes stand for it.
        state: Variables that go in, and those of them that come out.
        notes: What a reader should know besides.
        found: The comparison with the framework; None if there was none.
        why_not: Why there was none.
    """

    model: ir.Model
    constraints: ir.Model | None
    framework: str
    norms: dict[str, int]
    state: tuple[int, int]
    notes: tuple[str, ...]
    found: Verification | None
    why_not: str

    def to_json(self) -> dict[str, Any]:
        """Return all but the models as plain data."""
        return {
            "framework": self.framework,
            "norms": self.norms,
            "state": list(self.state),
            "notes": list(self.notes),
            "found": None if self.found is None else self.found.to_json(),
            "text": "" if self.found is None else self.found.summary(),
            "why_not": self.why_not,
        }


def carry_out(model: Any, options: ExportOptions) -> Done:  # noqa: ANN401  a model of Keras
    """Export a live model of Keras and compare the result with it.

    Raises:
        UsageError: The shapes of the inputs are not known.
        ExportError: A layer or an op cannot be exported.
        VerificationError: The result does not compute what the model computes.
    """
    exported = export_model(model, options)
    constraints = constraints_model(model, exported.state, options.opset) if options.training else None
    partner = KerasPartner(model, exported, options)
    return _done(exported, partner, options, version_of(model), constraints)


def carry_out_graph(traced: Traced, options: ExportOptions) -> Done:
    """Export a graph without layers and compare the result with it; as ``carry_out``."""
    import tensorflow as tf

    if traced.origin is None:
        raise TypeError("a model of Keras is exported by carry_out")
    exported = finish(traced, options)
    done = _done(exported, GraphPartner(traced.origin, exported), options, f"TensorFlow {tf.__version__}", None)
    return replace(done, notes=(*traced.origin.notes, *done.notes))


def _done(
    exported: Exported, partner: Partner, options: ExportOptions, framework: str, constraints: ir.Model | None
) -> Done:
    found, why_not = _compared(partner, exported, options)
    state = (len(exported.state), sum(one.output is not None for one in exported.state))
    norms = dict(exported.assembled.layers)
    return Done(exported.model, constraints, framework, norms, state, _notes(exported, found), found, why_not)


def _compared(partner: Partner, exported: Exported, options: ExportOptions) -> tuple[Verification | None, str]:
    if not options.check:
        return None, "switched off (--check 0)"
    if importlib.util.find_spec("onnxruntime") is None:
        return None, 'ONNX Runtime is not installed: pip install "bnpass[cpu]"'
    try:
        found = check_round_trip(partner, exported, options)
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
    notes = [
        f"no output depends on batch normalization '{name}': it is not in the file"
        for name in exported.assembled.unused
    ]
    notes += [f"not compared: '{one.name}': {one.reason}" for one in (found.not_compared if found else ())]
    return tuple(notes)
