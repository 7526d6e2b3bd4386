"""Time the CPU kernels beside ONNX Runtime's, PyTorch's and TensorFlow's, and hold them against a memory copy.

    python tools/bench/kernels.py                                       all shapes: about 5 minutes
    python tools/bench/kernels.py --python PyTorch=/venv/bin/python     a contestant that lives in another environment
    python tools/bench/kernels.py --shape 16x64x56x56 --rounds 2        a glance
    python tools/bench/kernels.py --write README.md tools/bench/RESULTS.md

Training, forward and backward, float32, 2 threads. Every contestant is a process that stays for the whole run; they
take turns, in an order that rotates from round to round, and only one is busy at a time. What they compute is
compared with the float64 formula before it is timed. BNPASS_LIBRARY names another build of the kernels.
"""

import argparse
import contextlib
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import measure
import numpy as np
from kernel_contestants.layer import COPIED_BYTES, EPSILON, THREADS, Layer
from measure import RESULTS, ROOT
from numpy.typing import NDArray

OURS, FLOOR = "bnpass", "memory copy"
MODULES = {
    OURS: "bnpass_kernels",
    "ONNX Runtime": "onnxruntime_kernels",
    "PyTorch": "pytorch_kernels",
    "TensorFlow": "tensorflow_kernels",
    FLOOR: "memory_copy",
}
PEERS = tuple(name for name in MODULES if name not in (OURS, FLOOR))
SHAPES = ("32x64x112x112", "32x256x56x56", "16x64x56x56", "32x512x14x14", "4x2048x7x7", "256x1024")
LAYOUTS = ("NCHW", "NHWC")


class Direction(NamedTuple):
    """A direction and its targets.

    Attributes:
        name: Of it.
        moves: Reads and writes of a whole tensor of the layer that its floor counts.
        tensors: That it touches, each of the size of X.
        limit: The target, times the floor.
    """

    name: str
    moves: int
    tensors: int
    limit: float


DIRECTIONS = (Direction("forward", 3, 2, 1.3), Direction("backward", 5, 3, 1.5))
TURN_S, MOST_REPEATS = 0.08, 300
"""How long a turn of one contestant takes, about, and the most runs in it; a turn is at least 3 runs."""
PATIENCE_S = 120.0
ENVIRONMENT = {
    # Memory that a library frees stays in the process, in large pages: nobody pays for the system's page faults.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


def main() -> int:
    arguments = _arguments()
    layers = [
        (shape, layout)
        for shape in arguments.shape or SHAPES
        for layout in (arguments.layout or LAYOUTS if shape.count("x") > 1 else ("NC",))
    ]
    shapes = {shape: tuple(map(int, shape.split("x"))) for shape, _ in layers}
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        _draw(folder, max(map(math.prod, shapes.values())))
        contestants = [
            stack.enter_context(contestant(title, arguments.python.get(title, sys.executable), folder))
            for title in MODULES
        ]
        measured = [
            measure_layer(contestants, Layer(shapes[shape], layout, folder), arguments.rounds)
            for shape, layout in layers
        ]
    text = _report(arguments, contestants, measured)
    for file in arguments.write or [None]:
        measure.publish("kernels", text, file)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="rounds that count (default 7)")
    parser.add_argument("--shape", action="append", help="one shape only; may be given more than once")
    parser.add_argument("--layout", action="append", choices=LAYOUTS, help="one layout only")
    parser.add_argument(
        "--python", action="append", default=[], metavar="CONTESTANT=PATH",
        help=f"the interpreter of a contestant ({', '.join(MODULES)}; default: this one)",
    )  # fmt: skip
    parser.add_argument("--scratch", metavar="DIR", type=Path, help="where inputs are written and deleted again")
    parser.add_argument(
        "--write", metavar="FILE", type=Path, nargs="*",
        help="also put the result between the markers of each FILE (default tools/bench/RESULTS.md)",
    )  # fmt: skip
    arguments = parser.parse_args()
    arguments.python = dict(pair.partition("=")[::2] for pair in arguments.python)
    if unknown := set(arguments.python) - set(MODULES):
        parser.error(f"--python: no contestant {sorted(unknown)}; there are {', '.join(MODULES)}")
    if arguments.write == []:
        arguments.write = [RESULTS]
    return arguments


def _draw(folder: Path, elements: int) -> None:
    """Write the numbers that every layer is made of: standard normal + 0.5."""
    generator = np.random.default_rng(0)
    for name in ("x", "dy"):
        (generator.standard_normal(elements, np.float32) + np.float32(0.5)).tofile(folder / name)


# --- contestants --------------------------------------------------------------------------------------------------


class ContestantError(Exception):
    """A contestant did not answer."""


@dataclass
class Contestant:
    """A process that answers requests; see ``kernel_contestants/serve.py``.

    Attributes:
        title: In the table.
        version: Of the library.
        note: What is called.
        failure: Why there are no more answers; empty if there are.
        missing: Whether there never were.
    """

    title: str
    process: subprocess.Popen[str]
    complaints: Path
    version: str = ""
    note: str = ""
    failure: str = ""
    missing: bool = False

    def ask(self, **request: object) -> dict[str, Any]:
        """Send a request and return the answer.

        Raises:
            ContestantError: There is none; then there will be no other.
        """
        assert self.process.stdin  # noqa: S101
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Wait for an answer; see ``ask``."""
        assert self.process.stdout  # noqa: S101
        timer = threading.Timer(PATIENCE_S, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if line:
            return dict(json.loads(line))
        lines = [line for line in self.complaints.read_text("utf-8", "replace").splitlines() if line.strip()]
        self.failure = f"exit {self.process.wait()}: {lines[-1] if lines else ''}"[:300]
        measure.say(f"{self.title}: {self.failure}")
        raise ContestantError(self.failure)


@contextlib.contextmanager
def contestant(title: str, python: str, folder: Path) -> Iterator[Contestant]:
    """Start a contestant; end it afterwards."""
    server = Path(__file__).parent / "kernel_contestants" / "serve.py"
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)}
    complaints = folder / f"{MODULES[title]}.stderr"
    with complaints.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [python, str(server), MODULES[title]], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
    found = Contestant(title, process, complaints)
    try:
        with contextlib.suppress(ContestantError):
            hello = found.answer()
            found.version, found.note = hello.get("version", ""), hello.get("note", "")
            found.failure = hello.get("missing", "")
        found.missing = bool(found.failure)
        yield found
    finally:
        process.kill()
        process.communicate()


# --- measurement --------------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """One layer.

    Attributes:
        layer: It.
        seconds: By contestant and pass: the median of each turn, in the order of rounds.
        off: By contestant and pass: see ``off_by``.
        remarks: By contestant and pass: what stands in the table instead of a time.
    """

    layer: Layer
    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    off: dict[tuple[str, str], float] = field(default_factory=dict)
    remarks: dict[tuple[str, str], str] = field(default_factory=dict)

    def ms(self, title: str, name: str) -> float:
        """Return the median time in milliseconds; NaN if there is none."""
        found = self.seconds.get((title, name))
        return 1e3 * statistics.median(found) if found else math.nan

    def floor(self, direction: Direction) -> float:
        """Return the time in milliseconds in which memory is moved as often as the direction's floor counts."""
        return direction.moves * 4 * self.layer.elements / self.bandwidth * 1e3

    @property
    def bandwidth(self) -> float:
        """Of the copies in the same rounds, in bytes per second, those read and those written."""
        return 2 * COPIED_BYTES / self.ms(FLOOR, "copy") * 1e3


def measure_layer(contestants: Sequence[Contestant], layer: Layer, rounds: int) -> Measured:
    """Let all contestants run a layer in turns."""
    found = Measured(layer)
    passes: list[tuple[Contestant, str]] = []
    for one in contestants:
        with contextlib.suppress(ContestantError):
            passes += [(one, name) for name in _opened(one, layer)]
    for direction in DIRECTIONS:
        _check(found, [one for one, name in passes if name == direction.name], direction.name)
    passes = [(one, name) for one, name in passes if (one.title, name) not in found.remarks]
    repeats = {(one.title, name): 1 for one, name in passes}
    order = list(dict.fromkeys(one.title for one, _ in passes))
    for number in range(rounds + 1):  # the first one warms up, and tells how long a run takes
        shift = number % len(order)
        for title in order[shift:] + order[:shift]:
            for one, name in (p for p in passes if p[0].title == title and not p[0].failure):
                with contextlib.suppress(ContestantError):
                    seconds = _turn(one, name, repeats)
                    if number:
                        found.seconds.setdefault((title, name), []).append(seconds)
    for one in contestants:
        for name in (d.name for d in DIRECTIONS):
            if one.failure:
                found.remarks[one.title, name] = "missing" if one.missing else "failed"
            elif (one, name) not in passes:
                found.remarks.setdefault((one.title, name), "n/a")
    _tell(found)
    return found


def _opened(one: Contestant, layer: Layer) -> list[str]:
    if one.failure:
        return []
    request = {"shape": layer.shape, "layout": layer.layout, "folder": str(layer.folder)}
    return list(one.ask(do="open", **request)["passes"])


def _turn(one: Contestant, name: str, repeats: dict[tuple[str, str], int]) -> float:
    key = one.title, name
    seconds = float(one.ask(do="run", repeats=repeats[key], **{"pass": name})["seconds"])
    repeats[key] = min(MOST_REPEATS, max(3, round(TURN_S / seconds)))
    return seconds


def _tell(found: Measured) -> None:
    times = ", ".join(f"{title} {name} {found.ms(title, name):.3g}" for title, name in found.seconds)
    measure.say(f"{_title(found.layer)} {found.layer.layout}: {times} ms")


# --- is it right? -------------------------------------------------------------------------------------------------


def _check(found: Measured, contestants: Sequence[Contestant], name: str) -> None:
    """Compare results with the formula in float64; who is wrong is not timed."""
    layer, files = found.layer, {}
    for one in contestants:
        file = layer.folder / f"{MODULES[one.title]}.result"
        with contextlib.suppress(ContestantError):
            one.ask(do="save", file=str(file), **{"pass": name})
            files[one.title] = file
    results = {title: _by_channel(file, layer) for title, file in files.items()}
    for title, off in off_by(layer, name, results).items():
        found.off[title, name] = off
        if not off <= 1:
            found.remarks[title, name] = "wrong"
    for file in files.values():
        file.unlink()


def off_by(layer: Layer, name: str, results: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
    """Return the largest error of each result, by what rounding to float32 permits.

    That is, by the size of what enters a result, u = 2⁻²⁴ in each of 8 operations and 4·u·√M in a sum of M terms, one
    after the other: four standard deviations, if roundings up and down are equally likely.

    Args:
        layer: It.
        name: "forward" or "backward".
        results: Y or dX of each contestant, [outer, C, inner].
    """
    x, dy = (_by_channel(layer.folder / file, layer) for file in ("x", "dy"))
    M = layer.elements // layer.channels
    u = 2.0**-24 * (8 + 4 * math.sqrt(M))
    off = dict.fromkeys(results, 0.0)
    width = max(1, (1 << 22) // M)  # channels at a time
    for first in range(0, layer.channels, width):
        part = np.s_[:, first : first + width]
        X, dY = x[part].astype(np.float64), dy[part].astype(np.float64)
        scale, B = (np.array(v[first : first + width])[:, None] for v in (layer.scale, layer.B))
        mean = X.mean((0, 2), keepdims=True)
        inv_std = 1 / np.sqrt(X.var((0, 2), keepdims=True) + EPSILON)
        normal = (X - mean) * inv_std
        if name == "forward":
            wanted = scale * normal + B
            size = np.abs(scale) * (np.abs(normal) + 1 + np.abs(mean) * inv_std) + np.abs(B)
        else:
            S1, S2 = dY.mean((0, 2), keepdims=True), (dY * normal).mean((0, 2), keepdims=True)
            wanted = scale * inv_std * (dY - S1 - normal * S2)
            size = np.abs(scale) * inv_std * (np.abs(dY) + 1 + np.abs(normal))
        for title, result in results.items():
            worst = float(np.max(np.abs(result[part] - wanted) / (u * size)))
            off[title] = max(off[title], worst) if worst == worst else math.inf
    return off


def _by_channel(file: Path, layer: Layer) -> NDArray[np.float32]:
    """Return a view of a file, [outer, C, inner]."""
    inner = 1 if layer.layout == "NHWC" else math.prod(layer.shape[2:])
    numbers = np.memmap(file, np.float32, "r", shape=(layer.elements,))
    return numbers.reshape(-1, layer.channels, inner)


# --- the report ---------------------------------------------------------------------------------------------------


def _report(arguments: argparse.Namespace, contestants: Sequence[Contestant], measured: Sequence[Measured]) -> str:
    cache = cache_bytes()
    bandwidth = statistics.median(found.bandwidth for found in measured) / 1e9
    command = f"python tools/bench/kernels.py --rounds {arguments.rounds}"
    how = (
        f"`{command}`: batch normalization in training, float32, {THREADS} threads; ms, medians of "
        f"{arguments.rounds} rounds with turns of {TURN_S:g} s, in brackets times what bnpass takes. Floor: a copy of "
        f"{COPIED_BYTES >> 20} MiB by {THREADS} threads in the same rounds ({bandwidth:.1f} GB/s, read and written), "
        "for 2 reads + 1 write of the layer forward and 4 + 1 backward. Buffers are hot, and memory stays with the "
        "process (`GLIBC_TUNABLES`), so that results a library allocates cost it no page faults. ONNX Runtime spins "
        "as it does by default; a turn begins when all other contestants are at rest. Results were compared with the "
        "float64 formula; error: the largest, by what rounding to float32 permits. PASS: at most "
        f"{DIRECTIONS[0].limit} × the floor forward, {DIRECTIONS[1].limit} × backward, below the floor where the "
        f"tensors of the pass fit in the last cache ({cache >> 20} MiB), and faster than each peer."
    )
    parts = [measure.conditions(how), "\n".join(_presented(one, measured) for one in contestants)]
    for direction in DIRECTIONS:
        parts += [f"**{direction.name.capitalize()}**", _table(direction, measured, cache)]
    return "\n\n".join(parts)


def _presented(one: Contestant, measured: Sequence[Measured]) -> str:
    failure = measure.without_paths(one.failure)
    if one.missing:
        return f"- {one.title}: **missing** ({failure})"
    off = [value for found in measured for (title, _), value in found.off.items() if title == one.title]
    error = f"; error {max(off):.2g}" if off else ""
    return f"- {one.title} ({one.version}): {one.note}{error}" + (f"; **failed** ({failure})" if failure else "")


def _table(direction: Direction, measured: Sequence[Measured], cache: int) -> str:
    peers = [p for p in PEERS if any(found.remarks.get((p, direction.name)) != "n/a" for found in measured)]
    head = ("", "layout", "bnpass: median [range]", "× floor", "allowed", *peers, "")
    rows = []
    for found in measured:
        ours = found.ms(OURS, direction.name)
        times = found.remarks.get((OURS, direction.name)) or measure.spread(
            (1e3 * s for s in found.seconds[OURS, direction.name]), 3
        )
        cells = [_cell(found, peer, direction.name, ours) for peer in peers]
        limit = allowed(found.layer, direction, cache)
        against = (f"{ours / found.floor(direction):.2f}", f"{limit:.1f}")
        verdict = _verdict(found, direction, limit)
        rows.append([_title(found.layer), found.layer.layout, times, *against, *cells, verdict])
    return measure.table(head, rows)


def _cell(found: Measured, peer: str, name: str, ours: float) -> str:
    if remark := found.remarks.get((peer, name)):
        return remark
    time = found.ms(peer, name)
    return f"{time:.3f} ({time / ours:.2f})"


def allowed(layer: Layer, direction: Direction, cache: int) -> float:
    """Return the target, times the floor: 1 for a layer whose tensors fit in the last cache together."""
    return 1.0 if direction.tensors * 4 * layer.elements <= cache else direction.limit


def _verdict(found: Measured, direction: Direction, limit: float) -> str:
    ours = found.ms(OURS, direction.name)
    wrong = [] if ours <= limit * found.floor(direction) else ["floor"]  # NaN is wrong
    wrong += [peer for peer in PEERS if found.ms(peer, direction.name) <= ours]
    unknown = [peer for peer in PEERS if found.remarks.get((peer, direction.name), "n/a") != "n/a"]
    if wrong:
        return f"**FAIL**: {', '.join(wrong)}"
    return f"PASS, but for {', '.join(unknown)}" if unknown else "PASS"


def _title(layer: Layer) -> str:
    return "×".join(map(str, layer.shape))


def cache_bytes() -> int:
    """Return the size of the last level of cache; 0 if the system does not tell."""
    found = 0
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        if match := re.fullmatch(r"(\d+)([KM])\s*", file.read_text()):
            found = max(found, int(match[1]) << {"K": 10, "M": 20}[match[2]])
    return found


if __name__ == "__main__":
    sys.exit(main())
