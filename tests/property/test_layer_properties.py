"""Statements that hold of every layer and of every training graph, tried on random ones.

BNPASS_PROPERTY_PERCENT scales the number of examples, as in ``test_fold_properties``; ``tools/fuzz/fuzz_layers.py``
tries the same statements for as long as one likes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.property import layer_judge
from tests.property.specs import LayerCase, layer_cases
from tests.property.test_fold_properties import examples
from tests.property.training_graphs import GraphCase, graph_cases, replicas_are_the_batch


def _holds(statement: Callable[..., Any], case: LayerCase | GraphCase, *more: Any) -> None:
    try:
        with np.errstate(all="ignore"):
            statement(case, *more)
    except Exception as error:
        error.add_note(str(case))
        raise


@examples(300)
@given(layer_cases())
def test_a_spec_survives_json(case: LayerCase) -> None:
    _holds(lambda one: layer_judge.survives_json(one.spec, one.layer), case)


@examples(120)
@given(layer_cases())
def test_a_composed_layer_is_the_reference(case: LayerCase) -> None:
    _holds(layer_judge.bodies_are_right, case)


@examples(120)
@given(layer_cases())
def test_an_expanded_layer_is_the_reference(case: LayerCase) -> None:
    _holds(layer_judge.expansion_is_right, case)


@examples(60)
@given(layer_cases(dtypes=("float64",)))
def test_every_term_counts_where_roundings_are_small(case: LayerCase) -> None:
    _holds(layer_judge.expansion_is_right, case)


@pytest.mark.parametrize("statement", [layer_judge.bodies_are_right, layer_judge.expansion_is_right])
@examples(40)
@given(case=layer_cases(several=True))
def test_several_replicas_are_the_reference(statement: Callable[[LayerCase], float], case: LayerCase) -> None:
    _holds(statement, case)


@examples(60)
@given(layer_cases())
def test_what_is_written_is_valid_and_in_one_order(case: LayerCase) -> None:
    _holds(layer_judge.graphs_are_valid, case)


@examples(40)
@given(layer_cases(tame=True))
def test_moving_statistics_do_not_matter_in_training(case: LayerCase) -> None:
    _holds(layer_judge.moving_statistics_do_not_matter, case)


@examples(40)
@given(layer_cases(tame=True))
def test_gradients_are_orthogonal_to_a_shift_and_nearly_to_a_factor(case: LayerCase) -> None:
    _holds(layer_judge.gradients_are_orthogonal, case)


@examples(40)
@given(layer_cases(tame=True, dtypes=("float32", "float64", "float16")), st.integers(-8, 8))
def test_a_shift_of_every_channel_does_not_matter(case: LayerCase, shift: int) -> None:
    _holds(layer_judge.a_shift_does_not_matter, case, shift)


@examples(40)
@given(layer_cases(tame=True, dtypes=("float32", "float64", "bfloat16")), st.integers(-20, 20))
def test_a_power_of_two_does_not_matter_without_epsilon(case: LayerCase, exponent: int) -> None:
    _holds(layer_judge.a_power_of_two_does_not_matter, case, exponent)


@examples(40)
@given(graph_cases())
def test_an_expanded_training_graph_in_replicas_is_the_original_on_the_whole_batch(case: GraphCase) -> None:
    _holds(replicas_are_the_batch, case)
