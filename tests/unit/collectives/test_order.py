"""All replicas meet the collectives of a model in one order, and the checker knows when they might not."""

import time
from collections.abc import Sequence
from random import Random

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bnpass.collectives.order import OrderResult, check_order, order
from bnpass.collectives.tie import tie
from bnpass.errors import RefusalId, RefusedError, UsageError
from bnpass.ops.emit import Emit
from bnpass.verification import replicas
from bnpass.verification.replicas import ReplicaError, run_replicas
from tests.support.build import Array, ops
from tests.support.collectives import ids, parsed, random_model, shuffled, totally_ordered

AR = 'bnpass.AllReduce <group = "world">'

THREE = f"""g (double[2] a, double[2] b) => (double[2] c, double[2] d, double[2] e) {{
    c = {AR} (a)  d = {AR} (b)  f = Neg (c)  e = {AR} (f)
}}"""


def after(model: ir.Model, name: str) -> str | None:
    """Return what the collective that gives ``name`` comes after."""
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    node = next(n for n in nodes if name in [v.name for v in n.outputs])
    last = node.inputs[-1]
    return None if last is None else last.name


def refusal(model: ir.Model, uniform: Sequence[str] = ()) -> RefusedError:
    """Order a model in vain, and see that it was not changed."""
    before = ir.to_proto(model).SerializeToString()
    with pytest.raises(RefusedError) as caught:
        order(model, uniform)
    assert ir.to_proto(model).SerializeToString() == before
    return caught.value


def not_provable(model: ir.Model, node: str, uniform: Sequence[str] = ()) -> str:
    """Return why the order is refused because of a node."""
    error = refusal(model, uniform)
    assert (error.refusal.id, error.refusal.node) == (RefusalId.ORDER_NOT_PROVABLE, node)
    return error.refusal.reason


def rejected(model: ir.Model) -> str:
    """Return what the checker says of a model that is not in order."""
    with pytest.raises(RefusedError) as caught:
        check_order(model)
    assert caught.value.refusal.id is RefusalId.ORDER_NOT_PROVABLE
    return str(caught.value)


def node_of(model: ir.Model, name: str) -> ir.Node:
    """Return the node that gives a value, in whatever graph."""
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return next(n for n in nodes if name in [v.name for v in n.outputs])


def test_every_collective_gets_an_id_and_waits_for_the_one_before() -> None:
    model = parsed(THREE)
    assert order(model) == OrderResult(collectives=3, linked=2)
    assert ids(model) == [0, 1, 2]
    assert [after(model, name) for name in "cde"] == ["a", "c", "d"]


def test_a_model_without_collectives_is_left_alone() -> None:
    model = parsed('g (double[2] a) => (double[2] b) { b = bnpass.AllReduce <group = ""> (a) }')
    assert order(model) == OrderResult(0, 0)
    assert ids(model) == []


def test_doing_it_twice_changes_nothing_more() -> None:
    model = parsed(THREE)
    order(model)
    before = ir.to_proto(model).SerializeToString()
    assert order(model) == OrderResult(collectives=3, linked=0)
    assert ir.to_proto(model).SerializeToString() == before


def test_an_output_that_nobody_waits_for_stays_left_out() -> None:
    model = parsed(WHOLE)
    model.graph.remove(model.graph[3])
    before = [v.name for v in model.graph[2].outputs]
    order(model)
    assert [v.name for v in model.graph[2].outputs] == before


def test_what_is_in_order_anyway_gets_no_further_edge() -> None:
    model = parsed(f"g (double[2] a) => (double[2] d) {{ b = {AR} (a) c = Neg (b) d = {AR} (c) }}")
    assert order(model) == OrderResult(collectives=2, linked=0)
    assert ids(model) == [0, 1]


def test_a_dependency_on_a_shape_alone_is_none() -> None:
    # Where the shape is known, a runtime computes it before it runs anything.
    model = parsed(
        f"""g (double[2] a, double[4] x) => (double[2] b, double[2] d) {{
        b = {AR} (a)  s = Shape (b)  c = Slice (x, z, s)  d = {AR} (c)
    }}""".replace("{", "<int64[1] z = {0}> {", 1)
    )
    assert order(model).linked == 1
    assert after(model, "d") == "b"


def test_the_nodes_are_brought_into_order_first() -> None:
    model = parsed(THREE)
    nodes = list(model.graph)
    model.graph.remove(nodes)
    model.graph.extend(reversed(nodes))
    assert order(model) == OrderResult(collectives=3, linked=1)
    assert ids(model) == [0, 1, 2]
    assert [v.name for node in model.graph for v in node.outputs] == ["d", "c", "f", "e"]


def test_different_groups_follow_one_order() -> None:
    model = parsed(THREE.replace('d = bnpass.AllReduce <group = "world">', 'd = bnpass.AllReduce <group = "other">'))
    order(model)
    assert (ids(model), after(model, "d"), after(model, "e")) == ([0, 1, 2], "c", "d")


WHOLE = """g (float[2, 3] x, float[3] s, float[3] b, float[3] m, float[3] v, float[2, 3] dy)
    => (float[2, 3] y, double[3] mean, float[2, 3] dx) {
    y, "", "", sm, si, "" = bnpass.SyncBatchNormalization <axis = 1, training_mode = 1, group = "world">
        (x, s, b, m, v, "")
    mean, "", "" = bnpass.SyncBatchMoments <axis = 1, group = "world"> (dy)
    dx, "", "" = bnpass.SyncBatchNormalizationGrad <axis = 1, group = "world"> (dy, x, s, sm, si, c, "")
    z = bnpass.AllReduce <group = "world"> (x)
}""".replace("{\n", "<double c = {2}> {\n", 1)


def test_each_operator_has_an_output_to_wait_for() -> None:
    model = parsed(WHOLE)
    assert order(model) == OrderResult(collectives=4, linked=3)
    outputs = [[v.name for v in node.outputs] for node in model.graph]
    named = [outputs[0][5], outputs[1][2], outputs[2][2]]
    assert named == ["order/1/result", "order/2/result", "order/3/result"]
    assert [list(node.inputs)[-1].name for node in list(model.graph)[1:]] == named
    assert ids(model) == [0, 1, 2, 3]
    check_order(ir.from_proto(ir.to_proto(model)))


def test_slots_that_are_not_written_are_added() -> None:
    model = parsed(WHOLE.replace(', "" =', " =").replace(', "")', ")").replace('mean, ""', "mean"))
    order(model)
    assert [len(node.outputs) for node in model.graph] == [6, 3, 3, 1]
    assert [len(node.inputs) for node in model.graph] == [5, 2, 7, 2]
    assert model.graph[1].outputs[1].name == ""


def test_inference_mode_is_no_collective() -> None:
    model = parsed(WHOLE.replace("training_mode = 1", "training_mode = 0"))
    assert order(model).collectives == 3


def test_what_the_caller_put_into_after_is_kept() -> None:
    model = parsed(f"""g (double[2] a, double[2] b) => (double[2] c, double[2] d, double[2] e) {{
        e = Exp (b)  c = {AR} (a)  d = {AR} (b, e)
    }}""")
    assert order(model).linked == 1
    tied = node_of(model, "d").inputs[1]
    assert tied is not None
    reads = set()
    values = [tied]
    while values:
        reads.add(values[-1].name)
        node = values.pop().producer()
        values += [v for v in node.inputs if v is not None] if node is not None else []
    assert {"e", "c"} <= reads
    feeds = [{"a": np.array([1.0, 2.0]), "b": np.array([np.nan, 3.0])}] * 2
    assert run_replicas(model, feeds)[0]["d"][1] == 6
    assert order(model).linked == 0


def test_an_after_that_says_nothing_gives_way() -> None:
    model = parsed(f"g (double[2] a, double[2] b) => (double[2] c, double[2] d) {{ c = {AR} (a) d = {AR} (b, a) }}")
    order(model)
    assert after(model, "d") == "c"
    assert len(model.graph) == 2


FOREIGN = """g (double[2] a, double[2] b) => (double[2] c, double[2] d) {
    c = com.microsoft.AllReduce (a)  d = com.microsoft.AllReduce (b)
}"""


def test_collectives_without_after_are_tied_by_their_input() -> None:
    model = parsed(FOREIGN)
    assert order(model) == OrderResult(collectives=2, linked=1)
    assert ids(model) == []  # there is no such attribute
    a = [np.array([np.inf, np.nan]), np.array([1.0, 2.0])]
    b = [np.array([-0.0, np.inf]), np.array([-0.0, 3.0])]
    results = run_replicas(model, [{"a": x, "b": y} for x, y in zip(a, b, strict=True)])
    assert results[0]["d"].tobytes() == np.array([-0.0, np.inf]).tobytes()
    order(model)
    check_order(model)


def test_the_checker_wants_them_tied() -> None:
    assert "wait for AllReduce 'c'" in rejected(parsed(FOREIGN))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64, bool])
@pytest.mark.parametrize("shape", [(), (3,), (0,), (2, 0, 3), (1, 2)])
def test_a_tie_changes_no_bit(dtype: type, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    awaited = np.array([np.nan, np.inf, -np.inf, 0], np.float64)
    value = rng.integers(0, 2, (*shape, 8)).astype(np.uint8).view(np.uint8)
    value = np.resize(value.astype(dtype), shape)
    if value.dtype.kind == "f" and value.size:
        value.flat[0] = -0.0
        value.flat[-1] = np.nan
    for other in (awaited, awaited[:0], np.array(1, np.int64), awaited.astype(np.float16)):
        inputs = [ir.val(n, ir.DataType.from_numpy(x.dtype), x.shape) for n, x in (("v", value), ("w", other))]
        op = Emit("tie")
        result = tie(op, *inputs)
        graph = ir.Graph(inputs, [result], nodes=op.nodes, opset_imports={"": 14}, name="g")
        session = ort.InferenceSession(ir.to_proto(ir.Model(graph, ir_version=8)).SerializeToString())
        found = session.run(None, {"v": value, "w": other})[0]
        assert (found.dtype, found.shape, found.tobytes()) == (value.dtype, value.shape, value.tobytes())


# The checker on models that somebody broke.


def ordered(text: str = THREE) -> ir.Model:
    model = parsed(text)
    order(model)
    return model


def test_a_missing_edge_is_found() -> None:
    model = ordered()
    node_of(model, "d").replace_input_with(1, None)
    assert "'d'" in rejected(model)
    assert "either could come first" in rejected(model)


def test_an_edge_to_an_earlier_one_is_not_enough() -> None:
    model = ordered()
    node_of(model, "e").replace_input_with(1, node_of(model, "c").outputs[0])
    assert "'e' wait for AllReduce 'd'" in rejected(model)


def test_exchanged_ids_are_found() -> None:
    model = ordered()
    node_of(model, "c").attributes.add(ir.AttrInt64("collective_id", 1))
    node_of(model, "d").attributes.add(ir.AttrInt64("collective_id", 0))
    assert "has id 0, after a collective with id 1" in rejected(model)


def test_an_id_that_comes_twice_is_found() -> None:
    model = ordered()
    node_of(model, "e").attributes.add(ir.AttrInt64("collective_id", 1))
    assert "has id 1, after a collective with id 1" in rejected(model)


def test_ids_that_are_left_out_are_0() -> None:
    model = ordered()
    del node_of(model, "d").attributes["collective_id"]
    assert "has id 0" in rejected(model)


def test_a_model_that_nobody_put_in_order_is_found() -> None:
    rejected(parsed(THREE))


def test_gaps_between_ids_are_allowed() -> None:
    model = ordered()
    node_of(model, "e").attributes.add(ir.AttrInt64("collective_id", 7))
    check_order(model)


@settings(max_examples=80, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False), st.integers(0, 2))
def test_the_checker_finds_the_edges_that_matter(random: Random, removed: int) -> None:
    model = ir.from_proto(random_model(random, nodes=10))
    order(model)
    ordered = [node for node in model.graph if node.op_type == "AllReduce" and len(node.inputs) == 2]
    for node in random.sample(ordered, min(removed, len(ordered))):
        node.replace_input_with(1, None)
    if totally_ordered(ir.to_proto(model)):
        check_order(model)
    else:
        assert "either could come first" in rejected(model)


# Branches and loops.

IF = f"""g (double[2] a, double[2, N] wide, bool[1] yes) => (double[2] c, double[2] d, double[2] h)
    <bool on = {{1}}, double zero = {{0}}, int64 none = {{0}}> {{
    c = {AR} (a)
    CONDITION
    d = If (which) <
        then_branch = t () => (double[2] u) {{ p = {AR} (a) q = Neg (p) u = {AR} (q) }},
        else_branch = e () => (double[2] w) {{ n = Neg (a) w = {AR} (n) }}>
    h = {AR} (a)
}}
<opset_import: ["": 17], domain: "own"> Twice (x) => (z) {{ z = Add (x, x) }}
<opset_import: ["": 17], domain: "own"> Noise (x) => (z) {{ r = RandomNormalLike (x) z = Add (x, r) }}
"""
CHOICE = """w = If (BY) <
    then_branch = tt () => (bool z1) { z1 = Identity (GIVES) }, else_branch = ee () => (bool z2) { z2 = Not (on) }>
    which = Identity (w)"""
TIMES = """some = Size (wide)
    w = Loop (COUNT, "", on) <body = b (int64 i, bool go, bool s) => (bool ok, bool t) {
        ok = Identity (go) t = Not (s) }>
    which = Identity (w)"""
OVER = """w, z = Scan <num_scan_inputs = 1, scan_input_axes = [AXIS],
        body = b (bool s, double[2] r) => (bool t, double[2] u) { t = Not (s)  u = Identity (r) }> (on, wide)
    which = Identity (w)"""
NORMAL = """y, rm, rv, sm, sd, count = bnpass.SyncBatchNormalization <axis = 0, training_mode = 1, group = "world">
        (a, c, c, MEAN, c)
    """
SUM = " m = ReduceSum <keepdims = 0> (s) which = Greater (m, zero)"


def branch(condition: str) -> ir.Model:
    return parsed(IF.replace("CONDITION", condition))


@pytest.mark.parametrize(
    "condition",
    [
        "which = Identity (on)",
        "which = Constant <value = bool {0}> ()",
        "s = Identity (c)" + SUM,
        "s = own.Twice (c)" + SUM,
        "s = Dropout (c)" + SUM,
        "s = com.microsoft.AllReduce (a)" + SUM,
        'm, "", s = bnpass.SyncBatchMoments <axis = 0, group = "world"> (a) which = Greater (s, zero)',
        'm, "", s = bnpass.SyncBatchMoments <axis = 0> (c) which = Greater (s, zero)',
        "s = Size (a) which = Greater (s, none)",
        CHOICE.replace("BY", "on").replace("GIVES", "on"),
        TIMES.replace("COUNT", "none"),
        OVER.replace("AXIS", "0"),
        NORMAL.replace("MEAN", "a") + "which = Greater (count, zero)",
        NORMAL.replace("MEAN", "c") + "s = Identity (rm)" + SUM,
        NORMAL.replace("MEAN", "c") + "s = Identity (sd)" + SUM,
        'dx, dg, s = bnpass.SyncBatchNormalizationGrad <axis = 0, group = "world"> (c, c, c, c, c, zero, a)' + SUM,
    ],
)
def test_collectives_may_be_in_branches_that_all_take_alike(condition: str) -> None:
    model = branch(condition)
    order(model)
    assert sorted(set(ids(model))) == ids(model)
    assert after(model, "h") == "d"


@pytest.mark.parametrize(
    "condition",
    [
        "which = Identity (yes)",
        "s = Identity (a)" + SUM,
        "s = Add (a, c)" + SUM,
        "s = RandomNormalLike (c)" + SUM,
        "s = RandomNormal <shape = [2], dtype = 11> ()" + SUM,
        'x = Identity (c) s = Dropout (x, "", on)' + SUM,
        "s = own.Noise (c)" + SUM,
        "s = own.Rank (c)" + SUM,
        "s = com.microsoft.AllToAll (c)" + SUM,
        'm, "", s = bnpass.SyncBatchMoments <axis = 0> (a) which = Greater (s, zero)',
        "x = NonZero (a) s = Size (x) which = Greater (s, none)",
        CHOICE.replace("BY", "yes").replace("GIVES", "on"),
        CHOICE.replace("BY", "on").replace("GIVES", "yes"),
        TIMES.replace("COUNT", "some"),
        OVER.replace("AXIS", "1"),
        NORMAL.replace("MEAN", "c") + "s = Identity (y)" + SUM,
        NORMAL.replace("MEAN", "a") + "s = Identity (rm)" + SUM,
        NORMAL.replace("MEAN", "a") + "s = Identity (sd)" + SUM,
        's, dg, db = bnpass.SyncBatchNormalizationGrad <axis = 0, group = "world"> (a, a, c, c, c, zero)' + SUM,
        'dx, dg, s = bnpass.SyncBatchNormalizationGrad <axis = 0, group = "world"> (a, a, c, c, c, zero)' + SUM,
    ],
)
def test_but_not_in_those_that_could_differ(condition: str) -> None:
    reason = not_provable(branch(condition), "d")
    assert "the condition of If 'd' decides which collectives of group 'world' run" in reason


def test_each_branch_has_ids_of_its_own() -> None:
    model = branch("which = Identity (on)")
    assert order(model) == OrderResult(collectives=5, linked=3)
    assert [node_of(model, name).attributes["collective_id"].value for name in "cpuwh"] == [0, 1, 2, 3, 4]
    # The first in each branch waits for what was before the If, and who comes next for the If.
    assert [after(model, name) for name in "pwh"] == ["c", "c", "d"]
    feeds = [{"a": np.ones(2) * i, "wide": np.ones((2, 1)), "yes": np.array([True])} for i in (1, 2)]
    assert run_replicas(model, feeds)[0]["d"].tolist() == [-6, -6]


def test_an_if_that_waits_anyway_needs_no_edge_inside() -> None:
    model = branch("s = Identity (c)" + SUM)
    assert order(model).linked == 1
    assert after(model, "p") == "a"


def test_the_caller_may_vouch_for_an_input() -> None:
    model = branch("which = Identity (yes)")
    order(model, ["yes"])
    check_order(model, ["yes"])
    assert "could differ" in rejected(model)
    with pytest.raises(UsageError, match="no input 'on'"):
        check_order(model, ["on"])
    with pytest.raises(UsageError, match="no input 'x'"):
        order(parsed(THREE), ["x"])


def test_an_initializer_that_can_be_overridden_is_an_input() -> None:
    for ir_version, overridable in ((8, True), (3, False)):
        model = parsed(
            IF.replace("CONDITION", "which = Identity (on)").split("<opset_import")[0], ir_version=ir_version
        )
        model.graph.inputs.append(model.graph.initializers["on"])
        if overridable:
            not_provable(model, "d")
            order(model, ["on"])
        else:
            order(model)


def test_what_one_group_agrees_on_others_may_not() -> None:
    local = branch("s = Identity (c)" + SUM)
    assert order(local).collectives == 5
    model = parsed(IF.replace('"world"', '"g"').replace("CONDITION", "s = Identity (c)" + SUM))
    order(model)
    text = IF.replace('"world"', '"g"', 1).replace("CONDITION", "s = Identity (c)" + SUM)
    assert "collectives of group 'world'" in not_provable(parsed(text), "d")
    wider = IF.replace('"world"', '"g"').replace('"g"', '"world"', 1).replace("CONDITION", "s = Identity (c)" + SUM)
    order(parsed(wider))


LOOP = f"""g (double[2] a, int64 count) => (double[2] c, double[2] y, double[P, 2] z, double[2] h)
    <int64 three = {{3}}, bool yes = {{1}}, double zero = {{0}}> {{
    c = {AR} (a)
    y, z = Loop (COUNT, GO, c) <body = b (int64 i, bool go, double[2] s) => (bool on, double[2] STATE, double[2] u) {{
        t = {AR} (s)  n = Neg (a)  u = {AR} (n)
        CONDITION
    }}>
    h = {AR} (a)
}}"""
ON = "on = Identity (go)"
WHILE = " m = ReduceSum <keepdims = 0> (r) on = Greater (m, zero)"


def loop(count: str = "three", go: str = '""', state: str = "t", condition: str = ON) -> ir.Model:
    text = LOOP.replace("COUNT", count).replace("GO", go).replace("STATE", state)
    return parsed(text.replace("CONDITION", condition))


@pytest.mark.parametrize(
    ("count", "go", "condition"),
    [
        ("three", '""', ON),
        ("three", "yes", ON),
        ('""', "yes", "r = Identity (t)" + WHILE),
        ("three", '""', "r = Identity (s)" + WHILE),
        ("three", '""', "r = Cast <to = 11> (i)" + WHILE),
    ],
)
def test_collectives_may_be_in_loops_that_all_run_as_often(count: str, go: str, condition: str) -> None:
    model = loop(count, go, condition=condition)
    order(model)
    assert ids(model) == [0, 1, 2, 3]
    assert [after(model, name) for name in "uh"] == ["t", "y"]


@pytest.mark.parametrize(
    ("count", "state", "condition"),
    [
        ("count", "t", ON),
        ("three", "t", "r = Identity (n)" + WHILE),
        # The state is the same for all in the first iteration, and not in the second.
        ("three", "n", "r = Identity (s)" + WHILE),
    ],
)
def test_but_not_in_those_that_some_could_run_more_often(count: str, state: str, condition: str) -> None:
    assert "the number of iterations of Loop 'y'" in not_provable(loop(count, state=state, condition=condition), "y")


def test_a_loop_repeats_its_ids() -> None:
    model = loop()
    order(model)
    results = run_replicas(model, [{"a": np.array([1.0, 2.0]) * i, "count": np.array(0)} for i in (1, 2)])
    assert results[0]["y"].tolist() == [24, 48]
    assert results[0]["z"].tolist() == [[-3, -6]] * 3


def test_an_outer_branch_decides_for_inner_ones() -> None:
    text = """g (double[2] a, bool yes) => (double[2] d) <int64 two = {2}> {
        d = If (yes) <
            then_branch = t () => (double[2] u) {
                u = Loop (two, "", a) <body = b (int64 i, bool go, double[2] s) => (bool on, double[2] v) {
                    on = Identity (go)  v = bnpass.AllReduce <group = "world"> (s)
                }>
            },
            else_branch = e () => (double[2] w) { w = Neg (a) }>
    }"""
    not_provable(parsed(text), "d")
    model = parsed(text)
    assert order(model, ["yes"]) == OrderResult(1, 0)


SCAN = f"""g (double[2] a, double[LENGTH, 2] x) => (double[2] y, double[P, 2] z) {{
    c = {AR} (a)
    y, z = Scan <num_scan_inputs = 1, body = b (double[2] s, double[2] r) => (double[2] t, double[2] u) {{
        v = Add (s, r)  t = {AR} (v)  u = {AR} (r)
    }}> (a, x)
}}"""


def test_the_length_of_a_scan_has_to_be_the_same_everywhere() -> None:
    model = parsed(SCAN.replace("LENGTH", "3"))
    assert order(model) == OrderResult(collectives=3, linked=2)
    feeds = [{"a": np.ones(2), "x": np.ones((3, 2)) * i} for i in (1, 2)]
    assert run_replicas(model, feeds)[1]["y"].tolist() == [29, 29]
    assert "the length that Scan 'y' runs over" in not_provable(parsed(SCAN.replace("LENGTH", "N")), "y")
    order(parsed(SCAN.replace("LENGTH", "N")), ["x"])
    summed = SCAN.replace("LENGTH", "N").replace("(a, x)", "(a, w)").replace("c = ", f"w = {AR} (x) c = ")
    order(parsed(summed))


def test_the_axis_that_a_scan_runs_over_counts() -> None:
    text = SCAN.replace("[LENGTH, 2]", "[3, N]").replace(
        "num_scan_inputs = 1", "num_scan_inputs = 1, scan_input_axes = [AXIS]"
    )
    order(parsed(text.replace("AXIS", "0")))
    not_provable(parsed(text.replace("AXIS", "1")), "y")


def test_a_missing_edge_in_a_body_is_found() -> None:
    model = loop()
    order(model)
    node_of(model, "u").replace_input_with(1, None)
    assert "'u' wait for AllReduce 't'" in rejected(model)


def test_a_body_that_does_not_wait_for_what_is_before_it_is_found() -> None:
    model = branch("which = Identity (on)")
    order(model)
    for name in "pw":
        node_of(model, name).replace_input_with(1, None)
    assert "If 'd' wait for AllReduce 'c'" in rejected(model)


@pytest.mark.parametrize("name", "wh")
def test_an_id_of_a_branch_is_found_in_the_other_one_and_behind_the_if(name: str) -> None:
    model = branch("which = Identity (on)")
    order(model)
    node_of(model, name).attributes.add(ir.AttrInt64("collective_id", 1))
    assert "has id 1, after a collective with id" in rejected(model)


def test_subgraphs_of_other_operators_are_refused() -> None:
    model = parsed(f"""g (seq(double[2]) a) => (seq(double[2]) y) {{
        y = SequenceMap <body = b (double[2] s) => (double[2] t) {{ t = {AR} (s) }}> (a)
    }}""")
    assert "it is not known when SequenceMap 'y' runs its subgraphs" in not_provable(model, "y")


SEQUENCES = f"""g (double[2] a, double[2] x) => (seq(double[2]) y, double[2] h) <bool on = {{1}}> {{
    y = If (on) <
        then_branch = t () => (seq(double[2]) u) {{ b = {AR} (a)  u = SequenceConstruct (b) }},
        else_branch = e () => (seq(double[2]) w) {{ w = SequenceConstruct (a) }}>
    NEXT
}}"""


def test_a_step_whose_outputs_nobody_could_wait_for_is_refused() -> None:
    text = SEQUENCES.replace("NEXT", f"h = {AR} (x)")
    assert "no output of If 'y' is a tensor" in not_provable(parsed(text), "y")
    order(parsed(SEQUENCES.replace("NEXT", "h = Neg (x)")))
    waits = f"one = Constant <value_int = 0> () s = SequenceAt (y, one) h = {AR} (s)"
    order(parsed(SEQUENCES.replace("NEXT", waits)))


def test_the_next_waits_for_an_output_that_is_a_tensor() -> None:
    model = parsed(f"""g (double[2] a) => (double[2] h) <int64 two = {{2}}> {{
        q = SequenceConstruct (a)
        r, y = Loop (two, "", q, a) <
            body = b (int64 i, bool go, seq(double[2]) p, double[2] s) => (bool on, seq(double[2]) u, double[2] t) {{
                on = Identity (go)  u = Identity (p)  t = {AR} (s)
            }}>
        h = {AR} (a)
    }}""")
    order(model)
    assert after(model, "h") == "y"


def test_an_output_of_a_branch_that_was_left_out_gets_a_name() -> None:
    model = branch("which = Identity (on)")
    node = node_of(model, "d")
    model.graph.outputs.pop(1)
    node.outputs[0].name = ""
    order(model)
    assert after(model, "h") == "order/3/result"


# Functions.


def test_a_function_with_collectives_is_to_be_inlined_first() -> None:
    functions = """
        <opset_import: ["": 17, "own": 1], domain: "own"> F (x) => (y) { y = own.G (x) }
        <opset_import: ["": 17, "bnpass": 1], domain: "own"> G <group> (x) => (y) {
            y = bnpass.AllReduce <group: string = @group> (x) }"""
    text = "g (double[2] a) => (double[2] c) { %s }"
    assert "the function that F 'c' calls has collectives" in not_provable(
        parsed(text % "c = own.F (a)" + functions), "c"
    )
    order(parsed(text % f"c = {AR} (a)" + functions))


def test_the_bodies_of_our_operators_are_no_such_functions() -> None:
    body = """<opset_import: ["": 17, "bnpass": 1], domain: "bnpass">
        SyncBatchMoments <axis, group, collective_id> (X, after) => (mean, var, count) {
            mean = bnpass.AllReduce <group: string = @group, collective_id: int = @collective_id> (X, after)
            var = Identity (mean)  count = Identity (mean) }"""
    model = parsed(
        """g (double[2] a) => (double[2] c, double[2] d) {
        c, "", "" = bnpass.SyncBatchMoments <axis = 0, group = "world", collective_id = 0> (a, "")
        d, "", "" = bnpass.SyncBatchMoments <axis = 0, group = "world", collective_id = 0> (a, "")
    }"""
        + body
    )
    order(model)
    assert ids(model)[:2] == [0, 1]
    assert run_replicas(model, [{"a": np.ones(2)}] * 2)[0]["d"].tolist() == [2, 2]


def test_references_are_refused_outside_of_functions() -> None:
    model = parsed(THREE)
    model.graph[0].attributes.add(ir.RefAttr("group", "group", ir.AttributeType.STRING))
    assert refusal(model).refusal.id is RefusalId.BAD_ATTRIBUTE


@pytest.mark.parametrize(
    ("node", "opset", "expected"),
    [
        (f"c = {AR} (a)", 13, RefusalId.OPSET_NOT_UPGRADABLE),
        ('c = bnpass.AllReduce <group = "world", collective_id = "x"> (a)', 17, RefusalId.BAD_ATTRIBUTE),
        ("c = com.microsoft.AllReduce ()", 17, RefusalId.BAD_ATTRIBUTE),
    ],
)
def test_what_cannot_be_read_is_refused(node: str, opset: int, expected: RefusalId) -> None:
    with pytest.raises(RefusedError) as caught:
        check_order(parsed(f"g (double[2] a) => (double[2] c) {{ {node} }}", opset=opset))
    assert caught.value.refusal.id is expected


# The point of it.


def test_replicas_that_run_the_nodes_in_different_orders_meet_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = " ".join(f"y{i} = {AR} (x{i}) x{i + 1} = Add (x{i}, a)" for i in range(8))
    text = f"g (double[2] a, double[2] x0) => (double[2] y0, double[2] y7) {{ {lines} }}"
    feeds = [{"a": np.array([1.0, 2.0]) * i, "x0": np.array([3.0, i])} for i in range(3)]
    expected = run_replicas(parsed(text), feeds)
    evaluate = replicas._evaluate
    monkeypatch.setattr(replicas, "_evaluate", lambda p, f, member: evaluate(shuffled(p, member.rank), f, member))

    def agrees(results: Sequence[dict[str, Array]]) -> bool:
        return all(np.array_equal(a[k], b[k]) for a, b in zip(results, expected, strict=True) for k in a)

    assert not agrees(run_replicas(parsed(text), feeds))  # what belongs together is not added up
    model = parsed(text)
    order(model)
    assert agrees(run_replicas(model, feeds))
    for node in model.graph:
        if node.op_type == "AllReduce":
            node.resize_inputs(1)
    with pytest.raises(ReplicaError, match="disagree"):
        run_replicas(model, feeds)


def test_a_thousand_collectives_take_no_time() -> None:
    lines = " ".join(
        f"y{i} = {AR} (x{i}) x{i + 1} = Add (x{i}, a) z{i} = Neg (y{i}) w{i} = Abs (z{i})" for i in range(1000)
    )
    model = parsed(f"g (double[2] a, double[2] x0) => (double[2] w0) {{ {lines} }}")
    begun = time.perf_counter()
    assert order(model) == OrderResult(1000, 999)
    assert time.perf_counter() - begun < 5
    assert ops(model).count("AllReduce") == 1000
