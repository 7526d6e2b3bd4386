"""The formulas of docs/operators.md as ONNX nodes, for one replica and in double, whatever the type of X."""

from collections.abc import Callable, Sequence

import onnx_ir as ir

from bnpass.ops import DOMAIN
from bnpass.ops.body_form import BodyWriter, Form, form_of, over_groups, sums
from bnpass.ops.emit import Emit
from bnpass.ops.schemas import SCHEMAS


def _by_reference(*names: str) -> dict[str, ir.Attr]:
    """Hand attributes of the function on to a node, unseen."""
    types = {name: a.default_value.type for schema in SCHEMAS.values() for name, a in schema.attributes.items()}
    return {name: ir.RefAttr(name, name, ir.AttributeType(types[name])) for name in names}


def _all_reduce(op: BodyWriter, message: ir.Value, after: ir.Value, name: str) -> ir.Value:
    shared = _by_reference("group", "collective_id")
    return op("AllReduce", message, after, name=name, domain=DOMAIN, reduction="sum", **shared)


def _write_all_reduce(op: BodyWriter, X: ir.Value, after: ir.Value) -> Sequence[ir.Value]:  # noqa: ARG001
    """One replica: every reduction is X itself."""
    return [op("Identity", X)]


def _write_moments(op: BodyWriter, X: ir.Value, after: ir.Value) -> Sequence[ir.Value]:
    """Write mean = Σ x / M, then var = Σ (x − mean)² / M: two messages, so that double X loses nothing.

    M = 0 gives 0 / 1 for both.
    """
    form = form_of(op, X)
    packed = form.pack(op, X)
    local = op.join(op.double(form.elements), sums(op, packed, form), name="local_count_and_sums")
    first = _all_reduce(op, local, after, "count_and_sums")
    count = op.scalar(op.part(first, op.number(0), op.number(1)), "count")
    divisor = op.at_least_one(count)
    mean = op("Div", op.part(first, op.number(1)), divisor, name="mean")
    centred = op("Sub", packed, form.spread(op, mean), name="centred")
    second = _all_reduce(op, sums(op, op("Mul", centred, centred), form, "local_squares"), first, "squares")
    var = op("Div", second, divisor, name="var")
    return [op.reshape(mean, form.statistics), op.reshape(var, form.statistics), count]


def _write_normalization(
    op: BodyWriter,
    X: ir.Value,
    scale: ir.Value,
    B: ir.Value,
    input_mean: ir.Value,
    input_var: ir.Value,
    after: ir.Value,
) -> Sequence[ir.Value]:
    """Write Y = scale·(X − mean) / √(var + epsilon) + B; inference mode counts no elements, as an empty batch does."""
    form = form_of(op, X)
    is_training = op("Equal", op.integer_attribute("training_mode"), op.number(1), name="is_training")
    batch_mean, batch_var, count = _batch_statistics(op, is_training, X, after)
    counted = op("Greater", count, op.real(0.0), name="counted")
    given_mean = _given(op, input_mean, form, is_training)
    given_var = _given(op, input_var, form, is_training)
    mean = op("Expand", op("Where", counted, batch_mean, given_mean), form.table, name="mean")
    var = op("Expand", op("Where", counted, batch_var, given_var), form.table, name="var")

    inv_std = op("Reciprocal", op("Sqrt", op("Add", var, op.real_attribute("epsilon"))), name="inv_std")
    gain = form.spread(op, op("Mul", form.row(op, scale), inv_std))
    shift = form.spread(op, op("Expand", form.row(op, B), form.table))
    centred = op("Sub", form.pack(op, X), form.spread(op, mean), name="centred")
    unbiased = op("Mul", var, _correction(op, count))
    return [
        form.unpack(op, op("Add", op("Mul", gain, centred), shift), X),
        _running(op, input_mean, given_mean, mean, counted, form),
        _running(op, input_var, given_var, unbiased, counted, form),
        op.reshape(mean, form.statistics),
        op.reshape(inv_std, form.statistics),
        count,
    ]


def _batch_statistics(op: BodyWriter, is_training: ir.Value, X: ir.Value, after: ir.Value) -> Sequence[ir.Value]:
    """Write mean, var and count of the batch, or three zeros: in inference mode nobody is asked for statistics."""
    names = ("batch_mean", "batch_var", "count")
    batch, nothing = Emit("batch"), Emit("nothing")
    shared = _by_reference("axis", "group", "virtual_batch_size", "collective_id")
    found = batch.many("SyncBatchMoments", (X, after), names, domain=DOMAIN, **shared)
    zeros = [nothing.floats(0.0) for _ in names]
    return op.many(
        "If",
        [is_training],
        names,
        then_branch=ir.Graph([], found, nodes=batch.nodes, name="batch"),
        else_branch=ir.Graph([], zeros, nodes=nothing.nodes, name="nothing"),
    )


def _given(op: BodyWriter, statistic: ir.Value, form: Form, is_training: ir.Value) -> ir.Value:
    """Write an input statistic as [1, C], or as [G, C] if inference mode is given one per ghost batch."""
    is_row = op("Or", is_training, op("Equal", op("Size", statistic), form.channels))
    rows = op("Where", is_row, op.number(1), form.groups, name="rows")
    return op.reshape(op.double(statistic), op.join(rows, form.channels))


def _correction(op: BodyWriter, count: ir.Value) -> ir.Value:
    """Write M / max(M − running_var_correction, 1)."""
    ddof = op.double(op.integer_attribute("running_var_correction"))
    return op("Div", count, op.at_least_one(op("Sub", count, ddof)), name="correction")


def _running(
    op: BodyWriter, statistic: ir.Value, before: ir.Value, batch: ir.Value, counted: ir.Value, form: Form
) -> ir.Value:
    """Write momentum·before + (1 − momentum)·average over ghost batches; ``before`` where no element was counted."""
    momentum = op.real_attribute("momentum")
    average = op("Div", over_groups(op, batch, form), op.at_least_one(op.double(form.groups)), name="average")
    kept = op("Mul", momentum, before)
    taken = op("Mul", op("Sub", op.real(1.0), momentum), average)
    after = op("Where", counted, op("Add", kept, taken), before)
    return op("CastLike", op.reshape(after, op("Shape", statistic)), statistic)


def _write_gradient(
    op: BodyWriter,
    dY: ir.Value,
    X: ir.Value,
    scale: ir.Value,
    saved_mean: ir.Value,
    saved_inv_std: ir.Value,
    count: ir.Value,
    after: ir.Value,
) -> Sequence[ir.Value]:
    """Write dX = scale·s·(dY − S1/M − (X − mean)·s²·S2/M), S1 = Σ dY, S2 = Σ dY·(X − mean), s = saved_inv_std.

    Where M = 0 the statistics are constants, and the two terms with M are 0.
    """
    form = form_of(op, X)
    upstream = op.reshape(op.double(dY), form.same(op, dY), "upstream")
    centred = op("Sub", form.pack(op, X), form.spread(op, saved_mean), name="centred")
    s1, s2 = sums(op, upstream, form, "s1"), sums(op, op("Mul", upstream, centred), form, "s2")
    total = _all_reduce(op, op.join(s1, s2), after, "both_sums")

    half = op("Mul", form.groups, form.channels)
    counted, divisor = op("Greater", count, op.real(0.0), name="counted"), op.at_least_one(count)
    shares = op("Where", counted, op("Div", total, divisor), op.real(0.0), name="shares")
    mean_s1 = form.spread(op, op.part(shares, op.number(0), half))
    mean_s2 = form.spread(op, op.part(shares, half))

    s = op.reshape(saved_inv_std, form.table, "s")
    along = op("Mul", centred, op("Mul", form.spread(op, op("Mul", s, s)), mean_s2))
    gain = form.spread(op, op("Mul", form.row(op, scale), s))
    dX = op("Mul", gain, op("Sub", op("Sub", upstream, mean_s1), along))
    return [
        form.unpack(op, dX, X),
        op("CastLike", over_groups(op, op("Mul", s, op.reshape(s2, form.table)), form), scale),
        op("CastLike", over_groups(op, op.reshape(s1, form.table), form), scale),
    ]


WRITERS: dict[str, Callable[..., Sequence[ir.Value]]] = {
    "AllReduce": _write_all_reduce,
    "SyncBatchMoments": _write_moments,
    "SyncBatchNormalization": _write_normalization,
    "SyncBatchNormalizationGrad": _write_gradient,
}
"""What writes the nodes of a body and returns its outputs, given its inputs."""
