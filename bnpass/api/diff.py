"""Compare two models from end to end: structure, weights, numbers."""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from bnpass import census, model_io
from bnpass.api.transform import Progress
from bnpass.comparison import Comparison, compare
from bnpass.comparison.facts import runs_alike
from bnpass.errors import UsageError
from bnpass.model_io import ModelLike
from bnpass.report import Check, FileFact
from bnpass.report.diff import DiffReport

_NUMBERS = "numbers"
_REASONS = 3
_UNLIKE = "not compared: inputs or outputs differ"


@dataclass(frozen=True)
class DiffResult:
    """The outcome of ``diff``.

    Attributes:
        same: Whether the models are the same but for names inside of them.
        comparison: Everything that differs.
        numbers: Whether they compute the same, as far as their precision goes; or why that was not asked.
        report: All of it, for printing or storing.
    """

    same: bool
    comparison: Comparison
    numbers: Check
    report: DiffReport


def diff(
    a: ModelLike,
    b: ModelLike,
    *,
    check: int = 3,
    seed: int = 0,
    trust_external_data: bool = False,
    progress: Progress | None = None,
) -> DiffResult:
    """Say what differs between two models.

    They are the same if their graphs are isomorphic, with equal attributes, constants that are equal bit for bit, and
    inputs and outputs of the same names, types and shapes. The order of nodes does not count, nor do the names of
    nodes, of values between them, of weights and of open dimensions: they are listed as renamed. Neither model is
    changed.

    Args:
        a: The first: a path, an ``onnx.ModelProto`` or an ``onnx_ir.Model``.
        b: The second.
        check: Sets of random inputs on which models that differ are run and compared, as ``verify`` does; 0 for none.
        seed: The seed of the first of them.
        trust_external_data: Accept symbolic and hard links as data files.
        progress: Called with the stage and the fraction done.

    Returns:
        The differences.

    Raises:
        ModelError: One is no model, or an unsafe one.
        FileAccessError: One cannot be read.

    Example:
        >>> import onnx
        >>> def model(weight):
        ...     return onnx.parser.parse_model(f'''<ir_version: 8, opset_import: ["": 17]>
        ...      g (float[N, 2] x) => (float[N, 2] y) <float[2] w = {{1, {weight}}}> {{ y = Mul(x, w) }}''')
        >>> diff(model(2), model(2)).same
        True
        >>> [change.max_abs for change in diff(model(2), model(5), check=0).comparison.changed_weights]
        [3.0]
    """
    told = progress or (lambda *_: None)
    told("load", 0.0)
    x, y = (model_io.load(model, trust_external_data=trust_external_data) for model in (a, b))
    told("compare", 0.0)
    found = compare(x, y)
    told("run", 0.0)
    # a file that nobody vouches for is run as it is
    given = (x, y) if trust_external_data else (a, b)
    size = max(census.take(model).constant_bytes for model in (x, y))
    numbers = _numbers(given, found, size, check, seed) if runs_alike(x, y) else _not_run(_UNLIKE)
    return DiffResult(found.same, found, numbers, DiffReport(_file(a), _file(b), found, numbers))


def _file(model: ModelLike) -> FileFact | None:
    return FileFact(str(model), Path(model).stat().st_size, None) if isinstance(model, str | os.PathLike) else None


def _numbers(models: tuple[ModelLike, ModelLike], found: Comparison, size: int, check: int, seed: int) -> Check:
    """Run two models that differ, if they can be run alike."""
    if found.same:
        return _not_run("equal, because the models are the same")
    if not check:
        return _not_run("not compared: switched off (--check 0)")
    if importlib.util.find_spec("onnxruntime") is None:
        return _not_run('not compared: ONNX Runtime is not installed: pip install "bnpass[cpu]"')
    from bnpass.verification import Status, fits, verify

    if not fits(size):
        return _not_run("not compared: two runs of these models do not fit into the free memory")
    try:
        run = verify(*models, draws=check, seed=seed)
    except UsageError as error:  # no inputs could be drawn, or ONNX Runtime cannot be imported
        return _not_run(f"not compared: {error}")
    except OSError as error:
        return _not_run(f"not compared: no room for temporary files: {error.strerror}")
    if run.status is Status.NOT_RUN:
        return Check(_NUMBERS, ran=False, text=f"not compared: {run.failure}", details=run.to_json())
    reasons = [run.failure] if run.failure else [f"{o.name}: {o.reason}" for o in run.outputs if not o.ok][:_REASONS]
    text = f"agree: {run.summary()}" if run.ok else f"differ: {'; '.join(reasons)}"
    return Check(_NUMBERS, ran=True, text=text, details=run.to_json())


def _not_run(why: str) -> Check:
    return Check(_NUMBERS, ran=False, text=why)
