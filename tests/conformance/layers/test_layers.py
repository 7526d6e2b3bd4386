"""Every argument of every layer, alone and in pairs: reference, bodies and expansion do what TensorFlow does."""

from collections.abc import Callable

import pytest

from bnpass.errors import UsageError
from bnpass.layers.model import layer_model
from bnpass.semantics.spec import BatchNormSpec, SpecError
from tests.conformance.layers import meaning
from tests.conformance.layers.arrays import draw
from tests.conformance.layers.cases import Case
from tests.conformance.layers.catalogue import cases
from tests.conformance.layers.conftest import Outcome
from tests.conformance.layers.judge import PRODUCTS, holds
from tests.conformance.layers.oracle.classes import CLASSES
from tests.conformance.layers.refusals import refused

pytestmark = pytest.mark.keras

Oracle = Callable[[Case], Outcome]
by_id = pytest.mark.parametrize("case", cases(), ids=lambda case: case.id)


@pytest.mark.parametrize("product", PRODUCTS)
@by_id
def test_it_computes_what_the_layer_computes(case: Case, product: str, tensorflow: Oracle) -> None:
    facts, results = tensorflow(case)
    assert "error" not in facts, facts
    holds(case, product, draw(case), results)


@by_id
def test_it_means_what_the_layer_says_of_itself(case: Case, tensorflow: Oracle) -> None:
    facts, _ = tensorflow(case)
    layer = meaning.layer(case)
    if "class" in facts:
        assert tuple(facts["class"]) == CLASSES[case.api]
        assert bool(facts["fused"]) == layer.fused
        assert set(facts["types"].values()) == {layer.parameter_dtype}
    assert facts.get("y_type", layer.dtype) == layer.dtype
    name = case.arguments.get("name")
    assert name is None or all(name in variable or "layer_name" in facts for variable in facts["trainable_variables"])
    assert name is None or facts.get("layer_name", name) == name
    if not layer.trainable:
        assert facts["trainable_variables"] == []


@by_id
def test_a_spec_survives_json(case: Case) -> None:
    spec = meaning.spec(case)
    if case.arguments.get("adjustment"):
        with pytest.raises(SpecError):
            spec.to_json()
        return
    assert BatchNormSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(("case", "where"), refused(), ids=[case.id for case, _ in refused()])
def test_what_the_class_refuses_is_refused(case: Case, where: str, tensorflow: Oracle) -> None:
    facts, _ = tensorflow(case)
    assert "error" in facts, "TensorFlow takes it"
    if where == "spec":
        with pytest.raises(SpecError):
            meaning.spec(case)
    elif where == "layer":
        with pytest.raises(SpecError):
            meaning.layer(case)
    else:
        layer = meaning.layer(case)
        with pytest.raises(UsageError):
            layer_model(layer, training=True, mask=bool(case.mask), gradient=True)
