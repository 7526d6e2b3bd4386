"""Run the full product of the layers' arguments against TensorFlow, and write down what held.

    python -m tools.conformance.full [--folder DIR] [--every N] [--api API ...] [--jobs N] [--write]

TensorFlow's results are kept in the folder, so a second run judges alone. ``--write`` puts the counts into
``tools/conformance/RESULTS.json``, from which ``tools.conformance.table`` takes them. Exit code: 1 if a case failed.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tests.conformance.layers import full
from tests.conformance.layers.arrays import draw
from tests.conformance.layers.cases import APIS, Case
from tests.conformance.layers.exchange import Arrays, part
from tests.conformance.layers.judge import PRODUCTS, judge
from tests.conformance.layers.oracle import batches

RESULTS = Path(__file__).with_name("RESULTS.json")
AT_ONCE = 300
"""Cases of one TensorFlow process: it grows with each, and a failed collective spoils those behind it."""

Outcome = tuple[Case, str, str]
"""A case, a product (or "TensorFlow"), and what is wrong ("" if nothing)."""


def judged(cases: Sequence[Case], folder: Path, jobs: int = 1) -> Iterator[Outcome]:
    """Run cases in TensorFlow, and judge every product, in some processes."""
    with ProcessPoolExecutor(jobs) as pool:
        for name, of_process in batches.batches(cases).items():
            for first in range(0, len(of_process), AT_ONCE):
                some = of_process[first : first + AT_ONCE]
                facts, results = batches.run(name, some, folder / f"{name}-{first}")
                theirs = [part(results, case.id) for case in some]
                for found in pool.map(outcomes, some, [facts[case.id] for case in some], theirs, chunksize=10):
                    yield from found


def outcomes(case: Case, facts: dict[str, Any], results: Arrays) -> list[Outcome]:
    """Judge every product of a case."""
    if "error" in facts:
        return [(case, "TensorFlow", facts["message"][:300])]
    return [(case, product, verdict(case, product, results)) for product in PRODUCTS]


def verdict(case: Case, product: str, results: Arrays) -> str:
    """Return what is wrong with a product of a case."""
    try:
        wrong = judge(case, product, draw(case), results).wrong
    except Exception as error:  # noqa: BLE001  a crash of a product is a result of the run
        return f"{type(error).__name__}: {error}"[:300]
    return f"{len(wrong)} wrong, first {wrong[0]}" if wrong else ""


def arguments_of(case: Case) -> list[str]:
    """Return what a case counts for in the table."""
    named = [name for name in case.arguments if name != "renorm_clipping" or case.arguments.get("renorm")]
    also = {
        f"rank {len(case.shape)}": True,
        case.dtype: True,
        "mask": bool(case.mask),
        "training tensor": case.training == "tensor",
        f"{len(case.shares)} replicas": len(case.shares) > 1,
        "graph": case.graph,
    }
    return named + [name for name, holds in also.items() if holds]


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where TensorFlow's results are kept")
    parser.add_argument("--every", type=int, default=1, help="take every N-th case alone")
    parser.add_argument("--api", nargs="*", choices=APIS, default=APIS)
    parser.add_argument("--jobs", type=int, default=1, help="processes that judge")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    cases = [case for case in full.every_case() if case.api in options.api][:: options.every]
    folder = options.folder or Path(tempfile.mkdtemp(prefix="conformance"))
    counts: Counter[tuple[str, str, str]] = Counter()
    failed, began, done = 0, time.monotonic(), set()
    for case, product, wrong in judged(cases, folder, options.jobs):
        for argument in ["all", *arguments_of(case)]:
            counts[case.api, argument, product] += 1
            counts[case.api, argument, f"{product} failed"] += bool(wrong)
        failed += bool(wrong)
        done.add(case.id)
        if wrong:
            print(f"{case.id} {product}: {wrong}\n    {case}", flush=True)
        if len(done) % 200 == 0 and product == "expanded":
            print(f"{len(done)} of {len(cases)} in {time.monotonic() - began:.0f} s, {failed} failed", flush=True)
    print(f"{len(done)} cases, {failed} failed")
    if options.write:
        plain: dict[str, dict[str, dict[str, int]]] = {}
        for (api, argument, product), count in sorted(counts.items()):
            plain.setdefault(api, {}).setdefault(argument, {})[product] = count
        RESULTS.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
