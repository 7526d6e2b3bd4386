"""The child process: run models in ONNX Runtime and write down what came out.

Started by :mod:`.runner` as ``python -P child.py REQUEST.json``; it imports NumPy and ONNX Runtime and
nothing of bnpass, so that it starts fast. ONNX Runtime may crash on a model: every step is announced in
an event file, one JSON object per line, before it is made. Arrays travel as ``.npz`` without pickle.
"""

import json
import sys
from pathlib import Path
from typing import Any, TextIO, TypeAlias

import numpy as np

JsonObject: TypeAlias = dict[str, Any]
# ONNX Runtime is imported when the request is known and may be missing: no types of its own here.
Runtime: TypeAlias = Any
Session: TypeAlias = Any


def _announce(events: TextIO, **event: object) -> None:
    events.write(json.dumps(event) + "\n")
    events.flush()


def _providers(name: str) -> list[Any]:
    if name == "cuda":
        # TF32 would round float32 inputs of convolutions to 10 bits.
        return [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]
    return ["CPUExecutionProvider"]


class _NoLibraryError(Exception):
    """The kernel library cannot be loaded."""


def _session(ort: Runtime, path: str, provider: str, library: str | None) -> Session:
    options = ort.SessionOptions()
    if library is not None:
        try:
            options.register_custom_ops_library(library)
        except Exception as error:  # the runtime's own exception types are not public
            raise _NoLibraryError(str(error)) from error
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(path, options, providers=_providers(provider))
    if provider == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise RuntimeError("ONNX Runtime could not start its CUDA provider and fell back to the CPU")
    return session


def _feeds(path: str, names: list[str]) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        arrays = [file[f"a{i}"] for i in range(len(names))]
    return {
        name: array.astype(object) if array.dtype.kind == "U" else array
        for name, array in zip(names, arrays, strict=True)
    }


def _write(path: str, values: list[Any]) -> list[int]:
    """Write the tensors among the values; return the positions of the others."""
    arrays: dict[str, Any] = {}
    others = []
    for position, value in enumerate(values):
        if not isinstance(value, np.ndarray):
            others.append(position)
            continue
        arrays[f"a{position}"] = value.astype(str) if value.dtype == object else value
    np.savez(path, **arrays)
    return others


def _run_draw(session: Session, job: JsonObject, model: str, draw: int, candidate: int, events: TextIO) -> bool:
    where = {"model": model, "draw": draw, "candidate": candidate}
    _announce(events, event="run", **where)
    outputs = [value.name for value in session.get_outputs()]
    target = str(Path(job["folder"]) / f"{model}-{draw}.npz")
    try:
        values = session.run(outputs, _feeds(job["draws"][draw][candidate], job["inputs"]))
        others = _write(target, values)
    except Exception as error:  # noqa: BLE001  # the runtime's own exception types are not public
        _announce(events, event="failed", message=str(error), **where)
        return False
    _announce(events, event="done", file=target, outputs=outputs, others=others, **where)
    return True


def _work(ort: Runtime, job: JsonObject, events: TextIO) -> None:
    chosen: dict[int, int] = {}
    for number, (model, path, library) in enumerate(job["models"]):
        _announce(events, event="load", model=model)
        try:
            session = _session(ort, path, job["provider"], library)
        except _NoLibraryError as error:
            _announce(events, event="no-library", library=library, message=str(error))
            return
        except Exception as error:  # noqa: BLE001  # as above
            _announce(events, event="unloadable", model=model, message=str(error))
            if number == 0:
                return
            continue
        for draw, candidates in enumerate(job["draws"]):
            if number > 0:
                if draw in chosen:
                    _run_draw(session, job, model, draw, chosen[draw], events)
                continue
            for candidate in range(len(candidates)):  # the original decides at which sizes a model runs
                if _run_draw(session, job, model, draw, candidate, events):
                    chosen[draw] = candidate
                    break
        del session


def main(request: str) -> int:
    """Carry out the request in the given JSON file."""
    job = json.loads(Path(request).read_text(encoding="utf-8"))
    with Path(job["events"]).open("a", encoding="utf-8") as events:
        try:
            import onnxruntime as ort
        except ModuleNotFoundError as error:
            _announce(events, event="missing", package=error.name or "onnxruntime")
            return 0
        except ImportError as error:
            _announce(events, event="unimportable", message=str(error))
            return 0
        available = ort.get_available_providers()
        if job["provider"] == "cuda" and "CUDAExecutionProvider" not in available:
            _announce(events, event="no-provider", available=available)
            return 0
        _work(ort, job, events)
        _announce(events, event="end", version=ort.__version__)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
