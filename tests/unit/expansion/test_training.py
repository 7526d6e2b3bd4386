"""BatchNormalization in training mode, of every opset, against the float64 reference."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bnpass.expansion.expander import expand
from bnpass.expansion.options import ExpandOptions
from tests.unit.expansion.cases import (
    BF16,
    F16,
    F32,
    F64,
    NEWEST,
    Array,
    Layer,
    batch_norm,
    close,
    expanded,
    model_of,
    run_everywhere,
    run_ort,
    run_reference,
)

OPSETS = [1, 6, 7, 9, 13, 14, 15, 17, 18, 23, NEWEST]


def feeds(layer: Layer, x: Array | None = None) -> dict[str, Any]:
    return {"X": layer.x() if x is None else x, **{k: layer.parameters[k] for k in ("input_mean", "input_var")}}


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset(opset: int) -> None:
    layer = Layer((4, 3, 5, 2))
    model, done = expanded(batch_norm(layer, opset))
    want = layer.expected([layer.x()])[0]
    for got in run_everywhere(model, feeds(layer)):
        assert list(got) == ["Y", "running_mean", "running_var"]
        for name, value in got.items():
            assert value.dtype == F32
            close(value, want[name])
    assert [(e.node, e.kind, e.collectives) for e in done.expanded] == [("bn", "training", 0)]
    assert model.opset_imports[""] == max(opset, 14)
    assert "bnpass" not in model.opset_imports


@pytest.mark.parametrize("opset", [15, 17, 23])
@pytest.mark.parametrize("parameters", [F16, BF16, F32, F64], ids=str)
@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64], ids=str)
def test_every_type_of_data_and_parameters(dtype: Any, parameters: Any, opset: int) -> None:
    layer = Layer((6, 3, 4), dtype=dtype, parameter_dtype=parameters)
    model, _ = expanded(batch_norm(layer, opset))
    want = layer.expected([layer.x()])[0]
    runs = [run_reference(model, feeds(layer))]
    if BF16 not in (dtype, parameters):  # as inputs ONNX Runtime's Python interface takes no bfloat16
        runs += run_everywhere(model, feeds(layer))[:2]
    for got in runs:
        assert [value.dtype for value in got.values()] == [dtype, parameters, parameters]
        for name, value in got.items():
            close(value, want[name], worked_in=F64 if dtype == F64 else F32)


@pytest.mark.parametrize("opset", [7, 9, 13, 14])
@pytest.mark.parametrize("dtype", [F16, F64], ids=str)
def test_one_type_for_all_before_opset_15(dtype: Any, opset: int) -> None:
    layer = Layer((6, 3, 4), dtype=dtype, parameter_dtype=dtype)
    model, _ = expanded(batch_norm(layer, opset))
    want = layer.expected([layer.x()])[0]
    for got in run_everywhere(model, feeds(layer)):
        for name, value in got.items():
            assert value.dtype == dtype
            close(value, want[name])


@pytest.mark.parametrize("shape", [(7, 3), (5, 3, 4), (2, 3, 4, 5), (2, 3, 4, 1, 2), (2, 3, 2, 2, 2, 2)], ids=len)
@pytest.mark.parametrize("open_batch", [False, True])
def test_every_rank(shape: tuple[int, ...], open_batch: bool) -> None:
    layer = Layer(shape)
    model, done = expanded(batch_norm(layer, 17, open_batch=open_batch))
    want = layer.expected([layer.x()])[0]
    for got in run_everywhere(model, feeds(layer)):
        for name, value in got.items():
            close(value, want[name])
    assert done.expanded[0].shape == (("N", *shape[1:]) if open_batch else shape)
    has_shape_arithmetic = any(node.op_type in ("Shape", "Size") for node in model.graph)
    assert has_shape_arithmetic == open_batch


def test_rank_1_has_one_channel() -> None:
    layer = Layer((9,), axis=0)
    layer.parameters = {name: value[:1] for name, value in layer.parameters.items()}
    source = batch_norm(layer, 17)
    source.graph.inputs[0].shape = ir.Shape([9])
    model, _ = expanded(source)
    x = layer.x()
    y = (x - x.mean()) / np.sqrt(x.var() + layer.epsilon) * layer.parameters["scale"] + layer.parameters["B"]
    for got in run_everywhere(model, feeds(layer)):
        close(got["Y"], y)
    for stats in ("exact", "keras"):
        options = ExpandOptions(group="world", stats=stats)  # type: ignore[arg-type]
        for got in run_everywhere(expanded(source, options)[0], feeds(layer)):
            close(got["Y"], y)
    old = batch_norm(layer, 9, outputs=4)
    old.graph.inputs[0].shape = ir.Shape([9])
    for got in run_everywhere(expanded(old)[0], feeds(layer)):
        close(got["Y"], y)
        close(got["saved_mean"], x.astype(np.float64).mean(keepdims=True))


@pytest.mark.parametrize("opset", [6, 9, 17])
def test_without_running_statistics_there_are_no_nodes_for_them(opset: int) -> None:
    layer = Layer((4, 3, 5))
    all_three, _ = expanded(batch_norm(layer, opset))
    proto = ir.to_proto(batch_norm(layer, opset))
    del proto.graph.output[1:]
    one, _ = expanded(ir.from_proto(proto))
    want = layer.expected([layer.x()])[0]
    for got in run_everywhere(one, feeds(layer)):
        assert list(got) == ["Y"]
        close(got["Y"], want["Y"])
    assert len(one.graph) < len(all_three.graph)
    read = {value.name for node in one.graph for value in node.inputs if value is not None}
    assert "input_mean" not in read
    assert "input_var" not in read


def test_a_training_node_before_opset_7_may_have_one_output() -> None:
    layer = Layer((4, 3, 5))
    model, _ = expanded(batch_norm(layer, 6, outputs=1))
    for got in run_everywhere(model, feeds(layer)):
        close(got["Y"], layer.expected([layer.x()])[0]["Y"])


@pytest.mark.parametrize("opset", [1, 6, 7, 9, 13])
def test_saved_mean_of_old_versions_is_the_batch_mean(opset: int) -> None:
    layer = Layer((4, 3, 5), dtype=F16 if opset == 9 else F32, parameter_dtype=F16 if opset == 9 else F32)
    model, _ = expanded(batch_norm(layer, opset, outputs=4))
    for got in run_everywhere(model, feeds(layer)):
        assert got["saved_mean"].dtype == layer.dtype
        close(got["saved_mean"], layer.expected([layer.x()])[0]["saved_mean"])


@pytest.mark.parametrize("opset", [7, 9])
def test_an_unread_fifth_output_is_no_reason_to_refuse(opset: int) -> None:
    layer = Layer((4, 3, 5))
    proto = ir.to_proto(batch_norm(layer, opset, outputs=5))
    del proto.graph.output[4:]
    model, _ = expanded(ir.from_proto(proto))
    close(run_ort(model, feeds(layer))["Y"], layer.expected([layer.x()])[0]["Y"])


@pytest.mark.parametrize("opset", [6, 9, 17])
def test_attributes_left_out_have_the_defaults_of_onnx(opset: int) -> None:
    layer = Layer((4, 3, 5), epsilon=1e-5, momentum=0.9, std=0.01)  # the epsilon matters
    model = batch_norm(layer, opset)
    for name in ("epsilon", "momentum"):
        del model.graph[0].attributes[name]
    model, done = expanded(model)
    want = layer.expected([layer.x()])[0]
    for got in run_everywhere(model, feeds(layer)):
        for name, value in got.items():
            close(value, want[name])
    assert done.expanded[0].epsilon == float(np.float32(1e-5))


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("shape", [(4, 3, 2), (1, 3), (2, 3)])
def test_correction(correction: int, shape: tuple[int, ...]) -> None:
    layer = Layer(shape, correction=correction)
    model, _ = expanded(batch_norm(layer, 17), ExpandOptions(correction=correction))
    want = layer.expected([layer.x()])[0]
    for got in run_everywhere(model, feeds(layer)):
        for name, value in got.items():
            close(value, want[name])


def test_what_changes_nothing_is_not_written() -> None:
    model, _ = expanded(batch_norm(Layer((1, 3), correction=1), 17), ExpandOptions(correction=1))
    ones = {
        node.outputs[0]
        for node in model.graph
        if node.op_type == "Constant" and (node.attributes["value"].as_tensor().numpy() == 1).all()
    }
    assert not [n for n in model.graph if n.op_type in ("Mul", "Div") and n.inputs[1] in ones]
    assert not [n for n in model.graph if n.op_type == "Mul" and n.inputs[0] in ones]


def test_the_result_agrees_with_onnx_runtimes_own_training_mode() -> None:
    layer = Layer((4, 3, 5, 2), epsilon=1e-2)
    source = batch_norm(layer, 17)
    model, _ = expanded(source)
    theirs, ours = run_ort(source, feeds(layer)), run_ort(model, feeds(layer))
    for name, value in ours.items():
        close(value, theirs[name].astype(np.float64))


def test_outputs_keep_their_names_types_and_order_and_nodes_are_named_after_the_site() -> None:
    source = batch_norm(Layer((4, 3, 5)), 17)
    source.graph.outputs.reverse()
    model, _ = expanded(source)
    assert [v.name for v in model.graph.outputs] == ["running_var", "running_mean", "Y"]
    assert [v.type for v in model.graph.outputs] == [v.type for v in source.graph.outputs]
    assert [v.name for v in model.graph.inputs] == ["X", "input_mean", "input_var"]
    assert all(str(node.name).startswith("bn/") for node in model.graph)


def test_names_that_are_taken_are_not_given_again() -> None:
    layer = Layer((4, 3, 5))
    proto = ir.to_proto(batch_norm(layer, 17))
    taken = onnx.helper.make_node("Neg", ["Y"], ["bn/K"], name="bn/D")
    twin = onnx.NodeProto()
    twin.CopyFrom(proto.graph.node[0])
    twin.input[0] = "bn/K"
    del twin.output[:]
    twin.output.extend(["bn/mean", "a", "b"])
    proto.graph.node.extend([taken, twin])
    proto.graph.output[1].name = "bn/mean"
    proto.graph.output[1].type.tensor_type.shape.dim.add()
    proto.graph.output[1].type.tensor_type.shape.dim.add()
    model, done = expanded(ir.from_proto(proto))
    assert len(done.expanded) == 2
    names = [value.name for node in model.graph for value in node.outputs]
    assert len(set(names)) == len(names)
    nodes = [node.name for node in model.graph]
    assert len(set(nodes)) == len(nodes)
    first = layer.forward([layer.x()]).ys[0]
    close(run_ort(model, feeds(layer))["bn/mean"], layer.forward([-first]).ys[0], units=32)


def test_the_same_statistics_may_be_updated_twice() -> None:
    """A layer that is called twice in one step: the second call starts from the statistics of the first."""
    layer = Layer((4, 3, 5))
    proto = ir.to_proto(batch_norm(layer, 17))
    proto.graph.node[0].output[1:] = ["m1", "v1"]
    again = onnx.helper.make_node(
        "BatchNormalization", ["Y", "scale", "B", "m1", "v1"], ["Z", "running_mean", "running_var"],
        training_mode=1, **layer.attributes(),
    )  # fmt: skip
    proto.graph.node.append(again)
    model, done = expanded(ir.from_proto(proto))
    assert len(done.expanded) == 2
    once = layer.forward([layer.x()])
    second = Layer((4, 3, 5))
    second.parameters = {
        **layer.parameters,
        "input_mean": once.state.running_mean,
        "input_var": once.state.running_var,
    }
    want = second.expected([once.ys[0]])[0]
    for got in run_everywhere(model, feeds(layer)):
        close(got["running_mean"], want["running_mean"])
        close(got["running_var"], want["running_var"])


def test_a_stale_shape_in_between_is_not_believed() -> None:
    """The batch was opened after the export; what the file says of values in between is not true any more."""
    layer = Layer((4, 3, 5))
    proto = ir.to_proto(batch_norm(layer, 17, open_batch=True))
    proto.graph.node.insert(0, onnx.helper.make_node("Neg", ["X"], ["t"]))
    proto.graph.node[1].input[0] = "t"
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("t", 1, [1, 3, 5]))
    model = ir.from_proto(proto)
    done = expand(model, ExpandOptions())
    assert done.expanded[0].shape == ("N", 3, 5)
    close(run_ort(model, feeds(layer))["Y"], layer.expected([-layer.x()])[0]["Y"])


def test_the_number_of_channels_may_follow_from_the_parameters_alone() -> None:
    layer = Layer((4, 3, 5))
    model = batch_norm(layer, 17)
    model.graph.inputs[0].shape = ir.Shape(["N", "C", "H"])
    model, done = expanded(model)
    assert done.expanded[0].channels == 3
    for got in run_everywhere(model, feeds(layer)):
        close(got["Y"], layer.expected([layer.x()])[0]["Y"])


@pytest.mark.parametrize("samples", [0, 1, 3, 4, 9])
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_an_open_batch_of_any_length(samples: int, dtype: Any) -> None:
    layer = Layer((4, 3, 5), dtype=dtype)
    model, _ = expanded(batch_norm(layer, 17, open_batch=True))
    x = layer.x(batch=samples)
    want = layer.expected([x])[0]
    for got in run_everywhere(model, feeds(layer, x)):
        for name, value in got.items():
            close(value, want[name])
    if samples == 0:
        assert (got["running_mean"] == layer.parameters["input_mean"]).all()
        assert (got["running_var"] == layer.parameters["input_var"]).all()


def test_a_batch_that_is_empty_for_certain() -> None:
    layer = Layer((0, 3, 5))
    model, _ = expanded(batch_norm(layer, 17))
    for got in run_everywhere(model, feeds(layer)):
        assert got["Y"].shape == (0, 3, 5)
        assert (got["running_mean"] == layer.parameters["input_mean"]).all()
        assert (got["running_var"] == layer.parameters["input_var"]).all()


def test_y_does_not_depend_on_momentum_or_running_statistics() -> None:
    layer, other = Layer((4, 3, 5)), Layer((4, 3, 5), momentum=0.1)
    other.parameters = {**layer.parameters, "input_mean": np.full(3, 9, F32), "input_var": np.full(3, 9, F32)}
    ours, theirs = (run_ort(expanded(batch_norm(one, 17))[0], feeds(one))["Y"] for one in (layer, other))
    assert (ours == theirs).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_spreads_over_its_channel_and_no_further(value: float) -> None:
    layer = Layer((4, 3, 5))
    x = layer.x()
    x[1, 2, 3] = value
    with np.errstate(all="ignore"):
        want = layer.expected([x])[0]
        runs = run_everywhere(expanded(batch_norm(layer, 17))[0], feeds(layer, x))
    for got in runs:
        assert np.isnan(got["Y"][:, 2]).all()
        assert not np.isfinite(got["running_mean"][2])
        assert not np.isfinite(got["running_var"][2])
        close(got["Y"][:, :2], want["Y"][:, :2])
        close(got["running_var"][:2], want["running_var"][:2])


def test_a_model_without_sites_is_not_touched() -> None:
    model = model_of([onnx.helper.make_node("Neg", ["x"], ["y"])], {"x": np.zeros(3, F32)}, {"y": (F32, 1)})
    before, graph = ir.to_proto(model).SerializeToString(), model.graph
    done = expand(model, ExpandOptions(group="world"))
    assert not done.modified
    assert done.expanded == ()
    assert model.graph is graph
    assert ir.to_proto(model).SerializeToString() == before
