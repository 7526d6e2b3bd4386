"""The cases of the numbered list that the catalogue does not have; the number is their row."""

from collections.abc import Mapping

from tests.conformance.layers.cases import Case
from tests.conformance.layers.factors import CLIP, RENORM

_SYNC = {"synchronized": True}
_DOWN = ((5, 3), (2, 3), (1, 3), (0, 3))


def _one(
    number: int, name: str, api: str, arguments: Mapping[str, object], *shares: tuple[int, ...], **more: object
) -> Case:
    return Case(f"{number:02}", api, name, dict(arguments), shares or ((6, 3),), **more)  # type: ignore[arg-type]


def _matrix() -> list[Case]:
    """Return training × synchronized × renorm × mask, as tf_keras tests them."""
    return [
        _one(
            41,
            f"{'sync' * sync} {'renorm' * renorm} {'mask' * bool(mask)}".strip() or "plain",
            "tf_keras",
            {"synchronized": sync, "renorm": renorm, "fused": False},
            (4, 3, 2),
            mask=mask,
        )
        for sync in (False, True)
        for renorm in (False, True)
        for mask in ("", "partial")
    ]


CASES = (
    *(
        _one(1, f"{axis} of {len(shape)}", "tf_keras", {"axis": axis}, shape)
        for shape, axis in (((3, 2, 2, 3), [1, 2]), ((2, 2, 2, 2, 2), [1, 2, 3]), ((2, 2, 1, 2, 3), [1, 4]))
    ),
    _one(3, "fused", "tf_keras", {}, (2, 1, 1, 3)),
    _one(3, "not fused", "tf_keras", {}, (2, 3)),
    *(
        _one(7, f"{data} {api} {len(shape)}", api, {"epsilon": epsilon}, shape, data=data)
        for data, epsilon in (("constant", 1e-3), ("tiny", 1.1e-6))
        for api, shape in (("tf_keras", (6, 3)), ("tf_keras", (3, 2, 2, 3)), ("sync", (6, 3)), ("keras3", (6, 3)))
    ),
    _one(7, "mean fused", "tf_keras", {}, (4, 2, 2, 3), data="mean 1e4"),
    *(
        _one(8, f"large {shape} {dtype}", api, {}, shape, dtype=dtype, data="large")
        for dtype in ("float16", "bfloat16")
        for api, shape in (("tf_keras", (3, 2, 2, 3)), ("sync", (6, 3)), ("keras3", (6, 3)))
    ),
    *(
        _one(10, f"{shape}", api, {}, shape)
        for api, shape in (
            ("tf_keras", (1, 3, 3, 2)),
            ("tf_keras", (1, 5, 2)),
            ("tf_keras", (3, 0)),
            ("tf_keras", (4, 1)),
            ("tf_keras", (1, 1, 1, 3)),
            ("keras3", (1, 5, 2)),
            ("keras3", (4, 1)),
            ("keras3", (3, 0)),
        )
    ),
    *(
        _one(11, f"{data} {len(shape)}", api, {}, shape, data=data)
        for data in ("nan", "inf")
        for api, shape in (("tf_keras", (6, 3)), ("tf_keras", (3, 2, 2, 3)), ("keras3", (6, 3)))
    ),
    *(
        _one(17, f"stddev below the root of epsilon {api}", api, {"epsilon": 4.0, "momentum": 0.7} | RENORM["clipped"])
        for api in ("tf_keras", "keras3")
    ),
    *(
        _one(
            18,
            f"{adjustment} {len(shape)}",
            "tf_keras",
            {"adjustment": adjustment, "axis": axis} | RENORM["clipped"],
            shape,
        )
        for adjustment in ("channel", "mixed")
        for shape, axis in (((6, 3), -1), ((3, 2, 2, 2), 1))
    ),
    *(
        _one(
            19,
            f"{len(shape)} {renorm}",
            "tf_keras",
            {"virtual_batch_size": 4} | RENORM[renorm],
            shape,
            clip=CLIP if renorm == "tensors" else {},
        )
        for shape in ((8, 3), (8, 2, 2, 2))
        for renorm in ("plain", "clipped", "tensors")
    ),
    *(
        _one(20, f"axis {axis} of {len(shape)}", "tf_keras", {"virtual_batch_size": 3, "axis": axis}, shape)
        for shape, axis in (((6, 2, 4), 1), ((6, 2, 2, 3), 3), ((6, 2, 2, 3), 1))
    ),
    *(
        _one(24, f"{api} axis 1", api, arguments | {"axis": 1}, (5, 2, 3), (2, 2, 3), (1, 2, 3), (0, 2, 3))
        for api, arguments in (("sync", {}), ("keras3", _SYNC))
    ),
    _one(25, "bfloat16", "sync", {}, *_DOWN, dtype="bfloat16"),
    _one(26, "one element", "sync", {}, (1, 2), (0, 2)),
    _one(26, "one element keras3", "keras3", _SYNC, (1, 2), (0, 2)),
    _one(30, "65 channels", "sync", {}, (2, 5, 5, 65), (1, 5, 5, 65)),
    _one(30, "65 channels fused", "tf_keras", {}, (2, 9, 9, 65)),
    _one(
        33,
        "integers",
        "sync",
        {"momentum": 0.0, "moving_variance_initializer": "zeros"},
        (5, 3),
        (3, 3),
        data="integers",
        own_start=True,
        steps=(True,),
    ),
    *_matrix(),
    _one(42, "synchronized", "sync", RENORM["plain"], (5, 2, 3), (2, 2, 3)),
    *(
        _one(
            43, f"before the first step {api}", api, {"epsilon": epsilon} | RENORM["plain"], steps=(False, True, False)
        )
        for api in ("tf_keras", "keras3")
        for epsilon in (1e-3,)
    ),
    _one(
        43, "a variance below epsilon", "tf_keras", {"epsilon": 4.0} | RENORM["plain"], steps=(False, True, True, False)
    ),
    *(
        _one(44, f"{mask} {dtype}", "keras3", {}, (4, 2, 3), mask=mask, dtype=dtype)
        for mask in ("none left", "one left", "two left", "partial")
        for dtype in ("float32", "float64")
    ),
    _one(44, "fractional", "tf_keras", {"axis": 1}, (4, 2, 3), mask="fractional"),
    _one(44, "fractional 4", "tf_keras", {"fused": False}, (2, 2, 2, 3), mask="fractional"),
    _one(45, "one masked, one empty", "sync", {}, (3, 2, 2), (2, 2, 2), (1, 2, 2), (0, 2, 2), mask="first masked"),
    _one(
        45,
        "with renorm",
        "tf_keras",
        _SYNC | RENORM["plain"],
        (3, 2, 2),
        (2, 2, 2),
        (1, 2, 2),
        (0, 2, 2),
        mask="first masked",
    ),
)
"""Cases that the catalogue does not have."""
