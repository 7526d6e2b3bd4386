"""A model evaluated in float64: the value that both models are judged against.

Every floating point number of the model (weights, constants, targets of casts) becomes float64, rounding
steps inside the model included, and ``onnx.reference`` evaluates it with the operators of
:mod:`.float64_ops`. What cannot be evaluated this way (a contrib operator, an implementation that falls
back to float32, an evaluation that would take too long) is said in one sentence by
:class:`NoFloat64Error`; it is not an error of the model.
"""

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from bnpass.verification.constant_op import Constant
from bnpass.verification.definition_ops import DEFINITION_OPS
from bnpass.verification.float64_ops import FLOAT64_OPS
from bnpass.verification.memory import available_bytes
from bnpass.verification.quantize_ops import QUANTIZE_OPS
from bnpass.verification.retype import NARROW_FLOATS, cast_array, retype
from bnpass.verification.windows import Array

__all__ = ["Budget", "Float64Model", "NoFloat64Error"]

_NARROW_DTYPES = frozenset({np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)})

# Python loops over output elements in onnx.reference, about 20 µs each.
_SLOW_OPS = frozenset({"Upsample", "GridSample", "LpPool", "DeformConv", "RoiAlign", "MaxUnpool"})
_SLOW_ELEMENTS = 1_000_000


class NoFloat64Error(Exception):
    """There is no float64 evaluation of this model; the message says why."""


@dataclass(frozen=True)
class Budget:
    """What one evaluation may cost.

    Attributes:
        flops: Floating point operations in linear operators.
        live_bytes: Bytes of values alive at the same time.
        seconds: Wall clock.

    """

    flops: float = 40e9
    live_bytes: int = 0
    seconds: float = 120.0

    @classmethod
    def default(cls) -> "Budget":
        """40 GFLOP, a quarter of the free memory, two minutes."""
        return cls(live_bytes=available_bytes() // 4)


def _flops(op_type: str, inputs: Sequence[Array], outputs: Sequence[Array]) -> float:
    """Multiplications and additions of a linear operator, 0 for the others."""
    if op_type == "Conv":
        return 2.0 * outputs[0].size * prod(inputs[1].shape[1:])
    if op_type == "ConvTranspose":
        return 2.0 * inputs[0].size * prod(inputs[1].shape[1:])
    if op_type in ("MatMul", "Gemm"):
        return 2.0 * outputs[0].size * inputs[0].size / max(prod(outputs[0].shape[:-1]), 1)
    return 0.0


class _Evaluator(ReferenceEvaluator):  # values are arrays, lists or None: Any, as in onnx.reference
    """``ReferenceEvaluator`` with our operators, a budget, and a refusal to leave float64.

    Values are freed after their last use. The original hands `new_ops` to subgraphs but not to
    model-local functions.
    """

    budget: ClassVar[Budget]
    spent: ClassVar[float]
    deadline: ClassVar[float]
    operators: ClassVar[list[Any]] = [Constant, *FLOAT64_OPS, *QUANTIZE_OPS]

    def __init__(  # the signature of the class it stands in for
        self,
        proto: object,
        opsets: dict[str, int] | None = None,
        functions: list[Any] | None = None,
        verbose: int = 0,
        new_ops: list[Any] | None = None,  # noqa: ARG002  # always ours
        check_shape_annotations: bool = False,
    ) -> None:
        super().__init__(proto, opsets, functions, verbose, self.operators, check_shape_annotations)

    def run(
        self,
        output_names: Sequence[str] | None,
        feed_inputs: Mapping[str, Any],
        attributes: dict[str, Any] | None = None,
        intermediate: bool = False,
        check_shape_annotations: bool | None = None,  # noqa: ARG002  # shapes are not checked here
        _bindings: object = None,
    ) -> list[Any] | dict[str, Any]:
        names = list(self.output_names if output_names is None else output_names)
        keep = set(names) | set(feed_inputs) | {""}
        frees = self._last_uses(keep) if not intermediate else {}
        results: dict[str, Any] = {"": None, **self.rt_inits_, **feed_inputs}
        live = 0
        for position, node in enumerate(self.rt_nodes_):
            inputs = [results[name] for name in node.input]
            self._refuse_slow(node.op_type, inputs)
            extra: dict[str, Any] = {"context": results} if node.need_context() else {}
            if node.has_linked_attribute and attributes:
                extra["linked_attributes"] = attributes
            outputs = node.run(*inputs, **extra)
            results.update(zip(node.output, outputs, strict=False))
            results[""] = None  # an output that is left out is no input of another node
            live += self._charge(node.op_type, inputs, outputs, live)
            for name in frees.get(position, ()):
                live -= getattr(results.pop(name, None), "nbytes", 0)
        return results if intermediate else [results[name] for name in names]

    def _last_uses(self, keep: set[str]) -> dict[int, list[str]]:
        if any(node.need_context() for node in self.rt_nodes_):
            return {}  # a subgraph may read any value of this graph
        last: dict[str, int] = {}
        for position, node in enumerate(self.rt_nodes_):
            last.update(dict.fromkeys((*node.output, *node.input), position))
        frees: dict[int, list[str]] = {}
        for name, position in last.items():
            if name not in keep:
                frees.setdefault(position, []).append(name)
        return frees

    @staticmethod
    def _refuse_slow(op_type: str, inputs: Sequence[Any]) -> None:
        size = max((value.size for value in inputs if isinstance(value, np.ndarray)), default=0)
        if op_type in _SLOW_OPS and size > _SLOW_ELEMENTS:
            raise NoFloat64Error(f"{op_type} over {size} elements would take too long in float64")

    def _charge(self, op_type: str, inputs: Sequence[Array], outputs: Sequence[Any], live: int) -> int:
        cls = type(self)
        arrays = [value for value in outputs if isinstance(value, np.ndarray)]
        if any(value.dtype in _NARROW_DTYPES for value in arrays):
            raise NoFloat64Error(f"op {op_type} has no float64 evaluation")
        if arrays:
            cls.spent += _flops(op_type, inputs, arrays)
        added = sum(value.nbytes for value in arrays)
        if cls.spent > cls.budget.flops:
            raise NoFloat64Error(f"more than {cls.budget.flops / 1e9:.0f} GFLOP per draw")
        if cls.budget.live_bytes and live + added > cls.budget.live_bytes:
            raise NoFloat64Error(f"more than {cls.budget.live_bytes / 2**30:.1f} GiB of memory per draw")
        if time.monotonic() > cls.deadline:
            raise NoFloat64Error(f"more than {cls.budget.seconds:.0f} s per draw")
        return added


class Float64Model:
    """A model in float64, ready to be evaluated.

    Args:
        model: The model; it is not changed.
        by_definition: Whether the operators of bnpass are evaluated from their definition, as one replica, and not by
            their bodies, which the model then does without.

    Raises:
        NoFloat64Error: An operator has no float64 evaluation.

    Example:
        >>> x = ir.val("x", ir.DataType.FLOAT, (2,))
        >>> y = ir.node("Neg", [x]).outputs[0]
        >>> y.name = "y"
        >>> graph = ir.Graph([x], [y], nodes=[y.producer()], opset_imports={"": 20})
        >>> Float64Model(ir.Model(graph, ir_version=9)).run({"x": np.ones(2, np.float32)}, ["y"])
        {'y': array([-1., -1.])}

    """

    def __init__(self, model: ir.Model, *, by_definition: bool = False) -> None:
        clone = model.clone()
        retype(clone, NARROW_FLOATS, ir.DataType.DOUBLE)
        scopes: list[ir.Graph | ir.Function] = [clone.graph, *clone.functions.values()]
        for scope in scopes:
            for node in ir.traversal.RecursiveGraphIterator(scope):
                node.domain = "" if node.domain == "ai.onnx" else node.domain
            if "ai.onnx" in scope.opset_imports:
                scope.opset_imports[""] = scope.opset_imports.pop("ai.onnx")
        # Weights are handed over as arrays: writing them into a proto would copy them twice.
        self._weights: dict[str, Array] = {}
        for name, value in clone.graph.initializers.items():
            if value.const_value is not None:
                self._weights[name] = value.const_value.numpy()
        clone.graph.initializers.clear()
        proto: onnx.ModelProto = ir.to_proto(clone)

        # A class of its own for each model: subgraphs are evaluated by instances that onnx.reference
        # makes, and they have to draw on the same budget.
        class ModelEvaluator(_Evaluator):
            budget = Budget()
            spent = 0.0
            deadline = float("inf")
            operators: ClassVar[list[Any]] = [*_Evaluator.operators, *(DEFINITION_OPS if by_definition else ())]

        self._evaluator_class = ModelEvaluator
        try:
            self._evaluator = ModelEvaluator(proto)
        except Exception as error:  # whatever onnx.reference raises, it cannot evaluate this
            raise NoFloat64Error(_why(error)) from error

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], budget: Budget | None = None
    ) -> dict[str, Array]:
        """Evaluate the model.

        Args:
            inputs: One array per graph input, in the model's own types.
            outputs: Names of graph outputs or of values inside the main graph.
            budget: What it may cost.

        Returns:
            The values by name.

        Raises:
            NoFloat64Error: It could not be evaluated in float64 within the budget.

        """
        budget = budget or Budget.default()
        self._evaluator_class.budget = budget
        self._evaluator_class.spent = 0.0
        self._evaluator_class.deadline = time.monotonic() + budget.seconds
        feeds = self._weights | {
            name: cast_array(array, NARROW_FLOATS, ir.DataType.DOUBLE) for name, array in inputs.items()
        }
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                values = self._evaluator.run(list(outputs), feeds)
        except NoFloat64Error:
            raise
        except Exception as error:  # as above
            raise NoFloat64Error(_why(error)) from error
        return {name: np.asarray(value) for name, value in zip(outputs, values, strict=True)}


def _why(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"onnx.reference: {type(error).__name__}: {lines[0][:200]}"
