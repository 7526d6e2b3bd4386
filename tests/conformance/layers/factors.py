"""The arguments of the layers as factors with levels, which levels go together, and the case that a row stands for.

``legal`` says from the sources of the classes what they take; it is written apart from BatchNormSpec on purpose.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.conformance.layers.cases import Api, Case
from tests.conformance.layers.covering import Row

BATCH = 8
PLACES: dict[str, tuple[tuple[int, ...], int | list[int]]] = {
    "2 last": ((BATCH, 3), -1),
    "2 first": ((3, 5), 0),
    "3 last": ((BATCH, 3, 2), -1),
    "3 middle": ((BATCH, 3, 4), 1),
    "4 last": ((BATCH, 2, 2, 3), -1),
    "4 second": ((BATCH, 3, 2, 2), 1),
    "4 third": ((BATCH, 2, 3, 2), 2),
    "5 last": ((BATCH, 2, 1, 2, 2), -1),
    "5 second": ((BATCH, 2, 2, 1, 2), 1),
    "6 fourth": ((BATCH, 1, 2, 3, 1, 2), 3),
    "1": ((4,), -1),
    "3 list": ((BATCH, 2, 3), [1, 2]),
    "4 list": ((BATCH, 2, 2, 3), [-1, 1]),
    "5 list": ((BATCH, 2, 1, 2, 3), [1, 4]),
}
"""Shape and axis."""

RENORM: dict[str, dict[str, Any]] = {
    "no": {},
    "plain": {"renorm": True},
    "clipped": {"renorm": True, "renorm_clipping": {"rmin": 0.8, "rmax": 1.25, "dmax": 0.4}, "renorm_momentum": 0.8},
    "tensors": {"renorm": True, "renorm_clipping": {"rmin": "tensor", "rmax": "tensor", "dmax": "tensor"}},
}
CLIP = {"rmin": 0.8, "rmax": 1.25, "dmax": 0.4}
PARAMETERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "learnt": {
        "gamma_regularizer": {"class_name": "L2", "config": {"l2": 0.25}},
        "beta_regularizer": {"class_name": "L1", "config": {"l1": 0.5}},
        "gamma_constraint": {"class_name": "MaxNorm", "config": {"max_value": 1.5, "axis": 0}},
        "beta_constraint": {"class_name": "NonNeg", "config": {}},
    },
}

_TF_KERAS: dict[str, Sequence[str]] = {
    "place": ["2 last", "4 last", "3 middle", "4 second", "5 last", "2 first", "4 list"],
    "dtype": ["float32", "float16", "bfloat16", "float64"],
    "momentum": ["0.99", "0.5", "0"],
    "epsilon": ["1e-3", "1e-2"],
    "center": ["yes", "no"],
    "scale": ["yes", "no"],
    "renorm": ["no", "plain", "clipped", "tensors"],
    "fused": ["None", "True", "False"],
    "ghost": ["no", "4"],
    "adjustment": ["no", "channel", "mixed"],
    "training": ["bool", "tensor"],
    "mask": ["no", "partial", "broadcast"],
    "trainable": ["yes", "no"],
    "parameters": list(PARAMETERS),
    "data": ["normal", "mean 1e2"],
}
_SYNC = {name: levels for name, levels in _TF_KERAS.items() if name != "fused"} | {
    "replicas": ["1", "2 equal", "2 unequal", "4 one empty"]
}
_ONLY_TF_KERAS = ("fused", "ghost", "adjustment", "training")
FACTORS: dict[Api, Mapping[str, Sequence[str]]] = {
    "sync": _SYNC,
    "tf1": _TF_KERAS | {"way": ["graph", "eager"]},
    "keras_v1": _TF_KERAS | {"way": ["eager", "graph"]},
    "tf_keras": _TF_KERAS | {"synchronized": ["no", "yes"]},
    "keras3": {name: levels for name, levels in _SYNC.items() if name not in _ONLY_TF_KERAS}
    | {"place": [p for p in _TF_KERAS["place"] if "list" not in p], "synchronized": ["no", "yes"]},
}
_EVERYWHERE = {name: levels[0] for factors in FACTORS.values() for name, levels in factors.items()} | {"way": "eager"}


def plain(api: Api) -> Row:
    """Return the plain level of every factor, also of those that the class does not have."""
    return _EVERYWHERE | {name: levels[0] for name, levels in FACTORS[api].items()}


def legal(api: Api, row: Row) -> bool:
    """Return whether a layer takes these levels together."""
    whole = plain(api) | row | {"api": api}
    return all(
        rule(whole) for rule in (_place, _fused, _ghost, _mask, _replicas, _learning, _two_ways, _double, _frozen)
    )


def _place(row: Row) -> bool:
    shape, axis = PLACES[row["place"]]
    if isinstance(axis, list):
        return row["api"] != "keras3"
    return len(shape) > 1 or row["data"] == "normal"


def _fused(row: Row) -> bool:
    if row["fused"] != "True" or row["api"] in {"tf1", "keras_v1"}:
        return True
    apart = ("renorm", "ghost", "adjustment", "synchronized")
    place = row["place"] in {"4 last", "4 second", "5 last", "5 second"}
    return place and row["dtype"] != "float64" and all(row[name] == "no" for name in apart)


def _ghost(row: Row) -> bool:
    if row["ghost"] == "no":
        return True
    shape, axis = PLACES[row["place"]]
    return axis != 0 and len(shape) > 1 and row["adjustment"] == "no" and row["mask"] == "no"


def _mask(row: Row) -> bool:
    rank = len(PLACES[row["place"]][0])
    return rank > {"no": 0, "partial": 1, "broadcast": 2}[row["mask"]]


def _replicas(row: Row) -> bool:
    if row["replicas"] == "1":
        return True
    if row["api"] == "keras3" and row["synchronized"] == "no":
        return False
    if row["api"] == "keras3" and row["mask"] != "no" and row["replicas"] == "4 one empty":
        return False  # masks are not synchronized there, so one replica has no element at all: a deviation of its own
    simple = row["training"] == "bool" and row["parameters"] == "plain" and row["ghost"] == "no"
    return simple and row["place"] not in {"1", "2 first"}


def _learning(row: Row) -> bool:
    return row["parameters"] == "plain" or (row["trainable"] == "yes" and {row["center"], row["scale"]} == {"yes"})


def _two_ways(row: Row) -> bool:
    """In a graph of TensorFlow 1, ghost batches stay on where ``training`` is a tensor: a deviation of its own."""
    return not (row["way"] == "graph" and row["ghost"] != "no" and row["training"] == "tensor")


def _frozen(row: Row) -> bool:
    """With ``trainable=False`` the V1 classes update the averages of renorm eagerly, but not in a graph: deviations.

    keras_v1 stands for the first, tf1 for the second.
    """
    if row["api"] not in {"tf1", "keras_v1"} or row["trainable"] == "yes" or row["renorm"] == "no":
        return True
    return row["way"] == ("graph" if row["api"] == "tf1" else "eager")


def _double(row: Row) -> bool:
    """Renorm and NonNeg of tf_keras bring float32 numbers into a float64 layer, and raise: deviations."""
    if row["dtype"] != "float64" or row["api"] == "keras3":
        return True
    return row["renorm"] == "no" and row["parameters"] == "plain"


def case_of(api: Api, row: Row, kind: str, name: str) -> Case:
    """Return the case that a row of levels stands for."""
    full = plain(api) | row
    shape, axis = PLACES[full["place"]]
    arguments: dict[str, Any] = {"axis": axis} if axis != -1 else {}
    arguments |= {k: float(full[k]) for k in ("momentum", "epsilon") if k in row}
    arguments |= {k: False for k in ("center", "scale", "trainable") if full[k] == "no"}
    arguments |= RENORM[full["renorm"]] | PARAMETERS[full["parameters"]]
    arguments |= {"fused": full["fused"] == "True"} if full["fused"] != "None" else {}
    arguments |= {"virtual_batch_size": int(full["ghost"])} if full["ghost"] != "no" else {}
    arguments |= {"adjustment": full["adjustment"]} if full["adjustment"] != "no" else {}
    arguments |= {"synchronized": True} if full["synchronized"] == "yes" else {}
    return Case(
        row=kind,
        api=api,
        name=name,
        arguments=arguments,
        shares=_shares(shape, full["replicas"]),
        dtype=full["dtype"],
        graph=full["way"] == "graph",
        training="tensor" if full["training"] == "tensor" else "bool",
        mask="" if full["mask"] == "no" else full["mask"],
        data=full["data"],
        clip=dict(CLIP) if full["renorm"] == "tensors" else {},
        learning_rate=0.25 if full["parameters"] == "learnt" else 0.0,
    )


def _shares(shape: tuple[int, ...], replicas: str) -> tuple[tuple[int, ...], ...]:
    batches = {"1": [shape[0]], "2 equal": [4, 4], "2 unequal": [5, 2], "4 one empty": [5, 2, 1, 0]}[replicas]
    return tuple((n, *shape[1:]) for n in batches)
