"""Expand a model from end to end."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from bnpass import model_io
from bnpass.api.transform import Call, Progress, transform
from bnpass.census import Census
from bnpass.checks.replicas import in_replicas
from bnpass.checks.sites import each_alone
from bnpass.checks.whole_model import KERAS_ROUNDING, NO_ALL_REDUCE, whole_model
from bnpass.expansion.options import ExpandOptions
from bnpass.expansion.result import Collectives, Expanded
from bnpass.graph.kept import Kept
from bnpass.model_io import ModelLike
from bnpass.passes import ExpandSyncBatchNorm
from bnpass.report import Check, ExpandReport, FileFact, Report


@dataclass(frozen=True)
class ExpandResult:
    """The outcome of ``expand``.

    Attributes:
        model: The expanded model, of the type that was given; for a path, the path of the file written.
        modified: Whether anything changed.
        expanded: The batch normalizations that were written out.
        kept: Those that stayed, with the reason.
        collectives: How many collectives there are.
        report: All of it, for printing or storing.
    """

    model: ModelLike
    modified: bool
    expanded: tuple[Expanded, ...]
    kept: tuple[Kept, ...]
    collectives: Collectives
    report: Report


class _Expand:
    """The verb."""

    suffix = "expanded"
    rereads = True  # the original may hold operators that need their bodies to run

    def __init__(self, options: ExpandOptions) -> None:
        self._options = options
        self.expansion = ExpandSyncBatchNorm(options)

    def edit(self, working: ir.Model, progress: Progress) -> bool:
        progress("expand", 0.0)
        return self.expansion(working).modified

    def check(self, original: Callable[[], ModelLike], edited: Path | ir.Model | None, size: int) -> tuple[Check, ...]:
        options, sites = self._options, self.expansion.expanded
        alone = each_alone(sites, options)
        if options.stats == "keras":
            return alone, KERAS_ROUNDING

        def comparable() -> ir.Model:
            """Return the original; with bodies where it says what no runtime knows."""
            given = original()
            if not isinstance(given, ir.Model):
                raise TypeError("the original is loaded again")
            if not options.correction and all(site.op_type == "BatchNormalization" for site in sites):
                return given
            written = replace(options, as_functions=True, collective="bnpass")
            return ExpandSyncBatchNorm(written)(given).model

        if options.collective == "com.microsoft" and any(site.collectives for site in sites):
            whole = NO_ALL_REDUCE
        else:
            whole = whole_model(comparable, edited, size, options.check, options.seed)
        if edited is None or not options.check:
            return alone, whole
        return alone, whole, in_replicas(comparable(), model_io.load(edited), sites, options.seed)

    def report(
        self, files: tuple[FileFact | None, FileFact | None], census: tuple[Census, Census], checks: tuple[Check, ...]
    ) -> Report:
        done = self.expansion
        return ExpandReport(*files, *census, done.kept, checks, self._options, done.expanded, done.collectives)


def expand(
    model: ModelLike,
    options: ExpandOptions | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
    dry_run: bool = False,
    base_dir: str | os.PathLike[str] | None = None,
    trust_external_data: bool = False,
    fingerprint: bool = False,
    progress: Progress | None = None,
    on_checked: Callable[[Report], None] | None = None,
) -> ExpandResult:
    """Expand training batch normalization, and the bnpass operators, into moments, AllReduce and plain ONNX.

    Each kind of batch normalization in the model is expanded alone and compared with the float64 reference, for one
    replica and for several; then the whole model is run before and after. Nothing is written and nothing returned
    unless all agree.

    Args:
        model: A path, an ``onnx.ModelProto`` or an ``onnx_ir.Model``; none of them is changed.
        options: What to expand into and how to check it.
        output: Where to write the result of a path; by default ``<stem>.expanded.onnx`` beside it.
        force: Overwrite ``output``.
        dry_run: Write nothing: the result then holds an ``onnx_ir.Model``.
        base_dir: Folder of the external data of a ModelProto.
        trust_external_data: Accept symbolic and hard links as data files.
        fingerprint: Put the SHA-256 of source and target into the report.
        progress: Called with the stage and the fraction done.
        on_checked: Called with the finished report before the result takes its place: if it raises, nothing changes.

    Returns:
        The expanded model and what happened to each batch normalization.

    Raises:
        RefusedError: A batch normalization cannot be expanded exactly, or the collectives cannot be ordered.
        ModelError: It is no model, or an unsafe one.
        FileAccessError: It cannot be read.
        SaveError: The result cannot be written.
        VerificationError: Before and after do not agree.
    """
    verb = _Expand(options or ExpandOptions())
    call = Call(output, force, dry_run, base_dir, trust_external_data, fingerprint, progress, on_checked)
    outcome = transform(model, verb, call)
    done = verb.expansion
    return ExpandResult(outcome.model, outcome.modified, done.expanded, done.kept, done.collectives, outcome.report)
