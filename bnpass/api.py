"""Fold a model from end to end: load, fold, check, and write if it came from a file."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import onnx_ir as ir

from bnpass import census, checks, model_io
from bnpass.errors import SaveError, UsageError
from bnpass.folding.options import FoldOptions
from bnpass.folding.result import Folded, Kept
from bnpass.model_io import ModelLike
from bnpass.model_io.slots import slots
from bnpass.passes import FoldBatchNorm
from bnpass.report import FileFact, Report

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
    target = None if dry_run else _target(path, output, force=force)
    progress("load", 0.0)
    load = partial(_load, model, base_dir, trust_external_data=trust_external_data)
    working = load()
    _check_not_data(target, working)
    before = census.take(working)
    folding = FoldBatchNorm(options, progress)
    modified = folding(working).modified

    # what to compare with: the caller's own model, unless the file has to be read differently from how it stands
    original = load if base_dir is not None or trust_external_data or options.inference else lambda: model
    source = None if path is None else _fact(path, path.stat().st_size, fingerprint)

    def report(folded: Path | ir.Model | None, written: FileFact | None = None) -> Report:
        progress("check", 0.0)
        size = before.constant_bytes
        whole = checks.DRY_RUN if folded is None else checks.whole_model(original, folded, size, options)
        found = (checks.local(folding), whole)
        after = census.take(working)
        done = Report(source, written, before, after, folding.folded, folding.kept, found, options)
        on_checked(done)
        return done

    def result(model: ModelLike, report: Report) -> FoldResult:
        return FoldResult(model, modified, folding.folded, folding.kept, report)

    if dry_run:
        return result(working, report(None))
    if target is None:
        return result(model_io.to_type_of(model, working), report(working))
    progress("save", 0.0)
    with model_io.stage(working, target, force=force) as staged:
        written = replace(_fact(staged.path, staged.bytes, fingerprint), path=str(target))
        checked = report(staged.path, written)
        staged.commit()
    return result(str(target) if isinstance(model, str) else target, checked)


def default_output(path: Path) -> Path:
    """Return where the result of a path goes unless told otherwise."""
    return path.with_name(f"{path.stem}.folded.onnx")


def _target(path: Path | None, output: str | os.PathLike[str] | None, *, force: bool) -> Path | None:
    """Return where the result is to be written; None for a model that did not come from a path."""
    if path is None:
        if output is not None:
            raise UsageError("an output path goes with a model that is given as a path")
        return None
    target = default_output(path) if output is None else Path(output)
    if target.exists() and not force:
        raise SaveError(f"{target}: exists already; give --force (force=True) to overwrite it")
    return target


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


def _fact(path: Path, size: int, fingerprint: bool) -> FileFact:
    if not fingerprint:
        return FileFact(str(path), size, None)
    with path.open("rb") as file:
        return FileFact(str(path), size, hashlib.file_digest(file, "sha256").hexdigest())
