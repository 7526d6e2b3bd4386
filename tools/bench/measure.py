"""Run whole processes side by side, and say what they cost.

A sample is one process from start to end: interpreter, imports and all. Contestants take turns within each
round, so that a slow minute of the machine hits all of them; the first round warms the file cache and is
thrown away. The peak is `ru_maxrss` of `wait4`: the largest resident set of the process or of any descendant
it waited for (Linux: file pages that are mapped count as well).

This process stays small on purpose, so nothing here imports NumPy or ONNX: on Linux a child's peak cannot be
less than what its parent held when it was started.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("RESULTS.md")
MIB = 1 << 20
PACKAGES = ("bnpass", "numpy", "onnx", "onnx_ir", "onnxruntime", "onnxslim", "onnxsim", "onnxoptimizer", "onnxscript")
"""Those whose version is part of a result."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One process.

    Attributes:
        seconds: From its start to its end.
        cpu_seconds: User and system time, descendants included.
        peak_mib: Its largest resident set.
        code: Its exit code; minus the signal that ended it.
        timed_out: Whether it was ended here.
        output: What it printed.
        complaint: The last line of its stderr.
    """

    seconds: float
    cpu_seconds: float
    peak_mib: float
    code: int
    timed_out: bool
    output: str
    complaint: str

    @property
    def ok(self) -> bool:
        """Whether it ended well."""
        return self.code == 0

    @property
    def failure(self) -> str:
        """How it ended, if not well."""
        if self.timed_out:
            return "timeout"
        return f"crash ({signal.Signals(-self.code).name})" if self.code < 0 else f"exit {self.code}"


def run(command: Sequence[str], *, folder: Path, timeout_s: float = 600.0) -> Sample:
    """Run one process to its end.

    Args:
        command: The program and its arguments.
        folder: Where it runs.
        timeout_s: After this it and its children are killed.
    """
    expired = threading.Event()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begin = time.perf_counter()
        # A session of its own: killing the group then reaches every descendant and nobody else.
        process = subprocess.Popen(
            command, cwd=folder, env=_environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            start_new_session=True,
        )  # fmt: skip
        timer = threading.Timer(timeout_s, _kill, (process.pid, expired))
        timer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            _kill(process.pid, expired)
            raise
        finally:
            timer.cancel()
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)  # so that Popen does not wait once more
        return Sample(
            seconds,
            usage.ru_utime + usage.ru_stime,
            usage.ru_maxrss / (MIB if sys.platform == "darwin" else 1024),
            process.returncode,
            expired.is_set(),
            _text(out),
            without_paths(_last_line(_text(err))),
        )


def interleaved(
    contestants: Mapping[str, Sequence[str]],
    *,
    folder: Path,
    repeats: int,
    warm_up: bool = True,
    timeout_s: float = 600.0,
    after: Callable[[str, Sample, bool], None] | None = None,
) -> dict[str, list[Sample]]:
    """Run all contestants in turns; the order rotates by one each round.

    Args:
        contestants: Their commands, by name.
        folder: Where they run.
        repeats: Number of rounds that count.
        warm_up: Run one round more, first, that does not.
        timeout_s: For each process.
        after: Called after each run with the name, the sample and whether it was the last of this contestant.

    Returns:
        The samples of each contestant. One that fails is not run again.
    """
    names = list(contestants)
    found: dict[str, list[Sample]] = {name: [] for name in names}
    broken: set[str] = set()
    rounds = repeats + warm_up
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            if name in broken:
                continue
            sample = run(contestants[name], folder=folder, timeout_s=timeout_s)
            say(f"round {number}/{rounds - 1}  {name}: {sample.seconds:.2f} s, {sample.peak_mib:.0f} MiB")
            if not sample.ok:
                broken.add(name)
                found[name] = [sample]
            elif number or not warm_up:
                found[name].append(sample)
            if after is not None:
                after(name, sample, not sample.ok or number == rounds - 1)
    return found


def median(samples: Iterable[Sample]) -> float:
    """Return the median time in seconds."""
    return statistics.median(s.seconds for s in samples)


def peak(samples: Iterable[Sample]) -> float:
    """Return the median peak in MiB."""
    return statistics.median(s.peak_mib for s in samples)


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Write a median with its range."""
    values = sorted(values)
    return f"{statistics.median(values):.{digits}f} [{values[0]:.{digits}f}–{values[-1]:.{digits}f}]"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a Markdown table: the first column to the left, the others to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines)


def verdict(text: str, found: float, limit: float, unit: str) -> str:
    """Write one line that holds a target against what was measured."""
    word = "PASS" if found <= limit else "FAIL"
    return f"- **{word}** {text}: {found:.3g}{unit}, allowed {limit:.3g}{unit}"


def conditions(how: str) -> str:
    """Describe the machine, the versions and the way it was measured."""
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    return (
        f"{how}\n\nMachine: {os.cpu_count()} cores of {_processor()}, {_memory_gib():.0f} GiB memory, "
        f"{platform.system()} {platform.machine()}; load before the run {os.getloadavg()[0]:.1f}. "
        f"Python {platform.python_version()}, {versions}."
    )


def publish(name: str, text: str, file: Path | None) -> None:
    """Print a result; with a file, put it between that file's markers as well.

    Args:
        name: Of the markers ``<!-- name:begin -->`` and ``<!-- name:end -->``.
        text: The result, in Markdown.
        file: A file that has these markers; None to print only.
    """
    print(text)
    if file is None:
        return
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    old = file.read_text(encoding="utf-8")
    if old.count(begin) != 1 or old.count(end) != 1:
        raise SystemExit(f"{file}: needs one {begin} and one {end}")
    head, rest = old.split(begin)
    file.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}", encoding="utf-8")


def parser(document: str | None) -> argparse.ArgumentParser:
    """Return a command line with the options that every script here has."""
    made = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--models", metavar="DIR", type=Path, default=Path(tempfile.gettempdir()) / "bnpass-bench",
        help="where models are built and kept (default: bnpass-bench in the system's temporary folder)",
    )  # fmt: skip
    made.add_argument(
        "--scratch", metavar="DIR", type=Path,
        help="where outputs are written and deleted again (default: in DIR of --models)",
    )  # fmt: skip
    made.add_argument(
        "--write", metavar="FILE", type=Path, nargs="?", const=RESULTS,
        help="also put the result between the markers of FILE (default tools/bench/RESULTS.md)",
    )  # fmt: skip
    return made


@contextlib.contextmanager
def scratch(arguments: argparse.Namespace) -> Iterator[Path]:
    """Give a fresh folder that is gone afterwards, whatever happens."""
    arguments.models = arguments.models.resolve()
    arguments.models.mkdir(parents=True, exist_ok=True)
    parent = (arguments.scratch or arguments.models).resolve()
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def without_paths(text: str) -> str:
    """Cut every absolute path down to its last part: results must not name this machine's folders."""
    return re.sub(r"(?<![\w.])/(?:[^\s/:'\"]+/)+([^\s/:'\"]*)", r"\1", text)


def say(text: str) -> None:
    """Tell the one who waits."""
    print(without_paths(text), file=sys.stderr, flush=True)


def _kill(group: int, expired: threading.Event) -> None:
    expired.set()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _environment() -> dict[str, str]:
    """Return what every contestant gets: the checkout can be imported without being installed."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TF_CPP_MIN_LOG_LEVEL": "2"}


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")[:300]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        if package != "bnpass":
            return "(not installed)"
        found = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
        return f"{found[1]} (checkout)" if found else "(checkout)"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
