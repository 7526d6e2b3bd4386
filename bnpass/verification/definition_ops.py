"""The operators of bnpass for ``onnx.reference``, from their definition and not from their bodies.

Each one is the float64 oracle (:mod:`bnpass.semantics.reference`) on the batch of one replica. Classes are named as
their operators: that is how ``ReferenceEvaluator(new_ops=...)`` finds them.
"""

from typing import Any, TypeAlias

import numpy as np
from onnx.reference.op_run import OpRun

from bnpass.ops import DOMAIN
from bnpass.semantics.canonical import Canonical
from bnpass.semantics.reference import Forward, State, backward, forward
from bnpass.semantics.resolved import Resolved
from bnpass.verification.windows import Array

__all__ = ["DEFINITION_OPS"]

Attribute: TypeAlias = Any  # what an attribute holds is checked by the schema, not by a type checker


class _Op(OpRun):
    """An operator of bnpass."""

    op_domain = DOMAIN


class AllReduce(_Op):
    """One replica is the whole group."""

    def _run(self, X: Array, after: Array | None = None, **_: Attribute) -> tuple[Array]:  # noqa: ARG002
        return (X.copy(),)


class SyncBatchMoments(_Op):
    """Mean, population variance and count."""

    def _run(self, X: Array, after: Array | None = None, **attributes: Attribute) -> tuple[Array, ...]:  # noqa: ARG002
        form, ghost = _form(X, attributes)
        zero, one = np.zeros(form.channels), np.ones(form.channels)
        done = forward(_layer(X, attributes, epsilon=1.0), [_wide(X)], State(one, zero, zero, one), training=True)
        if not done.count:
            return _table(0 * done.mean, ghost), _table(0 * done.mean, ghost), np.array(0.0)
        part = form.pack(X)
        var = np.square(part - done.mean[:, None]).mean((0, 2))  # and not from inv_std, which loses small ones
        return _table(done.mean, ghost), _table(var, ghost), np.array(done.count)


class SyncBatchNormalization(_Op):
    """Normalization; with the statistics of the batch in training mode."""

    def _run(
        self,
        X: Array,
        scale: Array,
        B: Array,
        input_mean: Array,
        input_var: Array,
        after: Array | None = None,  # noqa: ARG002
        **attributes: Attribute,
    ) -> tuple[Array, ...]:
        form, ghost = _form(X, attributes)
        epsilon = float(attributes["epsilon"])
        before = State(*(_wide(value) for value in (scale, B, input_mean, input_var)))
        if attributes["training_mode"] and form.elements:
            done = forward(_layer(X, attributes, epsilon=epsilon), [_wide(X)], before, training=True)
            saved = _table(done.mean, ghost), _table(done.inv_std, ghost), np.array(done.count)
            return done.ys[0], done.state.running_mean, done.state.running_var, *saved
        mean, inv_std = (
            np.broadcast_to(value, (form.groups, form.channels))
            for value in (before.running_mean, 1 / np.sqrt(before.running_var + epsilon))
        )
        x_hat = (form.pack(X) - mean[:, None]) * inv_std[:, None]
        Y = form.unpack(before.scale * x_hat + before.B)
        return Y, input_mean, input_var, _table(mean, ghost), _table(inv_std, ghost), np.array(0.0)


class SyncBatchNormalizationGrad(_Op):
    """The gradient; with statistics that were constants where the count is 0."""

    def _run(
        self,
        dY: Array,
        X: Array,
        scale: Array,
        saved_mean: Array,
        saved_inv_std: Array,
        count: Array,
        after: Array | None = None,  # noqa: ARG002
        **attributes: Attribute,
    ) -> tuple[Array, ...]:
        form, _ = _form(X, attributes)
        table, M = (form.groups, form.channels), float(count)
        zero, one = np.zeros(form.channels), np.ones(form.channels)
        step = Forward(
            ys=[],
            state=State(_wide(scale), zero, zero, one),
            mean=np.broadcast_to(saved_mean, table),
            inv_std=np.broadcast_to(saved_inv_std, table),
            count=M,
            r=one,
            d=zero,
            forms=[form],
            adjustments=[(np.ones(()), np.zeros(()))],
            shares=[form.pack(np.ones(())) / M] if M else None,
            lost=np.zeros(table),
            selects=False,
        )
        done = backward(step, [_wide(X)], [_wide(dY)])
        return done.dxs[0], done.dscales[0], done.dBs[0]


DEFINITION_OPS = [AllReduce, SyncBatchMoments, SyncBatchNormalization, SyncBatchNormalizationGrad]


def _wide(value: Array) -> Array:
    return value.astype(np.float64)


def _form(X: Array, attributes: dict[str, Attribute]) -> tuple[Canonical, bool]:
    """Return the canonical form of X, and whether statistics have an axis of ghost batches."""
    ghost = int(attributes["virtual_batch_size"])
    return Canonical(X.shape, (int(attributes["axis"]) % X.ndim,), ghost), bool(ghost)


def _table(statistics: Array, ghost: bool) -> Array:
    return np.asarray(statistics if ghost else statistics[0])


def _layer(X: Array, attributes: dict[str, Attribute], *, epsilon: float) -> Resolved:
    axis = int(attributes["axis"]) % X.ndim
    return Resolved(
        api="sync",
        input_shape=X.shape,
        dtype="float64",
        parameter_dtype="float64",
        parameter_shape=(X.shape[axis],),
        axes=(axis,),
        momentum=float(attributes.get("momentum", 0.0)),
        epsilon=epsilon,
        center=True,
        scale=True,
        trainable=True,
        fused=False,
        synchronized=False,
        running_var_correction=int(attributes.get("running_var_correction", 0)),
        virtual_batch_size=int(attributes["virtual_batch_size"]),
        renorm=None,
        adjustment=None,
        mask_rule="ignored",
    )
