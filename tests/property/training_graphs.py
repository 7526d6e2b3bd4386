"""Random graphs with several batch normalizations in training mode, and what they compute, in NumPy.

Values are [N, 3, 2] or [N, 3]; N is open, so that the batch can be dealt out to replicas. A graph is written twice from
one list of steps: as ONNX, and as arithmetic in float64 that knows nothing of bnpass. Branches of an If are lists of
steps, too, and capture what is outside. The arithmetic can be disturbed by as much as roundings would at every step:
how far that moves the results says how far roundings may.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import strategies as st
from onnx import TensorProto, helper

import bnpass
from bnpass.expansion.options import ExpandOptions
from bnpass.verification.replicas import run_replicas
from tests.property.graphs import Choices, DrawnChoices, chance, pick
from tests.property.layer_judge import Results, WrongError, valid
from tests.property.specs import FLOATS
from tests.support.build import tensor
from tests.support.float64 import Array

CHANNELS, POSITIONS = 3, 2
TYPES = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}
SHARES = ((4, 4), (5, 1), (3, 2, 2), (4, 0, 3))
EPSILON, MOMENTUM = 1e-3, 0.875
DISTURBED_RUNS = 6
FLAG = "flag"


@dataclass(frozen=True)
class Step:
    """One node.

    Attributes:
        op: Its op; for the BatchNormalization, "Norm".
        reads: The values it reads.
        makes: The values it makes: a normalization has the two statistics behind Y where they are read.
        parameters: Which set of parameters a normalization has.
        branches: Of an If, the steps of both, and the value that each returns.
    """

    op: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    parameters: int = 0
    branches: tuple[tuple[tuple["Step", ...], str], ...] = ()


@dataclass(frozen=True)
class GraphCase:
    """One example.

    Attributes:
        steps: The nodes of the main graph.
        ranks: The rank of every output by its name; rank 1 for statistics.
        dtype: The type of all floating point values.
        opset: Of the model.
        flag: What the uniform flag says.
        shares: Samples of each replica.
        coalesce: Whether collectives may share a message.
        seed: Of the numbers.
    """

    steps: tuple[Step, ...]
    ranks: Mapping[str, int]
    dtype: str
    opset: int
    flag: bool
    shares: tuple[int, ...]
    coalesce: bool
    seed: int

    def __str__(self) -> str:
        return f"{onnx.printer.to_text(model(self))}\nflag {self.flag}, {self.shares}, coalesce {self.coalesce}"


@dataclass
class _Writer:
    choices: Choices
    count: int = 0
    outputs: dict[str, int] = field(default_factory=dict)

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def steps(self, values: dict[str, int], count: int, depth: int) -> tuple[Step, ...]:
        """Write nodes over the values, and add what they make."""
        written = []
        for _ in range(count):
            step, rank = self.step(values, depth)
            values[step.makes[0]] = rank
            written.append(step)
        return tuple(written)

    def step(self, values: dict[str, int], depth: int) -> tuple[Step, int]:
        x = pick(self.choices, list(reversed(values)))
        rank = values[x]
        alike = [name for name, r in values.items() if r == rank]
        kind = pick(self.choices, ("Norm", "Norm", "Norm", "two", "two", "one", "Pool", "If"))
        if kind == "Norm":
            return self.norm(x, main=depth == 2), rank
        if kind == "two":
            op = pick(self.choices, ("Add", "Sub", "Max", "Mul"))
            return Step(op, (x, pick(self.choices, alike)), (self.name("v"),)), rank
        if kind == "Pool" and rank == 3:
            return Step("Pool", (x,), (self.name("p"),)), 2
        if kind == "If" and depth:
            return self.branch(values, rank, depth), rank
        return Step(pick(self.choices, ("Relu", "Tanh", "Neg")), (x,), (self.name("u"),)), rank

    def norm(self, x: str, *, main: bool) -> Step:
        makes = (self.name("y"),)
        if main and chance(self.choices, 60):
            makes += (self.name("m"), self.name("s"))
            self.outputs |= dict.fromkeys(makes[1:], 1)
        return Step("Norm", (x,), makes, parameters=self.choices.below(3))

    def branch(self, values: dict[str, int], rank: int, depth: int) -> Step:
        sides = []
        for _ in range(2):
            inner = dict(values)
            steps = self.steps(inner, 1 + self.choices.below(3), depth - 1)
            made = [step.makes[0] for step in steps if inner[step.makes[0]] == rank]
            if not made:  # it has to return something of its own
                x = next(name for name, r in values.items() if r == rank)
                steps, made = (*steps, Step("Neg", (x,), (self.name("u"),))), [f"u{self.count}"]
            sides.append((_alive(steps, made[-1]), made[-1]))
        condition = FLAG if not chance(self.choices, 30) else "not_flag"
        return Step("If", (condition,), (self.name("b"),), branches=tuple(sides))


def _alive(steps: tuple[Step, ...], result: str) -> tuple[Step, ...]:
    """Return the steps without those that nobody reads: dead normalizations are refused."""
    read, kept = {result}, []
    for step in reversed(steps):
        if step.makes[0] in read:
            kept.append(step)
            read |= _reads(step)
    return tuple(reversed(kept))


def _reads(step: Step) -> set[str]:
    """Return what a step reads, its branches included."""
    found = set(step.reads)
    for inner, result in step.branches:
        found |= {result}.union(*map(_reads, inner))
    return found


def _norms(steps: Sequence[Step]) -> int:
    """Return the number of normalizations, branches included."""
    return sum((step.op == "Norm") + sum(_norms(inner) for inner, _ in step.branches) for step in steps)


def graph_case(choices: Choices) -> GraphCase:
    """Build one case from a source of decisions."""
    writer, values = _Writer(choices), {"x": 3, "z": 3}
    steps = writer.steps(values, 3 + choices.below(5), 2)
    if not _norms(steps):
        step = writer.norm("x", main=True)
        steps, values = (*steps, step), values | {step.makes[0]: 3}
    read: set[str] = set().union(*map(_reads, steps))
    ends = {step.makes[0]: values[step.makes[0]] for step in steps if step.makes[0] not in read}
    return GraphCase(
        steps,
        ends | writer.outputs,
        dtype=pick(choices, ("float32", "float64")),
        opset=pick(choices, (17, 15, 14)),
        flag=pick(choices, (True, False)),
        shares=pick(choices, SHARES),
        coalesce=pick(choices, (True, False)),
        seed=choices.below(1 << 30),
    )


@st.composite
def graph_cases(draw: Any) -> GraphCase:
    """Return cases for hypothesis."""
    return graph_case(DrawnChoices(draw))


# --- as ONNX --------------------------------------------------------------------------------------------------------


def parameters(case: GraphCase) -> dict[str, Array]:
    """Return the three sets of parameters that the normalizations share."""
    rng, dtype = np.random.default_rng(case.seed), FLOATS[case.dtype]
    values = {}
    for i in range(3):
        values[f"scale{i}"] = rng.uniform(0.5, 2, CHANNELS) * rng.choice([-1, 1], CHANNELS)
        values[f"bias{i}"] = rng.normal(size=CHANNELS)
        values[f"mean{i}"], values[f"var{i}"] = rng.normal(size=CHANNELS), rng.uniform(0.5, 2, CHANNELS)
    return {name: value.astype(dtype) for name, value in values.items()}


def model(case: GraphCase) -> onnx.ModelProto:
    """Return the model."""
    kind, shapes = TYPES[case.dtype], {1: [CHANNELS], 2: ["N", CHANNELS], 3: ["N", CHANNELS, POSITIONS]}
    inputs = [helper.make_tensor_value_info(name, kind, shapes[3]) for name in ("x", "z")]
    inputs.append(helper.make_tensor_value_info(FLAG, TensorProto.BOOL, []))
    outputs = [helper.make_tensor_value_info(name, kind, shapes[rank]) for name, rank in case.ranks.items()]
    constants = [tensor(value, name) for name, value in parameters(case).items()]
    nodes = [helper.make_node("Not", [FLAG], ["not_flag"]), *_nodes(case.steps, kind)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=8)


def _nodes(steps: Sequence[Step], kind: int) -> list[onnx.NodeProto]:
    nodes = []
    for step in steps:
        attributes: dict[str, Any] = {}
        op, reads = step.op, list(step.reads)
        if op == "Norm":
            op = "BatchNormalization"
            reads += [f"{name}{step.parameters}" for name in ("scale", "bias", "mean", "var")]
            attributes = {"training_mode": 1, "epsilon": EPSILON, "momentum": MOMENTUM}
        elif op == "Pool":
            op, attributes = "ReduceMean", {"axes": [2], "keepdims": 0}
        elif op == "If":
            for side, (inner, result) in zip(("then_branch", "else_branch"), step.branches, strict=True):
                returned = helper.make_tensor_value_info(result, kind, None)
                attributes[side] = helper.make_graph(_nodes(inner, kind), side, [], [returned])
        nodes.append(helper.make_node(op, reads, list(step.makes), name=f"n_{step.makes[0]}", **attributes))
    return nodes


# --- as arithmetic --------------------------------------------------------------------------------------------------


@dataclass
class _Arithmetic:
    """Evaluates steps in float64.

    Attributes:
        parameters: Of the normalizations.
        flag: The condition.
        unit: How much each step is disturbed; 0: not at all.
        rng: Of the disturbance.
    """

    parameters: Mapping[str, Array]
    flag: bool
    unit: float
    rng: np.random.Generator

    def off(self, value: Array, size: Array) -> Array:
        """Return a value off by some roundings of a number of this size."""
        return value + 2 * self.unit * self.rng.uniform(-1, 1, np.shape(value)) * size if self.unit else value

    def run(self, steps: Sequence[Step], values: dict[str, Array]) -> None:
        """Add what the steps make to the values."""
        for step in steps:
            if step.op == "Norm":
                values |= dict(zip(step.makes, self.norm(step, values[step.reads[0]]), strict=False))
            elif step.op == "If":
                inner, result = step.branches[0 if self.flag == (step.reads[0] == FLAG) else 1]
                scope = dict(values)
                self.run(inner, scope)
                values[step.makes[0]] = scope[result]
            else:
                value = _FORMULAS[step.op](*(values[name] for name in step.reads))
                values[step.makes[0]] = self.off(value, np.abs(value))

    def norm(self, step: Step, x: Array) -> tuple[Array, Array, Array]:
        scale, bias, mean, var = (self.parameters[f"{n}{step.parameters}"].astype(np.float64) for n in _OF_NORM)
        others, along = tuple(i for i in range(x.ndim) if i != 1), (CHANNELS,) + (1,) * (x.ndim - 2)
        m = self.off(x.mean(others), np.abs(x).mean(others))
        v = self.off(x.var(others), x.var(others))
        gain = scale / np.sqrt(v + np.float64(np.float32(EPSILON)))
        y = (x - m.reshape(along)) * gain.reshape(along) + bias.reshape(along)
        size = np.abs(y) + 2 * np.abs(bias).reshape(along)
        kept = MOMENTUM * mean + (1 - MOMENTUM) * m, MOMENTUM * var + (1 - MOMENTUM) * v
        return self.off(y, size), *(self.off(value, np.abs(value)) for value in kept)


_OF_NORM = ("scale", "bias", "mean", "var")
_FORMULAS: Mapping[str, Any] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Max": np.maximum,
    "Relu": lambda x: np.maximum(x, 0),
    "Tanh": np.tanh,
    "Neg": np.negative,
    "Pool": lambda x: x.mean(2),
}


def computed(case: GraphCase, inputs: Mapping[str, Array], *, unit: float = 0.0, seed: int = 0) -> Results:
    """Return the outputs of a graph on a whole batch."""
    arithmetic = _Arithmetic(parameters(case), case.flag, unit, np.random.default_rng(seed))
    values = {name: value.astype(np.float64) for name, value in inputs.items()}
    arithmetic.run(case.steps, values)
    return {name: values[name] for name in case.ranks}


# --- the statement --------------------------------------------------------------------------------------------------


def replicas_are_the_batch(case: GraphCase) -> float:
    """The expanded graph in replicas computes what the original does on all their samples."""
    rng, dtype = np.random.default_rng(case.seed + 1), FLOATS[case.dtype]
    shape = (sum(case.shares), CHANNELS, POSITIONS)
    whole = {name: (rng.normal(size=shape) * 2 + np.arange(3)[:, None]).astype(dtype) for name in ("x", "z")}
    options = ExpandOptions(group="world", uniform=(FLAG,), coalesce=case.coalesce, check=0)
    result = bnpass.expand(model(case), options)
    assert isinstance(result.model, onnx.ModelProto)
    valid(ir.from_proto(result.model), (FLAG,))
    ends = np.cumsum(case.shares)
    feeds = [
        {name: value[end - n : end] for name, value in whole.items()} | {FLAG: np.array(case.flag)}
        for n, end in zip(case.shares, ends, strict=True)
    ]
    return _agree(case, whole, run_replicas(result.model, feeds))


def _agree(case: GraphCase, whole: Mapping[str, Array], found: Sequence[Results]) -> float:
    unit = float(np.finfo(FLOATS[case.dtype]).eps) / 2
    wanted = computed(case, whole)
    disturbed = [computed(case, whole, unit=unit, seed=i) for i in range(DISTURBED_RUNS)]
    worst = 0.0
    for name, rank in case.ranks.items():
        parts = [one[name] for one in found]
        if rank == 1 and len({part.tobytes() for part in parts}) > 1:
            raise WrongError(f"replicas disagree about {name}")
        got = np.concatenate(parts) if rank > 1 else parts[0]
        if got.shape != wanted[name].shape:
            raise WrongError(f"{name} is {got.shape}, not {wanted[name].shape}")
        moved = max(float(np.abs(one[name] - wanted[name]).max()) for one in disturbed)
        bound = 4 * moved + 4 * unit * float(np.abs(wanted[name]).max())
        error = float(np.abs(got - wanted[name]).max())
        worst = max(worst, error / bound if bound else 0.0)
        if not error <= bound:
            raise WrongError(f"{name} is off by {error:.4g}, where roundings permit {bound:.4g}")
    return worst
