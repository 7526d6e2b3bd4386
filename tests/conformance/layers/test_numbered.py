"""Each of the 45 numbered cases is tested somewhere, and those that are cases of layers hold."""

import ast
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.conformance.layers.arrays import draw
from tests.conformance.layers.cases import Case
from tests.conformance.layers.conftest import Outcome
from tests.conformance.layers.deviations import DEVIATIONS
from tests.conformance.layers.judge import PRODUCTS, holds
from tests.conformance.layers.numbered import NUMBERED
from tests.conformance.layers.numbered_cases import CASES
from tests.conformance.layers.rows import ROWS

TESTS = Path(__file__).resolve().parents[2]


@cache
def functions(path: Path) -> frozenset[str]:
    """Return the names of the functions of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def exists(where: str) -> bool:
    kind, _, name = where.partition(": ")
    if kind == "row":
        return name in {row.key for row in ROWS}
    if kind == "case":
        return name in {case.row for case in CASES}
    if kind == "deviation":
        return name in {deviation.id for deviation in DEVIATIONS}
    path, _, function = where.partition("::")
    return function in functions(TESTS / path)


def test_all_numbers_are_there() -> None:
    assert list(NUMBERED) == list(range(1, 46))


@pytest.mark.parametrize("number", NUMBERED)
def test_a_number_is_tested_where_it_says(number: int) -> None:
    assert NUMBERED[number].where
    assert [where for where in NUMBERED[number].where if not exists(where)] == []


def test_every_case_and_every_numbered_test_is_said() -> None:
    said = {where for numbered in NUMBERED.values() for where in numbered.where}
    assert {f"case: {case.row}" for case in CASES} <= said
    for name in ("forward", "state", "sync"):
        path = f"conformance/layers/test_numbered_{name}.py"
        tests = {f for f in functions(TESTS / path) if f.startswith("test_")}
        assert {f"{path}::{test}" for test in tests} <= said


@pytest.mark.keras
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_numbered_case(case: Case, product: str, tensorflow: Callable[[Case], Outcome]) -> None:
    facts, results = tensorflow(case)
    assert "error" not in facts, facts
    holds(case, product, draw(case), results)
