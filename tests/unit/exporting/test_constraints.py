"""The constraints of weights are a model of their own, in the names and layouts of the training export."""

import json
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bnpass.exporting.constraints import CONSTRAINTS, constraints_model
from bnpass.exporting.errors import ExportError
from bnpass.exporting.trace import named_variables
from tests.unit.exporting.running import KERAS, QUIET, keras_of, ops, run, sequence, session, trained

pytestmark = [pytest.mark.keras, QUIET]


def doubled(weight: Any) -> Any:
    return weight * 2


def held(keras: Any) -> Any:
    """Return a model with every kind of constraint, on layers of every layout."""
    C, L = keras.constraints, keras.layers
    norms = C.UnitNorm((0, 1)), C.MinMaxNorm(0.1, 0.2, 0.7)
    return sequence(
        keras, (8, 8, 3),
        L.Conv2D(4, 3, kernel_constraint=C.MaxNorm(0.5, axis=(0, 1, 2)), bias_constraint=C.NonNeg()),
        L.SeparableConv2D(4, 3, depthwise_constraint=norms[0], pointwise_constraint=norms[1]),
        L.BatchNormalization(gamma_constraint="non_neg", beta_constraint=doubled),
        L.Conv2DTranspose(2, 3, kernel_constraint="max_norm"),
        L.Flatten(),
        L.Dense(3, kernel_constraint="unit_norm"),
    )  # fmt: skip


@pytest.mark.parametrize("name", KERAS)
def test_weights_come_out_as_keras_would_have_them(name: str) -> None:
    import tensorflow as tf

    model = held(keras_of(name))
    state = {one.input: one for one in trained(model).state}
    found = constraints_model(model, tuple(state.values()), 17)
    assert found is not None
    ready = session(found)
    pairs = json.loads(found.metadata_props[CONSTRAINTS])
    variables = named_variables(model)
    assert [p["variable"] for p in pairs] == [key for key, v in variables.items() if v.constraint is not None]
    assert [p["input"] for p in pairs] == [i.name for i in ready.get_inputs()]
    assert len(pairs) == 8
    rng = np.random.default_rng(3)
    values = {p["variable"]: rng.standard_normal(variables[p["variable"]].shape).astype(np.float32) for p in pairs}
    for value in values.values():
        value.flat[0] = -1
    outputs = run(ready, {p["input"]: state[p["input"]].for_onnx(values[p["variable"]]) for p in pairs})
    for pair in pairs:
        weight = values[pair["variable"]]
        expected = np.asarray(variables[pair["variable"]].constraint(tf.constant(weight)))
        assert np.abs(expected - weight).max() > 0
        # norms of up to some hundred squares, summed in another order
        np.testing.assert_allclose(
            outputs[pair["output"]], state[pair["input"]].for_onnx(expected), rtol=2e-6, atol=1e-7
        )


@pytest.mark.parametrize("name", KERAS)
def test_a_model_without_constraints_has_no_second_model(name: str) -> None:
    keras = keras_of(name)
    model = sequence(keras, (3,), keras.layers.Dense(2))
    assert constraints_model(model, trained(model).state, 17) is None


@pytest.mark.parametrize("name", KERAS)
def test_nothing_of_ours_is_in_it(name: str) -> None:
    model = held(keras_of(name))
    found = constraints_model(model, trained(model).state, 17)
    assert isinstance(found, ir.Model)
    assert set(found.opset_imports) == {""}
    assert not {"BatchNormalization", "Conv"} & set(ops(found))


@pytest.mark.parametrize("name", KERAS)
def test_a_constraint_that_is_no_graph_is_refused_with_its_variable(name: str) -> None:
    keras = keras_of(name)
    model = sequence(keras, (3,), keras.layers.Dense(2, kernel_constraint=lambda w: w * float(np.asarray(w).max())))
    with pytest.raises(ExportError, match=r"the constraint of '[\w/]*dense\w*/kernel' cannot be traced: "):
        constraints_model(model, trained(model).state, 17)


def test_a_radial_constraint_is_refused() -> None:
    keras = keras_of("tf_keras")
    model = sequence(keras, (8, 8, 3), keras.layers.Conv2D(2, 3, kernel_constraint="radial_constraint"))
    with pytest.raises(ExportError, match="the constraint of 'conv2d"):
        constraints_model(model, trained(model).state, 17)
