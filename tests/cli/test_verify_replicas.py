"""``bnpass verify MODEL --replicas N``: processes of MPI that are, together, one replica on the whole batch."""

import json
import os
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bnpass.errors import MissingDependencyError
from bnpass.runtime.launch import Ended, find_launcher
from bnpass.verification.shares import Arrays, WholeBatch
from tests.cli.command import Call, assert_usage
from tests.cli.conftest import Folder
from tests.cli.kernel_models import steps
from tests.cli.models import written
from tests.cli.test_expand import two
from tests.cli.test_verify_kernels import checks
from tests.support.build import batch_norm, model


@pytest.fixture
def mpi() -> None:
    """Skip where there is no MPI."""
    try:
        find_launcher()
    except MissingDependencyError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("mpi")
def test_four_replicas_forward_and_backward_are_one(call: Call, tmp_path: Path) -> None:
    ran = call("verify", written(tmp_path, steps()), "--replicas", 4, "--draws", 2)
    assert (ran.code, ran.err) == (0, "")
    assert list(checks(ran.out)) == [
        "one replica on all samples, kernels against bodies",
        "4 replicas of 2, 2, 2 and 2 samples",
        "4 replicas of 5, 1, 1 and 1 samples",
        "4 replicas of 6, 1, 1 and 0 samples",
    ]
    assert "; 4 processes of " in ran.out


@pytest.mark.usefixtures("mpi")
def test_kernels_and_replicas_in_one_call(call: Call, tmp_path: Path) -> None:
    ran = call("verify", written(tmp_path, two()), "--kernels", "--replicas", 2, "--draws", 1, "--json")
    found = json.loads(ran.out)
    assert (ran.code, found["ok"], found["draws"]) == (0, True, 2)
    assert [check["draw"] for check in found["checks"]] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert "as expand --as-functions --sync world does" in found["notes"][0]


@pytest.mark.usefixtures("mpi")
def test_a_batch_that_is_given_is_dealt_out(call: Call, tmp_path: Path) -> None:
    source, rng = written(tmp_path, steps()), np.random.default_rng(1)
    np.savez(tmp_path / "batch.npz", **{n: rng.normal(5, 2, (5, 4, 3)).astype(np.float32) for n in ("x", "dy")})
    ran = call("verify", source, "--replicas", 3, "--data", tmp_path / "batch.npz")
    assert ran.code == 0, ran
    shares = ("2, 2 and 1", "3, 1 and 1", "4, 1 and 0")
    assert list(checks(ran.out))[1:] == [f"3 replicas of {share} samples" for share in shares]


@pytest.mark.usefixtures("mpi")
def test_replicas_that_saw_something_else_are_found(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parts(self: WholeBatch, share: Sequence[int]) -> Iterator[Arrays]:
        """Give the last replica the samples of the first in the unequal share."""
        for end, size in zip(np.cumsum(share), share, strict=True):
            end = size if len(set(share)) == 2 and end == self.samples else end
            yield {name: a[end - size : end] if name in self.dealt else a for name, a in self.feeds.items()}

    monkeypatch.setattr(WholeBatch, "parts", parts)
    ran = call("verify", written(tmp_path, steps()), "--replicas", 3, "--draws", 1)
    assert (ran.code, ran.err) == (1, "")
    assert [name for name, mark in checks(ran.out).items() if mark == "NO"] == ["3 replicas of 4, 1 and 1 samples"]


def needs_samples() -> ir.Model:
    """Return a model that fails where there is no sample, before its batch normalization."""
    text = """g (float[N, 4] x) => (float[N, 4] y) {
        k = Constant <value_ints = [0]> ()
        [pick] first = Gather <axis = 0> (x, k)
        zero = Sub (first, first)
        u = Add (x, zero)
        [bn] y, m1, v1 = BatchNormalization <training_mode = 1> (u, s, b, m, v)
    }"""
    return model(text, batch_norm(4))


@pytest.mark.usefixtures("mpi")
def test_a_model_that_needs_samples_is_run_without_an_empty_share(call: Call, tmp_path: Path) -> None:
    ran = call("verify", written(tmp_path, needs_samples()), "--replicas", 2, "--draws", 1)
    assert ran.code == 0, ran
    assert list(checks(ran.out))[1:] == ["2 replicas of 2 and 2 samples", "2 replicas of 3 and 1 samples"]
    assert "note: a replica without samples cannot run this model: " in ran.out


@pytest.mark.usefixtures("mpi")
def test_a_replica_that_fails_is_told_by_all_and_nobody_waits(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bnpass.verification.mpi_replicas._shares", lambda *_: ({0: ((4, 0),)}, ()))
    begun = time.monotonic()
    ran = call("verify", written(tmp_path, needs_samples()), "--replicas", 2, "--draws", 1)
    assert time.monotonic() - begun < 45  # a replica waits for 60 s
    assert (ran.code, ran.err) == (1, "")
    assert "The replicas failed in draw 0, with 4 and 0 samples: " in ran.out
    assert "pick" in ran.out


def test_models_whose_replicas_are_not_one(folder: Folder) -> None:
    alone = written(folder.path, steps(group=""), "alone.onnx")
    folder.refuses(2, ("verify", alone, "--replicas", 2), "no statistics are shared", "expand --sync world")
    fixed = written(folder.path, steps(samples="4"), "fixed.onnx")
    folder.refuses(2, ("verify", fixed, "--replicas", 2), "no input has an open batch dimension")
    mixed = steps()
    next(node for node in mixed.graph if node.name == "bn1").attributes["group"] = ir.AttrString("group", "")
    source = written(folder.path, mixed, "mixed.onnx")
    folder.refuses(2, ("verify", source, "--replicas", 2), "not all statistics are shared by all replicas")


def test_without_mpi(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BNPASS_MPIEXEC", raising=False)
    monkeypatch.setattr("bnpass.runtime.launch._candidates", lambda: iter(()))
    source = written(folder.path, steps())
    folder.refuses(2, ("verify", source, "--replicas", 4), "no mpiexec was found", "pip install 'bnpass[mpi]'")


def test_with_a_launcher_that_is_none(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(folder.path, steps())
    monkeypatch.setenv("BNPASS_MPIEXEC", "/no/such/mpiexec")
    folder.refuses(2, ("verify", source, "--replicas", 2), "BNPASS_MPIEXEC names '/no/such/mpiexec'")
    monkeypatch.setenv("BNPASS_MPIEXEC", "/bin/true")
    folder.refuses(2, ("verify", source, "--replicas", 2), "2 replicas could not be started by /bin/true")


@pytest.mark.usefixtures("mpi")
def test_with_the_launcher_of_another_mpi(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processes are each alone in their world."""
    launcher = folder.path / "mpiexec"
    launcher.write_text('#!/bin/sh\n[ "$1" = --version ] && { echo other 1.0; exit; }\nshift 2\n"$@" & "$@"; wait\n')
    launcher.chmod(launcher.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("BNPASS_MPIEXEC", str(launcher))
    source = written(folder.path, steps())
    folder.refuses(2, ("verify", source, "--replicas", 2, "--draws", 1), "do not find each other", "BNPASS_MPIEXEC")


@pytest.mark.parametrize(
    ("event", "ended", "said"),
    [
        ({}, Ended(9, "killed by signal 9"), "ended with exit code 9: killed by signal 9 in draw 0"),
        ({}, Ended(None, ""), "did not finish within 600 s in draw 0"),
        ({"event": "failed", "run": 1, "message": "a sentence"}, Ended(0, ""), "with 3 and 1 samples: a sentence"),
    ],
    ids=["killed", "late", "failed"],
)
@pytest.mark.usefixtures("mpi")
def test_replicas_that_fail_are_a_mismatch_that_says_how(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, event: dict[str, Any], ended: Ended, said: str
) -> None:
    def run_ranks(_: object, ranks: int, command: Sequence[str], **__: object) -> Ended:
        folder = Path(command[-1]).parent
        for rank in range(ranks):
            started = {"event": "started", "rank": rank, "size": ranks, "mpi": "an MPI"}
            lines = [json.dumps(started), *([json.dumps(event)] if event else [])]
            (folder / f"events-{os.getpid()}{rank}.jsonl").write_text("\n".join(lines) + '\n{"event": "ru')
        return ended

    monkeypatch.setattr("bnpass.verification.ranks.run_ranks", run_ranks)
    ran = call("verify", written(tmp_path, steps()), "--replicas", 2, "--draws", 1)
    assert (ran.code, ran.err) == (1, "")
    assert said in ran.out


def test_wrong_words(folder: Folder, call: Call) -> None:
    source = written(folder.path, steps())
    assert_usage(call("verify", source, "--replicas", 1), "'1' is not a number from 2 on")
    folder.refuses(2, ("verify", source, source, "--replicas", 2), "--replicas takes one model")
