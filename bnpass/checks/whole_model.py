"""A model before and after, run whole in ONNX Runtime."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from bnpass.errors import UsageError, VerificationError
from bnpass.model_io import ModelLike
from bnpass.report import Check

_WHOLE_MODEL = "whole model"

NO_ALL_REDUCE = Check(_WHOLE_MODEL, ran=False, text="released ONNX Runtimes have no com.microsoft::AllReduce")
KERAS_ROUNDING = Check(_WHOLE_MODEL, ran=False, text="Keras's one-pass statistics are not meant to be the original's")


def whole_model(
    original: Callable[[], ModelLike], edited: Path | ir.Model | None, constant_bytes: int, draws: int, seed: int
) -> Check:
    """Run a model before and after in ONNX Runtime, where it is installed and both fit.

    Args:
        original: Gives the model to compare with; an ``onnx_ir.Model`` is given for keeps.
        edited: The result; None in a dry run.
        constant_bytes: Size of the original.
        draws: Sets of random inputs; 0 for no check.
        seed: Seed of the first.

    Returns:
        What was found, or why it was not run.

    Raises:
        VerificationError: They do not agree.
    """
    if edited is None:
        return _not_run("this is a dry run: nothing is written")
    if not draws:
        return _not_run("switched off (--check 0)")
    if importlib.util.find_spec("onnxruntime") is None:
        return _not_run('ONNX Runtime is not installed: pip install "bnpass[cpu]"')
    from bnpass.verification import Status, fits, verify  # importing it costs as much as folding a small model

    if not fits(constant_bytes):
        return _not_run("two runs of this model do not fit into the free memory")
    try:
        found = verify(original(), edited, draws=draws, seed=seed)
    except UsageError as error:  # no inputs could be drawn, or ONNX Runtime cannot be imported
        return _not_run(str(error))
    except OSError as error:
        return _not_run(f"it has no room for temporary files: {error.strerror}")
    if found.status is Status.NOT_RUN:
        return Check(_WHOLE_MODEL, ran=False, text=found.failure, details=found.to_json())
    try:
        found.raise_for_mismatch()
    except VerificationError as error:
        error.add_note("nothing was written, please report this")
        raise
    return Check(_WHOLE_MODEL, ran=True, text=found.summary(), details=found.to_json())


def _not_run(why: str) -> Check:
    return Check(_WHOLE_MODEL, ran=False, text=why)
