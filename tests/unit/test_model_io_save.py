"""Saving: the old pair or the new one, whatever fails and whenever."""

import errno
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from bnpass import errors
from bnpass.model_io import Policy, load, save, stage

ROOT = Path(__file__).parents[2]
FLOAT = onnx.TensorProto.FLOAT
BIG = 100_000  # elements: above the size from which the kernel copies


def make(fill: float, sizes: tuple[int, ...] = (BIG, 8, 3000)) -> ir.Model:
    """y = x + sum of all weights' first elements, so that the result tells the files apart."""
    tensors = [np.full(size, fill + i, np.float32) for i, size in enumerate(sizes)]
    weights = [helper.make_tensor(f"w{i}", FLOAT, [t.size], t.tobytes(), raw=True) for i, t in enumerate(tensors)]
    first = helper.make_tensor("first", onnx.TensorProto.INT64, [1], [0])
    nodes = [helper.make_node("Gather", [w.name, "first"], [f"g_{w.name}"]) for w in weights]
    nodes.append(helper.make_node("Sum", ["x", *(f"g_{w.name}" for w in weights)], ["y"]))
    info = [helper.make_tensor_value_info(name, FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], [*weights, first])
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def run(path: Path) -> float:
    """What ONNX Runtime makes of the file at its path."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return float(session.run(None, {"x": np.zeros(1, np.float32)})[0][0])


def value(path: Path) -> float:
    """The same sum without a runtime: raises unless model and data belong together."""
    model = load(path)
    tensors = [v.const_value for v in model.graph.initializers.values() if v.name != "first"]
    for tensor in tensors:
        assert tensor is not None
        assert (tensor.numpy() == tensor.numpy()[0]).all()
    return float(sum(t.numpy()[0] for t in tensors if t is not None))


OLD, NEW = 3 * 1.0 + 3, 3 * 10.0 + 3
POLICIES: tuple[Policy, ...] = ("always", "never")


@pytest.fixture(params=POLICIES)
def policy(request: pytest.FixtureRequest) -> Policy:
    return "always" if request.param == "always" else "never"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_saved_model_runs_and_the_data_are_named_by_content(tmp_path: Path, policy: Policy) -> None:
    done = save(make(1.0), tmp_path / "m.onnx", external_data=policy)
    assert run(done.model) == value(done.model) == OLD
    assert done.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert names(tmp_path) == sorted(path.name for path in (done.model, *done.data))
    if policy == "always":
        assert re.fullmatch(r"m\.[0-9a-f]{12}\.data", done.data[0].name)
    else:
        assert done.data == ()


def test_the_staged_model_can_be_run_before_it_is_committed(tmp_path: Path, policy: Policy) -> None:
    target = tmp_path / "m.onnx"
    with stage(make(1.0), target, external_data=policy) as staged:
        assert not target.exists()
        assert staged.path.parent == tmp_path
        assert run(staged.path) == OLD
        assert staged.commit() == staged.commit()
    assert run(target) == OLD


def test_leaving_without_a_commit_removes_everything(tmp_path: Path, policy: Policy) -> None:
    with stage(make(1.0), tmp_path / "m.onnx", external_data=policy) as staged:
        assert staged.path.exists()
    assert names(tmp_path) == []
    with pytest.raises(ZeroDivisionError), stage(make(1.0), tmp_path / "m.onnx", external_data=policy):
        raise ZeroDivisionError
    assert names(tmp_path) == []


def test_leaving_without_a_commit_keeps_data_that_were_there(tmp_path: Path) -> None:
    save(make(1.0), tmp_path / "m.onnx", external_data="always")
    before = names(tmp_path)
    with stage(make(1.0), tmp_path / "m.onnx", force=True, external_data="always"):
        pass
    assert names(tmp_path) == before
    assert value(tmp_path / "m.onnx") == OLD


def test_an_existing_target_is_refused_without_force(tmp_path: Path, policy: Policy) -> None:
    target = tmp_path / "m.onnx"
    target.write_bytes(b"precious")
    with pytest.raises(errors.SaveError, match="exists already"):
        save(make(1.0), target, external_data=policy)
    assert names(tmp_path) == ["m.onnx"]
    assert target.read_bytes() == b"precious"


def test_a_target_that_appears_meanwhile_is_refused_at_commit(tmp_path: Path, policy: Policy) -> None:
    target = tmp_path / "m.onnx"
    with stage(make(1.0), target, external_data=policy) as staged:
        target.write_bytes(b"precious")
        with pytest.raises(errors.SaveError, match="exists already"):
            staged.commit()
    assert names(tmp_path) == ["m.onnx"]
    assert target.read_bytes() == b"precious"


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_hard_links_serves_too(
    tmp_path: Path, policy: Policy, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", no_link)
    save(make(1.0), tmp_path / "m.onnx", external_data=policy)
    assert value(tmp_path / "m.onnx") == OLD
    with pytest.raises(errors.SaveError, match="exists already"):
        save(make(10.0), tmp_path / "m.onnx", external_data=policy)
    with stage(make(1.0), tmp_path / "n.onnx", external_data=policy) as staged:
        (tmp_path / "n.onnx").write_bytes(b"precious")
        with pytest.raises(errors.SaveError, match="exists already"):
            staged.commit()
    assert (tmp_path / "n.onnx").read_bytes() == b"precious"


def test_data_of_another_content_under_our_name_are_never_overwritten(tmp_path: Path) -> None:
    name = save(make(1.0), tmp_path / "m.onnx", external_data="always").data[0]
    (tmp_path / "m.onnx").unlink()
    name.write_bytes(b"precious")
    with pytest.raises(errors.SaveError, match="other content"):
        save(make(1.0), tmp_path / "m.onnx", external_data="always")
    assert names(tmp_path) == [name.name]
    assert name.read_bytes() == b"precious"


@pytest.mark.parametrize("bad", ["none/m.onnx", "", "file/m.onnx", "a\0b", "fifo"])
def test_a_target_that_cannot_be_is_refused(tmp_path: Path, bad: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(errors.SaveError) as caught:
        save(make(1.0), f"{tmp_path}/{bad}", force=True)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["fifo", "file"]


# --- mode bits and links


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_new_files_get_the_mode_of_the_umask(tmp_path: Path, umask: int, expected: int) -> None:
    before = os.umask(umask)
    try:
        done = save(make(1.0), tmp_path / "m.onnx", external_data="always")
    finally:
        os.umask(before)
    for path in (done.model, *done.data):
        assert path.stat().st_mode & 0o777 == expected


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o755])
def test_a_replaced_file_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    target = tmp_path / "m.onnx"
    save(make(1.0), target)
    target.chmod(mode)
    done = save(make(10.0), target, force=True, external_data="always")
    for path in (done.model, *done.data):
        assert path.stat().st_mode & 0o777 == mode


def test_through_a_symbolic_link_the_real_file_is_replaced(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    save(make(1.0), real / "m.onnx")
    link = tmp_path / "link.onnx"
    link.symlink_to("real/m.onnx")
    done = save(make(10.0), link, force=True, external_data="always")
    assert link.is_symlink()
    assert done.model == (real / "m.onnx").resolve()
    assert names(tmp_path) == ["link.onnx", "real"]
    assert value(real / "m.onnx") == value(link) == NEW


# --- the same file in and out


def test_in_place_with_external_data_is_safe(tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    first = save(make(1.0), target, external_data="always")
    model = load(target)
    replaced = model.graph.initializers["w2"]
    replaced.const_value = ir.tensor(np.full(3000, 53.0, np.float32))
    second = save(model, target, force=True)
    assert second.data != first.data
    assert names(tmp_path) == sorted(["m.onnx", second.data[0].name])  # the old data are gone
    assert value(target) == run(target) == OLD + 50
    again = save(model, target, force=True)  # the model still reads the removed file
    assert again == second


def test_in_place_with_inline_data_is_safe(tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    save(make(1.0), target)
    model = load(target)
    save(make(10.0), target, force=True)
    assert value(target) == NEW
    save(model, target, force=True)  # its weights lie in a file that has no name any more
    assert value(target) == OLD


def test_external_data_stay_external_even_if_every_tensor_was_computed(tmp_path: Path) -> None:
    save(make(1.0), tmp_path / "m.onnx", external_data="always")
    model = load(tmp_path / "m.onnx").clone()
    for held in model.graph.initializers.values():
        tensor = held.const_value
        assert tensor is not None
        held.const_value = ir.tensor(np.array(tensor.numpy()), name=held.name)
    assert len(save(model, tmp_path / "n.onnx").data) == 1
    assert save(make(1.0), tmp_path / "o.onnx").data == ()


def test_the_threshold_decides_for_computed_tensors(tmp_path: Path) -> None:
    done = save(make(1.0), tmp_path / "m.onnx", external_data="always", threshold=12000)
    held = {name: type(v.const_value).__name__ for name, v in load(done.model).graph.initializers.items()}
    assert [name for name, kind in held.items() if kind == "ContainedTensor"] == ["w0"]


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    model = make(1.0, (BIG, BIG))
    weights = model.graph.initializers
    weights["w1"].const_value = weights["w0"].const_value
    done = save(model, tmp_path / "m.onnx", external_data="always")
    assert done.data[0].stat().st_size == 4 * BIG
    again = save(load(done.model), tmp_path / "n.onnx")
    assert again.data[0].stat().st_size == 4 * BIG
    assert value(again.model) == 2.0


# --- stale data


def test_stale_data_are_removed_only_if_they_are_ours_and_unused(tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    old = save(make(1.0), target, external_data="always").data[0]
    (tmp_path / "m.0123456789ab.data").write_bytes(b"not referred to")
    save(make(10.0), target, force=True)
    assert not old.exists()
    assert names(tmp_path) == ["m.0123456789ab.data", "m.onnx"]


def test_data_that_another_model_uses_stay(tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    old = save(make(1.0), target, external_data="always").data[0]
    (tmp_path / "copy.onnx").write_bytes(target.read_bytes())
    save(make(10.0), target, force=True, external_data="always")
    assert old.exists()
    assert value(tmp_path / "copy.onnx") == OLD
    assert value(target) == NEW


def test_data_stay_while_a_model_beside_them_cannot_be_read(tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    old = save(make(1.0), target, external_data="always").data[0]
    (tmp_path / "broken.onnx").write_bytes(b"\xff\xff\xff")
    save(make(10.0), target, force=True)
    assert old.exists()


def test_data_that_someone_else_named_stay(tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    ir.save(make(1.0), target, external_data="m.data")
    save(load(target), target, force=True)
    assert (tmp_path / "m.data").exists()
    assert value(target) == OLD


# --- what fails


CALLS = ("write", "fsync", "replace", "link", "copy_file_range", "open", "fchmod")


class Failing:
    """Lets the n-th call of any of the given functions of os fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, code: int) -> None:
        self.count = 0
        self.at = at
        self.code = code
        for name in CALLS:
            monkeypatch.setattr(os, name, self.wrapped(getattr(os, name)))

    def wrapped(self, call: Callable[..., object]) -> Callable[..., object]:
        def failing(*args: object, **kwargs: object) -> object:
            self.count += 1
            if self.count - 1 == self.at:
                raise OSError(self.code, os.strerror(self.code))
            return call(*args, **kwargs)

        return failing


def loaded(folder: Path, policy: Policy) -> ir.Model:
    return load(save(make(10.0), folder / "new.onnx", external_data=policy).model)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("old_policy", POLICIES)
def test_any_failing_call_leaves_the_old_pair_or_the_new_one(
    tmp_path: Path, policy: Policy, old_policy: Policy, code: int
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    model = loaded(tmp_path, policy)
    target = work / "m.onnx"
    old = save(make(1.0), target, external_data=old_policy)
    kept = sorted(path.name for path in (old.model, *old.data))
    failed = lines = 0
    for at in range(200):
        with pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch, at, code)
            try:
                done = save(model, target, force=True, external_data=policy)
            except (errors.SaveError, errors.FileAccessError) as error:
                failed += 1
                lines = max(lines, len(str(error).splitlines()))
            else:
                if failing.count <= at:
                    break
                # Some calls may fail: looking at neighbours, and the kernel's copy is optional.
        now = value(target)
        if now == OLD:
            assert names(work) == kept
            continue
        assert now == NEW
        assert not any(name.startswith(".bnpass") for name in names(work))
        for path in work.iterdir():
            path.unlink()
        old = save(make(1.0), target, external_data=old_policy)
    else:
        pytest.fail("never got through")
    assert failed >= (10 if policy == "always" else 6)
    assert lines == 1
    assert value(target) == NEW
    assert names(work) == sorted(path.name for path in (done.model, *done.data))


def test_any_failing_call_leaves_nothing_where_nothing_was(tmp_path: Path, policy: Policy) -> None:
    work = tmp_path / "work"
    work.mkdir()
    model = loaded(tmp_path, policy)
    failed = 0
    for at in range(200):
        with pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch, at, errno.ENOSPC)
            try:
                save(model, work / "m.onnx", external_data=policy)
            except errors.BnpassError:
                failed += 1
            else:
                if failing.count <= at:
                    break
        found = names(work)
        if found:
            assert value(work / "m.onnx") == NEW
            assert len(found) == (2 if policy == "always" else 1)
        for path in work.iterdir():
            path.unlink()
    assert failed >= 6


def test_everything_is_on_disk_before_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power failure cannot be tried, the order of the calls can."""
    target = tmp_path / "m.onnx"
    save(make(1.0), target)
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def name_of(path: str | Path) -> str:
        return "folder" if Path(path).is_dir() else Path(path).suffix

    def synced(fd: int) -> None:
        events.append("sync " + name_of(Path(f"/proc/self/fd/{fd}").readlink()))
        fsync(fd)

    def replaced(source: Path, to: Path) -> None:
        events.append("name " + name_of(source))
        replace(source, to)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    save(make(10.0), target, force=True, external_data="always")
    assert events == ["sync .data", "name .data", "sync .onnx", "sync folder", "name .onnx", "sync folder"]


def test_a_full_disk_is_one_line_that_says_so(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from bnpass.model_io import load, save\n"
        "from bnpass import errors\n"
        "model = load(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    save(model, sys.argv[2])\n"
        "except errors.SaveError as error:\n    print(error)\n"
    )
    source = save(make(1.0), tmp_path / "m.onnx").model
    target = tmp_path / "n.onnx"
    done = subprocess.run(  # our own interpreter
        [sys.executable, "-c", code, str(source), str(target)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{target}: cannot be written: File too large; nothing was changed\n"
    assert names(tmp_path) == ["m.onnx"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == limits


@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, None])
def test_where_the_kernel_stops_copying_we_go_on(
    tmp_path: Path, code: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(tmp_path, "never")
    copy, calls = os.copy_file_range, []

    def partial(source: int, target: int, count: int, offset: int) -> int:
        calls.append(offset)
        if len(calls) == 1:
            return copy(source, target, count // 3, offset)
        if code is None:
            return 0
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "copy_file_range", partial)
    done = save(model, tmp_path / "m.onnx")
    assert len(calls) == 2
    assert done.model.read_bytes() == (tmp_path / "new.onnx").read_bytes()


def test_an_error_in_a_computed_tensor_leaves_nothing(tmp_path: Path, policy: Policy) -> None:
    model = make(1.0)

    def explode() -> ir.TensorProtocol:
        raise ArithmeticError("BN109")

    lazy = ir.LazyTensor(explode, ir.DataType.FLOAT, ir.Shape([3000]), name="w2")
    model.graph.initializers["w2"].const_value = lazy
    with pytest.raises(ArithmeticError):
        save(model, tmp_path / "m.onnx", external_data=policy)
    assert names(tmp_path) == []
    assert model.graph.initializers["w2"].const_value is lazy
    short = ir.LazyTensor(lambda: ir.tensor(np.zeros(5, np.float32)), ir.DataType.FLOAT, ir.Shape([3000]), name="w2")
    model.graph.initializers["w2"].const_value = short
    with pytest.raises(errors.ModelError, match="'w2' has 20 bytes where shape and type take 12000"):
        save(model, tmp_path / "m.onnx", external_data=policy)
    assert names(tmp_path) == []


KILLED = """
import os, sys
from bnpass.model_io import load, save
path, at = sys.argv[1], int(sys.argv[3])
model = load(sys.argv[2])
count = 0
def dying(call):
    def wrapper(*args, **kwargs):
        global count
        count += 1
        if count - 1 == at:
            os.kill(os.getpid(), 9)
        return call(*args, **kwargs)
    return wrapper
for name in ("write", "fsync", "replace", "link", "copy_file_range", "unlink"):
    setattr(os, name, dying(getattr(os, name)))
save(model, path, force=True)
"""


@pytest.mark.parametrize("at", range(9))
def test_a_killed_process_leaves_the_old_pair_or_the_new_one(tmp_path: Path, policy: Policy, at: int) -> None:
    target = tmp_path / "m.onnx"
    save(make(1.0), target, external_data=policy)
    new = save(make(10.0), tmp_path / "new.onnx", external_data=policy).model
    done = subprocess.run(  # our own interpreter
        [sys.executable, "-c", KILLED, str(target), str(new), str(at)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode in (0, -9)
    if at < 3:
        assert done.returncode == -9
    assert value(target) in (OLD, NEW)
    assert value(target) == NEW or done.returncode == -9
    save(make(10.0), target, force=True, external_data=policy)  # whatever is left is not in the way
    assert value(target) == NEW


# --- the same bytes


def test_the_same_model_is_the_same_bytes_in_every_process(tmp_path: Path, policy: Policy) -> None:
    source = save(make(1.0), tmp_path / "m.onnx", external_data=policy).model
    code = (
        "import sys; from bnpass.model_io import load, save\n"
        "done = save(load(sys.argv[1]), sys.argv[2], external_data=sys.argv[3])\n"
    )
    outputs = set()
    for seed in ("0", "1", "7"):
        folder = tmp_path / seed
        folder.mkdir()
        subprocess.run(  # our own interpreter
            [sys.executable, "-c", code, str(source), str(folder / "o.onnx"), policy],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
            check=True,
        )
        outputs.add(tuple((path.name, path.read_bytes()) for path in sorted(folder.iterdir())))
    assert len(outputs) == 1
