"""The suite itself: nothing is left out, the tolerances are of the right function, and they are tight."""

import random

import numpy as np
import pytest

from tests.conformance.layers import meaning
from tests.conformance.layers.approx import Approx, total
from tests.conformance.layers.arrays import draw
from tests.conformance.layers.bounds import Bounds
from tests.conformance.layers.cases import APIS, Api, from_plain
from tests.conformance.layers.catalogue import cases, levels, pairwise
from tests.conformance.layers.covering import all_pairs, completion, pairs_of
from tests.conformance.layers.deviations import DEVIATIONS
from tests.conformance.layers.document import DOCUMENT, NAMES, counted, lines
from tests.conformance.layers.factors import FACTORS, legal
from tests.conformance.layers.judge import SAFETY, inputs_of
from tests.conformance.layers.numbered import NUMBERED
from tests.conformance.layers.refusals import refused
from tests.conformance.layers.rows import ROWS, Row
from tests.conformance.layers.suite import every_case

REFUSED_BY = {
    "axis list": "axis list",
    "fused": "fused",
    "virtual batch": "virtual batch",
    "adjustment": "adjustment",
    "synchronized": "synchronized",
}


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.key)
def test_every_row_has_cases_for_every_class(row: Row, api: Api) -> None:
    count = sum(case.row == row.key and case.api == api for case in cases())
    assert (count > 0) == (api in row.taken)
    if api not in row.taken and row.otherwise(api).startswith("refused"):
        assert REFUSED_BY[row.key] in [case.name for case, _ in refused() if case.api == api]


def test_cases_and_their_arrays_are_the_same_every_time() -> None:
    for case in every_case()[::40]:
        assert from_plain(case.plain()) == case
        again = draw(case)
        for key, value in draw(case).items():
            np.testing.assert_array_equal(value, again[key])


@pytest.mark.parametrize("api", APIS)
def test_every_legal_pair_of_levels_is_covered(api: Api) -> None:
    factors, rng = FACTORS[api], random.Random(1)  # noqa: S311
    rows = [{name: row.get(name, given[0]) for name, given in factors.items()} for row in levels(api)]
    assert len(rows) == len(list(pairwise(api)))
    covered = set().union(*map(pairs_of, rows))
    assert all(legal(api, row) for row in rows)
    for pair in all_pairs(factors):
        if pair not in covered:
            assert completion(pair, factors, lambda row: legal(api, row), rng) is None, pair


def test_a_running_error_holds_what_it_promises() -> None:
    """Sums, products, quotients and roots in float32 stay within the error that is said of them."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = (rng.normal(size=(40, 3)).astype(np.float32) * np.float32(10.0 ** rng.integers(-3, 4)) for _ in range(2))
        x, y = (Approx(v, 0.0, 2.0**-24) for v in (a, b))
        single = (a * b).sum(0, dtype=np.float32) / (np.sqrt(np.abs(b).max(0)) + np.float32(0.1))
        largest = np.abs(b).max(0)
        wanted = (x * y).sum((0,)) / (Approx(largest, 0.0, 2.0**-24).sqrt() + 0.1)
        exact = (a.astype(float) * b).sum(0) / (np.sqrt(largest.astype(float)) + 0.1)
        np.testing.assert_allclose(wanted.value, exact, rtol=1e-14)
        assert (np.abs(single - exact) <= wanted.error).all()
        assert (wanted.error <= 1e-4 * np.abs(a * b).sum(0)).all()
    assert total([Approx(np.ones(3))] * 2, (0,)).value == 6


def test_a_variance_of_which_noise_is_left_has_an_error() -> None:
    """E[x²] − E[x]² of three float32 numbers with a large mean: it may be anything, 1/√(var + epsilon) may not."""
    rng, one, epsilon = np.random.default_rng(0), np.float32(1), np.float32(1e-3)
    noisy = 0
    for _ in range(300):
        x = (10.0 ** rng.uniform(1, 4) + rng.normal(size=(3, 4))).astype(np.float32)
        means = [v.sum(0, dtype=np.float32) / np.float32(3) for v in (x, x * x)]
        single = one / np.sqrt(np.maximum(means[1] - means[0] ** 2, 0) + epsilon)
        approx = Approx(x, 0.0, 2.0**-24)
        var = ((approx * approx).sum((0,)) / 3 - (approx.sum((0,)) / 3) * (approx.sum((0,)) / 3)).at_least(0.0)
        wanted = (var + float(epsilon)).inverse_sqrt(float(epsilon))
        exact = 1 / np.sqrt(x.astype(float).var(0) + float(epsilon))
        noisy += int((var.error > var.value + epsilon).sum())
        assert (np.abs(single - exact) <= wanted.error).all()
        assert np.isfinite(wanted.error).all()
    assert noisy > 100


def test_the_tolerances_are_tight() -> None:
    """Of plain data in float32 and float64: half of them are of a few roundings, and hardly any above 1e-4."""
    found = []
    for case in cases()[::7]:
        if case.data != "normal" or case.dtype in {"float16", "bfloat16"}:
            continue
        arrays = draw(case)
        bounds = Bounds(case, meaning.started(case, arrays), is_product=False)
        for step, training in enumerate(case.steps):
            for value in bounds.step(*inputs_of(case, arrays, step), training).values():
                scale = max(1.0, float(np.abs(value.value).max(initial=0)))
                found.append(SAFETY * float(value.error.max(initial=0)) / scale)
    assert len(found) > 2000
    middle, most = np.quantile(found, [0.5, 0.99])
    assert middle < 3e-6
    assert most < 2e-4


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.key)
def test_the_document_says_it(row: Row, api: Api) -> None:
    cells = lines()[row.says, NAMES[api]]
    count = str(counted(row.key, api))
    assert cells == ([count] * 5 if api in row.taken else ["0", row.otherwise(api), "–", "–", "–"])


def test_the_document_has_every_deviation_and_no_failure() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for deviation in DEVIATIONS:
        assert f"| {deviation.id} | {', '.join(deviation.rows)} | {deviation.says} | {deviation.choice} |" in text
    for number, case in NUMBERED.items():
        assert f"| {number} | {case.says} | {len(case.where)} |" in text


def test_the_full_product_has_no_failure() -> None:
    full = DOCUMENT.read_text(encoding="utf-8").partition("## The full product")[2]
    found = [line.strip("| ").split(" | ") for line in full.splitlines() if line.startswith("| ")][1:]
    assert found[0][0] == "all"
    assert sum(int(number) for number in found[0][1:6]) > 5000
    assert {cells[-1] for cells in found} == {"0"}
