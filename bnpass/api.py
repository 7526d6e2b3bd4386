"""Fold a model from end to end: load, fold, check, and write if it came from a file."""

import hashlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import onnx_ir as ir

from bnpass import census, model_io
from bnpass.errors import SaveError, UsageError
from bnpass.fold.inference import set_inference_mode
from bnpass.fold.options import FoldOptions
from bnpass.fold.result import Folded, Kept
from bnpass.passes import FoldBatchNorm
from bnpass.report import Check, FileFact, Report

ModelLike = str | os.PathLike[str] | onnx.ModelProto | ir.Model
Progress = Callable[[str, float], None]
"""Told the name of a stage and the fraction of it that is done."""


@dataclass(frozen=True)
class FoldResult:
    """The outcome of ``fold``.

    Attributes:
        model: The folded model, of the type that was given; for a path, the path of the file written.
        modified: Whether anything changed.
        folded: The affines that are gone.
        kept: Those that stayed, with the reason.
        report: All of it, for printing or storing.
    """

    model: ModelLike
    modified: bool
    folded: tuple[Folded, ...]
    kept: tuple[Kept, ...]
    report: Report


def fold(
    model: ModelLike,
    options: FoldOptions | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
    dry_run: bool = False,
    fingerprint: bool = False,
    progress: Progress | None = None,
) -> FoldResult:
    """Fold inference batch normalization and per-channel affines into the weights around them.

    Every edit is checked in float64 before it is made; where ONNX Runtime is installed and the model fits, the
    whole model is run before and after as well. Nothing is written and nothing returned unless both agree.

    Args:
        model: A path, an ``onnx.ModelProto`` or an ``onnx_ir.Model``; none of them is changed.
        options: What to fold and how to check it.
        output: Where to write the result of a path; by default ``<stem>.folded.onnx`` beside it.
        force: Overwrite ``output``.
        dry_run: Write nothing: the result then holds an ``onnx_ir.Model``, checked edit by edit.
        fingerprint: Put the SHA-256 of source and target into the report.
        progress: Called with the stage and the fraction done.

    Returns:
        The folded model and what happened to each node.

    Raises:
        ModelError: It is no model, or an unsafe one.
        FileAccessError: It cannot be read.
        SaveError: The result cannot be written.
        VerificationError: Before and after do not agree.

    Example:
        >>> import onnx
        >>> proto = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
        ... g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 0, 0, 1}, float[2] s = {2, 3}>
        ... { t = MatMul(x, w)  y = Mul(t, s) }''')
        >>> [node.op_type for node in fold(proto, FoldOptions(check=0)).model.graph.node]
        ['MatMul']
    """
    options, progress = options or FoldOptions(), progress or _silent
    path = Path(model) if isinstance(model, str | os.PathLike) else None
    if path is None and output is not None:
        raise UsageError("an output path goes with a model that is given as a path")
    target = None if path is None or dry_run else Path(output) if output is not None else default_output(path)
    if target is not None and target.exists() and not force:
        raise SaveError(f"{target}: exists already; give --force (force=True) to overwrite it")
    progress("load", 0.0)
    loaded = model_io.load(model)
    working = loaded.clone() if isinstance(model, ir.Model) else loaded
    before = census.take(working)
    folding = FoldBatchNorm(options, progress)
    modified = folding(working).modified
    report = Report(
        source=_fact(path, path.stat().st_size, fingerprint) if path is not None else None,
        target=None,
        before=before,
        after=census.take(working),
        folded=folding.folded,
        kept=folding.kept,
        checks=(_local_check(folding),),
        options=options,
    )
    result = FoldResult(working, modified, folding.folded, folding.kept, report)
    if dry_run:
        return result
    if target is None:
        checked = _checked(report, model, working, progress)
        return replace(result, model=model_io.to_type_of(model, working), report=checked)
    progress("save", 0.0)
    with model_io.stage(working, target, force=force) as staged:
        checked = _checked(report, model, staged.path, progress)
        saved = staged.commit()
    checked = replace(checked, target=_fact(target, saved.bytes, fingerprint))
    return replace(result, model=str(target) if isinstance(model, str) else target, report=checked)


def _silent(stage: str, fraction: float) -> None:
    del stage, fraction


def default_output(path: Path) -> Path:
    """Return where the result of a path goes unless told otherwise."""
    return path.with_name(f"{path.stem}.folded.onnx")


def _local_check(folding: FoldBatchNorm) -> Check:
    edits = len(folding.folded)
    text = f"{edits} edits, op before against op after in float64"
    if edits:
        text += f"; largest deviation {folding.largest_error:.2f} of what one rounding permits"
    return Check("local", ran=True, text=text, details={"edits": edits, "largest_error": folding.largest_error})


def _checked(report: Report, original: ModelLike, folded: Path | ir.Model, progress: Progress) -> Report:
    """Add the whole-model check to a report; raise if it fails."""
    check = _whole_model_check(report, original, folded, progress)
    return replace(report, checks=(*report.checks, check))


def _whole_model_check(report: Report, original: ModelLike, folded: Path | ir.Model, progress: Progress) -> Check:
    from bnpass.verify import Status, fits, verify  # only where it is asked for

    name, options = "whole model", report.options
    if not options.check:
        return Check(name, ran=False, text="switched off (check 0)")
    if importlib.util.find_spec("onnxruntime") is None:
        return Check(name, ran=False, text='ONNX Runtime is not installed: pip install "bnpass[cpu]"')
    if not fits(report.before.constant_bytes):
        return Check(name, ran=False, text="two runs of this model do not fit into the free memory")
    progress("check", 0.0)
    if options.inference:
        original = model_io.load(original) if not isinstance(original, ir.Model) else original.clone()
        set_inference_mode(original)
    found = verify(original, folded, draws=options.check, seed=options.seed)
    if found.status is Status.NOT_RUN:
        return Check(name, ran=False, text=found.failure, details=found.to_json())
    found.raise_for_mismatch()
    text = f"{found.draws} draws in ONNX Runtime, seed {found.seed}, reference {found.reference}"
    if found.outputs:
        worst = max(found.outputs, key=lambda o: o.max_rel_error)
        text += f"; largest error {worst.max_rel_error:.2g} of '{worst.name}' (allowed {worst.allowed:.2g} absolute)"
    return Check(name, ran=True, text=text, details=found.to_json())


def _fact(path: Path, size: int, fingerprint: bool) -> FileFact:
    if not fingerprint:
        return FileFact(str(path), size, None)
    with path.open("rb") as file:
        return FileFact(str(path), size, hashlib.file_digest(file, "sha256").hexdigest())
