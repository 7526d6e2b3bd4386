"""Random sums and chains of linear ops: what merging makes of them is the same function, valid, tidy and final.

The judges are those of the unit tests: every model is evaluated in float64 from the definitions of its ops, and run in
ONNX Runtime as it is.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.property.graphs import BRAIN, DOUBLE, HALF, SINGLE, Choices, DrawnChoices, chance, pick
from tests.property.test_fold_properties import examples
from tests.support.build import model
from tests.support.float64 import Array
from tests.unit.merging.merged import merged_and_right

NAMES = {HALF: "float16", BRAIN: "bfloat16", SINGLE: "float", DOUBLE: "double"}


@dataclass
class Grower:
    """A graph of branches over x while it grows.

    Attributes:
        choices: The source of decisions.
        dtype: The type of all values.
        channels: Channels of x and of every addend.
        lengths: Lengths of x.
        stride: The stride of all branches along each axis.
        reach: All padding less the extent of the kernel, along each axis: it decides the length of the output.
    """

    choices: Choices
    dtype: np.dtype[Any]
    channels: int
    lengths: tuple[int, ...]
    stride: tuple[int, ...]
    reach: tuple[int, ...]
    nodes: list[str] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    count: int = 0

    def fresh(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def constant(self, *shape: int) -> str:
        alike = [n for n, a in self.constants.items() if a.shape == shape]
        if alike and chance(self.choices, 15):
            return pick(self.choices, alike)
        name = self.fresh("c")
        self.constants[name] = self.rng.standard_normal(shape).astype(self.dtype)
        return name

    def node(self, text: str) -> str:
        name = self.fresh("v")
        self.nodes.append(f"{name} = {text}")
        return name

    @property
    def is_point(self) -> bool:
        return all(s == 1 for s in self.stride) and not any(self.reach)

    @property
    def out(self) -> tuple[int, ...]:
        return tuple((n - 1 + r) // s + 1 for n, s, r in zip(self.lengths, self.stride, self.reach, strict=True))

    # --- leaves -----------------------------------------------------------------------------------------------

    def window(self) -> tuple[tuple[int, ...], str]:
        """Return a kernel and the attributes that give it the common stride and reach."""
        kernel, dilations, begins, ends = [], [], [], []
        for reach in self.reach:
            lowest = max(0, -reach)  # an extent that leaves no negative padding
            dilation = 1 + self.choices.below(2)
            size = max(1 + self.choices.below(3), -(-lowest // dilation) + 1)
            total = reach + dilation * (size - 1)
            begin = (total + 1) // 2 if chance(self.choices, 70) else self.choices.below(total + 1)
            kernel.append(size)
            dilations.append(dilation)
            begins.append(begin)
            ends.append(total - begin)
        return tuple(kernel), (
            f"strides={list(self.stride)}, dilations={dilations}, pads={[*begins, *ends]}, kernel_shape={kernel}"
        )

    def conv(self, data: str, into: int) -> str:
        kernel, attributes = self.window()
        out = self.channels
        group = pick(self.choices, [g for g in range(1, into + 1) if into % g == 0 and out % g == 0])
        bias = f", {self.constant(out)}" if chance(self.choices, 50) else ""
        weight = self.constant(out, into // group, *kernel)
        return self.node(f"Conv<{attributes}, group={group}>({data}, {weight}{bias})")

    def pool(self, data: str) -> str:
        kernel = [max(3 - len(self.reach) // 3, 1 - r) for r in self.reach]
        totals = [r + k - 1 for r, k in zip(self.reach, kernel, strict=True)]
        pads = [*(t - t // 2 for t in totals), *(t // 2 for t in totals)]
        counts = pick(self.choices, (1, 1, 0))
        return self.node(
            f"AveragePool<strides={list(self.stride)}, pads={pads}, kernel_shape={kernel}, "
            f"count_include_pad={counts}>({data})"
        )

    def point(self, data: str, into: int) -> tuple[str, int]:
        """Return a 1×1 convolution and its channels, which are few or many."""
        between = pick(self.choices, (into, 2 * into, 1))
        bias = f", {self.constant(between)}" if chance(self.choices, 30) else ""
        ones = (1,) * len(self.lengths)
        return self.node(f"Conv({data}, {self.constant(between, into, *ones)}{bias})"), between

    def norm(self, data: str) -> str:
        s, b, m = (self.constant(self.channels) for _ in range(3))
        v = self.fresh("c")
        self.constants[v] = self.rng.uniform(0.3, 3, self.channels).astype(self.dtype)
        return self.node(f"BatchNormalization({data}, {s}, {b}, {m}, {v})")

    def arithmetic(self, data: str) -> str:
        ones = (1,) * len(self.lengths)
        for op_type in pick(self.choices, (("Mul", "Add"), ("Mul",), ("Sub",), ("Div", "Sub"))):
            shape = pick(self.choices, ((self.channels, *ones), (1, self.channels, *ones)))
            data = self.node(f"{op_type}({data}, {self.constant(*shape)})")
        return data

    def leaf(self, data: str) -> str:
        """Return one addend over ``data``, a value like x."""
        kind = self.choices.below(10)
        if self.is_point and kind == 9:
            return data
        if self.is_point and kind == 8:
            return self.norm(data)
        if self.is_point and kind == 7:
            return self.arithmetic(data)
        if kind == 6:
            return self.pool(data)
        if kind == 5:
            return self.conv(*self.point(data, self.channels))
        if kind == 4:
            ones = (1,) * len(self.lengths)
            mixing = self.constant(self.channels, self.channels, *ones)
            return self.node(f"Conv({self.conv(data, self.channels)}, {mixing})")
        if kind == 3:
            return self.node(f"Relu({self.conv(data, self.channels)})")
        return self.conv(data, self.channels)

    # --- trees ------------------------------------------------------------------------------------------------

    def add_up(self, addends: list[str]) -> str:
        """Return the sum of values in a random order and grouping, some of them taken away."""
        while len(addends) > 1:
            count = min(len(addends), 3 if chance(self.choices, 25) else 2)
            at = self.choices.below(len(addends) - count + 1)
            op_type = "Sum" if count == 3 else pick(self.choices, ("Add",) * 7 + ("Sub",) * 2 + ("Sum",))
            result = self.node(f"{op_type}({', '.join(addends[at : at + count])})")
            if chance(self.choices, 7) and len(addends) > count:
                self.outputs.append(result)
            addends[at : at + count] = [result]
        return addends[0]


def grow(choices: Choices, dtype: np.dtype[Any]) -> ir.Model:
    """Return a model with one sum of random branches over one or two values."""
    rank = pick(choices, (2, 1, 3))
    stride = pick(choices, (1, 1, 2))
    grower = Grower(
        choices,
        dtype,
        pick(choices, (4, 2, 6, 1)),
        tuple(5 + i for i in range(rank)),
        (stride,) * rank,
        tuple(pick(choices, (0, 0, -2, -1, 1)) for _ in range(rank)) if chance(choices, 40) else (0,) * rank,
        rng=np.random.default_rng(choices.below(1 << 16)),
    )
    data = ["x", grower.node("Sin(x)")] if chance(choices, 30) else ["x"]
    addends = [grower.leaf(pick(choices, data)) for _ in range(2 + choices.below(5))]
    for value in addends:
        if value != "x" and chance(choices, 4):
            grower.outputs.append(value)
    total = grower.node(f"Identity({grower.add_up(addends)})")
    kind = NAMES[dtype]
    into = ",".join(str(n) for n in (2, grower.channels, *grower.lengths))
    out = ",".join(str(n) for n in (2, grower.channels, *grower.out))
    outputs = ", ".join(f"{kind}[{out}] {name}" for name in dict.fromkeys([total, *grower.outputs]) if name[0] == "v")
    names = {n: a for n, a in grower.constants.items() if any(n in _words(text) for text in grower.nodes)}
    assert math.prod(grower.out) > 0
    return model(f"g ({kind}[{into}] x) => ({outputs}) {{ {' '.join(grower.nodes)} }}", names, opset=22, ir_version=10)


def _words(text: str) -> list[str]:
    return text.replace("(", " ").replace(")", " ").replace(",", " ").split()


def work(built: ir.Model) -> int:
    """Return the multiply-adds for each output position."""
    total = 0
    for node in built.graph:
        if node.op_type == "Conv":
            weight = node.inputs[1]
            assert weight is not None
            assert weight.shape is not None
            total += math.prod(weight.shape.numpy())
        elif node.op_type == "AveragePool":
            channels = built.graph.inputs[0].shape
            assert channels is not None
            total += math.prod(node.attributes.get_ints("kernel_shape", ())) * channels.numpy()[1]
    return total


@st.composite
def models(draw: Any, dtype: np.dtype[Any]) -> ir.Model:
    """Draw a model."""
    return grow(DrawnChoices(draw), dtype)


@pytest.mark.parametrize("dtype", [SINGLE, HALF, BRAIN, DOUBLE], ids=NAMES.get)
def test_a_merged_model_is_the_same_function(dtype: np.dtype[Any]) -> None:
    @examples(400 if dtype == SINGLE else 60)
    @given(models(dtype))
    def judged(built: ir.Model) -> None:
        try:
            result = merged_and_right(built)
            assert work(result.after) <= work(built)
        except Exception as error:
            error.add_note(ir.to_proto(built).graph.name + "\n" + str(built.graph))
            raise

    judged()
