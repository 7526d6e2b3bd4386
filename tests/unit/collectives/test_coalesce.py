"""Collectives of one level share a message; the numbers stay the same, bit by bit."""

from collections.abc import Mapping, Sequence
from random import Random

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bnpass.collectives import nodes as collectives
from bnpass.collectives.coalesce import CoalesceResult, coalesce
from bnpass.collectives.order import check_order, order
from bnpass.errors import RefusalId, RefusedError
from bnpass.verification import replicas
from bnpass.verification.replicas import run_replicas
from tests.support.build import Array, ops
from tests.support.collectives import feeds, ids, parsed, random_model, shuffled

AR = 'bnpass.AllReduce <group = "world">'


def same(new: Sequence[Mapping[str, Array]], old: Sequence[Mapping[str, Array]]) -> bool:
    return all(
        list(a) == list(b) and all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)
        for a, b in zip(new, old, strict=True)
    )


def coalesced(model: ir.Model, inputs: Sequence[Mapping[str, Array]]) -> CoalesceResult:
    """Coalesce a model and hold it to what it gave before, in replicas."""
    before = run_replicas(model, inputs)
    result = coalesce(model)
    onnx.checker.check_model(ir.to_proto(model))
    assert same(run_replicas(model, inputs), before)
    return result


def doubles(replicas: int = 3, **shapes: Sequence[int]) -> list[dict[str, Array]]:
    rng = np.random.default_rng(0)
    return [{name: rng.standard_normal(tuple(s)) for name, s in shapes.items()} for _ in range(replicas)]


def test_two_vectors_share_a_message_and_outputs_keep_their_names() -> None:
    model = parsed(f"""g (double[2] a, double[3] b) => (double[2] c, double[3] f) {{
        c = {AR} (a)  d = {AR} (b)  f = Neg (d)
    }}""")
    assert coalesced(model, doubles(a=[2], b=[3])) == CoalesceResult(before=2, after=1, depth=1)
    assert ops(model) == ["Concat", "AllReduce", "Constant", "Split", "Neg"]
    assert [v.name for v in model.graph.outputs] == ["c", "f"]
    node = model.graph[1]
    assert {k: a.value for k, a in node.attributes.items()} == {
        "group": "world",
        "reduction": "sum",
        "collective_id": 0,
    }
    assert len(node.inputs) == 2
    assert node.outputs[0].shape == [5]


def test_a_single_collective_is_left_as_it_is() -> None:
    model = parsed(f"g (double[2] a) => (double[2] c) {{ c = {AR} (a) }}")
    before = ir.to_proto(model).SerializeToString()
    assert coalesce(model) == CoalesceResult(1, 1, 1)
    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize(
    ("second", "type_"),
    [
        ('bnpass.AllReduce <group = "other"> (b)', "double"),
        ('bnpass.AllReduce <group = "world", reduction = "max"> (b)', "double"),
        ('bnpass.AllReduce <group = "world"> (b)', "float"),
        ("com.microsoft.AllReduce (b)", "double"),
        ('bnpass.AllReduce <group = "world"> (b, x)', "double"),
        ('bnpass.AllReduce <group = ""> (b)', "double"),
        ('bnpass.AllReduce <group = "world", own = 1> (b)', "double"),
    ],
)
def test_what_differs_is_not_merged(second: str, type_: str) -> None:
    text = f"g (double[2] a, {type_}[2] b, double[2] x) => (double[2] c, {type_}[2] d) {{ c = {AR} (a) d = %s }}"
    model = parsed(text % second)
    result = coalesce(model)
    assert result.after == result.before
    assert ops(model) == ["AllReduce", "AllReduce"]
    alike = parsed((text % f"{AR} (b)").replace("float", "double"))
    assert coalesce(alike).after == 1


def test_an_element_type_that_nobody_knows_is_not_merged() -> None:
    model = parsed(
        f"g (double[2] a) => (double[2] c, double[2] d) {{ b = own.Op (a) c = {AR} (b) e = {AR} (b) d = own.Op (e) }}"
    )
    for node in model.graph:
        for value in node.outputs:
            value.type = None
    assert coalesce(model).after == 2


def test_what_comes_out_is_of_the_type_that_went_in() -> None:
    model = parsed(f"""g (float[2] a, float[2] b) => (double[2] c, double[2] d) {{
        p = Cast <to = 11> (a)  q = {AR} (p)  c = {AR} (q)
        r = Cast <to = 11> (b)  s = {AR} (r)  d = {AR} (s)
    }}""")
    for value in model.graph.outputs:
        value.type = None
    assert coalesce(model) == CoalesceResult(before=4, after=2, depth=2)


def test_one_that_waits_for_the_other_is_not_merged() -> None:
    model = parsed(f"""g (double[2] a) => (double[2] d) {{ b = {AR} (a) c = Neg (b) d = {AR} (c) }}""")
    assert coalesced(model, doubles(a=[2])) == CoalesceResult(before=2, after=2, depth=2)


def test_pairs_that_do_not_depend_on_each_other_but_would_wait_for_each_other() -> None:
    # A -> D and C -> B: {A, B} and {C, D} are independent pairs, and merged they are a cycle.
    model = parsed(f"""g (double[2] a, double[2] c) => (double[2] B, double[2] D) {{
        A = {AR} (a)  C = {AR} (c)
        b = Neg (C)   d = Neg (A)
        B = {AR} (b)  D = {AR} (d)
    }}""")
    assert coalesced(model, doubles(a=[2], c=[2])) == CoalesceResult(before=4, after=2, depth=2)


def test_after_counts_as_a_dependency() -> None:
    model = parsed(f"""g (double[2] a, double[2] b) => (double[2] c, double[2] d) {{
        c = {AR} (a)  d = {AR} (b, c)
    }}""")
    assert coalesced(model, doubles(a=[2], b=[2])) == CoalesceResult(before=2, after=2, depth=2)


def test_after_that_is_the_same_is_kept() -> None:
    model = parsed(f"""g (double[2] a, double[2] b) => (double[2] c, double[2] d) {{
        x = Neg (a)  c = {AR} (a, x)  d = {AR} (b, x)
    }}""")
    assert coalesced(model, doubles(a=[2], b=[2])).after == 1
    merged = next(node for node in model.graph if node.op_type == "AllReduce")
    assert [v.name for v in merged.inputs if v is not None][1] == "x"


def test_nodes_in_between_move_behind_the_message() -> None:
    # u reads the first and stands before the second, whose message comes last.
    model = parsed(f"""g (double[2] a) => (double[2] u, double[2] d) {{
        c = {AR} (a)  u = Exp (c)  b = Neg (a)  d = {AR} (b)
    }}""")
    assert coalesced(model, doubles(a=[2])).after == 1
    assert ops(model)[-1] == "Exp"


@pytest.mark.parametrize(
    ("first", "second"), [("[]", "[2, 2]"), ("[0]", "[3, 0]"), ("[N]", "[M]"), ("[N, 2]", "[3]"), ("[1]", "[N]")]
)
@pytest.mark.parametrize("type_", ["double", "int64", "float16", "bfloat16"])
def test_messages_of_any_shape_come_back_as_they_were(first: str, second: str, type_: str) -> None:
    model = parsed(f"""g ({type_}{first} a, {type_}{second} b) => ({type_}{first} c, {type_}{second} d) {{
        c = {AR} (a)  d = {AR} (b)
    }}""".replace("[]", ""), opset=22, ir_version=10)  # fmt: skip
    shapes = [
        tuple(int(n) for n in text.replace("N", "4").replace("M", "5").strip("[]").split(",") if n)
        for text in (first, second)
    ]
    dtype = ir.DataType[type_.upper()].numpy()
    rng = np.random.default_rng(1)
    inputs = [{k: (rng.standard_normal(s) * 8).astype(dtype) for k, s in zip("ab", shapes, strict=True)} for _ in "12"]
    assert coalesced(model, inputs) == CoalesceResult(before=2, after=1, depth=1)


def test_a_shape_that_is_not_declared_is_looked_up_when_it_is_run() -> None:
    model = parsed(f"""g (double[P, Q] a, int64[R] where) => (double[S] c, double[T, Q] d) {{
        e = Size (a)  f = Cast <to = 11> (e)  b = Gather (a, where)  c = {AR} (f)  d = {AR} (b)
    }}""")
    where = [{"where": np.array(w)} for w in ([1, 0, 1], [0, 0, 0])]
    inputs = [{**x, **w} for x, w in zip(doubles(2, a=[2, 3]), where, strict=True)]
    assert coalesced(model, inputs).after == 1


def test_collectives_of_onnx_runtime_share_a_message_too() -> None:
    model = parsed("""g (float[2] a, float[3] b) => (float[2] c, float[3] d) {
        c = com.microsoft.AllReduce (a)  d = com.microsoft.AllReduce (b)
    }""")
    inputs = [{k: v.astype(np.float32) for k, v in one.items()} for one in doubles(a=[2], b=[3])]
    assert coalesced(model, inputs).after == 1
    merged = next(node for node in model.graph if node.op_type == "AllReduce")
    assert (merged.domain, len(merged.inputs), dict(merged.attributes)) == ("com.microsoft", 1, {})


@pytest.mark.parametrize("reduction", ["sum", "mean", "max", "min"])
def test_every_reduction_works_element_by_element(reduction: str) -> None:
    op = f'bnpass.AllReduce <group = "world", reduction = "{reduction}">'
    model = parsed(f"g (double[2] a, double[3] b) => (double[2] c, double[3] d) {{ c = {op} (a) d = {op} (b) }}")
    assert coalesced(model, doubles(a=[2], b=[3])).after == 1


BRANCHES = f"""g (double[2] a, double[2] b) => (double[2] c, double[2] h, double[2] k) <bool yes = {{1}}> {{
    c = {AR} (a)
    d = If (yes) <
        then_branch = t () => (double[2] u) {{ p = Neg (c) q = {AR} (p) r = {AR} (b) s = {AR} (q) u = Add (r, s) }},
        else_branch = e () => (double[2] w) {{ w = Identity (b) }}>
    h = {AR} (d)
    k = {AR} (b)
}}"""


def test_each_graph_is_done_for_itself_and_a_branch_counts_with_what_it_holds() -> None:
    # Levels: c 1; q and r in the branch 1 and 1, s 2, so the If is at 3 and h at 4; k is at 1.
    model = parsed(BRANCHES)
    assert coalesced(model, doubles(a=[2], b=[2])) == CoalesceResult(before=6, after=4, depth=4)
    names = {v.name for node in model.graph if node.op_type == "Split" for v in node.outputs}
    assert names == {"c", "k"}


def test_what_a_branch_captures_is_awaited() -> None:
    # Without it, h would be at the level of c, and the If between them would close a cycle.
    model = parsed(f"""g (double[2] a, double[2] b) => (double[2] c, double[2] h) <bool yes = {{1}}> {{
        c = {AR} (a)
        d = If (yes) <
            then_branch = t () => (double[2] u) {{ u = Neg (c) }},
            else_branch = e () => (double[2] w) {{ w = Identity (b) }}>
        h = {AR} (d)
    }}""")
    assert coalesced(model, doubles(a=[2], b=[2])) == CoalesceResult(before=2, after=2, depth=2)


def test_loop_bodies() -> None:
    model = parsed(f"""g (double[2] a) => (double[2] y, double[P, 2] z) <int64 M = {{3}}> {{
        y, z = Loop (M, "", a) <body = b (int64 i, bool go, double[2] s) => (bool on, double[2] t, double[2] u) {{
            on = Identity (go)  n = Neg (s)  t = {AR} (n)  u = {AR} (s)
        }}>
    }}""")
    assert coalesced(model, doubles(a=[2])) == CoalesceResult(before=2, after=1, depth=1)


def test_collectives_that_stay_whole_count_for_the_levels() -> None:
    bn = 'bnpass.SyncBatchMoments <axis = 1, group = "world">'
    model = parsed(f"""g (double[2, 2] a, double[2] b) => (double[2] m, double[2] c, double[2] d) {{
        m, v, n = {bn} (a)  c = {AR} (m)  d = {AR} (b)
    }}""")
    assert coalesce(model) == CoalesceResult(before=3, after=3, depth=2)
    assert ops(model) == ["SyncBatchMoments", "AllReduce", "AllReduce"]


def inception(blocks: int = 11) -> ir.Model:
    """Return a network of blocks with branches of 1, 2, 3 and 1 layers, after a stem of five layers."""
    lines, count = [], 0

    def layer(x: str) -> str:
        nonlocal count
        count += 1
        lines.append(f"m{count} = Cast <to = 11> ({x}) r{count} = {AR} (m{count}) y{count} = Relu (r{count})")
        return f"y{count}"

    x = "a"
    for _ in range(5):
        x = layer(x)
    for _ in range(blocks):
        ends = []
        for depth in (1, 2, 3, 1):
            end = x
            for _ in range(depth):
                end = layer(end)
            ends.append(end)
        lines.append(f"s{count} = Sum ({', '.join(ends)})")
        x = f"s{count}"
    for _ in range(12):
        lines.append(f"e{count} = Add ({layer(x)}, {x})")
        x = f"e{count - 1}"
    return parsed(f"g (double[4] a) => (double[4] {x}) {{ {' '.join(lines)} }}")


def test_a_network_with_branches_sends_one_message_per_level_instead_of_one_per_layer() -> None:
    model = inception()
    assert coalesce(model) == CoalesceResult(before=94, after=50, depth=50)
    assert order(model).linked == 0  # a chain of levels is in order already
    assert ids(model) == list(range(50))


def test_doing_it_twice_changes_nothing_more() -> None:
    model = parsed(f"g (double[2] a, double[3] b) => (double[2] c, double[3] d) {{ c = {AR} (a) d = {AR} (b) }}")
    coalesce(model)
    before = ir.to_proto(model).SerializeToString()
    assert coalesce(model) == CoalesceResult(1, 1, 1)
    assert ir.to_proto(model).SerializeToString() == before


def test_new_names_are_not_taken() -> None:
    model = parsed(f"""g (double[2] a, double[3] b) => (double[2] c, double[3] d, double[2] e) {{
        c = {AR} (a)  d = {AR} (b)  e = Neg (a)
    }}""")
    model.graph.outputs[2].name = "coalesced/1/message"
    coalesced(model, doubles(a=[2], b=[3]))
    names = [v.name for node in model.graph for v in node.outputs]
    assert len(set(names)) == len(names)
    assert "coalesced_2/1/message" in names


@pytest.mark.parametrize("opset", [14, 17, 18, 22])
def test_onnx_runtime_takes_the_result(opset: int) -> None:
    body = f"""<opset_import: ["": {opset}], domain: "bnpass"> AllReduce (X, after) => (Y) {{ Y = Identity (X) }}"""
    op = 'bnpass.AllReduce <group = "world", reduction = "sum", collective_id = 0>'
    model = parsed(
        f"""g (double[2] a, double[N, 3] b, double[2] c) => (double[2] d, double[N, 3] e, double[2] f) {{
            d = {op} (a, "")  e = {op} (b, "")  s = ReduceSum <keepdims = 0> (d)  t = Sub (s, s)  u = Add (c, t)
            f = {op} (u, d)
        }}{body}""",
        opset=opset,
        ir_version=8,
    )
    assert coalesce(model) == CoalesceResult(before=3, after=2, depth=2)
    order(model)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    inputs = doubles(1, a=[2], b=[4, 3], c=[2])[0]
    for found, expected in zip(session.run(list("def"), inputs), inputs.values(), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_functions_are_left_alone() -> None:
    model = parsed(f"""g (double[2] a) => (double[2] c) {{ c = own.F (a) }}
        <opset_import: ["": 17, "bnpass": 1], domain: "own">
        F (x) => (z) {{ y = {AR} (x) w = {AR} (x) z = Add (y, w) }}""")
    assert coalesce(model) == CoalesceResult(0, 0, 0)


@pytest.mark.parametrize(
    ("node", "opset", "refusal"),
    [
        (f"c = {AR} (a)", 13, RefusalId.OPSET_NOT_UPGRADABLE),
        (f"c = {AR} (a)", 0, RefusalId.OPSET_NOT_UPGRADABLE),
        ("c = bnpass.AllReduce <group = 1> (a)", 17, RefusalId.BAD_ATTRIBUTE),
        ('c = bnpass.AllReduce <group = "a group"> (a)', 17, RefusalId.BAD_GROUP),
        ('c = bnpass.AllReduce <group = "world"> ("")', 17, RefusalId.BAD_ATTRIBUTE),
    ],
)
def test_what_cannot_be_read_is_refused(node: str, opset: int, refusal: RefusalId) -> None:
    model = parsed(f"g (double[2] a) => (double[2] c) {{ {node} }}", opset=opset)
    if not opset:
        model.opset_imports.pop("")
    with pytest.raises(RefusedError) as caught:
        coalesce(model)
    assert caught.value.refusal.id is refusal
    assert caught.value.refusal.node == "c"


def test_a_cycle_is_refused() -> None:
    model = parsed(f"g (double[2] a) => (double[2] c) {{ b = Neg (a) c = {AR} (b) }}")
    model.graph[0].replace_input_with(0, model.graph[1].outputs[0])
    with pytest.raises(RefusedError, match="waits, in the end, for itself"):
        coalesce(model)


def test_a_branch_that_returns_what_it_does_not_make_is_refused() -> None:
    model = parsed(f"""g (double[2] a, bool yes) => (double[2] d) {{
        c = {AR} (a)
        d = If (yes) <then_branch = t () => (double[2] c) {{}}, else_branch = e () => (double[2] f) {{ f = Neg (c) }}>
    }}""")
    with pytest.raises(RefusedError, match="returns 'c'"):
        coalesce(model)


def test_nodes_keep_their_order_where_nothing_forces_them() -> None:
    model = parsed("g (double[2] a) => (double[2] e) { b = Neg (a) c = Abs (a) d = Add (c, b) e = Exp (d) }")
    nodes = list(model.graph)
    assert collectives.topological(collectives.predecessors(model.graph)) == nodes
    model.graph.remove(nodes[0])
    model.graph.append(nodes[0])
    collectives.sort(model.graph)
    assert ops(model) == ["Abs", "Neg", "Add", "Exp"]


@settings(max_examples=60, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False), st.integers(2, 3), st.integers(0, 2**31))
def test_random_graphs_give_the_same_bits_in_any_order_of_their_nodes(random: Random, size: int, seed: int) -> None:
    proto = random_model(random)
    model = ir.from_proto(proto)
    inputs = feeds(size, seed)
    before = run_replicas(proto, inputs)
    result = coalesce(model)
    assert result.depth <= result.after <= result.before
    assert same(run_replicas(model, inputs), before)
    order(model)
    check_order(model)
    onnx.checker.check_model(ir.to_proto(model))
    assert sorted(ids(model)) == ids(model)
    # Each replica runs the nodes in an order of its own.
    with pytest.MonkeyPatch.context() as patch:
        evaluate = replicas._evaluate
        patch.setattr(replicas, "_evaluate", lambda p, f, member: evaluate(shuffled(p, seed + member.rank), f, member))
        assert same(run_replicas(model, inputs), before)
