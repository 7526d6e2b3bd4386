"""What changes nothing is taken out of a graph; golden pairs (`idle`) say what, and what not."""

import numpy as np
import onnx_ir as ir

from bnpass.graph.idle import remove_idle
from bnpass.graph.nodes import scopes
from bnpass.graph.shapes import Shapes
from tests.support.build import model


def idle(built: ir.Model, *left_alone: str) -> list[str]:
    """Remove idle nodes of the main graph; return their names."""
    return remove_idle(next(scopes(built)), Shapes(built), lambda node: node.outputs[0].name not in left_alone)


def test_shapes_that_contradict_each_other_prove_nothing() -> None:
    built = model(
        "g (float[2,4] x) => (float[2,4] y) { t = Reshape(x, shape) y = Relu(t) }", {"shape": np.array([2, 4])}
    )
    built.graph[0].outputs[0].shape = ir.Shape([3, 4])  # of a file that is wrong
    assert idle(built) == []


def test_a_shape_that_an_output_only_claims_proves_nothing() -> None:
    built = model("g (float[N,4,1,1] x) => (float[N,4,1,1] y) { t = Relu(x) y = Reshape(t, shape) }",
                  {"shape": np.array([-1, 4, 1])})  # fmt: skip
    assert idle(built) == []


def test_a_squeeze_of_no_axes_may_squeeze_all() -> None:
    """ONNX Runtime takes it for one without axes."""
    built = model("g (float[N,4,1,1] x) => (float[N,4] y) { t = Squeeze(x, axes) y = Relu(t) }",
                  {"axes": np.array([], np.int64)})  # fmt: skip
    assert idle(built) == []


def test_what_is_not_selected_stays_and_hides_what_stands_before_it() -> None:
    text = (
        "g (float[2,4] x) => (float[2,4] y) "
        "{ a = Relu(x) t = Unsqueeze(a, axis) u = Identity(t) w = Squeeze(u, axis) y = Relu(w) }"
    )
    assert idle(model(text, {"axis": np.array([0])})) == ["t", "u", "w"]
    assert idle(model(text, {"axis": np.array([0])}), "u") == []


def test_the_result_of_a_branch_is_not_a_value_from_outside() -> None:
    built = model(
        "g (bool c, float[2] x) => (float[2] y) { r = Relu(x) y = If (c) <"
        "then_branch = g1 () => (float[2] o1) { o1 = Identity(r) },"
        "else_branch = g2 () => (float[2] o2) { t = Identity(r) o2 = Neg(t) }> }",
        {},
    )
    assert idle(built) == ["t"]


def test_chains_of_any_length_are_walked_in_linear_time() -> None:
    nodes = " ".join(f"v{i + 1} = Identity(v{i})" for i in range(2000))
    built = model(f"g (float[2] x) => (float[2] y) {{ v0 = Relu(x) {nodes} y = Relu(v2000) }}", {})
    assert len(idle(built)) == 2000
    assert [node.op_type for node in built.graph] == ["Relu", "Relu"]
