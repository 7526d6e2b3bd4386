"""The passes of bnpass in one onnx_ir pass manager with those of onnx_ir and onnxscript, in any order, on real models.

`docs/integrations.md` says how; its example is run here.
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from bnpass.errors import RefusedError
from bnpass.expansion.options import ExpandOptions
from bnpass.folding.inference import set_inference_mode
from bnpass.passes import CoalesceAllReduce, ExpandSyncBatchNorm, FoldBatchNorm
from bnpass.verification import verify
from tests.support.collectives import ids, parsed
from tests.support.judge import agree, draws, is_valid, serialized
from tests.unit.expansion.cases import run_replicas

onnxscript = pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install onnxscript")

ROOT = Path(__file__).resolve().parents[2]
STEPS = 8
TRAINING = "digits_cnn_training"
TWO_BRANCHES = """g (double[2] a, double[2] b) => (double[2] c, double[2] d) {
    s = bnpass.AllReduce<group = "world", collective_id = 0>(a)
    t = bnpass.AllReduce<group = "world", collective_id = 1>(b)
    c = Neg(s)
    d = Abs(t)
}"""

Passes = Mapping[str, ir.passes.PassBase]


def theirs() -> Passes:
    """Return the passes that `onnxscript.optimizer.optimize_ir` is made of."""
    from onnxscript import rewriter
    from onnxscript.optimizer._constant_folding import FoldConstantsPass

    return {
        "constants": FoldConstantsPass(shape_inference=True, input_size_limit=8192, output_size_limit=512 * 512),
        "dead": common.RemoveUnusedNodesPass(),
        "inline": common.InlinePass(),
        "inline others": common.InlinePass(criteria=lambda function: function.domain != "bnpass"),
        "rewrite": rewriter.RewritePass(rewriter._DEFAULT_REWRITE_RULES),
        "common": common.CommonSubexpressionEliminationPass(),
        "lift": common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        "tidy": common.RemoveUnusedOpsetsPass(),
    }


class Watched(ir.passes.InPlacePass):
    """A pass of ours that is caught at saying the wrong thing about `modified`, and counted."""

    def __init__(self, watched: ir.passes.PassBase) -> None:
        super().__init__()
        self.watched = watched
        self.said: list[bool] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        before = serialized(model)
        result = self.watched(model)
        assert (serialized(result.model) != before) == result.modified, f"{self.watched}: modified={result.modified}"
        self.said.append(bool(result.modified))
        return result


def managed(model: ir.Model, order: str, **ours: ir.passes.PassBase) -> dict[str, Watched]:
    """Run passes until none changes anything; return ours, which know what they said."""
    watched = {name: Watched(one) for name, one in ours.items()}
    passes = {**theirs(), **watched}
    manager = ir.passes.PassManager([passes[name.strip()] for name in order.split(",")], steps=STEPS, early_stop=True)
    assert manager(model).model is model
    is_valid(model)
    return watched


def stopped_early(watched: Watched) -> bool:
    """Whether a pass that had something to do was asked again, said no, and was left in peace long before the end."""
    return watched.said[-1] is False and len(watched.said) <= STEPS // 2


def read(name: str) -> ir.Model:
    return ir.load(ROOT / "models" / f"{name}.onnx")


def for_inference() -> ir.Model:
    """Return the training graph as one would deploy it: seven batch normalizations, and one output."""
    model = read(TRAINING)
    while len(model.graph.outputs) > 1:
        model.graph.outputs.pop()
    assert set_inference_mode(model)
    return model


def ops(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.all_nodes())


FOLDS = [
    "fold, constants, dead, inline, rewrite",
    "constants, fold, dead, inline, rewrite",
    "constants, dead, fold, inline, rewrite",
    "constants, dead, inline, fold, rewrite",
    "constants, dead, inline, rewrite, fold",
    "lift, common, fold, rewrite, tidy",
    "rewrite, constants, common, lift, fold, tidy, dead",
]


@pytest.mark.parametrize("order", FOLDS)
@pytest.mark.parametrize("model", ["as exported", "with batch normalization"])
def test_fold(model: str, order: str) -> None:
    before, alone, after = (read("digits_cnn") if model == "as exported" else for_inference() for _ in range(3))
    fold = managed(after, order, fold=FoldBatchNorm())["fold"]
    assert fold.said[0] is True
    assert stopped_early(fold)
    FoldBatchNorm()(alone)
    for op_type in ("BatchNormalization", "Mul", "Add", "Conv", "MaxPool"):
        assert ops(after)[op_type] == ops(alone)[op_type], op_type
    agree(before, after, draws(before))


EXPANDS = [
    "expand, coalesce, constants, dead, rewrite",
    "constants, rewrite, expand, dead, coalesce",
    "rewrite, constants, expand, common, coalesce, lift, dead",
    "expand, inline others, constants, common, lift, rewrite, tidy, dead, coalesce",
    "expand, dead, constants, coalesce, rewrite, inline",
    "inline, constants, rewrite, dead, expand, coalesce",
]


@pytest.mark.parametrize("order", EXPANDS)
def test_expand(order: str) -> None:
    before, after = read(TRAINING), read(TRAINING)
    expand = ExpandSyncBatchNorm(ExpandOptions(group="world", coalesce=False))
    watched = managed(after, order, expand=expand, coalesce=CoalesceAllReduce())
    assert watched["expand"].said[0] is True
    assert stopped_early(watched["expand"])
    assert not any(watched["coalesce"].said)  # a chain: each waits for the one before
    inlined = "inline" in order.split(", ")
    assert ids(after) == ([] if inlined else list(range(7)))  # the body of AllReduce is that of one replica
    result = verify(before, after, draws=2)
    assert result.ok, result


@pytest.mark.parametrize(
    "order", ["coalesce, constants, dead", "constants, common, coalesce, rewrite", "tidy, coalesce"]
)
def test_coalesce(order: str) -> None:
    before, after = parsed(TWO_BRANCHES), parsed(TWO_BRANCHES)
    coalesce = managed(after, order, coalesce=CoalesceAllReduce())["coalesce"]
    assert (ops(before)["AllReduce"], ops(after)["AllReduce"]) == (2, 1)
    assert coalesce.said == [True, False]
    same_on_two_replicas(before, after)


def same_on_two_replicas(before: ir.Model, after: ir.Model) -> None:
    """Assert that two replicas with samples of their own get the same, bit for bit, from both models."""
    feeds = draws(before)[:2]
    for old, new in zip(run_replicas(before, feeds), run_replicas(after, feeds), strict=True):
        assert old.keys() == new.keys()
        for name, value in old.items():
            np.testing.assert_array_equal(new[name], value, err_msg=name)


def test_replicas_share_their_statistics_after_the_passes_of_others() -> None:
    alone, after = read(TRAINING), read(TRAINING)
    ExpandSyncBatchNorm(ExpandOptions(group="world"))(alone)
    managed(after, EXPANDS[3], expand=ExpandSyncBatchNorm(ExpandOptions(group="world")), coalesce=CoalesceAllReduce())
    assert len(ops(after)) < len(ops(alone))
    same_on_two_replicas(alone, after)


def test_a_sequence_in_which_nothing_is_left_to_do_says_so() -> None:
    model = for_inference()
    sequence = ir.passes.Sequential(common.RemoveUnusedNodesPass(), FoldBatchNorm(), CoalesceAllReduce())
    assert sequence(model).modified is True
    assert sequence(model).modified is False


def test_a_copy_is_folded_where_the_model_is_to_stay_as_it_is() -> None:
    model = for_inference()
    before = serialized(model)
    result = ir.passes.functionalize(FoldBatchNorm())(model)
    assert result.modified
    assert serialized(model) == before
    assert ops(result.model)["BatchNormalization"] < ops(model)["BatchNormalization"]


def test_why_a_pass_failed_is_at_the_end_of_the_chain() -> None:
    model = read(TRAINING)
    image = model.graph.inputs[0]
    image.shape = None
    model.graph.insert_before(model.graph[0], opaque := ir.Node("own", "Opaque", [image], num_outputs=1))
    opaque.outputs[0].name = "seen"
    next(node for node in model.graph if node.op_type == "BatchNormalization").replace_input_with(0, opaque.outputs[0])
    model.opset_imports["own"] = 1
    before = serialized(model)
    with pytest.raises(ir.passes.PassError) as failed:
        ir.passes.PassManager([CoalesceAllReduce(), ExpandSyncBatchNorm(), common.RemoveUnusedNodesPass()])(model)
    cause: BaseException = failed.value
    while cause.__cause__ is not None:
        cause = cause.__cause__
    assert isinstance(cause, RefusedError)
    assert serialized(model) == before


def test_the_example_of_the_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page.partition("## Olive")[0], re.DOTALL)
    ir.save(for_inference(), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/integrations.md", "exec"), {})  # noqa: S102  our own page
    agree(ir.load("model.onnx"), ir.load("small.onnx"), draws(for_inference()))
    assert ops(ir.load("small.onnx"))["BatchNormalization"] == 2
