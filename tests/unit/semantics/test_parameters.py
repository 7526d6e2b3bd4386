"""Initializers, regularizers and constraints, by hand and against both generations of Keras.

Run as a program with the argument ``tf_keras`` or ``keras3``, this file asks that generation of Keras
and prints JSON; the last test starts it so.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnpass.semantics import parameters
from bnpass.semantics.parameters import (
    EPSILON,
    ParameterError,
    check_constraint,
    check_initializer,
    check_regularizer,
    constrained,
    initial_value,
    regularization_loss,
)

ROOT = Path(__file__).resolve().parents[3]
W = np.array([0.5, -1.5, 2.0])
MANY = 200_000
CUT = 0.8796256610342398  # scipy.stats.truncnorm.std(-2, 2)


def config(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_name": name, "config": arguments}


def start(initializer: Any, shape: tuple[int, ...] = (3,)) -> list[Any]:
    found: list[Any] = initial_value(initializer, shape, np.random.default_rng(0)).tolist()
    return found


def test_initializers_without_chance() -> None:
    assert start("zeros") == [0, 0, 0]
    assert start("Ones", (2, 1)) == [[1], [1]]
    assert start("constant") == [0, 0, 0]
    assert start("he_normal", (0,)) == []
    assert start(config("Constant", value=2)) == [2, 2, 2]
    assert start(config("Constant", value=[1, 2, 3]), (1, 1, 3)) == [[[1, 2, 3]]]
    assert start(np.array([[1.0, 2.0, 3.0]])) == [1, 2, 3]
    assert start(config("Constant", value=config("__numpy__", value=[4, 5, 6], dtype="float32"))) == [4, 5, 6]


def test_a_callable_is_asked_as_keras_asks_it() -> None:
    asked: list[Any] = []

    def initializer(shape: tuple[int, ...], dtype: str | None = None) -> Any:
        asked.append((shape, dtype))
        return np.full(shape, 0.1, dtype)

    assert start(initializer) == [float(np.float32(0.1))] * 3
    exact = initial_value(initializer, (3,), np.random.default_rng(0), dtype="float64")
    assert exact.tolist() == [0.1] * 3
    assert asked == [((3,), "float32"), ((3,), "float64")]


def test_random_numbers_come_from_the_generator_alone() -> None:
    seeded = config("RandomNormal", seed=7)
    assert start(seeded) == start(seeded) == start("random_normal")
    assert start("random_normal") != initial_value("random_normal", (3,), np.random.default_rng(1)).tolist()


@pytest.mark.parametrize(
    ("initializer", "shape", "mean", "stddev", "bound"),
    [
        ("random_normal", (MANY,), 0, 0.05, math.inf),
        (config("RandomNormal", mean=2.0, stddev=0.5), (MANY,), 2, 0.5, math.inf),
        (config("RandomUniform", minval=-1.0, maxval=3.0), (MANY,), 1, 4 / math.sqrt(12), 2),
        (config("TruncatedNormal", mean=-1.0, stddev=1.0), (MANY,), -1, CUT, 2),
        (config("VarianceScaling", scale=MANY, distribution="uniform"), (MANY,), 0, 1, math.sqrt(3)),
        (config("VarianceScaling", scale=MANY), (MANY,), 0, 1, 2 / CUT),
        (
            config("VarianceScaling", distribution="untruncated_normal"),
            (2, MANY // 4, 2),
            0,
            (MANY / 2) ** -0.5,
            math.inf,
        ),
        ("he_normal", (1, 4, MANY), 0, 0.5**0.5, 2 * 0.5**0.5 / CUT),
        ("GlorotUniform", (4, MANY), 0, (2 / (MANY + 4)) ** 0.5, (6 / (MANY + 4)) ** 0.5),
        (config("LecunUniform", input_axes=[1], output_axes=[0]), (4, MANY), 0, MANY**-0.5, (3 / MANY) ** 0.5),
    ],
    ids=lambda x: str(x) if isinstance(x, str | dict) else "",
)
def test_spread_of_random_initializers(
    initializer: Any, shape: tuple[int, ...], mean: float, stddev: float, bound: float
) -> None:
    """Mean and standard deviation to 1 % of the latter (several of their own), and how far the numbers go."""
    x = initial_value(initializer, shape, np.random.default_rng(0))
    assert x.shape == shape
    assert np.mean(x) == pytest.approx(mean, abs=1e-2 * stddev)
    assert np.std(x) == pytest.approx(stddev, rel=1e-2)
    farthest = np.abs(x - mean).max()
    assert farthest <= bound * (1 + 1e-12)
    assert farthest > 0.99 * min(bound, 4 * stddev)


def test_regularizers_by_hand() -> None:
    assert regularization_loss(None, W) == 0
    assert regularization_loss("l1", W) == pytest.approx(0.01 * 4)
    assert regularization_loss("L2", W) == pytest.approx(0.01 * 6.5)
    assert regularization_loss("l1_l2", W) == pytest.approx(0.01 * 4 + 0.01 * 6.5)
    assert regularization_loss("L1L2", W) == 0
    assert regularization_loss(config("L1L2", l1=0.5, l2=None), W.reshape(1, 3)) == pytest.approx(2)
    assert regularization_loss(config("L1L2", l2=2), W) == pytest.approx(13)
    assert regularization_loss(config("L1", l=2), W) == pytest.approx(8)
    assert regularization_loss(lambda w: w[0] * 3, W) == 1.5


def test_constraints_by_hand() -> None:
    norm = math.sqrt(6.5)
    assert constrained(None, W).tolist() == W.tolist()
    assert constrained("non_neg", W).tolist() == [0.5, 0, 2]
    np.testing.assert_allclose(constrained("unit_norm", W), W / (norm + EPSILON), rtol=1e-15)
    np.testing.assert_allclose(constrained("max_norm", W), W * 2 / (norm + EPSILON), rtol=1e-15)
    np.testing.assert_allclose(
        constrained(config("MaxNorm", max_value=9), W), W * (norm / (norm + EPSILON)), rtol=1e-15
    )
    partial = config("MinMaxNorm", min_value=3, max_value=4, rate=0.25)
    np.testing.assert_allclose(constrained(partial, W), W * (0.25 * 3 + 0.75 * norm) / (norm + EPSILON), rtol=1e-15)
    assert constrained(lambda w: -w, W).tolist() == (-W).tolist()


def test_a_norm_depends_on_the_shape_the_layer_keeps() -> None:
    row = W.reshape(1, 1, 3)
    np.testing.assert_allclose(constrained("unit_norm", row), np.sign(row), rtol=1e-6)
    assert constrained(config("UnitNorm", axis=[0, 2]), row) == pytest.approx(
        constrained("unit_norm", W).reshape(1, 1, 3)
    )


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: start("nonsense"), "'nonsense' is not known"),
        (lambda: start(0.5), "neither a name"),
        (lambda: start({"config": {}}), "needs a class_name"),
        (lambda: start({"class_name": "Zeros", "config": 3}), "needs a class_name and a config"),
        (lambda: start(config("Zeros") | {"module": "mine"}), "not one of Keras's own"),
        (lambda: start(config("Zeros") | {"registered_name": "mine>Zeros"}), "not one of Keras's own"),
        (lambda: start(config("RandomNormal", std=1)), "unexpected keyword argument 'std'"),
        (lambda: start(config("RandomNormal", stddev="x")), "stddev must be a number"),
        (lambda: start(config("RandomUniform", maxval=None)), "maxval must be a number"),
        (lambda: start(config("VarianceScaling", scale=0)), "scale must be positive"),
        (lambda: start(config("VarianceScaling", mode="x")), "mode must be"),
        (lambda: start(config("VarianceScaling", distribution="x")), "unknown distribution"),
        (lambda: start(config("Constant", value="x")), "must be numbers"),
        (lambda: start(np.ones(2)), "2 elements does not fill"),
        (lambda: start("orthogonal"), "needs a matrix"),
        (lambda: start("Identity"), "needs a matrix"),
        (lambda: start(lambda *_, dtype: np.ones(2, dtype)), r"returned shape \(2,\)"),
        (lambda: start(lambda *_, **__: "x"), "not numbers"),
        (lambda: regularization_loss("orthogonal_regularizer", W), "needs a matrix"),
        (lambda: regularization_loss(config("L2", l2=math.inf), W), "l2 must be finite"),
        (lambda: regularization_loss(config("L2", l2="x"), W), "l2 must be a number"),
        (lambda: regularization_loss(lambda w: w, W), r"returned shape \(3,\)"),
        (lambda: constrained("radial_constraint", W), "needs a matrix"),
        (lambda: constrained(config("MaxNorm", max_value=None), W), "max_value must be a number"),
        (lambda: constrained(config("MaxNorm", axis=1), W), "norm over axis 1"),
        (lambda: constrained(lambda w: w[:2], W), r"returned shape \(2,\)"),
    ],
)
def test_what_has_no_meaning_is_refused(act: Callable[[], object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        act()


def test_one_generation_does_not_take_what_the_other_does() -> None:
    pairs: list[tuple[Callable[[Any, Any], None], Any, str]] = [
        (check_initializer, "ZerosV2", "tf_keras"),
        (check_initializer, "constant", "tf_keras"),
        (check_initializer, config("HeNormal", input_axes=[0], output_axes=[0]), "keras3"),
        (check_initializer, {"class_name": "Zeros"}, "keras3"),
        (check_initializer, config("GlorotNormal", input_axes=[0]), "keras3"),
        (check_initializer, config("VarianceScaling", output_axes=[0]), "keras3"),
        (check_regularizer, "l1_l2", "tf_keras"),
        (check_regularizer, config("L2", l=0.1), "tf_keras"),
        (check_regularizer, config("L2", l2=-0.1), "tf_keras"),
        (check_regularizer, "l1l2", "keras3"),
        (check_constraint, "maxnorm", "tf_keras"),
    ]
    for check, given, taken_by in pairs:
        for keras in ("tf_keras", "keras3"):
            if keras == taken_by:
                check(given, keras)
            else:
                with pytest.raises(ParameterError):
                    check(given, keras)


class OwnConstraint:
    def __call__(self, w: Any) -> Any:
        return 2 * w


def test_a_class_is_made_an_object_of_where_keras_does_so() -> None:
    assert constrained(OwnConstraint, W).tolist() == (2 * W).tolist()
    check_constraint(OwnConstraint, "keras3")
    with pytest.raises(ParameterError, match="not the class OwnConstraint"):
        check_constraint(OwnConstraint, "tf_keras")


# What follows is held against Keras.

JUNK = ["nonsense", "Zeros2", "L3", "MaxNorm2", "truncatedNormal", "zerosV2", "one_", "L1l2", "l1L2"]
NAMES = {kind: sorted({*t["tf_keras"], *t["keras3"], *JUNK}) for kind, t in parameters._KNOWN.items()}
SHAPES: list[tuple[int, ...]] = [(4,), (1, 1, 4), (2, 1, 3)]
VALUES = [
    np.random.default_rng(i).normal(0, size, shape).astype(np.float32)
    for i, (size, shape) in enumerate((size, shape) for size in (2, 1e-7) for shape in SHAPES)
]
SPREAD: list[tuple[Any, tuple[int, ...]]] = [
    *((name, (MANY,)) for name in ("random_normal", "uniform", "TruncatedNormal", "glorot_uniform", "HeNormal")),
    *((name, (40, 1, MANY // 40)) for name in ("variance_scaling", "glorot_normal", "lecun_uniform", "he_uniform")),
    *(
        (config("VarianceScaling", scale=3.0, mode=mode, distribution=distribution), (2, 50, MANY // 100))
        for mode in ("fan_in", "fan_out", "fan_avg")
        for distribution in ("normal", "untruncated_normal", "UNIFORM")
    ),
    (config("TruncatedNormal", mean=1.0, stddev=3.0), (MANY,)),
    (config("RandomUniform", minval=2.0, maxval=-1.0), (MANY,)),
]
CONSTANTS = [0.3, [1.0, 2.0, 3.0, 4.0], [5.0], [1.0, 2.0]]
LOSSES = [
    *(config("L1L2", l1=a, l2=b) for a in (0.0, 0.3, None) for b in (0.0, 0.7, None)),
    *(config(name, **{name.lower(): 0.3}) for name in ("L1", "L2")),
    *(config(name, **{name.lower(): None}) for name in ("L1", "L2")),
    *(config(name, **{name.lower(): -0.5}) for name in ("L1", "L2")),
]
PROJECTIONS = [
    *(config("MaxNorm", max_value=v, axis=a) for v in (0.5, 9, -1, 0) for a in (0, -1, None, [0], 1, [0, 2])),
    *(config("UnitNorm", axis=a) for a in (0, -1, None, [0, 1, 2])),
    *(
        config("MinMaxNorm", min_value=low, max_value=high, rate=r, axis=0)
        for low, high in ((1.0, 2.0), (4.0, 9.0), (3.0, 1.0))
        for r in (1.0, 0.25)
    ),
]
QUANTILES = [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99]


def asked(value: Callable[[], Any]) -> Any:
    """Return numbers as nested lists, or None where there are none."""
    try:
        return np.asarray(value(), np.float64).tolist()
    except Exception:  # noqa: BLE001  # whatever is raised says no
        return None


def answers(
    start: Callable[[Any, tuple[int, ...]], Any],
    loss: Callable[[Any, Any], Any],
    project: Callable[[Any, Any], Any],
) -> dict[str, Any]:
    """Return all that is compared, from three ways to ask for it."""

    def spread(initializer: Any, shape: tuple[int, ...]) -> Any:
        x = np.asarray(start(initializer, shape), np.float64)
        return [x.mean(), x.std(), *np.quantile(x, QUANTILES), x.min(), x.max()]

    return {
        "initializer names": {n: asked(lambda n=n: np.shape(start(n, (4,)))) for n in NAMES["initializer"]},
        "regularizer names": {n: asked(lambda n=n: loss(n, VALUES[0])) for n in NAMES["regularizer"]},
        "constraint names": {n: asked(lambda n=n: project(n, VALUES[0])) for n in NAMES["constraint"]},
        "constants": [asked(lambda c=c, s=s: start(config("Constant", value=c), s)) for c in CONSTANTS for s in SHAPES],
        "losses": [asked(lambda c=c, w=w: loss(c, w)) for c in LOSSES for w in VALUES],
        "projections": [asked(lambda c=c, w=w: project(c, w)) for c in PROJECTIONS for w in VALUES],
        "spread": [asked(lambda i=i, s=s: spread(i, s)) for i, s in SPREAD],
    }


def ours(generation: Any) -> dict[str, Any]:
    def initial(given: Any, shape: tuple[int, ...]) -> Any:
        check_initializer(given, generation)
        return initial_value(given, shape, np.random.default_rng(0))

    def loss(given: Any, w: Any) -> float:
        check_regularizer(given, generation)
        return regularization_loss(given, w)

    def project(given: Any, w: Any) -> Any:
        check_constraint(given, generation)
        return constrained(given, w)

    return answers(initial, loss, project)


def theirs(generation: str) -> dict[str, Any]:
    environment = {
        **os.environ,
        "TF_USE_LEGACY_KERAS": "1" if generation == "tf_keras" else "0",
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-W", "ignore", "-m", "tests.unit.semantics.test_parameters", generation]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert run.returncode == 0, (run.stdout + run.stderr)[-2000:]
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


@pytest.mark.keras
@pytest.mark.parametrize("generation", ["tf_keras", "keras3"])
def test_keras_says_the_same(generation: str) -> None:
    mine, found = ours(generation), theirs(generation)
    assert mine.keys() == found.keys()
    for what in ("initializer names", "regularizer names", "constraint names"):
        mine[what], found[what] = list(mine[what].items()), list(found[what].items())
    for what, expected in found.items():
        assert len(mine[what]) == len(expected)
        for place, (a, b) in enumerate(zip(mine[what], expected, strict=True)):
            if what == "spread":
                assert_same_spread(a, b, SPREAD[place])
            elif isinstance(b, tuple):
                assert (a[0], a[1] is None) == (b[0], b[1] is None), f"{generation} {what}"
                assert a[1] is None or a[1] == pytest.approx(b[1], rel=1e-5, abs=1e-25), b[0]
            else:
                assert (a is None) == (b is None), f"{generation} {what} {place}: {a} {b}"
                assert a is None or np.asarray(a) == pytest.approx(np.asarray(b), rel=1e-5, abs=1e-25), (
                    f"{what} {place}"
                )


def assert_same_spread(a: list[float], b: list[float], what: object) -> None:
    """Means and quantiles to a few of their standard errors; the ends only where they are sharp."""
    mean, stddev = b[0], b[1]
    assert a[0] == pytest.approx(mean, abs=0.02 * stddev), what
    assert a[1] == pytest.approx(stddev, rel=0.01), what
    assert a[2:-2] == pytest.approx(b[2:-2], abs=0.05 * stddev), what
    if max(abs(b[-1] - mean), abs(b[-2] - mean)) < 2.5 * stddev:
        assert a[-2:] == pytest.approx(b[-2:], abs=0.01 * stddev), what


def main() -> None:
    import tensorflow as tf

    if sys.argv[1] == "keras3":
        from keras import constraints, initializers, regularizers
    else:
        from tf_keras import constraints, initializers, regularizers
    result = answers(
        lambda given, shape: initializers.get(given)(shape, dtype="float32"),
        lambda given, w: regularizers.get(given)(tf.constant(w)),
        lambda given, w: constraints.get(given)(tf.constant(w)),
    )
    sys.stdout.write("\n" + json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
