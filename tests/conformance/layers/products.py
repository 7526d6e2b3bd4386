"""The products that are judged: the reference; the model run by function bodies, by the kernels, and expanded.

Each takes the same steps as the layer and keeps its own state. What a step returns has the keys of the TensorFlow
side: ``r/y``, ``r/dx``, ``r/dgamma``, ``r/dbeta`` and the variables after the step, for each replica r.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import onnx_ir as ir

from bnpass.layers.model import layer_model
from bnpass.ops.bodies import add_bodies
from bnpass.passes import ExpandSyncBatchNorm
from bnpass.semantics import reference
from bnpass.semantics.resolved import Resolved
from tests.conformance.layers import meaning
from tests.conformance.layers.cases import Array, Case
from tests.conformance.layers.exchange import Arrays
from tests.conformance.layers.meaning import Named
from tests.conformance.layers.runtime import Run, runner

GROUP = "world"
OPSET = 18

INPUTS = {
    "gamma": "scale",
    "beta": "B",
    "moving_mean": "input_mean",
    "moving_variance": "input_var",
    "moving_stddev": "input_stddev",
    "renorm_mean": "renorm_mean",
    "renorm_stddev": "renorm_stddev",
}
OUTPUTS = {
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "moving_stddev": "running_stddev",
    "renorm_mean": "running_renorm_mean",
    "renorm_stddev": "running_renorm_stddev",
}


class Product(Protocol):
    """What can be judged."""

    state: list[Named]
    """The variables of each replica."""

    def step(self, xs: Sequence[Array], dys: Sequence[Array], masks: Sequence[Array] | None, training: bool) -> Arrays:
        """Take a step."""
        ...


class Reference:
    """The float64 reference."""

    def __init__(self, case: Case, start: Named) -> None:
        self._case, self._layer = case, meaning.layer(case)
        self.state = [start] * len(case.shares)

    def step(self, xs: Sequence[Array], dys: Sequence[Array], masks: Sequence[Array] | None, training: bool) -> Arrays:
        if self._layer.synchronized and not (masks is not None and self._layer.mask_rule == "select"):
            return self._together(range(len(xs)), xs, dys, masks, training)
        found: Arrays = {}
        for r in range(len(xs)):
            found |= self._together([r], xs, dys, masks, training)
        return found

    def _together(
        self,
        replicas: Sequence[int],
        xs: Sequence[Array],
        dys: Sequence[Array],
        masks: Sequence[Array] | None,
        training: bool,
    ) -> Arrays:
        """Take a step of replicas that share statistics."""
        names = self.state[replicas[0]]
        result = reference.forward(
            self._layer,
            [xs[r] for r in replicas],
            meaning.state_of(self._layer, names),
            training=training,
            symbolic=self._case.training == "tensor",
            masks=None if masks is None else [masks[r] for r in replicas],
            clip=self._case.clip,
        )
        gradients = reference.backward(result, [xs[r] for r in replicas], [dys[r] for r in replicas])
        after = meaning.values_of(result.state, names)
        found: Arrays = {}
        for i, r in enumerate(replicas):
            self.state[r] = after
            found |= {f"{r}/y": result.ys[i], f"{r}/dx": gradients.dxs[i]}
            found |= {f"{r}/dgamma": gradients.dscales[i]} if "gamma" in names else {}
            found |= {f"{r}/dbeta": gradients.dBs[i]} if "beta" in names else {}
            found |= {f"{r}/{name}": value for name, value in after.items()}
        return found


class Model:
    """The layer as an ONNX model, run in ONNX Runtime."""

    def __init__(
        self, case: Case, start: Named, change: Callable[[ir.Model], object], *, kernels: bool = False
    ) -> None:
        self._case, self._change, self._kernels = case, change, kernels
        self._layer = meaning.layer(case)
        self.state = [start] * len(case.shares)
        self._runs: dict[bool | None, Run] = {}

    def step(self, xs: Sequence[Array], dys: Sequence[Array], masks: Sequence[Array] | None, training: bool) -> Arrays:
        feeds = [
            self._feeds(xs[r], dys[r], None if masks is None else masks[r], training, self.state[r])
            for r in range(len(xs))
        ]
        mode = None if self._case.training == "tensor" else training
        if mode not in self._runs:
            self._runs[mode] = self._run(mode, masks is not None)
        found: Arrays = {}
        for r, outputs in enumerate(self._runs[mode](feeds)):
            state = self.state[r] | {k: outputs[name] for k, name in OUTPUTS.items() if name in outputs}
            self.state[r] = state
            found |= {f"{r}/y": outputs["Y"], f"{r}/dx": outputs["dX"]}
            found |= {f"{r}/d{k}": outputs[n] for k, n in (("gamma", "dscale"), ("beta", "dB")) if n in outputs}
            found |= {f"{r}/{name}": value for name, value in state.items()}
        return found

    def _run(self, training: bool | None, mask: bool) -> Run:
        group = GROUP if len(self._case.shares) > 1 else ""
        model = layer_model(
            _of_any_batch(self._layer, self._case),
            training=training,
            mask=mask,
            gradient=True,
            group=group,
            opset=OPSET,
        )
        self._change(model)
        return runner(model, len(self._case.shares), kernels=self._kernels)

    def _feeds(self, x: Array, dy: Array, mask: Array | None, training: bool, state: Named) -> Arrays:
        kept = np.dtype(self._layer.parameter_dtype)
        feeds: Arrays = {INPUTS[name]: value.astype(kept) for name, value in state.items()}
        feeds |= {name: np.asarray(value, kept) for name, value in self._case.clip.items()}
        feeds |= {"X": x, "dY": dy, "training": np.asarray(training)}
        if mask is not None:
            feeds["mask"] = mask
        if self._layer.adjustment is not None:
            for name, value in zip(("adjust_scale", "adjust_bias"), self._layer.adjustment(x.shape), strict=True):
                factor = np.asarray(value)
                feeds[name] = factor.reshape([1] * (x.ndim - factor.ndim) + list(factor.shape))
        return feeds


def _of_any_batch(layer: Resolved, case: Case) -> Resolved:
    """Return the layer for the shares of all replicas."""
    first, *others = case.shares
    shape = tuple(n if all(o[i] == n for o in others) else None for i, n in enumerate(first))
    return replace(layer, input_shape=shape)


CHANGES: dict[str, Callable[[ir.Model], object]] = {"body": add_bodies, "expanded": ExpandSyncBatchNorm()}
"""What makes a model of our operators run in stock ONNX Runtime."""


def with_bodies(case: Case, start: Named) -> Model:
    """Return the product that runs by the function bodies."""
    return Model(case, start, CHANGES["body"])


def expanded(case: Case, start: Named) -> Model:
    """Return the product of the expansion."""
    return Model(case, start, CHANGES["expanded"])


def with_kernels(case: Case, start: Named) -> Model:
    """Return the product that only kernels can run: it has no bodies."""
    return Model(case, start, lambda _: None, kernels=True)
