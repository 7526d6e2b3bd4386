"""The suites: which mutants belong together, and which tests have to see them."""

from dataclasses import dataclass

import carrier_table
import folding_table
import merging_table
import operator_table
from mutant import Mutant


@dataclass(frozen=True)
class Suite:
    """Mutants of one part of bnpass.

    Attributes:
        title: Heading of its section in RESULTS.md.
        mutants: The mutants.
        stages: Test files, the fast ones first; a stage runs only what the one before it lets through. No test among
            them needs TensorFlow or a package index.
        blind: Mutants that take bnpass's own check away, on request; none if it has no such check.
    """

    title: str
    mutants: tuple[Mutant, ...]
    stages: tuple[tuple[str, ...], ...]
    blind: tuple[Mutant, ...] = ()


SUITES = {
    "folding": Suite(
        "Folding",
        folding_table.MUTANTS,
        (
            ("tests/property/test_symbolic.py", "tests/property/test_fold_properties.py"),
            ("tests/unit/test_refusals.py", "tests/unit/test_opsets.py", "tests/golden", "tests/museum/test_museum.py"),
        ),
        folding_table.BLIND,
    ),
    "carriers": Suite(
        "Carriers, maps and costs of folding",
        carrier_table.MUTANTS,
        (
            ("tests/golden",),
            ("tests/property/test_fold_properties.py", "tests/unit/test_refusals.py", "tests/unit/test_odd_places.py"),
        ),
        carrier_table.BLIND,
    ),
    "merging": Suite(
        "Merging, padding and nodes that change nothing",
        merging_table.MUTANTS,
        (
            ("tests/unit/graph", "tests/unit/merging", "tests/golden"),
            ("tests/museum", "tests/property/test_fold_properties.py"),
        ),
        merging_table.BLIND,
    ),
    "operator": Suite(
        "Operators, layers, expansion and collectives",
        operator_table.MUTANTS,
        (
            ("tests/unit/semantics/test_reference.py",),
            ("tests/unit/ops/test_bodies.py",),
            ("tests/unit/layers",),
            ("tests/unit/expansion",),
            ("tests/unit/collectives",),
        ),
    ),
}
