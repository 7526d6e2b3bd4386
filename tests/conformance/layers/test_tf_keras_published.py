"""The published cases of tf_keras's and Keras 3's tests of batch normalization, rebuilt from what they say.

Read for it: ``batch_normalization_test.py`` and ``batch_normalization_dtensor_test.py`` of tf_keras, those of its
``distribute`` folder that hold batch normalization (``keras_image_model_correctness_test.py``,
``minimize_loss_test.py``), and ``batch_normalization_test.py`` of Keras 3. Each of their cases is a statement here,
held against TensorFlow and against bnpass, but for these, which have no counterpart:

- the strategy that is built on DTensor: bnpass has replicas, whatever carries their sums; the same layers run here
  under MirroredStrategy, with which that test compares;
- ``get_config`` and ``from_config``: what stands for a layer here is a spec, and that it survives JSON is tested;
- which replica's copy of a variable is watched, created or placed where; optimizers and loops of ``fit``:
  the caller's, as are learning rates and losses;
- a mask that another layer (``Masking``) makes and hands on: here it is an input;
- two synchronized layers side by side: a matter of models, numbered case 28 (``test_numbered_sync.py``);
- the momentum between 0 and 1 that Keras 3 asks for since: version 3.15, which is followed, takes every number.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from bnpass.layers.model import layer_model
from bnpass.semantics.spec import BatchNormSpec, SpecError
from tests.conformance.layers import meaning
from tests.conformance.layers.arrays import draw
from tests.conformance.layers.cases import Array, Case
from tests.conformance.layers.conftest import Outcome
from tests.conformance.layers.deviation_cases import PROBES as OLDER_PROBES
from tests.conformance.layers.exchange import Arrays
from tests.conformance.layers.judge import PRODUCTS, holds, inputs_of
from tests.conformance.layers.products import Product
from tests.conformance.layers.published_cases import CASES, FUSED, GHOSTS, PROBES

pytestmark = pytest.mark.keras

Oracle = Callable[[Case], Outcome]
SINGLE = 1e-5
"""A few float32 roundings of numbers of size 1."""

of_every_product = pytest.mark.parametrize("product", PRODUCTS)


def made(product: str, case: Case) -> Product:
    """Return a product of a case, before its first step."""
    return PRODUCTS[product](case, meaning.started(case, draw(case)))


def one_step(product: str, case: Case, step: int = 0) -> Arrays:
    """Return what a product gives for one step of a case."""
    return made(product, case).step(*inputs_of(case, draw(case), step), case.steps[step])


def last(case: Case, found: Arrays, what: str) -> Array:
    """Return a result of the last step."""
    return found[f"{len(case.steps) - 1}/0/{what}"]


def without_parameters(case: Case, y: Array) -> Array:
    """Return Y without beta and gamma."""
    start = meaning.started(case, draw(case))
    shape = [n if axis in case.axes else 1 for axis, n in enumerate(case.shape)]
    return (y - start["beta"].reshape(shape)) / start["gamma"].reshape(shape)


def others(case: Case) -> tuple[int, ...]:
    """Return the axes that statistics are taken over."""
    return tuple(axis for axis in range(len(case.shape)) if axis not in case.axes)


@of_every_product
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_layer_gives_what_the_published_one_gives(case: Case, product: str, tensorflow: Oracle) -> None:
    facts, found = tensorflow(case)
    assert "error" not in facts, facts
    holds(case, product, draw(case), found)


@pytest.mark.parametrize("case", [case for case in CASES.values() if len(case.shares) == 1], ids=lambda case: case.id)
def test_y_has_the_shape_and_the_type_of_x(case: Case, tensorflow: Oracle) -> None:
    facts, found = tensorflow(case)
    assert facts["y_type"] == case.dtype == meaning.layer(case).dtype
    (y, *_) = layer_model(meaning.layer(case), training=False).graph.outputs
    assert tuple(y.shape or ()) == last(case, found, "y").shape == case.shape


@pytest.mark.parametrize(
    ("arguments", "trained", "kept"),
    [({}, 2, 2), ({"scale": False, "center": False}, 0, 2), ({"renorm": True}, 2, 5)],
)
@pytest.mark.parametrize("api", ["tf_keras", "keras3"])
def test_a_layer_has_so_many_variables(api: str, arguments: dict[str, bool], trained: int, kept: int) -> None:
    layer = BatchNormSpec(api, **arguments).resolve((None, 3, 4))  # type: ignore[arg-type]
    names = {str(value.name) for value in layer_model(layer, training=True).graph.inputs} - {"X"}
    assert len(names & {"scale", "B"}) == trained
    assert len(names - {"scale", "B"}) == kept


def test_each_of_two_regularizers_has_a_term(tensorflow: Oracle) -> None:
    for name in ("tf_keras-l1_of_both", "keras3-image"):
        case = CASES[name]
        start = meaning.started(case, draw(case))
        alone = [{"beta": 0 * start["beta"]}, {"gamma": 0 * start["gamma"]}]
        terms = [meaning.loss(case, start | zero) for zero in alone]
        assert meaning.loss(case, start) == pytest.approx(sum(terms))
        assert tensorflow(case)[1]["0/loss"] == pytest.approx(sum(terms), rel=SINGLE)


def test_constraints_belong_to_gamma_and_beta() -> None:
    spec = BatchNormSpec("tf_keras", gamma_constraint="max_norm", beta_constraint="max_norm")
    assert spec.gamma_constraint == spec.beta_constraint == "max_norm"
    case = Case("published", "tf_keras", "limited", {"gamma_constraint": "max_norm"})
    assert np.linalg.norm(meaning.learnt(case, "gamma", np.full(3, 9.0), np.zeros(3))) == pytest.approx(2, rel=1e-6)


@pytest.mark.parametrize("name", [name for name in CASES if "-trained" in name])
@of_every_product
def test_a_trained_layer_standardizes(name: str, product: str, tensorflow: Oracle) -> None:
    """In inference after training, or in training itself: mean 0 and standard deviation 1 per channel."""
    case, arrays = CASES[name], draw(CASES[name])
    ours, found = made(product, case), {}
    for step, training in enumerate(case.steps):
        found = ours.step(*inputs_of(case, arrays, step), training)
    within = 1e-3 if case.steps[-1] else 0.1
    for y in (last(case, tensorflow(case)[1], "y"), found["0/y"]):
        standard = without_parameters(case, y)
        np.testing.assert_allclose(standard.mean(others(case)), 0, atol=within)
        np.testing.assert_allclose(standard.std(others(case)), 1, atol=within)


@of_every_product
@pytest.mark.parametrize("name", [name for name in CASES if "-padded" in name])
def test_padding_that_is_masked_does_not_count(name: str, product: str, tensorflow: Oracle) -> None:
    case = CASES[name]
    exact = 1e-14 if case.api != "keras3" else 1e-6  # Keras 3 divides by W + 1e-7
    for found in (tensorflow(case)[1], {f"4/{key}": value for key, value in one_step(product, case).items()}):
        for r in range(len(case.shares)):
            np.testing.assert_allclose(found[f"4/{r}/moving_mean"], [1.5, 5.0], rtol=exact, atol=exact)
            np.testing.assert_allclose(found[f"4/{r}/moving_variance"], [0.25, 0.0], rtol=exact, atol=exact)


@of_every_product
def test_a_batch_that_is_masked_as_a_whole_gives_zeros(product: str, tensorflow: Oracle) -> None:
    for name in ("keras3-all_masked", "keras3-all_masked_sync"):
        np.testing.assert_array_equal(tensorflow(CASES[name])[1]["0/0/y"], 0)
        np.testing.assert_array_equal(one_step(product, CASES[name])["0/y"], 0)


@of_every_product
def test_a_mask_of_length_1_counts_for_the_whole_axis(product: str, tensorflow: Oracle) -> None:
    case = CASES["keras3-broadcast_mask"]
    for found in (tensorflow(case)[1], {f"0/{key}": value for key, value in one_step(product, case).items()}):
        np.testing.assert_allclose(found["0/0/y"], 0, atol=1e-6 / np.sqrt(1e-3))  # η/(W + η) over √epsilon
        np.testing.assert_allclose(found["0/0/moving_mean"], 1, atol=1e-6)
        np.testing.assert_allclose(found["0/0/moving_variance"], 0, atol=1e-6)


@of_every_product
@pytest.mark.parametrize("name", ["tf_keras-far_fused_True", "tf_keras-far_fused_False"])
def test_squares_that_float16_does_not_hold(name: str, product: str, tensorflow: Oracle) -> None:
    for y in (tensorflow(CASES[name])[1]["0/0/y"], one_step(product, CASES[name])["0/y"]):
        np.testing.assert_allclose(y.ravel(), [-1, 1], rtol=1e-3)


@pytest.mark.parametrize("name", ["tf_keras-mixed", "tf_keras-mixed_ramp", "keras3-large_variance"])
def test_half_a_type_for_values_and_a_whole_one_for_parameters(name: str, tensorflow: Oracle) -> None:
    facts, _ = tensorflow(CASES[name])
    model = layer_model(meaning.layer(CASES[name]), training=False)
    types = {str(value.name): str(value.dtype) for value in [*model.graph.inputs, *model.graph.outputs]}
    assert (types.pop("X"), types.pop("Y"), facts["y_type"]) == ("FLOAT16", "FLOAT16", "float16")
    assert set(types.values()) == {"FLOAT"}
    assert set(facts["types"].values()) == {"float32"}


@of_every_product
def test_a_variance_that_float16_does_not_hold(product: str, tensorflow: Oracle) -> None:
    case = CASES["keras3-large_variance"]
    for found in (tensorflow(case)[1], {f"0/{key}": value for key, value in one_step(product, case).items()}):
        np.testing.assert_array_equal(found["0/0/moving_variance"], 70000)
        np.testing.assert_allclose(found["0/0/y"], draw(case)["x/0/0"] / np.sqrt(70000), rtol=1e-3, atol=2e-7)


@of_every_product
def test_ten_steps_in_a_function_move_the_statistics(product: str, tensorflow: Oracle) -> None:
    case, arrays = CASES["tf_keras-in_a_function"], draw(CASES["tf_keras-in_a_function"])
    ours, found = made(product, case), {}
    for step in range(10):
        found = ours.step(*inputs_of(case, arrays, step), True)
    kept = 0.99**10
    for results in (tensorflow(case)[1], {f"9/{key}": value for key, value in found.items()}):
        np.testing.assert_allclose(results["9/0/moving_mean"], 0.5 * (1 - kept), rtol=SINGLE)
        np.testing.assert_allclose(results["9/0/moving_variance"], kept, rtol=SINGLE)


@of_every_product
@pytest.mark.parametrize("rank", [4, 5])
def test_a_fused_layer_keeps_the_sample_variance(rank: int, product: str, tensorflow: Oracle) -> None:
    """That of 0 and 2 is 2; momentum 0.5 takes half of it."""
    case = CASES[f"tf_keras-0_and_2_of_rank_{rank}"]
    facts, found = tensorflow(case)
    assert facts["fused"]
    assert meaning.layer(case).fused
    np.testing.assert_array_equal(found["0/0/moving_variance"], 1)
    np.testing.assert_array_equal(one_step(product, case)["0/moving_variance"], 1)


@pytest.mark.parametrize("name", FUSED)
def test_what_is_fused(name: str, tensorflow: Oracle) -> None:
    *_, wanted = FUSED[name]
    (case,) = [case for case in CASES.values() if case.name == f"fused {name}"]
    assert bool(tensorflow(case)[0]["fused"]) == meaning.layer(case).fused == wanted


@pytest.mark.parametrize(
    "arguments",
    [
        {"renorm": True},
        {"axis": 2},
        {"axis": [1, 3]},
        {"virtual_batch_size": 2},
        {"adjustment": lambda _: (1, 0)},
        {"synchronized": True},
    ],
    ids=" ".join,
)
def test_what_cannot_be_fused_is_refused(arguments: dict[str, object]) -> None:
    """TensorFlow's side of it: ``refusals.py``."""
    with pytest.raises(SpecError, match="fused"):
        BatchNormSpec("tf_keras", fused=True, **arguments)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="fused"):
        BatchNormSpec("tf_keras", fused=True).resolve((None, 4, 4))


@pytest.mark.parametrize("clipping", [{"nine": 1.0}, {"rmax": 0.0, "rmin": 1.0}, {"rmax": 1.0, "dmax": -1.0}])
def test_wrong_limits_of_renorm_are_refused(clipping: dict[str, float]) -> None:
    with pytest.raises(SpecError):
        BatchNormSpec("keras3", renorm=True, renorm_clipping=clipping)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_the_ends_of_momentum_are_taken(momentum: float) -> None:
    assert BatchNormSpec("keras3", momentum=momentum).resolve((None, 3)).momentum == momentum


def test_a_training_step_of_v1_has_two_updates(tensorflow: Oracle) -> None:
    case = CASES["keras_v1_graph-updates"]
    outputs = [str(value.name) for value in layer_model(meaning.layer(case), training=True).graph.outputs]
    assert len(outputs) - 1 == tensorflow(case)[0]["updates"] == 2
    assert outputs[1:] == ["running_mean", "running_var"]


def test_ghost_batches_matter_in_training_alone(tensorflow: Oracle) -> None:
    spec = BatchNormSpec("tf_keras", **GHOSTS)  # type: ignore[arg-type]
    layer_model(spec.resolve((None, None, None, 3)), training=True)
    assert "error" not in tensorflow(CASES["tf_keras-ghosts_in_inference"])[0]
    layer_model(spec.resolve((1, 28, 28), training=False), training=False)
    assert "error" in tensorflow(PROBES["ghosts in training"])[0]
    with pytest.raises(SpecError, match="divide"):
        spec.resolve((1, 28, 28), training=True)


@of_every_product
def test_an_empty_batch_leaves_the_statistics(product: str, tensorflow: Oracle) -> None:
    """In a strategy that expects one; outside of it they become NaN in TensorFlow, see the deviations."""
    case = replace(PROBES["partial_batches"], steps=(True,))
    facts, found = tensorflow(PROBES["partial_batches"])
    ours = one_step(product, case)
    assert facts["fused"]
    assert [name.partition(":")[0].rpartition("/")[2] for name in facts["watched"]] == ["gamma", "beta"]
    for results in (found, {key.removeprefix("0/"): value for key, value in ours.items()}):
        assert results["y"].shape == case.shape
        np.testing.assert_array_equal(results["moving_mean"], 0)
        np.testing.assert_array_equal(results["moving_variance"], 1)
        np.testing.assert_array_equal(results["dbeta"], 0)
    np.testing.assert_array_equal(ours["0/dgamma"], 0)


@of_every_product
def test_a_layer_in_several_graphs_is_one_layer(product: str, tensorflow: Oracle) -> None:
    """Called on its own output: twice in functions of their own, then by itself."""
    case = PROBES["its_own_output in graphs"]
    case = replace(case, training="bool")
    _, found = tensorflow(PROBES["its_own_output in graphs"])
    ours, y = made(product, case), draw(case)["x/0/0"]
    for step in range(3):
        results = ours.step([y], [0 * y], None, True)
        y = results["0/y"]
        np.testing.assert_allclose(y, found[f"{step}/y"], rtol=SINGLE)
        np.testing.assert_allclose(results["0/moving_variance"], found[f"{step}/moving_variance"], rtol=SINGLE)
    np.testing.assert_allclose(y.ravel(), [-0.9995, 0.9995], rtol=SINGLE)


@of_every_product
@pytest.mark.parametrize("probe", [OLDER_PROBES["shared_layer"], PROBES["shared_layer of V1"]], ids=["V2", "V1"])
def test_a_layer_may_be_shared(probe: Case, product: str, tensorflow: Oracle) -> None:
    _, found = tensorflow(probe)
    ours, arrays = made(product, probe), draw(probe)
    for i in (0, 1):
        results = ours.step(*inputs_of(probe, arrays, i), True)
        np.testing.assert_allclose(results["0/y"], found[f"y/{i}"], rtol=SINGLE, atol=SINGLE)
    for name in ("moving_mean", "moving_variance"):
        np.testing.assert_allclose(results[f"0/{name}"], found[f"after/{name}"], rtol=SINGLE, atol=SINGLE)


@of_every_product
@pytest.mark.parametrize("name", ["keras_v1-frozen", "tf_keras-frozen", "tf_keras-thawed", "keras3-frozen"])
def test_a_step_changes_what_is_trainable(name: str, product: str, tensorflow: Oracle) -> None:
    case = CASES[name]
    start = meaning.started(case, draw(case))
    found = tensorflow(case)[1]
    moves = not case.arguments.get("trainable", True)
    for results in (found, {f"0/{key}": value for key, value in one_step(product, case).items()}):
        for statistic in ("moving_mean", "moving_variance"):
            assert np.array_equal(results[f"0/0/{statistic}"], start[statistic]) == moves


@of_every_product
@pytest.mark.parametrize("name", ["tf_keras-frozen", "keras3-frozen"])
def test_a_frozen_layer_trains_as_it_infers(name: str, product: str, tensorflow: Oracle) -> None:
    case, arrays = CASES[name], draw(CASES[name])
    inputs = inputs_of(case, arrays, 0)
    training, inference = (made(product, case).step(*inputs, mode) for mode in (True, False))
    np.testing.assert_array_equal(training["0/y"], inference["0/y"])
    np.testing.assert_array_equal(training["0/dx"], inference["0/dx"])
    if name == "keras3-frozen":  # with mean 0 and variance 1 there is nothing to do
        np.testing.assert_allclose(training["0/y"], arrays["x/0/0"], rtol=SINGLE)
        np.testing.assert_allclose(tensorflow(case)[1]["0/0/y"], arrays["x/0/0"], rtol=SINGLE)


@of_every_product
@pytest.mark.parametrize("name", ["tf_keras-ramp", "keras_v1_graph-ramp"])
def test_in_training_the_moving_statistics_do_not_matter(name: str, product: str, tensorflow: Oracle) -> None:
    x = draw(CASES[name])["x/0/0"]
    for y in (tensorflow(CASES[name])[1]["0/0/y"], one_step(product, CASES[name])["0/y"]):
        np.testing.assert_allclose(y, (x - x.mean()) / x.std(), atol=1e-3)


@of_every_product
@pytest.mark.parametrize("probe", [p for p in PROBES.values() if p.api == "keras3"], ids=lambda probe: probe.id)
def test_without_memory_the_last_batch_is_all(probe: Case, product: str, tensorflow: Oracle) -> None:
    """Whatever the statistics start from: after three steps on its own output they are those of a standard batch."""
    _, found = tensorflow(probe)
    ours, y = made(product, probe), draw(probe)["x/0/0"]
    x, results = y, {}
    for step, training in enumerate(probe.steps):
        results = ours.step([y], [0 * y], None, training)
        y = results["0/y"]
        np.testing.assert_allclose(y, found[f"{step}/y"], atol=SINGLE)
        for name in ("moving_mean", "moving_variance"):
            np.testing.assert_allclose(results[f"0/{name}"], found[f"{step}/{name}"], rtol=SINGLE, atol=SINGLE)
        if step == 2:
            np.testing.assert_allclose(y.mean(others(probe)), 0, atol=1e-3)
            np.testing.assert_allclose(y.std(others(probe)), 1, atol=1e-3)
    np.testing.assert_allclose(results["0/moving_mean"], 0, atol=1e-3)
    np.testing.assert_allclose(results["0/moving_variance"], 1, atol=1e-3)
    _in_both_modes(ours, x)


def _in_both_modes(ours: Product, x: Array) -> None:
    """Inference gives what training gave on the same batch, and not before; a mask matters in training alone."""
    modes = (False, True, False)
    before, training, after = (ours.step([x], [0 * x], None, mode)["0/y"] for mode in modes)
    assert not np.allclose(before, training)
    np.testing.assert_allclose(after, training, rtol=SINGLE, atol=SINGLE)


@of_every_product
@pytest.mark.parametrize("shape", [(5, 2, 3), (5, 3, 3, 2)], ids=str)
def test_a_mask_matters_in_training_alone(shape: tuple[int, ...], product: str) -> None:
    case = Case("published", "keras3", "mask", {"momentum": 0.0}, (shape,), mask="partial", steps=(False,))
    x, mask = draw(case)["x/0/0"].copy(), np.ones(shape[:-1])
    x[:, 1], mask[:, 1] = 0.0, 0.0
    found = {
        (mode, masked): made(product, case).step([x], [0 * x], [mask] if masked else None, mode)["0/y"]
        for mode in (False, True)
        for masked in (False, True)
    }
    np.testing.assert_array_equal(found[False, True], found[False, False])
    assert not np.allclose(found[True, True], found[True, False], atol=1e-3)


def test_the_deviations_of_renorm_start_from_the_root_of_the_variance(tensorflow: Oracle) -> None:
    case = CASES["keras3-root_of_the_variance"]
    start = meaning.started(case, draw(case))
    for name in ("moving_stddev", "renorm_stddev"):
        np.testing.assert_allclose(tensorflow(case)[1][f"before/{name}"], 2, rtol=SINGLE)
        np.testing.assert_allclose(start[name], 2, rtol=SINGLE)


@of_every_product
def test_in_inference_renorm_makes_no_difference(product: str) -> None:
    case = Case("published", "keras3", "inference", {"renorm": True}, ((4, 10),), steps=(False,))
    plain = replace(case, arguments={})
    start, inputs = meaning.started(case, draw(case)), inputs_of(case, draw(case), 0)
    plain_start = {name: start[name] for name in ("gamma", "beta", "moving_mean", "moving_variance")}
    with_renorm = PRODUCTS[product](case, start).step(*inputs, False)
    without = PRODUCTS[product](plain, plain_start).step(*inputs, False)
    for key, value in without.items():
        np.testing.assert_array_equal(with_renorm[key], value)


@of_every_product
def test_renorm_by_hand(product: str, tensorflow: Oracle) -> None:
    case = CASES["keras3-renorm_by_hand"]
    start, x = meaning.started(case, draw(case)), draw(case)["x/0/0"]
    mean, std = x.mean(0), np.sqrt(x.var(0) + 1e-3)
    r, d = std / start["renorm_stddev"], (mean - start["renorm_mean"]) / start["renorm_stddev"]
    stddev = 0.9 * start["moving_stddev"] + 0.1 * std
    wanted = {
        "y": ((x - mean) / std * r + d) * start["gamma"] + start["beta"],
        "moving_mean": 0.9 * start["moving_mean"] + 0.1 * mean,
        "moving_stddev": stddev,
        "moving_variance": stddev**2 - 1e-3,
        "renorm_mean": 0.8 * start["renorm_mean"] + 0.2 * mean,
        "renorm_stddev": 0.8 * start["renorm_stddev"] + 0.2 * std,
    }
    for found in (tensorflow(case)[1], {f"0/{key}": value for key, value in one_step(product, case).items()}):
        for name, value in wanted.items():
            np.testing.assert_allclose(found[f"0/0/{name}"], value, rtol=SINGLE, atol=SINGLE)


def test_a_spec_with_renorm_survives_json() -> None:
    spec = BatchNormSpec(
        "keras3", renorm=True, renorm_clipping={"rmax": 3.0, "rmin": 0.3, "dmax": 5.0}, renorm_momentum=0.95
    )
    assert BatchNormSpec.from_json(spec.to_json()) == spec


@of_every_product
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("sync-momentum")])
def test_the_moving_mean_is_that_of_all_replicas(name: str, product: str, tensorflow: Oracle) -> None:
    """Channel i of the first replica has mean 60 + i, the second 100 more."""
    case, momentum = CASES[name], CASES[name].arguments["momentum"]
    ours, arrays, found = made(product, case), draw(case), tensorflow(case)[1]
    for step in range(len(case.steps)):
        results = ours.step(*inputs_of(case, arrays, step), True)
        wanted = (110.0 + np.arange(8)) * (1 - momentum ** (step + 1))
        for r in (0, 1):
            np.testing.assert_allclose(results[f"{r}/moving_mean"], wanted, rtol=SINGLE)
            np.testing.assert_allclose(found[f"{step}/{r}/moving_mean"], wanted, rtol=SINGLE)


@of_every_product
def test_replicas_are_one_that_sees_all_samples(product: str, tensorflow: Oracle) -> None:
    case, arrays = CASES["tf_keras-two_replicas_sync"], draw(CASES["tf_keras-two_replicas_sync"])
    whole = replace(case, shares=((8, 3, 5),))
    x, dy = (np.concatenate([arrays[f"{kind}/0/{r}"] for r in (0, 1)]) for kind in "xw")
    alone = PRODUCTS[product](whole, meaning.started(case, arrays)).step([x], [dy], None, True)
    for found in (tensorflow(case)[1], {f"0/{key}": value for key, value in one_step(product, case).items()}):
        for kind in ("y", "dx"):
            shares = np.concatenate([found[f"0/{r}/{kind}"] for r in (0, 1)])
            np.testing.assert_allclose(shares, alone[f"0/{kind}"], rtol=SINGLE, atol=SINGLE)
        np.testing.assert_allclose(found["0/1/moving_mean"], alone["0/moving_mean"], rtol=SINGLE, atol=SINGLE)
