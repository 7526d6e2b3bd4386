"""A layer written as nodes computes what the reference says, argument by argument and in pairs."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from bnpass.errors import UsageError
from bnpass.layers.gradient import emit_gradient
from bnpass.layers.layer import emit_layer
from bnpass.layers.model import layer_model
from bnpass.layers.values import LayerInputs
from bnpass.ops.bodies import add_bodies
from bnpass.ops.emit import Emit
from bnpass.ops.schemas import register
from bnpass.semantics.reference import State, backward, forward
from bnpass.semantics.resolved import Renorm, Resolved
from tests.support.sync_ops import evaluate, evaluate_replicas

Array = NDArray[Any]
Mode = tuple[bool | None, bool]
"""What the model is built for (None: decided at run time), and what it is run with."""

TRAINING, INFERENCE, LATE_TRAINING, LATE_INFERENCE = MODES = [(True, True), (False, False), (None, True), (None, False)]
CLIP = {"rmin": 0.8, "rmax": 1.1, "dmax": 0.25}


def unused(shape: tuple[int, ...]) -> tuple[Array, Array]:
    raise AssertionError(f"the values are given at run time, nobody asks for those at {shape}")


FIXED = Renorm(rmin=0.8, rmax=1.1, dmax=0.25, momentum=0.75)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "v1": {"api": "keras_v1"},
    "no scale": {"scale": False},
    "no center": {"center": False},
    "neither": {"scale": False, "center": False},
    "fused": {"fused": True, "running_var_correction": 1, "mask_rule": "ignored", "masked": True},
    "frozen v1": {"api": "tf1", "trainable": False},
    "frozen v1, renorm": {"api": "keras_v1", "trainable": False, "renorm": FIXED},
    "frozen v2": {"trainable": False},
    "frozen v2, renorm, adjustment": {"trainable": False, "renorm": FIXED, "adjustment": unused},
    "renorm": {"renorm": FIXED},
    "renorm, limits at run time": {"renorm": Renorm(None, None, None, 0.75)},
    "renorm, one limit": {"renorm": Renorm(0.0, math.inf, 0.25, 0.75)},
    "renorm, no limits": {"renorm": Renorm(0.0, math.inf, math.inf, 0.75)},
    "renorm, no scale": {"renorm": FIXED, "scale": False},
    "ghost": {"virtual_batch_size": 2},
    "ghost, renorm": {"virtual_batch_size": 2, "renorm": FIXED},
    "ghost, neither": {"virtual_batch_size": 2, "scale": False, "center": False},
    "adjustment": {"adjustment": unused},
    "adjustment, renorm": {"adjustment": unused, "renorm": FIXED},
    "adjustment, no scale": {"adjustment": unused, "scale": False},
    "adjustment, no center": {"adjustment": unused, "center": False},
    "mask": {"masked": True},
    "mask, no scale": {"masked": True, "scale": False},
    "mask, renorm": {"masked": True, "renorm": FIXED},
    "mask, adjustment": {"masked": True, "adjustment": unused},
    "mask, adjustment, renorm": {"masked": True, "adjustment": unused, "renorm": FIXED},
    "mask, frozen v1": {"masked": True, "trainable": False, "api": "tf1"},
    "keras3 mask": {"masked": True, "api": "keras3"},
    "keras3 mask, renorm": {"masked": True, "api": "keras3", "renorm": FIXED},
}
PLACES: dict[str, tuple[tuple[int | None, ...], tuple[int, ...], int]] = {
    "[C]": ((3,), (0,), 3),
    "[N, C]": ((None, 3), (1,), 4),
    "[C, N]": ((3, None), (0,), 4),
    "[N, T, C]": ((None, 2, 3), (2,), 4),
    "[N, C, T]": ((None, 3, None), (1,), 4),
    "[N, C, C]": ((None, 3, 2), (1, 2), 4),
    "[C, C]": ((3, 2), (0, 1), 3),
    "[C, N, C]": ((3, None, 2), (0, 2), 3),
    "[N, C, H, W]": ((None, 3, 2, 2), (1,), 4),
    "[N, C, H, C]": ((None, 3, 2, 2), (1, 3), 4),
    "[N, C, C, W]": ((None, 2, 3, 2), (1, 2), 4),
    "[N, C, C, ?]": ((None, 2, 3, None), (1, 2), 4),
    "[N, D, H, W, C]": ((None, 2, 1, 2, 3), (4,), 4),
    "[N, D, C, H, W, C]": ((None, 2, 3, 1, 2, 2), (2, 5), 2),
    "one channel": ((None, 2, 1), (2,), 4),
    "one sample": ((None, 3), (1,), 1),
    "empty batch": ((None, 2, 3), (2,), 0),
    "empty batch, [N, C, H, C]": ((None, 3, 2, 2), (1, 3), 0),
    "known batch": ((4, 2, 3), (1,), 4),
}


def layer_of(shape: tuple[int | None, ...], axes: tuple[int, ...], dtype: str = "float64", **options: Any) -> Resolved:
    """Return a layer; momentum and epsilon are numbers that a float attribute holds exactly."""
    options.pop("masked", None)
    api = options.pop("api", "tf_keras")
    defaults: dict[str, Any] = {
        "api": api,
        "input_shape": shape,
        "dtype": dtype,
        "parameter_dtype": "float64" if dtype == "float64" else "float32",
        "parameter_shape": tuple(shape[a] for a in axes),
        "axes": axes,
        "momentum": 0.875,
        "epsilon": 2.0**-6,
        "center": True,
        "scale": True,
        "trainable": True,
        "fused": False,
        "synchronized": False,
        "running_var_correction": 0,
        "virtual_batch_size": 0,
        "renorm": None,
        "adjustment": None,
        "mask_rule": "select" if api == "keras3" else "weights",
    }
    return Resolved(**(defaults | options))


def data_of(layer: Resolved, model: ir.Model, samples: int, training: bool, seed: int = 0) -> dict[str, Array]:
    """Return values for every input of a model of a layer."""
    rng = np.random.default_rng(seed)
    dtype = ml_dtypes.bfloat16 if layer.dtype == "bfloat16" else np.dtype(layer.dtype)
    shape = [samples if n is None else n for n in layer.input_shape]
    C = layer.channels
    broadcast = [n if i % 2 == 0 else 1 for i, n in enumerate(shape)]
    mask = rng.random(shape[:-1])
    values = {
        "X": (rng.normal(size=shape) * 2 + np.arange(shape[-1])).astype(dtype),
        "dY": rng.normal(size=shape).astype(dtype),
        "mask": mask > 0.4 if layer.mask_rule == "select" else np.where(mask > 0.4, mask, 0).astype(dtype),
        "training": np.array(training),
        "adjust_scale": rng.uniform(0.5, 1.5, broadcast),
        "adjust_bias": rng.normal(size=[1] * (len(shape) - 1) + [shape[-1]]),
        "scale": rng.uniform(0.5, 2, C) * rng.choice([-1, 1], C),
        "B": rng.normal(size=C),
        "input_mean": rng.normal(size=C),
        "input_var": rng.uniform(0.5, 2, C),
        "input_stddev": rng.uniform(0.5, 2, C),
        "renorm_mean": rng.normal(size=C),
        "renorm_stddev": rng.uniform(0.05, 3, C),
        **{name: np.array(limit) for name, limit in CLIP.items()},
    }
    of_layer = {name: v.astype(layer.parameter_dtype) if v.dtype == np.float64 else v for name, v in values.items()}
    of_layer |= {name: values[name] for name in ("X", "dY", "mask")}
    return {value.name: of_layer[value.name] for value in model.graph.inputs if value.name}


def state_of(layer: Resolved, data: Mapping[str, Array]) -> State:
    """Return the state before the step."""
    given = {name: value.astype(np.float64) for name, value in data.items() if value.dtype != bool}
    return State(
        given.get("scale", np.ones(layer.channels)),
        given.get("B", np.zeros(layer.channels)),
        given["input_mean"],
        given["input_var"],
        given.get("input_stddev"),
        given.get("renorm_mean"),
        given.get("renorm_stddev"),
    )


def expected(layer: Resolved, feeds: list[dict[str, Array]], mode: Mode) -> list[dict[str, Array]]:
    """Return what the reference says the outputs of each replica's model are."""
    built, training = mode
    masks = [feed["mask"].astype(np.float64) for feed in feeds] if "mask" in feeds[0] else None
    pairs = [(feed["adjust_scale"], feed["adjust_bias"]) for feed in feeds] if "adjust_scale" in feeds[0] else None
    xs, dys = ([feed[name].astype(np.float64) for feed in feeds] for name in ("X", "dY"))
    state = state_of(layer, feeds[0])
    clip = {name: float(feeds[0][name]) for name in CLIP if name in feeds[0]}
    symbolic = built is None
    step = forward(layer, xs, state, training=training, symbolic=symbolic, masks=masks, adjustments=pairs, clip=clip)
    grads = backward(step, xs, dys)
    results = []
    for i, feed in enumerate(feeds):
        result = {"Y": step.ys[i], "dX": grads.dxs[i]}
        if layer.updates_statistics(built is not False):
            result |= {"running_mean": step.state.running_mean, "running_var": step.state.running_var}
            if layer.renorm is not None:
                result["running_stddev"] = step.state.running_stddev
        if layer.renorm is not None and layer.updates_renorm(built is not False):
            after = step.state
            result |= {"running_renorm_mean": after.renorm_mean, "running_renorm_stddev": after.renorm_stddev}
        result |= {"dscale": grads.dscales[i]} if layer.scale else {}
        result |= {"dB": grads.dBs[i]} if layer.center else {}
        if pairs is not None:
            for name, like, full in (("dadjust_scale", 0, grads.das[i]), ("dadjust_bias", 1, grads.dcs[i])):
                reduced = tuple(k for k, n in enumerate(pairs[i][like].shape) if n == 1)
                result[name] = full.sum(reduced, keepdims=True) * training
        results.append({name: np.asarray(value) for name, value in result.items()})
        assert feed["X"].shape == result["Y"].shape
    return results


def judge(got: Mapping[str, Array], wanted: Mapping[str, Array], dtype: str, roundings: int = 16) -> None:
    """Each output is right but for some roundings of its own type at the size of its largest number."""
    assert list(got) == [name for name in ORDER if name in wanted]
    for name, want in wanted.items():
        of_data = name in ("Y", "dX")
        kind = dtype if of_data else "float64" if dtype == "float64" else "float32"
        assert got[name].dtype == np.dtype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind), name
        assert got[name].shape == want.shape, name
        eps = float(ml_dtypes.finfo(got[name].dtype).eps)
        bound = roundings * eps * max(1.0, np.abs(want).max(initial=0.0))
        error = np.abs(got[name].astype(np.float64) - want).max(initial=0.0)
        assert error <= bound, f"{name} is off by {error:.3g}, allowed {bound:.3g}"


ORDER = (
    *("Y", "running_mean", "running_var", "running_stddev", "running_renorm_mean", "running_renorm_stddev"),
    *("dX", "dscale", "dB", "dadjust_scale", "dadjust_bias"),
)


SOME = ("[N, C]", "[N, C, T]", "[N, C, H, C]", "[N, C, C, W]", "empty batch")
"""Enough places for modes other than training, which brings X to one channel axis in the same way."""


def takes(options: Mapping[str, Any], axes: tuple[int, ...], samples: int) -> bool:
    """Whether ghost batches fit; for none at all the reference has no numbers."""
    ghost = options.get("virtual_batch_size", 0)
    return not ghost or (0 not in axes and samples > 0 and samples % ghost == 0)


@pytest.mark.parametrize("mode", MODES, ids=["training", "inference", "late training", "late inference"])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_argument_at_every_rank(name: str, mode: Mode) -> None:
    options = OPTIONS[name]
    full = mode == TRAINING and " no " not in name and "frozen" not in name
    for place in PLACES if full else SOME:
        shape, axes, samples = PLACES[place]
        if not takes(options, axes, samples):
            continue
        layer = layer_of(shape, axes, **options)
        model = layer_model(layer, training=mode[0], mask="masked" in options, gradient=True)
        feed = data_of(layer, model, samples, mode[1])
        try:
            judge(evaluate(model, feed), expected(layer, [feed], mode)[0], "float64", roundings=1024)
        except AssertionError as error:
            error.add_note(f"at {place}")
            raise


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_argument_in_every_type(name: str, dtype: str) -> None:
    for place, mode in (("[N, T, C]", TRAINING), ("[N, C, H, C]", LATE_TRAINING)):
        shape, axes, samples = PLACES[place]
        layer = layer_of(shape, axes, dtype, **OPTIONS[name])
        model = layer_model(layer, training=mode[0], mask="masked" in OPTIONS[name], gradient=True)
        feed = data_of(layer, model, samples, mode[1])
        judge(evaluate(model, feed), expected(layer, [feed], mode)[0], dtype)


def stepped(layer: Resolved, feed: dict[str, Array], mode: Mode = TRAINING, **options: Any) -> dict[str, Array]:
    """Return what a model of a layer computes, gradients included, after it was compared with the reference."""
    model = layer_model(layer, training=mode[0], mask="mask" in feed, gradient=True, **options)
    got = evaluate(model, feed)
    judge(got, expected(layer, [feed], mode)[0], layer.dtype, roundings=1024)
    return got


def feed_of(layer: Resolved, samples: int, mode: Mode = TRAINING, *, masked: bool = False) -> dict[str, Array]:
    model = layer_model(layer, training=mode[0], mask=masked, gradient=True)
    return data_of(layer, model, samples, mode[1])


@pytest.mark.parametrize("renorm", [None, FIXED])
def test_ghost_batches_of_an_empty_batch_leave_the_statistics_alone(renorm: Renorm | None) -> None:
    layer = layer_of((None, 2, 3), (2,), virtual_batch_size=2, renorm=renorm)
    model = layer_model(layer, training=True, gradient=True)
    feed = data_of(layer, model, 0, True)
    got = evaluate(model, feed)
    assert got["Y"].shape == got["dX"].shape == (0, 2, 3)
    for after, before in (("running_mean", "input_mean"), ("running_stddev", "input_stddev")):
        if after in got:
            np.testing.assert_array_equal(got[after], feed[before])
    for name in ("dscale", "dB"):
        np.testing.assert_array_equal(got[name], np.zeros(3))


@pytest.mark.parametrize("api", ["tf_keras", "keras3"])
@pytest.mark.parametrize("renorm", [None, FIXED])
def test_a_mask_that_chooses_nothing_pulls_the_statistics_to_zero_as_the_classes_do(
    api: str, renorm: Renorm | None
) -> None:
    layer = layer_of((None, 2, 3), (2,), api=api, renorm=renorm)
    feed = feed_of(layer, 4, masked=True)
    feed["mask"] = np.zeros_like(feed["mask"])
    got = stepped(layer, feed)
    np.testing.assert_allclose(got["running_mean"], 0.875 * feed["input_mean"], rtol=1e-15)


@pytest.mark.parametrize("api", ["tf_keras", "keras3"])
def test_a_mask_of_length_one_counts_every_position_it_stands_for(api: str) -> None:
    layer = layer_of((None, 2, 2, 3), (3,), api=api)
    for lengths in ((1, 2, 1), (4, 1, 2), (1, 1, 1)):
        feed = feed_of(layer, 4, masked=True)
        feed["mask"] = np.ones(lengths, feed["mask"].dtype)
        feed["mask"].flat[0] = 0 if feed["mask"].size > 1 else 1
        stepped(layer, feed)


def test_what_a_keras3_mask_hides_is_never_looked_at() -> None:
    layer = layer_of((None, 2, 3), (2,), api="keras3")
    feed = feed_of(layer, 4, masked=True)
    feed["mask"][1, 1] = False
    clean = stepped(layer, feed)
    feed["X"][1, 1] = np.nan, np.inf, 1e300
    model = layer_model(layer, training=True, mask=True)
    with np.errstate(invalid="ignore", over="ignore"):
        got = evaluate(model, feed)
    for name in ("running_mean", "running_var"):
        np.testing.assert_array_equal(got[name], clean[name])
    seen = np.ones((4, 2), bool)
    seen[1, 1] = False
    np.testing.assert_array_equal(got["Y"][seen], clean["Y"][seen])


def test_a_fused_layer_ignores_its_mask() -> None:
    layer = layer_of((None, 2, 2, 3), (3,), "float32", **OPTIONS["fused"])
    feed = feed_of(layer, 4, masked=True)
    with_mask = stepped(layer, feed)
    without = stepped(layer, {name: value for name, value in feed.items() if name != "mask"})
    np.testing.assert_array_equal(with_mask["Y"], without["Y"])


SHARED = {
    "plain": {},
    "several axes": {"shape": (None, 3, 2, 2), "axes": (1, 3)},
    "renorm": {"renorm": FIXED},
    "adjustment, renorm": {"adjustment": unused, "renorm": FIXED},
    "mask": {"masked": True},
    "mask, renorm": {"masked": True, "renorm": FIXED},
    "mask, adjustment": {"masked": True, "adjustment": unused},
    "ghost": {"virtual_batch_size": 2},
    "ghost, renorm": {"virtual_batch_size": 2, "renorm": FIXED},
    "sync class": {"api": "sync"},
    "keras3": {"api": "keras3"},
    "frozen": {"trainable": False},
}


@pytest.mark.parametrize("mode", MODES, ids=["training", "inference", "late training", "late inference"])
@pytest.mark.parametrize("name", SHARED)
def test_replicas_share_their_statistics(name: str, mode: Mode) -> None:
    options = dict(SHARED[name])
    shape, axes = options.pop("shape", (None, 2, 3)), options.pop("axes", (2,))
    ghosts = "virtual_batch_size" in options
    layer = layer_of(shape, axes, synchronized=True, **options)
    model = layer_model(layer, training=mode[0], group="world", mask="masked" in options, gradient=True)
    feeds = [data_of(layer, model, n, mode[1], seed) for seed, n in enumerate((4, 4, 4) if ghosts else (5, 2, 1, 0))]
    per_replica = ("X", "dY", "mask", "adjust_scale", "adjust_bias")
    feeds = [feeds[0] | {k: v for k, v in feed.items() if k in per_replica} for feed in feeds]
    got, _ = evaluate_replicas(model, feeds)
    if layer.uses_batch_statistics(mode[1]):
        wanted = expected(layer, feeds, mode)
    else:
        wanted = [expected(dataclasses.replace(layer, synchronized=False), [feed], mode)[0] for feed in feeds]
    for mine, right in zip(got, wanted, strict=True):
        judge(mine, right, "float64", roundings=1024)


def test_a_replica_without_a_chosen_element_takes_part() -> None:
    for dtype in ("float32", "float64"):
        layer = layer_of((None, 2, 3), (2,), dtype, synchronized=True)
        model = layer_model(layer, training=True, group="world", mask=True, gradient=True)
        feeds = [data_of(layer, model, n, True, seed) for seed, n in enumerate((3, 2, 0))]
        feeds = [feeds[0] | {name: feed[name] for name in ("X", "dY", "mask")} for feed in feeds]
        feeds[1]["mask"][...] = 0
        got, _ = evaluate_replicas(model, feeds)
        for mine, right in zip(got, expected(layer, feeds, TRAINING), strict=True):
            judge(mine, right, dtype, roundings=64)


@pytest.mark.parametrize(
    ("options", "dtype", "forward_messages"),
    [
        ({"masked": True}, "float32", 1),
        ({"masked": True}, "float64", 2),
        ({"masked": True, "api": "keras3"}, "float32", 0),
    ],
)
def test_masked_statistics_cost_one_message_or_two(options: dict[str, Any], dtype: str, forward_messages: int) -> None:
    layer = layer_of((None, 2, 3), (2,), dtype, synchronized=True, **options)
    for gradient in (False, True):
        model = layer_model(layer, training=True, group="mine", mask=True, gradient=gradient)
        sent = [node for node in model.graph if node.op_type == "AllReduce"]
        assert len(sent) == forward_messages + (gradient and forward_messages > 0)
        assert {node.attributes["group"].as_string() for node in sent} <= {"mine"}


def groups(model: ir.Model) -> set[str]:
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return {node.attributes["group"].as_string() for node in nodes if node.domain == "bnpass"}


def test_inference_mode_never_names_a_group() -> None:
    layer = layer_of((None, 3), (1,), synchronized=True, renorm=FIXED)
    for training in (True, None):
        model = layer_model(layer, training=training, group="world", gradient=True)
        nodes = [n for n in ir.traversal.RecursiveGraphIterator(model.graph) if n.op_type == "SyncBatchNormalization"]
        assert {(n.attributes["training_mode"].as_int(), n.attributes["group"].as_string()) for n in nodes} == {(0, "")}
        assert groups(model) == {"world", ""}


def test_only_a_synchronized_layer_in_training_meets_its_group() -> None:
    shared, alone = (layer_of((None, 3), (1,), synchronized=flag) for flag in (True, False))
    assert groups(layer_model(shared, training=True, group="world", gradient=True)) == {"world"}
    assert groups(layer_model(shared, training=False, group="world", gradient=True)) == {""}
    assert groups(layer_model(alone, training=True, group="world", gradient=True)) == {""}
    frozen = dataclasses.replace(shared, trainable=False)
    assert groups(layer_model(frozen, training=None, group="world", gradient=True)) == {""}


CONSTANT_CORRECTIONS = Renorm(rmin=1.3, rmax=1.3, dmax=1e-3, momentum=0.75)
"""Both corrections sit on a limit, so that they are constants to a difference, too."""


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": False},
        {"virtual_batch_size": 2},
        {"renorm": CONSTANT_CORRECTIONS},
        {"renorm": CONSTANT_CORRECTIONS, "virtual_batch_size": 2},
        {"adjustment": unused},
        {"adjustment": unused, "renorm": CONSTANT_CORRECTIONS},
        {"masked": True},
        {"masked": True, "api": "keras3"},
        {"masked": True, "renorm": CONSTANT_CORRECTIONS},
        {"masked": True, "adjustment": unused, "axes": (1,)},
        {"axes": (1, 2)},
        {"training": False, "axes": (1, 2)},
    ],
    ids=lambda options: ", ".join(options) or "plain",
)
def test_the_gradient_is_the_slope_of_the_model_itself(options: dict[str, Any]) -> None:
    axes, training = options.get("axes", (2,)), options.get("training", True)
    kept = {name: value for name, value in options.items() if name not in ("axes", "training")}
    layer = layer_of((None, 3, 2), axes, **kept)
    model = layer_model(layer, training=training, mask="masked" in options, gradient=True)
    feed = data_of(layer, model, 4, training, seed=3)
    got = evaluate(model, feed)
    names = {"X": "dX", "scale": "dscale", "B": "dB", "adjust_scale": "dadjust_scale", "adjust_bias": "dadjust_bias"}
    h, rng = 1e-5, np.random.default_rng(1)
    for name, gradient in names.items():
        if name not in feed:
            continue
        for _ in range(4 if name == "X" else 1):
            way = rng.normal(size=feed[name].shape)
            ends = [evaluate(model, feed | {name: feed[name] + step * way})["Y"] for step in (h, -h)]
            slope = float(((ends[0] - ends[1]) * feed["dY"]).sum() / (2 * h))
            mine = float((got[gradient] * way).sum())
            assert abs(slope - mine) < 1e-7 * max(1, np.abs(got[gradient] * way).sum()), gradient


@pytest.mark.parametrize("name", OPTIONS)
def test_a_stock_runtime_runs_it_with_the_bodies(name: str) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    shape, axes, samples = PLACES["[N, C, H, C]"]
    layer = layer_of(shape, axes, "float32", **OPTIONS[name])
    model = layer_model(layer, training=None, mask="masked" in OPTIONS[name], gradient=True)
    assert add_bodies(model)
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_outputs()]
    for mode in (LATE_TRAINING, LATE_INFERENCE):
        feed = data_of(layer, model, samples, mode[1])
        judge(dict(zip(names, session.run(None, feed), strict=True)), expected(layer, [feed], mode)[0], "float32")


@pytest.mark.parametrize("name", OPTIONS)
def test_every_model_passes_the_checker_and_is_typed_throughout(name: str) -> None:
    register()
    for opset, dtype, mode in ((14, "float16", TRAINING), (18, "float32", LATE_TRAINING), (24, "float64", INFERENCE)):
        layer = layer_of((None, 3, 2, 2), (1, 3), dtype, synchronized=True, **OPTIONS[name])
        model = layer_model(
            layer, training=mode[0], group="world", mask="masked" in OPTIONS[name], gradient=True, opset=opset
        )
        assert model.opset_imports == {"": opset, "bnpass": 1}
        assert model.ir_version == 8
        assert not model.functions
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            assert {value.name for value in node.outputs if value.name and value.dtype is None} == set()
            assert any(value.uses() or value.is_graph_output() for value in node.outputs), f"nobody reads {node.name}"
        assert model.graph.outputs[0].shape == model.graph.inputs[0].shape


def test_every_slot_and_attribute_of_our_operators_is_written() -> None:
    register()
    for options in ({}, {"renorm": FIXED}, {"masked": True, "synchronized": True}):
        layer = layer_of((None, 3), (1,), **options)
        model = layer_model(layer, training=None, group="world", mask="masked" in options, gradient=True)
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            if node.domain == "bnpass":
                schema = onnx.defs.get_schema(node.op_type, 1, "bnpass")
                assert len(node.inputs) == len(schema.inputs)
                assert len(node.outputs) == len(schema.outputs)
                assert set(node.attributes) == set(schema.attributes)


INPUTS = ["X", "scale", "B", "input_mean", "input_var"]
RENORM = ["input_stddev", "renorm_mean", "renorm_stddev"]


@pytest.mark.parametrize(
    ("options", "how", "inputs", "outputs"),
    [
        ({}, {"training": True}, INPUTS, ["Y", "running_mean", "running_var"]),
        ({}, {"training": False}, INPUTS, ["Y"]),
        ({"scale": False, "center": False}, {"training": False}, ["X", "input_mean", "input_var"], ["Y"]),
        ({"trainable": False}, {"training": True}, INPUTS, ["Y"]),
        ({"trainable": False, "api": "tf1"}, {"training": True}, INPUTS, ["Y"]),
        ({"trainable": False, "renorm": FIXED}, {"training": None}, ["X", "training", *INPUTS[1:]], ["Y"]),
        ({}, {"training": True, "gradient": True}, [*INPUTS, "dY"], [*ORDER[:3], *ORDER[6:9]]),
        (
            {"center": False},
            {"training": False, "gradient": True},
            [*INPUTS[:2], *INPUTS[3:], "dY"],
            ["Y", *ORDER[6:8]],
        ),
        (
            {"renorm": Renorm(None, None, None, 0.5), "adjustment": unused},
            {"training": None, "mask": True, "gradient": True},
            [
                *("X", "mask", "training", *INPUTS[1:], *RENORM),
                *("rmin", "rmax", "dmax", "adjust_scale", "adjust_bias", "dY"),
            ],
            list(ORDER),
        ),
        ({"renorm": FIXED, "adjustment": unused}, {"training": False}, INPUTS, ["Y"]),
    ],
)
def test_a_model_has_the_inputs_and_outputs_of_its_mode(
    options: dict[str, Any], how: dict[str, Any], inputs: list[str], outputs: list[str]
) -> None:
    model = layer_model(layer_of((None, 3), (1,), **options), **how)
    assert [value.name for value in model.graph.inputs] == inputs
    assert [value.name for value in model.graph.outputs] == outputs
    assert model.graph.inputs[0].shape == ir.Shape(["N", 3])


def test_what_cannot_be_said_is_refused() -> None:
    ghost = layer_of((None, 3), (1,), virtual_batch_size=2)
    with pytest.raises(UsageError, match="virtual_batch_size"):
        layer_model(ghost, training=True, mask=True)
    layer_model(ghost, training=False, mask=True)
    with pytest.raises(UsageError, match="opset 13"):
        layer_model(layer_of((None, 3), (1,)), training=True, opset=13)
    brain = layer_of((None, 3), (1,), "bfloat16")
    with pytest.raises(UsageError, match=r"opset 15 .* needs 16"):
        layer_model(brain, training=None, opset=15)
    layer_model(brain, training=True, opset=15)
    with pytest.raises(UsageError, match="not 'two words'"):
        layer_model(layer_of((None, 3), (1,)), training=True, group="two words")
    with pytest.raises(UsageError, match="no channels"):
        layer_model(layer_of((None, 0, 3), (1, 2)), training=True)


def test_inputs_that_are_missing_are_named() -> None:
    def written(inputs: LayerInputs, training: bool = True, **options: Any) -> None:
        emit_layer(Emit(), layer_of((None, 2, 3), (2,), **options), inputs, training=training)

    vectors = {
        name: ir.val(name, ir.DataType.DOUBLE, [3])
        for name in ("scale", "B", "input_mean", "input_var", "input_stddev", "renorm_mean", "renorm_stddev")
    }
    x = ir.val("X", ir.DataType.DOUBLE, [None, 2, 3])
    without = LayerInputs(x, **{k: v for k, v in vectors.items() if k not in RENORM})
    whole = LayerInputs(x, **vectors)
    written(whole, renorm=FIXED)
    with pytest.raises(UsageError, match="renorm_stddev"):
        written(without, renorm=FIXED)
    with pytest.raises(UsageError, match="rmax"):
        written(whole, renorm=Renorm(0.5, None, 0.1, 0.9))
    with pytest.raises(UsageError, match="adjust_scale"):
        written(whole, adjustment=unused)
    written(whole, training=False, adjustment=unused)
    with pytest.raises(UsageError, match="scale and B"):
        written(whole, scale=False)
    with pytest.raises(UsageError, match="rank 3 has rank 2, this one has 3"):
        written(dataclasses.replace(whole, mask=ir.val("mask", ir.DataType.BOOL, [None, 2, 1])))


def written_by_hand(layer: Resolved, feed: dict[str, Array], unshaped: tuple[str, ...] = ()) -> dict[str, Array]:
    """Evaluate a layer in training and its gradient, with inputs of the shapes and types of the values."""
    op = Emit("layer")
    types = {name: ir.DataType.from_numpy(array.dtype) for name, array in feed.items()}
    values = {name: ir.val(name, types[name], None if name in unshaped else feed[name].shape) for name in feed}
    inputs = LayerInputs(**{name: value for name, value in values.items() if name != "dY"})
    outputs = emit_layer(op, layer, inputs, training=True)
    found = emit_gradient(op, layer, inputs, outputs.saved, values["dY"])
    results = {name: getattr(found, name, None) or getattr(outputs, name, None) for name in ORDER}
    for name, value in results.items():
        if value is not None:
            value.name = name
    made = [value for value in results.values() if value is not None]
    imports = {"": 18, "bnpass": 1}
    graph = ir.Graph(list(values.values()), made, nodes=op.nodes, opset_imports=imports, name="by_hand")
    return evaluate(ir.Model(graph, ir_version=8), feed)


@pytest.mark.parametrize("shape", [[3], [1], [], [4, 1, 1]])
@pytest.mark.parametrize("unshaped", [(), ("adjust_scale", "adjust_bias")])
def test_an_adjustment_may_have_fewer_axes_than_x(shape: list[int], unshaped: tuple[str, ...]) -> None:
    layer = layer_of((None, 2, 3), (2,), adjustment=unused)
    rng, feed = np.random.default_rng(5), feed_of(layer, 4)
    whole = {name: rng.normal(size=[1] * (3 - len(shape)) + shape) for name in ("adjust_scale", "adjust_bias")}
    got = written_by_hand(layer, feed | {name: array.reshape(shape) for name, array in whole.items()}, unshaped)
    wanted = expected(layer, [feed | whole], TRAINING)[0]
    for name in ("dadjust_scale", "dadjust_bias"):
        wanted[name] = wanted[name].reshape(shape)
    judge(got, wanted, "float64", roundings=64)


def test_weights_are_rounded_to_the_type_in_which_the_class_adds_up() -> None:
    for synchronized, kind in ((False, np.float16), (True, np.float32)):
        layer = layer_of((None, 2), (1,), "float16", synchronized=synchronized)
        feed = feed_of(layer, 4) | {"mask": np.array([1.0, 0.3, 0.0, 0.7], np.float32)}
        op, x = Emit("layer"), ir.val("X", ir.DataType.FLOAT16, [4, 2])
        mask = ir.val("mask", ir.DataType.FLOAT, [4])
        vectors = {name: ir.val(name, ir.DataType.FLOAT, [2]) for name in INPUTS[1:]}
        inputs = LayerInputs(x, mask=mask, **vectors)
        outputs = emit_layer(op, layer, inputs, training=True, group="world" if synchronized else "")
        graph = ir.Graph(
            [x, mask, *vectors.values()],
            [outputs.saved.weights or x],
            nodes=op.nodes,
            opset_imports={"": 18, "bnpass": 1},
            name="weights",
        )
        (got,) = evaluate(ir.Model(graph, ir_version=8), {k: v for k, v in feed.items() if k != "dY"}).values()
        np.testing.assert_array_equal(got[:, 0], feed["mask"].astype(kind).astype(np.float64))


def test_a_constant_channel_never_has_a_negative_variance() -> None:
    layer = layer_of((None, 64), (1,), "float32", synchronized=True, epsilon=1e-30, center=False, scale=False)
    model = layer_model(layer, training=True, group="world", mask=True)
    channels = np.random.default_rng(0).uniform(1e3, 1e4, 64).astype(np.float32)
    feeds = [
        {
            "X": np.tile(channels, (n, 1)),
            "mask": np.full(n, 0.3, np.float32),
            "input_mean": np.zeros(64, np.float32),
            "input_var": np.zeros(64, np.float32),
        }
        for n in (3, 2)
    ]
    for got in evaluate_replicas(model, feeds)[0]:
        assert np.isfinite(got["Y"]).all()
        assert (got["running_var"] >= 0).all()


def test_renorm_never_gives_a_negative_variance() -> None:
    layer = layer_of((None, 3), (1,), renorm=FIXED)
    feed = feed_of(layer, 4)
    feed["X"][...], feed["input_stddev"][...] = 1.5, 0
    np.testing.assert_array_equal(stepped(layer, feed)["running_var"], 0)


def test_where_the_limits_of_renorm_cross_the_upper_one_holds() -> None:
    layer = layer_of((None, 3), (1,), renorm=Renorm(rmin=1.5, rmax=0.5, dmax=0.25, momentum=0.75))
    stepped(layer, feed_of(layer, 4))


def test_two_layers_can_stand_in_one_graph() -> None:
    layer, op = layer_of((None, 3), (1,), "float32", renorm=FIXED), Emit("twice")
    vectors = {name: ir.val(name, ir.DataType.FLOAT, [3]) for name in (*INPUTS[1:], *RENORM)}
    x, training = ir.val("X", ir.DataType.FLOAT, [None, 3]), ir.val("training", ir.DataType.BOOL, [])
    first = emit_layer(op, layer, LayerInputs(x, **vectors), training=training)
    second = emit_layer(op, layer, LayerInputs(first.Y, **vectors), training=training)
    imports = {"": 18, "bnpass": 1}
    graph = ir.Graph([x, training, *vectors.values()], [second.Y], nodes=op.nodes, opset_imports=imports, name="twice")
    register()
    onnx.checker.check_model(ir.to_proto(ir.Model(graph, ir_version=8)), full_check=True)
    names = [v.name for n in ir.traversal.RecursiveGraphIterator(graph) for v in n.outputs if v.name]
    assert len(names) == len(set(names))
    assert all(name.startswith("twice/") for name in names)
