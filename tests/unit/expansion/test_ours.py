"""SyncBatchNormalization, its inference mode and SyncBatchMoments, written out for one replica."""

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
    Arrays,
    Layer,
    close,
    expanded,
    model_of,
    run_everywhere,
    run_ort,
    run_reference,
    sync_batch_norm,
)

SHAPES = [(5,), (6, 3), (4, 3, 5), (4, 2, 3, 5), (2, 3, 2, 3, 2), (2, 2, 3, 2, 2, 3)]


def feeds(layer: Layer, x: Array | None = None) -> Arrays:
    return {"X": layer.x() if x is None else x, **layer.parameters}


def judged(layer: Layer, model: ir.Model, x: Array, runs: list[Arrays], *, units: float = 8.0) -> None:
    want = layer.expected([x])[0]
    for got in runs:
        assert list(got) == [value.name for value in model.graph.outputs]
        for name, value in got.items():
            close(value, want[name], units=units, worked_in=F64 if layer.dtype == F64 else F32)


@pytest.mark.parametrize(
    ("shape", "axis"), [(shape, axis) for shape in SHAPES for axis in (*range(len(shape)), -1, -len(shape))]
)
def test_every_axis_of_every_rank(shape: tuple[int, ...], axis: int) -> None:
    layer = Layer(shape, axis=axis)
    model, done = expanded(sync_batch_norm(layer))
    judged(layer, model, layer.x(), run_everywhere(model, feeds(layer)))
    assert done.expanded[0].axis == axis % len(shape)


@pytest.mark.parametrize("opset", [14, 15, 18, 21, NEWEST])
@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64], ids=str)
def test_every_type_and_opset(dtype: Any, opset: int) -> None:
    layer = Layer((6, 3, 4), axis=-1, dtype=dtype)
    model, _ = expanded(sync_batch_norm(layer, opset=opset))
    want_types = [dtype, *[layer.parameters["input_mean"].dtype] * 2, F64, F64, F64]
    runs = [run_reference(model, feeds(layer))] if dtype == BF16 else run_everywhere(model, feeds(layer))
    for got in runs:
        assert [value.dtype for value in got.values()] == want_types
    judged(layer, model, layer.x(), runs)


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("open_batch", [False, True])
@pytest.mark.parametrize(("shape", "axis", "ghost"), [
    ((8, 3), 1, 4), ((8, 3), 1, 1), ((8, 3), 1, 8), ((8, 4, 3), 2, 2), ((6, 3, 4), 1, 3), ((6, 2, 3, 4), 2, 2),
    ((6, 2, 4, 3), 3, 6), ((4, 3, 2, 2, 2), 1, 2),
])  # fmt: skip
def test_ghost_batches(shape: tuple[int, ...], axis: int, ghost: int, open_batch: bool, correction: int) -> None:
    layer = Layer(shape, axis=axis, ghost=ghost, correction=correction)
    model, _ = expanded(sync_batch_norm(layer, open_batch=open_batch))
    judged(layer, model, layer.x(), run_everywhere(model, feeds(layer)))


@pytest.mark.parametrize("dtype", [F16, BF16, F64], ids=str)
def test_ghost_batches_of_every_type(dtype: Any) -> None:
    layer = Layer((6, 3, 4), ghost=2, dtype=dtype)
    model, _ = expanded(sync_batch_norm(layer))
    runs = [run_reference(model, feeds(layer))] if dtype == BF16 else run_everywhere(model, feeds(layer))
    judged(layer, model, layer.x(), runs)


def test_ghost_batches_with_no_length_known() -> None:
    layer = Layer((6, 4, 3), axis=2, ghost=2)
    model = sync_batch_norm(layer)
    model.graph.inputs[0].shape = ir.Shape(["N", "H", "C"])
    model, _ = expanded(model)
    judged(layer, model, layer.x(), run_everywhere(model, feeds(layer)))


@pytest.mark.parametrize("samples", [0, 2, 4, 8])
def test_ghost_batches_of_an_open_batch(samples: int) -> None:
    layer = Layer((4, 3, 5), ghost=2)
    model, _ = expanded(sync_batch_norm(layer, open_batch=True))
    x = layer.x(batch=samples)
    judged(layer, model, x, run_everywhere(model, feeds(layer, x))) if samples else None
    if samples == 0:
        for got in run_everywhere(model, feeds(layer, x)):
            assert got["saved_mean"].shape == got["saved_inv_std"].shape == (0, 3)
            assert got["count"] == 0
            assert (got["running_mean"] == layer.parameters["input_mean"]).all()
            assert (got["running_var"] == layer.parameters["input_var"]).all()


@pytest.mark.parametrize("samples", [1, 3, 5])
def test_ghost_batches_that_do_not_divide_an_open_batch_fail(samples: int) -> None:
    layer = Layer((4, 3, 5), ghost=2)
    model, _ = expanded(sync_batch_norm(layer, open_batch=True))
    x = layer.x(batch=samples)
    with pytest.raises(Exception, match=r"(?i)reshape"):
        run_ort(model, feeds(layer, x))
    with pytest.raises(ValueError, match="reshape"):
        run_reference(model, feeds(layer, x))


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0), (0, 3, 0, 2)])
@pytest.mark.parametrize("open_batch", [False, True])
def test_without_elements_the_inputs_are_the_statistics(shape: tuple[int, ...], open_batch: bool) -> None:
    layer = Layer(shape)
    model, _ = expanded(sync_batch_norm(layer, open_batch=open_batch))
    for got in run_everywhere(model, feeds(layer)):
        assert got["Y"].shape == shape
        assert (got["running_mean"] == layer.parameters["input_mean"]).all()
        assert (got["running_var"] == layer.parameters["input_var"]).all()
        close(got["saved_mean"], layer.state.running_mean)
        close(got["saved_inv_std"], 1 / np.sqrt(layer.state.running_var + float(np.float32(layer.epsilon))))
        assert got["count"] == 0


@pytest.mark.parametrize("shape", [(4, 0), (4, 0, 3), (0, 0)])
def test_without_channels_there_is_nothing(shape: tuple[int, ...]) -> None:
    layer = Layer(shape)
    model, _ = expanded(sync_batch_norm(layer))
    for got in run_everywhere(model, feeds(layer)):
        assert got["Y"].shape == shape
        assert got["running_mean"].shape == got["saved_mean"].shape == (0,)


@pytest.mark.parametrize(("dtype", "statistics"), [(F16, F32), (F16, F64), (F32, F32), (F32, F64), (F64, F64)], ids=str)
@pytest.mark.parametrize(("ghost", "per_ghost"), [(0, False), (2, False), (2, True)])
def test_inference(dtype: Any, statistics: Any, ghost: int, per_ghost: bool) -> None:
    layer = Layer((4, 3, 5), ghost=ghost, dtype=dtype)
    given = feeds(layer)
    for name in ("input_mean", "input_var"):
        table = np.stack([given[name], given[name] + 1]) if per_ghost else given[name]
        given[name] = table.astype(statistics) * (1 + 2**-30)  # of a double K is not the mean
    source = sync_batch_norm(layer, training=False)
    for index, name in ((3, "input_mean"), (4, "input_var")):
        source.graph.inputs[index].shape = ir.Shape(given[name].shape)
        source.graph.inputs[index].dtype = ir.DataType.from_numpy(np.dtype(statistics))
    model, done = expanded(source)
    assert done.expanded[0].kind == "inference"
    wide = {name: value.astype(np.float64) for name, value in given.items()}
    mean, var = ((np.broadcast_to(wide[n], (2, 3)) if ghost else wide[n]) for n in ("input_mean", "input_var"))
    inv_std = 1 / np.sqrt(var + float(np.float32(layer.epsilon)))
    of_sample = [np.arange(4) % 2] if ghost else [None]
    m, s = (np.reshape(v[of_sample[0]] if ghost else v, (-1, 3, 1)) for v in (mean, inv_std))
    y = (wide["X"] - m) * s * wide["scale"][:, None] + wide["B"][:, None]
    for got in run_everywhere(model, given):
        assert list(got) == ["Y", "saved_mean", "saved_inv_std", "count"]
        close(got["Y"], y)
        close(got["saved_mean"], mean)
        close(got["saved_inv_std"], inv_std)
        assert got["count"].dtype == F64
        assert got["count"] == 0


def moments_model(layer: Layer, *, group: str = "", open_batch: bool = False) -> ir.Model:
    node = onnx.helper.make_node(
        "SyncBatchMoments", ["X", ""], ["mean", "var", "count"],
        domain="bnpass", name="m", axis=layer.axis, group=group, virtual_batch_size=layer.ghost,
    )  # fmt: skip
    rank = 2 if layer.ghost else 1
    shapes = {"X": ["N", *layer.shape[1:]]} if open_batch else None
    outputs = {"mean": (F64, rank), "var": (F64, rank), "count": (F64, 0)}
    return model_of([node], {"X": layer.x()}, outputs, shapes=shapes)


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64], ids=str)
@pytest.mark.parametrize(("shape", "axis", "ghost", "open_batch"), [
    ((6, 3, 2), 1, 0, False), ((6, 3), -1, 2, False), ((5,), 0, 0, False), ((4, 2, 3), 2, 2, False),
    ((6, 3, 2), 1, 0, True), ((6, 3), -1, 2, True), ((4, 2, 3), 2, 2, True),
])  # fmt: skip
def test_moments(shape: tuple[int, ...], axis: int, ghost: int, dtype: Any, open_batch: bool) -> None:
    layer = Layer(shape, axis=axis, ghost=ghost, dtype=dtype)
    model, done = expanded(moments_model(layer, open_batch=open_batch))
    assert done.expanded[0].kind == "moments"
    found = layer.forward([layer.x()])
    runs = [run_reference(model, feeds(layer))] if dtype == BF16 else run_everywhere(model, {"X": layer.x()})
    for got in runs:
        var = 1 / found.inv_std**2 - float(np.float32(layer.epsilon))
        close(got["mean"], found.mean if ghost else found.mean[0], worked_in=F64 if dtype == F64 else F32)
        close(got["var"], var if ghost else var[0], worked_in=F64 if dtype == F64 else F32)
        assert got["count"].shape == ()
        assert got["count"] == found.count


@pytest.mark.parametrize("open_batch", [False, True])
def test_moments_of_nothing_are_zero(open_batch: bool) -> None:
    layer = Layer((0, 3, 2))
    model, _ = expanded(moments_model(layer, open_batch=open_batch))
    for got in run_everywhere(model, {"X": layer.x()}):
        assert (got["mean"] == 0).all()
        assert (got["var"] == 0).all()
        assert got["count"] == 0


def test_outputs_that_nobody_reads_cost_nothing() -> None:
    layer = Layer((4, 3, 5))
    proto = ir.to_proto(sync_batch_norm(layer, group="world"))
    del proto.graph.output[:-1]  # count alone
    model, done = expanded(ir.from_proto(proto))
    assert not {"Sqrt", "Where", "Greater"} & {node.op_type for node in model.graph}
    assert done.collectives.before == 1  # M is a sum over the replicas
    assert (
        run_ort(model, {k: v for k, v in feeds(layer).items() if k in {i.name for i in model.graph.inputs}})["count"]
        == 20
    )


def test_a_site_that_reads_what_another_one_makes() -> None:
    """The shape of Y is known through our operators, of which ONNX's inference knows nothing."""
    layer = Layer((4, 3, 5))
    proto = ir.to_proto(sync_batch_norm(layer))
    del proto.graph.output[1:]
    again = onnx.NodeProto()
    again.CopyFrom(proto.graph.node[0])
    again.name, again.input[0] = "again", "Y"
    again.output[0] = "Z"
    for i in range(1, 6):
        again.output[i] = ""
    proto.graph.node.append(again)
    proto.graph.output[0].name = "Z"
    model, done = expanded(ir.from_proto(proto))
    assert [e.shape for e in done.expanded] == [(4, 3, 5)] * 2
    first = layer.forward([layer.x()]).ys[0]
    for got in run_everywhere(model, feeds(layer)):
        close(got["Z"], layer.forward([first]).ys[0])


def test_defaults_of_our_operators() -> None:
    layer = Layer((4, 5, 3), axis=-1, momentum=0.99)
    model = sync_batch_norm(layer)
    for name in list(model.graph[0].attributes):
        if name != "training_mode":
            del model.graph[0].attributes[name]
    model, _ = expanded(model)
    judged(layer, model, layer.x(), run_everywhere(model, feeds(layer)))


def test_bodies_that_came_along_are_dropped() -> None:
    layer = Layer((4, 3, 5))
    with_body, _ = expanded(sync_batch_norm(layer, opset=18), ExpandOptions(as_functions=True))
    assert [key[1] for key in with_body.functions] == ["AllReduce", "SyncBatchMoments", "SyncBatchNormalization"]
    model, _ = expanded(with_body)
    assert not model.functions
    judged(layer, model, layer.x(), run_everywhere(model, feeds(layer)))


def unknown_shapes(model: ir.Model, ranks: dict[str, int | None]) -> ir.Model:
    """Forget the lengths of inputs, or with None the rank too."""
    for value in model.graph.inputs:
        rank = ranks.get(str(value.name), len(value.shape or ()))
        value.shape = None if rank is None else ir.Shape([None] * rank)
    return model


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("wrong", ["X", "scale", "B", "input_mean", "input_var"])
@pytest.mark.parametrize("ghost", [0, 2])
def test_lengths_that_only_the_run_knows_are_held_to_c(wrong: str, ghost: int, training: bool) -> None:
    """A parameter of length 1, or one channel, would broadcast; all others are 3 long."""
    layer = Layer((4, 3, 5), ghost=ghost)
    source = unknown_shapes(sync_batch_norm(layer, training=training), {})
    known = "B" if wrong != "B" else "scale"
    next(v for v in source.graph.inputs if v.name == known).shape = ir.Shape([3])
    model = source.clone()
    expand(model, ExpandOptions())
    good = feeds(layer)
    close(run_ort(model, good)["Y"], layer.forward([layer.x()], training=training).ys[0])
    with pytest.raises(Exception, match=r"(?i)reshape"):
        run_ort(model, {**good, wrong: good[wrong][:, :1] if wrong == "X" else good[wrong][:1]})


def test_one_channel_for_certain_and_more_at_run_time_fails() -> None:
    layer = Layer((4, 1, 5))
    for training in (True, False):
        model = unknown_shapes(sync_batch_norm(layer, training=training), {})
        model.graph.inputs[1].shape = ir.Shape([1])
        expand(model, ExpandOptions())
        close(run_ort(model, feeds(layer))["Y"], layer.forward([layer.x()], training=training).ys[0])
        with pytest.raises(Exception, match=r"(?i)reshape"):
            run_ort(model, {**feeds(layer), "X": Layer((4, 3, 5)).x()})
