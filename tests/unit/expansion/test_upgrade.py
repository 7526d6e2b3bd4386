"""Models older than opset 14: what the converter gets wrong is put right or refused, and nothing is lost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bnpass.errors import RefusalId, RefusedError
from bnpass.expansion.expander import expand
from bnpass.expansion.options import ExpandOptions
from tests.unit.expansion.cases import (
    F16,
    F32,
    WORLD,
    Array,
    Layer,
    batch_norm,
    close,
    expanded,
    run_everywhere,
    run_ort,
)

LAYER = Layer((2, 3, 4, 4))
STATE = {name: LAYER.parameters[name] for name in ("input_mean", "input_var")}
OPSET = 6


def with_tail(
    nodes: Sequence[onnx.NodeProto],
    opset: int,
    constants: Mapping[str, Array] | None = None,
    *,
    layer: Layer = LAYER,
    output: tuple[Any, int] = (F32, 4),
) -> ir.Model:
    """Return a model of a training batch normalization whose Y the nodes turn into Z."""
    proto = ir.to_proto(batch_norm(layer, opset))
    proto.graph.node.extend(nodes)
    for name, array in (constants or {}).items():
        proto.graph.initializer.append(ir.to_proto(ir.Tensor(array, name=name)))
        if proto.ir_version < 4:
            kind = ir.DataType.from_numpy(array.dtype)
            proto.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, array.shape))
    kind, rank = output
    out = onnx.helper.make_tensor_value_info("Z", ir.DataType.from_numpy(np.dtype(kind)), [None] * rank)
    proto.graph.output.append(out)
    return ir.from_proto(proto)


def y_of(layer: Layer = LAYER) -> Array:
    return np.asarray(layer.expected([layer.x()])[0]["Y"])


def feeds(layer: Layer = LAYER) -> dict[str, Array]:
    return {"X": layer.x(), **{name: layer.parameters[name] for name in ("input_mean", "input_var")}}


def refusal(model: ir.Model, options: ExpandOptions | None = None) -> RefusedError:
    """Expand; return the error, and see to it that nothing was changed."""
    before, graph = ir.to_proto(model).SerializeToString(), model.graph
    with pytest.raises(RefusedError) as caught:
        expand(model, options or ExpandOptions())
    assert model.graph is graph
    assert ir.to_proto(model).SerializeToString() == before
    assert caught.value.refusal.id is RefusalId.OPSET_NOT_UPGRADABLE
    return caught.value


node = onnx.helper.make_node


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div", "Pow"])
@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -3, None])
@pytest.mark.parametrize("batch", [1, 3])  # lengths that a wrong alignment would fit, too
def test_operands_that_name_their_axis(op_type: str, axis: int | None, batch: int) -> None:
    layer = Layer((batch, 3, 3, 3), std=0.1)
    base = np.abs(y_of(layer)) + 1 if op_type == "Pow" else y_of(layer)
    length = batch if axis == 0 else 3
    other = np.linspace(1, 2, length).astype(F32)
    attributes = {"broadcast": 1, **({} if axis is None else {"axis": axis})}
    before = [node("Abs", ["Y"], ["A"]), node("Add", ["A", "one"], ["B1"], broadcast=1)] if op_type == "Pow" else []
    source = "B1" if op_type == "Pow" else "Y"
    tail = [*before, node(op_type, [source, "other"], ["Z"], **attributes)]
    constants = {"other": other, **({"one": np.ones(1, F32)} if op_type == "Pow" else {})}
    model, _ = expanded(with_tail(tail, OPSET, constants, layer=layer))
    place = 3 if axis is None else axis % 4
    aligned = other.astype(np.float64).reshape(-1, *[1] * (3 - place))
    function = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Pow": np.power}[op_type]
    for got in run_everywhere(model, feeds(layer)):
        close(got["Z"], function(base, aligned))


def test_operands_of_two_axes_and_of_none() -> None:
    other, scalar = np.arange(12, dtype=F32).reshape(3, 4), np.array([2.0], F32)
    tail = [
        node("Add", ["Y", "other"], ["T"], broadcast=1, axis=1),
        node("Mul", ["T", "scalar"], ["Z"], broadcast=1),
    ]
    model, _ = expanded(with_tail(tail, OPSET, {"other": other, "scalar": scalar}))
    for got in run_everywhere(model, feeds()):
        close(got["Z"], 2 * (y_of() + other[:, :, None]))


def test_an_axis_that_does_not_fit_is_refused() -> None:
    error = refusal(with_tail([node("Add", ["Y", "other"], ["Z"], name="add", broadcast=1, axis=3)], OPSET,
                              {"other": np.ones((3, 4), F32)}))  # fmt: skip
    assert error.refusal.node == "add"


@pytest.mark.parametrize("length", [1, 3])
def test_a_slope_per_channel(length: int) -> None:
    layer = Layer((2, 3, 3, 3))  # the slope would fit the last axis, too
    slope = np.linspace(-1, 1, length).astype(F32)
    model, _ = expanded(with_tail([node("PRelu", ["Y", "slope"], ["Z"])], OPSET, {"slope": slope}, layer=layer))
    y = y_of(layer)
    for got in run_everywhere(model, feeds(layer)):
        close(got["Z"], np.where(y < 0, y * slope.reshape(-1, 1, 1), y))


def test_random_dropout_is_refused() -> None:
    assert refusal(with_tail([node("Dropout", ["Y"], ["Z"], name="drop")], OPSET)).refusal.node == "drop"
    model, _ = expanded(with_tail([node("Dropout", ["Y"], ["Z"], is_test=1)], OPSET))
    for got in run_everywhere(model, feeds()):
        close(got["Z"], y_of())


def test_a_mask_whose_type_changed_is_refused() -> None:
    tail = [node("Dropout", ["Y"], ["D", "Z"], name="drop")]
    assert refusal(with_tail(tail, 9)).refusal.node == "drop"


def test_hardmax() -> None:
    assert refusal(with_tail([node("Hardmax", ["Y"], ["Z"], name="hard")], 12)).refusal.node == "hard"
    model, _ = expanded(with_tail([node("Hardmax", ["Y"], ["Z"], axis=3)], 12))
    y = y_of()
    for got in run_everywhere(model, feeds()):
        assert np.array_equal(got["Z"], y == y.max(axis=-1, keepdims=True))


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_softmax_flattens(op_type: str, axis: int) -> None:
    model, _ = expanded(with_tail([node(op_type, ["Y"], ["Z"], axis=axis)], 12))
    flat = np.exp(y_of()).reshape(int(np.prod(LAYER.shape[:axis])), -1)
    want = (flat / flat.sum(axis=1, keepdims=True)).reshape(LAYER.shape)
    for got in run_everywhere(model, feeds()):
        close(got["Z"], want if op_type == "Softmax" else np.log(want))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("op_type", "opset"), [("Upsample", 7), ("Upsample", 9), ("Resize", 10)])
def test_resize_as_it_was(op_type: str, opset: int, mode: str) -> None:
    scales = np.array([1, 1, 2, 3], F32)
    if opset == 7:
        resize = node(op_type, ["Y"], ["Z"], mode=mode, scales=[float(s) for s in scales])
        constants: dict[str, Array] = {}
    else:
        resize, constants = node(op_type, ["Y", "scales"], ["Z"], mode=mode), {"scales": scales}
    model, _ = expanded(with_tail([resize], opset, constants))
    alone = onnx.helper.make_graph(
        [resize], "g", [onnx.helper.make_tensor_value_info("Y", 1, LAYER.shape)],
        [onnx.helper.make_tensor_value_info("Z", 1, [None] * 4)],
        [ir.to_proto(ir.Tensor(a, name=n)) for n, a in constants.items()],
    )  # fmt: skip
    original = onnx.helper.make_model(alone, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    want = run_ort(ir.from_proto(original), {"Y": y_of().astype(F32)})["Z"]
    for optimized in (True, False):
        close(run_ort(model, feeds(), optimized=optimized)["Z"], want.astype(np.float64))


def test_nearest_of_a_smaller_image_is_refused() -> None:
    tail = [node("Resize", ["Y", "scales"], ["Z"], name="resize")]
    assert refusal(with_tail(tail, 10, {"scales": np.array([1, 1, 0.5, 2], F32)})).refusal.node == "resize"


@pytest.mark.parametrize(("nodes", "opset", "named"), [
    ([node("Cast", ["Y"], ["Z"], to="FLOAT", name="cast")], 5, "cast"),
    ([node("Clip", ["Y"], ["Z"], max=1.0, name="clip")], 10, "clip"),
])  # fmt: skip
def test_what_has_no_way_up_is_refused_with_the_reason(nodes: Any, opset: int, named: str) -> None:
    """Cast changed its attribute in 6; of a float16 Clip the converter makes one with float32 bounds."""
    layer = Layer((2, 3, 4), dtype=F16, parameter_dtype=F16) if named == "clip" else LAYER
    output = (F16, 3) if named == "clip" else (F32, 4)
    error = refusal(with_tail(nodes, opset, layer=layer, output=output))
    assert error.refusal.node == named
    assert len(error.refusal.reason) > 20
    assert ".h:" not in error.refusal.reason


def test_a_foreign_node_with_a_subgraph_is_refused() -> None:
    body = onnx.parser.parse_graph("b () => (float[2,3,4,4] t) { t = Neg(Y) }")
    model = with_tail([node("Magic", ["Y"], ["Z"], name="magic", domain="custom", body=body)], 9)
    model.opset_imports["custom"] = 1
    assert refusal(model).refusal.node == "magic"


@pytest.mark.parametrize("opset", [1, 6, 8, 9, 13])
def test_inference_stays_inference(opset: int) -> None:
    extra: dict[str, Any] = {"is_test": 1} if opset < 7 else {}
    if opset < 6:
        extra["consumed_inputs"] = [0, 0, 0, 1, 1]
    inputs = ["Y", *LAYER.parameters]
    outputs = ["Z", "a", "b"] if opset < 7 else ["Z"]  # before 7 more outputs say nothing
    model, done = expanded(with_tail([node("BatchNormalization", inputs, outputs, name="kept", **extra)], opset))
    assert [(k.node, k.refusal) for k in done.kept] == [("kept", RefusalId.INFERENCE_MODE)]
    (kept,) = [n for n in model.graph if n.op_type == "BatchNormalization"]
    assert len(kept.outputs) == 1
    p = {name: value.astype(np.float64)[:, None, None] for name, value in LAYER.parameters.items()}
    want = (y_of() - p["input_mean"]) / np.sqrt(p["input_var"] + 1e-5) * p["scale"] + p["B"]
    for got in run_everywhere(model, feeds()):
        close(got["Z"], want, units=16)


@pytest.mark.parametrize("opset", [6, 9, 13])
def test_inputs_outputs_and_metadata_stay(opset: int) -> None:
    layer = LAYER
    tail = [node("Relu", ["Y"], ["T"], name="r"), node("Neg", ["T"], ["Z"], name="neg", doc_string="why")]
    source = with_tail(tail, opset)
    source.metadata_props["who"] = "me"
    source.doc_string, source.producer_name = "a model", "somebody"
    source.graph.metadata_props["graph"] = "prop"
    source.graph[1].metadata_props["node"] = "prop"
    source.graph[1].outputs[0].metadata_props["value"] = "prop"
    source.graph.inputs[0].metadata_props["input"] = "prop"
    source.graph.outputs[0].shape = ir.Shape(["batch", 3, 4, 4])
    model, _ = expanded(source)
    assert [(v.name, v.type) for v in model.graph.outputs] == [(v.name, v.type) for v in source.graph.outputs]
    assert model.graph.outputs[0].shape == source.graph.outputs[0].shape
    initializers = set(source.graph.initializers)
    assert [(v.name, v.shape) for v in model.graph.inputs] == [
        (v.name, v.shape) for v in source.graph.inputs if v.name not in initializers
    ]
    assert (dict(model.metadata_props), model.doc_string, model.producer_name) == ({"who": "me"}, "a model", "somebody")
    assert model.graph.metadata_props["graph"] == "prop"
    relu, neg = [n for n in model.graph if n.op_type in ("Relu", "Neg") and n.name in ("r", "neg")]
    assert relu.metadata_props["node"] == "prop"
    assert relu.outputs[0].metadata_props["value"] == "prop"
    assert neg.doc_string == "why"
    assert relu.outputs[0].shape is None  # nobody declared it, and the converter's inference is not needed
    assert model.graph.inputs[0].metadata_props["input"] == "prop"
    close(run_ort(model, feeds(layer))["Z"], -np.maximum(y_of(), 0))


@pytest.mark.parametrize("ir_version", [3, 4, 7, 8])
def test_initializers_that_are_inputs(ir_version: int) -> None:
    """Constants up to IR 3, whatever the list of inputs says; defaults that callers may override from 4 on."""
    proto = ir.to_proto(batch_norm(LAYER, 9))
    proto.ir_version = ir_version
    for name in ("scale", "B"):
        proto.graph.input.append(onnx.helper.make_tensor_value_info(name, 1, [3]))
    model, _ = expanded(ir.from_proto(proto))
    assert model.ir_version == 8
    listed = [value.name for value in model.graph.inputs]
    assert listed == ["X", "input_mean", "input_var", *(["scale", "B"] if ir_version >= 4 else [])]
    assert {"scale", "B"} <= set(model.graph.initializers)
    for got in run_everywhere(model, feeds()):
        close(got["Y"], y_of())


def test_large_weights_are_neither_read_nor_copied(tmp_path: Path) -> None:
    data = np.random.default_rng(0).standard_normal((3, 3, 40, 40)).astype(F32)
    (tmp_path / "w.bin").write_bytes(data.tobytes())
    external = ir.ExternalTensor(
        "w.bin", 0, data.nbytes, ir.DataType.FLOAT, shape=ir.Shape(data.shape), name="W", base_dir=tmp_path
    )
    held = ir.Tensor(np.ones((3, 40, 40), F32), name="big")
    layer = Layer((2, 3, 40, 40))
    source = with_tail([
        node("Conv", ["Y", "W"], ["T"], kernel_shape=[40, 40]),
        node("Constant", [], ["big"], value=onnx.helper.make_tensor("big", 1, [0], [])),
        node("ReduceSum", ["big"], ["S"], keepdims=0), node("Mul", ["T", "S"], ["Z"]),
    ], 9, {"W": np.zeros(1, F32)}, layer=layer)  # fmt: skip
    source.graph.initializers["W"].const_value = external
    source.graph.initializers["W"].shape = ir.Shape(data.shape)
    next(n for n in source.graph if n.op_type == "Constant").attributes["value"] = ir.AttrTensor("value", held)
    model = source.clone()
    (tmp_path / "w.bin").rename(tmp_path / "away.bin")  # whoever reads it now fails
    expand(model, ExpandOptions())
    assert model.graph.initializers["W"].const_value is external
    constant = next(n for n in model.graph if n.outputs[0].name == "big")
    assert constant.attributes["value"].as_tensor() is held
    model.graph.initializers["W"].const_value = ir.Tensor(data, name="W")
    y = y_of(layer)
    want = 4800 * np.einsum("nchw,ochw->no", y, data.astype(np.float64))[:, :, None, None]
    got = run_ort(model, feeds(layer))["Z"]
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def test_subgraphs_are_converted_and_no_name_is_given_twice() -> None:
    """The converter numbers its new values graph by graph, so that inner ones hide outer ones."""
    unread = "".join(f"n{i} = Neg (Y) " for i in range(9))  # brings the numbers to those of the outer graph
    then = onnx.parser.parse_graph(
        "t () => (float[2,3,4,4] v) <float[1,3,1,1] add = {1, 2, 3}>"
        f"{{ {unread} a = Unsqueeze<axes=[0]>(Y)  b = Squeeze<axes=[0]>(a)  v = Add(b, add) }}"
    )
    other = onnx.parser.parse_graph(
        "e () => (float[2,3,4,4] w) { c = Unsqueeze<axes=[0]>(Y)  w = Squeeze<axes=[0]>(c) }"
    )
    model, _ = expanded(with_tail([
        node("Unsqueeze", ["Y"], ["U"], axes=[0]), node("Squeeze", ["U"], ["V"], axes=[0]),
        node("Constant", [], ["yes"], value=onnx.helper.make_tensor("yes", onnx.TensorProto.BOOL, [], [True])),
        node("If", ["yes"], ["I"], then_branch=then, else_branch=other), node("Add", ["I", "V"], ["Z"]),
    ], 9))  # fmt: skip
    names = [v.name for n in ir.traversal.RecursiveGraphIterator(model.graph) for v in n.outputs]
    assert len(set(names)) == len(names)
    want = 2 * y_of() + np.array([1, 2, 3])[:, None, None]
    for got in run_everywhere(model, feeds()):
        close(got["Z"], want)


def test_the_other_spelling_of_the_default_domain() -> None:
    proto = ir.to_proto(batch_norm(LAYER, 9))
    proto.opset_import[0].domain = "ai.onnx"
    model, _ = expanded(ir.from_proto(proto))
    assert dict(model.opset_imports) == {"": 14}
    close(run_ort(model, feeds())["Y"], y_of())
    proto = ir.to_proto(batch_norm(LAYER, 17))
    proto.opset_import[0].domain = "ai.onnx"
    model, done = expanded(ir.from_proto(proto))
    assert len(done.expanded) == 1
    close(run_ort(model, feeds())["Y"], y_of())


@pytest.mark.parametrize(
    ("options", "opset"), [(ExpandOptions(), 14), (WORLD, 15), (ExpandOptions(as_functions=True), 15)]
)
def test_opset_14_goes_as_far_as_bodies_need(options: ExpandOptions, opset: int) -> None:
    model, _ = expanded(batch_norm(LAYER, 14), options)
    assert model.opset_imports[""] == opset
    close(run_ort(model, feeds())["Y"], y_of())


@pytest.mark.parametrize("opset", [9, 13])
def test_functions_of_old_models_are_inlined(opset: int) -> None:
    text = f"""<ir_version: 8, opset_import: ["": {opset}, "f": 1]>
        g (float[2,3,4,4] X, float[3] m, float[3] v) => (float[2,3,4,4] Y)
        {{ t = f.twice (X)  s = f.ones (m)  Y, a, b = BatchNormalization (t, s, m, m, v) }}
        <domain: "f", opset_import: ["": {opset}]> twice (x) => (y) {{ y = Add (x, x) }}
        <domain: "f", opset_import: ["": {opset}]> ones (x) => (y) {{ y = Div (x, x) }}"""
    model, _ = expanded(ir.from_onnx_text(text))
    assert not model.functions
    m = LAYER.parameters["input_mean"]
    x = 2 * LAYER.x().astype(np.float64)
    axes = (0, 2, 3)
    want = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5) + m[:, None, None]
    close(run_ort(model, {"X": LAYER.x(), "m": m, "v": LAYER.parameters["input_var"]})["Y"], want)


def test_a_site_in_a_branch_of_an_old_model() -> None:
    body = "{{ {y}, a{y}, b{y} = BatchNormalization (X, s, m, m, v)  {z} = Unsqueeze<axes=[0]>({y}) }}"
    text = f"""<ir_version: 8, opset_import: ["": 9]>
        g (float[2,3] X, bool c, float[3] s, float[3] m, float[3] v) => (float[1,2,3] Z)
        {{ Z = If (c) <then_branch = t () => (float[1,2,3] z1) {body.format(y="y1", z="z1")},
                       else_branch = e () => (float[1,2,3] z2) {{ z2 = Unsqueeze<axes=[0]>(X) }}> }}"""
    model, done = expanded(ir.from_onnx_text(text))
    assert [e.node for e in done.expanded] == ["y1"]
    layer = Layer((2, 3), epsilon=1e-5)
    p = layer.parameters
    given = {"X": layer.x(), "s": p["scale"], "m": p["B"], "v": p["input_var"]}
    for got in run_everywhere(model, {**given, "c": np.array(True)}):
        close(got["Z"][0], layer.expected([layer.x()])[0]["Y"])
    for got in run_everywhere(model, {**given, "c": np.array(False)}):
        close(got["Z"][0], layer.x().astype(np.float64))
