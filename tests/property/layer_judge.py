"""The statements about layers; each takes a case, and returns how near it came to what roundings permit."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from bnpass.collectives.check import check_order
from bnpass.collectives.order import order
from bnpass.expansion.options import ExpandOptions
from bnpass.layers.model import layer_model
from bnpass.ops.bodies import add_bodies
from bnpass.ops.schemas import register
from bnpass.passes import CoalesceAllReduce, ExpandSyncBatchNorm
from bnpass.semantics.reference import Forward, State, backward, forward
from bnpass.semantics.resolved import Resolved
from bnpass.semantics.spec import BatchNormSpec, SpecError
from bnpass.verification.replicas import run_replicas
from tests.property.layer_bounds import DOUBLE, LOST, SAFETY, Arithmetic, Bounds, unit
from tests.property.specs import FLOATS, LIMITS, Feed, LayerCase
from tests.support.float64 import Array

STATISTICS = ("running_mean", "running_var", "running_stddev", "running_renorm_mean", "running_renorm_stddev")
OUTPUTS = ("Y", *STATISTICS, "dX", "dscale", "dB", "dadjust_scale", "dadjust_bias")
Results = Mapping[str, Array]


class WrongError(AssertionError):
    """A statement does not hold."""


# --- what is right --------------------------------------------------------------------------------------------------


def state_of(layer: Resolved, feed: Feed) -> State:
    """Return the state before the step in float64."""
    given = {name: value.astype(np.float64) for name, value in feed.items() if value.dtype != bool}
    return State(
        given.get("scale", np.ones(layer.channels)),
        given.get("B", np.zeros(layer.channels)),
        given["input_mean"],
        given["input_var"],
        given.get("input_stddev"),
        given.get("renorm_mean"),
        given.get("renorm_stddev"),
    )


def reference(case: LayerCase, arithmetic: Arithmetic) -> tuple[list[Results], list[Results]]:
    """Return the outputs of each replica by the reference, and how far they may be off."""
    wanted, allowed = [], []
    together = [list(case.feeds)] if case.together else [[feed] for feed in case.feeds]
    layer = case.layer if case.together else dataclasses.replace(case.layer, synchronized=False)
    for feeds in together:
        right, bound = _step(case, layer, feeds, arithmetic)
        wanted += right
        allowed += bound
    return wanted, allowed


def _step(
    case: LayerCase, layer: Resolved, feeds: Sequence[Feed], arithmetic: Arithmetic
) -> tuple[list[Results], list[Results]]:
    xs, dys = ([feed[name].astype(np.float64) for feed in feeds] for name in ("X", "dY"))
    pairs = None
    if "adjust_scale" in feeds[0]:
        pairs = [tuple(feed[n].astype(np.float64) for n in ("adjust_scale", "adjust_bias")) for feed in feeds]
    state = state_of(layer, feeds[0])
    step = forward(
        layer,
        xs,
        state,
        training=case.training,
        symbolic=case.built is None,
        masks=[feed["mask"].astype(np.float64) for feed in feeds] if case.masked else None,
        adjustments=pairs,  # type: ignore[arg-type]
        clip={name: float(feeds[0][name]) for name in LIMITS if name in feeds[0]},
    )
    grads, bounds = backward(step, xs, dys), Bounds(layer, state, step, xs, dys, arithmetic)
    statistics, off = _statistics(case, layer, step), bounds.state()
    right, allowed = [], []
    errors = bounds.ys(), bounds.dxs(), bounds.dscales(), bounds.biases()
    for i in range(len(feeds)):
        values = (step.ys[i], grads.dxs[i], grads.dscales[i], grads.dBs[i])
        kept = [True, True, layer.scale, layer.center]
        names = [n for n, keep in zip(("Y", "dX", "dscale", "dB"), kept, strict=True) if keep]
        of = {n: k for k, n in enumerate(("Y", "dX", "dscale", "dB"))}
        result = statistics | {n: np.asarray(values[of[n]]) for n in names}
        error = {n: off[n] for n in statistics} | {n: np.asarray(errors[of[n]][i]) for n in names}
        if pairs is not None:
            parts = (grads.das[i], grads.dcs[i]), bounds.adjustments()[i]
            for k, name in enumerate(("dadjust_scale", "dadjust_bias")):
                along = tuple(j for j, n in enumerate(pairs[i][k].shape) if n == 1)
                result[name], error[name] = (part[k].sum(along, keepdims=True) * case.training for part in parts)
        right.append(result)
        allowed.append(error)
    return right, allowed


def _statistics(case: LayerCase, layer: Resolved, step: Forward) -> Results:
    """Return the statistics that the model has as outputs, which its mode decides, as they are after the step."""
    mode, after = case.built is not False, step.state
    found: dict[str, Any] = {}
    if layer.updates_statistics(mode):
        found |= {"running_mean": after.running_mean, "running_var": after.running_var}
        found |= {} if layer.renorm is None else {"running_stddev": after.running_stddev}
    if layer.renorm is not None and layer.updates_renorm(mode):
        found |= {"running_renorm_mean": after.renorm_mean, "running_renorm_stddev": after.renorm_stddev}
    return found


# --- what is judged -------------------------------------------------------------------------------------------------


def composed(case: LayerCase) -> ir.Model:
    """Return the model of the layer and its gradient, of our operators."""
    return layer_model(
        case.layer, training=case.built, group=case.group, mask=case.masked, gradient=True, opset=case.opset
    )


def uniform(case: LayerCase) -> tuple[str, ...]:
    """Return the inputs that all replicas get the same of, so that they may decide."""
    return ("training",) if case.built is None else ()


def expanded(case: LayerCase, *, coalesce: bool = True) -> ir.Model:
    """Return the expanded model."""
    model = composed(case)
    ExpandSyncBatchNorm(ExpandOptions(coalesce=coalesce, uniform=uniform(case)))(model)
    return model


def runtime(model: ir.Model, feed: Feed) -> Results:
    """Run one replica in ONNX Runtime on the CPU."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    proto = ir.to_proto(model)
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in proto.graph.output]
    return dict(zip(names, session.run(names, dict(feed)), strict=True))


def run(case: LayerCase, model: ir.Model) -> list[Results]:
    """Run all replicas: one in ONNX Runtime, several (and bfloat16, of which NumPy has none for it) in ONNX's own."""
    names = [value.name for value in model.graph.inputs]
    if len(case.feeds) == 1 and case.layer.dtype != "bfloat16":
        return [runtime(model, {str(n): case.feeds[0][str(n)] for n in names})]
    return list(run_replicas(model, [{str(n): feed[str(n)] for n in names} for feed in case.feeds]))


# --- the statements -------------------------------------------------------------------------------------------------


def survives_json(spec: BatchNormSpec, layer: Resolved) -> None:
    """A spec that is written and read is the same spec, and means the same; what cannot be written is refused."""
    if spec.adjustment is not None:
        try:
            spec.to_json()
        except SpecError:
            spec = dataclasses.replace(spec, adjustment=None, fused=None if spec.api == "sync" else False)
        else:
            raise WrongError("a function cannot be plain data")
        layer = spec.resolve(layer.input_shape, layer.dtype)
    read = BatchNormSpec.from_json(spec.to_json())
    if read.to_json() != spec.to_json() or _arguments(read) != _arguments(spec):
        raise WrongError("the spec is another one afterwards")
    if read.resolve(layer.input_shape, layer.dtype) != layer:
        raise WrongError("the spec means something else afterwards")


def _arguments(spec: BatchNormSpec) -> dict[str, Any]:
    """Return the arguments; JSON knows no tuples, and Keras makes no difference."""
    values = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
    return values | {"axis": np.array(spec.axis).tolist()}


def bodies_are_right(case: LayerCase) -> float:
    """The composed layer, its operators by their bodies, computes what the reference says."""
    model = composed(case)
    add_bodies(model)
    return agree(case, run(case, model), reference(case, Arithmetic.of_bodies(case.layer, masked=case.masked)))


def expansion_is_right(case: LayerCase) -> float:
    """The expanded layer computes what the reference says, and replicas that share statistics have the same bits."""
    found = run(case, expanded(case))
    worst = agree(case, found, reference(case, Arithmetic.of_expansion(case.layer, replicas=bool(case.group))))
    if case.together:
        for name in STATISTICS:
            if name in found[0] and len({one[name].tobytes() for one in found}) > 1:
                raise WrongError(f"replicas disagree about {name}")
    return worst


def graphs_are_valid(case: LayerCase) -> None:
    """What comes out is valid ONNX, expanded at once or step by step, and its collectives have one order."""
    register()
    for coalesce in (True, False):
        model = expanded(case, coalesce=coalesce)
        valid(model, uniform(case))
    CoalesceAllReduce()(model)
    order(model, uniform(case))
    valid(model, uniform(case))


def valid(model: ir.Model, uniform: Sequence[str]) -> None:
    """Assert that ONNX's full checker takes a model, and that its collectives are in one order."""
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    check_order(model, uniform)


def agree(case: LayerCase, found: Sequence[Results], right: tuple[list[Results], list[Results]]) -> float:
    """Hold every output of every replica against the reference; return the largest error over what is allowed."""
    worst = 0.0
    for rank, (got, wanted, allowed) in enumerate(zip(found, *right, strict=True)):
        if list(got) != [name for name in OUTPUTS if name in wanted]:
            raise WrongError(f"the outputs are {list(got)}, not {list(wanted)}")
        for name, want in wanted.items():
            ratio = _ratio(f"{name} of replica {rank}", got[name], want, allowed[name], dtype_of(case.layer, name))
            worst = max(worst, ratio)
    return worst


def dtype_of(layer: Resolved, name: str) -> str:
    """Return the type of an output."""
    return layer.dtype if name in ("Y", "dX") else layer.parameter_dtype


def _ratio(what: str, got: Array, want: Array, allowed: Array, dtype: str) -> float:
    kind = np.dtype(FLOATS[dtype])
    if got.dtype != kind or got.shape != want.shape:
        raise WrongError(f"{what} is {got.dtype}{got.shape}, not {dtype}{want.shape}")
    if not np.isfinite(want).all():
        raise WrongError(f"{what} has no finite reference: the case is none")
    limits = ml_dtypes.finfo(kind)
    with np.errstate(all="ignore"):
        bound = SAFETY * (allowed + unit(dtype) * np.abs(want)) + float(limits.smallest_normal)
        fits = np.abs(want) + bound < float(limits.max)
        ratio = np.abs(got.astype(np.float64) - want) / bound
    ratio = np.where(np.isnan(ratio), np.inf, ratio)[fits & np.isfinite(bound)]
    highest = float(ratio.max(initial=0.0))
    if not highest <= 1:
        raise WrongError(f"{what} is off by {highest:.4g} times what roundings permit")
    return highest


# --- identities -----------------------------------------------------------------------------------------------------


def moving_statistics_do_not_matter(case: LayerCase) -> None:
    """In training without renorm, Y and the gradients do not depend on momentum, moving mean and moving variance."""
    other = dataclasses.replace(
        case,
        layer=dataclasses.replace(case.layer, momentum=0.25 if case.layer.momentum != 0.25 else 0.75),
        feeds=tuple(_with_other_state(feed) for feed in case.feeds),
    )
    for first, second in zip(run(case, expanded(case)), run(other, expanded(other)), strict=True):
        same_bits(first, second, ("Y", "dX", "dscale", "dB"))


def _with_other_state(feed: Feed) -> Feed:
    return feed | {name: np.asarray(feed[name] * 3 + 7, feed[name].dtype) for name in ("input_mean", "input_var")}


def same_bits(first: Results, second: Results, names: Sequence[str]) -> None:
    """Assert that two runs agree to the last bit."""
    for name in names:
        if name in first and first[name].tobytes() != second[name].tobytes():
            raise WrongError(f"{name} changes")


def gradients_are_orthogonal(case: LayerCase) -> float:
    """Σ dX = 0, and Σ dX·x̂ = epsilon·inv_std³·Σ dY·scale·x̂, per channel over all replicas."""
    how = Arithmetic.of_expansion(case.layer, replicas=bool(case.group))
    _, allowed = reference(case, how)
    found = run(case, expanded(case))
    xs = [feed["X"].astype(np.float64) for feed in case.feeds]
    state = state_of(case.layer, case.feeds[0])
    step = forward(case.layer, xs, state, training=True)
    sums, crossed, bound, crossed_bound = 0.0, 0.0, 0.0, 0.0
    for i, form in enumerate(step.forms):
        dX, dY = form.pack(found[i]["dX"].astype(np.float64)), form.pack(case.feeds[i]["dY"].astype(np.float64))
        x_hat = (form.pack(xs[i]) - step.mean[:, None]) * step.inv_std[:, None]
        off = form.pack(allowed[i]["dX"]) + unit(case.layer.dtype) * np.abs(dX) + DOUBLE
        kept = case.layer.epsilon * step.inv_std[:, None] ** 3 * state.scale
        sums, crossed = sums + dX.sum((0, 2)), crossed + ((dX - kept * dY) * x_hat).sum((0, 2))
        bound, crossed_bound = bound + off.sum((0, 2)), crossed_bound + (off * np.abs(x_hat)).sum((0, 2))
    ratio = max(
        float(np.max(np.abs(total) / (SAFETY * allowed_total + LOST), initial=0.0))
        for total, allowed_total in ((sums, bound), (crossed, crossed_bound))
    )
    if not ratio <= 1:
        raise WrongError(f"dX is off the directions it cannot have by {ratio:.4g} times what roundings permit")
    return ratio


def _changed(case: LayerCase, change: Callable[[Feed], Feed], **layer: Any) -> tuple[LayerCase, list[Results]]:
    other = dataclasses.replace(
        case,
        layer=dataclasses.replace(case.layer, **layer),
        feeds=tuple(feed | change(feed) for feed in case.feeds),
    )
    return other, run(other, expanded(other))


def a_shift_does_not_matter(case: LayerCase, shift: int) -> float:
    """X plus a number per channel gives the same Y, dX and dscale, and a mean that is shifted."""
    axes = case.layer.axes

    def shifts(feed: Feed, by: int) -> Feed:
        """Round X to multiples of 1/32 below 8, so that the sum is exact."""
        x = feed["X"].astype(np.float64)
        along = [n if i in axes else 1 for i, n in enumerate(x.shape)]
        per_channel = by * (1 + np.arange(case.layer.channels) % 3).reshape(along)
        return {"X": np.asarray(np.round(np.clip(x, -8, 8) * 32) / 32 + per_channel, feed["X"].dtype)}

    plain, first = _changed(case, lambda feed: shifts(feed, 0))
    moved, second = _changed(case, lambda feed: shifts(feed, shift))
    how = Arithmetic.of_expansion(case.layer, replicas=bool(case.group))
    allowed = [reference(one, how)[1] for one in (plain, moved)]
    worst = 0.0
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        for name in ("Y", "dX", "dscale", "dB"):
            if name in a:
                bound = allowed[0][i][name] + allowed[1][i][name]
                worst = max(worst, _ratio(name, b[name], a[name].astype(np.float64), bound, dtype_of(case.layer, name)))
    return worst


def a_power_of_two_does_not_matter(case: LayerCase, exponent: int) -> None:
    """With epsilon 0, 2^k·X gives the same bits of Y and dscale, and dX divided by 2^k: nothing is rounded otherwise.

    With one element per channel there is no variance to divide by.
    """
    if sum(feed["X"].size for feed in case.feeds) <= case.layer.channels:
        return
    factor = 2.0**exponent

    def scaled(feed: Feed) -> Feed:
        return {"X": np.asarray(feed["X"] * factor, feed["X"].dtype)}

    _, first = _changed(case, lambda _: {}, epsilon=0.0)
    _, second = _changed(case, scaled, epsilon=0.0)
    for a, b in zip(first, second, strict=True):
        same_bits(a, b | {"dX": np.asarray(b["dX"] * factor, b["dX"].dtype)}, ("Y", "dX", "dscale", "dB"))
