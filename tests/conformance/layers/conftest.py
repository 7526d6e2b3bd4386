"""TensorFlow as a fixture: what it gave for a case, computed once for all test processes."""

from collections.abc import Callable
from typing import Any

import pytest
from filelock import FileLock

from tests.conformance.layers.cases import Case
from tests.conformance.layers.exchange import Arrays, part
from tests.conformance.layers.oracle import batches
from tests.conformance.layers.suite import every_case

Outcome = tuple[dict[str, Any], Arrays]


@pytest.fixture(scope="session")
def tensorflow(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[[Case], Outcome]:
    """Return facts and arrays of a case; its whole batch is run when the first of it is asked for."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "tensorflow"
    folder.mkdir(exist_ok=True)
    found = batches.batches(every_case())
    batch_of = {case.id: name for name, cases in found.items() for case in cases}
    known: dict[str, Outcome] = {}

    def outcome(case: Case) -> Outcome:
        name = batch_of[case.id]
        if name not in known:
            # one at a time: a second TensorFlow beside the first would only take its processor
            with FileLock(folder / "lock"):
                known[name] = batches.run(name, found[name], folder / name)
        facts, arrays = known[name]
        return facts[case.id], part(arrays, case.id)

    return outcome
