"""Single nodes of the domain ``bnpass`` with what they must return, and how far a runtime may be from it.

The truth is ``semantics/reference.py`` on the rounded inputs. What is allowed is what the arithmetic can lose, in
double, by the sums of magnitudes (n additions lose at most n·u of them), once for the body and once for the reference,
and then the one rounding to the type of the result. Nothing is tuned.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, product
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from bnpass.ops import DOMAIN, VERSION
from bnpass.ops.bodies import add_bodies
from bnpass.ops.emit import Emit
from bnpass.ops.schemas import ATTRIBUTES, SCHEMAS
from bnpass.semantics.canonical import Canonical
from bnpass.semantics.reference import Forward, State, backward, forward
from bnpass.semantics.resolved import Resolved

Array = NDArray[Any]

U = 2.0**-53
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TYPES = tuple(np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64))
MOMENTUM, EPSILON = (float(np.float32(v)) for v in (0.9, 1e-3))
LOCAL = {"group": "", "collective_id": 0}


@dataclass(frozen=True)
class Expected:
    """One output: its number, the largest allowed distance from it, and its type."""

    value: Array
    allowed: Array
    dtype: np.dtype[Any]

    def why_wrong(self, found: Array) -> str:
        """Return what is wrong with a result, or an empty text."""
        if found.dtype != self.dtype or found.shape != self.value.shape:
            return f"{found.dtype}{list(found.shape)}, not {self.dtype}{list(self.value.shape)}"
        one, other = found.astype(np.float64), np.asarray(self.value, np.float64)
        with np.errstate(invalid="ignore"):  # infinity minus infinity
            off = np.where(np.isfinite(other), np.abs(one - other) / self.allowed, 0.0)
            same = np.isfinite(one) == np.isfinite(other)
        same &= np.where(np.isfinite(other), True, (one == other) | (np.isnan(one) & np.isnan(other)))
        if same.all() and (off <= 1).all():
            return ""
        return f"{np.max(np.where(same, off, np.inf)):.3g} times what rounding permits"


@dataclass(frozen=True)
class Case:
    """A node, its inputs (None: left out), its outputs (None: left out); or what ONNX Runtime must say instead."""

    name: str
    op_type: str
    attributes: dict[str, Any]
    inputs: tuple[Array | None, ...] = field(repr=False)
    outputs: tuple[Expected | None, ...] = field(repr=False)
    is_static: bool = False
    fails: str = ""

    @property
    def feeds(self) -> dict[str, Array]:
        """The graph inputs; bfloat16 goes in as float32, since NumPy has none."""
        named = zip(SCHEMAS[self.op_type].inputs, self.inputs, strict=True)
        return {slot.name: _fed(array) for slot, array in named if array is not None}

    def model(self, opset: int = 18) -> onnx.ModelProto:
        """Return the node as a model with bodies."""
        return built(self, opset)

    def why_wrong(self, results: Sequence[Array]) -> str:
        """Return what is wrong with the results, or an empty text."""
        slots = zip(SCHEMAS[self.op_type].outputs, self.outputs, strict=True)
        wanted = [(slot.name, _seen(expected)) for slot, expected in slots if expected is not None]
        assert len(wanted) == len(results)
        checked = ((n, e.why_wrong(np.asarray(found))) for (n, e), found in zip(wanted, results, strict=True))
        return "; ".join(f"{name}: {why}" for name, why in checked if why)


def built(case: Case, opset: int) -> onnx.ModelProto:
    """Return a model of the case's node alone; bfloat16 comes and goes as float32."""
    op, schema = Emit(), SCHEMAS[case.op_type]
    graph_inputs, operands, results = [], [], []
    for slot, array in zip(schema.inputs, case.inputs, strict=True):
        if array is None:
            operands.append(None)
            continue
        fed = _fed(array)
        shape = fed.shape if case.is_static else [f"{slot.name}_{i}" for i in range(fed.ndim)]
        value = ir.val(slot.name, ir.DataType.from_numpy(fed.dtype), shape)
        graph_inputs.append(value)
        operands.append(op("Cast", value, to=int(ir.DataType.BFLOAT16)) if array.dtype == BFLOAT16 else value)
    names = [slot.name if found is not None else "" for slot, found in zip(schema.outputs, case.outputs, strict=True)]
    assert set(case.attributes) == set(ATTRIBUTES[case.op_type])
    outputs = op.many(case.op_type, operands, names, domain=DOMAIN, **case.attributes)
    for value, expected in zip(outputs, case.outputs, strict=True):
        if expected is None:
            continue
        is_wide = expected.dtype == BFLOAT16
        result = op("Cast", value, name=f"{value.name}_seen", to=int(ir.DataType.FLOAT)) if is_wide else value
        result.dtype = ir.DataType.FLOAT if is_wide else ir.DataType.from_numpy(expected.dtype)
        result.shape = ir.Shape([f"{value.name}_{i}" for i in range(expected.value.ndim)])
        results.append(result)
    imports = {"": opset, DOMAIN: VERSION}
    graph = ir.Graph(graph_inputs, results, nodes=op.nodes, opset_imports=imports, name="node")
    model = ir.Model(graph, ir_version=8)
    add_bodies(model)
    return ir.to_proto(model)


def _fed(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype == BFLOAT16 else array


def _seen(expected: Expected) -> Expected:
    """A bfloat16 result is looked at as float32."""
    return replace(expected, dtype=np.dtype(np.float32)) if expected.dtype == BFLOAT16 else expected


def rounded(value: Array, lost: Array | float, dtype: np.dtype[Any]) -> Expected:
    """Allow twice what double arithmetic loses, and one rounding to the type, by way of float where it is narrower."""
    info = ml_dtypes.finfo(dtype)
    by_type = 0.0 if dtype == np.float64 else float(info.eps) / 2 * (1 + 2.0**-8)
    tiniest = float(info.smallest_subnormal)
    value = np.asarray(value, np.float64)
    return Expected(value, 2 * np.asarray(lost) + by_type * np.abs(value) + tiniest, dtype)


def exactly(value: Array, dtype: np.dtype[Any]) -> Expected:
    value = np.asarray(value, np.float64)
    return Expected(value, np.full(value.shape, 1e-300), dtype)


# --- the truth, op by op ------------------------------------------------------------------------------------------


def layer(shape: tuple[int, ...], axis: int, *, ghost: int = 0, correction: int = 0) -> Resolved:
    return Resolved(
        api="tf_keras",
        input_shape=shape,
        dtype="float64",
        parameter_dtype="float64",
        parameter_shape=(shape[axis],),
        axes=(axis % len(shape),),
        momentum=MOMENTUM,
        epsilon=EPSILON,
        center=True,
        scale=True,
        trainable=True,
        fused=False,
        synchronized=True,
        running_var_correction=correction,
        virtual_batch_size=ghost,
        renorm=None,
        adjustment=None,
        mask_rule="ignored",
    )


@dataclass(frozen=True)
class Losses:
    """What double arithmetic may lose in the statistics of one batch, [G, C], and in their use, by element."""

    deviation: Array
    """Of x − mean."""
    inv_std: Array
    """Relative."""


def losses(form: Canonical, x: Array, mean: Array, inv_std: Array) -> Losses:
    n = form.elements
    largest = np.nan_to_num(np.abs(form.pack(x))).max((0, 2), initial=0.0) + np.abs(mean)
    deviation = (n + 4) * U * largest
    var = np.maximum(1 / inv_std**2 - EPSILON, 0.0)
    lost_var = (n + 8) * U * var + 2 * np.sqrt(var) * deviation + deviation**2
    return Losses(deviation, lost_var * inv_std**2 / 2 + 8 * U)


def normalized(form: Canonical, x: Array, y: Array, mean: Array, inv_std: Array, scale: Array, B: Array) -> Array:
    """Return what may be lost in Y."""
    lost, d = losses(form, x, mean, inv_std), np.abs(form.pack(x) - mean[:, None])
    gain = np.abs(scale) * inv_std
    inner = gain[:, None] * (lost.deviation[:, None] + d * (lost.inv_std[:, None] + 8 * U))
    return form.unpack(inner + 8 * U * (gain[:, None] * d + np.abs(B))) + 8 * U * np.abs(y)


@dataclass(frozen=True)
class Step:
    """One application of a layer: what the node is given and what ``reference`` makes of it, ghost batch by batch.

    In inference mode the reference takes one ghost batch at a time, each with its own statistics.
    """

    x: Array
    axis: int
    state: State
    given_mean: Array
    given_var: Array
    ghost: int
    training: bool
    correction: int

    @property
    def form(self) -> Canonical:
        return Canonical(self.x.shape, (self.axis % self.x.ndim,), self.ghost)

    @property
    def counted(self) -> bool:
        return self.training and self.form.elements * self.form.groups > 0

    def parts(self) -> list[tuple[slice, Forward]]:
        """Return the reference's results and to which samples they belong."""
        x = self.x.astype(np.float64)
        if self.counted:
            resolved = layer(x.shape, self.axis, ghost=self.ghost, correction=self.correction)
            return [(slice(None), forward(resolved, [x], self.state, training=True))]
        groups = self.form.groups
        pieces = [slice(g, None, groups) for g in range(groups)] if self.ghost else [slice(None)]
        means, variances = (
            np.broadcast_to(v.astype(np.float64), (groups, self.form.channels))
            for v in (self.given_mean, self.given_var)
        )
        results = []
        for piece, mean, var in zip(pieces, means, variances, strict=True):
            state = replace(self.state, running_mean=mean, running_var=var)
            results.append((piece, forward(layer(x[piece].shape, self.axis), [x[piece]], state, training=False)))
        return results


def step_of(
    x: Array,
    axis: int,
    *,
    ghost: int = 0,
    training: bool = True,
    correction: int = 0,
    per_ghost: bool = False,
    parameter: np.dtype[Any] | None = None,
    statistic: np.dtype[Any] | None = None,
) -> Step:
    """Return a step with random parameters and statistics."""
    rng = np.random.default_rng([x.ndim, axis % x.ndim, ghost, training])
    C = x.shape[axis]
    narrow = np.dtype(np.float64 if x.dtype == np.float64 else np.float32)
    form = Canonical(x.shape, (axis % x.ndim,), ghost)
    shape = (form.groups, C) if per_ghost else (C,)

    def drawn(low: float, high: float, size: tuple[int, ...], dtype: np.dtype[Any] | None) -> Array:
        return rng.uniform(low, high, size).astype(dtype or narrow)

    mean, var = drawn(-2, 2, shape, statistic), drawn(0.1, 4, shape, statistic)
    scale, B = drawn(0.5, 2, (C,), parameter), drawn(-2, 2, (C,), parameter)
    scale[::2] *= -1
    state = State(scale, B, mean.astype(np.float64), var.astype(np.float64))
    return Step(x, axis, state, mean, var, ghost, training, correction)


def normalization(name: str, step: Step, *, after: Array | None = None, is_static: bool = False) -> Case:
    """Return SyncBatchNormalization on a step."""
    x, form, state = step.x, step.form, step.state
    parts = step.parts()
    y, lost = np.zeros(x.shape), np.zeros(x.shape)
    for piece, found in parts:
        y[piece] = found.ys[0]
        lost[piece] = normalized(found.forms[0], x[piece], found.ys[0], found.mean, found.inv_std, state.scale, state.B)
    C = form.channels
    mean = np.concatenate([f.mean for _, f in parts]) if parts else np.zeros((0, C))
    inv_std = np.concatenate([f.inv_std for _, f in parts]) if parts else np.zeros((0, C))
    worst = losses(form, x, mean, inv_std)
    shape = (form.groups, C) if step.ghost else (C,)
    saved = [
        rounded(mean.reshape(shape), worst.deviation.reshape(shape), np.dtype(np.float64)),
        rounded(inv_std.reshape(shape), (worst.inv_std * inv_std).reshape(shape), np.dtype(np.float64)),
        exactly(np.array(parts[0][1].count if step.counted else 0.0), np.dtype(np.float64)),
    ]
    running = _running(step, parts[0][1], worst) if step.training and parts else _kept(step)
    attributes = {
        "axis": step.axis,
        "epsilon": EPSILON,
        "momentum": MOMENTUM,
        "training_mode": int(step.training),
        "running_var_correction": step.correction,
        "virtual_batch_size": step.ghost,
        **LOCAL,
    }
    inputs = (x, state.scale, state.B, step.given_mean, step.given_var, after)
    outputs = (rounded(y, lost, x.dtype), *running, *saved)
    return Case(name, "SyncBatchNormalization", attributes, inputs, outputs, is_static)


def _kept(step: Step) -> list[Expected | None]:
    given = step.given_mean, step.given_var
    return [exactly(v, v.dtype) if step.training else None for v in given]


def _running(step: Step, found: Forward, worst: Losses) -> list[Expected | None]:
    if not step.counted:
        return _kept(step)
    lost_mean = worst.deviation.max(0) + 8 * U * np.abs(found.state.running_mean)
    lost_var = (2 * worst.inv_std / found.inv_std**2).max(0) * 2 + 8 * U * np.abs(found.state.running_var)
    return [
        rounded(found.state.running_mean, lost_mean + 8 * U * np.abs(step.given_mean), step.given_mean.dtype),
        rounded(found.state.running_var, lost_var + 8 * U * np.abs(step.given_var), step.given_var.dtype),
    ]


def gradient(name: str, step: Step, *, after: Array | None = None, is_static: bool = False) -> Case:
    """Return SyncBatchNormalizationGrad behind a step."""
    x, form = step.x, step.form
    dy = np.random.default_rng([x.ndim, step.axis % x.ndim, 7]).normal(1.0, 2.0, x.shape).astype(x.dtype)
    dx, lost, C = np.zeros(x.shape), np.zeros(x.shape), form.channels
    sums = np.zeros((4, C))  # dscale, dB, and what they may lose
    parts = step.parts()
    for piece, found in parts:
        part, up = x[piece].astype(np.float64), dy[piece].astype(np.float64)
        grads = backward(found, [part], [up])
        dx[piece] = grads.dxs[0]
        inner, lost_s1, lost_s2 = _gradient_losses(found, part, up, step.state.scale)
        lost[piece] = inner
        sums += [grads.dscales[0], grads.dBs[0], (found.inv_std * lost_s2).sum(0), lost_s1.sum(0)]
    shape = (form.groups, C) if step.ghost else (C,)
    mean = np.concatenate([f.mean for _, f in parts]).reshape(shape) if parts else np.zeros(shape)
    inv_std = np.concatenate([f.inv_std for _, f in parts]).reshape(shape) if parts else np.zeros(shape)
    scale = step.state.scale
    outputs = (
        rounded(dx, lost, x.dtype),
        rounded(sums[0], sums[2] + 8 * U * np.abs(sums[0]), scale.dtype),
        rounded(sums[1], sums[3] + 8 * U * np.abs(sums[1]), scale.dtype),
    )
    total = np.array(parts[0][1].count if step.counted else 0.0)
    attributes = {"axis": step.axis, "virtual_batch_size": step.ghost, **LOCAL}
    inputs = (dy, x, scale, mean, inv_std, total, after)
    return Case(name, "SyncBatchNormalizationGrad", attributes, inputs, outputs, is_static)


def _gradient_losses(found: Forward, x: Array, dy: Array, scale: Array) -> tuple[Array, Array, Array]:
    """Return what may be lost in dX, in Σ dY and in Σ dY·(X − mean)."""
    form, mean, s = found.forms[0], found.mean, found.inv_std
    n = form.elements * form.groups
    up, d = np.abs(form.pack(dy)), np.abs(form.pack(x) - mean[:, None])
    largest = np.abs(form.pack(x)).max((0, 2), initial=0.0) + np.abs(mean)
    s1, s2 = up.sum((0, 2)), (up * d).sum((0, 2))
    lost_s1, lost_s2 = (n + 8) * U * s1, (n + 8) * U * s2 + 2 * U * largest * s1
    share = 1 / found.count if found.count else 0.0
    squared = (s * s)[:, None]
    inner = share * (lost_s1[:, None] + squared * (d * lost_s2[:, None] + 2 * U * (largest * s2)[:, None]))
    inner = inner + 16 * U * (up + share * (s1[:, None] + squared * d * s2[:, None]))
    return form.unpack(np.abs(scale) * s[:, None] * inner), lost_s1, lost_s2


def moments(name: str, x: Array, axis: int, *, ghost: int = 0, after: Array | None = None) -> Case:
    """Return SyncBatchMoments."""
    form = Canonical(x.shape, (axis % x.ndim,), ghost)
    packed, G, C = form.pack(x), form.groups, form.channels
    n = form.elements if G else 0
    mean, var = (packed.mean((0, 2)), packed.var((0, 2))) if n else (np.zeros((G, C)), np.zeros((G, C)))
    lost = (n + 4) * U * np.abs(packed).max((0, 2), initial=0.0)
    lost_var = (n + 8) * U * var + 2 * np.sqrt(var) * lost + lost**2
    shape = (G, C) if ghost else (C,)
    double = np.dtype(np.float64)
    outputs = (
        rounded(mean.reshape(shape), lost.reshape(shape), double),
        rounded(var.reshape(shape), lost_var.reshape(shape), double),
        exactly(np.array(float(n)), double),
    )
    return Case(name, "SyncBatchMoments", {"axis": axis, "virtual_batch_size": ghost, **LOCAL}, (x, after), outputs)


def all_reduce(name: str, x: Array, reduction: str, after: Array | None = None) -> Case:
    """Return AllReduce."""
    expected = exactly(x, x.dtype)
    return Case(name, "AllReduce", {"reduction": reduction, **LOCAL}, (x, after), (expected,))


# --- the cases ----------------------------------------------------------------------------------------------------


def data(shape: tuple[int, ...], axis: int, dtype: np.dtype[Any], *, mean: float = 3.0, std: float = 2.0) -> Array:
    """Return numbers whose channels differ in mean and spread."""
    rng = np.random.default_rng([*shape, axis % len(shape)])
    spread = np.resize([1.0, 0.5, 2.0], shape[axis]).reshape(
        [-1 if i == axis % len(shape) else 1 for i in range(len(shape))]
    )
    return (rng.normal(size=shape) * std * spread + mean * (spread - 0.75)).astype(dtype)


def places() -> Iterator[tuple[tuple[int, ...], int]]:
    """Yield shapes of rank 1 to 6 with every axis, spelled both ways."""
    for rank in range(1, 7):
        for axis in range(-rank, rank):
            lengths = [4, 2, 3, 1, 2, 2][:rank]
            lengths[axis] = 3
            yield tuple(lengths), axis


MODES = {
    "train": {"training": True, "correction": 0},
    "train1": {"training": True, "correction": 1},
    "infer": {"training": False},
    "infer by ghost": {"training": False, "per_ghost": True},
}
GHOSTS = (0, 2, 4, 1)


def grid() -> Iterator[Case]:
    """Yield every place with every type, and every ghost batch size with every mode and type in turn."""
    turns = product(MODES, GHOSTS)
    numbers = count()
    options = list(turns)
    for (shape, axis), dtype in product(places(), TYPES):
        number = next(numbers)
        mode, ghost = options[(number * 5 + number // 16) % len(options)]
        ghost = ghost if axis % len(shape) else 0
        step = step_of(data(shape, axis, dtype), axis, ghost=ghost, **_mode(mode, ghost))
        after = np.arange(3) if number % 5 == 0 else None
        where = f"{dtype} {list(shape)} axis {axis} ghost {ghost}"
        yield normalization(f"norm {where} {mode}", step, after=after, is_static=number % 3 == 0)
        if number % 2:
            yield gradient(f"grad {where} {mode}", step, after=after, is_static=number % 3 == 0)
        else:
            yield moments(f"moments {where}", data(shape, axis, dtype), axis, ghost=ghost, after=after)


def _mode(mode: str, ghost: int) -> dict[str, Any]:
    return {**MODES[mode], **({"per_ghost": False} if not ghost else {})}


def reductions() -> Iterator[Case]:
    """Yield AllReduce on every type and reduction; a mean of integers is not defined."""
    shapes = {"sum": (3,), "mean": (), "max": (2, 0, 3), "min": (2, 3, 1)}
    for dtype, (reduction, shape) in product((*TYPES, np.dtype(np.int64)), shapes.items()):
        if dtype != np.int64 or reduction != "mean":
            x = np.asarray(np.random.default_rng(3).normal(0, 100, shape)).astype(dtype)
            after = np.zeros(2) if shape else None
            yield all_reduce(f"all {reduction} {dtype} {list(shape)}", x, reduction, after)


def edges() -> Iterator[Case]:
    """Yield what is easily forgotten."""
    for dtype in TYPES:
        for shape, axis, ghost in (
            ((0, 3), 1, 0),
            ((4, 3, 0), 1, 2),
            ((0, 3, 2), 1, 2),
            ((0, 2, 3), -1, 0),
            ((3, 0), 0, 0),
        ):
            for training in (True, False):
                step = step_of(np.zeros(shape, dtype), axis, ghost=ghost, training=training)
                yield normalization(f"empty norm {dtype} {list(shape)} ghost {ghost} {training}", step)
                yield gradient(f"empty grad {dtype} {list(shape)} ghost {ghost} {training}", step)
            yield moments(
                f"empty moments {dtype} {list(shape)} ghost {ghost}", np.zeros(shape, dtype), axis, ghost=ghost
            )
    yield from _numbers()
    yield from _mixed_types()


def _numbers() -> Iterator[Case]:
    single, double, half = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16)
    for dtype, mean in ((single, 1e5), (double, 1e5), (double, 1e8)):
        x = data((64, 3, 5), 1, dtype, mean=mean, std=1.0)
        yield normalization(f"far from zero {dtype} {mean:g}", step_of(x, 1, correction=1))
        yield gradient(f"far from zero grad {dtype} {mean:g}", step_of(x, 1))
        yield moments(f"far from zero moments {dtype} {mean:g}", x, 1)
    x = data((16, 3), 1, half, mean=0, std=1000.0)  # a variance that float16 cannot hold
    yield normalization("wide float16", step_of(x, 1))
    yield gradient("wide float16 grad", step_of(x, 1))
    yield moments("sums beyond float16", np.full((40, 3), 60000, half), 1)
    yield normalization("constant channels", step_of(np.full((4, 3), 7, single), 1, correction=1))
    yield normalization("one element", step_of(data((1, 3), 1, single), 1, correction=1))
    yield normalization("one element of a ghost", step_of(data((4, 3), 1, single), 1, ghost=1, correction=1))
    yield normalization("one channel", step_of(data((4, 1), 1, single), 1))
    yield normalization("no channel", step_of(np.zeros((4, 0), np.float32), 1))
    yield gradient("no channel grad", step_of(np.zeros((4, 0), np.float32), 1))
    poisoned = data((4, 3), 1, single)
    poisoned[1, 1] = np.nan
    yield normalization("NaN stays in its channel", step_of(poisoned, 1))
    yield normalization("NaN stays in its ghost batch", step_of(poisoned, 1, ghost=2))
    yield normalization("NaN, inference", step_of(poisoned, 1, training=False))


def _mixed_types() -> Iterator[Case]:
    double = np.dtype(np.float64)
    for dtype in TYPES[:3]:
        for training in (True, False):
            step = step_of(data((4, 3), 1, dtype), 1, training=training, parameter=double, statistic=double)
            yield normalization(f"{dtype} with double parameters {training}", step)
            yield gradient(f"{dtype} with double parameters grad {training}", step)


BAD_AXIS = "Gather node. Name:'[^']*body/C'"
BAD_GHOST = "Gather node. Name:'[^']*body/G'"
BAD_LENGTH = "Reshape node|op_type:Equal|Op .Equal"


def misfits() -> Iterator[Case]:
    """Yield nodes that must not return a number, and what ONNX Runtime says of them."""
    for shape, axis, ghost in (
        *(((4, 3), 1, b) for b in (3, 8, 5, -1, -2, -4)),
        *(((6, 3), 1, 4), ((3, 3), 1, 2), ((1, 3), 1, 2), ((1, 3), 1, -1), ((4, 2, 3), 2, 8)),
        *(
            ((3, 0, 3), 2, 2),
            ((0, 3), 1, -1),
            ((3, 4), 0, 1),
            ((3, 4), 0, 3),
            ((3, 4), -2, 2),
            ((3,), 0, 1),
            ((3,), 0, 3),
        ),
    ):
        yield from _each(f"ghost {ghost} of {list(shape)}", shape, BAD_GHOST, axis=axis, virtual_batch_size=ghost)
    for axis in (2, -3, 5):
        yield from _each("rank 2,", (4, 3), BAD_AXIS, axis=axis)
    yield from _wrong_lengths()


def _each(name: str, shape: tuple[int, ...], fails: str, **changes: Any) -> Iterator[Case]:
    """Yield the three operators that have an axis, with another X and other attributes."""
    x = np.ones(shape, np.float32)
    step = step_of(np.zeros((4, 3), np.float32), 1)
    for case in (normalization("", step), gradient("", step), moments("", step.x, 1)):
        inputs = [x if old is step.x or old is case.inputs[0] else old for old in case.inputs]
        attributes = {**case.attributes, **changes}
        name_ = f"{name} axis {changes['axis']} {case.op_type}"
        yield replace(case, name=name_, inputs=tuple(inputs), attributes=attributes, fails=fails)


def _wrong_lengths() -> Iterator[Case]:
    single = np.dtype(np.float32)
    step = step_of(data((4, 3), 1, single), 1, ghost=2)
    for training, length in product((True, False), (1, 2, 4)):
        good = normalization("", replace(step, training=training))
        for slot, name in ((1, "scale"), (2, "B"), (3, "input_mean"), (4, "input_var")):
            yield _with_input(good, slot, np.ones(length, single), f"{name} of length {length}, training {training}")
    yield _with_input(normalization("", step), 3, np.ones((2, 3), single), "input_mean per ghost batch in training")
    good = gradient("", step)
    for shape in ((3,), (1, 3), (4, 3), (2, 1)):
        yield _with_input(good, 3, np.ones(shape), f"saved_mean {list(shape)}")
        yield _with_input(good, 4, np.ones(shape), f"saved_inv_std {list(shape)}")
    for shape in ((3, 4), (12,), (1, 3), (4, 1), (4, 3, 1), (2, 2, 3), (8, 3)):
        yield _with_input(good, 0, np.ones(shape, single), f"dY {list(shape)}")
    yield _with_input(good, 2, np.ones(1, single), "grad, scale of length 1")


def _with_input(case: Case, slot: int, array: Array, name: str) -> Case:
    inputs = (*case.inputs[:slot], array, *case.inputs[slot + 1 :])
    return replace(case, name=name, inputs=inputs, fails=BAD_LENGTH)


def all_cases() -> list[Case]:
    """Return all of them; names are unique."""
    return [*grid(), *reductions(), *edges(), *misfits()]
