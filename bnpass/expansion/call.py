"""Batch normalization of ONNX in training mode as one node of bnpass: what ``as_functions`` writes."""

import onnx_ir as ir

from bnpass.expansion.forward import Results
from bnpass.expansion.sites import DOUBLE, Site
from bnpass.expansion.terms import Formulas, Term
from bnpass.ops import calls

_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT)


def call(op: Formulas, site: Site) -> Results:
    """Write one ``SyncBatchNormalization``; 16-bit parameters and statistics go there and back as float."""
    scale, B = _parameters(op, site, "scale", "B")
    mean, var = _parameters(op, site, "input_mean", "input_var")
    outputs = calls.batch_norm(
        op,
        site.input("X"),
        scale.value,
        B.value,
        mean.value,
        var.value,
        axis=site.axis,
        epsilon=site.epsilon,
        momentum=site.momentum,
        training=True,
        updates=bool({"running_mean", "running_var"} & site.results.keys()),
        group=site.group,
        running_var_correction=site.correction,
    )
    results = {"Y": Term(op, outputs.Y, site.dtype), "saved_mean": Term(op, outputs.saved_mean, DOUBLE)}
    if outputs.running_mean is not None and outputs.running_var is not None:
        results["running_mean"] = Term(op, outputs.running_mean, mean.dtype)
        results["running_var"] = Term(op, outputs.running_var, var.dtype)
    return results


def _parameters(op: Formulas, site: Site, *names: str) -> list[Term]:
    """Write inputs in the one type that they share: float, unless X or one of them is, or may be, double."""
    types = [site.input(name).dtype for name in names]
    wide = site.dtype == DOUBLE or any(dtype not in _NARROW for dtype in types)
    target = DOUBLE if wide else ir.DataType.FLOAT
    return [Term(op, op.cast(site.input(name), target), target) for name in names]
