"""What every fold has to be: valid, honest, final, and as exact as the model it came from.

Two judges look at the numbers. ``Float64Model`` evaluates the old and the new model in float64: they may differ by
what the rounding of the new weights is worth. ONNX Runtime, with its own optimizations off, runs both as they are:

    err(new, ref) ≤ 2·err(old, ref) + slack        slack = what the old output moves if its weights move by 1 ULP
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from bnpass.errors import RefusalId
from bnpass.folding.options import FoldOptions
from bnpass.folding.result import Folded
from bnpass.graph.kept import Kept
from bnpass.passes import FoldBatchNorm
from bnpass.verification.bound import judge
from bnpass.verification.float64 import Float64Model
from bnpass.verification.perturb import perturbed

Array = NDArray[Any]
Feeds = Mapping[str, Array]

_UNKNOWN = [2, 3, 6, 6]
"""What is drawn for an input without a shape."""

_CANNOT_RUN = ("NOT_IMPLEMENTED", "under development", "Unsupported model IR version")
"""What ONNX Runtime says of a valid model whose ops, types or opset it has no kernels for."""

DRAWS = ("normal", "far from zero", "zeros", "one hot")


@dataclass(frozen=True)
class Result:
    """A model before and after ``FoldBatchNorm``, and what the pass said about it."""

    before: ir.Model
    after: ir.Model
    modified: bool
    folded: tuple[Folded, ...]
    kept: tuple[Kept, ...]
    options: FoldOptions | None = None

    @property
    def ops(self) -> list[str]:
        """Op types of the main graph after the fold, in order."""
        return [node.op_type for node in self.after.graph]

    @property
    def refusals(self) -> dict[str, RefusalId]:
        """The refusal id of every node that was kept."""
        return {kept.node: kept.refusal for kept in self.kept}

    def constant(self, name: str) -> Array:
        """Return an initializer of the folded model."""
        tensor = self.after.graph.initializers[name].const_value
        assert tensor is not None
        return tensor.numpy()


def fold(model: ir.Model, options: FoldOptions | None = None) -> Result:
    """Fold a copy of ``model``."""
    before = ir.from_proto(ir.to_proto(model))
    after = ir.from_proto(ir.to_proto(model))
    done = FoldBatchNorm(options)
    outcome = done(after)
    return Result(before, outcome.model, bool(outcome.modified), done.folded, done.kept, options)


def folded_and_right(
    model: ir.Model, feeds: Sequence[Feeds] | None = None, options: FoldOptions | None = None
) -> Result:
    """Fold a copy of ``model`` and hold the result against everything that a fold has to be."""
    result = fold(model, options)
    is_right(result, feeds)
    return result


def is_right(result: Result, feeds: Sequence[Feeds] | None = None) -> None:
    """Assert that a result is valid, tidy, honest, final and numerically as good as the original."""
    is_valid(result.after)
    interface_is_unchanged(result.before, result.after)
    nothing_dangles(result.before, result.after)
    flag_is_honest(result.before, result.after, result.modified)
    second_fold_changes_nothing(result.after, result.options)
    if result.modified:
        agree(result.before, result.after, draws(result.before) if feeds is None else feeds)


# --- the graph ----------------------------------------------------------------------------------------------------


def is_valid(model: ir.Model) -> None:
    """Assert what ONNX's full checker asserts."""
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def interface_is_unchanged(before: ir.Model, after: ir.Model) -> None:
    """Assert that callers see the same inputs and outputs."""
    assert _interface(after) == _interface(before)


def _interface(model: ir.Model) -> tuple[list[bytes], list[bytes]]:
    graph = ir.to_proto(model).graph
    constants = {tensor.name for tensor in graph.initializer} if model.ir_version < 4 else set()
    inputs = [i.SerializeToString(deterministic=True) for i in graph.input if i.name not in constants]
    return inputs, [o.SerializeToString(deterministic=True) for o in graph.output]


def nothing_dangles(before: ir.Model, after: ir.Model) -> None:
    """Assert that no constant is left that nobody reads, and that no name stands for two things."""
    assert _unread(after) <= _unread(before), "the fold left constants that nobody reads"
    names = [v.name for graph in after.graphs() for node in graph for v in node.outputs if v.name]
    names += [name for graph in after.graphs() for name in graph.initializers]
    assert len(names) == len(set(names)), "two values have the same name"


def _unread(model: ir.Model) -> set[str]:
    unread = {
        name
        for graph in model.graphs()
        for name, value in graph.initializers.items()
        if not value.uses() and not value.is_graph_output()
    }
    return unread | {
        str(node.outputs[0].name)
        for scope in (model.graph, *model.functions.values())
        for node in ir.traversal.RecursiveGraphIterator(scope)
        if not any(v.uses() or v.is_graph_output() for v in node.outputs)
    }


def flag_is_honest(before: ir.Model, after: ir.Model, modified: bool) -> None:
    """Assert that ``modified`` says whether the serialized model changed."""
    assert (serialized(before) != serialized(after)) == modified, f"modified={modified} is not true"


def serialized(model: ir.Model) -> bytes:
    """Return the bytes of a model, the same for the same model."""
    return ir.to_proto(model).SerializeToString(deterministic=True)


def second_fold_changes_nothing(after: ir.Model, options: FoldOptions | None = None) -> None:
    """Assert that a fold of the result, read back from bytes, finds nothing to do."""
    again = fold(after, options)
    assert not again.modified, f"a second fold still folds {again.folded}"
    assert serialized(again.after) == serialized(again.before)


# --- the numbers --------------------------------------------------------------------------------------------------


def draws(model: ir.Model, seed: int = 0) -> list[Feeds]:
    """Return inputs for ``model``: normal, far from zero, zeros, one hot."""
    return [_draw(model, kind, seed + i) for i, kind in enumerate(DRAWS)]


def _draw(model: ir.Model, kind: str, seed: int) -> Feeds:
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for value in model.graph.inputs:
        assert value.name is not None
        assert value.dtype is not None
        if value.is_initializer():
            continue
        shape = _UNKNOWN if value.shape is None else [d if isinstance(d, int) else 2 for d in value.shape]
        if value.dtype is ir.DataType.BOOL:
            feeds[value.name] = np.full(shape, bool(seed % 2))
            continue
        if not value.dtype.is_floating_point():
            feeds[value.name] = np.full(shape, 3, value.dtype.numpy())
            continue
        x = np.zeros(shape)
        if kind == "one hot" and x.size:
            x.reshape(-1)[rng.integers(x.size)] = 1
        elif kind != "zeros":
            x = rng.standard_normal(shape) + (100 if kind == "far from zero" else 0)
        feeds[value.name] = x.astype(value.dtype.numpy())
    return feeds


def agree(before: ir.Model, after: ir.Model, feeds: Sequence[Feeds]) -> None:
    """Assert that two models compute the same, in float64 and in ONNX Runtime where it can run the old one."""
    moved = [m for m in (perturbed(before, seed) for seed in range(3)) if m is not None]
    names = [str(v.name) for v in before.graph.outputs]
    types = [v.dtype for v in before.graph.outputs]
    old64, new64, moved64 = Float64Model(before), Float64Model(after), [Float64Model(m) for m in moved]
    sessions = [runtime(m) for m in (before, after, *moved)]
    assert sessions[0] is None or sessions[1] is not None, "ONNX Runtime loads the old model, but not the new one"
    for draw, feed in enumerate(feeds):
        ref, new = old64.run(feed, names), new64.run(feed, names)
        others = [m.run(feed, names) for m in moved64]
        others += [old64.run(near, names) for near in _near(feed)]
        for name, dtype in zip(names, types, strict=True):
            _agree_in_float64(f"draw {draw}, {name}", ref[name], new[name], [o[name] for o in others], dtype)
        if sessions[0] is None:
            continue
        results = [s.run(names, dict(feed)) for s in sessions if s is not None]
        for i, name in enumerate(names):
            verdict = judge(results[0][i], results[1][i], ref[name], [r[i] for r in results[2:]])
            assert verdict.ok, f"draw {draw}, {name}: {verdict.reason}"


def _near(feed: Feeds) -> list[Feeds]:
    """Return inputs of float64 that are off by a rounding: what that is worth, evaluating in float64 is worth too."""
    if all(x.dtype != np.float64 for x in feed.values()):
        return []
    eps = np.finfo(np.float64).eps
    signs = [np.random.default_rng(seed) for seed in range(3)]
    return [
        {n: x * (1 + eps * rng.choice([-1.0, 1.0], x.shape)) if x.dtype == np.float64 else x for n, x in feed.items()}
        for rng in signs
    ]


def _agree_in_float64(what: str, ref: Array, new: Array, others: Sequence[Array], dtype: ir.DataType | None) -> None:
    assert new.shape == ref.shape, f"{what}: shape {new.shape} instead of {ref.shape}"
    if not ref.size:
        return
    if ref.dtype != np.float64:
        np.testing.assert_array_equal(new, ref, err_msg=what)
        return
    kind = np.dtype(np.float32) if dtype is None or not dtype.is_floating_point() else dtype.numpy()
    eps = float(ml_dtypes.finfo(kind).eps)
    slack = 2 * max((float(np.abs(o - ref).max()) for o in others), default=0.0) + eps * float(np.abs(ref).max())
    error = float(np.abs(new - ref).max())
    assert error <= slack, f"{what}: error {error:.3g} in float64, where rounding the weights is worth {slack:.3g}"


def runtime(model: ir.Model) -> ort.InferenceSession | None:
    """Return an ONNX Runtime session that optimizes nothing; None if it has no such ops or types on CPU."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes are private
        if not any(words in str(error) for words in _CANNOT_RUN):
            raise
        return None


def runs_in_onnx_runtime(model: ir.Model, feeds: Feeds) -> list[Array]:
    """Return the outputs of a model that ONNX Runtime must be able to run."""
    session = runtime(model)
    assert session is not None
    return [np.asarray(result) for result in session.run(None, dict(feeds))]
