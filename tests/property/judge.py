"""What has to hold of every folded model: the same function, a valid graph, an honest report."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from bnpass.passes import FoldBatchNorm
from tests.property.graphs import DOUBLE, SINGLE, Case, to_ir
from tests.support.float64 import Array, Evaluator, Judged, is_float, limits, unit_roundoff

AFFINE_COST = {"BatchNormalization": 2, "Add": 1, "Sub": 1, "Mul": 1, "Div": 1, "Neg": 1}
ELEMENTWISE_COST = {**AFFINE_COST, "Relu": 1, "Clip": 1, "Max": 1, "Min": 1}
"""Affines, and what they may turn into one another on their way."""
SLACK = 1.05
"""Second-order terms of products of (1 + u)."""


GROWTH = 3.0
"""A shift that goes through a bound stands in it once and behind it once: (a - t)/s and t, where there was s·x + t."""


class BrokenError(AssertionError):
    """A statement does not hold; its name comes first."""


@dataclass(frozen=True)
class Outcome:
    """What one case came to.

    Attributes:
        folded: Runs of affines that are gone.
        worst: Largest deviation over what is permitted.
        ran: Whether ONNX Runtime judged it too.
        changed: Whether the model changed.
    """

    folded: int
    worst: float
    ran: bool
    changed: bool


def fold(model: onnx.ModelProto) -> tuple[onnx.ModelProto, FoldBatchNorm, bool]:
    """Return a folded copy, the pass, and what it said about having changed anything."""
    fold_pass = FoldBatchNorm()
    built = to_ir(model)
    modified = fold_pass(built).modified
    return ir.to_proto(built), fold_pass, modified


def judge(case: Case, *, run: bool = True) -> Outcome:
    """Fold a case and hold every statement against the result."""
    before = ir.to_proto(to_ir(case.model))
    folded, fold_pass, modified = fold(case.model)
    _honest(before, folded, modified)
    _graph(case.model, folded)
    _stays(case, folded)
    _again(case.model, folded)
    kind = np.longdouble if _is_double(case.model) else np.float64
    with np.errstate(all="ignore"):  # a negative variance, a constant over zero
        old = Evaluator(case.model, kind).run(case.feeds)
        new = Evaluator(folded, kind, exact=_untouched(case.model)).run(case.feeds)
        _shapes(folded, new)
        _cheaper(case.model.graph, folded.graph, old, new)
        worst = same_function(case.model, old, new)
        _places(case.model, folded, old, new)
        ran = run and modified and _runtime(case, folded, old, new)
        if modified:
            _rounded(case, folded, old, new)
    return Outcome(len(fold_pass.folded), worst, ran, modified)


def _is_double(model: onnx.ModelProto) -> bool:
    return "tensor(double)" in str(_types(model)) or any(
        a.name == "to" and a.i == onnx.TensorProto.DOUBLE for n in model.graph.node for a in n.attribute
    )


def _types(model: onnx.ModelProto) -> list[str]:
    names = {onnx.TensorProto.DOUBLE: "tensor(double)"}
    return [names.get(v.type.tensor_type.elem_type, "other") for v in model.graph.input]


def _untouched(model: onnx.ModelProto) -> dict[str, bytes]:
    """Return the constants that no fold may change: those before a batch normalization in training mode.

    Of any other constant equal bytes prove nothing: a small shift may have been rounded away.
    """
    wanted: set[str] = set()
    for node in reversed(model.graph.node):
        trains = any(a.name == "training_mode" and a.i for a in node.attribute)
        if trains or wanted & set(node.output):
            wanted.update(node.input[:1] if trains else node.input)
    return {name: data for name, data in _stored(model).items() if name in wanted}


def _stored(model: onnx.ModelProto) -> dict[str, bytes]:
    """Return the bytes of every constant of a model, Constant nodes included."""
    found = {t.name: np.asarray(ir.from_proto(t).numpy()).tobytes() for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            found[node.output[0]] = np.asarray(ir.from_proto(node.attribute[0].t).numpy()).tobytes()
    return found


# --- (a) the same function ------------------------------------------------------------------------------------------


def roundoff(model: onnx.ModelProto) -> float:
    """Return the unit roundoff of the coarsest float type that stands in a model."""
    kinds = {t.data_type for t in model.graph.initializer} | {
        v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)
    }
    kinds |= {a.i for n in model.graph.node if n.op_type == "Cast" for a in n.attribute if a.name == "to"}
    types = [np.dtype(onnx.helper.tensor_dtype_to_np_dtype(k)) for k in kinds if k]
    return max(unit_roundoff(t) for t in types if is_float(t))


def same_function(model: onnx.ModelProto, old: Mapping[str, Judged], new: Mapping[str, Judged]) -> float:
    """Hold every output against ``roundings·u·size + underflow``; size is that of the model as it was."""
    u, worst = roundoff(model), 0.0
    for output in model.graph.output:
        a, b = old[output.name], new[output.name]
        if a.value.shape != b.value.shape or a.dtype != b.dtype:
            raise BrokenError(
                f"shape or type: '{output.name}' was {a.value.shape} {a.dtype}, is {b.value.shape} {b.dtype}"
            )
        if not is_float(a.dtype):
            _equal(output.name, a, b)
            continue
        with np.errstate(all="ignore"):
            size = size_of(a, b)
            bound = SLACK * b.roundings * u * size + b.underflow + _noise(size)
            ratio = np.abs(a.value - b.value) / bound
        defined = np.isfinite(a.value)
        if not np.array_equal(defined, np.isfinite(b.value)):
            raise BrokenError(f"function: '{output.name}' is finite elsewhere")
        defined &= np.isfinite(a.size) & np.isfinite(b.size)  # what came out of an infinity is no longer judged
        highest = float(np.max(ratio[defined], initial=0.0))
        worst = max(worst, highest)
        if not highest <= 1:
            raise BrokenError(
                f"function: '{output.name}' deviates {highest:.4g} times what {b.roundings} roundings permit"
            )
    return worst


def size_of(old: Judged, new: Judged) -> Array:
    """Return the sum of magnitudes that bounds are relative to.

    It is that of the new model, which may not be much more than the largest one of the model as it was: where that
    pads with 0, a shift that has passed the padding is added and taken away again.
    """
    largest = np.max(old.size, initial=0.0, where=np.isfinite(old.size))
    return np.asarray(np.minimum(np.maximum(old.size, new.size), np.maximum(old.size, GROWTH * largest)))


def _noise(size: Array) -> Any:
    """What the evaluation itself may lose: the elements are few and the types wide."""
    return 4096 * float(np.finfo(size.dtype).eps) * size + 1e-290


def _equal(name: str, a: Judged, b: Judged) -> None:
    if a.dtype == bool and not np.array_equal(a.value, b.value):
        raise BrokenError(f"function: '{name}' is no float and differs")


def _places(
    model: onnx.ModelProto, folded: onnx.ModelProto, old: Mapping[str, Judged], new: Mapping[str, Judged]
) -> None:
    """Hold that a MaxPool finds its largest numbers where it did, or where there are others as large."""
    outputs = {output.name for output in model.graph.output}
    for node in folded.graph.node:
        if node.op_type != "MaxPool" or len(node.output) < 2 or node.output[1] not in outputs:
            continue
        x, name = new[node.input[0]], node.output[1]
        bound = SLACK * x.roundings * roundoff(model) * x.size + x.underflow + _noise(x.size)
        highest, found = (np.broadcast_to(a, x.size.shape).reshape(-1) for a in (x.value + bound, x.value - bound))
        if not (found[new[name].value] <= highest[old[name].value]).all():
            raise BrokenError(f"function: '{name}' points to other numbers")


# --- (b) in a runtime, and with every value rounded -----------------------------------------------------------------


def _outputs(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array] | None:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    given = {v.name: feeds[v.name] for v in model.graph.input if v.name in feeds}
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(y) for y in session.run(None, given)]


def _all_single(model: onnx.ModelProto) -> bool:
    kinds = {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    narrow = {t.data_type for t in model.graph.initializer} <= {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.INT64,
        onnx.TensorProto.BOOL,
    }
    return narrow and not any(n.op_type == "Cast" for n in model.graph.node) and kinds <= {1, 9}


def _runtime(case: Case, folded: onnx.ModelProto, old: Mapping[str, Judged], new: Mapping[str, Judged]) -> bool:
    if case.has_training or not _all_single(case.model):
        return False
    u = roundoff(case.model)
    first, second = _outputs(case.model, case.feeds), _outputs(folded, case.feeds)
    if first is None or second is None:
        return False
    for output, a, b in zip(case.model.graph.output, first, second, strict=True):
        if a.dtype == np.float32:
            compare_errors(f"runtime: '{output.name}'", old[output.name], new[output.name], a, b, SINGLE, u)
    return True


def _rounded(case: Case, folded: onnx.ModelProto, old: Mapping[str, Judged], new: Mapping[str, Judged]) -> None:
    """Run both with the result of every op rounded to its type: an ideal runtime for every type there is."""
    if case.has_training or case.dtype == DOUBLE:
        return
    u = roundoff(case.model)
    a = Evaluator(case.model, as_stored=True).run(case.feeds)
    b = Evaluator(folded, as_stored=True).run(case.feeds)
    for output in case.model.graph.output:
        name, kind = output.name, a[output.name].dtype
        if is_float(kind):
            compare_errors(f"rounded: '{name}'", old[name], new[name], a[name].value, b[name].value, kind, u)


def compare_errors(
    what: str, old: Judged, new: Judged, first: Array, second: Array, dtype: np.dtype[Any], u: float
) -> None:
    """Hold ``err(new) ≤ 2·err(old) + slack`` in max-norm; slack is what rounding the weights once more moves."""
    with np.errstate(all="ignore"):
        top = float(limits(dtype).max)
        size = float(np.max(size_of(old, new), initial=0.0))
        if not size < top / 8 or not np.isfinite(first).all():
            return  # the model as it was leaves the range of its type, or nearly
        errors = [float(np.max(np.abs(y - old.value), initial=0.0)) for y in (first, second)]
        slack = (4 + 2 * new.roundings) * u * size + float(limits(dtype).smallest_normal) * 1e6
    if not errors[1] <= 2 * errors[0] + slack:
        raise BrokenError(f"{what} errs by {errors[1]:.4g}, before by {errors[0]:.4g}; slack {slack:.4g}")


# --- (c) the graph --------------------------------------------------------------------------------------------------


def _graph(model: onnx.ModelProto, folded: onnx.ModelProto) -> None:
    onnx.checker.check_model(folded, full_check=True)
    old, new = model.graph, folded.graph
    kept = set(_stored(model))
    given = [v for v in old.input if model.ir_version >= 4 or v.name not in kept]
    names = {t.name for t in new.initializer}
    listed = [v for v in new.input if model.ir_version >= 4 or v.name not in names]
    for what, a, b in (("input", given, listed), ("output", old.output, new.output)):
        if [_signature(v) for v in a] != [_signature(v) for v in b]:
            raise BrokenError(f"graph: an {what} changed")
    read = {n for node in new.node for n in node.input} | {v.name for v in new.output}
    read |= {v.name for v in new.input if model.ir_version >= 4}  # the default of an input stays with it
    if len(names) != len(new.initializer) or not names <= read:
        raise BrokenError(f"graph: initializers twice or unread: {sorted(names - read)}")
    if model.ir_version < 4 and not names <= {v.name for v in new.input}:
        raise BrokenError("graph: an initializer of IR 3 is not listed as an input")


def _cheaper(
    old: onnx.GraphProto, new: onnx.GraphProto, before: Mapping[str, Judged], after: Mapping[str, Judged]
) -> None:
    """Hold that there are no more operations than before, whether nodes or elements are counted."""
    for what, table in (("affine", AFFINE_COST), ("elementwise", ELEMENTWISE_COST)):
        nodes = [sum(table.get(n.op_type, 0) for n in graph.node) for graph in (old, new)]
        elements = [
            sum(table.get(n.op_type, 0) * values[n.output[0]].value.size for n in graph.node)
            for graph, values in ((old, before), (new, after))
        ]
        if nodes[1] > nodes[0] and elements[1] > elements[0]:
            raise BrokenError(f"graph: more {what} operations than before")


def _signature(value: onnx.ValueInfoProto) -> bytes:
    return value.SerializeToString(deterministic=True)


def _shapes(folded: onnx.ModelProto, values: Mapping[str, Judged]) -> None:
    bound: dict[str, int] = {}
    for info in (*folded.graph.value_info, *folded.graph.output, *folded.graph.input):
        if info.name not in values:
            raise BrokenError(f"graph: value_info of '{info.name}', which is not there")
        value, tensor_type = values[info.name], info.type.tensor_type
        dims = tensor_type.shape.dim
        true = value.value.shape
        if tensor_type.HasField("shape") and len(dims) != len(true):
            raise BrokenError(f"graph: '{info.name}' is declared of rank {len(dims)} and has {len(true)}")
        for declared, length in zip(dims, true, strict=False):
            if declared.HasField("dim_param"):
                said = bound.setdefault(declared.dim_param, length)
            else:
                said = declared.dim_value if declared.HasField("dim_value") else length
            if said != length:
                raise BrokenError(f"graph: '{info.name}' is declared {said} where it is {length}")
        if onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type) != value.dtype:
            raise BrokenError(f"graph: '{info.name}' is declared of another type than {value.dtype}")


def _stays(case: Case, folded: onnx.ModelProto) -> None:
    missing = case.must_stay - {n.name for n in folded.graph.node}
    if missing:
        raise BrokenError(f"policy: {sorted(missing)} had to stay")


# --- (d), (e) the pass ----------------------------------------------------------------------------------------------


def _bytes(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def _honest(before: onnx.ModelProto, folded: onnx.ModelProto, modified: bool) -> None:
    if modified == (_bytes(before) == _bytes(folded)):
        raise BrokenError(f"pass: says modified={modified}")


def _again(model: onnx.ModelProto, folded: onnx.ModelProto) -> None:
    if _bytes(fold(model)[0]) != _bytes(folded):
        raise BrokenError("pass: the same model folds to other bytes")
    twice, _, modified = fold(folded)
    if modified or _bytes(twice) != _bytes(folded):
        raise BrokenError("pass: a second fold changes the model again")


def summary(model: onnx.ModelProto) -> str:
    """Return a model as text with the numbers of its constants."""
    constants = "\n".join(
        f"{t.name} = np.array({np.asarray(ir.from_proto(t).numpy()).astype(np.float64).tolist()})"
        for t in model.graph.initializer
        if t.data_type in (1, 10, 11, 16)
    )
    counted = Counter(n.op_type for n in model.graph.node)
    return f"{onnx.printer.to_text(model)}\n{constants}\n{dict(counted)}"
