"""What counts as the same model, and what is said of one that is not."""

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bnpass.comparison import Comparison, compare
from bnpass.comparison.result import ChangedNode, Fact, OnlyNode, OnlyWeight, Renamed
from bnpass.errors import ModelError
from bnpass.folding.options import FoldOptions
from tests.cli import models
from tests.support.build import Array, batch_norm, model, normal

BRANCHES = """g (float[N, 4] x, bool c) => (float[N, 4] y, float[N, 4] z) {
    [one] a = MatMul (x, w)
    [two] b = MatMul (x, v)
    [if] d = If (c) <
        then_branch = t () => (float[N, 4] p) { [in] k = Mul (a, s)  [neg] p = Neg (k) },
        else_branch = e () => (float[N, 4] q) { [cat] q = Add (b, a) }
    >
    [soft] y = Softmax <axis = 1> (d)
    [sum] z = Sum (a, b, d)
}"""
FUNCTION = """<ir_version: 10, opset_import: ["": 17, "local": 1]>
g (float[N, 2] x) => (float[N, 2] y) { [call] y = local.Twice <factor = 2.0> (x) }
<domain: "local", opset_import: ["": 17]> Twice <factor> (x) => (y) {
    [k] k = Constant <value_float = @factor> ()  [m] y = Mul (x, k)
}"""


def branches() -> ir.Model:
    return model(BRANCHES, {"w": normal(4, 4), "v": normal(4, 4, seed=1), "s": normal(4, seed=2)})


def function() -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(FUNCTION))


def residual() -> ir.Model:
    """Return a model whose nodes look much alike."""
    lines = ["g (float[N, 4] x0) => (float[N, 4] y) {"]
    constants: dict[str, Array] = {}
    for i in range(6):
        constants |= {f"w{i}": normal(4, 4, seed=i), f"v{i}": normal(4, 4, seed=i + 50)}
        lines.append(f"[a{i}] a{i} = MatMul (x{i}, w{i})  [r{i}] r{i} = Relu (a{i})  [b{i}] b{i} = MatMul (r{i}, v{i})")
        lines.append(f"[s{i}] x{i + 1} = Add (x{i}, b{i})")
    return model("\n".join([*lines, "[end] y = Identity (x6) }"]), constants)


BUILDERS: dict[str, Callable[[], ir.Model]] = {
    "conv and batch norm": models.conv_bn,
    "two": models.two,
    "shared": models.shared,
    "branches": branches,
    "function": function,
    "residual": residual,
}


def scrambled(built: ir.Model, seed: int) -> ir.Model:
    """Return a copy with other names inside, and its nodes in another order that still is one."""
    rng, copy = np.random.default_rng(seed), built.clone()
    for graph in [*copy.graphs(), *(f.graph for f in copy.functions.values())]:
        for number, node in enumerate(graph):
            node.name = f"n{rng.random()}" if number % 3 else ""
            for value in node.outputs:
                if value.name and not value.is_graph_output():
                    value.name = f"v{rng.random()}"
        for name, value in list(graph.initializers.items()):
            if not value.is_graph_input():
                graph.initializers.pop(name)
                value.name = f"w{rng.random()}"
                graph.initializers[value.name] = value
        ready = [node for node in graph if rng.random() < 0.5]
        for node in ready:  # to the end; sorting then puts it where it has to be at the latest
            graph.remove(node)
            graph.append(node)
        graph.sort()
    return copy


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_names_and_order_do_not_count(build: Callable[[], ir.Model]) -> None:
    assert compare(build(), build()) == Comparison(*sizes(build()))
    for seed in range(3):
        found = compare(build(), scrambled(build(), seed))
        assert found.same, found
        assert {r.kind for r in found.renamed} <= {"node", "value", "weight"}
        assert len([r for r in found.renamed if r.kind == "weight"]) == found.weights[0]
        back = compare(scrambled(build(), seed), build())
        assert sorted((r.after, r.before) for r in back.renamed) == sorted((r.before, r.after) for r in found.renamed)


def sizes(built: ir.Model) -> tuple[tuple[int, int], tuple[int, int]]:
    found = compare(built, built)
    return found.nodes, found.weights


def test_a_model_is_itself() -> None:
    built = branches()
    assert compare(built, built) == Comparison((8, 8), (3, 3))


def node(built: ir.Model, name: str) -> ir.Node:
    graphs = [*built.graphs(), *(f.graph for f in built.functions.values())]
    return next(n for graph in graphs for n in graph if n.name == name)


def other_weight(built: ir.Model) -> None:
    value = next(iter(built.graph.initializers.values()))
    array = np.array(value.const_value.numpy() if value.const_value else 0)
    array.reshape(-1)[0] = np.nextafter(array.reshape(-1)[0], np.float32(9))
    value.const_value = ir.tensor(array, name=value.name)


def swapped(built: ir.Model) -> None:
    a = node(built, "cat")
    first, second = a.inputs
    a.replace_input_with(0, second)
    a.replace_input_with(1, first)


def set_attribute(name: str, key: str, value: object) -> Callable[[ir.Model], None]:
    def edit(built: ir.Model) -> None:
        node(built, name).attributes[key] = ir.convenience.convert_attribute(key, value)  # type: ignore[arg-type]

    return edit


def swap_outputs(built: ir.Model) -> None:
    """Let the two outputs give each other's values."""
    y, z = built.graph.outputs
    y.name, z.name = "z", "y"
    built.graph.outputs[0], built.graph.outputs[1] = z, y


def give(name: str) -> Callable[[ir.Model], None]:
    def edit(built: ir.Model) -> None:
        built.graph.outputs[1] = node(built, name).outputs[0]

    return edit


def opset(built: ir.Model) -> None:
    built.opset_imports[""] = 18


def type_of_input(built: ir.Model) -> None:
    built.graph.inputs[0].type = ir.TensorType(ir.DataType.DOUBLE)


def body_opset(built: ir.Model) -> None:
    next(iter(built.functions.values())).opset_imports[""] = 16


def bypassed(built: ir.Model) -> None:
    inner = node(built, "neg")
    inner.outputs[0].replace_all_uses_with(inner.inputs[0], replace_graph_outputs=True)
    assert inner.graph is not None
    inner.graph.remove(inner, safe=True)


MUTATIONS: dict[str, tuple[Callable[[], ir.Model], Callable[[ir.Model], None], tuple[object, ...]]] = {
    "one bit of a weight": (models.two, other_weight, ()),
    "an attribute in a branch": (branches, set_attribute("neg", "extra", 1), (
        ChangedNode("If 'if' then_branch", "neg", "Neg", "attribute extra", "nothing", "1"),)),
    "an attribute": (branches, set_attribute("soft", "axis", 0), (
        ChangedNode("", "soft", "Softmax", "attribute axis", "1", "0"),)),
    "the order of operands": (branches, swapped, (
        ChangedNode("If 'if' else_branch", "cat", "Add", "input 0", "'b' of MatMul 'two'", "'a' of MatMul 'one'"),
        ChangedNode("If 'if' else_branch", "cat", "Add", "input 1", "'a' of MatMul 'one'", "'b' of MatMul 'two'"))),
    "what an output gives": (branches, swap_outputs, (
        ChangedNode("", "", "", "output 'y'", "'y' of Softmax 'soft'", "'y' of Sum 'sum'"),
        ChangedNode("", "", "", "output 'z'", "'z' of Sum 'sum'", "'z' of Softmax 'soft'"))),
    "another output": (branches, give("one"), (
            ChangedNode("", "", "", "output 'z'", "'z' of Sum 'sum'", "'a' of MatMul 'one'"),
            Fact("output", "'z' FLOAT[N,4]", "'a' of no type"),
        )),
    "the opset": (branches, opset, (Fact("opset of 'ai.onnx'", "17", "18"),)),
    "the type of an input": (branches, type_of_input, (
        Fact("input", "'x' FLOAT[N,4]", "'x' DOUBLE[N,4]"),)),
    "an attribute of a call": (function, set_attribute("call", "factor", 3.0), (
        ChangedNode("", "call", "Twice", "attribute factor", "2.0", "3.0"),)),
    "an attribute in a function": (function, set_attribute("m", "extra", "text"), (
        ChangedNode("function 'local.Twice'", "m", "Mul", "attribute extra", "nothing", "'text'"),)),
    "the opset of a function": (function, body_opset, (
        ChangedNode("function 'local.Twice'", "", "", "opset of 'ai.onnx'", "17", "16"),)),
    "a node less in a branch": (branches, bypassed, (
        OnlyNode("a", "If 'if' then_branch", "neg", "Neg"),
        ChangedNode("If 'if' then_branch", "", "", "output 0", "'p' of Neg 'neg'", "'k' of Mul 'in'"))),
}  # fmt: skip


@pytest.mark.parametrize("case", MUTATIONS)
def test_one_change_is_found_and_nothing_else(case: str) -> None:
    build, edit, expected = MUTATIONS[case]
    changed = build()
    edit(changed)
    found = compare(build(), changed)
    assert not found.same
    if expected:
        assert (*found.only_nodes, *found.changed_nodes, *found.interface) == expected
        assert found.changed_weights == found.only_weights == ()
    assert not compare(changed, build()).same
    hidden = compare(build(), scrambled(changed, 1))
    assert not hidden.same


def test_a_weight_that_moved_by_one_bit() -> None:
    changed = models.two()
    other_weight(changed)
    found = compare(models.two(), changed)
    assert (found.only_nodes, found.changed_nodes, found.only_weights, found.renamed) == ((), (), (), ())
    (weight,) = found.changed_weights
    assert (weight.name, weight.before, weight.elements, weight.differing) == ("w", "FLOAT[4,3,3,3]", 108, 1)
    assert weight.max_abs is not None
    assert 0 < weight.max_abs < 1e-6


def test_all_weights_may_differ_and_the_structure_is_the_same() -> None:
    trained = residual()
    for number, value in enumerate(trained.graph.initializers.values()):
        value.const_value = ir.tensor(normal(4, 4, seed=number + 500), name=value.name)
    for other in (trained, scrambled(trained, 3)):
        found = compare(residual(), other)
        assert (found.only_nodes, found.changed_nodes, found.only_weights) == ((), (), ())
        assert len(found.changed_weights) == 12
        assert all(weight.differing == 16 for weight in found.changed_weights)


def test_a_fold_is_told_as_what_it_does() -> None:
    from bnpass.api.fold import fold

    folded = fold(models.two(), FoldOptions(check=0)).model
    assert isinstance(folded, ir.Model)
    found = compare(models.two(), folded)
    assert [n.node for n in found.only_nodes] == ["bn1", "y"]
    assert {(c.node, c.what) for c in found.changed_nodes if c.node} == {
        ("conv1", "input 2"), ("r", "input 0"), ("conv2", "input 2")
    }  # fmt: skip
    assert {w.name for w in found.changed_weights} >= {"w", "w2"}


def test_a_node_between_two_others() -> None:
    text = "g (float[N] x) => (float[N] y) { [a] a = Abs (x)  [b] b = Exp (a)  [c] y = Sqrt (b) }"
    more = text.replace("(b) }", "(n) }").replace("[c]", "[n] n = Neg (b)  [c]")
    found = compare(model(text), model(more))
    assert found.only_nodes == (OnlyNode("b", "", "n", "Neg"),)
    assert found.changed_nodes == (ChangedNode("", "c", "Sqrt", "input 0", "'b' of Exp 'b'", "'n' of Neg 'n'"),)


def test_renumbered_names_do_not_mislead() -> None:
    """Four more ops in the front, and each name behind them is now that of the same op one block later."""

    def numbered(more: int) -> ir.Model:
        built = residual()
        x, first = built.graph.inputs[0], next(iter(built.graph))
        readers, last = list(x.uses()), x
        for _ in range(more):
            extra = ir.node("Abs", [last])
            built.graph.insert_before(first, extra)
            last = extra.outputs[0]
        for reader, index in readers:
            reader.replace_input_with(index, last)
        for number, each in enumerate(built.graph):
            each.name = f"n{number}"
            if not each.outputs[0].is_graph_output():
                each.outputs[0].name = f"v{number}"
        return built

    found = compare(numbered(0), numbered(4))
    assert found.only_nodes == tuple(OnlyNode("b", "", f"n{i}", "Abs") for i in range(4))
    assert {(c.node, c.what) for c in found.changed_nodes} == {("n0", "input 0"), ("n3", "input 0")}
    assert found.changed_weights == found.only_weights == ()


def test_the_outputs_of_a_node_are_not_one_another() -> None:
    text = "g (float[4] x) => (float[2] y) { [s] a, b = Split <axis = 0> (x, n)  y = Sub (a, b) }"
    given = {"n": np.array([2, 2])}
    found = compare(model(text, given), model(text.replace("Sub (a, b)", "Sub (b, a)"), given))
    assert [(c.what, c.before, c.after) for c in found.changed_nodes] == [
        ("input 0", "'a' of Split 's'", "'b' of Split 's'"), ("input 1", "'b' of Split 's'", "'a' of Split 's'")
    ]  # fmt: skip


def test_weights_that_nobody_reads_count() -> None:
    more = models.conv_bn()
    more.graph.register_initializer(ir.Value(name="left", const_value=ir.tensor(normal(3), name="left")))
    found = compare(models.conv_bn(), more)
    assert found.only_weights == (OnlyWeight("b", "left", "FLOAT[3]"),)
    assert compare(more, models.conv_bn()).only_weights == (OnlyWeight("a", "left", "FLOAT[3]"),)


def test_swapped_names_of_weights_are_names() -> None:
    text = "g (float[N, 4] x) => (float[N, 4] y) { a = MatMul (x, p)  y = MatMul (a, q) }"
    one, two = normal(4, 4), normal(4, 4, seed=1)
    swapped_text = text.replace("p)", "q) ", 1).replace("(a, q)", "(a, p)")
    found = compare(model(text, {"p": one, "q": two}), model(swapped_text, {"q": one, "p": two}))
    assert found.same
    assert set(found.renamed) == {Renamed("weight", "p", "q"), Renamed("weight", "q", "p")}


def test_a_weight_of_another_type_or_shape() -> None:
    text = "g (float[N, 4] x) => (float[N, 4] y) { y = Mul (x, w) }"
    found = compare(model(text, {"w": normal(4)}), model(text, {"w": normal(1, 4)}))
    (weight,) = found.changed_weights
    assert (weight.before, weight.after, weight.elements, weight.max_abs) == ("FLOAT[4]", "FLOAT[1,4]", 0, None)


def test_a_tensor_attribute_is_a_weight() -> None:
    text = "g () => (float[2] y) { [k] y = Constant <value = float[2] {1, 2}> () }"
    found = compare(model(text), model(text.replace("{1, 2}", "{1, 5}")))
    (weight,) = found.changed_weights
    assert (weight.name, weight.differing, weight.max_abs, weight.max_rel) == ("k.value", 1, 3.0, 1.5)
    assert found.changed_nodes == ()


def test_minus_zero_is_not_zero() -> None:
    text = "g (float[N] x) => (float[N] y) { y = LeakyRelu <alpha = 0.0> (x) }"
    found = compare(model(text), model(text.replace("0.0", "-0.0")))
    assert [(c.what, c.before, c.after) for c in found.changed_nodes] == [("attribute alpha", "0.0", "-0.0")]


def test_what_is_left_out_at_the_end_is_not_there() -> None:
    text = "g (float[N] x) => (float[N] y) { y = Clip (x) }"
    assert compare(model(text), model(text.replace("(x) }", '(x, "", "") }'))).same
    assert not compare(model(text), model(text.replace("(x) }", '(x, "", x) }'))).same


def test_inputs_by_name_and_their_order() -> None:
    text = "g (float[2] x, float[2] z) => (float[2] y) { y = Sub (x, z) }"
    other = text.replace("float[2] x, float[2] z", "float[2] z, float[2] x")
    assert compare(model(text), model(other)).interface == (Fact("order of inputs", "x, z", "z, x"),)
    renamed = compare(model(text), model(text.replace("z", "w")))
    assert renamed.interface == (Fact("input", "'z' FLOAT[2]", "'w' FLOAT[2]"),)
    assert renamed.changed_nodes == ()
    crossed = compare(model(text), model(text.replace("Sub (x, z)", "Sub (z, x)")))
    assert len(crossed.changed_nodes) == 2


def test_open_dimensions_are_what_they_are_called_for() -> None:
    """``N, N`` is as good as ``M, M``, and says something else than ``M, K``."""
    text = "g (float[A, 2] x, float[A, B] z) => (float[A, 2] y, float[B, A] t) { y = Abs (x)  t = Transpose (z) }"
    built = model(text)
    for old, new in (("A", "N"), ("B", "M")):
        renamed = compare(built, model(text.replace(f"[{old},", f"[{new},").replace(f" {old}]", f" {new}]")))
        assert renamed.same, renamed
        assert renamed.renamed == (Renamed("dimension", old, new),)
    other_way = text.replace("[A,", "[C,").replace(" A]", " C]").replace("B", "A").replace("C", "B")
    assert compare(built, model(other_way)).renamed == (
        Renamed("dimension", "A", "B"), Renamed("dimension", "B", "A")
    )  # fmt: skip
    less = compare(built, model(text.replace("B", "A")))
    assert [fact.what for fact in less.interface] == ["input", "output"]
    more = compare(built, model(text.replace("=> (float[A,", "=> (float[C,")))
    assert "output" in [fact.what for fact in more.interface]
    known = compare(built, model(text.replace("B", "5")))
    assert [fact.what for fact in known.interface] == ["input", "output"]


def test_a_default_of_an_input_counts() -> None:
    text = "g (float[2] x, float[2] w) => (float[2] y) { y = Mul (x, w) }"

    def given(seed: int, ir_version: int = 8) -> ir.Model:
        built = model(text.replace(", float[2] w)", ")"), {"w": normal(2, seed=seed)}, ir_version=ir_version)
        if ir_version >= 4:
            built.graph.inputs.append(built.graph.initializers["w"])
        return built

    assert compare(given(0), given(0)).same
    found = compare(given(0), given(1))
    assert [w.name for w in found.changed_weights] == ["w"]
    plain = model(text.replace(", float[2] w)", ")"), {"w": normal(2)})
    assert [f.what for f in compare(given(0), plain).interface] == ["input with a default"]
    assert compare(given(0, 3), plain).same  # up to IR 3, every initializer is listed as an input


def test_who_made_a_model_does_not_count() -> None:
    other = models.two()
    other.producer_name, other.metadata_props["author"] = "somebody", "me"
    other.opset_imports["unused"] = 3
    other.graph.name = "h"
    found = compare(models.two(), other)
    assert found.same
    assert found.uncounted == (
        Fact("opset of 'unused'", "", "3"),
        Fact("producer_name", models.two().producer_name or "", "somebody"),
        Fact("name of the graph", "g", "h"),
        Fact("metadata 'author'", "", "me"),
    )


def test_a_function_that_only_one_has() -> None:
    other = function()
    extra = next(iter(other.functions.values())).clone()
    extra.name = "Thrice"
    other.functions[extra.identifier()] = extra
    assert compare(function(), other).only_nodes == (OnlyNode("b", "", "function 'local.Thrice'", "function"),)


def test_copies_of_one_computation_are_interchangeable() -> None:
    text = "g (float[N] x) => (float[N] y, float[N] z) { a = Abs (x)  b = Abs (x)  y = Exp (a)  z = Neg (b) }"
    assert compare(model(text), model(text.replace("Exp (a)", "Exp (b)").replace("Neg (b)", "Neg (a)"))).same
    fewer = compare(model(text), model(text.replace("b = Abs (x)", "").replace("Neg (b)", "Neg (a)")))
    assert [n.op_type for n in fewer.only_nodes] == ["Abs"]


def test_nodes_out_of_order_are_refused() -> None:
    built = model("g (float[N] x) => (float[N] y) { [a] a = Abs (x)  [b] y = Exp (a) }")
    first = next(iter(built.graph))
    built.graph.remove(first)
    built.graph.append(first)
    with pytest.raises(ModelError, match="'b' reads 'a' before it is produced"):
        compare(built, models.two())


def test_it_is_near_linear() -> None:
    """8,000 nodes, all different behind the first one."""
    import time

    def chain(head: str, length: int) -> ir.Model:
        lines = [f"v0 = {head} (x)", *(f"v{i + 1} = Relu (v{i})" for i in range(length))]
        return model(f"g (float[N] x) => (float[N] y) {{ {' '.join(lines)} y = Identity (v{length}) }}")

    a, b = chain("Abs", 8_000), chain("Neg", 8_000)
    begin = time.perf_counter()
    found = compare(a, b)
    assert time.perf_counter() - begin < 10
    assert [n.op_type for n in found.only_nodes] == ["Abs", "Neg"]
    assert len(found.changed_nodes) == 1


@pytest.mark.parametrize("seed", range(20))
def test_any_rewiring_is_found(seed: int) -> None:
    """One operand of one node becomes another value: different, and told at that node alone."""
    rng, built = np.random.default_rng(seed), residual()
    nodes = list(built.graph)
    at = int(rng.integers(2, len(nodes)))
    slots = [i for i, v in enumerate(nodes[at].inputs) if v is not None and not v.is_initializer()]
    slot = slots[rng.integers(len(slots))]
    choices = [n.outputs[0] for n in nodes[:at] if n.outputs[0] is not nodes[at].inputs[slot]]
    nodes[at].replace_input_with(slot, choices[rng.integers(len(choices))])
    found = compare(residual(), built)
    assert not found.same
    assert [(c.node, c.what) for c in found.changed_nodes] == [(nodes[at].name, f"input {slot}")]
    assert found.only_nodes == found.only_weights == found.changed_weights == ()


def test_batch_norm_statistics_are_weights() -> None:
    found = compare(models.kept(), model(models.KEPT, batch_norm(4, seed=9)))
    assert [w.name for w in found.changed_weights] == ["s", "b", "m", "v"]
