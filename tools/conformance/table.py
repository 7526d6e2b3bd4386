"""Write docs/conformance.md: what holds for each row of the promise and each class.

    python -m tools.conformance.table [--folder DIR] [--jobs N]

Runs the cases of the test suite in TensorFlow and judges all products, which takes some minutes; the counts of the
full product come from ``RESULTS.json`` (``tools.conformance.full --write``). Exit code: 1 if something does not hold.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.conformance.layers.cases import APIS, Case
from tests.conformance.layers.catalogue import cases
from tests.conformance.layers.deviations import DEVIATIONS
from tests.conformance.layers.document import DOCUMENT, HEADER, NAMES, cell, counted
from tests.conformance.layers.judge import PRODUCTS
from tests.conformance.layers.numbered import NUMBERED
from tests.conformance.layers.numbered_cases import CASES
from tests.conformance.layers.rows import ROWS
from tools.conformance.full import RESULTS, judged

Counts = Mapping[tuple[str, str, str], int]
"""Cases that hold, by row, class and product."""


def rows(held: Counts) -> list[str]:
    """Return the lines of the table of rows."""
    lines = []
    for row in ROWS:
        for api in APIS:
            count = counted(row.key, api)
            found = [held[row.key, api, product] for product in PRODUCTS]
            lines.append(cell(row, api, count, found))
    return lines


def full_product() -> list[str]:
    """Return the lines of the table of the full product."""
    plain = json.loads(RESULTS.read_text(encoding="utf-8"))
    arguments = sorted({argument for found in plain.values() for argument in found} - {"all"})
    lines = []
    for argument in ["all", *arguments]:
        counts = [plain.get(api, {}).get(argument, {}) for api in APIS]
        cells = [str(c.get("reference", 0)) if c else "–" for c in counts]
        failed = sum(c.get(f"{product} failed", 0) for c in counts for product in (*PRODUCTS, "TensorFlow"))
        lines.append(f"| {argument} | {' | '.join(cells)} | {failed} |")
    return lines


def document(held: Counts, numbered: int) -> str:
    """Return the whole document."""
    deviations = [f"| {d.id} | {', '.join(d.rows)} | {d.says} | {d.choice} |" for d in DEVIATIONS]
    numbers = [f"| {number} | {case.says} | {len(case.where)} |" for number, case in NUMBERED.items()]
    names = " | ".join(NAMES[api] for api in APIS)
    return HEADER.format(
        rows="\n".join(rows(held)),
        cases=len(cases()),
        deviations="\n".join(deviations),
        numbers="\n".join(numbers),
        numbered=numbered,
        names=names,
        full="\n".join(full_product()),
    )


def main() -> int:
    """Run the suite and write the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where TensorFlow's results are kept")
    parser.add_argument("--jobs", type=int, default=1, help="processes that judge")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="conformance"))
    held: Counter[tuple[str, str, str]] = Counter()
    wrong: list[tuple[Case, str, str]] = []
    for case, product, what in judged([*cases(), *CASES], folder, options.jobs):
        held[case.row, case.api, product] += not what
        wrong += [(case, product, what)] if what else []
    for case, product, what in wrong:
        print(f"{case.id} {product}: {what}")
    DOCUMENT.write_text(document(held, len(CASES)), encoding="utf-8")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
