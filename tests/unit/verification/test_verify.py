"""Whole comparisons, in ONNX Runtime in its child process."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from bnpass.errors import MissingDependencyError, UsageError, VerificationError
from bnpass.verification import Status, runner, verify
from tests.unit.verification.models import chain, info, model, save

BUGS = ["beta dropped", "eps outside the root", "channels swapped"]


def test_a_correct_fold_is_accepted_and_the_caller_s_models_are_left_alone() -> None:
    old, new = chain(), chain(fold=True)
    before = old.SerializeToString(), new.SerializeToString()
    found = verify(old, new)
    assert found.ok
    assert found.reference == "float64"
    assert found.draws == 3
    assert found.status is Status.AGREE
    found.raise_for_mismatch()
    assert (old.SerializeToString(), new.SerializeToString()) == before


@pytest.mark.parametrize("bug", BUGS)
def test_a_wrong_fold_is_rejected(bug: str) -> None:
    found = verify(chain(), chain(fold=True, bug=bug), draws=1)
    assert found.status is Status.MISMATCH
    with pytest.raises(VerificationError, match="r1: error") as caught:
        found.raise_for_mismatch()
    assert "seed 0" in caught.value.__notes__[0]
    passing = found.tolerance_that_would_pass
    assert verify(chain(), chain(fold=True, bug=bug), draws=1, atol=passing).ok
    assert not verify(chain(), chain(fold=True, bug=bug), draws=1, atol=passing / 2).ok


def test_the_wrong_epsilon_is_found_although_it_is_small() -> None:
    found = verify(chain(), chain(fold=True, bug="eps outside the root"), draws=1)
    assert 0 < found.outputs[0].max_rel_error < 1e-4  # a relative tolerance of 1e-4 would let it pass


def test_a_deep_correct_fold_is_accepted_beyond_elementwise_1e_5() -> None:
    old, new = chain(depth=20), chain(depth=20, fold=True)
    x = np.random.default_rng(0).standard_normal((1, 3, 12, 12)).astype(np.float32)
    import onnxruntime as ort

    values = [
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for m in (old, new)
    ]
    different = np.abs(values[1] - values[0]) > 1e-5 * np.abs(values[0])
    assert different.any()
    assert verify(old, new, draws=2).ok
    assert not verify(old, chain(depth=20, fold=True, bug="channels swapped"), draws=1).ok


@pytest.mark.parametrize("kind", ["path", "proto", "ir"])
def test_models_come_as_path_proto_or_ir(kind: str, tmp_path: Path) -> None:
    protos = [chain(), chain(fold=True)]
    if kind == "path":
        given = [save(proto, tmp_path / f"{i}.onnx") for i, proto in enumerate(protos)]
    else:
        given = protos if kind == "proto" else [ir.from_proto(proto) for proto in protos]
    assert verify(*given, draws=1).ok
    assert {path.name for path in tmp_path.iterdir()} <= {"0.onnx", "1.onnx"}


def test_open_dimensions_are_tried_at_two_sizes() -> None:
    dims = ["N", 3, "H", "W"]
    found = verify(chain(dims=dims), chain(dims=dims, fold=True), draws=2)
    assert found.ok
    assert [size.split(" ")[0] for size in found.sizes] == ["x:1,3,32,32", "x:2,3,48,48"]
    fixed = verify(chain(dims=dims), chain(dims=dims, fold=True), draws=1, shapes={"x": (3, 3, 5, 7)})
    assert fixed.ok
    assert fixed.sizes[0].startswith("x:3,3,5,7")


def reshaped(total: int) -> object:
    nodes = [helper.make_node("Reshape", ["x", "s"], ["y"])]
    return model(nodes, [info("x", ["N", None])], [info("y", None)], {"s": np.array([total])})


def test_a_size_the_original_cannot_run_is_no_mismatch() -> None:
    found = verify(reshaped(224), reshaped(224), draws=2)
    assert found.ok
    assert found.sizes[0].startswith("x:1,224 ")
    assert any("draw 1 was not run" in note for note in found.notes)


def test_no_draw_run_says_what_to_do() -> None:
    found = verify(reshaped(7), reshaped(7))
    assert found.status is Status.NOT_RUN
    assert "--shape name:1,3,224,224" in found.failure
    assert verify(reshaped(7), reshaped(7), shapes={"x": [1, 7]}).ok


def test_a_new_model_that_does_not_run_is_a_mismatch() -> None:
    found = verify(reshaped(224), reshaped(225), draws=1)
    assert found.status is Status.MISMATCH
    assert "The new model cannot run draw 0" in found.failure


def test_data_of_the_user_replaces_the_draws(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(5).standard_normal((2, 3, 12, 12)))
    with np.load(tmp_path / "x.npz", allow_pickle=False) as data:
        found = verify(chain(), chain(fold=True), data=dict(data))
    assert found.ok
    assert found.draws == 1
    assert found.sizes == ("x:2,3,12,12 (data)",)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"data": {"z": np.zeros(1)}}, "no input 'z'"),
        ({"shapes": {"z": [1]}}, "no input 'z'"),
        ({"data": {"x": np.zeros((1, 4, 12, 12))}}, "has shape"),
        ({"data": {"x": np.array(["a"])}}, "of type <U1"),
        ({"data": {"x": np.array([None])}}, "of type object"),
        ({"shapes": {"x": [1, 3]}}, "4 dimensions"),
        ({"draws": 0}, "at least one"),
        ({"atol": -1.0}, "tolerance"),
        ({"rtol": float("nan")}, "tolerance"),
        ({"provider": "tpu"}, "provider"),
        ({"timeout_s": 0}, "timeout_s"),
    ],
)
def test_calls_that_do_not_fit_are_refused(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        verify(chain(), chain(fold=True), **arguments)


def test_string_inputs_are_refused_unless_given() -> None:
    strings = model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [info("x", [2], TensorProto.STRING)],
        [info("y", [2], TensorProto.STRING)],
    )
    with pytest.raises(UsageError, match="strings"):
        verify(strings, strings)
    assert verify(strings, strings, data={"x": np.array(["a", "bc"])}).ok


def test_other_names_are_a_mismatch_in_one_sentence() -> None:
    other = chain(fold=True)
    other.graph.node[-1].output[0] = other.graph.output[0].name = "z"
    found = verify(chain(), other)
    assert not found.ok
    assert found.failure == "The outputs differ: z: FLOAT instead of r1: FLOAT"
    half = chain(dtype=np.float16)
    assert "The inputs differ" in verify(chain(), half).failure


@pytest.mark.parametrize("op", ["ArgMax", "TopK", "NonMaxSuppression"])
def test_discrete_outputs_are_compared_at_the_floats_above(op: str) -> None:
    integers = info("i", None, TensorProto.INT64)
    outputs, more = [integers], {"k": np.array([2])}
    if op == "ArgMax":
        tail = [helper.make_node("ArgMax", ["r1"], ["i"], axis=1)]
    elif op == "TopK":
        tail = [helper.make_node("TopK", ["r1", "k"], ["t", "i"], axis=1)]
        outputs = [info("t", None), integers]
    else:
        more |= {"n": np.array([3]), "s": np.array([1, -1, 4]), "p": np.array([1, 1, -1])}
        tail = [
            helper.make_node("Reshape", ["r1", "s"], ["boxes"]),
            helper.make_node("Reshape", ["y1", "p"], ["scores"]),
            helper.make_node("Slice", ["scores", "zero", "many", "two"], ["some"]),
            helper.make_node("NonMaxSuppression", ["boxes", "some", "n"], ["i"]),
        ]
        more |= {"zero": np.array([0]), "many": np.array([288]), "two": np.array([2])}
    arguments = {"tail": tail, "outputs": outputs, "more": more, "dims": [1, 3, 12, 12]}
    found = verify(chain(**arguments), chain(fold=True, **arguments), draws=2)
    assert found.ok, found.to_text()
    assert [item.name for item in found.not_compared] == ["i"]
    assert op in found.not_compared[0].reason
    above = {"ArgMax": {"r1"}, "TopK": {"t", "r1"}, "NonMaxSuppression": {"boxes", "some"}}[op]
    assert {output.name for output in found.outputs} == above
    wrong = verify(chain(**arguments), chain(fold=True, bug=BUGS[2], **arguments), draws=1)
    assert wrong.status is Status.MISMATCH


def test_floats_picked_by_a_discrete_index_are_not_compared() -> None:
    tail = [
        helper.make_node("TopK", ["r1", "k"], ["t", "i"], axis=1),
        helper.make_node("GatherElements", ["y1", "i"], ["picked"], axis=1),
    ]
    arguments = {"tail": tail, "outputs": [info("picked", None)], "more": {"k": np.array([2])}}
    found = verify(chain(**arguments), chain(fold=True, **arguments), draws=1)
    assert found.ok
    assert [item.name for item in found.not_compared] == ["picked"]
    assert {output.name for output in found.outputs} == {"r1", "y1"}


def test_a_random_output_is_compared_above() -> None:
    tail = [helper.make_node("RandomNormalLike", ["r1"], ["n"]), helper.make_node("Add", ["r1", "n"], ["y"])]
    arguments = {"tail": tail, "outputs": [info("y", None)]}
    found = verify(chain(**arguments), chain(fold=True, **arguments), draws=1)
    assert found.ok
    assert [output.name for output in found.outputs] == ["r1"]
    assert "random RandomNormalLike" in found.not_compared[0].reason
    assert not verify(chain(**arguments), chain(fold=True, bug=BUGS[0], **arguments), draws=1).ok


def test_integers_made_from_floats_are_compared_above_and_others_exactly() -> None:
    tail = [
        helper.make_node("Cast", ["r1"], ["q"], to=TensorProto.INT32),
        helper.make_node("Shape", ["r1"], ["s"]),
    ]
    outputs = [info("q", None, TensorProto.INT32), info("s", [4], TensorProto.INT64)]
    found = verify(chain(tail=tail, outputs=outputs), chain(fold=True, tail=tail, outputs=outputs), draws=1)
    assert found.ok
    assert [output.name for output in found.outputs] == ["s", "r1"]

    def counted(step: int) -> object:
        nodes = [helper.make_node("Mul", ["x", "k"], ["y"])]
        value = info("y", [3], TensorProto.INT64)
        return model(nodes, [info("x", [3], TensorProto.INT64)], [value], {"k": np.array([step])})

    assert verify(counted(2), counted(2)).ok
    assert "differ" in verify(counted(2), counted(3)).outputs[0].reason


def test_indices_stay_in_range() -> None:
    nodes = [helper.make_node("Gather", ["table", "x"], ["y"])]
    table = {"table": np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)}
    gather = model(nodes, [info("x", ["N", "S"], TensorProto.INT64)], [info("y", None)], table)
    assert verify(gather, gather).ok


def test_discrete_inside_subgraphs_counts() -> None:
    inner = helper.make_node("ArgMax", ["r1"], ["a"], axis=1)
    branch = helper.make_graph([inner], "b", [], [info("a", None, TensorProto.INT64)])
    tail = [
        helper.make_node("Constant", [], ["c"], value=helper.make_tensor("c", TensorProto.BOOL, [], [True])),
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
    ]
    outputs = [info("y", None, TensorProto.INT64)]
    found = verify(chain(tail=tail, outputs=outputs), chain(fold=True, tail=tail, outputs=outputs), draws=1)
    assert found.ok
    assert [output.name for output in found.outputs] == ["r1"]
    assert "ArgMax" in found.not_compared[0].reason


def test_float16_and_bfloat16() -> None:
    for dtype in (np.float16, ml_dtypes.bfloat16):
        found = verify(chain(dtype=dtype), chain(dtype=dtype, fold=True), draws=2)
        assert found.ok, found.to_text()
        assert not any("evaluated in float64" in note for note in found.notes)
        assert any("through float32" in note for note in found.notes) == (dtype is not np.float16)
        assert not verify(chain(dtype=dtype), chain(dtype=dtype, fold=True, bug=BUGS[0]), draws=1).ok


def test_float64_is_evaluated_without_the_runtime() -> None:
    found = verify(chain(dtype=np.float64), chain(dtype=np.float64, fold=True))
    assert found.ok, found.to_text()
    assert any("evaluated in float64" in note for note in found.notes)
    for bug in BUGS:
        assert not verify(chain(dtype=np.float64), chain(dtype=np.float64, fold=True, bug=bug), draws=1).ok


def test_without_float64_the_original_is_the_reference() -> None:
    tail = [helper.make_node("Gelu", ["r1"], ["y"], domain="com.microsoft")]

    def gelu(**arguments: object) -> object:
        proto = chain(tail=tail, outputs=[info("y", None)], **arguments)
        proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        return proto

    found = verify(gelu(), gelu(fold=True), draws=1)
    assert found.ok, found.to_text()
    assert found.reference.startswith("original model (")
    assert "Gelu" in found.reference
    assert not verify(gelu(), gelu(fold=True, bug=BUGS[2]), draws=1).ok


def test_the_result_prints_and_converts() -> None:
    found = verify(chain(), chain(fold=True, bug=BUGS[0]), draws=2, seed=11)
    text = found.to_text()
    assert "mismatch: 2 draws, seed 11, reference: float64" in text
    assert "would have passed" in text
    assert "\x1b" not in text
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert plain["ok"] is False
    assert plain["seed"] == 11
    assert plain["outputs"][0]["name"] == "r1"
    assert verify(chain(), chain(fold=True), draws=1, seed=3) == verify(chain(), chain(fold=True), draws=1, seed=3)


FAKE = """
import os, signal, time
class GraphOptimizationLevel: ORT_DISABLE_ALL = 0
class SessionOptions: pass
__version__ = "0"
def get_available_providers(): return ["CPUExecutionProvider"]
def InferenceSession(path, options, providers):
    if os.path.basename(path).startswith("{model}"): {act}
    return Session()
class Value: name = "r1"
class Session:
    def get_outputs(self): return [Value()]
    def run(self, names, feeds):
        import numpy
        return [numpy.zeros((1, 8, 12, 12), "float32")]
"""


def fake_runtime(monkeypatch: pytest.MonkeyPatch, folder: Path, model_name: str, act: str) -> None:
    (folder / "onnxruntime.py").write_text(FAKE.format(model=model_name, act=act))
    monkeypatch.setenv("PYTHONPATH", str(folder))


@pytest.mark.parametrize(("model_name", "status"), [("original", Status.NOT_RUN), ("new", Status.MISMATCH)])
def test_a_crash_becomes_a_sentence(
    model_name: str, status: Status, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_runtime(monkeypatch, tmp_path, model_name, "os.kill(os.getpid(), signal.SIGABRT)")
    found = verify(chain(), chain(fold=True), draws=1)
    assert found.status is status
    assert found.failure == f"ONNX Runtime crashed with SIGABRT, loading the {model_name} model"


def test_a_crash_on_a_perturbed_copy_is_only_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_runtime(monkeypatch, tmp_path, "perturbed", "os.kill(os.getpid(), signal.SIGSEGV)")
    found = verify(chain(), chain(fold=True), draws=1)
    assert found.failure == ""
    assert any("SIGSEGV" in note for note in found.notes)


def test_a_hang_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_runtime(monkeypatch, tmp_path, "new", "time.sleep(60)")
    found = verify(chain(), chain(fold=True), draws=1, timeout_s=2)
    assert found.status is Status.MISMATCH
    assert found.failure == "ONNX Runtime did not finish within 2 s, loading the new model"


def test_a_dying_interpreter_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    stub = [sys.executable, "-c", "import sys; sys.exit('no such thing')"]
    monkeypatch.setattr(runner, "_command", lambda _: stub)
    found = verify(chain(), chain(fold=True), draws=1)
    assert found.status is Status.NOT_RUN
    assert found.failure == "The process running ONNX Runtime exited with 1, starting: no such thing"


def test_a_missing_runtime_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "raise ModuleNotFoundError('No module named onnxruntime', name='onnxruntime')"
    (tmp_path / "onnxruntime.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match=r'pip install "bnpass\[cpu\]"'):
        verify(chain(), chain(fold=True))


def test_a_missing_cuda_provider_says_what_to_install() -> None:
    import onnxruntime as ort

    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(MissingDependencyError, match=r'pip install "bnpass\[gpu\]"'):
        verify(chain(), chain(fold=True), provider="cuda")


def test_awkward_input_names_travel() -> None:
    names = ["file", "a/../b", "kwds"]
    nodes = [helper.make_node("Add", names[:2], ["t"]), helper.make_node("Mul", ["t", names[2]], ["y"])]
    awkward = model(nodes, [info(name, [2, 3]) for name in names], [info("y", None)])
    assert verify(awkward, awkward, draws=1).ok
