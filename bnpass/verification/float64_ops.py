"""Operators that ``onnx.reference`` evaluates slowly or wrongly, over the code in :mod:`.windows`.

``onnx.reference`` is right about most operators in float64, but pools and convolutions are Python loops
there, ``BatchNormalization`` below opset 14 computes something else than the specification, and ``Unsqueeze`` below
opset 13 inserts its axes one after the other.
Each class is named as its operator: that is how ``ReferenceEvaluator(new_ops=...)`` finds it.
"""

from typing import Any, TypeAlias

import numpy as np
from onnx.reference.op_run import OpRun

from bnpass.verification import windows
from bnpass.verification.loop_op import Loop
from bnpass.verification.windows import Array

__all__ = ["FLOAT64_OPS"]

# What an attribute holds is checked by ONNX's schema, not by a type checker.
Attribute: TypeAlias = Any


class _Op(OpRun):
    """An operator of the default domain."""

    op_domain = ""

    @property
    def opset(self) -> int:
        """The opset of the graph or function around the node."""
        return int(self.run_params["opsets"].get("", 1))


def _window_attributes(attributes: dict[str, Attribute], *names: str) -> dict[str, Attribute]:
    return {name: attributes[name] for name in names if attributes.get(name) is not None}


class Conv(_Op):
    """Convolution."""

    def _run(self, X: Array, W: Array, B: Array | None = None, **attributes: Attribute) -> tuple[Array]:
        names = ("auto_pad", "strides", "pads", "dilations", "group")
        return (windows.conv(X, W, B, **_window_attributes(attributes, *names)),)


class ConvTranspose(_Op):
    """Transposed convolution."""

    def _run(self, X: Array, W: Array, B: Array | None = None, **attributes: Attribute) -> tuple[Array]:
        names = ("auto_pad", "strides", "pads", "dilations", "group", "output_padding", "output_shape")
        return (windows.conv_transpose(X, W, B, **_window_attributes(attributes, *names)),)


class MaxPool(_Op):
    """Maximum over windows."""

    def _run(self, X: Array, **attributes: Attribute) -> tuple[Array, ...]:
        names = ("auto_pad", "strides", "pads", "dilations", "ceil_mode", "storage_order")
        Y, indices = windows.max_pool(
            X,
            attributes["kernel_shape"],
            with_indices=len(self.output) > 1,
            **_window_attributes(attributes, *names),
        )
        return (Y,) if indices is None else (Y, indices)


class AveragePool(_Op):
    """Mean over windows."""

    def _run(self, X: Array, **attributes: Attribute) -> tuple[Array]:
        names = ("auto_pad", "strides", "pads", "dilations", "ceil_mode", "count_include_pad")
        kernel = attributes["kernel_shape"]
        return (windows.average_pool(X, kernel, **_window_attributes(attributes, *names)),)


class Unsqueeze(_Op):
    """New axes, counted in the result, in any order."""

    def _run(self, data: Array, axes: Array | None = None, **attributes: Attribute) -> tuple[Array]:
        given: Any = attributes.get("axes") if axes is None else axes
        return (np.expand_dims(data, tuple(int(axis) for axis in given)),)


class GlobalAveragePool(_Op):
    """Mean over space."""

    def _run(self, X: Array, **_: Attribute) -> tuple[Array]:
        return (X.mean(axis=tuple(range(2, X.ndim)), keepdims=True),)


class Gemm(_Op):
    """``alpha·A·B + beta·C``; one class for every opset (before 7, `broadcast` told what shapes tell)."""

    def _run(self, A: Array, B: Array, C: Array | None = None, **attributes: Attribute) -> tuple[Array]:
        A = A.T if attributes.get("transA") else A
        B = B.T if attributes.get("transB") else B
        Y = A @ B
        alpha, beta = (float(attributes.get(name, 1.0)) for name in ("alpha", "beta"))
        Y = Y if alpha == 1.0 else alpha * Y
        return (Y,) if C is None or beta == 0.0 else (Y + beta * C,)


class BatchNormalization(_Op):
    """Every version of the operator, 1 to the newest.

    Training mode is `is_test` = 0 before opset 7, more than one output from 7 to 13, and
    `training_mode` from 14 on. Training output order: before opset 14 ``Y, mean, var, saved_mean,
    saved_var``, afterwards ``Y, running_mean, running_var``. The variance is the population variance
    and ``running = momentum·old + (1 - momentum)·batch``.
    """

    def _run(
        self, X: Array, scale: Array, B: Array, mean: Array, var: Array, **attributes: Attribute
    ) -> tuple[Array, ...]:
        epsilon, momentum = (float(attributes[name]) for name in ("epsilon", "momentum"))
        if not self._training(attributes):
            return (windows.batch_normalization(X, scale, B, mean, var, epsilon),)
        spatial = bool(attributes.get("spatial", 1)) or self.opset >= 9
        batch_mean, batch_var = windows.batch_moments(X, spatial=spatial)
        Y = windows.batch_normalization(X, scale, B, batch_mean, batch_var, epsilon)
        running_mean = momentum * mean + (1 - momentum) * batch_mean
        running_var = momentum * var + (1 - momentum) * batch_var
        return (Y, running_mean, running_var, batch_mean, batch_var)[: max(len(self.output), 1)]

    def _training(self, attributes: dict[str, Attribute]) -> bool:
        if self.opset >= 14:
            return bool(attributes.get("training_mode", 0))
        if self.opset >= 7:
            return sum(1 for name in self.output if name) > 1
        return not attributes.get("is_test", 0)


class MatMul(_Op):
    """``A·B`` as NumPy does it."""

    def _run(self, A: Array, B: Array, **_: Attribute) -> tuple[Array]:
        return (np.asarray(np.matmul(A, B)),)


class _Arithmetic(_Op):
    """Two operands; before opset 7 `axis` says where the second one's shape begins, if `broadcast` is set."""

    def _run(self, A: Array, B: Array, **attributes: Attribute) -> tuple[Array]:
        axis = attributes.get("axis")
        if self.opset < 7 and attributes.get("broadcast") and axis is not None:
            axis = axis + A.ndim if axis < 0 else axis
            B = B.reshape(*B.shape, *(1,) * (A.ndim - axis - B.ndim))
        return (self._compute(A, B),)

    def _compute(self, A: Array, B: Array) -> Array:
        raise NotImplementedError


class Add(_Arithmetic):
    """``A + B``."""

    def _compute(self, A: Array, B: Array) -> Array:
        return np.asarray(A + B)


class Sub(_Arithmetic):
    """``A - B``."""

    def _compute(self, A: Array, B: Array) -> Array:
        return np.asarray(A - B)


class Mul(_Arithmetic):
    """``A * B``."""

    def _compute(self, A: Array, B: Array) -> Array:
        return np.asarray(A * B)


class Div(_Arithmetic):
    """``A / B``; integers are cut off towards zero."""

    def _compute(self, A: Array, B: Array) -> Array:
        if A.dtype.kind not in "iu":
            return np.asarray(A / B)
        quotient = np.abs(A) // np.abs(B)
        return np.asarray(np.where((A < 0) == (B < 0), quotient, -quotient)).astype(A.dtype)


FLOAT64_OPS: tuple[type[OpRun], ...] = (
    Add,
    AveragePool,
    BatchNormalization,
    Conv,
    ConvTranspose,
    Div,
    Gemm,
    GlobalAveragePool,
    Loop,
    MatMul,
    MaxPool,
    Mul,
    Sub,
    Unsqueeze,
)
