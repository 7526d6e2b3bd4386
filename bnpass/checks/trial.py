"""One kind of batch normalization, small: the node alone, and what each of several replicas has to get from it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnpass.expansion.options import ExpandOptions
from bnpass.expansion.result import Expanded
from bnpass.ops import DOMAIN, VERSION
from bnpass.ops.calls import TYPES
from bnpass.passes import ExpandSyncBatchNorm
from bnpass.semantics.reference import Forward, State, backward, forward
from bnpass.semantics.resolved import Resolved

Array: TypeAlias = NDArray[np.generic]
Arrays: TypeAlias = Mapping[str, Array]
_Fact: TypeAlias = tuple[ir.DataType, Sequence[int | str]]

SHARES = ((8,), (4, 4), (5, 2, 1, 0), (0, 0))
"""Samples of each replica: one replica; equal shares; unequal ones; none at all."""

_CHANNELS, _LENGTH = 3, 2


@dataclass(frozen=True)
class Case:
    """What each replica is fed with, and what it has to give; the latter in float64."""

    feeds: Sequence[Arrays]
    wanted: Sequence[Arrays]


def kind_of(expanded: Expanded) -> Expanded:
    """Return of a node what makes a difference to the arithmetic."""
    rank = max(len(expanded.shape), expanded.axis + 1)  # an axis beyond the rank is implied, of length 1
    channels = min(expanded.channels, _CHANNELS)
    return replace(expanded, node="", shape=(None,) * rank, channels=channels, collectives=0)


@dataclass(frozen=True)
class Trial:
    """One kind of node, with the options of its expansion."""

    kind: Expanded
    options: ExpandOptions

    def __str__(self) -> str:
        kind = self.kind
        return f"{kind.op_type} ({kind.kind}, {kind.dtype}, rank {len(kind.shape)}, axis {kind.axis})"

    @property
    def least_epsilon(self) -> float:
        """The coarsest type that the statistics pass through on their way."""
        return 2.0**-53 if self.kind.dtype == "float64" else 2.0**-24

    @property
    def shares(self) -> Iterator[tuple[int, ...]]:
        """The samples of each replica, for each run that says something about this kind."""
        for share in SHARES:
            can_split = self._group and self.kind.axis != 0
            fits_ghosts = not self.kind.virtual_batch_size or len(set(share)) == 1
            if len(share) == 1 or (can_split and fits_ghosts):
                yield share

    def model(self) -> ir.Model:
        """Return the node alone, expanded."""
        kind = self.kind
        inputs, outputs = ([_value(*fact) for fact in facts.items()] for facts in self._interface())
        attributes: dict[str, int | float | str] = {
            "axis": kind.axis, "group": kind.group, "virtual_batch_size": kind.virtual_batch_size, "collective_id": 0
        }  # fmt: skip
        slots: list[ir.Value] = list(outputs)
        if self._op_type == "SyncBatchNormalization":
            training = kind.kind == "training"
            attributes |= {"epsilon": kind.epsilon, "momentum": kind.momentum, "training_mode": int(training)}
            attributes["running_var_correction"] = kind.correction
            if not training:
                slots[1:1] = [ir.Value(name=""), ir.Value(name="")]
        given = ir.convenience.convert_attributes(attributes)
        node = ir.Node(DOMAIN, self._op_type, [*inputs, None], given, outputs=slots, name="site")
        graph = ir.Graph(inputs, outputs, nodes=[node], opset_imports={"": 18, DOMAIN: VERSION}, name="site")
        model = ir.Model(graph, ir_version=9)
        ExpandSyncBatchNorm(replace(self.options, uniform=()))(model)  # it has no input but the node's
        return model

    def case(self, share: Sequence[int]) -> Case:
        """Return random inputs for replicas with so many samples each, and what the reference makes of them."""
        rng, c = np.random.default_rng(len(share)), self.kind.channels
        state = State(
            self._vector(rng.normal(size=c)),
            self._vector(rng.normal(size=c)),
            self._vector(rng.normal(3, 1, c)),
            self._vector(rng.uniform(1, 4, c)),
        )
        xs = [self._data(rng.normal(3, 2, self._shape(n))) for n in share]
        wide = [x.astype(np.float64) for x in xs]
        result = forward(self._layer, wide, state, training=self.kind.kind != "inference")
        saved = self._saved(result, state)
        if self.kind.kind == "moments":
            return Case([{"X": x} for x in xs], [saved] * len(xs))
        if self.kind.kind == "gradient":
            dys = [self._data(rng.normal(size=x.shape)) for x in xs]
            grads = backward(result, wide, [dy.astype(np.float64) for dy in dys])
            scale = self._typed(state.scale)
            return Case(
                [{"dY": dy, "X": x, "scale": scale, **saved} for dy, x in zip(dys, xs, strict=True)],
                [
                    {"dX": dx, "dscale": dscale, "dB": dB}
                    for dx, dscale, dB in zip(grads.dxs, grads.dscales, grads.dBs, strict=True)
                ],
            )
        given = {"scale": state.scale, "B": state.B, "input_mean": state.running_mean, "input_var": state.running_var}
        feeds = [{"X": x} | {name: self._typed(value) for name, value in given.items()} for x in xs]
        after = {"running_mean": result.state.running_mean, "running_var": result.state.running_var}
        more = saved | (after if self.kind.kind == "training" else {})
        return Case(feeds, [{"Y": y, **more} for y in result.ys])

    def _saved(self, result: Forward, state: State) -> dict[str, Array]:
        """Return the statistics that the node gives or takes: what was there before, where there is no sample."""
        epsilon = self._layer.epsilon
        mean: Array = result.mean
        inv_std: Array = result.inv_std
        var: Array = 1 / result.inv_std**2 - epsilon
        if not result.count and self.kind.kind == "moments":
            var = 0 * var
        elif not result.count:
            mean = state.running_mean[None]
            inv_std = 1 / np.sqrt(state.running_var[None] + epsilon)
        names, second = ("mean", "var"), var
        if self.kind.kind != "moments":
            names, second = ("saved_mean", "saved_inv_std"), inv_std
        both = (mean, second) if self._is_table else (mean[0], second[0])
        return {**dict(zip(names, both, strict=True)), "count": np.array(result.count)}

    @property
    def _op_type(self) -> str:
        return self.kind.op_type.replace("Batch", "SyncBatch") if self._is_standard else self.kind.op_type

    @property
    def _is_standard(self) -> bool:
        return self.kind.op_type == "BatchNormalization"

    @property
    def _group(self) -> str:
        return "" if self.options.collective == "none" else self.kind.group

    @property
    def _is_table(self) -> bool:
        """Whether the statistics are [G, C]."""
        return bool(self.kind.virtual_batch_size) and self.kind.kind != "inference"

    @property
    def _layer(self) -> Resolved:
        kind = self.kind
        return Resolved(
            api="tf_keras",
            input_shape=(None, *self._shape(0)[1:]),
            dtype=kind.dtype,
            parameter_dtype=str(self._vector_type),
            parameter_shape=(kind.channels,),
            axes=(kind.axis,),
            momentum=kind.momentum,
            epsilon=kind.epsilon,
            center=True,
            scale=True,
            trainable=True,
            fused=False,
            synchronized=bool(self._group),
            running_var_correction=kind.correction,
            virtual_batch_size=kind.virtual_batch_size,
            renorm=None,
            adjustment=None,
            mask_rule="ignored",
        )

    def _shape(self, samples: int) -> tuple[int, ...]:
        """Return a small shape of the node's rank; ghost batches are as large as they are."""
        kind = self.kind
        n = samples // 4 * kind.virtual_batch_size if kind.virtual_batch_size else samples
        dims = [n, *(_LENGTH + i for i in range(len(kind.shape) - 1))]
        dims[kind.axis] = kind.channels
        return tuple(dims)

    def _interface(self) -> tuple[dict[str, _Fact], dict[str, _Fact]]:
        """Return type and shape of the node's inputs and outputs, but for ``after``."""
        c: list[int | str] = [self.kind.channels]
        dims: list[int | str] = list(self._shape(0))
        if self.kind.axis != 0:
            dims[0] = "N"
        x: _Fact = (TYPES[self.kind.dtype], dims)
        vector: _Fact = (TYPES[str(self._vector_type)], c)
        table: _Fact = (ir.DataType.DOUBLE, ["G", *c] if self._is_table else c)
        count: _Fact = (ir.DataType.DOUBLE, [])
        saved = {"saved_mean": table, "saved_inv_std": table, "count": count}
        if self.kind.kind == "moments":
            return {"X": x}, {"mean": table, "var": table, "count": count}
        if self.kind.kind == "gradient":
            return {"dY": x, "X": x, "scale": vector, **saved}, {"dX": x, "dscale": vector, "dB": vector}
        running = {"running_mean": vector, "running_var": vector} if self.kind.kind == "training" else {}
        given = dict.fromkeys(("scale", "B", "input_mean", "input_var"), vector)
        return {"X": x, **given}, {"Y": x, **running, **saved}

    @property
    def _vector_type(self) -> np.dtype[np.generic]:
        return np.dtype(np.float64 if self.kind.dtype == "float64" else np.float32)

    def _data(self, value: NDArray[np.float64]) -> Array:
        return value.astype(ml_dtypes.bfloat16 if self.kind.dtype == "bfloat16" else self.kind.dtype)

    def _typed(self, value: Array) -> Array:
        return value.astype(self._vector_type)

    def _vector(self, value: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what is left of a float64 vector in the type that the node reads."""
        return value.astype(self._vector_type).astype(np.float64)


def _value(name: str, fact: _Fact) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(fact[0]), shape=ir.Shape(fact[1]))
