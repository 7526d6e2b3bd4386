"""Export a model of Keras or TensorFlow from end to end."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from bnpass import census, model_io
from bnpass.api.fold import fold as fold_model
from bnpass.api.transform import Progress
from bnpass.errors import SaveError, UsageError
from bnpass.exporting.child import CONSTRAINTS
from bnpass.exporting.options import ExportOptions
from bnpass.exporting.parent import export_in_child
from bnpass.exporting.source import Source, identify
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
    with tempfile.TemporaryDirectory(prefix="bnpass-export-") as folder:
        if given is None:
            exported, constraints, answer = _live(model, wanted, sync=sync)
        else:
            source = identify(given, trust=trust_model)
            file, answer = export_in_child(source, wanted, Path(folder), trust=trust_model, sync=sync)
            exported, answer = model_io.load(file), {**answer, "notes": [*_lost(source, sync), *answer["notes"]]}
            constraints = model_io.load(beside) if (beside := file.with_name(CONSTRAINTS)).exists() else None
        checks = [_check(answer)]
        if fold:
            told("fold", 0.0)
            folded = fold_model(exported, FoldOptions(check=wanted.check, seed=wanted.seed))
            exported, checks = _as_ir(folded.model), [*checks, *folded.report.checks]

        def report(written: FileFact | None) -> ExportReport:
            done = ExportReport(
                name=str(given) if given is not None else str(getattr(model, "name", "model")),
                framework=answer["framework"],
                source=FileFact(str(given), given.stat().st_size, None) if given and given.is_file() else None,
                target=written,
                norms=answer["norms"],
                state=tuple(answer["state"]),
                after=census.take(ir.Model(exported.graph, ir_version=exported.ir_version)),
                notes=tuple(answer["notes"]),
                checks=tuple(checks),
                options=wanted,
            )
            if on_checked is not None:
                on_checked(done)
            return done

        if target is None:
            return ExportResult(exported, constraints, report(None))
        told("save", 0.0)
        # the state of a training export lies beside it, where a training loop can find and replace it
        policy: model_io.Policy = "always" if wanted.training else "auto"
        with contextlib.ExitStack() as stack:
            staged = stack.enter_context(model_io.stage(exported, target, force=force, external_data=policy))
            second = None
            if constraints is not None:
                second = stack.enter_context(model_io.stage(constraints, _beside(target), force=force))
            done = report(FileFact(str(target), staged.bytes, None))
            if second is not None:
                second.commit()
            staged.commit()
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


def _live(
    model: Any,  # noqa: ANN401
    options: ExportOptions,
    *,
    sync: bool,
) -> tuple[ir.Model, ir.Model | None, Mapping[str, Any]]:
    """Export a live model, in this process."""
    if sync:
        raise UsageError("sync is for files that do not say it; make the layers of a live model synchronized")
    bases = {base.__module__.split(".")[0] for base in type(model).__mro__}
    from bnpass.exporting.work import carry_out, carry_out_graph  # imports what the check needs

    if bases & {"keras", "tf_keras"}:
        done = carry_out(model, options)
    elif "tensorflow" in bases and hasattr(model, "graph") and hasattr(model, "run"):
        from bnpass.exporting.graphs import trace_graph

        traced = trace_graph(model.graph, model, options.inputs, options.outputs, training=options.training)
        done = carry_out_graph(traced, options)
    else:
        raise UsageError(f"a {type(model).__name__} is no model of Keras, no session of TensorFlow and no path")
    return done.model, done.constraints, done.to_json()


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


def _as_ir(model: object) -> ir.Model:
    if not isinstance(model, ir.Model):
        raise TypeError("what goes in as onnx_ir comes out as onnx_ir")
    return model
