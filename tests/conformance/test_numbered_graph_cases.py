"""The numbered conformance cases 35 to 40: whole graphs. The others are in ``layers/numbered.py``, with this list."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from bnpass.errors import RefusalId, RefusedError
from bnpass.expansion.options import ExpandOptions
from bnpass.folding.options import FoldOptions
from bnpass.layers.model import layer_model
from bnpass.passes import ExpandSyncBatchNorm
from bnpass.semantics.reference import Forward, State, forward
from bnpass.semantics.spec import BatchNormSpec
from bnpass.verification.replicas import run_replicas
from tests.support.build import batch_norm, model, normal
from tests.support.judge import folded_and_right, runs_in_onnx_runtime

Array = NDArray[Any]
OPSETS = (7, 9, 14, 15, 18, 22)
PARAMETERS = ("s", "b", "m", "v")


def training(opset: int, outputs: Sequence[str]) -> ir.Model:
    """Return a node in training mode, as its version says it."""
    five = opset < 14
    saved = [name if name in outputs else "" for name in ("sm", "sv")] if five else []
    names = ["y", "rm", "rv", *saved]  # the number of outputs is what says "training" before version 14
    mode: dict[str, Any] = {} if five else {"training_mode": 1}
    node = onnx.helper.make_node("BatchNormalization", ["x", *PARAMETERS], names, epsilon=1e-3, momentum=0.5, **mode)
    kind = onnx.TensorProto.FLOAT
    shapes = {"y": [None, 3, None, None]} | {name: [3] for name in ("rm", "rv", "sm", "sv")}
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x", kind, ["N", 3, 2, 2])]
        + [onnx.helper.make_tensor_value_info(name, kind, [3]) for name in PARAMETERS],
        [onnx.helper.make_tensor_value_info(name, kind, shapes[name]) for name in outputs],
    )
    return ir.from_proto(
        onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", opset)])
    )


def feeds() -> dict[str, Array]:
    values = batch_norm(3)
    return {"x": normal(4, 3, 2, 2), **values}


def expected(given: dict[str, Array]) -> Forward:
    layer = BatchNormSpec("tf_keras", axis=1, momentum=0.5, fused=False).resolve(given["x"].shape)
    return forward(layer, [given["x"]], State(*(given[name].astype(np.float64) for name in PARAMETERS)), training=True)


@pytest.mark.parametrize("outputs", [("y",), ("y", "rm", "rv"), ("y", "rv")], ids=str)
@pytest.mark.parametrize("opset", OPSETS)
def test_case_35_every_version_expands(opset: int, outputs: tuple[str, ...]) -> None:
    built = training(opset, outputs)
    assert ExpandSyncBatchNorm()(built).modified
    assert {node.op_type for node in built.graph} & {"BatchNormalization", "AllReduce"} == set()
    onnx.checker.check_model(ir.to_proto(built), full_check=True)
    given = feeds()
    wanted = expected(given)
    values = {"y": wanted.ys[0], "rm": wanted.state.running_mean, "rv": wanted.state.running_var}
    for name, found in zip(outputs, runs_in_onnx_runtime(built, given), strict=True):
        np.testing.assert_allclose(found, values[name], rtol=2e-5, atol=2e-5)


_CONV = "t = Conv <pads = [1, 1, 1, 1]> (x, w)"
_BN = "y = BatchNormalization <epsilon = 0.001> (t, s, b, m, v)"
FOLDED: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], list[str]]] = {
    # nodes, shape of x, shape of the weight, what is left
    "Conv 1-D": ("t = Conv (x, w)", (2, 2, 5), (4, 2, 3), ["Conv"]),
    "Conv 2-D": (_CONV, (2, 2, 4, 4), (4, 2, 3, 3), ["Conv"]),
    "Conv 3-D": ("t = Conv (x, w)", (1, 2, 3, 3, 3), (4, 2, 2, 2, 2), ["Conv"]),
    "grouped": ("t = Conv <group = 2> (x, w)", (2, 4, 4, 4), (4, 2, 3, 3), ["Conv"]),
    "depthwise": ("t = Conv <group = 4> (x, w)", (2, 4, 4, 4), (4, 1, 3, 3), ["Conv"]),
    "ConvTranspose": ("t = ConvTranspose (x, w)", (2, 2, 3, 3), (2, 4, 2, 2), ["ConvTranspose"]),
    "ConvTranspose grouped": ("t = ConvTranspose <group = 2> (x, w)", (2, 4, 3, 3), (4, 2, 2, 2), ["ConvTranspose"]),
    "Gemm": ("t = Gemm (x, w)", (3, 5), (5, 4), ["Gemm"]),
    "Gemm transB alpha": ("t = Gemm <transB = 1, alpha = 0.5> (x, w)", (3, 5), (4, 5), ["Gemm"]),
    "Gemm transA": ("t = Gemm <transA = 1> (x, w)", (5, 3), (5, 4), ["Gemm"]),
}


def folding(
    nodes: str, x: tuple[int, ...], weight: tuple[int, ...], dtype: Any = np.float32, **change: Array
) -> ir.Model:
    kind = "float16" if dtype is np.float16 else "float"
    parameters = batch_norm(4) | change
    constants = {"w": normal(*weight, dtype=dtype)} | {k: v.astype(dtype) for k, v in parameters.items()}
    dims = ", ".join(f"D{i}" for i in range(len(x)))
    shape = ", ".join(map(str, x))
    return model(f"g ({kind}[{shape}] x) => ({kind}[{dims}] y) {{ {nodes} }}", constants)


@pytest.mark.parametrize("name", FOLDED)
def test_case_36_folding(name: str) -> None:
    linear, x, weight, left = FOLDED[name]
    assert folded_and_right(folding(f"{linear} {_BN}", x, weight)).ops == left


@pytest.mark.parametrize(
    ("name", "nodes", "change", "kept"),
    [
        ("no epsilon", f"{_CONV} y = BatchNormalization (t, s, b, m, v)", {}, False),
        ("scale 0", f"{_CONV} {_BN}", {"s": np.zeros(4)}, False),
        ("variance 0", f"{_CONV} {_BN}", {"v": np.zeros(4)}, False),
        ("training", f"{_CONV} y, rm, rv = BatchNormalization <training_mode = 1> (t, s, b, m, v)", {}, True),
        ("shared weight", f"{_CONV} {_BN.replace('y =', 'u =')} y = Add (u, t)", {}, True),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value and len(value) < 20 else "",
)
def test_case_36_what_is_odd_about_a_fold(name: str, nodes: str, change: dict[str, Array], kept: bool) -> None:
    assert name
    result = folded_and_right(folding(nodes, (2, 2, 4, 4), (4, 2, 3, 3), **change))
    assert ("BatchNormalization" in result.ops) == kept


def test_case_36_a_shift_does_not_pass_padding() -> None:
    """BN before a padded Conv: the scale goes into the weight, the shift cannot."""
    built = model(
        "g (float[2, 4, 4, 4] x) => (float[2, 2, H, W] y) "
        "{ t = BatchNormalization (x, s, b, m, v) y = Conv <pads = [1, 1, 1, 1]> (t, w) }",
        {"w": normal(2, 4, 3, 3), **batch_norm(4)},
    )
    assert folded_and_right(built, options=FoldOptions(target="portable")).ops == ["Add", "Conv"]


def test_case_37_chains_are_recognized() -> None:
    """As Keras 3 exports it: Mul and Add between the transposes of a channels-last Conv."""
    built = model(
        """g (float[2, 4, 4, 2] x) => (float[2, H, W, 4] y) {
        a = Transpose <perm = [0, 3, 1, 2]> (x)  t = Conv (a, w)  c = Transpose <perm = [0, 2, 3, 1]> (t)
        d = Mul (c, k)  y = Add (d, o) }""",
        {"w": normal(4, 2, 3, 3), "k": normal(4, seed=1), "o": normal(4, seed=2)},
    )
    assert folded_and_right(built).ops == ["Transpose", "Conv", "Transpose"]


def test_case_38_five_outputs() -> None:
    """The saved statistics of old versions have no successor: unread they go, read they are refused."""
    assert ExpandSyncBatchNorm()(training(9, ("y", "rm", "rv"))).modified
    with pytest.raises(RefusedError) as caught:
        ExpandSyncBatchNorm()(training(9, ("y", "rm", "rv", "sm", "sv")))
    assert caught.value.refusal.id is RefusalId.SAVED_STATISTICS


VARIANTS: dict[str, dict[str, Any]] = {
    "B1 training": {},
    "B1 several axes": {"axis": [1, 2]},
    "B3 inference": {"training": False},
    "B4 renorm": {"renorm": True, "renorm_clipping": {"rmax": 1.1, "dmax": 0.2}},
    "B5 adjustment": {"adjustment": lambda shape: (np.full((shape[0], 1, 1), 1.25), np.full((1, 1, shape[2]), 0.5))},
    "B6 ghost batches": {"virtual_batch_size": 2},
    "B7 mask": {"mask": True},
}


@pytest.mark.parametrize("name", [*VARIANTS, "B2 synchronized"])
def test_case_39_finite_differences(name: str) -> None:
    """The expanded gradient in double, against central differences of the reference; r and d are constants."""
    arguments = dict(VARIANTS.get(name, {"synchronized": True}))
    mode, masked = arguments.pop("training", True), arguments.pop("mask", False)
    shares = [(4, 3, 2), (2, 3, 2)] if name == "B2 synchronized" else [(4, 3, 2)]
    layer = BatchNormSpec("tf_keras", epsilon=2.0**-10, momentum=0.5, **arguments).resolve(shares[0], "float64")
    xs, dys = ([normal(*shape, seed=seed + i).astype(np.float64) for i, shape in enumerate(shares)] for seed in (0, 5))
    masks = [(np.arange(12).reshape(4, 3) % 3 > 0).astype(np.float64)] if masked else None
    state = _state(layer.channels, renorm=layer.renorm is not None)
    fixed = forward(layer, xs, state, training=mode, masks=masks)
    still, plain = state, layer
    if layer.renorm is not None:  # r and d as they are: a plain layer with another scale and shift
        still = replace(state, scale=state.scale * fixed.r, B=state.B + state.scale * fixed.d)
        plain = replace(layer, renorm=None)

    def loss(r: int, moved: Array) -> float:
        values = [moved if i == r else x for i, x in enumerate(xs)]
        ys = forward(plain, values, still, training=mode, masks=masks).ys
        return float(sum((y * dy).sum() for y, dy in zip(ys, dys, strict=True)))

    found = _expanded(layer, xs, dys, masks, state, mode)
    for r, x in enumerate(xs):
        for index in np.ndindex(*x.shape):
            up, down = x.copy(), x.copy()
            up[index] += 1e-5
            down[index] -= 1e-5
            difference = (loss(r, up) - loss(r, down)) / 2e-5
            np.testing.assert_allclose(found[r]["dX"][index], difference, rtol=1e-6, atol=1e-7)


def _state(channels: int, *, renorm: bool) -> State:
    rng = np.random.default_rng(1)
    more = {name: rng.uniform(0.7, 1.3, channels) for name in ("running_stddev", "renorm_mean", "renorm_stddev")}
    given = [
        rng.normal(size=channels),
        rng.normal(size=channels),
        rng.normal(size=channels),
        rng.uniform(1, 2, channels),
    ]
    return State(*given, **(more if renorm else {}))


def _expanded(
    layer: Any, xs: list[Array], dys: list[Array], masks: list[Array] | None, state: State, mode: bool
) -> list[dict[str, Array]]:
    group = "world" if len(xs) > 1 else ""
    shape = (None, *xs[0].shape[1:]) if group else xs[0].shape
    built = layer_model(
        replace(layer, input_shape=shape), training=mode, mask=masks is not None, gradient=True, group=group
    )
    ExpandSyncBatchNorm()(built)
    given = []
    for r, (x, dy) in enumerate(zip(xs, dys, strict=True)):
        feed = {"X": x, "dY": dy, "scale": state.scale, "B": state.B}
        feed |= {"input_mean": state.running_mean, "input_var": state.running_var}
        feed |= {"input_stddev": state.running_stddev} if state.running_stddev is not None else {}
        feed |= {name: v for name in ("renorm_mean", "renorm_stddev") if (v := getattr(state, name)) is not None}
        feed |= {"mask": masks[r]} if masks is not None else {}
        if layer.adjustment is not None:
            feed |= dict(zip(("adjust_scale", "adjust_bias"), layer.adjustment(x.shape), strict=True))
        given.append({str(value.name): feed[str(value.name)] for value in built.graph.inputs})
    if group:
        return run_replicas(built, given)
    return [dict(zip([str(v.name) for v in built.graph.outputs], runs_in_onnx_runtime(built, given[0]), strict=True))]


def test_case_40_the_collective_of_onnx_runtime() -> None:
    """com.microsoft::AllReduce: one tensor, sums alone, no group but the world; what it cannot say is refused."""
    built = training(15, ("y", "rm", "rv"))
    ExpandSyncBatchNorm(ExpandOptions(collective="com.microsoft", group="world"))(built)
    (node,) = [node for node in built.graph if node.op_type == "AllReduce"]
    assert (node.domain, len(node.inputs), len(node.outputs), len(node.attributes)) == ("com.microsoft", 1, 1, 0)
    shares = [normal(n, 3, 2, 2, seed=n) for n in (3, 1)]
    found = run_replicas(built, [batch_norm(3) | {"x": x} for x in shares])
    wanted = expected(batch_norm(3) | {"x": np.concatenate(shares)})
    np.testing.assert_allclose(np.concatenate([f["y"] for f in found]), wanted.ys[0], rtol=2e-5, atol=2e-5)
    with pytest.raises(RefusedError) as caught:
        ExpandSyncBatchNorm(ExpandOptions(collective="com.microsoft", group="half"))(training(15, ("y", "rm", "rv")))
    assert caught.value.refusal.id is RefusalId.COLLECTIVE_CANNOT_SAY_IT
    alone = training(15, ("y", "rm", "rv"))
    ExpandSyncBatchNorm(ExpandOptions(collective="none", group="world"))(alone)
    assert "AllReduce" not in {node.op_type for node in alone.graph}
