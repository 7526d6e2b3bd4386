"""The cases of the conformance suite that an exported layer is held against: each argument of each class alone.

Of the two classes of today, every two arguments together as well.

What there is of a row beyond the forward pass of one replica is left to the conformance suite: gradients, constraints,
graphs of TensorFlow 1.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

from tests.conformance.layers.cases import APIS, Case
from tests.conformance.layers.catalogue import alone, pairwise

TODAY = ("tf_keras", "keras3")
TRAINING = (True, True, True)
MIXED = (True, False, True)
ELSEWHERE = {"constraints", "UPDATE_OPS", "eager"}
"""Rows that say nothing of a forward pass in TensorFlow 2."""

GRAPH_ONLY = {("trainable", "tf1", "False renorm")}
"""Deviation v1_not_trainable_renorm: tf1 stands for its graphs, where the averages of renorm stay."""

_TYPES = {"float32", "float64", "float16"}


@cache
def cases() -> tuple[Case, ...]:
    """Return the cases; ids are unique."""
    found = tuple(_cases())
    assert len({case.id for case in found}) == len(found)
    return found


def _cases() -> Iterator[Case]:
    for api in APIS:
        for case in (*alone(api), *(pairwise(api) if api in TODAY else ())):
            if len(case.shares) > 1 or case.dtype not in _TYPES or case.row in ELSEWHERE:
                continue
            if (case.row, case.api, case.name) in GRAPH_ONLY:
                continue
            steps = MIXED if case.training == "tensor" else TRAINING
            yield replace(case, graph=False, learning_rate=0.0, steps=steps)
