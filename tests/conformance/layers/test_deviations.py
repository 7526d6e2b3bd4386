"""Each deviation is real: TensorFlow does what the table says, and bnpass what it says it does."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bnpass.layers.model import layer_model
from bnpass.semantics import reference
from bnpass.semantics.resolved import Resolved
from bnpass.semantics.spec import SpecError
from tests.conformance.layers import meaning
from tests.conformance.layers.arrays import draw
from tests.conformance.layers.cases import Array, Case
from tests.conformance.layers.conftest import Outcome
from tests.conformance.layers.deviation_cases import CASES, PROBES, RANDOM
from tests.conformance.layers.deviations import DEVIATIONS
from tests.conformance.layers.exchange import Arrays, part
from tests.conformance.layers.judge import holds
from tests.conformance.layers.products import Reference, with_bodies

pytestmark = pytest.mark.keras
Oracle = Callable[[Case], Outcome]


def results(tensorflow: Oracle, name: str) -> Arrays:
    """Return what TensorFlow gave for a case that runs."""
    facts, found = tensorflow(CASES[name])
    assert "error" not in facts, facts
    return found


def first_step(name: str, layer: Resolved | None = None) -> Arrays:
    """Return the first step of the reference, of the case's layer or of another one."""
    case, arrays = CASES[name], draw(CASES[name])
    product = Reference(case, meaning.started(case, arrays))
    product._layer = layer or product._layer
    replicas = range(len(case.shares))
    xs, dys = ([arrays[f"{kind}/0/{r}"] for r in replicas] for kind in "xw")
    return product.step(xs, dys, [arrays[f"mask/0/{r}"] for r in replicas] if case.mask else None, case.steps[0])


def differ(a: Array, b: Array, by: float) -> bool:
    return bool((np.abs(a - b) > by * np.maximum(np.abs(b), 1e-3)).any())


def close(a: Array, b: Array, by: float = 1e-5) -> bool:
    return not differ(a, b, by)


def test_each_deviation_has_a_test() -> None:
    assert len({d.id for d in DEVIATIONS}) == len(DEVIATIONS)
    for deviation in DEVIATIONS:
        assert f"test_{deviation.id}" in globals(), deviation


@pytest.mark.parametrize("name", ["random", "random keras3", "random axes"])
def test_random_initializers(name: str, tensorflow: Oracle) -> None:
    case, found = CASES[name], results(tensorflow, name)
    ours, few = meaning.started(case, draw(case)), 4 / np.sqrt(case.channels)
    for parameter in RANDOM:
        theirs, mine = found[f"before/{parameter}"], ours[parameter]
        spread = theirs.std()
        assert abs(mine.std() / spread - 1) < few
        assert abs(mine.mean() - theirs.mean()) < few * spread
        for end in (0.05, 0.95):
            assert abs(np.quantile(mine, end) - np.quantile(theirs, end)) < 3 * few * spread
        if RANDOM[parameter]["class_name"] != "VarianceScaling":  # the others end somewhere
            assert abs(np.ptp(mine) / np.ptp(theirs) - 1) < 0.05
        assert not np.array_equal(mine, theirs)


def test_sample_variance(tensorflow: Oracle) -> None:
    fused, plain = results(tensorflow, "fused"), results(tensorflow, "not fused")
    for name, found in (("fused", fused), ("not fused", plain)):
        layer = meaning.layer(CASES[name])
        assert layer.running_var_correction == (name == "fused")
        assert close(first_step(name)["0/moving_variance"], found["0/0/moving_variance"])
        other = replace(layer, running_var_correction=1 - layer.running_var_correction)
        assert differ(first_step(name, other)["0/moving_variance"], found["0/0/moving_variance"], 1e-4)


def test_no_smallest_epsilon(tensorflow: Oracle) -> None:
    found = results(tensorflow, "tiny fused")["0/0/y"]
    layer = meaning.layer(CASES["tiny fused"])
    assert layer.fused
    assert close(first_step("tiny fused")["0/y"], found, 1e-3)
    assert differ(first_step("tiny fused", replace(layer, epsilon=1.001e-5))["0/y"], found, 0.1)


def test_float32_decay(tensorflow: Oracle) -> None:
    found = results(tensorflow, "float64")["0/0/moving_mean"]
    layer = meaning.layer(CASES["float64"])
    rounded = 1 - float(np.float32(1 - layer.momentum))
    assert close(first_step("float64", replace(layer, momentum=rounded))["0/moving_mean"], found, 1e-14)
    assert differ(first_step("float64")["0/moving_mean"], found, 1e-12)


def test_float_attributes() -> None:
    case, arrays = CASES["float64"], draw(CASES["float64"])
    start, inputs = meaning.started(case, arrays), ([arrays["x/0/0"]], [arrays["w/0/0"]], None, True)
    model, exact = with_bodies(case, start).step(*inputs), first_step("float64")
    for key, bound in (("0/y", 4.7e-8), ("0/moving_mean", 1e-7), ("0/moving_variance", 1e-7)):
        assert close(model[key], exact[key], 4 * bound)
        assert differ(model[key], exact[key], 1e-13), f"{key} is exact: the sentence is out of date"


def test_float64_with_renorm(tensorflow: Oracle) -> None:
    facts, _ = tensorflow(CASES["float64 renorm"])
    assert facts["error"] == "InvalidArgumentError"
    case = CASES["float64 renorm keras3"]
    for product in ("reference", "body", "expanded"):
        holds(case, product, draw(case), results(tensorflow, case.name))
    assert np.isfinite(first_step("float64 renorm")["0/y"]).all()


def test_float64_with_non_neg(tensorflow: Oracle) -> None:
    facts, _ = tensorflow(CASES["float64 NonNeg"])
    assert facts["error"] == "InvalidArgumentError"
    assert meaning.learnt(CASES["float64 NonNeg"], "beta", np.array([-1.0, 2.0, 0.5]), np.zeros(3)).min() == 0


def test_v1_never_refuses_fused(tensorflow: Oracle) -> None:
    for name in ("fused rank 3", "fused renorm"):
        facts, _ = tensorflow(CASES[name])
        assert facts["fused"] is False
        assert not meaning.layer(CASES[name]).fused
        with pytest.raises(SpecError):
            meaning.layer(replace(CASES[name], api="tf_keras"))


def test_fused_ignores_the_mask(tensorflow: Oracle) -> None:
    facts, _ = tensorflow(PROBES["fused_mask_warning"])
    assert any("ignored" in warning for warning in facts["warnings"])
    case = CASES["fused masked"]
    holds(case, "reference", draw(case), results(tensorflow, case.name))
    product = Reference(case, meaning.started(case, draw(case)))
    arrays = draw(case)
    without = product.step([arrays["x/0/0"]], [arrays["w/0/0"]], None, True)
    assert close(results(tensorflow, case.name)["0/0/y"], without["0/y"])


def test_masked_out_nan_leaks(tensorflow: Oracle) -> None:
    leaked, kept = results(tensorflow, "masked nan"), results(tensorflow, "masked nan keras3")
    channel = leaked["1/0/y"][..., -1]
    assert np.isnan(channel).all()
    assert np.isnan(kept["1/0/y"][..., -1]).sum() == 1
    for name in ("masked nan", "masked nan keras3"):
        for product in ("reference", "body", "expanded"):
            holds(CASES[name], product, draw(CASES[name]), results(tensorflow, name))


def test_no_element_left(tensorflow: Oracle) -> None:
    for name in ("masked all", "masked all keras3"):
        case, found = CASES[name], results(tensorflow, name)
        before = meaning.started(case, draw(case))
        assert close(found["0/0/moving_mean"], 0.99 * before["moving_mean"])
        assert close(found["0/0/moving_variance"], 0.99 * before["moving_variance"])
        for product in ("reference", "body", "expanded"):
            holds(case, product, draw(case), found)


def test_keras3_eta(tensorflow: Oracle) -> None:
    for name, eps in (("one left", 1e-9), ("one left float64", 1e-12)):
        case, arrays = CASES[name], draw(CASES[name])
        layer, x, mask = meaning.layer(case), arrays["x/0/0"], arrays["mask/0/0"]
        (mean,) = x[mask != 0]
        start = meaning.started(case, arrays)
        assert layer.mask_rule == "select"
        wanted = 0.99 * start["moving_mean"] + 0.01 * mean / (1 + 1e-7)
        without = 0.99 * start["moving_mean"] + 0.01 * mean
        found = results(tensorflow, name)["0/0/moving_mean"]
        if name == "one left float64":
            assert close(found, wanted, 1e-14)
            assert differ(found, without, eps)
        assert close(first_step(name)["0/moving_mean"], wanted, 1e-14)


def test_keras3_mask_is_local(tensorflow: Oracle) -> None:
    case, found = CASES["mask keras3"], results(tensorflow, "mask keras3")
    assert meaning.layer(case).synchronized
    arrays = draw(case)
    for r, share in enumerate(case.shares):
        alone = replace(case, shares=(share,))
        product = Reference(alone, meaning.started(case, arrays))
        y = product.step([arrays[f"x/0/{r}"]], [arrays[f"w/0/{r}"]], [arrays[f"mask/0/{r}"]], True)["0/y"]
        assert close(found[f"0/{r}/y"], y, 1e-4)
    for kind in ("reference", "body", "expanded"):
        holds(case, kind, arrays, found)


def test_fractional_mask_synchronized(tensorflow: Oracle) -> None:
    case, arrays, found = CASES["fractional"], draw(CASES["fractional"]), results(tensorflow, "fractional")
    x = np.concatenate([arrays[f"x/0/{r}"].reshape(-1, 3) for r in (0, 1)])
    w = np.concatenate([arrays[f"mask/0/{r}"].reshape(-1, 1) for r in (0, 1)])
    total = w.sum()
    mean = (w * x).sum(0) / total
    right, wrong = ((f * x**2).sum(0) / total - mean**2 for f in (w, w**2))
    before = meaning.started(case, arrays)["moving_variance"]
    assert close(found["0/0/moving_variance"], 0.99 * before + 0.01 * np.maximum(wrong, 0), 1e-4)
    assert close(first_step("fractional")["0/moving_variance"], 0.99 * before + 0.01 * right, 1e-9)
    for product in ("reference", "body", "expanded"):
        local = CASES["fractional local"]
        holds(local, product, draw(local), results(tensorflow, local.name))


def test_one_pass(tensorflow: Oracle) -> None:
    error = {}
    for name in ("one pass", "two passes"):
        case, arrays = CASES[name], draw(CASES[name])
        found = results(tensorflow, name)["0/0/y"]
        exact = first_step(name)["0/y"]
        error[name] = np.abs(found - exact).max() / np.abs(exact).max()
        body = with_bodies(case, meaning.started(case, arrays))
        mine = body.step([arrays["x/0/0"]], [arrays["w/0/0"]], None, True)["0/y"]
        assert np.abs(mine - exact).max() / np.abs(exact).max() < 1e-6
    assert error["one pass"] > 1e-3
    assert error["two passes"] < 5e-4


def test_empty_replica(tensorflow: Oracle) -> None:
    case = CASES["one empty"]
    before = meaning.started(case, draw(case))["moving_mean"]
    found, keras3 = results(tensorflow, case.name), results(tensorflow, "one empty keras3")
    np.testing.assert_array_equal(found["0/1/moving_mean"], before)
    assert differ(found["0/0/moving_mean"], before, 1e-4)
    np.testing.assert_array_equal(keras3["0/1/moving_mean"], keras3["0/0/moving_mean"])
    _, read = tensorflow(PROBES["mean_of_copies"])
    assert close(read["read"], (read["copy/0"] + read["copy/1"]) / 2)
    for name in ("one empty", "one empty keras3"):
        for product in ("reference", "body", "expanded"):
            holds(CASES[name], product, draw(CASES[name]), results(tensorflow, name))


def test_all_replicas_empty(tensorflow: Oracle) -> None:
    for name, kept in (("all empty", 1.0), ("all empty keras3", 0.99)):
        case = CASES[name]
        start = meaning.started(case, draw(case))
        assert close(results(tensorflow, name)["0/0/moving_variance"], kept * start["moving_variance"])
        ours = first_step(name)
        np.testing.assert_array_equal(ours["0/moving_variance"], start["moving_variance"])
        np.testing.assert_array_equal(ours["1/moving_mean"], start["moving_mean"])


def test_empty_batch(tensorflow: Oracle) -> None:
    for name in ("empty batch", "empty batch fused", "empty batch keras3"):
        start = meaning.started(CASES[name], draw(CASES[name]))
        assert np.isnan(results(tensorflow, name)["0/0/moving_mean"]).all()
        np.testing.assert_array_equal(first_step(name)["0/moving_mean"], start["moving_mean"])


def test_ghost_groups_over_replicas(tensorflow: Oracle) -> None:
    case = CASES["pooled ghosts"]
    for product in ("reference", "body", "expanded"):
        holds(case, product, draw(case), results(tensorflow, case.name))
    facts, _ = tensorflow(CASES["different ghosts"])
    assert "shape" in facts["message"]
    with pytest.raises(ValueError, match="ghost"):
        first_step("different ghosts")


def test_keras_v1_ignores_synchronized(tensorflow: Oracle) -> None:
    case = CASES["v1 synchronized"]
    assert not meaning.layer(case).synchronized
    holds(case, "reference", draw(case), results(tensorflow, case.name))


def test_ghost_batches_and_a_tensor(tensorflow: Oracle) -> None:
    case = CASES["ghost tensor"]
    for product in ("reference", "body", "expanded"):
        holds(case, product, draw(case), results(tensorflow, case.name))
    graph = CASES["ghost tensor graph"]
    divided = replace(graph, training="bool")
    holds(divided, "reference", draw(graph), results(tensorflow, graph.name))


def test_ghost_batches_of_inference(tensorflow: Oracle) -> None:
    facts, _ = tensorflow(CASES["ghost inference graph"])
    assert facts["error"] == "ValueError"
    found = results(tensorflow, "ghost inference")
    for name in ("ghost inference", "ghost inference graph"):
        layer = meaning.spec(CASES[name]).resolve(CASES[name].shape, training=False)
        arrays = draw(CASES[name])
        state = meaning.state_of(layer, meaning.started(CASES[name], arrays))
        (y,) = reference.forward(layer, [arrays["x/0/0"]], state, training=False).ys
        assert name != "ghost inference" or close(found["0/0/y"], y, 1e-4)


def test_keras3_training_tensor(tensorflow: Oracle) -> None:
    facts, _ = tensorflow(CASES["tensor"])
    assert facts["error"] == "OperatorNotAllowedInGraphError"
    model = layer_model(meaning.layer(CASES["tensor"]), training=None)
    assert "training" in [value.name for value in model.graph.inputs]


def test_v1_not_trainable(tensorflow: Oracle) -> None:
    found = {name: results(tensorflow, name) for name in ("frozen v1", "frozen v2")}
    for name, by_batch in (("frozen v1", True), ("frozen v2", False)):
        case, layer = CASES[name], meaning.layer(CASES[name])
        assert layer.uses_batch_statistics(True) == by_batch
        normal = (found[name]["0/0/y"] - draw(case)["start/beta"]) / draw(case)["start/gamma"]
        assert close(normal.mean(0), 0.0 * normal.mean(0), 1e-2) == by_batch
        before = meaning.started(case, draw(case))["moving_mean"]
        np.testing.assert_array_equal(found[name]["4/0/moving_mean"], before)


def test_v1_not_trainable_renorm(tensorflow: Oracle) -> None:
    for name, moves in (
        ("frozen renorm", True),
        ("frozen renorm tf1", True),
        ("frozen renorm graph", False),
        ("frozen renorm tf1 graph", False),
    ):
        case, found = CASES[name], results(tensorflow, name)
        before = meaning.started(case, draw(case))
        assert differ(found["0/0/renorm_mean"], before["renorm_mean"], 1e-6) == moves
        np.testing.assert_array_equal(found["0/0/moving_mean"], before["moving_mean"])
    for name in ("frozen renorm", "frozen renorm tf1 graph"):
        for product in ("reference", "body", "expanded"):
            holds(CASES[name], product, draw(CASES[name]), results(tensorflow, name))


def test_tf1_runs_eagerly(tensorflow: Oracle) -> None:
    facts, found = tensorflow(PROBES["tf1_in_a_function"])
    assert facts["error_in_function"] == "ValueError"
    x = draw(PROBES["tf1_in_a_function"])["x/0/0"]
    assert close(found["y"], (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3))


def test_update_that_no_one_ran(tensorflow: Oracle) -> None:
    facts, found = tensorflow(PROBES["updates_not_run"])
    assert facts["updates"] == 2
    assert facts["variables"] == ["bn/beta", "bn/gamma", "bn/moving_mean", "bn/moving_variance"]
    np.testing.assert_array_equal(found["without/moving_mean"], np.zeros(3))
    x = draw(PROBES["updates_not_run"])["x/0/0"]
    assert close(found["after/moving_mean"], 0.01 * x.mean(0))
    model = layer_model(meaning.layer(PROBES["updates_not_run"]), training=True)
    assert {"running_mean", "running_var"} <= {value.name for value in model.graph.outputs}


def test_keras3_pure_float16(tensorflow: Oracle) -> None:
    facts, _ = tensorflow(CASES["pure"])
    assert set(facts["types"].values()) == {"float16"}
    facts, _ = tensorflow(CASES["pure tf_keras"])
    assert set(facts["types"].values()) == {"float32"}
    for name in ("pure", "pure tf_keras"):
        assert meaning.layer(CASES[name]).parameter_dtype == "float32"
    # its numbers are ours, as far as 16 bits go
    assert close(results(tensorflow, "pure")["4/0/moving_variance"], _after(CASES["pure"], 5)["moving_variance"], 5e-3)


def _after(case: Case, steps: int) -> dict[str, Array]:
    arrays = draw(case)
    product = Reference(case, meaning.started(case, arrays))
    for step in range(steps):
        product.step([arrays[f"x/{step}/0"]], [arrays[f"w/{step}/0"]], None, True)
    return product.state[0]


def test_keras3_renorm_arguments(tensorflow: Oracle) -> None:
    facts, _ = tensorflow(PROBES["renorm_arguments"])
    assert facts["kept"] == {"nine": 9.0}
    assert "{rmax}" in facts["rmax"]
    assert "{dmax}" in facts["dmax"]
    probe = PROBES["renorm_arguments"]
    kept: dict[str, Any] = {"renorm_clipping": {"nine": 9.0}}
    assert meaning.spec(replace(probe, arguments=kept)).renorm_clipping == {"nine": 9.0}
    with pytest.raises(SpecError, match=r"0\.5"):
        meaning.spec(replace(probe, arguments={"renorm": True, "renorm_clipping": {"rmax": 0.5, "rmin": 1.0}}))


def test_config_loses(tensorflow: Oracle) -> None:
    facts, _ = tensorflow(PROBES["config"])
    assert facts["axis"] == [1, [2]]
    assert facts["synchronized"] == [True, False]
    assert not {"synchronized", "fused"} & set(facts["keys"])
    assert "adjustment" not in facts["keys_adjusted"]
    spec = meaning.spec(PROBES["config"])
    again = type(spec).from_json(spec.to_json())
    assert (again.axis, again.synchronized, again.virtual_batch_size) == (1, True, 2)


def test_parts_of_results_are_those_of_one_step() -> None:
    assert part({"1/a": np.ones(1), "11/a": np.zeros(1)}, "1").keys() == {"a"}
