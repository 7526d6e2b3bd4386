"""Fold a model from end to end: load, fold, check, and write if it came from a file."""

import hashlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import onnx
import onnx_ir as ir

from bnpass import census, model_io
from bnpass.errors import SaveError, UsageError, VerificationError
from bnpass.fold.inference import set_inference_mode
from bnpass.fold.options import FoldOptions
from bnpass.fold.result import Folded, Kept
from bnpass.model_io.slots import slots
from bnpass.passes import FoldBatchNorm
from bnpass.report import Check, FileFact, Report, counted

ModelLike = str | os.PathLike[str] | onnx.ModelProto | ir.Model
Progress = Callable[[str, float], None]
"""Told the name of a stage and the fraction of it that is done."""

Original = Callable[[], ModelLike]
"""Gives the model to compare with; an ``onnx_ir.Model`` is given for keeps."""

_WHOLE_MODEL = "whole model"
_DRY_RUN = Check(_WHOLE_MODEL, ran=False, text="this is a dry run: nothing is written")


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
    base_dir: str | os.PathLike[str] | None = None,
    trust_external_data: bool = False,
    fingerprint: bool = False,
    progress: Progress | None = None,
    on_checked: Callable[[Report], None] | None = None,
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
        base_dir: Folder of the external data of a ModelProto.
        trust_external_data: Accept symbolic and hard links as data files.
        fingerprint: Put the SHA-256 of source and target into the report.
        progress: Called with the stage and the fraction done.
        on_checked: Called with the finished report before the result takes its place: if it raises, nothing changes.

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
    options, progress, on_checked = options or FoldOptions(), progress or _silent, on_checked or _silent
    path = Path(model) if isinstance(model, str | os.PathLike) else None
    if path is None and output is not None:
        raise UsageError("an output path goes with a model that is given as a path")
    target = None if path is None or dry_run else Path(output) if output is not None else default_output(path)
    if target is not None and target.exists() and not force:
        raise SaveError(f"{target}: exists already; give --force (force=True) to overwrite it")
    progress("load", 0.0)
    load = partial(_load, model, base_dir, trust_external_data=trust_external_data)
    working = load()
    _check_not_data(target, working)
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
    original = load if base_dir is not None or trust_external_data or options.inference else lambda: model
    if target is None:
        checked = _with(report, _DRY_RUN) if dry_run else _checked(report, original, working, progress)
        on_checked(checked)
        return replace(result, model=working if dry_run else model_io.to_type_of(model, working), report=checked)
    progress("save", 0.0)
    with model_io.stage(working, target, force=force) as staged:
        fact = replace(_fact(staged.path, staged.bytes, fingerprint), path=str(target))
        checked = replace(_checked(report, original, staged.path, progress), target=fact)
        on_checked(checked)
        staged.commit()
    return replace(result, model=str(target) if isinstance(model, str) else target, report=checked)


def _load(model: ModelLike, base_dir: str | os.PathLike[str] | None, *, trust_external_data: bool) -> ir.Model:
    """Load a model to work on; the caller's is never changed."""
    given = model.clone() if isinstance(model, ir.Model) else model
    return model_io.load(given, base_dir=base_dir, trust_external_data=trust_external_data)


def _silent(*_: object) -> None:
    """Nobody asked to be told."""


def _check_not_data(target: Path | None, model: ir.Model) -> None:
    """Refuse to write the result over the weights that it was made from."""
    if target is None or not target.exists():
        return
    for slot in slots(model):
        if isinstance(slot.tensor, ir.ExternalTensor) and target.samefile(slot.tensor.path):
            raise UsageError(f"{target}: holds weights of the model that is folded; choose another output")


def default_output(path: Path) -> Path:
    """Return where the result of a path goes unless told otherwise."""
    return path.with_name(f"{path.stem}.folded.onnx")


def _local_check(folding: FoldBatchNorm) -> Check:
    edits = len(folding.folded)
    text = f"{counted(edits, 'edit')}, op before against op after in float64"
    if edits:
        text += f"; largest deviation {folding.largest_error:.2f} of what one rounding permits"
    return Check("local", ran=True, text=text, details={"edits": edits, "largest_error": folding.largest_error})


def _checked(report: Report, original: Original, folded: Path | ir.Model, progress: Progress) -> Report:
    """Add the whole-model check to a report; raise if it fails."""
    return _with(report, _whole_model_check(report, original, folded, progress))


def _with(report: Report, check: Check) -> Report:
    return replace(report, checks=(*report.checks, check))


def _whole_model_check(report: Report, original: Original, folded: Path | ir.Model, progress: Progress) -> Check:
    name, options = _WHOLE_MODEL, report.options
    if not options.check:
        return Check(name, ran=False, text="switched off (--check 0)")
    if importlib.util.find_spec("onnxruntime") is None:
        return Check(name, ran=False, text='ONNX Runtime is not installed: pip install "bnpass[cpu]"')
    from bnpass.verify import Status, fits, verify  # importing it costs as much as folding a small model

    if not fits(report.before.constant_bytes):
        return Check(name, ran=False, text="two runs of this model do not fit into the free memory")
    progress("check", 0.0)
    given = original()
    if options.inference and isinstance(given, ir.Model):
        set_inference_mode(given)
    try:
        found = verify(given, folded, draws=options.check, seed=options.seed)
    except UsageError as error:  # no inputs could be drawn, or ONNX Runtime cannot be imported
        return Check(name, ran=False, text=str(error))
    except OSError as error:
        return Check(name, ran=False, text=f"it has no room for temporary files: {error.strerror}")
    if found.status is Status.NOT_RUN:
        return Check(name, ran=False, text=found.failure, details=found.to_json())
    try:
        found.raise_for_mismatch()
    except VerificationError as error:
        error.add_note("nothing was written, please report this")
        raise
    text = f"{counted(found.draws, 'draw')} in ONNX Runtime, seed {found.seed}, reference {found.reference}"
    if found.outputs:
        closest = max(found.outputs, key=lambda o: o.max_abs_error / o.allowed if o.allowed else 0.0)
        text += f"; largest error {closest.max_abs_error:.2g} of '{closest.name}', {closest.allowed:.2g} is allowed"
    return Check(name, ran=True, text=text, details=found.to_json())


def _fact(path: Path, size: int, fingerprint: bool) -> FileFact:
    if not fingerprint:
        return FileFact(str(path), size, None)
    with path.open("rb") as file:
        return FileFact(str(path), size, hashlib.file_digest(file, "sha256").hexdigest())
