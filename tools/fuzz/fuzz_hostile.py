"""Fold golden models in which something was made nonsense: an attribute, a constant, a shape, a missing input.

    python tools/fuzz/fuzz_hostile.py --cases 20000 --seed 1 [--write]
    python tools/fuzz/fuzz_hostile.py --case 4711                          one case again, with the model printed

Folding must raise nothing, and end soon, in little memory. What ONNX Runtime still runs must give the same numbers, but
for gross errors only: exactness is for fuzz_fold.py. Cases in which onnx's own inference ends the process are counted
and printed, and fail nothing: bnpass cannot help it. Case k of seed s is the integer s·2³² + k. Exit code: 1 if a
statement did not hold.
"""

import argparse
import random
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np  # noqa: E402
import onnx_ir as ir  # noqa: E402
import onnxruntime as ort  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from results import keep  # noqa: E402

from bnpass.folding.options import FoldOptions  # noqa: E402
from bnpass.passes import FoldBatchNorm  # noqa: E402
from tests.golden.pairs import families, pairs, read  # noqa: E402

SECONDS, BYTES = 20, 4 << 30
NUMBERS = (0, -1, 1, 2, 3, 7, -5, 10**9, 2**62, -(2**62))
FLAGS = {
    *("group", "ceil_mode", "count_include_pad", "axis", "keepdims", "blocksize", "training_mode", "spatial"),
    *("transA", "transB", "block_size"),
}
"""Attributes of one integer; the others are lists."""
WINDOW = ("pads", "strides", "dilations", "kernel_shape")
ATTRIBUTES = {
    "Conv": (*WINDOW, "group"),
    "ConvTranspose": (*WINDOW, "group", "output_padding"),
    "MaxPool": (*WINDOW, "ceil_mode"),
    "AveragePool": (*WINDOW, "ceil_mode", "count_include_pad"),
    "ReduceMean": ("axes", "keepdims"),
    "ReduceSum": ("axes", "keepdims"),
    "ReduceMax": ("axes", "keepdims"),
    "BatchNormalization": ("training_mode", "spatial"),
    "Gemm": ("transA", "transB"),
    "DequantizeLinear": ("axis", "block_size"),
    "Slice": ("axes", "starts", "ends"),
    "Transpose": ("perm",),
    "Pad": ("pads",),
    **dict.fromkeys(("Concat", "Split", "Gather", "Flatten", "QuantizeLinear"), ("axis",)),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), ("blocksize",)),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), ("axes",)),
}

PAIRS = [pair for family in families() for pair in pairs(family)]


ENDED = "onnx's own inference ended the process"
"""By an assertion in C++: a Slice behind a window larger than its image."""

Given, Result = TypeVar("Given"), TypeVar("Result")


class TooLongError(Exception):
    """Folding took too long."""


def hostile(number: int) -> tuple[str, ir.Model]:
    """Return a golden model with one or two things made nonsense, and what it was."""
    chance = random.Random(number)  # noqa: S311  nothing is secret
    pair = chance.choice(PAIRS)
    model = read(pair.before)
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    kinds = (_attribute, _attribute, _attribute, _constant, _shape, _input)
    done = [chance.choice(kinds)(chance, model, chance.choice(nodes)) for _ in range(chance.choice((1, 1, 2)))]
    return f"{pair}: {', '.join(filter(None, done))}", model


def _attribute(chance: random.Random, _model: ir.Model, node: ir.Node) -> str:
    names = [*ATTRIBUTES.get(node.op_type, ()), *(n for n, a in node.attributes.items() if a.type in _INTEGERS)]
    if not names:
        return ""
    name, number = chance.choice(names), chance.choice(NUMBERS)
    if name in FLAGS:
        node.attributes[name] = ir.AttrInt64(name, number)
        return f"{node.op_type}.{name}={number}"
    old = node.attributes.get(name)
    values = list(old.as_ints()) if old is not None and old.type == ir.AttributeType.INTS else [1, 1]
    what = chance.random()
    if what < 0.5 and values:
        values[chance.randrange(len(values))] = number
    else:
        values = values[:-1] if what < 0.75 else [*values, number]
    node.attributes[name] = ir.AttrInt64s(name, values)
    return f"{node.op_type}.{name}={values}"


_INTEGERS = {ir.AttributeType.INT, ir.AttributeType.INTS}


def _constant(chance: random.Random, model: ir.Model, _node: ir.Node) -> str:
    found = [(v, a) for v, a in _constants(model) if a.dtype == np.int64 and a.size]
    if not found:
        return ""
    value, array = chance.choice(found)
    array = array.copy()
    array.reshape(-1)[chance.randrange(array.size)] = chance.choice(NUMBERS)
    _set(value, array)
    return f"{value.name}={array.tolist()}"


def _shape(chance: random.Random, model: ir.Model, _node: ir.Node) -> str:
    found = [(v, a) for v, a in _constants(model) if a.size > 1]
    if not found:
        return ""
    value, array = chance.choice(found)
    least = int(array.dtype == np.int64)  # a Squeeze of no axes: ONNX squeezes nothing, ONNX Runtime everything
    array = array[None] if chance.random() < 0.5 else array.reshape(-1)[: chance.randrange(least, array.size)]
    _set(value, np.ascontiguousarray(array))
    return f"{value.name} of shape {list(array.shape)}"


def _input(chance: random.Random, _model: ir.Model, node: ir.Node) -> str:
    if not node.inputs:
        return ""
    index = chance.randrange(len(node.inputs))
    node.replace_input_with(index, None)
    return f"{node.op_type} without input {index}"


def _constants(model: ir.Model) -> Iterator[tuple[ir.Value, NDArray[np.generic]]]:
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            yield value, value.const_value.numpy()


def _set(value: ir.Value, array: NDArray[np.generic]) -> None:
    value.const_value, value.shape = ir.tensor(array, name=value.name), ir.Shape(array.shape)


class EndedError(Exception):
    """A library in C++ ended the process."""


class Apart:
    """Functions in a process of its own, which some nonsense ends."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def __call__(self, function: Callable[[Given], Result], given: Given) -> Result:
        """Call a function.

        Raises:
            EndedError: It ended the process.
        """
        self._pool = self._pool or ProcessPoolExecutor(1, get_context("spawn"), initializer=_limit)
        try:
            return self._pool.submit(function, given).result()
        except BrokenProcessPool as error:
            self._pool.shutdown()
            self._pool = None
            raise EndedError from error


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))


def judged(number: int, apart: Apart) -> tuple[str, str]:
    """Fold a case.

    Returns:
        What became of it, and what went wrong; empty if nothing did.
    """
    try:
        before, after, wrong = apart(folded, number)
    except EndedError:
        return ENDED, ""
    if wrong:
        return "raised", wrong
    try:
        old = apart(outputs, before) if before is not None else None
    except EndedError:
        old = None
    if old is None:
        return "no model for ONNX Runtime", ""
    try:
        new = apart(outputs, after) if after is not None else None
    except EndedError:
        new = None
    if new is None:
        return "ran", "ran before it was folded"
    return "ran", "" if all(_close(a, b) for a, b in zip(old, new, strict=True)) else "gives other numbers"


def folded(number: int) -> tuple[bytes | None, bytes | None, str]:
    """Return a case before and after it was folded, and what was raised."""
    _, model = hostile(number)
    before = _bytes(model)
    try:
        with _bounded():
            FoldBatchNorm(FoldOptions(target="portable" if number % 2 else "onnxruntime-cpu"))(model)
    except Exception as error:  # noqa: BLE001  whatever it is, it is what is looked for
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "bnpass" in Path(f.filename).parts]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
        return before, None, f"{type(error).__name__} in {where}"
    return before, _bytes(model), ""


@contextmanager
def _bounded() -> Iterator[None]:
    def late(*_: object) -> None:
        raise TooLongError

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def _bytes(model: ir.Model) -> bytes | None:
    try:
        return ir.to_proto(model).SerializeToString()
    except Exception:  # noqa: BLE001  some nonsense cannot even be written down
        return None


def outputs(model: bytes) -> list[NDArray[np.generic]] | None:
    """Return what ONNX Runtime makes of a model; None if it refuses it."""
    options = ort.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL, 4
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        rng = np.random.default_rng(0)
        feeds = {i.name: _drawn(rng, i) for i in session.get_inputs()}
        return list(session.run(None, feeds))
    except Exception:  # noqa: BLE001  ONNX Runtime has many
        return None


def _drawn(rng: np.random.Generator, given: ort.NodeArg) -> NDArray[np.generic]:
    shape = [d if isinstance(d, int) else 2 for d in given.shape]
    if given.type in ("tensor(float)", "tensor(double)"):
        return rng.standard_normal(shape).astype(np.float64 if "double" in given.type else np.float32)
    raise NotImplementedError(given.type)


def _close(old: NDArray[np.generic] | None, new: NDArray[np.generic] | None) -> bool:
    if old is None or new is None or old.shape != new.shape:
        return old is new
    if old.dtype.kind != "f":
        return bool((old == new).all())
    finite = np.isfinite(old)  # what is not is moved by every rounding
    reach = float(np.abs(old[finite]).max(initial=0))
    return bool((np.abs(old[finite] - new[finite]) <= 1e-3 * reach + 1e-4).all())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="show one case again")
    parser.add_argument("--write", action="store_true", help="write the section of tools/fuzz/RESULTS.md")
    arguments = parser.parse_args()
    if arguments.case is not None:
        what, model = hostile(arguments.case)
        print(what, model, *judged(arguments.case, Apart()), sep="\n")
        return 0
    apart, became = Apart(), Counter[str]()
    failing: dict[str, list[int]] = {}
    begun = time.monotonic()
    for number in range(arguments.seed << 32, (arguments.seed << 32) + arguments.cases):
        what, wrong = judged(number, apart)
        became[what] += 1
        if wrong:
            failing.setdefault(wrong, []).append(number)
        if wrong or what == ENDED:
            print(number, wrong or what, hostile(number)[0], flush=True)
    rows = [("seed", str(arguments.seed)), ("cases", f"{arguments.cases:,}")]
    rows += [("seconds", f"{time.monotonic() - begun:.0f}"), *((k, f"{n:,}") for k, n in became.most_common())]
    rows += [("failing cases", str(sum(map(len, failing.values()))))]
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
    print(table)
    if arguments.write:
        command = f"python tools/fuzz/fuzz_hostile.py --cases {arguments.cases} --seed {arguments.seed}"
        keep("Hostile models", command, table)
    return int(bool(failing))


if __name__ == "__main__":
    sys.exit(main())
