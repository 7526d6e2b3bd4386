"""Export a model of Keras or TensorFlow from end to end."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from bnpass import census, model_io
from bnpass.api.fold import fold as fold_model
from bnpass.api.transform import Progress
from bnpass.errors import SaveError, UsageError
from bnpass.exporting.child import CONSTRAINTS
from bnpass.exporting.options import ExportOptions
from bnpass.exporting.packages import package_of
from bnpass.exporting.parent import export_in_child
from bnpass.exporting.source import CONTENT, Source, identify
from bnpass.folding.options import FoldOptions
from bnpass.report import Check, ExportReport, FileFact


@dataclass(frozen=True)
class ExportResult:
    """The outcome of ``export``.

    Attributes:
        model: The exported model; where a path was given for it, that path.
        constraints: The model that projects the weights of a training export, where it has constraints: likewise.
        report: What happened, for printing or storing.
    """

    model: ir.Model | Path
    constraints: ir.Model | Path | None
    report: ExportReport


def export(
    model: Any,  # noqa: ANN401  a path, or a model of Keras, whose types are not known here
    path: str | os.PathLike[str] | None = None,
    options: ExportOptions | None = None,
    *,
    fold: bool = False,
    sync: bool = False,
    trust_model: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    on_checked: Callable[[ExportReport], None] | None = None,
    **chosen: Any,  # noqa: ANN401  the fields of ExportOptions
) -> ExportResult:
    """Export a model of Keras 3, tf_keras or TensorFlow to ONNX with its batch normalization intact.

    Each call of a batch-normalization layer becomes one node. The result is compared with the framework on the same
    inputs; nothing is written and nothing returned unless both agree.

    Args:
        model: A live model of Keras, a session of TensorFlow 1 with its graph, or the path of a ``.keras``, ``.h5`` or
            ``.pb`` file or of a SavedModel.
        path: Where to write the result; by default nowhere for a live model, and beside a file.
        options: How to export; or give its fields by name: ``training=True``.
        fold: Fold the batch normalization of the exported model, which must not be a training export.
        sync: Make all batch normalization of a file synchronized, which files of tf_keras do not say.
        trust_model: Load files that can hold code: HDF5, Lambda layers.
        force: Overwrite ``path``.
        progress: Called with the stage and the fraction done.
        on_checked: Called with the finished report before the result takes its place: if it raises, nothing changes.
        **chosen: The fields of ``ExportOptions`` by name.

    Returns:
        The exported model and what happened.

    Raises:
        UsageError: The call does not fit the model, or a package is missing.
        ModelError: The file is no model, is not to be trusted, or holds what cannot be exported.
        FileAccessError: It cannot be read.
        SaveError: The result cannot be written.
        VerificationError: The result does not compute what the model computes.
    """
    if options is not None and chosen:
        raise UsageError(f"give options, or {', '.join(sorted(chosen))} by name, not both")
    wanted = options or ExportOptions(**chosen)
    if fold and wanted.training:
        raise UsageError("batch normalization in training mode cannot be folded: choose fold or training")
    told = progress or (lambda *_: None)
    given = Path(model) if isinstance(model, str | os.PathLike) else None
    target = _target(given, path, training=wanted.training, force=force)
    told("export", 0.0)
    with tempfile.TemporaryDirectory(prefix="bnpass-export-") as folder:  # holds the weights until they are written
        if given is None:
            made = _of_live(model, wanted, sync=sync)
        else:
            made = _of_file(given, wanted, Path(folder), trust=trust_model, sync=sync)
        if fold:
            told("fold", 0.0)
            made = _folded(made, wanted)
        name = str(given) if given is not None else str(getattr(model, "name", "model"))
        report = _report(name, given, made, target, wanted)
        if target is not None:
            told("save", 0.0)
            return _write(made, report, target, force=force, on_checked=on_checked)
        if on_checked is not None:
            on_checked(report)
        return ExportResult(made.model, made.constraints, report)


@dataclass(frozen=True)
class _Made:
    """What was made of a model: the answer of an export, and the checks."""

    model: ir.Model
    constraints: ir.Model | None
    answer: Mapping[str, Any]
    checks: tuple[Check, ...]


def _of_live(model: Any, options: ExportOptions, *, sync: bool) -> _Made:  # noqa: ANN401
    """Export a live model, in this process."""
    if sync:
        raise UsageError("sync is for files that do not say it; make the layers of a live model synchronized")
    from bnpass.exporting.work import carry_out, carry_out_graph  # imports what the check needs

    if package_of(model) is not None:
        options.check_fits("layers")
        done = carry_out(model, options)
    elif _is_session(model):
        from bnpass.exporting.graphs import trace_graph

        options.check_fits("graph")
        traced = trace_graph(model.graph, model, options.inputs, options.outputs, training=options.training)
        done = carry_out_graph(traced, options)
    else:
        raise UsageError(f"a {type(model).__name__} is no model of Keras, no session of TensorFlow and no path")
    answer = done.to_json()
    return _Made(done.model, done.constraints, answer, (_check(answer),))


def _is_session(model: object) -> bool:
    inside = any(base.__module__.startswith("tensorflow.") for base in type(model).__mro__)
    return inside and hasattr(model, "graph") and hasattr(model, "run")


def _of_file(path: Path, options: ExportOptions, folder: Path, *, trust: bool, sync: bool) -> _Made:
    """Export a file, in a process of its own."""
    source = identify(path, trust=trust)
    options.check_fits(CONTENT[source.kind])
    if sync and CONTENT[source.kind] != "layers":
        raise UsageError(f"{path}: has no layers that could be made synchronized (sync, --sync)")
    file, answer = export_in_child(source, options, folder, trust=trust, sync=sync)
    beside = file.with_name(CONSTRAINTS)
    constraints = model_io.load(beside) if beside.exists() else None
    answer = {**answer, "notes": [*_lost(source, sync), *answer["notes"]]}
    return _Made(model_io.load(file), constraints, answer, (_check(answer),))


def _folded(made: _Made, options: ExportOptions) -> _Made:
    folded = fold_model(made.model, FoldOptions(check=options.check, seed=options.seed))
    if not isinstance(folded.model, ir.Model):
        raise TypeError("what goes in as onnx_ir comes out as onnx_ir")
    return replace(made, model=folded.model, checks=(*made.checks, *folded.report.checks))


def _report(name: str, source: Path | None, made: _Made, target: Path | None, options: ExportOptions) -> ExportReport:
    """Return the report of an export, but for what will be written."""
    notes = list(made.answer["notes"])
    if target is not None and options.training and made.constraints is None and _beside(target).exists():
        notes.append(f"{_beside(target)} is of another export: this model has no constraints")
    return ExportReport(
        name=name,
        framework=made.answer["framework"],
        source=FileFact(str(source), source.stat().st_size, None) if source and source.is_file() else None,
        target=None,
        norms=made.answer["norms"],
        state=tuple(made.answer["state"]),
        after=census.take(ir.Model(made.model.graph, ir_version=made.model.ir_version)),
        notes=tuple(notes),
        checks=made.checks,
        options=options,
    )


def _write(
    made: _Made, report: ExportReport, target: Path, *, force: bool, on_checked: Callable[[ExportReport], None] | None
) -> ExportResult:
    """Write a model, and the model of its constraints beside it, once the caller has agreed to the report."""
    # the state of a training export lies beside it, where a training loop can find and replace it
    policy: model_io.Policy = "always" if made.answer["state"][0] else "auto"
    with contextlib.ExitStack() as stack:
        staged = stack.enter_context(model_io.stage(made.model, target, force=force, external_data=policy))
        second = None
        if made.constraints is not None:
            second = stack.enter_context(model_io.stage(made.constraints, _beside(target), force=force))
        done = replace(report, target=FileFact(str(target), staged.bytes, None))
        if on_checked is not None:
            on_checked(done)
        staged.commit()
        if second is not None:
            second.commit()
    return ExportResult(target, None if second is None else _beside(target), done)


def _beside(target: Path) -> Path:
    """Return where the model of the constraints goes."""
    return target.with_name(f"{target.stem}.constraints.onnx")


def _target(source: Path | None, path: str | os.PathLike[str] | None, *, training: bool, force: bool) -> Path | None:
    """Return where the result is to be written; None for a live model without a path."""
    if path is None and source is None:
        return None
    suffix = ".training.onnx" if training else ".onnx"
    target = Path(path) if path is not None else source.with_name(f"{source.stem}{suffix}")  # type: ignore[union-attr]
    if target.exists() and not force:
        raise SaveError(f"{target}: exists already; give --force (force=True) to overwrite it")
    if not target.parent.is_dir():
        raise SaveError(f"{target}: the folder {target.parent} does not exist; make it first")
    return target


def _lost(source: Source, sync: bool) -> list[str]:
    """Name what a file does not say."""
    if source.kind != "tf_keras" or not source.norms:
        return []
    lost = ["fused", "adjustment"] if sync else ["synchronized (restore it with --sync)", "fused", "adjustment"]
    return [f"files of tf_keras do not keep {', '.join(lost)} of batch normalization: taken as their defaults"]


def _check(answer: Mapping[str, Any]) -> Check:
    if answer["found"] is None:
        return Check("round trip", ran=False, text=answer["why_not"])
    return Check("round trip", ran=True, text=answer["text"], details=answer["found"])
