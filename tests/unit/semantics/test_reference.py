"""The reference is right by means other than its own formulas: central differences, and identities from the papers."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from bnpass.semantics.reference import Array, State, backward, forward
from bnpass.semantics.resolved import Resolved
from bnpass.semantics.spec import BatchNormSpec

CLIP = {"rmax": 1.1, "rmin": 0.95, "dmax": 0.2}


def layer_of(shape: tuple[int | None, ...], api: str = "tf_keras", **arguments: Any) -> Resolved:
    return BatchNormSpec(api, **arguments).resolve(shape, "float64")  # type: ignore[arg-type]


def state_of(layer: Resolved, seed: int = 1) -> State:
    rng = np.random.default_rng(seed)
    c = layer.channels
    state = State(rng.normal(size=c), rng.normal(size=c), rng.normal(size=c), rng.uniform(0.5, 2, c))
    if layer.renorm is None:
        return state
    return replace(
        state,
        running_stddev=rng.uniform(0.5, 2, c),
        renorm_mean=rng.normal(size=c) * 0.1 + 3,
        renorm_stddev=rng.uniform(1.8, 2.2, c),
    )


def batches(*shapes: tuple[int, ...], seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.normal(3, 2, shape) for shape in shapes]


def per_sample(shape: tuple[int, ...]) -> tuple[Array, Array]:
    rng = np.random.default_rng(7)
    ones = (1,) * (len(shape) - 1)
    return rng.uniform(0.5, 2, (shape[0], *ones)), rng.normal(size=(shape[0], *ones))


DIFFERENTIATED = {
    "B1 local": (layer_of((6, 3, 4)), [(6, 3, 4)], {}),
    "B1 axis 1 of rank 4": (layer_of((5, 3, 2, 2), axis=1), [(5, 3, 2, 2)], {}),
    "B1 several axes": (layer_of((5, 2, 3, 2), axis=(1, 3)), [(5, 2, 3, 2)], {}),
    "B1 axis 0": (layer_of((3, 5), axis=0), [(3, 5)], {}),
    "B2 synchronized, unequal and empty": (
        layer_of((None, 3), synchronized=True),
        [(5, 3), (2, 3), (1, 3), (0, 3)],
        {},
    ),
    "B3 inference": (layer_of((6, 3)), [(6, 3)], {"training": False}),
    "B4 renorm": (layer_of((6, 3), renorm=True), [(6, 3)], {}),
    "B4 renorm, clipped": (layer_of((6, 3), renorm=True, renorm_clipping=CLIP), [(6, 3)], {}),
    "B4 renorm, synchronized": (
        layer_of((None, 3), renorm=True, synchronized=True),
        [(5, 3), (2, 3), (1, 3), (0, 3)],
        {},
    ),
    "B5 adjustment": (layer_of((6, 4, 3), adjustment=per_sample), [(6, 4, 3)], {}),
    "B5 adjustment and renorm": (layer_of((6, 3), adjustment=per_sample, renorm=True), [(6, 3)], {}),
    "B6 ghost": (layer_of((8, 2, 3), virtual_batch_size=4), [(8, 2, 3)], {}),
    "B6 ghost and renorm": (layer_of((8, 2, 3), virtual_batch_size=2, renorm=True), [(8, 2, 3)], {}),
    "B7 mask": (layer_of((4, 5, 3)), [(4, 5, 3)], {"masks": "bool"}),
    "B7 fractional mask": (layer_of((4, 5, 3)), [(4, 5, 3)], {"masks": "fraction"}),
    "B7 mask, synchronized, one replica masked out, one empty": (
        layer_of((None, 5, 3), synchronized=True),
        [(4, 5, 3), (2, 5, 3), (0, 5, 3)],
        {"masks": "last out"},
    ),
    "B7 mask of Keras 3": (layer_of((4, 5, 3), "keras3"), [(4, 5, 3)], {"masks": "bool"}),
    "B7 mask of Keras 3, W = 1": (layer_of((4, 5, 3), "keras3"), [(4, 5, 3)], {"masks": "one"}),
    "B7 all masked": (layer_of((4, 5, 3)), [(4, 5, 3)], {"masks": "none"}),
}


def masks_for(kind: str, shapes: list[tuple[int, ...]]) -> list[Array]:
    rng = np.random.default_rng(3)
    masks = []
    for i, shape in enumerate(shapes):
        mask = rng.uniform(size=shape[:-1])
        masks.append(mask if kind == "fraction" else (mask > 0.4).astype(float))
        if kind == "none" or (kind == "last out" and i == 1):
            masks[-1][...] = 0
        if kind == "one":
            masks[-1][...] = 0
            masks[-1].flat[3] = 1
    return masks


def call_arguments(shapes: list[tuple[int, ...]], options: dict[str, Any]) -> dict[str, Any]:
    given = {"training": True, **options}
    if "masks" in given:
        given["masks"] = masks_for(given["masks"], shapes)
    return given


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_the_gradient_is_that_of_central_differences(name: str) -> None:
    layer, shapes, options = DIFFERENTIATED[name]
    arguments, state, xs = call_arguments(shapes, options), state_of(layer), batches(*shapes)
    dys = [np.random.default_rng(5).normal(size=shape) for shape in shapes]
    first = forward(layer, xs, state, **arguments)
    found = backward(first, xs, dys)

    def loss(xs: list[Array], state: State) -> float:
        constant = layer if layer.renorm is None else replace(layer, renorm=None, adjustment=renormed)
        given = forward(constant, xs, state, **arguments)
        return float(sum((y * dy).sum() for y, dy in zip(given.ys, dys, strict=True)))

    def renormed(shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Renorm's r and d are constants to the gradient: an adjustment, inside the layer's own."""
        wide = [shape[i] if i in layer.axes else 1 for i in range(len(shape))]
        a, c = layer.adjustment(shape) if layer.adjustment is not None else (np.ones(()), np.zeros(()))
        return a * first.r.reshape(wide), a * first.d.reshape(wide) + c

    step = 1e-5
    for r, x in enumerate(xs):
        numeric = np.zeros_like(x)
        for i in np.ndindex(x.shape):
            up, down = [v.copy() for v in xs], [v.copy() for v in xs]
            up[r][i] += step
            down[r][i] -= step
            numeric[i] = (loss(up, state) - loss(down, state)) / (2 * step)
        np.testing.assert_allclose(found.dxs[r], numeric, rtol=0, atol=1e-8 * max(1, np.abs(numeric).max(initial=0)))
    for parameter, local in (("scale", found.dscales), ("B", found.dBs)):
        for i in range(layer.channels):
            moved = [replace(state, **{parameter: getattr(state, parameter) + s * np.eye(layer.channels)[i] * step})
                     for s in (1, -1)]  # fmt: skip
            numeric_sum = (loss(xs, moved[0]) - loss(xs, moved[1])) / (2 * step)
            assert sum(local)[i] == pytest.approx(numeric_sum, rel=1e-7, abs=1e-8)  # type: ignore[index]


def test_the_gradient_of_an_adjustment_is_that_of_central_differences() -> None:
    layer = layer_of((6, 4, 3), adjustment=per_sample, renorm=True)
    xs, state, dy = batches((6, 4, 3)), state_of(layer), np.random.default_rng(5).normal(size=(6, 4, 3))
    a, c = per_sample((6, 4, 3))
    found = backward(forward(layer, xs, state, training=True), xs, [dy])
    for k, whole in enumerate((found.das[0], found.dcs[0])):
        for i in range(6):
            losses = []
            for sign in (1, -1):
                moved = [a.copy(), c.copy()]
                moved[k][i] += sign * 1e-6
                result = forward(layer, xs, state, training=True, adjustments=[(moved[0], moved[1])])
                losses.append((result.ys[0] * dy).sum())
            assert whole[i].sum() == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-7)


@pytest.mark.parametrize("shares", [(4, 4), (5, 2, 1, 0), (8, 0, 0), (1,) * 8], ids=str)
@pytest.mark.parametrize("arguments", [{}, {"renorm": True}, {"axis": 1}], ids=str)
def test_replicas_are_one_replica_on_the_whole_batch(shares: tuple[int, ...], arguments: dict[str, Any]) -> None:
    layer = layer_of((None, 3, 2), synchronized=True, **arguments)
    (x,), (dy,) = batches((8, 3, 2)), batches((8, 3, 2), seed=4)
    cuts = np.cumsum(shares)[:-1]
    state = state_of(layer)
    whole, parts = (forward(layer, xs, state, training=True) for xs in ([x], np.split(x, cuts)))
    np.testing.assert_allclose(np.concatenate(parts.ys), whole.ys[0], rtol=0, atol=1e-13)
    for name in ("running_mean", "running_var"):
        np.testing.assert_allclose(getattr(parts.state, name), getattr(whole.state, name), rtol=1e-14)
    gradient, split = backward(whole, [x], [dy]), backward(parts, np.split(x, cuts), np.split(dy, cuts))
    np.testing.assert_allclose(np.concatenate(split.dxs), gradient.dxs[0], rtol=0, atol=1e-13)
    np.testing.assert_allclose(sum(split.dscales), gradient.dscales[0], rtol=1e-12)


def test_a_ghost_batch_takes_every_gth_sample() -> None:
    layer, (x,) = layer_of((8, 3), virtual_batch_size=4), batches((8, 3))
    state = state_of(layer)
    result = forward(layer, [x], state, training=True)
    plain = layer_of((4, 3))
    for g, samples in enumerate(([0, 2, 4, 6], [1, 3, 5, 7])):
        alone = forward(plain, [x[samples]], state, training=True)
        np.testing.assert_allclose(result.ys[0][samples], alone.ys[0], rtol=1e-13)
        np.testing.assert_allclose(result.mean[g], alone.mean[0], rtol=1e-13)
    variances = np.stack([x[g::2].var(0) for g in range(2)])
    np.testing.assert_allclose(
        result.state.running_var, 0.99 * state.running_var + 0.01 * variances.mean(0), rtol=1e-13
    )


def test_a_batch_that_ghost_batches_do_not_divide_is_refused() -> None:
    layer = layer_of((None, 3), virtual_batch_size=4)
    with pytest.raises(ValueError, match="does not divide the batch 6"):
        forward(layer, batches((6, 3)), state_of(layer), training=True)
    assert forward(layer, batches((6, 3)), state_of(layer), training=False).ys[0].shape == (6, 3)


def test_renorm_without_clipping_normalizes_by_its_own_statistics() -> None:
    layer, xs = layer_of((9, 3), renorm=True), batches((9, 3))
    state = state_of(layer)
    result = forward(layer, xs, state, training=True)
    expected = state.scale * (xs[0] - state.renorm_mean) / state.renorm_stddev + state.B
    np.testing.assert_allclose(result.ys[0], expected, rtol=1e-12)
    sigma = np.sqrt(xs[0].var(0) + 1e-3)
    np.testing.assert_allclose(result.state.renorm_stddev, 0.99 * state.renorm_stddev + 0.01 * sigma, rtol=1e-13)


def test_inference_after_renorm_divides_by_the_moving_stddev() -> None:
    layer, xs = layer_of((9, 3), renorm=True), batches((9, 3))
    trained = forward(layer, xs, state_of(layer), training=True).state
    y = forward(layer, xs, trained, training=False).ys[0]
    expected = trained.scale * (xs[0] - trained.running_mean) / trained.running_stddev + trained.B
    np.testing.assert_allclose(y, expected, rtol=1e-12)


def test_clipped_renorm_stays_between_its_bounds_given_now_or_at_run_time() -> None:
    xs = batches((9, 3))
    fixed = layer_of((9, 3), renorm=True, renorm_clipping=CLIP)
    late = layer_of((9, 3), renorm=True, renorm_clipping=dict.fromkeys(CLIP, "tensor"))
    state = replace(state_of(fixed), renorm_mean=np.array([3.0, 9.0, -5.0]), renorm_stddev=np.array([9.0, 0.1, 2.0]))
    a, b = forward(fixed, xs, state, training=True), forward(late, xs, state, training=True, clip=CLIP)
    assert a.r[0] == 0.95
    assert a.r[1] == 1.1
    assert a.d[1] == -0.2
    assert a.d[2] == 0.2
    np.testing.assert_array_equal(a.ys[0], b.ys[0])


def test_where_the_bounds_of_renorm_cross_the_upper_one_holds() -> None:
    layer = layer_of((9, 3), renorm=True, renorm_clipping={"rmax": 0.5, "rmin": 1.5})
    np.testing.assert_array_equal(forward(layer, batches((9, 3)), state_of(layer), training=True).r, 0.5)


def test_an_all_empty_batch_changes_no_statistics() -> None:
    layer = layer_of((None, 3), synchronized=True)
    state = state_of(layer)
    result = forward(layer, batches((0, 3), (0, 3)), state, training=True)
    assert result.state is state
    assert result.count == 0


def test_an_empty_batch_has_no_ghost_batches() -> None:
    layer = layer_of((None, 3), virtual_batch_size=4, renorm=True)
    state = state_of(layer)
    result = forward(layer, batches((0, 3)), state, training=True)
    assert result.state is state
    assert (result.count, result.mean.shape) == (0, (0, 3))


def test_keras_pulls_the_statistics_to_zero_where_everything_is_masked() -> None:
    layer = layer_of((4, 5, 3))
    state = state_of(layer)
    result = forward(layer, batches((4, 5, 3)), state, training=True, masks=[np.zeros((4, 5))])
    np.testing.assert_array_equal(result.state.running_var, 0.99 * state.running_var)


def test_what_keras3_masks_out_is_never_looked_at() -> None:
    (x,), mask = batches((4, 5, 3)), np.ones((4, 5))
    mask[1, 2] = 0
    x[1, 2] = np.nan
    layer = layer_of((4, 5, 3), "keras3")
    assert np.isfinite(forward(layer, [x], state_of(layer), training=True, masks=[mask]).mean).all()
    leaky = layer_of((4, 5, 3))
    assert np.isnan(forward(leaky, [x], state_of(leaky), training=True, masks=[mask]).mean).all()


def test_the_sample_variance_enters_the_running_variance_alone() -> None:
    xs = batches((2, 3, 3, 4))
    fused = layer_of((2, 3, 3, 4))
    fused, plain = replace(fused, running_var_correction=1), replace(fused, running_var_correction=0)
    state = state_of(plain)
    a, b = (forward(layer, xs, state, training=True) for layer in (fused, plain))
    np.testing.assert_array_equal(a.ys[0], b.ys[0])
    gained = (a.state.running_var - 0.99 * state.running_var) / (b.state.running_var - 0.99 * state.running_var)
    np.testing.assert_allclose(gained, 18 / 17)
    one = batches((1, 1, 1, 4))
    assert np.isfinite(forward(fused, one, state, training=True).state.running_var).all()


def test_a_frozen_layer_means_what_its_class_means() -> None:
    xs = batches((6, 3))
    for api in ("tf_keras", "keras3", "sync"):
        layer = layer_of((6, 3), api, trainable=False)
        state = state_of(layer)
        result = forward(layer, xs, state, training=True)
        np.testing.assert_array_equal(result.ys[0], forward(layer, xs, state, training=False).ys[0])
        assert result.state is state
    for api in ("keras_v1", "tf1"):
        layer = layer_of((6, 3), api, trainable=False)
        state = state_of(layer)
        result = forward(layer, xs, state, training=True)
        np.testing.assert_allclose(result.mean[0], xs[0].mean(0))
        assert result.state is state


def test_a_frozen_layer_of_keras_v1_still_moves_its_renorm_averages() -> None:
    xs = batches((6, 3))
    for api, moves in (("keras_v1", True), ("tf1", False)):
        layer = layer_of((6, 3), api, trainable=False, renorm=True)
        state = state_of(layer)
        after = forward(layer, xs, state, training=True).state
        assert after.running_stddev is state.running_stddev
        assert (after.renorm_mean is not state.renorm_mean) is moves


def test_a_symbolic_training_flag_switches_ghost_batches_off() -> None:
    layer, xs = layer_of((8, 3), "keras_v1", virtual_batch_size=4), batches((8, 3))
    state = state_of(layer)
    whole = forward(layer_of((8, 3), "keras_v1"), xs, state, training=True)
    flagged = forward(layer, xs, state, training=True, symbolic=True)
    np.testing.assert_array_equal(flagged.ys[0], whole.ys[0])


def test_five_steps_average_exactly() -> None:
    layer = layer_of((None, 3), momentum=0.9)
    state = state_of(layer)
    means = [state.running_mean]
    for step in range(5):
        xs = batches((6, 3), seed=step)
        state = forward(layer, xs, state, training=True).state
        means.append(0.9 * means[-1] + 0.1 * xs[0].mean(0))
    np.testing.assert_allclose(state.running_mean, means[-1], rtol=1e-14)
    assert all((a != b).any() for a, b in pairwise(means))


def test_replicas_of_an_unsynchronized_layer_share_nothing() -> None:
    layer = layer_of((None, 3))
    with pytest.raises(ValueError, match="one at a time"):
        forward(layer, batches((2, 3), (2, 3)), state_of(layer), training=True)


def test_pooled_ghost_batches_must_be_equally_many() -> None:
    layer = layer_of((None, 3), synchronized=True, virtual_batch_size=2)
    with pytest.raises(ValueError, match="different numbers of ghost batches"):
        forward(layer, batches((4, 3), (2, 3)), state_of(layer), training=True)
