"""What a class refuses, bnpass refuses: cases that raise in TensorFlow, and where they raise here.

WHERE is "spec" (the arguments contradict each other), "layer" (they do not fit the input) or "model" (they cannot be
called like this).
"""

from collections.abc import Iterator
from typing import Any

from tests.conformance.layers.cases import APIS, Api, Case

Refused = tuple[Case, str]
RANK_4 = ((4, 2, 2, 3),)
UNKNOWN_KEY = {"renorm": True, "renorm_clipping": {"smax": 2.0}}
V2 = ("sync", "tf_keras")


def refused() -> list[Refused]:
    """Return the refused cases of every class."""
    found = [one for api in APIS for one in (*_everywhere(api), *(_keras3() if api == "keras3" else _tf_keras(api)))]
    return [*found, *_fused(), *_sync()]


def _case(api: Api, name: str, arguments: dict[str, Any], shape: tuple[int, ...] = (6, 3), **more: Any) -> Case:
    return Case("refused", api, name, arguments, (shape,), graph=api == "tf1", **more)


def _everywhere(api: Api) -> Iterator[Refused]:
    yield _case(api, "axis out of range", {"axis": 2}), "layer"
    yield _case(api, "unknown clipping", UNKNOWN_KEY), "spec"
    if api != "tf1":
        yield _case(api, "reuse", {"reuse": True}), "spec"
    yield _case(api, "unknown initializer", {"gamma_initializer": "nine"}), "spec"
    yield _case(api, "unknown constraint", {"gamma_constraint": "nine"}), "spec"


def _keras3() -> Iterator[Refused]:
    for name, arguments in (
        ("axis list", {"axis": [1]}),
        ("fused", {"fused": True}),
        ("virtual batch", {"virtual_batch_size": 2}),
        ("adjustment", {"adjustment": "channel"}),
        ("rmax below rmin", {"renorm": True, "renorm_clipping": {"rmax": 0.5, "rmin": 1.0}}),
        ("negative dmax", {"renorm": True, "renorm_clipping": {"dmax": -1.0}}),
    ):
        yield _case("keras3", name, arguments), "spec"


def _tf_keras(api: Api) -> Iterator[Refused]:
    yield _case(api, "axis twice", {"axis": [1, -1]}), "layer"
    yield _case(api, "no axis", {"axis": []}), "spec"
    yield _case(api, "virtual batch of 0", {"virtual_batch_size": 0}), "spec"
    yield _case(api, "virtual batch and axis 0", {"virtual_batch_size": 2, "axis": 0}), "layer"
    yield _case(api, "virtual batch does not divide", {"virtual_batch_size": 4}), "layer"
    both = {"virtual_batch_size": 2, "adjustment": "channel"}
    yield _case(api, "virtual batch and adjustment", both), "spec"
    masked = _case(api, "virtual batch and mask", {"virtual_batch_size": 2}, (4, 5, 3), mask="partial")
    yield masked, "model"


def _fused() -> Iterator[Refused]:
    for name, arguments, shape, dtype, where in (
        ("fused rank 2", {}, (6, 3), "float32", "layer"),
        ("fused axis 2", {"axis": 2}, RANK_4[0], "float32", "spec"),
        ("fused list", {"axis": [1, 2]}, RANK_4[0], "float32", "spec"),
        ("fused renorm", {"renorm": True}, RANK_4[0], "float32", "spec"),
        ("fused virtual batch", {"virtual_batch_size": 2}, RANK_4[0], "float32", "spec"),
        ("fused adjustment", {"adjustment": "channel"}, RANK_4[0], "float32", "spec"),
        ("fused float64", {}, RANK_4[0], "float64", "layer"),
        ("fused synchronized", {"synchronized": True}, RANK_4[0], "float32", "spec"),
    ):
        yield _case("tf_keras", name, {"fused": True} | arguments, shape, dtype=dtype), where
    yield _case("tf_keras", "fused None axis -4", {"axis": -4}, RANK_4[0]), "layer"


def _sync() -> Iterator[Refused]:
    yield _case("sync", "fused", {"fused": True}), "spec"
    yield _case("sync", "synchronized", {"synchronized": True}), "spec"
    yield _case("tf1", "synchronized", {"synchronized": True}), "spec"
