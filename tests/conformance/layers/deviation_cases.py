"""The cases that show the deviations, and the probes: what cannot be said as a case (``oracle/probes.py``)."""

from dataclasses import replace
from typing import Any

from tests.conformance.layers.cases import Api, Case
from tests.conformance.layers.factors import RENORM

RANK_4 = ((2, 2, 2, 3),)
_TINY = {"epsilon": 1e-7}
_UNEQUAL = ((5, 2, 3), (2, 2, 3))
_GHOST = {"virtual_batch_size": 3}


def _case(name: str, api: Api = "tf_keras", arguments: dict[str, Any] | None = None, **more: Any) -> Case:
    return Case("deviation", api, name, arguments or {}, **more)


_SYNC = {"synchronized": True}
RANDOM = {
    "gamma": {"class_name": "GlorotUniform", "config": {}},
    "beta": {"class_name": "TruncatedNormal", "config": {"mean": 0.5, "stddev": 0.2}},
    "moving_mean": {"class_name": "RandomUniform", "config": {"minval": -0.2, "maxval": 0.3}},
    "moving_variance": {
        "class_name": "VarianceScaling",
        "config": {"scale": 2.0, "mode": "fan_in", "distribution": "untruncated_normal"},
    },
}
_RANDOM = {f"{name}_initializer": described for name, described in RANDOM.items()}
_FROZEN = {"trainable": False, "renorm": True}
_RENORM = {"renorm": True}
_NON_NEG = {"beta_constraint": {"class_name": "NonNeg", "config": {}}}
CASES = {
    case.name: case
    for case in (
        _case("random", arguments=_RANDOM, shares=((1, 4000),), own_start=True, steps=(False,)),
        _case("random keras3", "keras3", _RANDOM, shares=((1, 4000),), own_start=True, steps=(False,)),
        _case(
            "random axes", arguments=_RANDOM | {"axis": [1, 2]}, shares=((1, 50, 80),), own_start=True, steps=(False,)
        ),
        _case("fused", shares=RANK_4),
        _case("not fused", arguments={"fused": False}, shares=RANK_4),
        _case("tiny fused", arguments=_TINY, shares=((4, 2, 2, 3),), data="tiny"),
        _case("float64", dtype="float64"),
        _case("float64 renorm", arguments=_RENORM, dtype="float64"),
        _case("float64 renorm keras3", "keras3", _RENORM, dtype="float64"),
        _case("float64 NonNeg", arguments=_NON_NEG, dtype="float64", learning_rate=0.5),
        _case("fused rank 3", "keras_v1", {"fused": True}, shares=((4, 2, 3),)),
        _case("fused renorm", "keras_v1", {"fused": True} | RENORM["clipped"], shares=RANK_4),
        _case("fused masked", shares=RANK_4, mask="partial"),
        _case("masked nan", mask="partial", data="masked nan", shares=((4, 2, 3),)),
        _case("masked nan keras3", "keras3", mask="partial", data="masked nan", shares=((4, 2, 3),)),
        _case("masked all", mask="none left", shares=((4, 2, 3),)),
        _case("masked all keras3", "keras3", mask="none left", shares=((4, 2, 3),)),
        _case("one left", "keras3", mask="one left", shares=((4, 2, 3),)),
        _case("one left float64", "keras3", mask="one left", shares=((4, 2, 3),), dtype="float64"),
        _case("mask keras3", "keras3", _SYNC, shares=_UNEQUAL, mask="partial"),
        _case("fractional", "sync", shares=_UNEQUAL, mask="fractional"),
        _case("fractional local", arguments={"fused": False}, shares=((5, 2, 3),), mask="fractional"),
        _case("one pass", "sync", shares=((8, 3),), data="mean 1e3"),
        _case("two passes", shares=((8, 3),), data="mean 1e3"),
        _case("one empty", "sync", shares=((3, 2), (0, 2))),
        _case("one empty keras3", "keras3", _SYNC, shares=((3, 2), (0, 2))),
        _case("all empty", "sync", shares=((0, 2), (0, 2))),
        _case("all empty keras3", "keras3", _SYNC, shares=((0, 2), (0, 2))),
        _case("empty batch", shares=((0, 3),)),
        _case("empty batch fused", shares=((0, 2, 2, 3),)),
        _case("empty batch keras3", "keras3", shares=((0, 3),)),
        _case("pooled ghosts", "sync", {"virtual_batch_size": 2}, shares=((4, 3), (4, 3))),
        _case("different ghosts", "sync", {"virtual_batch_size": 2}, shares=((4, 3), (2, 3)), alone=True),
        _case("v1 synchronized", "keras_v1", _SYNC),
        _case("ghost tensor", "keras_v1", _GHOST, training="tensor"),
        _case("ghost tensor graph", "keras_v1", _GHOST, training="tensor", graph=True),
        _case("ghost inference", arguments={"virtual_batch_size": 4}, steps=(False, False)),
        _case("ghost inference graph", "tf1", {"virtual_batch_size": 4}, steps=(False, False), graph=True),
        _case("tensor", "keras3", training="tensor"),
        _case("frozen v1", "keras_v1", {"trainable": False}),
        _case("frozen v2", arguments={"trainable": False}),
        _case("frozen renorm", "keras_v1", _FROZEN),
        _case("frozen renorm tf1", "tf1", _FROZEN),
        _case("frozen renorm graph", "keras_v1", _FROZEN, graph=True),
        _case("frozen renorm tf1 graph", "tf1", _FROZEN, graph=True),
        replace(_case("pure", "keras3", dtype="float16"), policy="float16"),
        _case("pure tf_keras", dtype="float16"),
    )
}
PROBES = {
    probe.name: probe
    for probe in (
        Case("probe", "tf_keras", "fused_mask_warning", shares=RANK_4, mask="partial"),
        Case("probe", "sync", "mean_of_copies", shares=((3, 2), (0, 2))),
        Case("probe", "tf1", "tf1_in_a_function"),
        Case("probe", "tf1", "updates_not_run", graph=True),
        Case("probe", "tf1", "reuse", graph=True),
        Case("probe", "tf_keras", "shared_layer"),
        Case("probe", "tf_keras", "config", {"virtual_batch_size": 2, "synchronized": True, "axis": 1}, ((4, 3, 2),)),
        Case("probe", "keras3", "renorm_arguments"),
    )
}
