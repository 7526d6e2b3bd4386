"""Every case that the tests of this folder have TensorFlow run, so that each process is started once."""

from functools import cache

from tests.conformance.layers import catalogue, deviation_cases, numbered_cases, published_cases, refusals
from tests.conformance.layers.cases import Case


@cache
def every_case() -> tuple[Case, ...]:
    """Return all cases; their ids are unique."""
    refused = [case for case, _ in refusals.refused()]
    apart = [*deviation_cases.CASES.values(), *deviation_cases.PROBES.values()]
    published = [*published_cases.CASES.values(), *published_cases.PROBES.values()]
    found = (*catalogue.cases(), *numbered_cases.CASES, *refused, *apart, *published)
    ids = [case.id for case in found]
    assert len(set(ids)) == len(ids), "two cases have the same id"
    return found
