"""What a spec means at an input shape, held against the classes themselves.

Run as a program with the argument ``tf_keras`` or ``keras3``, this file measures the classes of that
generation of Keras and prints JSON; the tests below start it so, since TensorFlow is one of the two
for the whole of a process.
"""

import dataclasses
import inspect
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnpass.semantics.resolved import Renorm, Resolved
from bnpass.semantics.spec import APIS, BatchNormSpec, SpecError

ROOT = Path(__file__).resolve().parents[3]
TF = ("sync", "tf1", "keras_v1", "tf_keras")
LAYERS = ("sync", "keras_v1", "tf_keras")
GENERATIONS = {"tf_keras": TF, "keras3": ("keras3",)}
DEFAULTS = {f.name: f.default for f in dataclasses.fields(BatchNormSpec)}
S2, S3, S4, S5 = (6, 3), (6, 4, 3), (6, 4, 5, 3), (6, 2, 2, 2, 3)


def adjustment(_shape: object) -> tuple[float, float]:
    return 1.25, -0.5


def ones(shape: tuple[int, ...], dtype: Any = None) -> Any:
    return np.ones(shape, getattr(dtype, "as_numpy_dtype", dtype))


@dataclass(frozen=True)
class Case:
    """Arguments of a layer and the input it is built for.

    ``apart`` names the classes that decide otherwise than we do, ``why`` says why.
    """

    arguments: dict[str, Any]
    shape: tuple[int | None, ...] = S2
    dtype: str = "float32"
    apart: tuple[str, ...] = ()
    why: str = ""
    training: bool = True

    def is_accepted(self, api: Any) -> str:
        try:
            BatchNormSpec(api, **self.arguments).resolve(self.shape, self.dtype, training=self.training)
        except SpecError as error:
            return str(error)
        return ""


def _shapes() -> list[Case]:
    shapes: list[tuple[int | None, ...]] = [S2, S3, S4, S5, (3,), (6, 2, 2, 2, 2, 3), (), (None, 3), (None, 4, 5, 3)]
    shapes += [(6, None), (None, None, 5, 3), (6, None, None, None, 3), (6, 0), (0, 3), (0, 4, 5, 3)]
    return [Case({}, shape) for shape in shapes]


def _axes() -> list[Case]:
    axes: list[Any] = [*range(-6, 6), [1], [-2], [3, 1], [1, -3], [0, 1], (1, 3), [-1, 3], [0, 9]]
    return [
        *(Case({"axis": a, "fused": f}, s) for a, f, s in product(axes, (None, True, False), (S2, S4, S5))),
        *(Case({"axis": axis}, S4) for axis in ("x", None, [1.0], [])),
        Case({"axis": 1.0}, S4, apart=("keras3",), why="the class makes an int of it"),
        Case({"axis": "1"}, S4, apart=("keras3",), why="the class makes an int of it"),
        Case({"axis": True}, S4, apart=APIS, why="the class takes True for 1"),
    ]


def _types() -> list[Case]:
    found = [
        Case({"fused": f}, s, d) for d in ("float16", "bfloat16", "float64") for f in (None, True) for s in (S2, S4)
    ]
    found += [Case({"axis": 1}, S4, d) for d in ("float16", "bfloat16", "float64")]
    found += [Case({"renorm": True}, S2, d) for d in ("float16", "bfloat16")]
    why = "the class mixes float64 with the float32 root of epsilon; what it means is plain"
    return [*found, Case({"renorm": True}, S2, "float64", TF, why)]


def _modes() -> list[Case]:
    together: list[dict[str, Any]] = [
        {"renorm": True},
        {"virtual_batch_size": 2},
        {"virtual_batch_size": 4},
        {"virtual_batch_size": 7},
        {"virtual_batch_size": 6},
        {"virtual_batch_size": 0},
        {"virtual_batch_size": -2},
        {"virtual_batch_size": 2.0},
        {"virtual_batch_size": "2"},
        {"virtual_batch_size": 2, "axis": 0},
        {"virtual_batch_size": 2, "axis": [1, 2]},
        {"virtual_batch_size": 2, "axis": [0, 1]},
        {"virtual_batch_size": 2, "renorm": True},
        {"virtual_batch_size": 2, "trainable": False},
        {"virtual_batch_size": 4, "trainable": False},
        {"adjustment": adjustment},
        {"adjustment": 3},
        {"adjustment": adjustment, "renorm": True},
        {"adjustment": adjustment, "virtual_batch_size": 2},
        {"synchronized": True},
        {"synchronized": True, "renorm": True},
        {"synchronized": True, "virtual_batch_size": 2},
        {"trainable": False},
        {"trainable": False, "renorm": True},
        {"center": False},
        {"scale": False, "center": False, "renorm": True},
    ]
    found = [
        Case({**arguments, "fused": fused}, shape)
        for arguments, (fused, shape) in product(
            together, ((None, S2), (True, S2), (None, S4), (True, S4), (False, S4))
        )
    ]
    ghost = {"virtual_batch_size": 4}
    return [
        *found,
        Case(ghost, (None, 3), apart=LAYERS, why="the batch of the measurement, 6, is not known to the spec"),
        Case({"virtual_batch_size": 3}, (None, 3)),
        *(Case(ghost, shape, training=False) for shape in (S2, S4, (None, 3))),
    ]


def _numbers() -> list[Case]:
    nan_only = "gives NaN, or an output that does not depend on the input"
    switch = "the class takes whatever Python holds true or false"
    return [
        *(Case({"momentum": m}, s) for m in (0.0, 1.5, -1.0, np.float32(0.9), 1) for s in (S2, (6, 4, 5))),
        Case({"momentum": 0}, S4, apart=("tf1",), why="the class mixes an int with float32 in its fused path"),
        Case({"momentum": "0.9"}, apart=("keras3",), why="the class makes a float of it"),
        *(Case({"momentum": m}, apart=APIS, why=nan_only) for m in (math.nan, math.inf)),
        Case({"momentum": None}),
        *(Case({"epsilon": e}, s) for e in (0, 0.0, 1e-9, np.float32(0.1), 1) for s in (S2, S4)),
        *(Case({"epsilon": e}, apart=APIS, why=nan_only) for e in (math.nan, math.inf, -1e-3)),
        Case({"epsilon": None}),
        Case(
            {"epsilon": None}, S4, apart=("tf1", "keras_v1", "tf_keras"), why="the default of the fused kernel, unsaid"
        ),
        Case({"epsilon": 1, "renorm": True}, apart=TF, why="the class takes the root of an int"),
        *(Case({n: v}, apart=APIS, why=switch) for n in ("center", "scale", "renorm") for v in (1, 0, "no")),
        Case({"trainable": 0}, apart=TF, why=switch),
        Case({"fused": 1}, S4, apart=("tf1", "keras_v1", "tf_keras"), why=switch),
    ]


def _renorm() -> list[Case]:
    limits: list[Any] = [{}, {"rmax": 3.0}, {"rmax": 1, "rmin": 2}, {"rmax": 2, "rmin": 2}, {"dmax": -1.0}, {"dmax": 0}]
    limits += [
        {"foo": 1},
        {"rmax": None},
        {"rmax": "x"},
        {"rmin": -1},
        {"rmax": -1},
        {"rmax": math.inf, "dmax": math.inf},
    ]
    limits += [{"rmin": 0.5, "rmax": np.float32(2)}, "rmax", 5]
    return [
        *(Case({"renorm": True, "renorm_clipping": limit}) for limit in limits),
        Case({"renorm": True, "renorm_clipping": {"rmax": math.nan}}, apart=APIS, why="gives NaN"),
        Case({"renorm": True, "renorm_clipping": {"rmax": [1.0]}}, apart=APIS, why="documented as scalars"),
        Case({"renorm": True, "renorm_clipping": {"rmax": True}}, apart=APIS, why="the class takes True for 1"),
        Case({"renorm_clipping": {"foo": 1}}),
        Case({"renorm_clipping": {"dmax": -1}}),
        Case({"renorm_clipping": 5}, apart=APIS, why="not looked at, but no mapping either"),
        Case({"renorm": True, "renorm_momentum": 1.2}),
        Case({"renorm": True, "renorm_momentum": "x"}),
        Case({"renorm_momentum": "x"}, apart=APIS, why="not looked at, but no number either"),
    ]


def _names() -> list[Case]:
    first = "the first use of a name has nothing to reuse: a matter of the program, not of the layer"
    return [
        *(Case({"name": name}) for name in ("a", "a/b", "a b", "", "1 é", "_a", "a.b-c>d", "-a", 3)),
        Case({"reuse": False}),
        Case({"reuse": "yes"}),
        Case({"reuse": True}, apart=("tf1",), why=first),
        Case({"reuse": True, "name": "zz"}, apart=("tf1",), why=first),
    ]


def _initializers() -> list[Case]:
    plain: list[Any] = [
        "zeros",
        "Ones",
        "constant",
        "glorot_normal",
        "ZerosV2",
        "orthogonal",
        "identity",
        "nonsense",
        0.5,
    ]
    plain += [3, [1, 2, 3], {}, {"config": {}}, {"class_name": "Zeros"}, ones]
    plain += [
        {"class_name": name, "config": config}
        for name, config in [
            ("Constant", {"value": 2.0}),
            ("Constant", {}),
            ("Constant", {"value": [1.0, 2.0, 3.0]}),
            ("Constant", {"value": [1.0, 2.0]}),
            ("RandomNormal", {"stddev": 2.0, "seed": 3}),
            ("RandomNormal", {"std": 2.0}),
            ("VarianceScaling", {"scale": -1.0}),
            ("VarianceScaling", {"mode": "x"}),
            ("VarianceScaling", {"distribution": "Normal"}),
            ("VarianceScaling", {"distribution": "x"}),
            ("HeNormal", {"seed": 1, "input_axes": [0], "output_axes": [0]}),
        ]
    ]
    named = {"class_name": "Constant", "config": {"value": 2.0}, "registered_name": None}
    plain += [{**named, "module": module} for module in ("keras.initializers", "tf_keras.initializers", None)]
    return [
        *(Case({"gamma_initializer": i}) for i in plain),
        *(Case({"moving_variance_initializer": i, "renorm": True}) for i in (*plain, None)),
        *(Case({"gamma_initializer": i, "scale": False}) for i in plain),
        Case({"gamma_initializer": None}, apart=APIS, why="None stands for glorot_uniform: write that"),
        Case(
            {"gamma_initializer": np.ones(3)}, apart=TF, why="an array is stored as a Constant, which the class takes"
        ),
        Case(
            {"gamma_initializer": np.ones(1)}, apart=APIS, why="an array is stored as a Constant, which the class takes"
        ),
        Case({"gamma_initializer": np.ones(2)}),
        Case({"gamma_initializer": {**named, "module": "mine"}}, apart=APIS, why="Keras takes its own of that name"),
        Case(
            {"gamma_initializer": {"class_name": "Constant", "config": {"value": 2.0, "foo": 1}}},
            apart=("keras3",),
            why="a key that nobody reads",
        ),
        *(
            Case({"axis": [0, 1], "gamma_initializer": i}, apart=TF, why="a matrix here, if anyone wants that")
            for i in ("orthogonal", "identity")
        ),
    ]


def _regularizers_and_constraints() -> list[Case]:
    regularizers: list[Any] = ["l1", "L2", "l1_l2", "l1l2", "L1L2", "orthogonal_regularizer", "nonsense", "Regularizer"]
    regularizers += ["regularizer", 3, np.ones(3), {"class_name": "L2"}, lambda w: 0.0 * w[0]]
    regularizers += [
        {"class_name": name, "config": config}
        for name, config in [
            ("L1L2", {"l1": 0.1, "l2": 0.2}),
            ("L2", {"l2": -0.2}),
            ("L2", {"l": 0.2}),
            ("L2", {"l2": None}),
            ("L2", {"l2": math.inf}),
            ("L2", {"foo": 1}),
            ("l1_l2", {}),
            ("l1_l2", {"l1": 0.3}),
        ]
    ]
    constraints: list[Any] = [
        "max_norm",
        "MaxNorm",
        "maxnorm",
        "nonneg",
        "NonNeg",
        "unitnorm",
        "unit_norm",
        "min_max_norm",
    ]
    constraints += [
        "MinMaxNorm",
        "radial_constraint",
        "nonsense",
        "Constraint",
        "constraint",
        3,
        np.ones(3),
        lambda w: w,
    ]
    constraints += [{"class_name": "MaxNorm"}]
    constraints += [
        {"class_name": "MaxNorm", "config": config}
        for config in ({"max_value": 1.5}, {"max_value": -1}, {"axis": 1}, {"axis": None}, {"axis": [0]}, {"foo": 1})
    ]
    return [
        *(Case({"gamma_regularizer": r}) for r in regularizers),
        Case({"scale": False, "gamma_regularizer": "nonsense"}, apart=TF, why="read when the loss is, which it is not"),
        *(Case({"beta_constraint": c}) for c in constraints),
        Case({"beta_constraint": {"class_name": "MinMaxNorm", "config": {"min_value": 2.0, "max_value": 1.0}}}),
        Case(
            {"beta_constraint": {"class_name": "MaxNorm", "config": {"max_value": None}}},
            apart=TF,
            why="None is infinity in tf_keras, an error in Keras 3: write the number",
        ),
        Case({"axis": [1, 3], "beta_constraint": {"class_name": "MaxNorm", "config": {"axis": [1, 3]}}}, S4),
        Case({"axis": [0, 1], "gamma_regularizer": "orthogonal_regularizer"}, apart=TF, why="a matrix here"),
    ]


CASES = [
    case
    for group in (
        _shapes,
        _axes,
        _types,
        _modes,
        _numbers,
        _renorm,
        _names,
        _initializers,
        _regularizers_and_constraints,
    )
    for case in group()
]


@dataclass(frozen=True)
class Probe:
    """Something to find out about a layer by running it."""

    what: str
    arguments: dict[str, Any]
    shape: tuple[int, ...] = S2

    def layer(self, api: Any) -> Resolved | None:
        try:
            return BatchNormSpec(api, **self.arguments).resolve(self.shape)
        except SpecError:
            return None

    def agrees(self, api: Any, answer: Any) -> bool:
        layer = self.layer(api)
        if layer is None or answer is None:
            return layer is answer or (self.what == "mask" and api == "tf1")
        count = math.prod(self.shape) // layer.channels
        expected: dict[str, Callable[[], Any]] = {
            "epsilon": lambda: pytest.approx(layer.epsilon, rel=1e-4),
            "variance": lambda: pytest.approx(count / (count - layer.running_var_correction), rel=1e-5),
            "training": lambda: [layer.uses_batch_statistics(True), layer.updates_statistics(True)],
            "renorm": lambda: layer.updates_renorm(True),
            "mask": lambda: layer.mask_rule,
        }
        return bool(answer == expected[self.what]())


PROBES = [
    *(
        Probe("epsilon", {"epsilon": e, "fused": fused}, shape)
        for e, fused, shape in product((1e-3, 2e-5, 1e-9), (None, False, True), (S2, S4))
    ),
    *(Probe("variance", {"momentum": 0.0}, shape) for shape in (S2, S3, S4, S5)),
    *(Probe("variance", {"momentum": 0.0, "axis": a}, shape) for a in (0, 1, 2, -2, [3], [1, 3]) for shape in (S4, S5)),
    *(
        Probe("variance", {"momentum": 0.0, **arguments}, S4)
        for arguments in ({"fused": False}, {"renorm": True}, {"synchronized": True}, {"adjustment": adjustment})
    ),
    *(
        Probe(what, {"trainable": trainable, "momentum": 0.5, "renorm": what == "renorm"}, shape)
        for what, trainable, shape in product(("training", "renorm"), (True, False), (S2, S4))
    ),
    *(Probe("mask", {"momentum": 0.0, "fused": f}, shape) for f in (None, False) for shape in (S3, S4)),
]


# What follows is about the spec alone.


def test_every_field_of_a_plain_layer() -> None:
    assert BatchNormSpec("tf_keras").resolve((None, 4, 5, 3)) == Resolved(
        api="tf_keras",
        input_shape=(None, 4, 5, 3),
        dtype="float32",
        parameter_dtype="float32",
        parameter_shape=(3,),
        axes=(3,),
        momentum=0.99,
        epsilon=1e-3,
        center=True,
        scale=True,
        trainable=True,
        fused=True,
        synchronized=False,
        running_var_correction=1,
        virtual_batch_size=0,
        renorm=None,
        adjustment=None,
        mask_rule="ignored",
    )


def test_every_field_of_an_unusual_layer() -> None:
    spec = BatchNormSpec(
        "keras_v1",
        axis=[-1, 1],
        momentum=0.5,
        epsilon=1e-9,
        center=False,
        scale=False,
        trainable=False,
        fused=True,
        synchronized=True,
        virtual_batch_size=2,
        renorm=True,
        renorm_clipping={"rmax": 3, "dmax": "tensor", "rmin": None},
        renorm_momentum=0.25,
    )
    assert spec.resolve((6, 4, None, 3), "float64") == Resolved(
        api="keras_v1",
        input_shape=(6, 4, None, 3),
        dtype="float64",
        parameter_dtype="float64",
        parameter_shape=(1, 1, 4, 1, 3),
        axes=(1, 3),
        momentum=0.5,
        epsilon=1e-9,
        center=False,
        scale=False,
        trainable=False,
        fused=False,
        synchronized=False,
        running_var_correction=0,
        virtual_batch_size=2,
        renorm=Renorm(rmin=0.0, rmax=3.0, dmax=None, momentum=0.25),
        adjustment=None,
        mask_rule="weights",
    )


def test_shape_of_the_layers_own_parameters() -> None:
    assert BatchNormSpec("tf_keras").resolve((None, 4, 5, 3)).parameter_shape == (3,)
    assert BatchNormSpec("tf_keras", axis=[3, 1]).resolve((None, 4, 5, 3)).parameter_shape == (1, 4, 1, 3)
    assert BatchNormSpec("tf_keras", axis=0).resolve((6, None)).parameter_shape == (6,)
    ghost = BatchNormSpec("tf_keras", axis=[3, 1], virtual_batch_size=2)
    assert ghost.resolve((None, 4, 5, 3)).parameter_shape == (1, 1, 4, 1, 3)


def test_channels_are_all_positions_along_the_axes() -> None:
    assert BatchNormSpec("tf1", axis=[3, 1]).resolve((None, 4, 5, 3)).channels == 12
    assert BatchNormSpec("keras3", axis=1).resolve((None, 4, None)).channels == 4
    assert BatchNormSpec("keras3").resolve((6, 0)).channels == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_types_keep_wide_parameters(dtype: str) -> None:
    layer = BatchNormSpec("keras3").resolve(S2, dtype)
    assert (layer.dtype, layer.parameter_dtype, layer.mask_rule) == (dtype, "float32", "select")


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((6, None), "float32", "length of channel axis 1 must be known"),
        ((), "float32", "at least one axis"),
        ((6, -1), "float32", "at least one axis"),
        ((6, 2.0), "float32", "at least one axis"),
        (S2, "int32", "dtype must be one of"),
        (S2, np.dtype("float32"), "dtype must be one of"),
        (S2, "float8_e4m3fn", "dtype must be one of"),
    ],
)
@pytest.mark.parametrize("api", APIS)
def test_input_that_no_layer_takes(api: Any, shape: Any, dtype: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        BatchNormSpec(api).resolve(shape, dtype)


def test_axis_0_of_rank_4_is_refused_only_where_the_class_wants_to_fuse() -> None:
    """A V2 class looks at the axis as given: -4 might be axis 1 of rank 5, so it goes on and fails."""
    with pytest.raises(SpecError, match="axis -4 of rank 4"):
        BatchNormSpec("tf_keras", axis=-4).resolve(S4)
    assert BatchNormSpec("tf_keras", axis=-4).resolve(S5).fused
    for spec in (
        BatchNormSpec("tf_keras", axis=0),
        BatchNormSpec("tf_keras", axis=-4, fused=False),
        BatchNormSpec("sync", axis=-4),
        BatchNormSpec("tf1", axis=-4, fused=True),
        BatchNormSpec("keras3", axis=-4),
    ):
        assert not spec.resolve(S4).fused


def test_virtual_batches_need_to_divide_only_in_training() -> None:
    spec = BatchNormSpec("tf_keras", virtual_batch_size=4)
    with pytest.raises(SpecError, match="4 does not divide the batch of 6"):
        spec.resolve(S2)
    assert spec.resolve(S2, training=False).virtual_batch_size == 4
    assert spec.resolve((None, 3)).parameter_shape == (1, 1, 3)
    frozen = BatchNormSpec("tf_keras", virtual_batch_size=4, trainable=False)
    assert frozen.resolve(S2).virtual_batch_size == 4
    with pytest.raises(SpecError, match="does not divide"):
        BatchNormSpec("tf1", virtual_batch_size=4, trainable=False).resolve(S2)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("training", [True, False])
def test_what_trainable_decides(api: Any, training: bool) -> None:
    layer = BatchNormSpec(api).resolve(S2)
    frozen = BatchNormSpec(api, trainable=False, renorm=True).resolve(S2)
    assert (layer.uses_batch_statistics(training), layer.updates_statistics(training)) == (training, training)
    assert frozen.uses_batch_statistics(training) == (training and api in ("tf1", "keras_v1"))
    assert not frozen.updates_statistics(training)
    assert frozen.updates_renorm(training) == (training and api == "keras_v1")


# What follows is held against the classes.


@dataclass
class Measured:
    """What the classes of one generation do."""

    accepted: list[dict[str, dict[str, Any]]]
    behaviour: dict[str, list[Any]]
    defaults: dict[str, dict[str, Any]]


def measured(generation: str) -> Measured:
    environment = {
        **os.environ,
        "TF_USE_LEGACY_KERAS": "1" if generation == "tf_keras" else "0",
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-W", "ignore", "-m", "tests.unit.semantics.test_resolve", generation]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert run.returncode == 0, (run.stdout + run.stderr)[-2000:]
    return Measured(**json.loads(run.stdout.splitlines()[-1]))


@pytest.mark.keras
@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_spec_decides_as_the_class_does(generation: str) -> None:
    found = measured(generation)
    wrong: list[str] = []
    for case, apis in zip(CASES, found.accepted, strict=True):
        for api in GENERATIONS[generation]:
            ours, theirs = case.is_accepted(api), apis[api]
            if (ours == "") != (theirs["error"] == "") and api not in case.apart:
                wrong.append(f"{api} {case}: ours {ours!r}, theirs {theirs['error']!r}")
            if (ours == "") == (theirs["error"] == "") and api in case.apart:
                wrong.append(f"{api} {case}: said to be apart, but is not: {ours!r}")
            if ours == "" and theirs["error"] == "":
                wrong += differences(api, case, theirs)
    for api, defaults in found.defaults.items():
        wrong += [f"{api} {n}: {v!r}, ours {DEFAULTS[n]!r}" for n, v in defaults.items() if v != DEFAULTS[n]]
    for api, answers in found.behaviour.items():
        wrong += [f"{api} {p}: theirs {a}" for p, a in zip(PROBES, answers, strict=True) if not p.agrees(api, a)]
    assert not wrong, "\n".join(wrong)


def differences(api: Any, case: Case, theirs: dict[str, Any]) -> list[str]:
    """Compare what the class built with what the spec means."""
    layer = BatchNormSpec(api, **case.arguments).resolve(case.shape, case.dtype, training=case.training)
    ours = {"fused": layer.fused, "parameter_shape": list(layer.parameter_shape), "synchronized": layer.synchronized}
    return [f"{api} {case}: {k} {ours[k]!r}, theirs {v!r}" for k, v in theirs.items() if k in ours and ours[k] != v]


# What follows runs in a process of its own, with TensorFlow.


def given(arguments: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is at its default: not every class has every argument."""
    return {k: v for k, v in arguments.items() if v is not DEFAULTS[k]}


def classes(generation: str) -> dict[str, Any]:
    if generation == "keras3":
        import keras

        assert keras.layers.BatchNormalization.__module__.startswith("keras.src.")
        return {"keras3": keras.layers.BatchNormalization}
    import tf_keras
    from tf_keras.src.layers.normalization import batch_normalization_v1
    from tf_keras.src.legacy_tf_layers import normalization

    assert tf_keras.layers.BatchNormalization.__module__.startswith("tf_keras.src.")
    return {
        "sync": tf_keras.layers.experimental.SyncBatchNormalization,
        "tf1": normalization.batch_normalization,
        "keras_v1": batch_normalization_v1.BatchNormalization,
        "tf_keras": tf_keras.layers.BatchNormalization,
    }


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:200]


def built_layer(make: Any, case: Case) -> dict[str, Any]:
    import tensorflow as tf

    layer = make(dtype=case.dtype, **given(case.arguments))
    layer.build(case.shape)
    x = tf.cast(tf.random.stateless_normal([6 if n is None else n for n in case.shape], (1, 2)), case.dtype)
    layer(x, training=case.training)
    list(layer.losses)
    for weight in layer.weights:
        if weight.constraint is not None:
            weight.constraint(weight)
    return {
        "fused": bool(getattr(layer, "fused", False)),
        "parameter_shape": list(layer.moving_mean.shape),
        "synchronized": bool(layer.synchronized),
    }


def built_function(call: Any, case: Case) -> dict[str, Any]:
    from tensorflow.compat import v1

    with v1.Graph().as_default() as graph:
        call(v1.placeholder(case.dtype, case.shape), training=case.training, **given(case.arguments))
        for variable in v1.global_variables():
            if getattr(variable, "constraint", None) is not None:
                variable.constraint(variable)
        mean = next(v for v in v1.global_variables() if "moving_mean" in v.name)
        return {
            "fused": any(op.type.startswith("FusedBatchNorm") for op in graph.get_operations()),
            "parameter_shape": mean.shape.as_list(),
            "synchronized": False,
        }


def accepted(api: str, make: Any, case: Case) -> dict[str, Any]:
    try:
        return {"error": "", **(built_function if api == "tf1" else built_layer)(make, case)}
    except Exception as error:  # noqa: BLE001  # whatever the class raises is its refusal
        return {"error": first_line(error)}


def run_layer(make: Any, probe: Probe, x: Any, training: bool, mask: Any = None) -> dict[str, Any]:
    """Return the output and the variables after one call; for epsilon, of a layer that expects variance 0."""
    layer = make(**given(probe.arguments))
    layer.build(probe.shape)
    if probe.what == "epsilon":
        layer.moving_variance.assign(np.zeros(layer.moving_variance.shape, "float32"))
    y = layer(x, training=training, **({} if mask is None else {"mask": mask}))
    names = ("moving_mean", "moving_variance", "renorm_mean")
    return {"y": np.asarray(y), **{n: np.asarray(getattr(layer, n)) for n in names if hasattr(layer, n)}}


def run_function(call: Any, probe: Probe, x: Any, training: bool, mask: Any = None) -> dict[str, Any]:
    from tensorflow.compat import v1

    assert mask is None
    with v1.Graph().as_default(), v1.Session() as session:
        y = call(v1.constant(x), training=training, **given(probe.arguments))
        variables = {v.name.split("/")[1].split(":")[0]: v for v in v1.global_variables()}
        session.run(v1.global_variables_initializer())
        if probe.what == "epsilon":
            variables["moving_variance"].load(np.zeros(variables["moving_variance"].shape, "float32"), session)
        found = {"y": session.run([y, v1.get_collection(v1.GraphKeys.UPDATE_OPS)])[0]}
        return found | {name: session.run(variable) for name, variable in variables.items()}


def mask_rule(moved: Any, x: Any, mask: Any) -> str:
    """Name the mean that the layer took."""
    weights = np.broadcast_to(mask[..., None], x.shape)
    axes = tuple(range(x.ndim - 1))
    means = {
        "ignored": x.mean(axes),
        "weights": (x * weights).sum(axes) / weights.sum(axes),
        "select": (x * (weights > 0)).sum(axes) / (weights > 0).sum(axes),
    }
    return next((name for name, mean in means.items() if np.allclose(mean, moved, atol=1e-5)), "other")


def answer(api: str, make: Any, probe: Probe) -> Any:
    layer = probe.layer(api)
    if layer is None or (api == "tf1" and probe.what == "mask"):
        return None
    run = run_function if api == "tf1" else run_layer
    rng = np.random.default_rng(0)
    x = (3 * rng.normal(size=probe.shape) + 2).astype("float32")
    if probe.what == "epsilon":
        y = run(make, probe, np.full(probe.shape, 1e-3, "float32"), False)["y"]
        return float(np.mean((1e-3 / y) ** 2))
    mask = rng.choice([0.0, 0.5, 1.0], size=probe.shape[:-1]).astype("float32") if probe.what == "mask" else None
    after = run(make, probe, x, True, mask)
    if probe.what == "mask":
        return mask_rule(after["moving_mean"], x, mask)
    reduced = tuple(i for i in range(x.ndim) if i not in layer.axes)
    if probe.what == "variance":
        return float(np.mean(after["moving_variance"].ravel() / x.var(reduced).ravel()))
    if probe.what == "renorm":
        return bool(np.any(after["renorm_mean"] != 0))
    return [bool(np.abs(after["y"].mean(reduced)).max() < 1e-5), bool(np.any(after["moving_mean"] != 0))]


def main() -> None:
    found = classes(sys.argv[1])
    defaults = {api: inspect.signature(make).parameters for api, make in found.items()}
    result = {
        "accepted": [{api: accepted(api, make, case) for api, make in found.items()} for case in CASES],
        "behaviour": {api: [answer(api, make, probe) for probe in PROBES] for api, make in found.items()},
        "defaults": {
            api: {
                name: parameter.default
                for name, parameter in parameters.items()
                if name in DEFAULTS and isinstance(parameter.default, str | int | float | None)
            }
            for api, parameters in defaults.items()
        },
    }
    sys.stdout.write("\n" + json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
