"""Replicas in one process add up the same numbers in the same order, and end in one error where they disagree."""

import threading
import time
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bnpass.errors import ExitCode, UsageError
from bnpass.verification import replicas
from bnpass.verification.meeting import Meeting, Message, StoppedError
from bnpass.verification.replicas import ReplicaError, run_replicas
from tests.support.build import BFLOAT16, Array
from tests.support.collectives import parsed

AR = 'bnpass.AllReduce <group = "world">'
SUM = f"g (double[N] x) => (double[N] y) {{ y = {AR} (x) }}"


def xs(*rows: Sequence[float], dtype: type = np.float64) -> list[dict[str, Array]]:
    return [{"x": np.array(row, dtype)} for row in rows]


def ys(
    model: ir.Model | onnx.ModelProto, feeds: Sequence[Mapping[str, Array]], **groups: Sequence[Sequence[int]]
) -> list[Array]:
    return [result["y"] for result in run_replicas(model, feeds, groups=groups, timeout=20)]


def error(text: str, feeds: Sequence[Mapping[str, Array]], **options: object) -> str:
    """Return what is said of replicas that cannot be run; nobody waits for a deadline to find out."""
    begun = time.monotonic()
    with pytest.raises(ReplicaError) as caught:
        run_replicas(parsed(text), feeds, timeout=30, **options)  # type: ignore[arg-type]  # groups
    assert time.monotonic() - begun < 5
    assert caught.value.exit_code is ExitCode.MISMATCH
    return str(caught.value)


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [("sum", [6, np.nan, -6]), ("mean", [2, np.nan, -2]), ("max", [3, np.nan, -1]), ("min", [1, np.nan, -3])],
)
def test_reductions(reduction: str, expected: list[float]) -> None:
    model = parsed(SUM.replace('"world"', f'"world", reduction = "{reduction}"'))
    for result in ys(model, xs([1, np.nan, -1], [2, 5, -2], [3, 7, -3])):
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float32, np.float64, np.int64])
def test_types(dtype: type) -> None:
    name = ir.DataType.from_numpy(np.dtype(dtype)).name.lower()
    model = parsed(SUM.replace("double", name), opset=22, ir_version=10)
    results = ys(model, xs([1, 2], [3, 4], [5, 6], dtype=dtype))
    assert [(r.dtype, r.astype(float).tolist()) for r in results] == [(np.dtype(dtype), [9, 12])] * 3


@pytest.mark.parametrize(("dtype", "one", "tiny"), [(np.float32, 1.0, 2.0**-24), (BFLOAT16, 1.0, 2.0**-8)])
def test_narrow_types_are_rounded_once(dtype: type, one: float, tiny: float) -> None:
    # Half a unit in the last place, twice, is a unit; each alone would round to nothing.
    name = ir.DataType.from_numpy(np.dtype(dtype)).name.lower()
    model = parsed(SUM.replace("double", name), opset=22, ir_version=10)
    assert ys(model, xs([one], [tiny], [tiny], dtype=dtype))[0][0] == one + 2 * tiny


def test_all_replicas_get_the_same_bits_in_every_run() -> None:
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal(100) * 10.0 ** rng.integers(-20, 20)} for _ in range(5)]
    found = {result.tobytes() for _ in range(5) for result in ys(parsed(SUM), feeds)}
    assert len(found) == 1


def test_results_are_not_shared_between_replicas() -> None:
    first, second = ys(parsed(SUM), xs([1], [2]))
    assert not np.shares_memory(first, second)


def test_one_replica_is_a_group_too() -> None:
    assert ys(parsed(SUM), xs([1, 2]))[0].tolist() == [1, 2]


def test_without_a_group_everyone_stays_alone() -> None:
    assert [y.tolist() for y in ys(parsed(SUM.replace('"world"', '""')), xs([1], [2]))] == [[1], [2]]
    assert [y.tolist() for y in ys(parsed(SUM.replace('<group = "world">', "")), xs([1], [2]))] == [[1], [2]]


def test_groups_are_divided_as_the_caller_says() -> None:
    model = parsed(SUM.replace("world", "pair"))
    feeds = xs([1], [2], [4], [8])
    assert [float(y[0]) for y in ys(model, feeds, pair=[[0, 2], [3, 1]])] == [5, 10, 5, 10]
    assert [float(y[0]) for y in ys(model, feeds)] == [15, 15, 15, 15]


def test_collectives_of_onnx_runtime_meet_the_world() -> None:
    model = parsed("g (float[N] x) => (float[N] y) { y = com.microsoft.AllReduce (x) }")
    assert [y.tolist() for y in ys(model, xs([1], [2], dtype=np.float32))] == [[3], [3]]


def test_protos_are_taken_and_left_alone() -> None:
    proto = ir.to_proto(parsed(SUM))
    before = proto.SerializeToString()
    assert ys(proto, xs([1], [2]))[0].tolist() == [3]
    assert proto.SerializeToString() == before


MEAN = """
    <opset_import: ["": OPSET, "bnpass": 1, "own": 1], domain: "own"> Mean <group> (x, after) => (m, n) {
        one = Constant <value = double[1] {1}> ()
        n = own.Count <group: string = @group> (one, after)
        s = bnpass.AllReduce <group: string = @group> (x, n)
        yes = Constant <value = bool {1}> ()
        m = If (yes) <then_branch = t () => (a) { a = Div (s, n) }, else_branch = e () => (b) { b = Identity (s) }>
    }
    <opset_import: ["": OPSET, "bnpass": 1], domain: "own"> Count <group> (x, after) => (y) {
        y = bnpass.AllReduce <group: string = @group> (x, after)
    }
    <opset_import: ["": 17], domain: "bnpass"> AllReduce (X, after) => (Y) { Y = Identity (X) }"""


@pytest.mark.parametrize("opset", ["17", "16"])
def test_functions_are_looked_into_and_the_body_of_all_reduce_is_not(opset: str) -> None:
    # Those that import another opset than the model are not inlined.
    text = 'g (double[N] x) => (double[N] y) { y, "" = own.Mean <group = "world"> (x, "") }'
    functions = MEAN.split("<opset_import")
    reordered = "<opset_import".join([functions[0], functions[2], functions[1], functions[3]])
    assert ys(parsed(text + reordered.replace("OPSET", opset)), xs([1, 2], [3, 6]))[1].tolist() == [2, 4]


LOOP = """g (double[N] x, int64 M) => (double[N] y, double[K, N] rows, double[K] sums, double[K, 2, 1] blocks) {
    y, rows, sums, blocks = Loop (M, COND, x) <body = b (int64 i, bool go, double[N] s)
        => (bool on, double[N] t, double[N] u, double v, double[2, 1] w) {
        t = AR (s)  u = Neg (t)  v = ReduceSum <keepdims = 0> (t)  d = Cast <to = 11> (i)
        k = Constant <value_ints = [2, 1]> ()  w = Expand (d, k)
        n = Constant <value = double {1}> ()  on = LessOrEqual (d, n)
    }>
}""".replace("AR", AR)


@pytest.mark.parametrize(("count", "runs"), [(1, 1), (2, 2), (5, 3)])
def test_loops_are_run_as_onnx_defines_them(count: int, runs: int) -> None:
    # As onnx.reference does it, nothing runs without a condition, and blocks are glued together.
    feeds = [{"x": np.array([1.0, 2.0]), "M": np.array(count)}] * 2
    result = run_replicas(parsed(LOOP.replace("COND", '""')), feeds)[0]
    powers = 2.0 ** np.arange(1, runs + 1)
    np.testing.assert_array_equal(result["y"], [2.0**runs, 2 * 2.0**runs])
    np.testing.assert_array_equal(result["rows"], -powers[:, None] * [1, 2])
    np.testing.assert_array_equal(result["sums"], 3 * powers)
    np.testing.assert_array_equal(result["blocks"], np.arange(runs)[:, None, None] * np.ones((1, 2, 1)))


def test_a_loop_that_does_not_begin() -> None:
    text = LOOP.replace("COND", "no").replace(", double[K, N] rows, double[K] sums, double[K, 2, 1] blocks", "")
    text = text.replace("y, rows, sums, blocks", "y").replace(", double[N] u, double v, double[2, 1] w", "")
    text = text.replace("{\n", "{ no = Constant <value = bool {0}> ()\n", 1)
    assert ys(parsed(text), [{"x": np.array([1.0, 2.0]), "M": np.array(3)}])[0].tolist() == [1, 2]
    scanned = LOOP.replace("COND", '""')
    assert "scan outputs of unknown shape" in error(scanned, [{"x": np.ones(2), "M": np.array(0)}])


# Disagreement.

CHOICE = """g (double[N] x, bool yes) => (double[N] y) {
    y = If (yes) <then_branch = t () => (double[N] a) { THEN }, else_branch = e () => (double[N] b) { ELSE }>
}"""


def differing(then: str, otherwise: str, replicas_: int = 2, **options: object) -> str:
    """Return what is said where replica 0 goes one way and the others another."""
    feeds = [{"x": np.ones(2), "yes": np.array(rank == 0)} for rank in range(replicas_)]
    return error(CHOICE.replace("THEN", then).replace("ELSE", otherwise), feeds, **options)


@pytest.mark.parametrize(
    ("otherwise", "says"),
    [
        ('b = bnpass.AllReduce <group = "world", collective_id = 1> (x)', "(sum of float64[2], id 1)"),
        ('b = bnpass.AllReduce <group = "world", reduction = "max"> (x)', "(max of float64[2], id 0)"),
        (f"f = Cast <to = 1> (x) g = {AR} (f) b = Cast <to = 11> (g)", "(sum of float32[2], id 0)"),
        (f"f = Concat <axis = 0> (x, x) b = {AR} (f)", "(sum of float64[4], id 0)"),
        ("b = com.microsoft.AllReduce (x)", "(sum of float64[2])"),
    ],
)
def test_collectives_that_do_not_belong_together(otherwise: str, says: str) -> None:
    message = differing(f"a = {AR} (x)", otherwise)
    assert "the replicas of group 'world' disagree: replica 0 is at 'a' (sum of float64[2], id 0); replica 1" in message
    assert says in message


def test_a_replica_that_is_done_early() -> None:
    message = differing(f"a = {AR} (x)", "b = Neg (x)")
    assert "no replica can go on: replica 0 waits at 'a' (sum of float64[2], id 0) in group 'world' for 1" in message
    assert "replica 1 is done" in message


def test_a_replica_that_fails() -> None:
    message = differing(f"a = {AR} (x)", "s = Constant <value_ints = [7]> () b = Reshape (x, s)")
    assert "replica 1 failed: ValueError: cannot reshape" in message


def test_two_groups_in_opposite_orders() -> None:
    one, two = (f'{x} = bnpass.AllReduce <group = "{g}"> (x)' for x, g in (("p", "g1"), ("a", "g2")))
    three, four = (f'{x} = bnpass.AllReduce <group = "{g}"> (x)' for x, g in (("q", "g2"), ("b", "g1")))
    message = differing(f"{one} {two}", f"{three} {four}")
    assert "no replica can go on" in message
    assert "in group 'g1' for 1; replica 1 waits" in message


def test_a_replica_in_no_part_of_the_group() -> None:
    message = error(SUM.replace("world", "g"), xs([1], [2], [3]), groups={"g": [[0, 1]]})
    assert "replica 2 failed: ValueError: AllReduce 'y'" in message
    assert "in no part of group 'g'" in message


@pytest.mark.parametrize(
    "text",
    [
        SUM.replace('"world"', '"world", reduction = "product"'),
        SUM.replace("double", "int64").replace('"world"', '"world", reduction = "mean"'),
        SUM.replace("double", "int32"),
    ],
)
def test_what_all_reduce_does_not_define(text: str) -> None:
    dtype = np.int64 if "int64" in text else np.int32 if "int32" in text else np.float64
    assert "is not defined" in error(text, xs([1], [2], dtype=dtype))


def test_an_operator_without_a_body() -> None:
    text = 'g (double[N] x) => (double[N] y) { y, "", "" = bnpass.SyncBatchMoments <axis = 0, group = "world"> (x) }'
    assert "SyncBatchMoments" in error(text, xs([1], [2]))


def test_the_cause_is_handed_on() -> None:
    with pytest.raises(ReplicaError) as caught:
        run_replicas(parsed(SUM.replace("AllReduce", "Nothing")), xs([1]))
    assert isinstance(caught.value.__cause__, NotImplementedError)


def test_a_replica_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = replicas._evaluate
    held = threading.Event()

    def slow(proto: onnx.ModelProto, feeds: Mapping[str, Array], member: replicas._Member) -> dict[str, Array]:
        if member.rank == 1:
            held.wait(10)
        return evaluate(proto, feeds, member)

    monkeypatch.setattr(replicas, "_evaluate", slow)
    with pytest.raises(ReplicaError, match=r"within 0.2 s: replica 0 waits at 'y'.* for 1; replica 1 computes"):
        run_replicas(parsed(SUM), xs([1], [2]), timeout=0.2)
    held.set()


def test_nobody_waits_beyond_the_deadline() -> None:
    meeting = Meeting(2, timeout=0.1)
    message = Message(0, "sum", np.dtype(float), (1,), "y", np.ones(1))
    begun = time.monotonic()
    with pytest.raises(StoppedError):
        meeting.meet(0, "world", (0, 1), message)
    assert time.monotonic() - begun < 5
    assert "did not finish within 0.1 s" in meeting.error


@pytest.mark.parametrize(
    ("feeds", "groups", "says"),
    [
        ([], {}, "at least one"),
        ([{}], {}, "replica 0 lacks input 'x'"),
        ([{"x": np.ones(1), "z": np.ones(1)}], {}, "given 'z'"),
        (xs([1]), {"world": [[0]]}, "group 'world'"),
        (xs([1]), {"g": [[0, 1]]}, "the replicas 0 to 0"),
        (xs([1], [2]), {"g": [[0], [0, 1]]}, "disjoint"),
    ],
)
def test_wrong_calls(feeds: list[dict[str, Array]], groups: dict[str, list[list[int]]], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        run_replicas(parsed(SUM), feeds, groups=groups)


def test_an_initializer_need_not_be_given() -> None:
    model = parsed(
        "g (double[1] x) => (double[1] y) <double[1] w = {2}> { p = Mul (x, w) y = AR (p) }".replace("AR", AR)
    )
    model.graph.inputs.append(model.graph.initializers["w"])
    assert ys(model, xs([1], [2]))[0].tolist() == [6]
    assert ys(model, [{"x": np.ones(1), "w": np.ones(1)}] * 2)[0].tolist() == [2]
