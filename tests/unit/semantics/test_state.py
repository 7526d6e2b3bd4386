"""How a layer begins, what its regularizers cost, and what its constraints leave."""

import numpy as np
import pytest

from bnpass.semantics.spec import BatchNormSpec
from bnpass.semantics.state import initial_state, penalty, projected


def test_a_layer_begins_as_keras_says() -> None:
    spec = BatchNormSpec(
        "tf_keras", gamma_initializer={"class_name": "Constant", "config": {"value": 3.0}}, center=False
    )
    state = initial_state(spec, spec.resolve((None, 4)), np.random.default_rng(0))
    np.testing.assert_array_equal(state.scale, 3.0)
    np.testing.assert_array_equal(state.B, 0.0)
    np.testing.assert_array_equal(state.running_var, 1.0)
    assert state.running_stddev is None


def test_renorm_begins_with_the_root_of_the_variance() -> None:
    four = {"class_name": "Constant", "config": {"value": 4.0}}
    spec = BatchNormSpec("tf_keras", renorm=True, moving_variance_initializer=four)
    state = initial_state(spec, spec.resolve((None, 2)), np.random.default_rng(0))
    assert state.running_stddev is not None
    assert state.renorm_mean is not None
    np.testing.assert_array_equal(state.running_stddev, 2.0)
    np.testing.assert_array_equal(state.renorm_mean, 0.0)


def test_the_penalty_is_that_of_parameters_that_exist() -> None:
    l2 = {"class_name": "L2", "config": {"l2": 0.5}}
    spec = BatchNormSpec("tf_keras", gamma_regularizer=l2, beta_regularizer=l2)
    layer = spec.resolve((None, 3))
    state = initial_state(spec, layer, np.random.default_rng(0))
    assert penalty(spec, layer, state) == pytest.approx(1.5)
    without = BatchNormSpec("tf_keras", gamma_regularizer=l2, beta_regularizer=l2, scale=False)
    assert penalty(without, without.resolve((None, 3)), state) == 0.0


def test_constraints_project_what_the_layer_has() -> None:
    spec = BatchNormSpec("tf_keras", gamma_constraint="non_neg", beta_constraint="non_neg", center=False)
    layer = spec.resolve((None, 2))
    state = initial_state(spec, layer, np.random.default_rng(0))
    moved = projected(spec, layer, type(state)(np.array([-1.0, 2.0]), np.array([-1.0, 2.0]), state.running_mean,
                                               state.running_var))  # fmt: skip
    np.testing.assert_array_equal(moved.scale, [0.0, 2.0])
    np.testing.assert_array_equal(moved.B, [-1.0, 2.0])
