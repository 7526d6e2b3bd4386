"""Sites in subgraphs and functions, the forms that ``as_functions`` writes, and the pass."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bnpass.errors import RefusalId, RefusedError
from bnpass.expansion.expander import expand
from bnpass.expansion.options import ExpandOptions
from bnpass.passes import CoalesceAllReduce, ExpandSyncBatchNorm
from tests.unit.expansion.cases import (
    BF16,
    F16,
    F32,
    F64,
    LOCAL,
    WORLD,
    Array,
    Layer,
    batch_norm,
    close,
    expanded,
    run_everywhere,
    run_ort,
    run_replicas,
    sync_batch_norm,
)

LAYER = Layer((4, 3), epsilon=1e-5)
GIVEN = {"X": LAYER.x(), **dict(zip("sbmv", LAYER.parameters.values(), strict=True))}
INPUTS = "float[4,3] X, float[3] s, float[3] b, float[3] m, float[3] v"
BN = "BatchNormalization <training_mode = 1>"


def parsed(text: str) -> ir.Model:
    return ir.from_onnx_text(text)


def test_in_a_branch() -> None:
    model, done = expanded(
        parsed(f"""<ir_version: 8, opset_import: ["": 17]>
        g ({INPUTS}, bool c) => (float[4,3] Y)
        {{ Y = If (c) <then_branch = t () => (float[4,3] y) {{ y, p, q = {BN} (X, s, b, m, v) }},
                       else_branch = e () => (float[4,3] z) {{ z = Neg (X) }}> }}""")
    )
    assert [e.node for e in done.expanded] == ["y"]
    for got in run_everywhere(model, {**GIVEN, "c": np.array(True)}):
        close(got["Y"], LAYER.expected([LAYER.x()])[0]["Y"])
    for got in run_everywhere(model, {**GIVEN, "c": np.array(False)}):
        assert (got["Y"] == -LAYER.x()).all()


LOOP = f"""<ir_version: 8, opset_import: ["": 17]>
    g ({INPUTS}, int64 n, bool c) => (float[4,3] Y, float[3] M, float[3] V)
    {{ Y, M, V = Loop (n, c, X, m, v) <body = body (int64 i, bool go, float[4,3] x, float[3] m0, float[3] v0)
        => (bool on, float[4,3] y, float[3] m1, float[3] v1)
        {{ on = Identity (go)  y, m1, v1 = {BN} (x, s, b, m0, v0) }}> }}"""


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_in_a_loop_the_statistics_are_carried_on(steps: int) -> None:
    model, done = expanded(parsed(LOOP))
    assert done.expanded[0].shape == (None, None)  # what comes around a loop may change its shape
    layer, y = Layer((4, 3), epsilon=1e-5), LAYER.x().astype(np.float64)
    layer.parameters = dict(LAYER.parameters)
    for _ in range(steps):
        found = layer.forward([y])
        y = found.ys[0]
        layer.parameters |= {"input_mean": found.state.running_mean, "input_var": found.state.running_var}
    for got in run_everywhere(model, {**GIVEN, "n": np.array(steps), "c": np.array(True)}):
        close(got["Y"], y, units=64)
        close(got["M"], np.asarray(layer.parameters["input_mean"]))
        close(got["V"], np.asarray(layer.parameters["input_var"]))


def test_in_a_loop_that_replicas_run_alike() -> None:
    with pytest.raises(RefusedError, match="BN207"):
        expand(parsed(LOOP), WORLD)
    model, done = expanded(parsed(LOOP), ExpandOptions(group="world", uniform=("n", "c")))
    assert done.collectives.after == 1
    xs = [LAYER.x(seed, batch=4) for seed in (1, 2)]
    given = [{**GIVEN, "X": x, "n": np.array(2), "c": np.array(True)} for x in xs]
    first = LAYER.forward(xs)
    want = LAYER.forward(first.ys)
    for got, y in zip(run_replicas(model, given), want.ys, strict=True):
        close(got["Y"], y, units=64)


FUNCTION = f"""<ir_version: 8, opset_import: ["": 17, "f": 1]>
    g ({INPUTS}) => (float[4,3] Y, float[4,3] Z)
    {{ [one] Y = f.outer (X, s, b, m, v)  [two] Z = f.outer (Y, s, b, m, v) }}
    <domain: "f", opset_import: ["": 17, "f": 1]>
    outer (x, s, b, m, v) => (y) {{ t = f.idle (x)  y = f.inner <mode = 1> (t, s, b, m, v) }}
    <domain: "f", opset_import: ["": 17]>
    idle (x) => (y) {{ y = Identity (x) }}
    <domain: "f", opset_import: ["": 17]>
    inner <mode> (x, s, b, m, v) => (y)
    {{ y, p, q = BatchNormalization <training_mode: int = @mode> (x, s, b, m, v) }}"""


@pytest.mark.parametrize(
    "options", [LOCAL, WORLD, ExpandOptions(as_functions=True)], ids=["local", "world", "functions"]
)
def test_functions_with_sites_are_inlined_and_others_stay(options: ExpandOptions) -> None:
    model, done = expanded(parsed(FUNCTION), options)
    assert [key[1] for key in model.functions if key[0] == "f"] == ["idle"]
    assert len(done.expanded) == 2
    assert [e.node for e in done.expanded] == ["inner/y", "inner/y_2"]
    first = LAYER.forward([LAYER.x()]).ys[0]
    for got in (run_ort(model, GIVEN), run_ort(model, GIVEN, optimized=False)):
        close(got["Y"], first)
        close(got["Z"], LAYER.forward([first]).ys[0], units=32)


def test_a_function_that_returns_its_input_renames_nothing() -> None:
    model, _ = expanded(
        parsed(f"""<ir_version: 8, opset_import: ["": 17, "f": 1]>
        g ({INPUTS}) => (float[4,3] Y, float[4,3] W, float[4,3] U) {{ Y, W, U = f.f (X, s, b, m, v) }}
        <domain: "f", opset_import: ["": 17]>
        f (x, s, b, m, v) => (y, x, y) {{ y, p, q = {BN} (x, s, b, m, v) }}""")
    )
    assert [v.name for v in model.graph.inputs] == ["X", "s", "b", "m", "v"]
    for got in run_everywhere(model, GIVEN):
        assert (got["W"] == LAYER.x()).all()
        assert np.array_equal(got["U"], got["Y"])
        close(got["Y"], LAYER.expected([LAYER.x()])[0]["Y"])


def test_inlined_names_do_not_hide_others() -> None:
    model, _ = expanded(
        parsed(f"""<ir_version: 8, opset_import: ["": 17, "f": 1]>
        g ({INPUTS}, bool c) => (float[4,3] Y)
        {{ t = f.f (X, s, b, m, v)
           Y = If (c) <then_branch = t () => (float[4,3] w) {{ u = Neg (t)  w = Add (u, X) }},
                       else_branch = e () => (float[4,3] z) {{ z = f.f (t, s, b, m, v) }}> }}
        <domain: "f", opset_import: ["": 17]>
        f (x, s, b, m, v) => (y) {{ u = Neg (x)  w = Neg (u)  y, p, q = {BN} (w, s, b, m, v) }}""")
    )
    names = [v.name for n in ir.traversal.RecursiveGraphIterator(model.graph) for v in n.outputs if v.name]
    assert len(set(names)) == len(names)
    first = LAYER.forward([LAYER.x()]).ys[0]
    for got in run_everywhere(model, {**GIVEN, "c": np.array(True)}):
        close(got["Y"], LAYER.x() - first)
    for got in run_everywhere(model, {**GIVEN, "c": np.array(False)}):
        close(got["Y"], LAYER.forward([first]).ys[0], units=32)


def test_a_function_of_another_opset_is_refused() -> None:
    text, inner = FUNCTION.rsplit('opset_import: ["": 17]', 1)
    model = parsed(f'{text}opset_import: ["": 16]{inner}')
    before = ir.to_proto(model).SerializeToString()
    with pytest.raises(RefusedError) as caught:
        expand(model, LOCAL)
    assert caught.value.refusal.id is RefusalId.OPSET_NOT_UPGRADABLE
    assert ir.to_proto(model).SerializeToString() == before


def test_a_function_that_nobody_calls_goes_with_its_site() -> None:
    model = parsed(FUNCTION)
    proto = ir.to_proto(model)
    del proto.graph.node[:]
    proto.graph.node.extend([
        onnx.helper.make_node("BatchNormalization", ["X", "s", "b", "m", "v"], ["Y", "p", "q"], training_mode=1),
        onnx.helper.make_node("Neg", ["Y"], ["Z"]),
    ])  # fmt: skip
    model, _ = expanded(ir.from_proto(proto))
    assert [key[1] for key in model.functions] == ["idle"]


def test_inference_within_a_function_is_kept_there() -> None:
    text = (
        FUNCTION.replace("mode = 1", "mode = 0")
        .replace("y, p, q = Batch", "y = Batch")
        .replace("int = @mode", "int = 0")
    )
    model = parsed(text)
    done = expand(model, LOCAL)
    assert not done.modified
    assert [k.refusal for k in done.kept] == [RefusalId.INFERENCE_MODE]
    assert len(model.functions) == 3


@pytest.mark.parametrize("group", ["", "world"])
@pytest.mark.parametrize(
    ("opset", "dtype"),
    [*((opset, dtype) for opset in (9, 13, 17, 18) for dtype in (F16, F32, F64)), (17, BF16), (18, BF16)],
    ids=str,
)
def test_as_functions(opset: int, dtype: Any, group: str) -> None:
    parameters = dtype if opset < 15 else None
    layer = Layer((4, 3, 5), dtype=dtype, parameter_dtype=parameters, correction=1)
    options = ExpandOptions(as_functions=True, group=group, correction=1)
    model, done = expanded(batch_norm(layer, opset), options)
    (node,) = [n for n in model.graph if n.domain == "bnpass"]
    assert (len(node.inputs), len(node.outputs)) == (6, 6)
    assert {name: a.value for name, a in node.attributes.items() if name not in ("epsilon", "momentum")} == {
        "axis": 1, "training_mode": 1, "group": group, "running_var_correction": 1, "virtual_batch_size": 0,
        "collective_id": 0,
    }  # fmt: skip
    assert list(model.functions)[-1][1] == "SyncBatchNormalization"
    assert done.collectives.before == bool(group)
    if dtype == BF16:
        return
    want = layer.expected([layer.x()])[0]
    state = {n: layer.parameters[n] for n in ("input_mean", "input_var")}
    for optimized in (True, False):
        for name, value in run_ort(model, {"X": layer.x(), **state}, optimized=optimized).items():
            close(value, want[name])


def test_as_functions_our_operators_stay_and_are_put_in_order() -> None:
    source = sync_batch_norm(Layer((4, 3, 5)), group="mine")
    for name in ("collective_id", "virtual_batch_size"):
        source.graph[0].attributes.pop(name, None)
    model, done = expanded(source, ExpandOptions(as_functions=True, group="world"))
    assert done.modified
    assert [n.op_type for n in model.graph] == ["SyncBatchNormalization"]
    assert model.graph[0].attributes.get_string("group") == "mine"
    assert {"collective_id", "virtual_batch_size"} <= set(model.graph[0].attributes)
    again = expand(model, ExpandOptions(as_functions=True, group="world"))
    assert not again.modified
    none, _ = expanded(model, ExpandOptions(as_functions=True, collective="none"))
    assert none.graph[0].attributes.get_string("group") == ""


def test_twice_is_once() -> None:
    model, _ = expanded(batch_norm(Layer((4, 3, 5)), 17), WORLD)
    before = ir.to_proto(model).SerializeToString()
    done = expand(model, WORLD)
    assert not done.modified
    assert (done.collectives.before, done.collectives.after, done.collectives.depth) == (1, 1, 1)
    assert ir.to_proto(model).SerializeToString() == before


def test_the_pass() -> None:
    model = batch_norm(Layer((4, 3, 5)), 17)
    step = ExpandSyncBatchNorm(WORLD)
    result = step(model)
    assert result.modified
    assert result.model is model
    assert [e.node for e in step.expanded] == ["bn"]
    assert step.collectives.after == 1
    assert not ExpandSyncBatchNorm(WORLD)(model).modified
    default = batch_norm(Layer((4, 3, 5)), 17)
    assert ExpandSyncBatchNorm()(default).modified


def test_the_pass_that_coalesces() -> None:
    model = parsed("""<ir_version: 8, opset_import: ["": 17, "bnpass": 1]>
        g (double[2] a, double[3] b) => (double[2] c, double[3] d)
        { c = bnpass.AllReduce <group = "world"> (a)  d = bnpass.AllReduce <group = "world"> (b) }""")
    step = CoalesceAllReduce()
    assert step(model).modified
    assert (step.collectives.before, step.collectives.after) == (2, 1)
    assert not step(model).modified


def test_the_pass_raises_refusals() -> None:
    model = batch_norm(Layer((4, 3, 5)), 17)
    model.graph.inputs[0].shape = None
    with pytest.raises(RefusedError):
        ExpandSyncBatchNorm()(model)


def test_symbolic_lengths_stay_in_the_record() -> None:
    _, done = expanded(batch_norm(Layer((4, 3, 5)), 17, open_batch=True))
    assert done.expanded[0].shape == ("N", 3, 5)
    assert done.expanded[0].dtype == "float32"


def test_two_layers_in_a_row_make_a_chain() -> None:
    proto = ir.to_proto(sync_batch_norm(Layer((4, 3, 5)), group="world"))
    again = onnx.NodeProto()
    again.CopyFrom(proto.graph.node[0])
    again.name, again.input[0], again.output[:] = "again", "Y", ["Z", *["", ""] * 2, ""]
    proto.graph.node.append(again)
    proto.graph.output.add().CopyFrom(proto.graph.output[0])
    proto.graph.output[-1].name = "Z"
    model, done = expanded(ir.from_proto(proto))
    assert (done.collectives.before, done.collectives.after, done.collectives.depth) == (2, 2, 2)
    ids = [n.attributes.get_int("collective_id") for n in model.graph if n.op_type == "AllReduce"]
    assert ids == [0, 1]
    layer = Layer((4, 3, 5))
    xs: list[Array] = [layer.x(1), layer.x(2)]
    first = layer.forward(xs)
    found = run_replicas(model, [{"X": x, **layer.parameters} for x in xs])
    for got, y in zip(found, layer.forward(first.ys).ys, strict=True):
        assert got["Z"].dtype == F32
        close(got["Z"], y, units=32)
