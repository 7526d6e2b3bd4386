"""The operators of the domain ``bnpass`` in NumPy, for ``onnx.reference``: written from docs/operators.md alone.

Everything is in float64, and one slice of the batch after the other, so that it shares no idea with the bodies, the
kernels or the reference. Replicas of a group are threads that meet in a ``Meeting``.
"""

from collections.abc import Callable, Sequence
from threading import Barrier, Thread
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

Array = NDArray[Any]
AllReduce = Callable[[str, str, Array], Array]
"""Takes the group, the reduction and this replica's value; returns the value of the group."""


def alone(group: str, reduction: str, value: Array) -> Array:  # noqa: ARG001
    """Reduce over one replica."""
    return value


class Meeting:
    """Where replicas that run as threads of one process exchange their values; all of them are in every group."""

    def __init__(self, replicas: int) -> None:
        self.messages: list[tuple[str, Array]] = []
        """What was exchanged: the group and the sum."""
        self._barrier = Barrier(replicas, timeout=20)
        self._values: list[Any] = [None] * replicas

    def seat(self, rank: int) -> AllReduce:
        """Return the AllReduce of one replica."""

        def all_reduce(group: str, reduction: str, value: Array) -> Array:
            if not group:
                return value
            self._values[rank] = np.asarray(value)
            self._barrier.wait()
            values = list(self._values)
            if self._barrier.wait() == 0:
                self.messages.append((group, sum(values)))
            if len({(v.shape, v.dtype) for v in values}) != 1:
                raise ValueError(f"replicas disagree: {[(v.shape, v.dtype) for v in values]}")
            return {"sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min}[reduction](values, axis=0)

        return all_reduce


def evaluate(model: ir.Model, feeds: dict[str, Array], all_reduce: AllReduce = alone) -> dict[str, Array]:
    """Run a model with these operators, without bodies; results by name."""
    session = ReferenceEvaluator(ir.to_proto(model), new_ops=sync_ops(all_reduce))
    return dict(zip(session.output_names, session.run(None, feeds), strict=True))


def evaluate_replicas(model: ir.Model, feeds: Sequence[dict[str, Array]]) -> tuple[list[dict[str, Array]], Meeting]:
    """Run one replica per set of feeds, and return the results of each and the meeting where they met."""
    meeting = Meeting(len(feeds))
    results: list[dict[str, Array]] = [{} for _ in feeds]
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = evaluate(model, feeds[rank], meeting.seat(rank))
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [Thread(target=run, args=(rank,)) for rank in range(len(feeds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results, meeting


def sync_ops(all_reduce: AllReduce = alone) -> list[type[OpRun]]:
    """Return the four operators; what their replicas exchange goes through ``all_reduce``."""

    class SyncBatchMoments(OpRun):
        op_domain = "bnpass"

        def _run(self, X: Array, *_: Any, **__: Any) -> tuple[Array, ...]:
            return _moments(self, X, all_reduce)

    class SyncBatchNormalization(OpRun):
        op_domain = "bnpass"

        def _run(self, X: Array, *others: Array, **_: Any) -> tuple[Any, ...]:
            return _normalization(self, X, *others[:4], all_reduce)

    class SyncBatchNormalizationGrad(OpRun):
        op_domain = "bnpass"

        def _run(self, dY: Array, *others: Array, **_: Any) -> tuple[Array, ...]:
            return _gradient(self, dY, *others[:5], all_reduce)

    class AllReduce(OpRun):
        op_domain = "bnpass"

        def _run(self, X: Array, *_: Any, **__: Any) -> tuple[Array, ...]:
            return (all_reduce(self.group, self.reduction, X),)

    return [SyncBatchMoments, SyncBatchNormalization, SyncBatchNormalizationGrad, AllReduce]


def _moments(node: Any, X: Array, all_reduce: AllReduce) -> tuple[Array, ...]:
    ghosts = _ghosts(node, X)
    C = X.shape[node.axis]
    sums = np.array([_per_channel(part, node.axis) for part in ghosts]).reshape(len(ghosts), C)
    local = float(X.size // (C * len(ghosts))) if C and ghosts else 0.0
    count = float(all_reduce(node.group, "sum", np.array([local]))[0])
    mean = all_reduce(node.group, "sum", sums) / max(count, 1.0)
    squares = [_per_channel((p - _along(m, p, node.axis)) ** 2, node.axis) for p, m in zip(ghosts, mean, strict=True)]
    var = all_reduce(node.group, "sum", np.array(squares).reshape(len(ghosts), C)) / max(count, 1.0)
    shape = mean.shape if node.virtual_batch_size else mean.shape[1:]
    return mean.reshape(shape), var.reshape(shape), np.array(count)


def _normalization(
    node: Any, X: Array, scale: Array, B: Array, input_mean: Array, input_var: Array, all_reduce: AllReduce
) -> tuple[Any, ...]:
    outputs = node.onnx_node.output
    assert len(outputs) == 6
    assert len(node.onnx_node.input) == 6
    C = X.shape[node.axis]
    assert scale.shape == B.shape == (C,)
    assert input_mean.dtype == input_var.dtype
    assert scale.dtype == B.dtype
    mean, var, count = input_mean.astype(np.float64), input_var.astype(np.float64), np.array(0.0)
    running_mean, running_var = input_mean, input_var
    momentum = np.float64(np.float32(node.momentum))
    if node.training_mode:
        assert input_mean.shape == input_var.shape == (C,)
        batch_mean, batch_var, count = _moments(node, X, all_reduce)
        if count > 0:
            mean, var = batch_mean, batch_var
            ddof = count / max(count - node.running_var_correction, 1.0)
            steps = (input_mean, mean.reshape(-1, C).mean(0)), (input_var, var.reshape(-1, C).mean(0) * ddof)
            running_mean, running_var = (
                (momentum * old.astype(np.float64) + (1 - momentum) * new).astype(old.dtype) for old, new in steps
            )
    else:
        assert list(outputs[1:3]) == ["", ""], "no running statistics in inference mode"
    inv_std = 1 / np.sqrt(var + np.float64(np.float32(node.epsilon)))
    Y = np.empty(X.shape, np.float64)
    for part, out, m, s in _paired(node, X, Y, mean, inv_std):
        out[...] = (part - _along(m, part, node.axis)) * _along(s * scale, part, node.axis)
        out += _along(B, part, node.axis)
    if node.virtual_batch_size:  # statistics that were given per channel hold for every ghost batch
        mean, inv_std = (np.broadcast_to(v, (len(_ghosts(node, X)), C)) for v in (mean, inv_std))
    return Y.astype(X.dtype), running_mean, running_var, mean, inv_std, count


def _gradient(
    node: Any, dY: Array, X: Array, scale: Array, mean: Array, inv_std: Array, count: Array, all_reduce: AllReduce
) -> tuple[Array, ...]:
    assert len(node.onnx_node.input) == 7
    assert dY.dtype == X.dtype
    assert dY.shape == X.shape
    assert mean.dtype == inv_std.dtype == count.dtype == np.float64
    axis, C = node.axis, X.shape[node.axis]
    local = []
    for part, up, m, _ in _paired(node, X, dY, mean, inv_std):
        local.append([_per_channel(up, axis), _per_channel(up * (part - _along(m, part, axis)), axis)])
    sums = np.array(local, np.float64).reshape(-1, 2, C)
    total = all_reduce(node.group, "sum", sums)
    dX = np.zeros(X.shape, np.float64)
    rows = inv_std.reshape(-1, C) * np.ones((len(sums), 1))
    for (part, out, m, s), ghost_total in zip(_paired(node, X, dX, mean, inv_std), total, strict=True):
        out[...] = 0
        if count > 0:
            out -= _along(ghost_total[0] / count, part, axis)
            out -= (part - _along(m, part, axis)) * _along(s**2 * ghost_total[1] / count, part, axis)
    for (up, out, _, s), _ in zip(_paired(node, dY, dX, mean, inv_std), total, strict=True):
        out += up
        out *= _along(scale * s, up, axis)
    dscale, dB = (sums[:, 1] * rows).sum(0), sums[:, 0].sum(0)
    return dX.astype(X.dtype), dscale.astype(scale.dtype), dB.astype(scale.dtype)


def _ghosts(node: Any, X: Array) -> list[Array]:
    """Return the ghost batches of X in float64."""
    b = node.virtual_batch_size
    if not b:
        return [X.astype(np.float64)]
    assert node.axis % X.ndim != 0
    assert X.shape[0] % b == 0, "ghost batches do not divide the batch"
    groups = X.shape[0] // b
    return [X[g::groups].astype(np.float64) for g in range(groups)]


def _paired(node: Any, X: Array, other: Array, mean: Array, inv_std: Array) -> list[tuple[Array, Array, Array, Array]]:
    """Return for each ghost batch its slice of X in float64, of another tensor (a view), and its statistics."""
    C, groups = X.shape[node.axis], len(_ghosts(node, X))
    views = [other[g::groups] for g in range(groups)] if node.virtual_batch_size else [other]
    ones = np.ones((groups, 1))
    return list(zip(_ghosts(node, X), views, mean.reshape(-1, C) * ones, inv_std.reshape(-1, C) * ones, strict=True))


def _per_channel(part: Array, axis: int) -> Array:
    part = np.moveaxis(np.asarray(part, np.float64), axis, 0)
    return part.reshape(part.shape[0], int(np.prod(part.shape[1:]))).sum(1)


def _along(vector: Array, like: Array, axis: int) -> Array:
    return vector.reshape([-1 if i == axis % like.ndim else 1 for i in range(like.ndim)])
