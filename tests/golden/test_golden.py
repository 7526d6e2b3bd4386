"""Each golden pair: what is written after ``=>`` is what folding makes of what stands before it."""

import difflib

import pytest

from tests.golden.pairs import Pair, families, pairs, written
from tests.support.judge import is_right

PAIRS = [pair for family in families() for pair in pairs(family)]


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_golden(pair: Pair) -> None:
    result = pair.result()
    got = written(result)
    if got != pair.after:
        lines = difflib.unified_diff(pair.after.splitlines(), got.splitlines(), "expected", "got", lineterm="")
        difference = "\n".join(lines)
        pytest.fail(
            f"{pair.remark}{pair.before}\n=>\n{difference}\n\n"
            f'run again: python -m pytest "tests/golden/test_golden.py::test_golden[{pair}]"\n'
            f"accept:    python -m tests.golden.pairs {pair.family}",
            pytrace=False,
        )
    is_right(result)


def test_no_two_pairs_have_the_same_name() -> None:
    assert len({str(pair) for pair in PAIRS}) == len(PAIRS)
