"""The blocks of the literature, as their training graphs are exported: each becomes the op that its paper deploys."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tests.support.build import Array, batch_norm, model, normal
from tests.unit.merging.merged import Result, block, merged_and_right


def norm(channels: int, suffix: str, seed: int = 0) -> dict[str, Array]:
    """Return the parameters s, b, m, v of one batch normalization; their names end in ``suffix``."""
    return {name + suffix: array for name, array in batch_norm(channels, seed).items()}


def becomes_one(result: Result, op_type: str = "Conv") -> None:
    assert result.ops == [op_type]
    assert result.refused == {}


@pytest.mark.parametrize(("stride", "out"), [(1, "2,4,7,8"), (2, "2,4,4,4")])
def test_repvgg(stride: int, out: str) -> None:
    identity = "[bn] c = BatchNormalization(x, s, b, m, v) [a2] y = Add(d, c)" if stride == 1 else "y = Identity(d)"
    result = merged_and_right(
        block(
            f"[c3] a = Conv<pads=[1,1,1,1], strides=[{stride},{stride}]>(x, w3, b3) "
            f"[c1] e = Conv<strides=[{stride},{stride}]>(x, w1, b1) [a1] d = Add(a, e) {identity}",
            out,
            {"w3": normal(4, 4, 3, 3), "b3": normal(4), "w1": normal(4, 4, 1, 1), "b1": normal(4, seed=2)}
            | (norm(4, "") if stride == 1 else {}),
        )
    )
    assert result.ops == (["Conv"] if stride == 1 else ["Conv", "Identity"])
    assert result.merged[0].into == "c3"
    assert set(result.merged[0].nodes) == ({"c1", "bn", "a1", "a2"} if stride == 1 else {"c1", "a1"})
    # of a row of eight, a stride of 2 leaves the padding at the end out
    assert result.ints("c3", "pads") == ((1, 1, 1, 1) if stride == 1 else (1, 1, 1, 0))


def test_repvgg_with_a_bare_identity() -> None:
    built = block(
        "[c3] a = Conv<pads=[1,1,1,1]>(x, w3) e = Conv(x, w1) d = Add(a, e) y = Add(d, x)",
        "2,4,7,8",
        {"w3": normal(4, 4, 3, 3), "w1": normal(4, 4, 1, 1, seed=1)},
    )
    result = merged_and_right(built)
    becomes_one(result)
    exact = normal(4, 4, 3, 3).astype(np.float64)
    exact[:, :, 1, 1] += normal(4, 4, 1, 1, seed=1).astype(np.float64)[:, :, 0, 0] + np.eye(4)
    assert np.array_equal(result.constant("w3"), exact.astype(np.float32))


def test_mobileone() -> None:
    copies = range(4)
    depthwise = " ".join(f"k{i} = Conv<group=4, pads=[1,1,1,1]>(x, w{i}, b{i})" for i in copies)
    points = " ".join(f"p{i} = Conv(mid, u{i}, c{i})" for i in copies)
    built = block(
        f"{depthwise} one = Conv<group=4>(x, w9, b9) n = BatchNormalization(x, s, b, m, v) "
        f"t = Sum(k0, k1, k2, k3, one, n) mid = Relu(t) {points} o = BatchNormalization(mid, sz, bz, mz, vz) "
        "q0 = Add(p0, p1) q1 = Add(p2, p3) q2 = Add(q0, q1) y = Add(o, q2)",
        "2,4,7,8",
        {f"w{i}": normal(4, 1, 3, 3, seed=i) for i in copies}
        | {f"u{i}": normal(4, 4, 1, 1, seed=i) for i in copies}
        | {f"b{i}": normal(4, seed=i) for i in (*copies, 9)}
        | {f"c{i}": normal(4, seed=20 + i) for i in copies}
        | {"w9": normal(4, 1, 1, 1)}
        | norm(4, "")
        | norm(4, "z", 1),
    )
    result = merged_and_right(built)
    assert result.ops == ["Conv", "Relu", "Conv"]
    assert [len(record.nodes) for record in result.merged] == [6, 8]


def test_repghost() -> None:
    built = block(
        "a = Conv<group=4, pads=[1,1,1,1]>(x, w, c) n = BatchNormalization(x, s, b, m, v) t = Add(a, n) y = Relu(t)",
        "2,4,7,8",
        {"w": normal(4, 1, 3, 3), "c": normal(4), **norm(4, "")},
    )
    assert merged_and_right(built).ops == ["Conv", "Relu"]


def test_acnet() -> None:
    built = block(
        "a = Conv<pads=[1,1,1,1]>(x, w33) h = Conv<pads=[0,1,0,1]>(x, w13) v = Conv<pads=[1,0,1,0]>(x, w31) "
        "t = Add(a, h) y = Add(t, v)",
        "2,3,7,8",
        {"w33": normal(3, 4, 3, 3), "w13": normal(3, 4, 1, 3), "w31": normal(3, 4, 3, 1)},
    )
    becomes_one(merged_and_right(built))


def test_diverse_branch_block() -> None:
    """k×k, 1×1, 1×1 then k×k, 1×1 then the mean: without biases inside, zeros of padding stay zeros."""
    built = block(
        "[kk] a = Conv<pads=[1,1,1,1]>(x, w, c) e = Conv(x, u) i = Conv(x, p) "
        "j = Conv<pads=[1,1,1,1]>(i, q, c) f = Conv(x, r) "
        "h = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(f) "
        "t0 = Add(a, e) t1 = Add(j, h) y = Add(t0, t1)",
        "2,6,7,8",
        {
            "w": normal(6, 4, 3, 3),
            "c": normal(6),
            "u": normal(6, 4, 1, 1),
            "p": normal(4, 4, 1, 1),
            "q": normal(6, 4, 3, 3, seed=1),
            "r": normal(6, 4, 1, 1, seed=2),
        },
    )
    result = merged_and_right(built)
    becomes_one(result)
    assert {record.kind for record in result.merged} == {"sequential", "parallel"}


def test_fastvit_stem_and_mixer() -> None:
    """A large depthwise kernel with a small one; then x plus a mixer's difference, spelled as a scaled sum."""
    built = block(
        "a = Conv<group=4, pads=[3,3,3,3]>(x, w7) e = Conv<group=4, pads=[1,1,1,1]>(x, w3, c) t = Add(a, e) "
        "g = Relu(t) f = Mul(g, k) h = Conv<group=4, pads=[1,1,1,1]>(g, u3) i = Add(f, h) y = Add(i, g)",
        "2,4,7,8",
        {
            "w7": normal(4, 1, 7, 7),
            "w3": normal(4, 1, 3, 3),
            "c": normal(4),
            "k": normal(4, 1, 1),
            "u3": normal(4, 1, 3, 3, seed=1),
        },
    )
    assert merged_and_right(built).ops == ["Conv", "Relu", "Conv"]


def test_fastvit_mixer_as_it_is_spelled() -> None:
    """x plus the scaled difference of a mixer and a normalization."""
    built = block(
        "a = Conv<group=4, pads=[1,1,1,1]>(x, w3, c) s = Mul(x, k) t = Add(s, c1) d = Sub(a, t) y = Add(x, d)",
        "2,4,7,8",
        {"w3": normal(4, 1, 3, 3), "c": normal(4), "k": normal(4, 1, 1), "c1": normal(4, 1, 1, seed=1)},
    )
    becomes_one(merged_and_right(built))


@pytest.mark.parametrize("other", ["e", "x"], ids=["another one", "its input"])
@pytest.mark.parametrize("difference", ["Sub(a, {})", "Sub({}, a)"])
def test_a_convolution_and_what_is_taken_from_it(difference: str, other: str) -> None:
    second = "e = Conv(x, u, c)" if other == "e" else ""
    built = block(
        f"a = Conv<pads=[1,1,1,1]>(x, w, c) {second} y = {difference.format(other)}",
        "2,4,7,8",
        {"w": normal(4, 4, 3, 3), "u": normal(4, 4, 1, 1), "c": normal(4)},
    )
    becomes_one(merged_and_right(built))


def test_a_difference_of_maps_of_two_values_stays() -> None:
    built = block(
        "r = Relu(x) a = Conv(x, w) e = Conv(r, u) y = Sub(a, e)",
        "2,4,7,8",
        {"w": normal(4, 4, 1, 1), "u": normal(4, 4, 1, 1)},
    )
    assert merged_and_right(built).ops == ["Relu", "Conv", "Conv", "Sub"]


def test_dilated_branches_under_a_large_kernel() -> None:
    """UniRepLKNet: taps two and three apart lie on those of the large kernel."""
    built = block(
        "a = Conv<group=4, pads=[4,4,4,4]>(x, w9) e = Conv<group=4, pads=[4,4,4,4], dilations=[2,2]>(x, w5) "
        "f = Conv<group=4, pads=[3,3,3,3], dilations=[3,3]>(x, w3) y = Sum(a, e, f)",
        "2,4,7,8",
        {"w9": normal(4, 1, 9, 9), "w5": normal(4, 1, 5, 5), "w3": normal(4, 1, 3, 3)},
    )
    becomes_one(merged_and_right(built))


def test_dilated_branches_between_each_other() -> None:
    """Taps at -2, 0, 2 and at -1, 1, 3: together they are next to each other."""
    built = block(
        "a = Conv<pads=[2,2], dilations=[2]>(x, w) e = Conv<pads=[1,3], dilations=[2]>(x, u) y = Add(a, e)",
        "2,4,9",
        {"w": normal(4, 4, 3), "u": normal(4, 4, 3, seed=1)},
        "2,4,9",
    )
    result = merged_and_right(built)
    becomes_one(result)
    assert result.ints("y", "kernel_shape") == (6,)


def test_yolo_concat_of_rep_convs() -> None:
    names = "ab"
    built = model(
        "g (float[2,4,7,8] x) => (float[2,8,7,8] y) {"
        + " ".join(
            f"{n}3 = Conv<pads=[1,1,1,1]>(x, {n}w3, {n}c) {n}1 = Conv(x, {n}w1) {n}t = Add({n}3, {n}1) "
            f"{n}y = Sigmoid({n}t)"
            for n in names
        )
        + " y = Concat<axis=1>(ay, by) }",
        {f"{n}w3": normal(4, 4, 3, 3, seed=i) for i, n in enumerate(names)}
        | {f"{n}w1": normal(4, 4, 1, 1, seed=i) for i, n in enumerate(names)}
        | {f"{n}c": normal(4, seed=i) for i, n in enumerate(names)},
    )
    assert merged_and_right(built).ops == ["Conv", "Sigmoid", "Conv", "Sigmoid", "Concat"]


SPATIAL: Mapping[str, tuple[str, str, str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "one axis": ("2,4,9", "2,4,9", "pads=[2,2]", (4, 4, 5), (4, 4, 1), {}),
    "three axes": ("1,4,5,6,4", "1,4,5,6,4", "pads=[1,1,1,1,1,1]", (4, 4, 3, 3, 3), (4, 4, 1, 1, 1), {}),
}


@pytest.mark.parametrize("case", SPATIAL)
def test_other_ranks(case: str) -> None:
    data, out, pads, big, small, _ = SPATIAL[case]
    built = block(
        f"a = Conv<{pads}>(x, w) e = Conv(x, u) t = Add(a, e) n = BatchNormalization(x, s, b, m, v) y = Add(t, n)",
        out,
        {"w": normal(*big), "u": normal(*small), **norm(4, "")},
        data,
    )
    becomes_one(merged_and_right(built))


def test_groups_meet_in_their_greatest_common_divisor() -> None:
    built = block(
        "a = Conv<group=4, pads=[1,1,1,1]>(x, w4) e = Conv<group=6, pads=[1,1,1,1]>(x, w6) "
        "f = Conv<group=2, pads=[1,1,1,1]>(x, w2) t = Add(a, e) y = Add(f, t)",
        "2,12,7,8",
        {"w4": normal(12, 3, 3, 3), "w6": normal(12, 2, 3, 3), "w2": normal(12, 6, 3, 3)},
        "2,12,7,8",
    )
    result = merged_and_right(built)
    becomes_one(result)
    assert result.after.graph[0].attributes.get_int("group") == 2


def test_dilation_with_a_point() -> None:
    built = block(
        "[a] a = Conv<dilations=[2,3], pads=[2,3,2,3]>(x, w) e = Conv(x, u) y = Add(a, e)",
        "2,4,9,9",
        {"w": normal(4, 4, 3, 3), "u": normal(4, 4, 1, 1)},
        "2,4,9,9",
    )
    result = merged_and_right(built)
    becomes_one(result)
    assert result.ints("a", "dilations") == (2, 3)


def test_asymmetric_pads() -> None:
    """A kernel of 3 that looks ahead and two of 2 that look back: one of 4, whose pads are those of both ends."""
    built = block(
        "[a] a = Conv<pads=[0,2]>(x, w3) e = Conv<pads=[1,0]>(x, w2) f = Conv<pads=[1,0]>(x, u2) y = Sum(a, e, f)",
        "2,3,9",
        {"w3": normal(3, 4, 3), "w2": normal(3, 4, 2), "u2": normal(3, 4, 2, seed=1)},
        "2,4,9",
    )
    result = merged_and_right(built)
    becomes_one(result)
    assert result.ints("a", "pads") == (1, 2)
    assert result.ints("a", "kernel_shape") == (4,)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_auto_pad_that_is_static(auto_pad: str) -> None:
    same = auto_pad.startswith("SAME")
    built = block(
        f'a = Conv<auto_pad="{auto_pad}">(x, w) e = Conv(x, u) y = Add(a, e)',
        "2,4,7,8" if same else "2,4,6,7",
        {"w": normal(4, 4, 2, 2), "u": normal(4, 4, 1, 1) if same else normal(4, 4, 2, 2, seed=1)},
    )
    becomes_one(merged_and_right(built))


def test_a_mean_is_a_depthwise_op() -> None:
    built = block(
        "a = Conv<group=4, strides=[2,2]>(x, w) e = AveragePool<kernel_shape=[3,3], strides=[2,2]>(x) y = Add(a, e)",
        "2,4,3,3",
        {"w": normal(4, 1, 3, 3)},
    )
    becomes_one(merged_and_right(built))


def test_a_mean_alone_with_what_it_averages() -> None:
    built = block("[p] a = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x) y = Add(x, a)",
                  "2,4,7,8", {})  # fmt: skip
    result = merged_and_right(built)
    becomes_one(result)
    assert result.merged[0].into == "p"


def test_other_addends_stay() -> None:
    built = block(
        "a = Conv<pads=[1,1,1,1]>(x, w) r = Relu(x) e = Conv(x, u) t = Add(a, r) y = Add(t, e)",
        "2,4,7,8",
        {"w": normal(4, 4, 3, 3), "u": normal(4, 4, 1, 1)},
    )
    assert merged_and_right(built).ops == ["Conv", "Relu", "Add"]


def test_a_sum_of_smaller_values_forgets_its_shape() -> None:
    """p + q has the shape of x only because a branch stood between them."""
    built = model(
        "g (float[2,4,7,8] x, float[1,4,1,1] p, float[4,1,1] q) => (float[2,4,7,8] y) <float[2,4,7,8] t1> {"
        "n = BatchNormalization(x, s, b, m, v) t0 = Add(n, p) t1 = Add(t0, q) a = Conv(x, w) y = Add(t1, a) }",
        {"w": normal(4, 4, 1, 1), **norm(4, "")},
    )
    assert merged_and_right(built).ops == ["Add", "Conv", "Add"]


def test_two_inputs_merge_each_on_its_own() -> None:
    built = block(
        "z = Sin(x) a = Conv(x, w0) e = Conv(z, w1) f = Conv(x, w2) h = Conv(z, w3) "
        "t0 = Add(a, e) t1 = Add(f, h) y = Add(t0, t1)",
        "2,5,7,8",
        {f"w{i}": normal(5, 4, 1, 1, seed=i) for i in range(4)},
    )
    result = merged_and_right(built)
    assert result.ops == ["Sin", "Conv", "Conv", "Add"]
    assert len(result.merged) == 2


def test_a_depthwise_branch_is_not_drowned_in_a_dense_one() -> None:
    """3×3 depthwise stays beside the dense 1×1, which takes the identity."""
    built = block(
        "[dense] a = Conv(x, w) [deep] e = Conv<group=16, pads=[1,1,1,1]>(x, u) t = Add(a, e) y = Add(t, x)",
        "2,16,7,8",
        {"w": normal(16, 16, 1, 1), "u": normal(16, 1, 3, 3)},
        "2,16,7,8",
    )
    result = merged_and_right(built)
    assert result.ops == ["Conv", "Conv", "Add"]
    assert [record.into for record in result.merged] == ["dense"]


# --- chains ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "pads", "biases"),
    [
        ((16, 4, 1, 1), (4, 16, 1, 1), "", "ab"),
        ((4, 4, 1, 1), (5, 4, 3, 3), "", "ab"),
        ((4, 4, 1, 1), (5, 4, 3, 3), "<pads=[1,1,1,1], strides=[2,2]>", "b"),
        ((6, 4, 3, 3), (3, 6, 1, 1), "", "ab"),
        ((6, 2, 3, 3), (6, 3, 1, 1), "<group=2>", "ab"),
        ((4, 1, 1, 1), (5, 4, 1, 1), "", "ab"),
    ],
)
def test_convolutions_in_a_row(first: tuple[int, ...], second: tuple[int, ...], pads: str, biases: str) -> None:
    group = 4 // first[1]
    side = [7 - first[2] + 1 - second[2] + 1, 8 - first[3] + 1 - second[3] + 1]
    if "strides" in pads:
        side = [4, 4]
    constants = {"w": normal(*first), "u": normal(*second, seed=1)}
    constants |= {"a": normal(first[0])} if "a" in biases else {}
    constants |= {"b": normal(second[0])} if "b" in biases else {}
    built = block(
        f"t = Conv<group={group}>(x, w{', a' if 'a' in biases else ''}) "
        f"y = Conv{pads}(t, u{', b' if 'b' in biases else ''})",
        f"2,{second[0]},{side[0]},{side[1]}",
        constants,
    )
    result = merged_and_right(built)
    becomes_one(result)
    assert result.merged[0].kind == "sequential"


@pytest.mark.parametrize("opset", [9, 17])
@pytest.mark.parametrize("bias", ["", ", b"])
@pytest.mark.parametrize("trans", [0, 1])
def test_gemms_in_a_row(trans: int, bias: str, opset: int) -> None:
    built = model(
        "g (float[N,4] x) => (float[N,3] y) "
        f"{{ t = Gemm<alpha=0.5, transB={trans}>(x, w, a) y = Gemm<beta={2.0 if bias else 0.0}>(t, u, b) }}",
        {
            "w": normal(9, 4) if trans else normal(4, 9),
            "a": normal(1, 9),
            "u": normal(9, 3),
            "b": normal(1),
        },
        opset=opset,
    )
    becomes_one(merged_and_right(built), "Gemm")


def test_a_gemm_whose_c_is_a_number() -> None:
    built = model(
        "g (float[N,4] x) => (float[N,3] y) { t = Gemm(x, w, a) y = Gemm(t, u) }",
        {"w": normal(4, 9), "a": np.array(0.5, np.float32), "u": normal(9, 3)},
    )
    becomes_one(merged_and_right(built), "Gemm")


def test_low_rank_update_of_a_gemm() -> None:
    built = model(
        "g (float[N,8] x) => (float[N,8] y) "
        "{ f = Gemm<transB=1>(x, w, c) d = Gemm(x, a) e = Gemm<alpha=0.25>(d, b) t = Add(f, e) y = Add(x, t) }",
        {"w": normal(8, 8), "c": normal(8), "a": normal(8, 2), "b": normal(2, 8)},
    )
    becomes_one(merged_and_right(built), "Gemm")


def test_a_merged_sum_takes_part_in_the_next_merge() -> None:
    built = block(
        "t = Conv(x, p) a = Conv(t, w) e = Conv(t, u) y = Add(a, e)",
        "2,3,5,6",
        {"p": normal(6, 4, 1, 1), "w": normal(3, 6, 3, 3), "u": normal(3, 6, 3, 3, seed=1)},
    )
    becomes_one(merged_and_right(built))


@pytest.mark.parametrize("pads", ["pads=[0,0,1,1]", 'auto_pad="SAME_UPPER"'])
def test_branches_of_a_stride_that_give_as_many_outputs_for_this_length(pads: str) -> None:
    nodes = f"[c3] a = Conv<{pads}, strides=[2,2]>(x, w3) [c1] e = Conv<strides=[2,2]>(x, w1) y = Add(a, e)"
    result = merged_and_right(
        block(nodes, "2,4,4,4", {"w3": normal(4, 4, 3, 3), "w1": normal(4, 4, 1, 1)}, data="2,4,8,8")
    )
    becomes_one(result)
    assert result.ints("c3", "pads") == (0, 0, 1, 1)
