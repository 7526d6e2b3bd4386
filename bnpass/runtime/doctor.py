"""What is installed, and whether it works: packages, kernels, MPI, NCCL, the GPU. Nothing here uses the network.

Everything that may crash, a broken library say, is tried in a process of its own.
"""

import ctypes.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import bnpass
from bnpass.errors import BnpassError, MissingDependencyError
from bnpass.runtime.elf import fault_of
from bnpass.runtime.launch import find_launcher, run_ranks
from bnpass.runtime.library import Library, get_library_path

__all__ = ["Diagnosis", "Finding", "examine"]

State = Literal["ok", "missing", "broken"]

_WAIT_S = 60.0
_PACKAGES = ("numpy", "ml_dtypes", "onnx", "onnx_ir", "onnxruntime")
_NCCL = "libnccl.so.2"

_SAY_RUNTIME = "import json, onnxruntime as o; print(json.dumps([o.__version__, o.get_available_providers()]))"
_SAY_NCCL = (
    "import ctypes, json, sys; n = ctypes.c_int(); "
    "s = ctypes.CDLL(sys.argv[1]).ncclGetVersion(ctypes.byref(n)); print(json.dumps([s, n.value]))"
)
_SAY_BUILD = (
    "import ctypes, json, sys; f = getattr(ctypes.CDLL(sys.argv[1]), 'bnpass_build_info', None); "
    "f and setattr(f, 'restype', ctypes.c_char_p); print(json.dumps(f().decode() if f else ''))"
)
_ADD_UP = """\
import ctypes, json, numpy as np
from bnpass.runtime import mpi
from bnpass.runtime.native_library import native_library
groups = mpi(deadline=30)
total = groups.all_reduce(np.array([groups.rank + 1.0]))
paths = {line.split()[-1] for line in open("/proc/self/maps") if "/libmpi" in line}
text, length = ctypes.create_string_buffer(8192), ctypes.c_int()
if paths:
    ctypes.CDLL(min(paths)).MPI_Get_library_version(text, ctypes.byref(length))
said = text.value.decode(errors="replace").splitlines() or [""]
if groups.rank == 0:
    print("BNPASS" + json.dumps([groups.size, total[0], native_library().mpi_description(), said[0]]))
"""


@dataclass(frozen=True)
class Finding:
    """One thing that may be installed.

    Attributes:
        name: What it is.
        state: "ok", "missing", or "broken": it is there and does not work.
        text: Version and place, or what is wrong, or what would install it.
        facts: The same for programs.
    """

    name: str
    state: State
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnosis:
    """All findings."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether everything works that is installed."""
        return all(finding.state != "broken" for finding in self.findings)

    def to_text(self) -> str:
        """Return a line for each finding."""
        width = max(len(finding.name) for finding in self.findings)
        marks = {"ok": "ok", "missing": "-", "broken": "BROKEN"}
        return "\n".join(f"{marks[f.state]:<6}  {f.name:<{width}}  {f.text}" for f in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain data."""
        return {
            "ok": self.ok,
            "findings": [
                {"name": f.name, "state": f.state, "text": f.text, "facts": dict(f.facts)} for f in self.findings
            ],
        }


def examine() -> Diagnosis:
    """Look at everything that bnpass works with, and try it."""
    return Diagnosis(
        (
            Finding("bnpass", "ok", f"{bnpass.__version__}, {Path(bnpass.__file__).parent}"),
            Finding("Python", "ok", f"{platform.python_version()}, {sys.executable}"),
            *(_package(name) for name in _PACKAGES),
            _gpu(),
            _kernels("cpu"),
            _kernels("cuda"),
            _mpi(),
            _nccl(),
        )
    )


def _package(name: str) -> Finding:
    if find_spec(name) is None:
        extra = " (pip install 'bnpass[cpu]')" if name == "onnxruntime" else ""
        return Finding(name, "missing", f"is not installed{extra}")
    answer = _ask("-c", _SAY_RUNTIME if name == "onnxruntime" else f"import json, {name}; print(json.dumps(['', []]))")
    if isinstance(answer, str):
        return Finding(name, "broken", f"cannot be imported: {answer}")
    found, providers = answer
    found = found or _version(name)
    facts = {"version": found, **({"providers": providers} if providers else {})}
    return Finding(name, "ok", ", ".join([found, *providers]), facts)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown version"


def _kernels(library: Library) -> Finding:
    name = f"kernels, {library}"
    try:
        path = get_library_path(library)
    except MissingDependencyError as error:
        return Finding(name, "missing", str(error))
    except BnpassError as error:
        return Finding(name, "broken", str(error))
    if fault := fault_of(Path(path)):
        return Finding(name, "broken", f"{path} cannot be loaded: {fault}", {"path": path})
    build = _ask("-c", _SAY_BUILD, path)
    if isinstance(build, str):
        return Finding(name, "broken", f"{path} cannot be loaded: {build}", {"path": path})
    facts: dict[str, Any] = {"path": path, "build": build[0]}
    where = ", ".join(filter(None, (path, build[0])))
    if why := _why_not_tried(library):
        return Finding(name, "ok", f"{where}; not tried: {why}", facts)
    answer = _ask("-m", "bnpass.runtime.kernel_trial", library)
    if isinstance(answer, str):
        return Finding(name, "broken", f"{where}: {answer}", facts)
    faults = {op_type: fault for op_type, fault in answer[0].items() if fault}
    facts["faults"] = faults
    if faults:
        return Finding(name, "broken", f"{where}: {'; '.join(f'{o}: {f}' for o, f in faults.items())}", facts)
    return Finding(name, "ok", f"{where}; {len(answer[0])} operators give the right numbers", facts)


def _why_not_tried(library: Library) -> str:
    """Say why a library cannot be tried here; empty if it can."""
    answer = _ask("-c", _SAY_RUNTIME) if find_spec("onnxruntime") is not None else "ONNX Runtime is not installed"
    if isinstance(answer, str):
        return answer
    if library == "cuda" and "CUDAExecutionProvider" not in answer[1]:
        return "this ONNX Runtime has no CUDA provider (pip install 'bnpass[gpu]')"
    if library == "cuda" and _gpu().state != "ok":
        return "there is no GPU"
    return ""


def _mpi() -> Finding:
    try:
        launcher = find_launcher()
        get_library_path()
    except MissingDependencyError as error:
        return Finding("MPI", "missing", str(error))
    except BnpassError as error:
        return Finding("MPI", "broken", str(error))
    facts = {"mpiexec": str(launcher.path), "flavour": launcher.flavour, "launcher": launcher.version}
    where = f"{launcher.version}, {launcher.path}"
    try:
        ended = run_ranks(launcher, 2, [sys.executable, "-P", "-c", _ADD_UP], timeout_s=_WAIT_S, environment=_found())
    except BnpassError as error:
        return Finding("MPI", "broken", str(error), facts)
    line = next((part for part in ended.output.splitlines() if "BNPASS[" in part), "")
    if ended.code != 0 or not line:
        last = ended.output.splitlines()[-1] if ended.output else f"exit code {ended.code}"
        state: State = "missing" if "pip install 'bnpass[mpi]'" in ended.output else "broken"
        return Finding("MPI", state, f"{where}: two processes cannot add up: {last}", facts)
    size, total, library, says = json.loads(line.partition("BNPASS")[2])
    says = " ".join(says.split())
    facts |= {"library": library, "version": says}
    if (size, total) != (2, 3.0):
        alone = "do not find each other: it belongs to another MPI" if size == 1 else f"add 1 and 2 up to {total}"
        return Finding("MPI", "broken", f"{where}: two processes {alone} ({library})", facts)
    return Finding("MPI", "ok", f"{says or launcher.version}, {library}; {launcher.path}; two processes add up", facts)


def _nccl() -> Finding:
    for path in _nccl_candidates():
        answer = _ask("-c", _SAY_NCCL, path)
        if isinstance(answer, str):
            return Finding("NCCL", "broken", f"{path} cannot be loaded: {answer}", {"path": path})
        status, number = answer
        if status != 0:
            return Finding("NCCL", "broken", f"{path} does not tell its version (status {status})", {"path": path})
        major, minor, patch = number // 10000, number // 100 % 100, number % 100
        found = f"{major}.{minor}.{patch}"
        return Finding("NCCL", "ok", f"{found}, {path}", {"version": found, "path": path})
    return Finding("NCCL", "missing", "is not installed (pip install 'bnpass[nccl]')")


def _nccl_candidates() -> Iterator[str]:
    if given := os.environ.get("BNPASS_NCCL_LIBRARY"):
        yield given
    spec = find_spec("nvidia") and find_spec("nvidia.nccl")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / "lib" / _NCCL).is_file():
            yield str(Path(folder) / "lib" / _NCCL)
    if found := ctypes.util.find_library("nccl"):
        yield found


def _gpu() -> Finding:
    command = shutil.which("nvidia-smi")
    if command is None:
        return Finding("GPU", "missing", "no NVIDIA driver (nvidia-smi) was found")
    words = [command, "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    ran = _run(words)
    lines = [line.strip() for line in ran.stdout.splitlines() if line.strip()] if ran is not None else []
    if ran is None or ran.returncode != 0 or not lines:
        said = " ".join((ran.stderr or ran.stdout).split())[:200] if ran is not None else "it does not answer"
        return Finding("GPU", "missing", f"nvidia-smi finds none: {said}")
    return Finding("GPU", "ok", "; ".join(lines), {"devices": lines})


def _ask(*words: str) -> list[Any] | str:
    """Run Python on ``words`` and return the JSON it prints, in a list; or a sentence on why there is none."""
    ran = _run([sys.executable, "-P", *words])
    if ran is None:
        return f"did not answer within {_WAIT_S:g} s"
    if ran.returncode < 0:
        return f"crashed with signal {-ran.returncode}"
    lines = ran.stdout.splitlines()
    if ran.returncode == 0 and lines:
        answer = json.loads(lines[-1])
        return answer if isinstance(answer, list) else [answer]
    return " ".join((ran.stderr.splitlines() or [f"exit code {ran.returncode}"])[-1].split())[:300]


def _run(command: Sequence[str]) -> "subprocess.CompletedProcess[str] | None":
    """Run a command; None if it cannot be started or does not end."""
    try:
        # S603: this interpreter, or a tool of the driver.
        return subprocess.run(  # noqa: S603
            command,
            env={**os.environ, **_found()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_WAIT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None


def _found() -> dict[str, str]:
    """Return what lets another Python find this bnpass."""
    path = os.pathsep.join(filter(None, (str(Path(bnpass.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path}
