"""A batch normalization that was recognised."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bnpass.semantics.resolved import Resolved

_CALL = re.compile(r"(Stateful)?PartitionedCall(_\d+)?|Func")
_BRANCH = re.compile(r"(smart_)?cond(_\d+)?")


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
        """The scope in which TensorFlow wrote it, without functions and branches; in none, the op itself."""
        parts = [part for part in self.name.split("/") if not _CALL.fullmatch(part)]
        scope = parts[:-1]
        if scope and scope[-1] == "batchnorm":
            scope.pop()
        while scope and _BRANCH.fullmatch(scope[-1]):
            scope.pop()
        return "/".join(scope or parts) or self.name

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
