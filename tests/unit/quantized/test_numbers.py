"""The numbers of quantized weights after a fold: integers, zero points, scales and biases."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from bnpass.api.fold import fold as fold_model
from bnpass.errors import VerificationError
from bnpass.folding.options import FoldOptions
from bnpass.folding.quantized import check, numbers, scales
from tests.support.build import batch_norm, model, normal
from tests.support.judge import Result, fold, folded_and_right

Array = NDArray[Any]
F = np.float32

CONV = """g (float[2,3,6,6] x) => (float[2,4,4,4] y) {
    [dq] w = DequantizeLinear <axis = 0> (Q, a, z)
    [conv] t = Conv (x, w)
    [bn] y = Mul (t, k)
}"""
BIASED = """g (float[2,3] x) => (float[2,4] y) {
    [dq] w = DequantizeLinear <axis = 1> (Q, a)
    [dqb] c = DequantizeLinear <axis = 0> (B, ab)
    [gemm] t = Gemm (x, w, c)
    [bn] y = BatchNormalization <epsilon = 0.0> (t, s, b, m, v)
}"""
TRAINED = """g (float[2,3,6,6] x) => (float[2,8,4,4] y) {
    [q] i = QuantizeLinear <axis = 0> (W, a, z)
    [dq] w = DequantizeLinear <axis = 0> (i, a, z)
    [conv] t = Conv (x, w)
    [bn] y = BatchNormalization (t, s, b, m, v)
}"""
SIGNS = np.array([2, -0.5, 1, -3], F)
SCALES = np.array([0.01, 0.02, 0.03, 0.04], F)


def integers(*shape: int, low: int, high: int, dtype: Any) -> Array:
    drawn = np.random.default_rng(0).integers(low, high + 1, shape).astype(dtype)
    if len(shape) > 1:  # every channel has both ends
        drawn[..., 0], drawn[..., -1] = low, high
    return drawn


def conv(dtype: Any, low: int, high: int, zero: list[int], *, signs: Array = SIGNS, scale: Array = SCALES) -> ir.Model:
    q = integers(4, 3, 3, 3, low=low, high=high, dtype=dtype)
    point = np.array(zero if scale.ndim else zero[0], dtype)
    return model(CONV, {"Q": q, "a": scale, "z": point, "k": signs.reshape(4, 1, 1)})


def was(result: Result, name: str) -> Array:
    tensor = result.before.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def test_symmetric_int8_stays_symmetric() -> None:
    result = folded_and_right(conv(np.int8, -127, 127, [0, 0, 0, 0]))
    assert result.ops == ["DequantizeLinear", "Conv"]
    old = was(result, "Q")
    assert np.array_equal(result.constant("Q"), old * np.array([1, -1, 1, -1], np.int8).reshape(4, 1, 1, 1))
    assert np.array_equal(result.constant("z"), [0, 0, 0, 0])
    assert np.array_equal(result.constant("a"), (SCALES.astype(np.float64) * np.abs(SIGNS)).astype(F))


def test_integers_of_positive_scales_are_not_touched() -> None:
    result = folded_and_right(conv(np.int8, -128, 127, [0, 0, 0, 0], signs=np.abs(SIGNS)))
    assert np.array_equal(result.constant("Q"), was(result, "Q"))


@pytest.mark.parametrize(
    ("dtype", "low", "high", "zero", "turned"),
    [
        (np.uint8, 1, 255, [128] * 4, [128] * 4),  # around the zero point
        (np.uint8, 0, 255, [128] * 4, [128, 127, 128, 127]),  # around the middle of the range
        (np.uint8, 0, 255, [0, 0, 7, 255], [0, 255, 7, 0]),
        (np.int8, -128, 127, [1, 1, 0, 5], [1, -2, 0, -6]),  # not symmetric before, so it need not be
    ],
)
def test_a_sign_turns_integers_and_zero_points(
    dtype: Any, low: int, high: int, zero: list[int], turned: list[int]
) -> None:
    result = folded_and_right(conv(dtype, low, high, zero))
    assert result.ops == ["DequantizeLinear", "Conv"]
    assert result.constant("z").tolist() == turned
    old = was(result, "Q").astype(int) - np.reshape(zero, (4, 1, 1, 1))
    new = result.constant("Q").astype(int) - np.reshape(turned, (4, 1, 1, 1))
    assert np.array_equal(new, old * np.sign(SIGNS).astype(int).reshape(4, 1, 1, 1))


def test_one_zero_point_becomes_one_per_channel() -> None:
    result = folded_and_right(conv(np.uint8, 0, 255, [3], scale=np.array(0.02, F)))
    assert result.constant("z").tolist() == [3, 252, 3, 252]
    assert result.constant("a").shape == (4,)


def test_a_scale_of_zero_makes_weights_zero_and_keeps_the_scale_positive() -> None:
    result = folded_and_right(conv(np.uint8, 0, 255, [9, 9, 9, 9], signs=np.array([0, 1, 0, 2], F)))
    assert (result.constant("Q")[[0, 2]] == 9).all()
    assert np.array_equal(result.constant("a")[[0, 2]], SCALES[[0, 2]])


def biased() -> ir.Model:
    q = integers(3, 4, low=-127, high=127, dtype=np.int8)
    B = integers(4, low=-9999, high=9999, dtype=np.int32)
    return model(BIASED, {"Q": q, "a": SCALES, "B": B, "ab": SCALES / 20, **batch_norm(4)})


def test_a_quantized_bias_is_rounded_to_its_new_scale_and_says_by_how_much() -> None:
    result = folded_and_right(biased())
    s, b, m, v, ab, B = (was(result, n).astype(np.float64) for n in ("s", "b", "m", "v", "ab", "B"))
    factor = s / np.sqrt(v)
    scale = (ab * np.abs(factor)).astype(F)
    exact = ((B * ab - m) * factor + b) / scale.astype(np.float64)
    assert np.array_equal(result.constant("ab"), scale)
    assert np.array_equal(result.constant("B"), np.rint(exact))
    ((rounding,),) = (folded.rounding for folded in result.folded)
    assert rounding.node == "gemm"
    assert rounding.units == pytest.approx(np.abs(np.rint(exact) - exact).max(), abs=1e-9)
    assert rounding.absolute == pytest.approx((np.abs(np.rint(exact) - exact) * scale).max(), rel=1e-6)
    assert 0 < rounding.units <= 0.5


def test_the_report_states_the_rounding() -> None:
    report = fold_model(biased(), FoldOptions(check=0)).report
    assert "quantized biases rounded: 1, by 0." in report.to_text()
    ((rounding,),) = (folded["rounding"] for folded in report.to_json()["folded"])
    assert rounding["node"] == "gemm"


def test_a_scale_alone_does_not_round_a_bias() -> None:
    text = BIASED.replace("BatchNormalization <epsilon = 0.0> (t, s, b, m, v)", "Mul (t, k)")
    constants = {n: v.const_value.numpy() for n, v in biased().graph.initializers.items() if v.const_value is not None}
    result = folded_and_right(model(text, {**constants, "k": np.array([2, -0.5, 4, -1], F)}))
    assert np.array_equal(result.constant("B"), was(result, "B") * np.array([1, -1, 1, -1]))
    assert result.folded[0].rounding[0].units < 1e-3


@pytest.mark.parametrize("seed", range(4))
def test_integers_of_a_model_trained_with_quantization_stay(seed: int) -> None:
    W = np.clip(normal(8, 3, 3, 3, seed=seed), -1.9, 1.9)
    a = np.full(8, 2.0**-6, F)
    W[:, 0, 0, 0] = (np.arange(8) + 0.5) * a  # ties, and what lies next to them
    W[:, 0, 0, 1] = np.nextafter((np.arange(8) + 0.5) * a, F(9))
    z = np.zeros(8, np.int8)
    result = folded_and_right(model(TRAINED, {"W": W, "a": a, "z": z, **batch_norm(8, seed)}))
    assert result.ops == ["QuantizeLinear", "DequantizeLinear", "Conv"]
    assert result.after.graph[0].inputs[1] is result.after.graph[1].inputs[1]
    name = str(result.after.graph[0].inputs[1].name)  # type: ignore[union-attr]
    sign = np.sign(was(result, "s")).reshape(8, 1, 1, 1)
    old = np.rint(W / a.reshape(8, 1, 1, 1))
    new = np.rint(result.constant("W") / result.constant(name).reshape(8, 1, 1, 1))
    assert np.array_equal(new, old * sign)


PLANTED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "a sign": ("turned", lambda pair: (256 - pair[0], pair[1])),
    "a zero point": ("turned", lambda pair: (pair[0], pair[1] + 1)),
    "another channel": ("scaled", lambda scale: np.roll(scale, 1)),
    "no scale": ("scaled", np.ones_like),
    "a few roundings": ("scaled", lambda scale: scale * F(1 + 2.0**-20)),
    "another axis": ("multiplier", lambda pair: (pair[0][:3], 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_the_local_check_finds_planted_bugs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, wrong = PLANTED[name]
    right = getattr(scales, function)
    monkeypatch.setattr(numbers, function, lambda *given: wrong(right(*given)))
    with pytest.raises(VerificationError, match="'conv'"):
        fold(conv(np.uint8, 1, 255, [128], scale=np.array(0.02, F)))


@pytest.mark.parametrize("change", [1, -1])
def test_the_local_check_finds_a_bias_that_is_off_by_one(change: int, monkeypatch: pytest.MonkeyPatch) -> None:
    right = check.check

    def off(absorption: Any, stored: Any, new: Any, bias: Any) -> float:
        object.__setattr__(bias, "integers", bias.integers + np.int32(change))
        return right(absorption, stored, new, bias)

    monkeypatch.setattr(numbers, "check", off)
    with pytest.raises(VerificationError, match="'gemm'"):
        fold(biased())
