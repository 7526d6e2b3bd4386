"""Fold a model from end to end."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from bnpass.api.transform import Call, Progress, transform
from bnpass.census import Census
from bnpass.checks.fold import local
from bnpass.checks.whole_model import whole_model
from bnpass.folding.inference import set_inference_mode
from bnpass.folding.merging.result import Merged
from bnpass.folding.options import FoldOptions
from bnpass.folding.result import Folded
from bnpass.graph.kept import Kept
from bnpass.model_io import ModelLike
from bnpass.passes import FoldBatchNorm
from bnpass.report import Check, FileFact, FoldReport, Report


@dataclass(frozen=True)
class FoldResult:
    """The outcome of ``fold``.

    Attributes:
        model: The folded model, of the type that was given; for a path, the path of the file written.
        modified: Whether anything changed.
        folded: The affines that are gone.
        kept: Those that stayed, with the reason.
        merged: The linear ops that became one.
        apart: The sums of linear ops that could not.
        idle: The nodes that changed nothing, and are gone.
        report: All of it, for printing or storing.
    """

    model: ModelLike
    modified: bool
    folded: tuple[Folded, ...]
    kept: tuple[Kept, ...]
    merged: tuple[Merged, ...]
    apart: tuple[Kept, ...]
    idle: tuple[str, ...]
    report: Report


class _Fold:
    """The verb."""

    suffix = "folded"

    def __init__(self, options: FoldOptions) -> None:
        self._options = options
        self.rereads = options.inference
        self.folding = FoldBatchNorm(options)

    def edit(self, working: ir.Model, progress: Progress) -> bool:
        self.folding = FoldBatchNorm(self._options, progress)
        return self.folding(working).modified

    def check(self, original: Callable[[], ModelLike], edited: Path | ir.Model | None, size: int) -> tuple[Check, ...]:
        options = self._options

        def read_alike() -> ModelLike:
            given = original()
            if options.inference and isinstance(given, ir.Model):
                set_inference_mode(given)
            return given

        return local(self.folding), whole_model(read_alike, edited, size, options.check, options.seed)

    def report(
        self, files: tuple[FileFact | None, FileFact | None], census: tuple[Census, Census], checks: tuple[Check, ...]
    ) -> Report:
        done = self.folding
        return FoldReport(
            *files, *census, done.kept, checks, self._options,
            folded=done.folded, merged=done.merged, apart=done.apart, idle=done.idle,
        )  # fmt: skip


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
    verb = _Fold(options or FoldOptions())
    call = Call(output, force, dry_run, base_dir, trust_external_data, fingerprint, progress, on_checked)
    outcome, done = transform(model, verb, call), verb.folding
    return FoldResult(
        outcome.model, outcome.modified, done.folded, done.kept, done.merged, done.apart, done.idle, outcome.report
    )
