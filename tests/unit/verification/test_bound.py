"""The judgement alone, on arrays."""

import numpy as np
import pytest

from bnpass.verification import fits
from bnpass.verification.bound import judge, judge_within
from bnpass.verification.perturb import move_one_ulp

OLD = np.float32([1.0, -2.0, 3.0])
TRUTH = np.float64([1.0, -2.0, 3.0])


def test_twice_the_original_s_error_is_allowed_and_no_more() -> None:
    old = OLD + np.float32(1e-3)
    assert judge(old, OLD - np.float32(1.9e-3), TRUTH).ok
    assert not judge(old, OLD - np.float32(2.1e-3), TRUTH).ok


def test_slack_is_the_largest_movement() -> None:
    moved = [OLD + np.float32(1e-4), OLD + np.float32(1e-3)]
    assert judge(OLD, OLD + np.float32(0.9e-3), TRUTH, moved).ok
    assert not judge(OLD, OLD + np.float32(1.1e-3), TRUTH, moved).ok


def test_without_reference_four_times_the_slack() -> None:
    moved = [OLD + np.float32(1e-3)]
    assert judge(OLD, OLD + np.float32(3.9e-3), None, moved).ok
    assert not judge(OLD, OLD + np.float32(4.1e-3), None, moved).ok


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_non_finite_values_stay_where_they_were(special: float) -> None:
    old = np.float32([1.0, special, 3.0])
    truth = old.astype(float)
    assert judge(old, old.copy(), truth).ok
    assert not judge(old, OLD, truth).ok
    assert not judge(OLD, old, TRUTH).ok
    assert not judge_within(OLD, old, atol=1e9, rtol=0).ok


def test_shape_type_and_integers_are_exact() -> None:
    assert "shape" in judge(OLD, OLD[:2], TRUTH).reason
    assert "type" in judge(OLD, OLD.astype(np.float64), TRUTH).reason
    integers = np.array([1, 2, 3])
    assert judge(integers, integers.copy(), integers).ok
    assert "1 of 3" in judge(integers, np.array([1, 2, 4]), integers).reason


def test_figures() -> None:
    found = judge(OLD, OLD + np.float32([0, 0, 0.5]), TRUTH)
    assert (found.error, found.scale, found.difference) == (0.5, 3.0, 0.5)
    assert found.relative == pytest.approx(1 / 6)
    assert found.snr_db == pytest.approx(10 * np.log10(14 / 0.25))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_one_ulp_is_one_ulp(dtype: type) -> None:
    info = np.finfo(dtype)
    array = np.array([1.0, -1.0, 0.0, info.max, -info.tiny, np.inf, 1e-3], dtype=dtype)
    seen: list[set[float]] = [set() for _ in array]
    for seed in range(20):
        for values, value in zip(seen, move_one_ulp(array, np.random.default_rng(seed)), strict=True):
            values.add(float(value))
    for values, value in zip(seen, array, strict=True):
        if value == 0 or np.isinf(value):
            assert values == {float(value)}
        elif value != info.max:
            near = {float(np.nextafter(value, dtype(side * np.inf))) for side in (-1, 1)}
            assert values == near
        else:
            assert np.inf not in values


def test_fits() -> None:
    assert fits(1 << 10)
    assert not fits(1 << 50)
