"""The cases of published tests of the layers, rebuilt from what they say: their arguments, their numbers, their steps.

``test_tf_keras_published.py`` says what each of them is about.
"""

from collections.abc import Mapping
from itertools import product
from typing import Any

from tests.conformance.layers.cases import Api, Case

INFERENCE = (False,)
TRAINING = (True,)
BOTH = (True, False)
LONG = (*[True] * 25, False)
"""Long enough for momentum 0.8 to forget where it started."""

_CLIPPING = {"rmin": 0.3, "rmax": 3.0, "dmax": 5.0}
_FRESH = {"own_start": True}
_MIXED = {"dtype": "float16", "policy": "mixed_float16"}


def constant(**values: float) -> dict[str, Any]:
    """Return initializers with one number each."""
    return {
        f"{name}_initializer": {"class_name": "Constant", "config": {"value": value}} for name, value in values.items()
    }


def _one(
    name: str,
    api: Api,
    arguments: Mapping[str, Any] | None = None,
    *shares: tuple[int, ...],
    **more: Any,
) -> Case:
    return Case("published", api, name, dict(arguments or {}), shares, **more)


def _basics() -> list[Case]:
    """Return the layers that are only called, with what they are called with."""
    l2 = {"class_name": "L2", "config": {"l2": 0.01}}
    regularized = {"momentum": 0.9, "epsilon": 0.1, "gamma_regularizer": l2, "beta_regularizer": l2}
    initialized = {"gamma_initializer": "ones", "beta_initializer": "ones"}
    bare = {"scale": False, "center": False}
    both = {"beta_regularizer": "l2", "gamma_regularizer": "l2"}
    steps = {"steps": BOTH, **_FRESH}
    return [
        _one("regularized", "tf_keras", regularized, (3, 4, 2), **steps),
        _one("initialized rank 3", "tf_keras", initialized, (3, 4, 2), **steps),
        _one("initialized rank 4", "tf_keras", initialized, (3, 2, 4, 2), **steps),
        _one("bare", "tf_keras", bare, (3, 3), **steps),
        _one("l1 of both", "tf_keras", {"gamma_regularizer": "l1", "beta_regularizer": "l1"}, (2, 3, 4), steps=BOTH),
        _one("fused rank 4", "tf_keras", {"fused": True}, (3, 3, 3, 3), **steps),
        _one("fused None rank 3", "tf_keras", {"fused": None}, (3, 3, 3), **steps),
        _one("vector", "keras3", {}, (2, 3), **steps),
        _one("bare vector", "keras3", bare, (2, 3), **steps),
        _one("image", "keras3", both, (2, 4, 4, 3), **steps),
        _one("renorm vector", "keras3", {"renorm": True}, (2, 3), **steps),
        _one("renorm image", "keras3", {"renorm": True, "renorm_clipping": _CLIPPING}, (2, 4, 4, 3), **steps),
    ]


def _trained() -> list[Case]:
    """Return layers that have seen enough of numbers with mean 5 and standard deviation 10."""
    loose, sync = {"momentum": 0.8, "fused": False}, {"synchronized": True}
    more: dict[str, Any] = {"data": "wide", "steps": LONG}
    images = ((60, 3, 4, 4), (60, 4, 4, 3))
    return [
        *(_one("trained", api, loose, (250, 2, 2, 2), **more) for api in ("keras_v1", "tf_keras")),
        *(
            _one("trained half", api, loose, (250, 2, 2, 2), dtype="float16", **more)
            for api in ("keras_v1", "tf_keras")
        ),
        _one("trained sync", "tf_keras", loose | sync, (250, 2, 2, 2), **more),
        _one("trained channels first", "tf_keras", {"momentum": 0.8, "axis": 1}, images[0], **more),
        _one("trained channels first sync", "tf_keras", {"momentum": 0.8, "axis": 1} | sync, images[0], **more),
        _one("trained channels last", "tf_keras", {"momentum": 0.8}, images[1], **more),
        _one(
            "trained thawed", "keras3", {"momentum": 0.8, "epsilon": 1e-7}, (50, 4, 4, 3), **more | {"steps": LONG[:10]}
        ),
    ]


def _masked() -> list[Case]:
    """Return padded samples of which two positions count, and momentum 0."""
    padded: dict[str, Any] = {"mask": "two positions", "steps": LONG[:5], **_FRESH}
    forget, sync = {"momentum": 0.0}, {"synchronized": True}
    zero = padded | {"data": "padded with 0"}
    return [
        *(_one("padded", api, forget, (10, 4, 2), **zero) for api in ("keras_v1", "tf_keras")),
        _one("padded sync", "tf_keras", forget | sync, (10, 4, 2), **zero),
        _one("padded sync of 2", "tf_keras", forget | sync, (6, 4, 2), (4, 4, 2), **zero),
        *(
            _one(f"padded with {value}", "keras3", forget, (10, 4, 2), data=f"padded with {value}", **padded)
            for value in ("0", "0.1", "1")
        ),
        *(
            _one(
                f"all masked{' sync' * synchronized}",
                "keras3",
                {"scale": False, "center": False, "synchronized": synchronized},
                (4, 5),
                data="zeros",
                mask="none left",
                steps=TRAINING,
                **_FRESH,
            )
            for synchronized in (False, True)
        ),
        _one(
            "broadcast mask",
            "keras3",
            {"momentum": 0.0},
            (1, 2, 3, 4),
            data="ones",
            mask="all, of length 1",
            steps=TRAINING,
            **_FRESH,
        ),
    ]


def _numbers() -> list[Case]:
    """Return layers of which a number is known."""
    far: dict[str, Any] = {"data": "-1000 and 1000", "steps": TRAINING, **_FRESH}
    bessel = {"momentum": 0.5, "moving_variance_initializer": "zeros"}
    ramp: dict[str, Any] = {"data": "ramp", "steps": TRAINING, **_FRESH}
    known = constant(moving_mean=0.5, moving_variance=100.0)
    large = constant(moving_variance=70000.0)
    stddev = constant(moving_variance=4.0) | {"renorm": True}
    tenths = {"renorm": True, "momentum": 0.9, "renorm_momentum": 0.8}
    return [
        *(
            _one(f"far fused {fused}", "tf_keras", {"fused": fused}, (2, 1, 1, 1), **_MIXED, **far)
            for fused in (True, False)
        ),
        _one("mixed", "tf_keras", {"momentum": 0.8}, (10, 4, 4, 3), steps=INFERENCE, **_MIXED, **_FRESH),
        _one("mixed ramp", "tf_keras", {"momentum": 0.8}, (10, 4, 4, 3), **ramp | {"steps": INFERENCE}, **_MIXED),
        _one("in a function", "tf_keras", {}, (1, 1), data="halves", training="tensor", steps=LONG[:10], **_FRESH),
        *(
            _one(f"0 and 2 of rank {len(shape)}", "tf_keras", bessel, shape, data="0 and 2", steps=TRAINING, **_FRESH)
            for shape in ((2, 1, 1, 1), (2, 1, 1, 1, 1))
        ),
        _one("ramp", "tf_keras", known, (10, 1), **ramp),
        _one("ramp", "keras_v1", known, (10, 1), graph=True, **ramp),
        _one("large variance", "keras3", large, (1, 4, 4, 3), dtype="float16", steps=INFERENCE, **_FRESH),
        _one("root of the variance", "keras3", stddev, (2, 5), steps=INFERENCE, **_FRESH),
        _one("renorm by hand", "keras3", tenths, (3, 3), steps=TRAINING),
        _one("updates", "keras_v1", {}, (10, 1), data="ones", graph=True, steps=TRAINING, **_FRESH),
        _one("frozen", "keras_v1", {"trainable": False}, (10, 4), steps=BOTH),
        _one("frozen", "tf_keras", {"trainable": False}, (10, 4), steps=BOTH),
        _one("thawed", "tf_keras", {}, (10, 4), steps=BOTH),
        _one(
            "frozen",
            "keras3",
            {"trainable": False, "epsilon": 1e-7},
            (50, 4, 4, 3),
            data="wide",
            steps=TRAINING,
            **_FRESH,
        ),
    ]


FUSED: dict[str, tuple[Api, dict[str, Any], tuple[int, ...], bool]] = {
    "V1 rank 4": ("keras_v1", {}, (2, 4, 4, 4), True),
    "V1 False": ("keras_v1", {"fused": False}, (2, 4, 4, 4), False),
    "V1 ghosts": ("keras_v1", {"virtual_batch_size": 2}, (2, 2, 2, 2), False),
    "V2 rank 4": ("tf_keras", {}, (2, 4, 4, 4), True),
    "V2 rank 3": ("tf_keras", {}, (2, 4, 4), False),
    "V2 rank 5": ("tf_keras", {}, (2, 4, 4, 4, 4), True),
    "V2 ghosts": ("tf_keras", {"virtual_batch_size": 2}, (2, 4, 4, 4), False),
    "V2 False": ("tf_keras", {"fused": False}, (2, 4, 4, 4), False),
    "V2 axis 3": ("tf_keras", {"fused": True, "axis": [3]}, (2, 4, 4, 4), True),
}
"""Layers, and whether they are fused."""

GHOSTS = {"virtual_batch_size": 8}


def _replicas() -> list[Case]:
    """Return synchronized and other layers on two replicas."""
    found = [
        _one(
            f"two replicas{' sync' * sync}{' renorm' * renorm}{' mask' * bool(mask)}",
            "tf_keras",
            {"synchronized": sync, "renorm": renorm},
            (4, 3, 5),
            (4, 3, 5),
            mask=mask,
            steps=BOTH,
            **_FRESH,
        )
        for sync, renorm, mask in product((False, True), (False, True), ("", "two positions"))
    ]
    ramp: dict[str, Any] = {"data": "ramp", "steps": LONG[:3], **_FRESH}
    return found + [
        _one(f"momentum {m}{' renorm' * r}", "sync", {"momentum": m, "renorm": r}, (16, 8), (16, 8), **ramp)
        for m, r in product((0.8, 0.9, 0.99), (False, True))
    ]


CASES: dict[str, Case] = {
    case.id.removeprefix("published-"): case
    for case in (
        *_basics(),
        *_trained(),
        *_masked(),
        *_numbers(),
        *(_one(f"fused {name}", api, given, shape, steps=TRAINING) for name, (api, given, shape, _) in FUSED.items()),
        _one("ghosts in inference", "tf_keras", GHOSTS, (1, 28, 28), steps=INFERENCE),
        *_replicas(),
    )
}
"""Cases that a product has to reproduce, by class and name."""


def _forgetful() -> list[Case]:
    """Return layers of Keras 3 without memory, called three times on what they gave, then in inference."""
    return [
        Case(
            "probe",
            "keras3",
            f"its_own_output axis {axis} rank {len(shape)} {mean} {variance}",
            {"axis": axis, "momentum": 0.0, "moving_mean_initializer": mean, "moving_variance_initializer": variance},
            (shape,),
            data="wide",
            steps=(True, True, True, False),
            own_start=True,
        )
        for axis, shape, mean, variance in product(
            (-1, 1), ((5, 2, 3), (5, 3, 3, 2)), ("zeros", "ones"), ("zeros", "ones")
        )
    ]


PROBES: dict[str, Case] = {
    probe.name: probe
    for probe in (
        *_forgetful(),
        Case(
            "probe",
            "tf_keras",
            "its_own_output in graphs",
            {"scale": False, "center": False, "fused": True},
            ((2, 1, 1, 1),),
            data="-1000 and 1000",
            training="tensor",
            steps=(True, True, True),
            own_start=True,
        ),
        Case("probe", "keras_v1", "shared_layer of V1", {}, ((2, 10),)),
        Case("probe", "tf_keras", "partial_batches", {}, ((0, 2, 2, 2),), own_start=True),
        Case("published", "tf_keras", "ghosts in training", GHOSTS, ((1, 28, 28),), steps=TRAINING),
    )
}
"""What is no case of a product: a sequence of calls, or an error."""
