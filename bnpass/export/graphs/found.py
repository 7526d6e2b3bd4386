"""A batch normalization that was recognised."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bnpass.semantics.resolved import Resolved

_OWN = re.compile(r"/(batchnorm/\w+|FusedBatchNorm(V[23])?(_\d+)?)$")


@dataclass(frozen=True)
class Found:
    """A batch normalization in a flat graph.

    Attributes:
        name: The op that makes Y.
        X: The data; this and the next are tensors.
        Y: What is to be replaced.
        axes: The channel axes.
        epsilon: Added to the variance.
        training: Whether it takes the statistics of the batch.
        scale: The parameters and statistics are of C elements in any shape; None where there are none.
        B: As scale.
        mean: In training, the statistics before the step, where they matter.
        var: As mean.
        fused: Whether it is a FusedBatchNorm.
        momentum: The fraction kept of the statistics in a step.
        moved: Statistics after the step that something reads, by the names of ``LayerOutputs``.
        passed: Tensors that are nothing but others: statistics that inference hands on.
    """

    name: str
    X: Any
    Y: Any
    axes: tuple[int, ...]
    epsilon: float
    training: bool
    scale: Any | None
    B: Any | None
    mean: Any | None
    var: Any | None
    fused: bool = False
    momentum: float = 0.0
    moved: Mapping[str, Any] = field(default_factory=dict)
    passed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layer_name(self) -> str:
        """The scope in which TensorFlow wrote it, without what inlining put in front."""
        name = re.sub(r"^(Func/)?((Stateful)?PartitionedCall(_\d+)?/)+", "", self.name)
        return _OWN.sub("", name)

    def resolved(self, shape: tuple[int | None, ...]) -> Resolved:
        """Return what it means at the shape of X, of which the channels are known."""
        dtype = self.X.dtype.name
        channels = 1
        for axis in self.axes:
            channels *= shape[axis] or 0
        return Resolved(
            api="tf1",
            input_shape=shape,
            dtype=dtype,
            parameter_dtype="float64" if dtype == "float64" else "float32",
            parameter_shape=(channels,),
            axes=self.axes,
            momentum=self.momentum,
            epsilon=self.epsilon,
            center=self.B is not None,
            scale=self.scale is not None,
            trainable=bool(self.moved),
            fused=self.fused,
            synchronized=False,
            running_var_correction=int(self.fused),
            virtual_batch_size=0,
            renorm=None,
            adjustment=None,
            mask_rule="ignored",
        )
