"""What a batch-normalization layer means at one input shape: nothing left to decide but the numbers."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
Adjustment = Callable[[tuple[int, ...]], tuple[Array, Array]]

OVERRIDDEN_BY_TRAINABLE = ("sync", "tf_keras", "keras3")
"""Classes for which ``trainable=False`` also means inference mode."""


@dataclass(frozen=True)
class Renorm:
    """Batch renormalization, ``y = scale·(x̂·r + d) + B`` (Ioffe 2017; Keras's two pairs of averages).

    Attributes:
        rmin: Lower limit of r, 0 if the layer has none; None: a scalar given at run time.
        rmax: Upper limit of r, infinity if the layer has none; None: a scalar given at run time.
        dmax: Limit of the magnitude of d, infinity if the layer has none; None: a scalar given at run time.
        momentum: The fraction kept of the renorm averages in a step.
    """

    rmin: float | None
    rmax: float | None
    dmax: float | None
    momentum: float


@dataclass(frozen=True)
class Resolved:
    """A layer at one input shape and type, made by ``BatchNormSpec.resolve``.

    Parameters and statistics are flat, shape [C], C = ``channels``, row-major over the ascending ``axes``.

    Attributes:
        api: The class it follows: "sync", "tf1", "keras_v1", "tf_keras" or "keras3".
        input_shape: Shape of X; None where a length is not known. The lengths of ``axes`` are known.
        dtype: Type of X and Y: "float16", "bfloat16", "float32" or "float64".
        parameter_dtype: Type of scale, B and statistics as our operators take them: "float64" for
            float64, else "float32".
        parameter_shape: Shape in which the layer itself keeps its parameters; the C numbers lie in the same
            order. [C] for one axis; several axes keep the rank of X, with 1 elsewhere, and so do virtual
            batches, with another 1 behind axis 0. Fans of initializers and norms of constraints depend on it.
        axes: The channel axes, non-negative, ascending.
        momentum: The fraction kept of the moving statistics in a step.
        epsilon: Added to the variance, as given. (TensorFlow's fused path no longer has a smallest one, measured;
            early versions raised it to 1.001e-5.)
        center: Whether B is a parameter; else it is 0.
        scale: Whether scale is a parameter; else it is 1.
        trainable: Whether a training step changes anything.
        fused: Whether TensorFlow takes its FusedBatchNorm.
        synchronized: Whether the replicas share batch statistics.
        running_var_correction: As NumPy's ddof, for the update of the moving variance alone: 1 where fused, else 0.
        virtual_batch_size: Samples in a ghost batch; 0: the batch is not divided.
        renorm: Batch renormalization, if the layer has it.
        adjustment: Called with the shape of X in training; returns (a, c) that broadcast against X, for
            ``y = scale·(a·x̂ + c) + B``.
        mask_rule: What a mask does: "ignored", "weights" (sums weighted by it) or "select" (a choice of elements).
    """

    api: str
    input_shape: tuple[int | None, ...]
    dtype: str
    parameter_dtype: str
    parameter_shape: tuple[int, ...]
    axes: tuple[int, ...]
    momentum: float
    epsilon: float
    center: bool
    scale: bool
    trainable: bool
    fused: bool
    synchronized: bool
    running_var_correction: int
    virtual_batch_size: int
    renorm: Renorm | None
    adjustment: Adjustment | None
    mask_rule: str

    @property
    def channels(self) -> int:
        """Number of channels: the product of the lengths of the channel axes."""
        return math.prod(n for a in self.axes if (n := self.input_shape[a]) is not None)

    def uses_batch_statistics(self, training: bool) -> bool:
        """Whether a call with this ``training`` normalizes with the statistics of the batch.

        With ``trainable=False`` the V2 classes and Keras 3 do not; the V1 classes still do.
        """
        return training and (self.trainable or self.api not in OVERRIDDEN_BY_TRAINABLE)

    def updates_statistics(self, training: bool) -> bool:
        """Whether a call with this ``training`` changes the moving statistics; for the renorm averages see below."""
        return self.trainable and self.uses_batch_statistics(training)

    def updates_renorm(self, training: bool) -> bool:
        """Whether a call with this ``training`` changes the two renorm averages.

        keras_v1 changes them under ``trainable=False`` too, where the moving statistics stay (measured).
        """
        return self.uses_batch_statistics(training) and (self.trainable or self.api == "keras_v1")
