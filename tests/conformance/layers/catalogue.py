"""The cases that every test run takes: each argument of each layer alone, then all arguments in pairs.

Each case carries the key of its row (``rows.py``).
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from tests.conformance.layers.cases import APIS, Api, Case
from tests.conformance.layers.factors import CLIP, RENORM, case_of
from tests.conformance.layers.rows import TF_KERAS

PAIRWISE = Path(__file__).with_name("pairwise.json")
L2 = {"class_name": "L2", "config": {"l2": 0.1}}


@cache
def cases() -> tuple[Case, ...]:
    """Return the cases of every row and class."""
    found = [case for api in APIS for case in (*alone(api), *pairwise(api))]
    assert len({case.id for case in found}) == len(found)
    return tuple(found)


def pairwise(api: Api) -> Iterator[Case]:
    """Yield the cases of the covering array of a class, which ``tools.conformance.pairs`` writes."""
    for number, row in enumerate(levels(api)):
        yield case_of(api, row, "pairs", f"{number:02}")


def levels(api: Api) -> list[dict[str, str]]:
    """Return the covering array of a class; a factor that is left out has its first level."""
    found: list[dict[str, str]] = json.loads(PAIRWISE.read_text(encoding="utf-8"))[api]
    return found


def alone(api: Api) -> Iterator[Case]:
    """Yield the cases in which one argument is not the plain one."""
    for make in (
        _axis,
        _axis_list,
        _momentum_epsilon,
        _center_scale,
        _initializers,
        _learning,
        _renorm,
        _fused,
        _virtual_batch,
        _adjustment,
        _trainable,
        _name,
        _training,
        _synchronized,
        _mask,
        _rank,
        _formula,
        _dtype,
    ):
        yield from make(api)
    if api == "tf1":
        yield Case("eager", "tf1", "called")


def _way(api: Api) -> dict[str, Any]:
    """Run tf1 as its users do, in a graph."""
    return {"graph": api == "tf1"}


def _axis(api: Api) -> Iterator[Case]:
    for name, shape, axis in (
        ("0 of 2", (3, 5), 0),
        ("1 of 3", (4, 3, 5), 1),
        ("-2 of 4", (3, 2, 3, 2), -2),
        ("1 of 4", (3, 4, 2, 2), 1),
        ("2 of 5", (2, 2, 3, 2, 2), 2),
        ("3 of 6", (2, 1, 2, 3, 1, 2), 3),
    ):
        yield Case("axis", api, name, {"axis": axis}, (shape,), **_way(api))


def _axis_list(api: Api) -> Iterator[Case]:
    if api == "keras3":
        return
    for shape, axis in (((4, 3, 2), [1, 2]), ((3, 2, 2, 3), [3, 1]), ((2, 2, 2, 2, 2), [1, 2, 3]), ((4, 3, 2, 2), [1])):
        name = f"{','.join(map(str, axis))} of {len(shape)}"
        yield Case("axis list", api, name, {"axis": axis}, (shape,), **_way(api))


def _momentum_epsilon(api: Api) -> Iterator[Case]:
    for name, arguments in (
        ("momentum 0", {"momentum": 0.0}),
        ("momentum 1", {"momentum": 1.0}),
        ("momentum 0.9", {"momentum": 0.9}),
        ("epsilon 1", {"epsilon": 1.0}),
        ("epsilon 0", {"epsilon": 0.0}),
    ):
        yield Case("momentum epsilon", api, name, arguments, ((4, 2, 2, 3),), **_way(api))
    for shape in ((6, 3), (4, 2, 2, 3)):  # a variance of 1e-6 shows what became of a small epsilon
        small = {"epsilon": 1e-7}
        yield Case(
            "momentum epsilon", api, f"epsilon 1e-7 rank {len(shape)}", small, (shape,), data="tiny", **_way(api)
        )


def _center_scale(api: Api) -> Iterator[Case]:
    for name, arguments in (
        ("no beta", {"center": False}),
        ("no gamma", {"scale": False}),
        ("neither", {"center": False, "scale": False}),
    ):
        yield Case("center scale", api, name, arguments, ((4, 2, 2, 3),), **_way(api))


def _initializers(api: Api) -> Iterator[Case]:
    constant = {
        f"{name}_initializer": {"class_name": "Constant", "config": {"value": value}}
        for name, value in (("beta", 0.5), ("gamma", -1.5), ("moving_mean", 0.25), ("moving_variance", 2.0))
    }
    yield Case("initializers", api, "default", own_start=True, **_way(api))
    yield Case("initializers", api, "constant", constant, own_start=True, **_way(api))
    yield Case("initializers", api, "renorm", constant | {"renorm": True}, own_start=True, **_way(api))


def _learning(api: Api) -> Iterator[Case]:
    way = {**_way(api), "learning_rate": 0.5}
    yield Case(
        "regularizers",
        api,
        "L2 and L1L2",
        {
            "gamma_regularizer": L2,
            "beta_regularizer": {"class_name": "L1L2", "config": {"l1": 0.3, "l2": 0.2}},
        },
        **way,
    )
    yield Case("regularizers", api, "L1", {"gamma_regularizer": {"class_name": "L1", "config": {"l1": 0.3}}}, **way)
    for name, config in (
        ("NonNeg", {}),
        ("UnitNorm", {"axis": 0}),
        ("MaxNorm", {"max_value": 1.2, "axis": 0}),
        ("MinMaxNorm", {"min_value": 0.5, "max_value": 1.5, "rate": 0.75, "axis": 0}),
    ):
        constraint = {"class_name": name, "config": config}
        yield Case("constraints", api, name, {"gamma_constraint": constraint, "beta_constraint": constraint}, **way)


def _renorm(api: Api) -> Iterator[Case]:
    for name in ("plain", "clipped"):
        yield Case("renorm", api, name, RENORM[name] | {"momentum": 0.9}, ((4, 2, 2, 3),), **_way(api))
    yield Case("renorm clipping", api, "rmax", {"renorm": True, "renorm_clipping": {"rmax": 1.05}}, **_way(api))
    yield Case("renorm clipping", api, "dmax", {"renorm": True, "renorm_clipping": {"dmax": 0.3}}, **_way(api))
    yield Case("renorm clipping", api, "tensors", RENORM["tensors"], clip=dict(CLIP), **_way(api))
    clipping = dict.fromkeys(CLIP, "variable")
    if api != "keras3":
        arguments = {"renorm": True, "renorm_clipping": clipping}
        yield Case("renorm clipping", api, "variables", arguments, clip=dict(CLIP), **_way(api) | {"graph": False})


def _fused(api: Api) -> Iterator[Case]:
    if api not in TF_KERAS:
        return
    for name, fused, shape, axis in (
        ("None rank 4", None, (2, 2, 3, 3), -1),
        ("True rank 4 axis 1", True, (2, 3, 2, 2), 1),
        ("True rank 5", True, (2, 2, 1, 2, 3), 4),
        ("False rank 4", False, (2, 2, 3, 3), -1),
        ("None rank 5 axis 1", None, (2, 3, 2, 1, 2), 1),
    ):
        yield Case("fused", api, name, {"fused": fused, "axis": axis}, (shape,), **_way(api))
    if api in {"tf1", "keras_v1"}:  # silently not fused
        yield Case("fused", api, "True rank 2", {"fused": True}, **_way(api))
        yield Case("fused", api, "True with renorm", {"fused": True, "renorm": True}, ((2, 2, 3, 3),), **_way(api))
        yield Case("fused", api, "True axis 2", {"fused": True, "axis": 2}, ((2, 2, 3, 3),), **_way(api))


def _virtual_batch(api: Api) -> Iterator[Case]:
    if api == "keras3":
        return
    for name, size, shape, axis in (
        ("rank 2", 4, (12, 3), -1),
        ("rank 4 axis 1", 2, (6, 3, 2, 2), 1),
        ("axis 3 list", 3, (6, 2, 2, 3), [1, 3]),
        ("the whole batch", 6, (6, 2, 3), -1),
    ):
        yield Case("virtual batch", api, name, {"virtual_batch_size": size, "axis": axis}, (shape,), **_way(api))


def _adjustment(api: Api) -> Iterator[Case]:
    if api == "keras3":
        return
    for name, shape, axis in (
        ("channel", (4, 2, 2, 3), -1),
        ("sample", (4, 3, 5), 1),
        ("mixed", (4, 2, 3), [1, 2]),
        ("scalar", (6, 3), -1),
    ):
        yield Case("adjustment", api, name, {"adjustment": name, "axis": axis}, (shape,), **_way(api))
    bare = {"adjustment": "mixed", "center": False, "scale": False}
    yield Case("adjustment", api, "without gamma, beta", bare, **_way(api))


def _trainable(api: Api) -> Iterator[Case]:
    yield Case("trainable", api, "False rank 2", {"trainable": False}, **_way(api))
    yield Case("trainable", api, "False rank 4", {"trainable": False}, ((4, 2, 2, 3),), **_way(api))
    yield Case("trainable", api, "False renorm", {"trainable": False, "renorm": True}, **_way(api))


def _name(api: Api) -> Iterator[Case]:
    yield Case("name reuse", api, "named", {"name": "stem_bn"}, **_way(api))


def _training(api: Api) -> Iterator[Case]:
    mixed = (True, False, True, True, False, True)
    yield Case("training bool", api, "changing", steps=mixed, **_way(api))
    if api != "keras3":
        for name, arguments, shape in (
            ("rank 2", {}, (6, 3)),
            ("rank 4", {}, (4, 2, 2, 3)),
            ("renorm", RENORM["clipped"], (6, 3)),
            ("adjustment", {"adjustment": "mixed"}, (6, 3)),
        ):
            yield Case("training tensor", api, name, arguments, (shape,), training="tensor", steps=mixed, **_way(api))
        if api != "tf1":
            ghost = {"virtual_batch_size": 3}
            yield Case("training tensor", api, "ghost batches are off", ghost, training="tensor", steps=mixed)
    if api in {"tf1", "keras_v1"}:
        yield Case("UPDATE_OPS", api, "run", graph=True)
        yield Case("UPDATE_OPS", api, "run, fused", shares=((4, 2, 2, 3),), graph=True)


def _synchronized(api: Api) -> Iterator[Case]:
    if api not in {"sync", "tf_keras", "keras3"}:
        return
    arguments = {} if api == "sync" else {"synchronized": True}
    for name, shares in (
        ("alone", ((6, 3),)),
        ("2 equal", ((4, 2, 3), (4, 2, 3))),
        ("2 unequal", ((5, 3, 2), (2, 3, 2))),
        ("4 down to none", ((5, 3), (2, 3), (1, 3), (0, 3))),
    ):
        axis = {"axis": 1} if name == "2 unequal" else {}
        yield Case("synchronized", api, name, arguments | axis, shares)
    unequal = ((5, 2, 3), (2, 2, 3))
    yield Case("synchronized", api, "renorm", arguments | RENORM["clipped"], unequal)
    yield Case("synchronized", api, "float16", arguments, ((5, 3), (2, 3), (1, 3), (0, 3)), "float16")
    if api != "keras3":
        yield Case("synchronized", api, "mask", arguments, unequal, mask="partial")
        yield Case("synchronized", api, "one fully masked", arguments, unequal, mask="first masked")


def _mask(api: Api) -> Iterator[Case]:
    for name, shape, mask, arguments in (
        ("partial rank 2", (8, 3), "partial", {}),
        ("per time", (4, 5, 3), "partial", {}),
        ("broadcast rank 4", (3, 4, 2, 3), "broadcast", {"fused": False} if api in TF_KERAS else {}),
        ("none left", (4, 5, 3), "none left", {}),
        ("one channel", (4, 5, 1), "partial", {}),
        ("two left", (4, 5, 3), "two left", {}),
        ("axis 1", (4, 3, 5), "partial", {"axis": 1}),
    ):
        yield Case("mask", api, name, arguments, (shape,), mask=mask, **_way(api))
    if api in TF_KERAS:
        yield Case("mask", api, "ignored when fused", {}, ((3, 4, 2, 3),), mask="partial", **_way(api))


def _rank(api: Api) -> Iterator[Case]:
    for shape in ((4,), (5, 3), (3, 4, 2), (2, 3, 2, 2), (2, 2, 1, 3, 2), (2, 1, 2, 2, 1, 3)):
        yield Case("rank", api, str(len(shape)), {}, (shape,), **_way(api))


def _formula(api: Api) -> Iterator[Case]:
    yield Case("formula", api, "rank 2", {"momentum": 0.9, "epsilon": 1e-2}, **_way(api))
    yield Case("formula", api, "one sample", {}, ((1, 3),), **_way(api))
    for mean in ("1e2",) if api == "sync" else ("1e2", "1e3", "1e4"):  # one pass keeps little of a larger one
        yield Case("formula", api, f"mean {mean}", {}, ((8, 3),), data=f"mean {mean}", **_way(api))


def _dtype(api: Api) -> Iterator[Case]:
    for dtype in ("float16", "bfloat16", "float64"):
        yield Case("dtype", api, f"{dtype} rank 2", {}, ((6, 3),), dtype, **_way(api))
        yield Case("dtype", api, f"{dtype} rank 4", {"epsilon": 1e-2}, ((4, 2, 2, 3),), dtype, **_way(api))
    yield Case("dtype", api, "float16 large", {}, ((6, 3),), "float16", data="large", **_way(api))
    if api == "keras3":  # tf_keras raises
        yield Case("dtype", api, "float64 renorm", RENORM["clipped"], ((6, 3),), "float64")
    if api == "tf_keras":
        yield replace(Case("dtype", api, "mixed policy", {}, ((6, 3),), "float16"), policy="mixed_float16")
