"""Run models in ONNX Runtime in a child process and read back what it wrote.

A runtime that crashes, hangs or runs out of memory on a model becomes a sentence here and leaves this
process as it was.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bnpass.errors import MissingDependencyError, UsageError
from bnpass.runtime.elf import fault_of
from bnpass.verification.windows import Array

__all__ = ["ORIGINAL", "Outcome", "read_events", "run_models", "shortened", "write_inputs"]

ORIGINAL = "original"

_MESSAGE_CHARACTERS = 300


@dataclass(frozen=True)
class Outcome:
    """What the child process got done.

    Attributes:
        files: The result file of every finished run, by model and draw, with the names of its outputs.
        candidates: Per draw, which of the offered inputs the original ran with.
        failures: Messages of the runtime by model and draw; draw None: the model could not be loaded.
        crash: One sentence if the process died or was stopped, else empty.
        crashed_model: The model it was busy with then.
        version: ONNX Runtime's version if it came to its end.

    """

    files: Mapping[tuple[str, int], tuple[Path, tuple[str, ...]]]
    candidates: Mapping[int, int]
    failures: Mapping[tuple[str, int | None], str]
    crash: str = ""
    crashed_model: str = ""
    version: str = ""
    others: Mapping[tuple[str, int], tuple[int, ...]] = field(default_factory=dict)

    def outputs(self, model: str, draw: int) -> dict[str, Array] | None:
        """Return the tensors that a run produced, by output name; None if it did not finish."""
        if (model, draw) not in self.files:
            return None
        path, names = self.files[model, draw]
        skipped = self.others.get((model, draw), ())
        with np.load(path, allow_pickle=False) as file:
            return {name: file[f"a{i}"] for i, name in enumerate(names) if i not in skipped}


def _command(request: Path) -> list[str]:
    # -P: nothing is imported from the current folder.
    return [sys.executable, "-P", str(Path(__file__).with_name("child.py")), str(request)]


def write_inputs(path: Path, arrays: Sequence[Array]) -> Path:
    """Write arrays under neutral names; an input may be called anything, even ``file``."""
    np.savez(path, **{f"a{i}": array for i, array in enumerate(arrays)})  # type: ignore[arg-type]  # names only
    return path


def run_models(
    models: Sequence[tuple[str, Path]],
    inputs: Sequence[str],
    draws: Sequence[Sequence[Path]],
    *,
    folder: Path,
    provider: str,
    timeout_s: float,
    library: str | None = None,
    with_kernels: Container[str] = (),
) -> Outcome:
    """Run every model on every draw.

    Args:
        models: Name and file, the original first.
        inputs: Names of the inputs, in the order of the arrays in the input files.
        draws: Per draw, input files to try in turn until the original runs.
        folder: Where files may be written.
        provider: ``"cpu"`` or ``"cuda"``.
        timeout_s: After so many seconds the child is stopped.
        library: The kernel library.
        with_kernels: Names of the models that are run with it; the others are run without.

    Returns:
        What was done.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed, or not for this provider; or cannot load the library.
        UsageError: ONNX Runtime is installed but cannot be imported.

    """
    if library is not None and (fault := fault_of(Path(library))):
        raise MissingDependencyError(f"{library} cannot be loaded: {fault}")
    events, request, log = folder / "events.jsonl", folder / "request.json", folder / "stderr.txt"
    events.touch()
    job = {
        "models": [(name, str(path.resolve()), library if name in with_kernels else None) for name, path in models],
        "inputs": list(inputs),
        "draws": [[str(path) for path in candidates] for candidates in draws],
        "folder": str(folder),
        "events": str(events),
        "provider": provider,
    }
    request.write_text(json.dumps(job), encoding="utf-8")
    with log.open("wb") as stderr:
        code = _wait(_command(request), folder, stderr.fileno(), timeout_s)
    return _read(events, code, timeout_s, log)


def _wait(command: list[str], folder: Path, stderr: int, timeout_s: float) -> int | None:
    """Return the exit code, or None if the time was up."""
    # S603: the interpreter that runs this, a file of this package, a file written above.
    child = subprocess.Popen(  # noqa: S603
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, start_new_session=True
    )
    try:
        return child.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return the events that a process has written, one JSON object per line."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # the line it died in
        if isinstance(event, dict) and "event" in event:
            found.append(event)
    return found


def _read(path: Path, code: int | None, timeout_s: float, log: Path) -> Outcome:
    events = read_events(path)
    files: dict[tuple[str, int], tuple[Path, tuple[str, ...]]] = {}
    others: dict[tuple[str, int], tuple[int, ...]] = {}
    failures: dict[tuple[str, int | None], str] = {}
    candidates: dict[int, int] = {}
    version = ""
    for event in events:
        kind = event["event"]
        _raise_if_unusable(kind, event)
        if kind == "done":
            key = event["model"], event["draw"]
            files[key] = Path(event["file"]), tuple(event["outputs"])
            others[key] = tuple(event["others"])
            failures.pop(key, None)
            if event["model"] == ORIGINAL:
                candidates[event["draw"]] = event["candidate"]
        elif kind in ("failed", "unloadable"):
            failures[event["model"], event.get("draw")] = shortened(event["message"])
        elif kind == "end":
            version = event["version"]
    crash, model = "", ""
    if code != 0:
        crash, model = _crash(events, code, timeout_s, log)
    return Outcome(files, candidates, failures, crash, model, version, others)


def _raise_if_unusable(kind: str, event: dict[str, Any]) -> None:
    if kind == "missing":
        raise MissingDependencyError(
            f"Comparing two models needs ONNX Runtime, but {event['package']} is not installed: "
            'pip install "bnpass[cpu]"'
        )
    if kind == "no-provider":
        raise MissingDependencyError(
            "The installed ONNX Runtime has no CUDA provider (it has: "
            f'{", ".join(event["available"])}): pip install "bnpass[gpu]" in place of the CPU package'
        )
    if kind == "no-library":
        raise MissingDependencyError(f"ONNX Runtime cannot load {event['library']}: {shortened(event['message'])}")
    if kind == "unimportable":
        raise UsageError(f"ONNX Runtime is installed but cannot be imported: {shortened(event['message'])}")


def shortened(message: str) -> str:
    """Return a message on one line, and not a long one."""
    text = " ".join(message.split())
    return text if len(text) <= _MESSAGE_CHARACTERS else text[: _MESSAGE_CHARACTERS - 1] + "…"


def _crash(events: list[dict[str, Any]], code: int | None, timeout_s: float, log: Path) -> tuple[str, str]:
    """Say who died of what, and doing what."""
    last = events[-1] if events else {}
    model = str(last.get("model", ""))
    if last.get("event") == "run":
        doing = f"running the {model} model, draw {last['draw']}"
    elif last.get("event") == "load":
        doing = f"loading the {model} model"
    else:
        doing = f"after the {model} model" if model else "starting"
    if code is None:
        return f"ONNX Runtime did not finish within {timeout_s:g} s, {doing}", model
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = " (often: out of memory)" if name == "SIGKILL" else ""
        return f"ONNX Runtime crashed with {name}{hint}, {doing}", model
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    detail = f": {shortened(lines[-1])}" if lines else ""
    return f"The process running ONNX Runtime exited with {code}, {doing}{detail}", model
