"""The way that every verb goes which makes one model of another: load, edit, check, commit.

Nothing is written and nothing returned unless the check passes.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import onnx_ir as ir

from bnpass import census, model_io
from bnpass.census import Census
from bnpass.errors import SaveError, UsageError
from bnpass.model_io import ModelLike
from bnpass.model_io.slots import slots
from bnpass.report import Check, FileFact, Report

Progress = Callable[[str, float], None]
"""Told the name of a stage and the fraction of it that is done."""


class Verb(Protocol):
    """What one verb does with a model."""

    suffix: str
    """What stands between the stem and ``.onnx`` in the default name of the result."""
    rereads: bool
    """Whether the check has to compare with the model as it is loaded, not with the caller's own file."""

    def edit(self, working: ir.Model, progress: Progress) -> bool:
        """Edit a model in place; return whether anything changed."""
        ...

    def check(self, original: Callable[[], ModelLike], edited: Path | ir.Model | None, size: int) -> tuple[Check, ...]:
        """Compare the result, None in a dry run, with the original, whose constants have ``size`` bytes."""
        ...

    def report(
        self, files: tuple[FileFact | None, FileFact | None], census: tuple[Census, Census], checks: tuple[Check, ...]
    ) -> Report:
        """Put together what happened: source and target, before and after, what was checked."""
        ...


@dataclass(frozen=True)
class Call:
    """How a verb is called: see the verbs for what the fields mean."""

    output: str | os.PathLike[str] | None = None
    force: bool = False
    dry_run: bool = False
    base_dir: str | os.PathLike[str] | None = None
    trust_external_data: bool = False
    fingerprint: bool = False
    progress: Progress | None = None
    on_checked: Callable[[Report], None] | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        model: The result, of the type that was given; for a path, the path of the file written.
        modified: Whether anything changed.
        report: All that happened.
    """

    model: ModelLike
    modified: bool
    report: Report


def transform(model: ModelLike, verb: Verb, call: Call) -> Outcome:
    """Carry a verb out on a path, an ``onnx.ModelProto`` or an ``onnx_ir.Model``; none of them is changed.

    Raises:
        ModelError: It is no model, an unsafe one, or the verb refuses it.
        FileAccessError: It cannot be read.
        SaveError: The result cannot be written.
        VerificationError: Before and after do not agree.
    """
    progress, on_checked = call.progress or _silent, call.on_checked or _silent
    path = Path(model) if isinstance(model, str | os.PathLike) else None
    target = None if call.dry_run else _target(path, verb.suffix, call)
    progress("load", 0.0)
    load = partial(_load, model, call)
    working = load()
    _check_not_data(target, working)
    before = census.take(working)
    modified = verb.edit(working, progress)
    rereads = verb.rereads or call.base_dir is not None or call.trust_external_data
    original = load if rereads else lambda: model
    source = None if path is None else _fact(path, path.stat().st_size, call.fingerprint)

    def report(edited: Path | ir.Model | None, written: FileFact | None = None) -> Report:
        progress("check", 0.0)
        checks = verb.check(original, edited, before.constant_bytes)
        done = verb.report((source, written), (before, census.take(working)), checks)
        on_checked(done)
        return done

    if call.dry_run:
        return Outcome(working, modified, report(None))
    if target is None:
        return Outcome(model_io.to_type_of(model, working), modified, report(working))
    progress("save", 0.0)
    with model_io.stage(working, target, force=call.force) as staged:
        written = replace(_fact(staged.path, staged.bytes, call.fingerprint), path=str(target))
        checked = report(staged.path, written)
        staged.commit()
    return Outcome(str(target) if isinstance(model, str) else target, modified, checked)


def default_output(path: Path, suffix: str) -> Path:
    """Return where the result of a path goes unless told otherwise."""
    return path.with_name(f"{path.stem}.{suffix}.onnx")


def _target(path: Path | None, suffix: str, call: Call) -> Path | None:
    """Return where the result is to be written; None for a model that did not come from a path."""
    if path is None:
        if call.output is not None:
            raise UsageError("an output path goes with a model that is given as a path")
        return None
    target = default_output(path, suffix) if call.output is None else Path(call.output)
    if target.exists() and not call.force:
        raise SaveError(f"{target}: exists already; give --force (force=True) to overwrite it")
    return target


def _load(model: ModelLike, call: Call) -> ir.Model:
    """Load a model to work on; the caller's is never changed."""
    given = model.clone() if isinstance(model, ir.Model) else model
    return model_io.load(given, base_dir=call.base_dir, trust_external_data=call.trust_external_data)


def _silent(*_: object) -> None:
    """Nobody asked to be told."""


def _check_not_data(target: Path | None, model: ir.Model) -> None:
    """Refuse to write the result over the weights that it was made from."""
    if target is None or not target.exists():
        return
    for slot in slots(model):
        if isinstance(slot.tensor, ir.ExternalTensor) and target.samefile(slot.tensor.path):
            raise UsageError(f"{target}: holds weights of the model that is read; choose another output")


def _fact(path: Path, size: int, fingerprint: bool) -> FileFact:
    if not fingerprint:
        return FileFact(str(path), size, None)
    with path.open("rb") as file:
        return FileFact(str(path), size, hashlib.file_digest(file, "sha256").hexdigest())
