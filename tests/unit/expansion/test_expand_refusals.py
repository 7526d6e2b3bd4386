"""What is refused, with which id, and that nothing is changed then."""

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bnpass.errors import RefusalId, RefusedError, UsageError
from bnpass.expansion.expander import expand
from bnpass.expansion.options import ExpandOptions
from tests.unit.expansion.cases import (
    F16,
    F32,
    F64,
    LOCAL,
    WORLD,
    Layer,
    batch_norm,
    expanded,
    run_ort,
    sync_batch_norm,
)

LAYER = Layer((4, 3, 5))


def refusal(model: ir.Model, options: ExpandOptions = LOCAL, node: str = "bn") -> RefusalId:
    """Expand; return the id of the refusal, and see to it that nothing was changed."""
    before, graph = ir.to_proto(model).SerializeToString(), model.graph
    with pytest.raises(RefusedError) as caught:
        expand(model, options)
    assert model.graph is graph
    assert ir.to_proto(model).SerializeToString() == before
    assert caught.value.refusal.node == node
    assert str(caught.value.refusal.id) in str(caught.value)
    return caught.value.refusal.id


def plain(opset: int = 17, outputs: int = 3, **attributes: Any) -> ir.Model:
    return batch_norm(LAYER, opset, outputs, **attributes)


def ours(**attributes: Any) -> ir.Model:
    return sync_batch_norm(LAYER, **attributes)


def test_inference_is_kept_and_said_so() -> None:
    model = plain()
    model.graph[0].attributes["training_mode"] = ir.AttrInt64("training_mode", 0)
    model.graph[0].resize_outputs(1)
    del model.graph.outputs[1:]
    done = expand(model, LOCAL)
    assert not done.modified
    assert [(k.node, k.op_type, k.refusal) for k in done.kept] == [
        ("bn", "BatchNormalization", RefusalId.INFERENCE_MODE)
    ]


def test_unknown_rank() -> None:
    model = plain()
    model.graph.inputs[0].shape = None
    assert refusal(model) is RefusalId.UNKNOWN_SHAPE


def test_unknown_channels() -> None:
    model = ours()
    model.graph.inputs[0].shape = ir.Shape(["N", "C", "H"])
    for value in model.graph.inputs[1:]:
        value.shape = ir.Shape(["C"])
    assert refusal(model) is RefusalId.UNKNOWN_SHAPE


def test_unknown_type() -> None:
    model = plain()
    magic = ir.Node("custom", "Magic", [model.graph.inputs[0]], num_outputs=1)
    magic.outputs[0].name = "t"
    magic.outputs[0].shape = ir.Shape([4, 3, 5])
    model.graph.insert_before(model.graph[0], magic)
    model.graph[1].replace_input_with(0, magic.outputs[0])
    model.opset_imports["custom"] = 1
    assert refusal(model) is RefusalId.UNKNOWN_SHAPE
    magic.outputs[0].dtype = ir.DataType.FLOAT
    assert expand(model, LOCAL).expanded[0].shape == (None, None, None)  # declared, not proved


@pytest.mark.parametrize("opset", [1, 6, 7, 9, 13])
def test_the_fifth_output(opset: int) -> None:
    assert refusal(plain(opset, outputs=5)) is RefusalId.SAVED_STATISTICS


def test_channels_that_contradict_each_other() -> None:
    model = ours()
    model.graph.inputs[3].shape = ir.Shape([4])
    assert refusal(model) is RefusalId.STATISTICS_TYPE


@pytest.mark.parametrize("shape", [[3, 1], [1, 3], []])
def test_statistics_that_are_no_vectors(shape: list[int]) -> None:
    model = ours()
    model.graph.inputs[3].shape = ir.Shape(shape)
    assert refusal(model) is RefusalId.STATISTICS_TYPE


def test_one_row_per_ghost_batch_is_for_inference_alone() -> None:
    model = sync_batch_norm(Layer((4, 3, 5), ghost=2))
    model.graph.inputs[3].shape = ir.Shape([2, 3])
    assert refusal(model) is RefusalId.STATISTICS_TYPE


@pytest.mark.parametrize(("data", "statistics"), [(F32, ir.DataType.FLOAT16), (F64, ir.DataType.FLOAT)])
@pytest.mark.parametrize("place", [1, 3])
def test_types_that_our_operators_do_not_take(data: Any, statistics: ir.DataType, place: int) -> None:
    model = sync_batch_norm(Layer((4, 3, 5), dtype=data))
    model.graph.inputs[place].dtype = statistics
    assert refusal(model) is RefusalId.STATISTICS_TYPE


def test_integers() -> None:
    model = ours()
    model.graph.inputs[0].dtype = ir.DataType.INT32
    assert refusal(model) is RefusalId.STATISTICS_TYPE
    model = plain()
    model.graph.inputs[1].dtype = ir.DataType.INT32
    assert refusal(model) is RefusalId.STATISTICS_TYPE


def test_statistics_of_unknown_type() -> None:
    model = plain()
    magic = ir.Node("custom", "Magic", [model.graph.inputs[1]], num_outputs=1)
    magic.outputs[0].name = "t"
    model.graph.insert_before(model.graph[0], magic)
    model.graph[1].replace_input_with(3, magic.outputs[0])
    model.opset_imports["custom"] = 1
    assert refusal(model) is RefusalId.STATISTICS_TYPE


@pytest.mark.parametrize("name", ["epsilon", "momentum"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("make", [plain, ours])
def test_numbers_that_are_none(make: Any, name: str, value: float) -> None:
    model = make()
    model.graph[0].attributes[name] = ir.AttrFloat32(name, value)
    assert refusal(model) is RefusalId.BAD_ATTRIBUTE


@pytest.mark.parametrize("attributes", [
    {"axis": 3}, {"axis": -4}, {"running_var_correction": 2}, {"running_var_correction": -1}, {"training_mode": 2},
    {"virtual_batch_size": -1}, {"virtual_batch_size": 3}, {"virtual_batch_size": 5}, {"unheard_of": 1},
    {"axis": 1.5}, {"group": 7}, {"epsilon": 1}, {"momentum": "much"}, {"epsilon": -1.0}, {"collective_id": "first"},
])  # fmt: skip
def test_bad_attributes_of_ours(attributes: dict[str, Any]) -> None:
    model = ours()
    for name, value in attributes.items():
        model.graph[0].attributes.add(ir.convenience.convert_attribute(name, value))
    assert refusal(model) is RefusalId.BAD_ATTRIBUTE


def test_ghost_batches_need_a_batch_axis() -> None:
    assert refusal(sync_batch_norm(Layer((4, 4, 5), axis=0), virtual_batch_size=2)) is RefusalId.BAD_ATTRIBUTE


@pytest.mark.parametrize(("opset", "attributes"), [
    (17, {"spatial": 1}), (17, {"is_test": 0}), (9, {"spatial": 1}), (9, {"training_mode": 1}), (7, {"is_test": 0}),
    (17, {"axis": 1}), (8, {"spatial": 0}), (6, {"spatial": 0}), (6, {"spatial": 2}), (17, {"epsilon": -1e-3}),
])  # fmt: skip
def test_bad_attributes_of_onnxs(opset: int, attributes: dict[str, Any]) -> None:
    model = plain(opset)
    for name, value in attributes.items():
        model.graph[0].attributes.add(ir.convenience.convert_attribute(name, value))
    assert refusal(model) is RefusalId.BAD_ATTRIBUTE


@pytest.mark.parametrize("make", [plain, ours])
@pytest.mark.parametrize("index", range(5))
def test_inputs_that_are_missing(make: Any, index: int) -> None:
    model = make()
    model.graph[0].replace_input_with(index, None)
    assert refusal(model) is RefusalId.BAD_ATTRIBUTE
    model.graph[0].resize_inputs(index)
    assert refusal(model) is RefusalId.BAD_ATTRIBUTE


def test_too_many_slots() -> None:
    model = plain()
    model.graph[0].resize_inputs(6)
    assert refusal(model) is RefusalId.BAD_ATTRIBUTE
    model = plain(17, outputs=4)
    assert refusal(model) is RefusalId.BAD_ATTRIBUTE


@pytest.mark.parametrize("make", [plain, ours])
def test_a_dead_node(make: Any) -> None:
    model = make()
    copy = ir.Node("", "Neg", [model.graph.inputs[0]], num_outputs=1)
    copy.outputs[0].name = "Z"
    model.graph.append(copy)
    model.graph.outputs.clear()
    model.graph.outputs.append(copy.outputs[0])
    assert refusal(model) is RefusalId.BAD_ATTRIBUTE


def test_running_statistics_of_inference() -> None:
    model = ours()
    model.graph[0].attributes["training_mode"] = ir.AttrInt64("training_mode", 0)
    assert refusal(model) is RefusalId.BAD_ATTRIBUTE


@pytest.mark.parametrize("group", ["a b", "ä", "x" * 65, "a/b", "\n"])
def test_groups_that_are_no_names(group: str) -> None:
    assert refusal(ours(group=group)) is RefusalId.BAD_GROUP
    with pytest.raises(UsageError):
        ExpandOptions(group=group)


def all_reduce(dtype: str = "double", group: str = "world", more: str = "") -> ir.Model:
    return ir.from_onnx_text(f"""<ir_version: 8, opset_import: ["": 17, "bnpass": 1]>
        g ({dtype}[2] a) => ({dtype}[2] b) {{ [bn] b = bnpass.AllReduce <group = "{group}"{more}> (a) }}""")


FOREIGN = ExpandOptions(collective="com.microsoft", group="world")


@pytest.mark.parametrize("model", [
    ours(group="mine"), all_reduce("int64"), all_reduce("bfloat16"), all_reduce(group="mine"),
    all_reduce(more=', reduction = "max"'),
], ids=["group", "int64", "bfloat16", "all_reduce_group", "max"])  # fmt: skip
def test_what_onnx_runtimes_collective_cannot_say(model: ir.Model) -> None:
    assert refusal(model, FOREIGN) is RefusalId.COLLECTIVE_CANNOT_SAY_IT


def test_what_it_can() -> None:
    for model in (ours(group="world"), ours(), all_reduce(), plain(), all_reduce("int64", group="")):
        assert expand(model, FOREIGN).modified
    assert expand(batch_norm(LAYER, 17), ExpandOptions(collective="com.microsoft")).collectives.before == 0


def test_an_all_reduce_that_cannot_be_read() -> None:
    assert refusal(all_reduce(more=', reduction = "product"')) is RefusalId.BAD_ATTRIBUTE
    assert refusal(all_reduce(group="a b")) is RefusalId.BAD_GROUP
    assert refusal(all_reduce(more=", what = 1")) is RefusalId.BAD_ATTRIBUTE


def test_a_collective_that_only_some_replicas_come_to() -> None:
    model = ir.from_onnx_text("""<ir_version: 8, opset_import: ["": 17]>
        g (float[4,3] X, bool c, float[3] s, float[3] b, float[3] m, float[3] v) => (float[4,3] Y)
        { [choice] Y = If (c) <then_branch = t () => (float[4,3] y)
              { y, p, q = BatchNormalization <training_mode = 1> (X, s, b, m, v) },
          else_branch = e () => (float[4,3] z) { z = Neg (X) }> }""")
    assert refusal(model.clone(), WORLD, node="choice") is RefusalId.ORDER_NOT_PROVABLE
    assert expand(model.clone(), LOCAL).modified
    done = expand(model, ExpandOptions(group="world", uniform=("c",)))
    assert done.collectives.after == 1


def test_an_input_that_is_said_to_be_uniform_has_to_be_there() -> None:
    with pytest.raises(UsageError, match="nothing"):
        expand(plain(), ExpandOptions(group="world", uniform=("nothing",)))


def test_rank_1_has_no_axis_for_our_operators() -> None:
    model = plain()
    model.graph.inputs[0].shape = ir.Shape([9])
    for value in (*model.graph.inputs[1:], *model.graph.initializers.values()):
        value.shape = ir.Shape([1])
    assert refusal(model, ExpandOptions(as_functions=True)) is RefusalId.BAD_ATTRIBUTE


def test_one_refusal_among_many_sites_leaves_all_as_they_were() -> None:
    model = plain()
    (first,) = list(model.graph)
    again = ir.Node(
        "", "BatchNormalization", [first.outputs[0], *first.inputs[1:]], list(first.attributes.values()), num_outputs=3,
        name="again",
    )  # fmt: skip
    again.attributes["epsilon"] = ir.AttrFloat32("epsilon", math.nan)
    for value, name in zip(again.outputs, "abc", strict=True):
        value.name = name
    model.graph.append(again)
    model.graph.outputs.append(again.outputs[0])
    assert refusal(model, node="again") is RefusalId.BAD_ATTRIBUTE


@pytest.mark.parametrize("wrong", [
    {"group": "a b"}, {"correction": 2}, {"correction": -1}, {"collective": "mpi"}, {"stats": "fast"}, {"check": -1},
    {"as_functions": True, "stats": "keras"}, {"as_functions": True, "collective": "com.microsoft"},
])  # fmt: skip
def test_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ExpandOptions(**wrong)


def test_float16_statistics_of_onnx_are_fine() -> None:
    layer = Layer((4, 3, 5), dtype=F16, parameter_dtype=F16)
    model, _ = expanded(batch_norm(layer, 17))
    given = {"X": layer.x(), **{n: layer.parameters[n] for n in ("input_mean", "input_var")}}
    assert run_ort(model, given)["running_var"].dtype == np.float16
