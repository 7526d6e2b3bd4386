"""Several replicas of one model in one process: a thread for each, which meet in its collectives.

Every replica is evaluated by ``onnx.reference``, the model's functions inlined, and ``AllReduce`` (of ``bnpass``, and
of ``com.microsoft``) bound to the other threads (:mod:`.meeting`). Replicas that do not agree on a collective, wait for
each other, or fail, become one :class:`ReplicaError`; whatever is waited for has a deadline. This is a means of
testing: it is slow, and it knows no hardware.
"""

import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from bnpass.errors import BnpassError, ExitCode, UsageError
from bnpass.model_io.border import to_proto
from bnpass.ops import DOMAIN
from bnpass.verification.float64_ops import FLOAT64_OPS
from bnpass.verification.meeting import Meeting, Message, StoppedError
from bnpass.verification.windows import Array

__all__ = ["ReplicaError", "run_replicas"]

_WORLD = "world"

Groups: TypeAlias = Mapping[str, Sequence[Sequence[int]]]
Attribute: TypeAlias = Any  # what an attribute holds is checked by ONNX's schema, not by a type checker


class ReplicaError(BnpassError):
    """The replicas of a model disagree, wait for each other, or one of them fails."""

    exit_code = ExitCode.MISMATCH


def run_replicas(
    model: ir.Model | onnx.ModelProto,
    feeds: Sequence[Mapping[str, Array]],
    *,
    groups: Groups | None = None,
    timeout: float = 60.0,
) -> list[dict[str, Array]]:
    """Run one replica of a model for each set of inputs, all at once.

    Args:
        model: The model; it is not changed. Our other operators need their bodies in it.
        feeds: The inputs of each replica, by name.
        groups: For a named group, its parts: the replicas that meet in it. A group that is not named here is made of
            all replicas, as ``"world"`` always is.
        timeout: Seconds after which the run is given up.

    Returns:
        The outputs of each replica, by name.

    Raises:
        ReplicaError: Replicas met in collectives of different id, reduction, type or shape; none of them could go on,
            as one waited for others that were done or waited too; one failed; or the time was up.
        UsageError: No replicas, wrong names of inputs, or groups that are none.
        SaveError: The model is larger than a ModelProto may be.

    Example:
        >>> model = ir.from_onnx_text('''<ir_version: 8, opset_import: ["": 17, "bnpass": 1]>
        ... g (double[2] x) => (double[2] y) { y = bnpass.AllReduce <group = "world"> (x) }''')
        >>> run_replicas(model, [{"x": np.array([1.0, 2.0])}, {"x": np.array([10.0, 20.0])}])[1]
        {'y': array([11., 22.])}
    """
    proto = _prepared(model)
    _check_feeds(proto, feeds)
    parts = _checked(groups or {}, len(feeds))
    meeting = Meeting(len(feeds), timeout)
    results: list[dict[str, Array]] = [{} for _ in feeds]

    def replica(rank: int) -> None:
        try:
            with np.errstate(all="ignore"):
                results[rank] = _evaluate(proto, feeds[rank], _Member(rank, meeting, parts))
        except StoppedError:
            return
        except Exception as error:  # noqa: BLE001  # whatever onnx.reference raises, this replica cannot go on
            meeting.stop(f"replica {rank} failed: {_why(error)}", error)
        else:
            meeting.leave(rank)

    threads = [threading.Thread(target=replica, args=(rank,), daemon=True) for rank in range(len(feeds))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in all threads
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(meeting.left_s)
            if thread.is_alive():
                meeting.stop_late()
    if meeting.error:
        raise ReplicaError(meeting.error) from meeting.cause
    return results


def _prepared(model: ir.Model | onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which functions are inlined, and AllReduce is none."""
    proto = to_proto(model) if isinstance(model, ir.Model) else onnx.ModelProto.FromString(model.SerializeToString())
    kept = [function for function in proto.functions if (function.domain, function.name) != (DOMAIN, "AllReduce")]
    del proto.functions[:]
    proto.functions.extend(kept)
    try:
        # Functions that import another opset than the model stay, and are evaluated as they are.
        return onnx.inliner.inline_local_functions(proto)
    except Exception as error:  # whatever the inliner raises, this cannot be run
        raise ReplicaError(f"the functions of the model cannot be inlined: {_why(error)}") from error


def _check_feeds(proto: onnx.ModelProto, feeds: Sequence[Mapping[str, Array]]) -> None:
    if not feeds:
        raise UsageError("there have to be replicas: give the inputs of at least one")
    names = {value.name for value in proto.graph.input}
    required = names - {tensor.name for tensor in proto.graph.initializer}
    for rank, given in enumerate(feeds):
        if missing := sorted(required - given.keys()):
            raise UsageError(f"replica {rank} lacks input '{missing[0]}'")
        if unknown := sorted(given.keys() - names):
            raise UsageError(f"replica {rank} is given '{unknown[0]}', which is no input of the model")


def _checked(groups: Groups, size: int) -> Groups:
    for name, parts in groups.items():
        ranks = [rank for part in parts for rank in part]
        if name in ("", _WORLD):
            raise UsageError(f"group '{name}' is not for a caller to divide")
        if len(set(ranks)) < len(ranks) or not set(ranks) <= set(range(size)):
            raise UsageError(f"group '{name}': its parts are to be disjoint sets of the replicas 0 to {size - 1}")
    return groups


def _evaluate(proto: onnx.ModelProto, feeds: Mapping[str, Array], member: "_Member") -> dict[str, Array]:
    operators = [*_operators(member), *FLOAT64_OPS]

    class Evaluator(ReferenceEvaluator):
        # The original hands new_ops to subgraphs, but not to functions.
        def __init__(self, *args: Attribute, **kwargs: Attribute) -> None:
            super().__init__(*args, **{**kwargs, "new_ops": operators})

    evaluator = Evaluator(proto)
    values = evaluator.run(None, dict(feeds))
    return {name: np.asarray(value) for name, value in zip(evaluator.output_names, values, strict=True)}


def _why(error: BaseException) -> str:
    """Return the first line of what lies behind an error: onnx.reference hides causes."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


@dataclass(frozen=True)
class _Member:
    """One replica, as its operators see it."""

    rank: int
    meeting: Meeting
    parts: Groups

    def all_reduce(self, group: str, message: Message) -> Array:
        """Return the reduced numbers.

        Raises:
            ValueError: AllReduce does not define this, or this replica is not in the group.
            StoppedError: The run is over.
        """
        message.check()
        if group == "":
            return message.numbers.copy()
        parts = self.parts.get(group, [range(self.meeting.size)])
        members = next((part for part in parts if self.rank in part), None)
        if members is None:
            raise ValueError(f"AllReduce {message}: this replica is in no part of group '{group}'")
        return self.meeting.meet(self.rank, group, tuple(sorted(members)), message)


def _operators(member: _Member) -> list[type[OpRun]]:
    """Return the operators that replicas meet in, bound to one of them; ``onnx.reference`` finds them by name."""

    class AllReduce(OpRun):
        op_domain = DOMAIN

        def _run(self, X: Array, after: Array | None = None, **attributes: Attribute) -> tuple[Array]:  # noqa: ARG002
            number, reduction = attributes.get("collective_id", 0), attributes.get("reduction", "sum")
            message = Message(int(number), str(reduction), X.dtype, X.shape, _label(self), X)
            return (member.all_reduce(str(attributes.get("group", "")), message),)

    class Foreign(OpRun):
        op_domain = "com.microsoft"

        def _run(self, X: Array, **_: Attribute) -> tuple[Array]:
            return (member.all_reduce(_WORLD, Message(None, "sum", X.dtype, X.shape, _label(self), X)),)

    Foreign.__name__ = "AllReduce"
    return [AllReduce, Foreign]


def _label(op: OpRun) -> str:
    return str(op.onnx_node.name or op.onnx_node.output[0])
