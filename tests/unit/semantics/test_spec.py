"""BatchNormSpec: what it refuses at once, what it makes of its arguments, and how it is stored."""

import json
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bnpass.semantics.spec import APIS, BatchNormSpec, SpecError

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("pytorch", {}, "api must be one of"),
    ("sync", {"synchronized": True}, "sync has no argument synchronized"),
    ("sync", {"fused": True}, "fused=True does not go with synchronized statistics"),
    ("sync", {"reuse": True}, "sync has no argument reuse"),
    ("tf1", {"synchronized": True}, "tf1 has no argument synchronized"),
    ("tf1", {"reuse": "yes"}, "reuse must be"),
    ("tf1", {"name": "a b"}, "not a name of a TensorFlow scope"),
    ("keras_v1", {"reuse": False}, "keras_v1 has no argument reuse"),
    ("tf_keras", {"fused": True, "synchronized": True}, "does not go with synchronized"),
    ("tf_keras", {"fused": True, "renorm": True}, "does not go with renorm"),
    ("tf_keras", {"fused": True, "axis": 2}, "does not go with axis 2"),
    ("tf_keras", {"fused": True, "axis": [1, 3]}, r"does not go with axis \(1, 3\)"),
    ("tf_keras", {"fused": True, "virtual_batch_size": 2}, "does not go with virtual_batch_size"),
    ("tf_keras", {"fused": True, "adjustment": lambda shape: shape}, "does not go with adjustment"),
    ("keras3", {"fused": False}, "keras3 has no argument fused"),
    ("keras3", {"virtual_batch_size": 2}, "keras3 has no argument virtual_batch_size"),
    ("keras3", {"adjustment": lambda shape: shape}, "keras3 has no argument adjustment"),
    ("keras3", {"axis": [3]}, "takes one axis"),
    ("keras3", {"name": "a/b"}, "has no '/'"),
    ("keras3", {"renorm": True, "renorm_clipping": {"rmin": 2, "rmax": 1}}, "rmax of at least rmin"),
    ("keras3", {"renorm": True, "renorm_clipping": {"dmax": -0.5}}, "dmax of at least 0"),
    *(
        (api, arguments, message)
        for api in APIS
        for arguments, message in [
            ({"axis": 1.0}, "axis must be"),
            ({"axis": True}, "axis must be"),
            ({"axis": []}, "axis must be"),
            ({"axis": [1, None]}, "axis must be"),
            ({"momentum": "0.9"}, "momentum must be a number"),
            ({"momentum": math.nan}, "momentum must be a number"),
            ({"momentum": math.inf}, "momentum must be finite"),
            ({"epsilon": None}, "epsilon must be a number"),
            ({"epsilon": -1e-3}, "epsilon must not be negative"),
            ({"renorm_momentum": True}, "renorm_momentum must be a number"),
            ({"center": 1}, "center must be True or False"),
            ({"scale": None}, "scale must be True or False"),
            ({"renorm": "yes"}, "renorm must be True or False"),
            ({"trainable": 0}, "trainable must be True or False"),
            ({"name": 3}, "name must be a string"),
            ({"renorm_clipping": 5}, "renorm_clipping must be a mapping"),
            ({"renorm": True, "renorm_clipping": {"rmax": 3, "max": 1}}, r"other than .*\['max'\]"),
            ({"renorm": True, "renorm_clipping": {"rmax": "3"}}, "rmax must be a number"),
            ({"renorm": True, "renorm_clipping": {"dmax": math.nan}}, "dmax must be a number"),
            ({"gamma_initializer": "nonsense"}, "gamma_initializer: initializer 'nonsense' is not known"),
            ({"moving_mean_initializer": None}, "moving_mean_initializer: .*neither a name"),
            ({"beta_regularizer": "nonsense"}, "beta_regularizer: regularizer 'nonsense' is not known"),
            ({"beta_initializer": np.array(["a"])}, "an array must hold numbers"),
            ({"gamma_constraint": np.ones(3)}, "gamma_constraint: constraint 'Constant' is not known"),
        ]
    ),
    *(
        (api, arguments, message)
        for api in APIS[:-1]
        for arguments, message in [
            ({"virtual_batch_size": 0}, "positive int"),
            ({"virtual_batch_size": 2.0}, "positive int"),
            ({"virtual_batch_size": True}, "positive int"),
            ({"adjustment": 3}, "adjustment must be a function"),
            ({"adjustment": lambda shape: shape, "virtual_batch_size": 2}, "cannot be had together"),
        ]
    ),
    *((api, {"fused": 1}, "fused must be") for api in ("tf1", "keras_v1", "tf_keras", "sync")),
]


@pytest.mark.parametrize(("api", "arguments", "message"), REFUSED, ids=lambda x: x if isinstance(x, str) else "")
def test_is_refused_in_clear_words(api: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        BatchNormSpec(api, **arguments)


@pytest.mark.parametrize("api", APIS)
def test_what_a_class_does_not_look_at_is_not_refused(api: Any) -> None:
    assert BatchNormSpec(api, renorm_clipping={"foo": 1}).resolve((6, 3)).renorm is None
    assert BatchNormSpec(api, scale=False, gamma_initializer="orthogonal").resolve((6, 3)).scale is False


def test_keras_v1_ignores_synchronized() -> None:
    spec = BatchNormSpec("keras_v1", synchronized=True, fused=True)
    assert not spec.resolve((6, 4, 5, 3)).synchronized
    assert spec.resolve((6, 4, 5, 3)).fused


def test_numbers_become_floats_and_axes_a_tuple() -> None:
    spec = BatchNormSpec("tf_keras", axis=[3, -3], momentum=np.float32(0.5), epsilon=1)
    assert spec.axis == (3, -3)
    assert (type(spec.momentum), type(spec.epsilon)) == (float, float)
    assert (spec.momentum, spec.epsilon) == (0.5, 1.0)


def test_later_changes_of_the_callers_objects_do_not_reach_the_spec() -> None:
    clipping, config, axis = {"rmax": 3.0}, {"class_name": "Constant", "config": {"value": [1.0, 2.0]}}, [1]
    spec = BatchNormSpec("tf1", axis=axis, renorm=True, renorm_clipping=clipping, beta_initializer=config)
    clipping["rmax"] = 9.0
    config["config"]["value"][0] = 9.0  # type: ignore[index]
    axis[0] = 2
    assert spec == BatchNormSpec(
        "tf1",
        axis=(1,),
        renorm=True,
        renorm_clipping={"rmax": 3.0},
        beta_initializer={"class_name": "Constant", "config": {"value": [1.0, 2.0]}},
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
def test_an_array_is_a_constant_with_these_values(dtype: Any) -> None:
    values = np.array([0.1, 0.2, 0.3], dtype)
    spec = BatchNormSpec("tf_keras", gamma_initializer=values)
    assert spec.gamma_initializer == {"class_name": "Constant", "config": {"value": [float(v) for v in values]}}


STORED = [
    BatchNormSpec("sync"),
    BatchNormSpec("keras3", axis=1, synchronized=True, name="bn"),
    BatchNormSpec("tf1", axis=[3, 1], fused=True, reuse=True, name="a/b", trainable=False),
    BatchNormSpec(
        "tf_keras",
        momentum=0.1,
        epsilon=1e-9,
        center=False,
        virtual_batch_size=4,
        renorm=True,
        renorm_clipping={"rmax": math.inf, "rmin": "tensor", "dmax": None},
        renorm_momentum=0.3,
        gamma_initializer=np.array([0.1, math.nan, -math.inf]),
        gamma_regularizer="l1_l2",
        gamma_constraint={"class_name": "MaxNorm", "config": {"max_value": np.float32(1.5), "axis": (0,)}},
    ),
]


@pytest.mark.parametrize("spec", STORED, ids=lambda s: s.api)
def test_what_is_stored_comes_back(spec: BatchNormSpec) -> None:
    text = json.dumps(spec.to_json(), allow_nan=False)
    again = BatchNormSpec.from_json(json.loads(text))
    assert repr(again) == repr(spec)
    assert json.dumps(again.to_json(), allow_nan=False) == text


def test_the_stored_form_holds_every_argument() -> None:
    assert set(BatchNormSpec("sync").to_json()) == set(BatchNormSpec.__dataclass_fields__)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("adjustment", lambda shape: (np.ones(shape), np.zeros(shape))),
        ("gamma_initializer", lambda shape, dtype=None: np.ones(shape, dtype)),
        ("beta_regularizer", np.sum),
        ("gamma_constraint", abs),
    ],
)
def test_a_function_cannot_be_stored_and_the_argument_is_named(argument: str, value: object) -> None:
    spec = BatchNormSpec("tf_keras", **{argument: value})  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=f"{argument} cannot be stored"):
        spec.to_json()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"api": "sync", "axes": 1}, r"not arguments of a layer: \['axes'\]"),
        ({"axis": 1}, "the key api is missing"),
        ({"api": "sync", "momentum": {"$float": "nan"}}, "momentum must be a number"),
    ],
)
def test_what_is_not_a_stored_spec_is_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        BatchNormSpec.from_json(data)
