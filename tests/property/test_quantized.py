"""Random quantized ops with a batch normalization behind them, of every type, sign and zero point.

Both models are evaluated in float64 from their integers. They may differ by one rounding of each scale and of a float
bias, and by half a unit of a quantized bias; what cannot be folded so has to be refused, and nothing else.
"""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bnpass.errors import RefusalId
from bnpass.verification import windows
from bnpass.verification.float64 import Float64Model
from tests.property.test_fold_properties import examples
from tests.support.build import batch_norm, model
from tests.support.judge import Result, flag_is_honest, fold, is_valid, nothing_dangles, second_fold_changes_nothing

Array = NDArray[Any]
F = np.float32

KINDS = ("Conv", "ConvTranspose", "Gemm", "Gemm transB", "MatMul")
TYPES = {
    "int8": (np.int8, -128, 127), "uint8": (np.uint8, 0, 255), "int16": (np.int16, -32768, 32767),
    "int4": (ml_dtypes.int4, -8, 7), "uint4": (ml_dtypes.uint4, 0, 15),
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """One quantized op with a batch normalization behind it.

    Attributes:
        kind: The op.
        group: Its groups.
        q: Integers, as int.
        zero: Zero points of the output channels as they lie in the weight: [1] or [axis].
        scale: Scales, likewise.
        axis: Axis of either.
        bias: None, "float" or "int32".
        constants: What stands in the model.
        graph: Its text.
    """

    kind: str
    group: int
    q: Array
    zero: Array
    scale: Array
    axis: int
    bias: str | None
    constants: dict[str, Array]
    graph: str


def _layer(kind: str, seed: int, *, has_lowest: bool) -> Layer:
    rng = np.random.default_rng(seed)
    group = int(rng.integers(1, 4)) if kind.startswith("Conv") else 1
    per_in, per_out = (int(n) for n in rng.integers(1, 4, 2))
    into, out = per_in * group, per_out * group
    shape, axis = {
        "Conv": ((out, per_in, 2, 3), 0), "ConvTranspose": ((into, per_out, 2, 3), 1),
        "Gemm transB": ((out, into), 0),
    }.get(kind, ((into, out), 1))  # fmt: skip
    name = list(TYPES)[int(rng.integers(len(TYPES)))]
    dtype, low, high = TYPES[name]
    q = rng.integers(low + (not has_lowest), high + 1, shape)
    if has_lowest:
        q.reshape(-1)[rng.integers(q.size)] = low
    per_channel, zeros = bool(rng.integers(2)), int(rng.integers(4))
    count = shape[axis] if per_channel else 1
    scale = rng.uniform(1e-3, 1e-1, count).astype(F)
    middle = (low + high + 1) // 2
    zero = rng.integers(low, high + 1, count) if zeros == 3 else np.full(count, 0 if zeros == 2 else middle)
    constants = {"Q": q.astype(dtype), "a": scale if per_channel else scale.reshape(())}
    if zero.any() or zeros:
        constants["z"] = (zero if per_channel else zero.reshape(())).astype(dtype)
    bias = [None, "float", "int32"][int(rng.integers(3))] if kind != "MatMul" else None
    text = f"[dq] w = DequantizeLinear <axis = {axis}> (Q, a{', z' if 'z' in constants else ''}) "
    if bias == "float":
        constants["c"] = rng.standard_normal(out).astype(F)
    elif bias == "int32":
        constants["B"] = rng.integers(-(10**5), 10**5, out).astype(np.int32)
        constants["ab"] = rng.uniform(1e-4, 1e-3, out if rng.integers(2) else ()).astype(F)
        text += "[dqb] c = DequantizeLinear <axis = 0> (B, ab) "
    op, _, flag = kind.partition(" ")
    attributes = {"Conv": f"<group = {group}>", "ConvTranspose": f"<group = {group}>", "Gemm": ""}.get(op, "")
    attributes = "<transB = 1>" if flag else attributes
    text += f"[op] t = {op} {attributes} (x, w{', c' if bias else ''}) "
    length = {"Conv": ", 4, 3", "ConvTranspose": ", 6, 7"}.get(op, "")
    data = f"2, {into}{', 5, 5' if length else ''}"
    graph = (
        f"g (float[{data}] x) => (float[2, {out}{length}] y) {{ {text}[bn] y = BatchNormalization (t, s, b, m, v) }}"
    )
    norm = batch_norm(out, seed)
    if not rng.integers(3):
        norm["s"] = np.abs(norm["s"])
    if not rng.integers(4):
        norm["s"][rng.integers(out)] = 0
    return Layer(kind, group, q, zero, scale, axis, bias, {**constants, **norm}, graph)


def _is_refused(layer: Layer) -> bool:
    """Tell, from the definition, whether there are no integers and scales for it."""
    c = layer.constants
    factor = c["s"].astype(np.float64) / np.sqrt(c["v"].astype(np.float64) + np.float64(F(1e-5)))
    axis = layer.axis
    if layer.kind == "ConvTranspose":
        table = factor.reshape(layer.group, -1)
        if (table == table[0]).all():
            factor = table[0]
        elif table.shape[1] > 1:
            return True
        else:  # one output for each group: the rows of the weight tell them apart
            axis, factor = 0, np.repeat(factor, layer.q.shape[0] // layer.group)
    low = int(ml_dtypes.iinfo(c["Q"].dtype).min)
    channels = np.moveaxis(layer.q, axis, 0).reshape(layer.q.shape[axis], -1)
    return bool(low < 0 and not layer.zero.any() and (channels[factor < 0] == low).any())


def _dequantized(value: ir.Value) -> Array:
    """Evaluate a constant of a model: an initializer, or integers behind a DequantizeLinear."""
    node = value.producer()
    if node is None:
        assert value.const_value is not None
        return value.const_value.numpy().astype(np.float64)
    q, scale, zero = (
        np.zeros(1) if v is None or v.const_value is None else v.const_value.numpy().astype(np.float64)
        for v in (*node.inputs, None)[:3]
    )
    axis = node.attributes.get_int("axis", 1) % q.ndim
    shape = [-1 if a == axis else 1 for a in range(q.ndim)]
    scale, zero = (v.reshape(shape if v.size > 1 else ()) for v in (scale, zero))
    return np.asarray((q - zero) * scale)


def _run(kind: str, group: int, x: Array, W: Array) -> Array:
    match kind:
        case "Conv":
            return windows.conv(x, W, None, group=group)
        case "ConvTranspose":
            return windows.conv_transpose(x, W, None, group=group)
        case _:
            return np.asarray(x @ (W.T if kind.endswith("transB") else W))


def _judge(layer: Layer, result: Result, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal([int(d) for d in result.before.graph.inputs[0].shape or ()])
    x = x.astype(F)
    old, new = (Float64Model(m).run({"x": x}, ["y"])["y"] for m in (result.before, result.after))
    op = next(n for n in result.after.graph if n.op_type == layer.kind.split()[0])
    weight = op.inputs[1]
    assert weight is not None
    size = _run(layer.kind, layer.group, np.abs(x.astype(np.float64)), np.abs(_dequantized(weight)))
    shape = [-1, *(1,) * (old.ndim - 2)]
    adds = [n for n in result.after.graph if n.op_type == "Add"]
    slot = adds[0].inputs[1] if adds else op.inputs[2] if len(op.inputs) > 2 else None
    half: Array = np.zeros(1)
    if slot is not None:
        size = size + np.abs(_dequantized(slot)).reshape(shape)
        maker = slot.producer()
        if maker is not None and maker.inputs[1] is not None and maker.inputs[1].const_value is not None:
            half = maker.inputs[1].const_value.numpy().astype(np.float64).reshape(-1) / 2
    bound = 1.001 * (2.0**-24 * size + half.reshape(shape)) + 1e-12 * size.max()
    assert (np.abs(new - old) <= bound).all(), float((np.abs(new - old) / bound).max())


@pytest.mark.parametrize("kind", KINDS)
@examples(150)
@given(seed=st.integers(0, 1 << 30), has_lowest=st.booleans())
def test_a_folded_quantized_op_is_the_same_function_or_refused(kind: str, seed: int, has_lowest: bool) -> None:
    layer = _layer(kind, seed, has_lowest=has_lowest)
    result = fold(model(layer.graph, layer.constants, opset=21, ir_version=10))
    assert (RefusalId.QUANTIZED_WEIGHT in result.refusals.values()) == _is_refused(layer), result.kept
    is_valid(result.after)
    flag_is_honest(result.before, result.after, result.modified)
    nothing_dangles(result.before, result.after)
    if not _is_refused(layer):
        assert result.ops == [n.op_type for n in result.before.graph][:-1] + ["Add"] * (kind == "MatMul")
        _judge(layer, result, seed)
    if seed % 8 == 0:
        second_fold_changes_nothing(result.after)
