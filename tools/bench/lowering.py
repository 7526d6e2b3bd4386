"""Time an affine that stays, in every form and place: which nodes are the cheapest in ONNX Runtime?

    python tools/bench/lowering.py                                     about 2 minutes
    python tools/bench/lowering.py --rounds 3 --threads 1              a glance
    python tools/bench/lowering.py --write                             also into tools/bench/RESULTS.md

Each place is a small network around one affine, which is left out, or written as a BatchNormalization, as Mul and Add,
or, if it only shifts or only scales, as one of them. All forms of a place take turns in one process, with all of ONNX
Runtime's optimizations on and threads that do not spin. What is shown is the time that the affine adds, per element.
``bnpass/folding/lower.py`` goes by this table.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import measure
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from measure import RESULTS
from onnx import TensorProto, helper

PLACES = {
    "Add → · → Relu → Conv": ("add", "relu", "conv"),
    "Add → · → Conv": ("add", "", "conv"),
    "Concat → · → Relu → Conv": ("concat", "relu", "conv"),
    "Conv → Relu → · → Conv": ("conv_relu", "", "conv"),
    "Conv → Sigmoid → · → Conv": ("conv_sigmoid", "", "conv"),
    "MaxPool → · → Conv": ("pool", "", "conv"),
    "Gemm → Relu → · → Gemm": ("gemm_relu", "", "gemm"),
}
"""What stands before an affine, what is applied to it, and what reads it."""
FORMS = {
    "nothing": (),
    "BatchNormalization": ("BatchNormalization",),
    "Mul, Add": ("Mul", "Add"),
    "Add": ("Add",),
    "Mul": ("Mul",),
}
SIZES = ((64, 56), (256, 14))
"""Channels and length of the image."""
ROWS = 64
"""Of the matrices between Gemms."""


@dataclass(frozen=True)
class Contestant:
    """One form in one place."""

    form: str
    session: ort.InferenceSession
    feeds: dict[str, np.ndarray]


def main() -> int:
    arguments = _arguments()
    how = (
        f"`python tools/bench/lowering.py --rounds {arguments.rounds} --threads {arguments.threads}`: ns per element "
        "that an affine adds to a small network in ONNX Runtime (CPU, float32, batch 1, all optimizations on), medians "
        f"of {arguments.rounds} rounds. Bold: the cheaper form of a whole affine."
    )
    conditions = measure.conditions(how)
    rows = [_row(place, size, arguments) for place in PLACES for size in SIZES]
    head = ["place", "elements", *(form for form in FORMS if form != "nothing"), "network alone, ms"]
    measure.publish("lowering", f"{conditions}\n\n{measure.table(head, rows)}", arguments.write)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, metavar="N", help="rounds that count (default 40)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="threads of ONNX Runtime (default 2)")
    parser.add_argument("--write", nargs="?", const=RESULTS, metavar="FILE", help="put the table into FILE as well")
    return parser.parse_args()


def _row(place: str, size: tuple[int, int], arguments: argparse.Namespace) -> list[object]:
    contestants = [_contestant(place, form, size, arguments.threads) for form in FORMS]
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    for number in range(arguments.rounds + 1):
        shift = number % len(contestants)
        for one in contestants[shift:] + contestants[:shift]:
            begin = time.perf_counter()
            one.session.run(None, one.feeds)
            if number:
                times[one.form].append(time.perf_counter() - begin)
    alone = statistics.median(times["nothing"])
    elements = size[0] * (ROWS if "Gemm" in place else size[1] ** 2)
    added = {form: (statistics.median(seconds) - alone) / elements * 1e9 for form, seconds in times.items()}
    measure.say(f"{place} {size}: " + ", ".join(f"{form} {ns:.3f}" for form, ns in added.items()))
    cells = [_cell(form, added) for form in FORMS if form != "nothing"]
    return [place, f"{size[0]} x {elements // size[0]}", *cells, f"{alone * 1e3:.2f}"]


def _cell(form: str, added: dict[str, float]) -> str:
    rivals = ("BatchNormalization", "Mul, Add") if form in ("BatchNormalization", "Mul, Add") else (form,)
    best = len(rivals) > 1 and added[form] == min(added[rival] for rival in rivals)
    return f"**{added[form]:.3f}**" if best else f"{added[form]:.3f}"


def _contestant(place: str, form: str, size: tuple[int, int], threads: int) -> Contestant:
    model, feeds = _network(place, FORMS[form], size)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Contestant(form, session, feeds)


class _Network:
    """A network while it grows."""

    def __init__(self, channels: int, *, matrix: bool) -> None:
        self._rng, self.channels, self.matrix = np.random.default_rng(0), channels, matrix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, *shape: int) -> str:
        name = f"c{len(self.constants)}"
        array = self._rng.uniform(0.1, 0.2, shape).astype(np.float32)
        self.constants.append(ir.serde.serialize_tensor(ir.Tensor(array, name=name)))
        return name

    def op(self, op_type: str, *inputs: str, **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], **attributes))
        return name

    def linear(self, value: str) -> str:
        if self.matrix:
            return self.op("Gemm", value, self.constant(self.channels, self.channels), self.constant(self.channels))
        weight = self.constant(self.channels, self.channels, 3, 3)
        return self.op("Conv", value, weight, self.constant(self.channels), pads=[1, 1, 1, 1])

    def affine(self, value: str, op_type: str) -> str:
        if op_type == "BatchNormalization":
            return self.op(op_type, value, *(self.constant(self.channels) for _ in range(4)))
        return self.op(op_type, value, self.constant(self.channels, *(() if self.matrix else (1, 1))))

    def before(self, kind: str) -> str:
        made = self.linear("x")
        if kind == "add":
            return self.op("Add", made, self.linear("x"))
        if kind == "concat":
            half = self.channels // 2
            parts = [
                self.op("Conv", "x", self.constant(half, self.channels, 3, 3), self.constant(half), pads=[1, 1, 1, 1])
                for _ in range(2)
            ]
            return self.op("Concat", *parts, axis=1)
        if kind == "pool":
            return self.op("MaxPool", made, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        return self.op("Sigmoid" if kind.endswith("sigmoid") else "Relu", made)


def _network(place: str, ops: Sequence[str], size: tuple[int, int]) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    before, after, _ = PLACES[place]
    channels, length = size
    network = _Network(channels, matrix="Gemm" in place)
    value = network.before(before)
    for op_type in ops:
        value = network.affine(value, op_type)
    if after:
        value = network.op("Relu", value)
    value = network.linear(value)
    shape = [ROWS, channels] if network.matrix else [1, channels, length, length]
    graph = helper.make_graph(
        network.nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, None)], network.constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model, {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32)}


if __name__ == "__main__":
    sys.exit(main())
