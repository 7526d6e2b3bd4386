"""``bnpass expand``: what it says, what it writes, and that nothing is written where it refuses."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import bnpass
from bnpass.expansion.options import ExpandOptions
from tests.cli.command import ROOT, Call, python
from tests.cli.conftest import Folder
from tests.cli.models import ops_of, written
from tests.support.build import batch_norm, model, normal

TWO = """g (float[N, 3, 6, 6] x) => (float[N, 8, 6, 6] y, float[4] m1_out, float[4] v1_out) {
    [conv1] c = Conv <pads = [1, 1, 1, 1]> (x, w)
    [bn1] d, m1_out, v1_out = BatchNormalization <training_mode = 1> (c, s, b, m, v)
    r = Relu (d)
    [conv2] e = Conv <pads = [1, 1, 1, 1]> (r, w2)
    [bn2] y, m2_out, v2_out = BatchNormalization <training_mode = 1> (e, s2, b2, m2, v2)
}"""

BRANCHES = """g (float[N, 4] x) => (float[N, 4] y) {
    [left] a, ma, va = BatchNormalization <training_mode = 1> (x, s, b, m, v)
    t = Mul (x, x)
    [right] c, mc, vc = BatchNormalization <training_mode = 1> (t, s, b, m, v)
    u = Add (a, c)
    [last] y, my, vy = BatchNormalization <training_mode = 1> (u, s, b, m, v)
}"""


def two() -> ir.Model:
    second = {f"{name}2": array for name, array in batch_norm(8, seed=1).items()}
    return model(TWO, {"w": normal(4, 3, 3, 3), **batch_norm(4), "w2": normal(8, 4, 3, 3, seed=1), **second})


def branches() -> ir.Model:
    return model(BRANCHES, batch_norm(4))


def test_it_writes_plain_onnx_beside_the_model(call: Call, tmp_path: Path) -> None:
    source = written(tmp_path, two())
    done = call("expand", source)
    assert done.code == 0, done.err
    target = tmp_path / f"{source.stem}.expanded.onnx"
    assert "BatchNormalization" not in ops_of(target)
    assert "AllReduce" not in ops_of(target)
    assert "2 nodes expanded, 0 kept; 0 collectives" in done.out
    assert "checked, local: 1 kind of batch normalization alone" in done.out
    assert "checked, whole model: 3 draws" in done.out


def test_synchronized_replicas_are_checked_against_one_replica(call: Call, tmp_path: Path) -> None:
    done = call("expand", written(tmp_path, two()), "--sync", "world")
    assert done.code == 0, done.err
    assert "checked, replicas: " in done.out
    assert "2 collectives, at most 2 in a row" in done.out


def test_branches_share_a_message(call: Call, tmp_path: Path) -> None:
    source = written(tmp_path, branches())
    assert "3 collectives put together to 2, at most 2 in a row" in call("expand", source, "--sync", "world").out
    apart = call("expand", source, "--sync", "world", "--no-coalesce", "--force")
    assert "3 collectives, at most" in apart.out


def test_functions_carry_their_bodies(call: Call, tmp_path: Path) -> None:
    target = tmp_path / "f.onnx"
    assert call("expand", written(tmp_path, two()), "-o", target, "--sync", "world", "--as-functions").code == 0
    loaded = onnx.load(target)
    onnx.checker.check_model(loaded, full_check=True)
    assert [f.name for f in loaded.functions] == ["AllReduce", "SyncBatchMoments", "SyncBatchNormalization"]
    assert [n.op_type for n in loaded.graph.node].count("SyncBatchNormalization") == 2
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.ones((2, 3, 6, 6), np.float32)})[0].shape == (2, 8, 6, 6)


@pytest.mark.parametrize("flag", ["--stats=keras", "--correction=1", "--collective=com.microsoft", "--collective=none"])
def test_every_way_to_write_it_passes_its_check(call: Call, tmp_path: Path, flag: str) -> None:
    target = tmp_path / "out.onnx"
    done = call("expand", written(tmp_path, two()), "-o", target, "--sync", "world", flag)
    assert done.code == 0, done.err
    domains = {n.domain for n in onnx.load(target).graph.node if n.op_type == "AllReduce"}
    assert domains == {"--collective=com.microsoft": {"com.microsoft"}, "--collective=none": set()}.get(
        flag, {"bnpass"}
    )


def test_the_sample_variance_is_what_it_says(call: Call, tmp_path: Path) -> None:
    source = written(tmp_path, two())
    x = {"x": normal(2, 3, 6, 6)}
    found = []
    for correction in ("0", "1"):
        target = tmp_path / f"{correction}.onnx"
        assert call("expand", source, "-o", target, "--correction", correction).code == 0
        found.append(onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"]).run(["v1_out"], x)[0])
    before = 0.9 * batch_norm(4)["v"]
    np.testing.assert_allclose((found[1] - before) / (found[0] - before), 72 / 71, rtol=1e-3)


def test_the_report_is_what_the_schema_says(call: Call, tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    assert call("expand", written(tmp_path, two()), "--sync", "world", "--report", report).code == 0
    found: dict[str, Any] = json.loads(report.read_text())
    jsonschema.validate(found, json.loads((ROOT / "bnpass" / "report" / "report.schema.json").read_text()))
    assert found["verb"] == "expand"
    assert [e["node"] for e in found["expanded"]] == ["bn1", "bn2"]
    assert found["collectives"] == {"before": 2, "after": 2, "depth": 2}


def test_a_dry_run_writes_nothing(call: Call, tmp_path: Path) -> None:
    source = written(tmp_path, two())
    done = call("expand", source, "--dry-run", "--sync", "world")
    assert done.code == 0
    assert list(tmp_path.iterdir()) == [source]
    assert "not checked, whole model: this is a dry run" in done.out


INFERENCE = """g (float[N, 4] x) => (float[N, 4] y) {
    [bn] y = BatchNormalization (x, s, b, m, v)
}"""


def test_inference_mode_stays_and_is_named(call: Call, tmp_path: Path) -> None:
    done = call("expand", written(tmp_path, model(INFERENCE, batch_norm(4))))
    assert done.code == 0
    assert "BatchNormalization 'bn' kept, BN201 inference-mode: " in done.out


UNRANKED = """g (float[] x, int64[K] dims) => (float[] y) {
    u = Reshape (x, dims)
    [bn] z, mz, vz = BatchNormalization <training_mode = 1> (u, s, b, m, v)
    y = ReduceSum <keepdims = 0> (z)
}"""
LOOSE = """g (float[N, 4] x, bool flag) => (float[N, 4] y) {
    y = If (flag) <then_branch = t () => (float[N, 4] ty) {
        [bn] ty, mt, vt = BatchNormalization <training_mode = 1> (x, s, b, m, v)
    }, else_branch = e () => (float[N, 4] ey) { ey = Identity (x) }>
}"""


NO_GROUP = TWO.replace("SyncBatch", "").replace(
    "BatchNormalization <training_mode = 1> (c, s, b, m, v)",
    'bnpass.SyncBatchNormalization <axis = 1, training_mode = 1, group = "no such name"> (c, s, b, m, v)',
)
OLD_SAVED = """g (float[N, 4] x) => (float[N, 4] y, float[4] kept) {
    [bn] y, new_m, new_v, kept_mean, kept = BatchNormalization (x, s, b, m, v)
}"""


@pytest.mark.parametrize(
    ("graph", "opset", "words", "said"),
    [
        (UNRANKED, 17, (), "BN202 unknown-shape: 'bn': "),
        (OLD_SAVED, 9, (), "BN203 saved-statistics: 'bn': "),
        (LOOSE, 17, ("--sync", "world"), "BN207 order-not-provable: "),
        (NO_GROUP, 17, (), "BN208 bad-group: 'bn1': "),
        (TWO, 17, ("--sync", "some", "--collective", "com.microsoft"), "BN209 collective-cannot-say-it: 'bn1': "),
    ],
    ids=["unknown rank", "saved variance", "a branch that replicas may take or not", "group", "collective"],
)
def test_what_cannot_be_exact_is_refused_and_nothing_is_written(
    folder: Folder, graph: str, opset: int, words: tuple[str, ...], said: str
) -> None:
    second = {f"{name}2": array for name, array in batch_norm(8, seed=1).items()}
    constants = {"w": normal(4, 3, 3, 3), **batch_norm(4), "w2": normal(8, 4, 3, 3, seed=1), **second}
    used = {name: a for name, a in constants.items() if re.search(rf"[(,] ?{name}[,)]", graph)}
    source = written(folder.path, model(graph, used, opset=opset))
    folder.refuses(3, ("expand", source, *words), said)


def test_a_uniform_flag_may_decide(call: Call, tmp_path: Path) -> None:
    source = written(tmp_path, model(LOOSE, batch_norm(4)))
    done = call("expand", source, "--sync", "world", "--uniform", "flag")
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--sync", "no such name"), "'no such name' is no name of a group"),
        (("--as-functions", "--stats", "keras"), "exact statistics"),
        (("--uniform", "nobody"), "nobody"),
    ],
)
def test_calls_that_cannot_be_carried_out(call: Call, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    source = written(tmp_path, two())
    done = call("expand", source, *words)
    assert done.code == 2
    assert said in done.err
    assert list(tmp_path.iterdir()) == [source]


def test_the_api_takes_and_returns_the_same_kind(folder: Folder) -> None:
    del folder
    given = ir.to_proto(two())
    before = given.SerializeToString()
    result = bnpass.expand(given, ExpandOptions(group="world", check=0))
    assert isinstance(result.model, onnx.ModelProto)
    assert given.SerializeToString() == before
    assert result.collectives.after == 2
    assert [e.node for e in result.expanded] == ["bn1", "bn2"]


def test_help_says_what_the_options_mean() -> None:
    done = python("-m", "bnpass", "expand", "--help")
    assert done.code == 0
    for flag in ("--sync GROUP", "--correction", "--collective", "--stats", "--as-functions", "--uniform NAME"):
        assert flag in done.out


DROPS = """g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) {
    [bn] z, mz, vz = BatchNormalization <training_mode = 1> (x, s, b, m, v)
    y = Dropout (z, ratio, training)
}"""


def test_what_stands_behind_dropout_is_not_held_against_the_replicas(call: Call, tmp_path: Path) -> None:
    constants = {"ratio": np.array(0.5, np.float32), "training": np.array(True)}
    source = written(tmp_path, model(DROPS, {**batch_norm(4), **constants}))
    done = call("expand", source, "--sync", "world")
    assert done.code == 0, done.err
    assert "checked, replicas: 3 groups of replicas" in done.out
