"""The bodies compute what the operators mean, in ONNX Runtime and in ONNX's evaluator, and refuse what they must."""

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from bnpass.errors import ModelError
from bnpass.ops import DOMAIN, MIN_OPSET
from bnpass.ops.bodies import MIN_BODY_OPSET, add_bodies, body
from bnpass.ops.schemas import ATTRIBUTES, SCHEMAS, register
from bnpass.semantics.reference import backward, forward
from tests.support.sync_ops import Meeting, sync_ops
from tests.unit.ops.body_cases import Case, U, all_cases, data, gradient, layer, normalization, step_of

Array = NDArray[Any]
Feeds = dict[str, Array]

CASES = list(enumerate(all_cases()))
GOOD = [(number, case) for number, case in CASES if not case.fails]
BAD = [(number, case) for number, case in CASES if case.fails]
NEWEST_IN_RUNTIME = 26
"""The newest opset that ONNX Runtime 1.31 runs."""

LEVELS = {
    "runtime, as it is": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "runtime, optimized": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
ENGINES = (*LEVELS, "evaluator")


def run(engine: str, model: onnx.ModelProto, feeds: Feeds) -> Sequence[Array]:
    if engine == "evaluator":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's remarks on NaN, and on casts of infinity
            return [np.asarray(result) for result in ReferenceEvaluator(model).run(None, feeds)]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = LEVELS[engine]
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def opset(number: int) -> int:
    """Take every opset in turn."""
    return MIN_BODY_OPSET + number % (NEWEST_IN_RUNTIME - MIN_BODY_OPSET + 1)


def cases(numbered: Sequence[tuple[int, Case]]) -> Callable[..., Any]:
    return pytest.mark.parametrize(("number", "case"), numbered, ids=[case.name for _, case in numbered])


@cases(GOOD)
def test_a_body_computes_what_the_operator_means(number: int, case: Case) -> None:
    model = case.model(opset(number))
    assert {engine: case.why_wrong(run(engine, model, case.feeds)) for engine in ENGINES} == dict.fromkeys(ENGINES, "")


@cases(BAD)
def test_what_does_not_fit_gives_no_number(number: int, case: Case) -> None:
    model = case.model(opset(number))
    for engine in ENGINES:
        said = case.fails if engine in LEVELS else "out of bounds|cannot reshape array|Issues with types"
        with pytest.raises(Exception, match=said):
            run(engine, model, case.feeds)


@cases(GOOD[:: len(GOOD) // 20])
@pytest.mark.parametrize("newest", range(NEWEST_IN_RUNTIME + 1, onnx.defs.onnx_opset_version() + 1))
def test_a_body_means_the_same_in_the_newest_opsets(number: int, case: Case, newest: int) -> None:  # noqa: ARG001
    assert case.why_wrong(run("evaluator", case.model(newest), case.feeds)) == ""


@cases(GOOD[::3])
def test_a_model_with_bodies_is_valid(number: int, case: Case) -> None:
    register()
    model = case.model(opset(number))
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    wanted = [expected for expected in case.outputs if expected is not None]
    for info, expected in zip(inferred.graph.output, wanted, strict=True):
        dims = info.type.tensor_type.shape.dim
        assert len(dims) == expected.value.ndim
        assert all(d.dim_value in (0, n) for d, n in zip(dims, expected.value.shape, strict=True))


def test_no_two_cases_have_the_same_name_and_nothing_is_forgotten() -> None:
    names = [case.name for _, case in CASES]
    assert len(set(names)) == len(names)
    norms = [case for _, case in GOOD if case.op_type == "SyncBatchNormalization"]
    seen = {
        (str(case.inputs[0].dtype), case.attributes["virtual_batch_size"] > 0, case.attributes["training_mode"])
        for case in norms
        if case.inputs[0] is not None
    }
    assert len(seen) == 4 * 2 * 2
    places = {(c.inputs[0].ndim, c.attributes["axis"]) for c in norms if c.inputs[0] is not None}
    assert {(rank, axis) for rank in range(1, 7) for axis in range(-rank, rank)} <= places
    assert {case.op_type for _, case in GOOD} == set(SCHEMAS)


# --- replicas -----------------------------------------------------------------------------------------------------


def in_replicas(model: onnx.ModelProto, feeds: Sequence[Feeds]) -> tuple[list[Sequence[Array]], Meeting]:
    """Run bodies in several replicas: all but AllReduce's are written out, and the replicas meet there."""
    ours = [(DOMAIN, function.name) for function in model.functions if function.name != "AllReduce"]
    flat = onnx.inliner.inline_selected_functions(model, ours)
    del flat.functions[:]
    meeting = Meeting(len(feeds))

    def replica(rank: int) -> Sequence[Array]:
        ops = [op for op in sync_ops(meeting.seat(rank)) if op.__name__ == "AllReduce"]
        return ReferenceEvaluator(flat, new_ops=ops).run(None, feeds[rank])

    with ThreadPoolExecutor(len(feeds)) as pool:
        return list(pool.map(replica, range(len(feeds)))), meeting


def in_group(case: Case) -> onnx.ModelProto:
    """Return the model of a case whose node belongs to a group."""
    model = case.model(18)
    for attribute in model.graph.node[-1].attribute:
        if attribute.name == "group":
            attribute.s = b"world"
    return model


SHARES = [[(3, 2), (1, 2), (0, 2)], [(2, 3), (2, 1), (2, 2)]]
"""Batch and positions of each replica: unequal and empty ones."""


@pytest.mark.parametrize(("shares", "ghost"), [(SHARES[0], 0), (SHARES[1], 0), (SHARES[1], 1), (SHARES[1], 2)])
def test_bodies_share_statistics_through_all_reduce(shares: list[tuple[int, int]], ghost: int) -> None:
    """Sums are the sums of all replicas; dscale and dB stay local."""
    xs = [data((batch, 3, positions), 1, np.dtype(np.float64), mean=5.0 + batch) for batch, positions in shares]
    step = step_of(xs[0], 1, ghost=ghost, correction=1)
    resolved = layer((None, 3, None), 1, ghost=ghost, correction=1)  # type: ignore[arg-type]
    truth = forward(resolved, xs, step.state, training=True)
    case = normalization("", step)
    results, meeting = in_replicas(in_group(case), [{**case.feeds, "X": x} for x in xs])
    saved = (truth.mean, truth.inv_std) if ghost else (truth.mean[0], truth.inv_std[0])
    for found, y in zip(results, truth.ys, strict=True):
        wanted = [y, truth.state.running_mean, truth.state.running_var, *saved, truth.count]
        assert_close(found, wanted)
    assert [group for group, _ in meeting.messages] == ["world", "world"]

    dys = [np.cos(x) for x in xs]
    grads = backward(truth, xs, dys)
    given = {"saved_mean": saved[0], "saved_inv_std": saved[1], "count": np.array(truth.count)}
    case = gradient("", step)
    feeds = [{**case.feeds, **given, "dY": dy, "X": x} for x, dy in zip(xs, dys, strict=True)]
    results, meeting = in_replicas(in_group(case), feeds)
    for found, wanted in zip(results, zip(grads.dxs, grads.dscales, grads.dBs, strict=True), strict=True):
        assert_close(found, wanted)
    assert [group for group, _ in meeting.messages] == ["world"]


def assert_close(found: Sequence[Array], wanted: Sequence[Any]) -> None:
    """Compare sums of fewer than 64 terms below 100, squared at most: both sides lose 64 roundings of them."""
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2 * 64 * U * 100**2)


def test_in_inference_mode_nothing_is_exchanged() -> None:
    x = data((4, 3), 1, np.dtype(np.float32))
    case = normalization("", step_of(x, 1, training=False))
    results, meeting = in_replicas(in_group(case), [case.feeds])
    assert case.why_wrong(results[0]) == ""
    assert meeting.messages == []


# --- the functions themselves -------------------------------------------------------------------------------------


@pytest.mark.parametrize("op_type", SCHEMAS)
def test_a_body_has_the_slots_and_defaults_of_its_operator(op_type: str) -> None:
    function, schema = body(op_type, 17), SCHEMAS[op_type]
    assert function.identifier() == (DOMAIN, op_type, "")
    assert [value.name for value in function.inputs] == [slot.name for slot in schema.inputs]
    assert [value.name for value in function.outputs] == [slot.name for slot in schema.outputs]
    assert list(function.attributes) == list(ATTRIBUTES[op_type])
    for name, attribute in function.attributes.items():
        assert ir.serde.serialize_attribute(attribute) == schema.attributes[name].default_value
    assert function.opset_imports[""] == 17


@pytest.mark.parametrize("op_type", SCHEMAS)
def test_ops_in_bodies_mean_the_same_in_every_opset(op_type: str) -> None:
    """Inputs and attributes stay as they are; only types and defaults of what is not written may change."""
    nodes = list(ir.traversal.RecursiveGraphIterator(body(op_type).graph))
    for name in {node.op_type for node in nodes if node.domain == ""} - {"ReduceProd"}:
        old = onnx.defs.get_schema(name, MIN_BODY_OPSET)
        new = onnx.defs.get_schema(name)
        assert [slot.name for slot in new.inputs] == [slot.name for slot in old.inputs]
        written = {key for node in nodes if node.op_type == name for key in node.attributes}
        assert written <= set(old.attributes)
        for key in set(old.attributes) - written:
            assert new.attributes[key].default_value == old.attributes[key].default_value
    for node in nodes:
        if node.op_type == "ReduceProd":  # axes became an input at 18; over all axes it is the same
            assert (len(node.inputs), set(node.attributes)) == (1, {"keepdims"})


@pytest.mark.parametrize("old", [13, 14])
def test_there_is_no_body_before_opset_15(old: int) -> None:
    with pytest.raises(ValueError, match=f"needs opset {MIN_BODY_OPSET} .CastLike., and this is opset {old}"):
        body("AllReduce", old)


def test_there_is_no_body_of_what_is_no_operator() -> None:
    with pytest.raises(ValueError, match="no operator 'BatchNormalization'"):
        body("BatchNormalization")


@pytest.mark.parametrize(("op_type", "names"), [
    ("AllReduce", []),
    ("SyncBatchMoments", ["AllReduce", "AllReduce"]),
    ("SyncBatchNormalization", ["SyncBatchMoments"]),
    ("SyncBatchNormalizationGrad", ["AllReduce"]),
])  # fmt: skip
def test_callees_are_given_group_and_id_by_reference(op_type: str, names: list[str]) -> None:
    calls = [n for n in ir.traversal.RecursiveGraphIterator(body(op_type).graph) if n.domain == DOMAIN]
    assert [call.op_type for call in calls] == names
    for call in calls:
        assert list(call.attributes) == [name for name in call.attributes if name in ATTRIBUTES[call.op_type]]
        assert len(call.attributes) == len(ATTRIBUTES[call.op_type])
        assert {a.name: a.ref_attr_name for a in call.attributes.values() if a.is_ref()} == {
            name: name for name in call.attributes if name != "reduction"
        }


# --- add_bodies ---------------------------------------------------------------------------------------------------


def parsed(nodes: str, *, opset: int = 18, ir_version: int = 8, more: str = "", domain: int = 1) -> ir.Model:
    text = f"""<ir_version: {ir_version}, opset_import: ["": {opset}, "{DOMAIN}": {domain}, "own": 1]>
        g (float[2, 3] X, bool b) => (float[2, 3] Y) {{ {nodes} }} {more}"""
    return ir.from_proto(onnx.parser.parse_model(text))


def functions(model: ir.Model) -> list[str]:
    return [name for _, name, _ in model.functions]


BRANCHES = f"""Y = If (b) <then_branch = t () => (u) {{ u = {DOMAIN}.AllReduce (X) }},
                            else_branch = e () => (w) {{ w = Neg (X) }}>"""


@pytest.mark.parametrize(("nodes", "names"), [
    (f"Y = {DOMAIN}.AllReduce (X)", ["AllReduce"]),
    (f"m, v, c = {DOMAIN}.SyncBatchMoments (X) Y = CastLike (m, X)", ["AllReduce", "SyncBatchMoments"]),
    (BRANCHES, ["AllReduce"]),
    ("Y = Neg (X)", []),
])  # fmt: skip
def test_what_is_used_gets_a_body_callees_first(nodes: str, names: list[str]) -> None:
    model = parsed(nodes)
    assert add_bodies(model) == bool(names)
    assert functions(model) == names
    before = ir.to_proto(model)
    assert not add_bodies(model)
    assert ir.to_proto(model) == before


OWN = f"""<domain: "own", opset_import: ["": 18, "{DOMAIN}": 1]> F (X) => (Y) {{ Y = {DOMAIN}.AllReduce (X) }}"""


def test_own_functions_come_behind_the_bodies_that_they_call() -> None:
    model = parsed("Y = own.F (X)", more=OWN)
    assert add_bodies(model)
    assert functions(model) == ["AllReduce", "F"]
    for engine in ENGINES:
        assert (run(engine, ir.to_proto(model), {"X": np.ones((2, 3), np.float32), "b": np.array(True)})[0] == 1).all()


def test_a_body_of_another_version_is_replaced() -> None:
    model = parsed(f"Y = {DOMAIN}.AllReduce (X)")
    add_bodies(model)
    stale = ir.to_proto(model)
    stale.functions[0].node[0].op_type = "Neg"
    model = ir.from_proto(stale)
    assert add_bodies(model)
    assert next(iter(model.functions.values())).graph.node(0).op_type == "Identity"


def test_a_model_in_another_opset_gets_other_bodies() -> None:
    model = parsed(f"Y = {DOMAIN}.AllReduce (X)", opset=17)
    add_bodies(model)
    model.opset_imports[""] = 20
    assert add_bodies(model)
    assert next(iter(model.functions.values())).opset_imports[""] == 20


def test_the_model_imports_the_domain_and_may_have_functions() -> None:
    model = parsed(f"Y = {DOMAIN}.AllReduce (X)", ir_version=7)
    del model.opset_imports[DOMAIN]
    assert add_bodies(model)
    assert (model.ir_version, model.opset_imports[DOMAIN]) == (8, 1)
    newer = parsed(f"Y = {DOMAIN}.AllReduce (X)", ir_version=10)
    add_bodies(newer)
    assert newer.ir_version == 10


def test_opset_14_becomes_15_in_functions_too() -> None:
    register()
    model = parsed("Y = own.F (X)", opset=14, more=OWN.replace("18", "14"))
    assert add_bodies(model)
    assert model.opset_imports[""] == 15
    assert [function.opset_imports[""] for function in model.functions.values()] == [15, 15]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_own_functions_in_an_older_opset_stay_as_they_are() -> None:
    model = parsed("Y = own.F (X)", opset=18, more=OWN.replace("18", "13"))
    assert add_bodies(model)
    assert [function.opset_imports[""] for function in model.functions.values()] == [18, 13]
    for engine in ENGINES:
        run(engine, ir.to_proto(model), {"X": np.ones((2, 3), np.float32), "b": np.array(True)})


def test_the_other_name_of_the_default_domain() -> None:
    register()
    for old, new in ((14, 15), (18, 18)):
        proto = ir.to_proto(parsed(f"t = {DOMAIN}.AllReduce (X) Y = Neg (t)", opset=old))
        next(entry for entry in proto.opset_import if not entry.domain).domain = "ai.onnx"
        model = ir.from_proto(proto)
        add_bodies(model)
        assert {k: v for k, v in model.opset_imports.items() if k in ("", "ai.onnx")} == {"ai.onnx": new}
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        for engine in LEVELS:  # the evaluator does not know the name at all
            run(engine, ir.to_proto(model), {"X": np.ones((2, 3), np.float32), "b": np.array(True)})


def test_opset_15_takes_nothing_away_from_opset_14() -> None:
    """What add_bodies builds on: every op of opset 14 has the same slots in 15 and takes all its types."""
    for old in onnx.defs.get_all_schemas_with_history():
        if old.domain or old.since_version > MIN_OPSET or old.since_version != _since(old.name, MIN_OPSET):
            continue
        new = onnx.defs.get_schema(old.name, MIN_BODY_OPSET)
        assert new.deprecated == old.deprecated
        if new.since_version != old.since_version:
            assert old.name in ("BatchNormalization", "Pow", "Shape")
            for one, other in zip((*old.inputs, *old.outputs), (*new.inputs, *new.outputs), strict=True):
                assert (one.name, one.types <= other.types) == (other.name, True)


def _since(name: str, opset: int) -> int:
    return onnx.defs.get_schema(name, opset).since_version


@pytest.mark.parametrize("opset", [9, 13])
def test_an_older_opset_is_refused_and_nothing_is_changed(opset: int) -> None:
    model = parsed(f"Y = {DOMAIN}.AllReduce (X)", opset=opset)
    with pytest.raises(ModelError, match=f"need opset {MIN_OPSET} or newer, and the model has {opset}"):
        add_bodies(model)
    assert (model.opset_imports[""], functions(model)) == (opset, [])
    assert not model.graph.node(0).attributes


def test_another_version_of_the_domain_is_refused() -> None:
    with pytest.raises(ModelError, match="version 2 of 'bnpass', not 1"):
        add_bodies(parsed(f"Y = {DOMAIN}.AllReduce (X)", domain=2))


def test_what_a_node_leaves_out_is_written() -> None:
    """A node that ends before its last output makes ONNX Runtime fail at load, or crash (1.24 does)."""
    model = parsed(f'Y = {DOMAIN}.SyncBatchNormalization <group = "world"> (X, X, X, X, X)')
    assert add_bodies(model)
    node = model.graph.node(0)
    assert set(node.attributes) == set(ATTRIBUTES["SyncBatchNormalization"])
    assert node.attributes.get_string("group") == "world"
    assert (len(node.inputs), node.inputs[5]) == (6, None)
    assert [value.name for value in node.outputs] == ["Y", "", "", "", "", "Y/count"]
    assert len(ir.to_proto(model).graph.node[0].output) == 6


def test_the_name_of_an_output_is_a_new_one() -> None:
    branch = """Z = If (b) <then_branch = t () => (u) { "Y/count_1" = Neg (X) u = Neg (X) },
                            else_branch = e () => (w) { w = Neg (X) }>"""
    call = f"Y = {DOMAIN}.SyncBatchNormalization (X, X, X, X, X)"
    proto = ir.to_proto(parsed(f"""k = Neg (X) {branch.replace('"Y/count_1"', "k1")} {call}"""))
    proto.graph.node[0].output[0] = "Y/count"
    proto.graph.node[1].attribute[0].g.node[0].output[0] = "Y/count_1"
    model = ir.from_proto(proto)
    assert add_bodies(model)
    assert model.graph.node(2).outputs[-1].name == "Y/count_2"


def test_a_momentum_of_0_and_of_1() -> None:
    """The running statistics are the batch's, or stay what they were, to the last bit."""
    x = data((4, 3), 1, np.dtype(np.float32))
    case = normalization("", step_of(x, 1))
    for momentum in (0.0, 1.0):
        model = case.model(18)
        next(a for a in model.graph.node[0].attribute if a.name == "momentum").f = momentum
        for engine in ENGINES:
            found = run(engine, model, case.feeds)
            wanted = case.feeds["input_mean"] if momentum else x.astype(np.float64).mean(0).astype(np.float32)
            np.testing.assert_allclose(found[1], wanted, rtol=0 if momentum else 2**-23)


def test_onnx_infers_no_wrong_shape_from_a_body() -> None:
    """With data propagation it follows shapes that are computed; those of the statistics must not come out wrong."""
    given = ir.from_onnx_text("""<ir_version: 8, opset_import: ["": 18, "bnpass": 1]>
        g (float[N, 8, 4] x, float[8] s) => (float[N, 8, 4] y, double[8] mean) {
            y, m, v, mean, i, n = bnpass.SyncBatchNormalization <axis = 1, training_mode = 1> (x, s, s, s, s)
        }""")
    add_bodies(given)
    proto = ir.to_proto(given)
    onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
