"""A batch that is dealt out to replicas, and what they give put together again."""

from collections.abc import Sequence

import numpy as np
import pytest

from bnpass.verification.bound import judge_against
from bnpass.verification.perturb import move_one_ulp
from bnpass.verification.shares import WholeBatch
from tests.support.build import BFLOAT16, Array

X = np.arange(12, dtype=np.float32).reshape(4, 3)
SHARE = (2, 1, 1, 0)


def whole(found: Array, reference: Array | None = None) -> WholeBatch:
    truth = {"y": np.asarray(found if reference is None else reference, np.float64)}
    return WholeBatch({"x": X, "w": X[0]}, frozenset({"x"}), 4, truth, {"y": found}, [])


def judged(batch: WholeBatch, given: Sequence[Array]) -> tuple[bool, str]:
    ((_, judgement),) = batch.judge([{"y": part} for part in given], SHARE)
    return judgement.ok, judgement.reason


def test_samples_are_dealt_out_in_order_and_the_rest_goes_to_all() -> None:
    parts = list(whole(X).parts(SHARE))
    assert [len(part["x"]) for part in parts] == list(SHARE)
    assert np.array_equal(np.concatenate([part["x"] for part in parts]), X)
    assert all(np.array_equal(part["w"], X[0]) for part in parts)


def test_rows_are_laid_end_to_end() -> None:
    assert judged(whole(X), [X[:2], X[2:3], X[3:], X[:0]]) == (True, "")
    assert not judged(whole(X), [X[:2], X[3:], X[2:3], X[:0]])[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, BFLOAT16])
def test_what_has_no_rows_is_the_same_everywhere_or_a_sum(dtype: type) -> None:
    total = np.array([6, -3], dtype)
    assert judged(whole(total), [total] * 4) == (True, "")
    parts = [np.array(part, dtype) for part in ([1, 1], [5, -5], [0, 1], [0, 0])]
    assert judged(whole(total), parts) == (True, "")
    ok, reason = judged(whole(total), [parts[0], *parts])
    assert not ok
    assert reason.startswith("the replicas disagree; their sum has error")


def test_replicas_that_agree_on_something_wrong_are_wrong() -> None:
    ok, reason = judged(whole(np.array([6.0], np.float32)), [np.array([6.1], np.float32)] * 4)
    assert not ok
    assert reason.startswith("error 0.1")


def test_counts_add_up() -> None:
    assert judged(whole(np.array(4)), [np.array(n) for n in SHARE]) == (True, "")
    assert not judged(whole(np.array(5)), [np.array(n) for n in SHARE])[0]


def test_a_sum_that_cancels_may_be_off_by_the_roundings_of_its_parts() -> None:
    parts = [np.float32([1e4 + 0.1]), np.float32([-1e4]), np.float32([0]), np.float32([0])]
    assert judged(whole(np.float32([0.1])), parts) == (True, "")
    assert not judged(whole(np.float32([0.2])), parts)[0]


def test_shapes_that_differ_are_wrong() -> None:
    ok, reason = judged(whole(X[0]), [X[0], X[0], X[0, :2], X[0]])
    assert not ok
    assert "different shapes or types" in reason


def test_a_node_may_be_off_by_one_rounding_of_its_result_and_no_more() -> None:
    truth = np.float64([1 / 3, 100.0])
    assert judge_against(truth, truth.astype(np.float32), []).ok
    assert not judge_against(truth, truth.astype(np.float32) + np.float32([0, 3e-5]), []).ok
    assert not judge_against(truth, truth.astype(np.float16).astype(np.float32), []).ok
    assert not judge_against(truth, truth * (1 + 1e-13), []).ok
    assert not judge_against(truth, np.float32([np.nan, 100]), []).ok
    assert judge_against(np.array([3]), np.array([3]), []).ok
    assert not judge_against(np.array([3]), np.array([4]), []).ok


def test_a_scalar_that_is_moved_stays_a_scalar() -> None:
    moved = move_one_ulp(np.array(1.0), np.random.default_rng(0))
    assert moved.shape == ()
    assert moved != 1
