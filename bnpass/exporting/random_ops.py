"""Random ops of TensorFlow become random ops of ONNX: the same distribution, drawn from seeds of their own.

``generators`` keeps the state of generators out of a graph while it is traced, ``keyless`` puts every random op of a
frozen graph into one form that reads neither key nor counter, and ``handlers`` write that form in ONNX.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np

from bnpass.exporting.errors import ExportError

_FORMS = {
    "RandomUniform": "StatelessRandomUniformV2",
    "RandomStandardNormal": "StatelessRandomNormalV2",
    "TruncatedNormal": "StatelessTruncatedNormalV2",
    "RandomUniformInt": "StatelessRandomUniformIntV2",
    "StatelessRandomUniform": "StatelessRandomUniformV2",
    "StatelessRandomNormal": "StatelessRandomNormalV2",
    "StatelessTruncatedNormal": "StatelessTruncatedNormalV2",
    "StatelessRandomUniformInt": "StatelessRandomUniformIntV2",
}
"""The old forms of random ops, and the one that has a handler here."""

RANDOM_OPS = frozenset(_FORMS.values())
"""The random ops that a frozen graph has after ``keyless``."""

_REFUSED = frozenset({"Multinomial", "RandomShuffle", "SampleDistortedBoundingBox", "SampleDistortedBoundingBoxV2"})
"""Random ops for which tf2onnx has a handler, which forgets the seed."""

_OURS = "bnpass/random/"
_KERAS = "keras.src.random.seed_generator"
_CONSTANTS = {"key": np.zeros(1, np.uint64), "counter": np.zeros(2, np.uint64), "alg": np.zeros((), np.int32)}
_GRID = {"float16": 10, "bfloat16": 7}
"""Bits of TensorFlow's uniform numbers in 16 bits; rounding finer ones could give 1."""

_HALF = 0.4772498680518208
"""Φ(2) − 1/2: a truncated normal is the quantile of a uniform number in 1/2 ± that."""
_ABOVE = (2.5066283173427903, -31.207320878613874, 143.8242703477656, -294.6443624974749, 244.8674203737509,
          -47.07689790981446)  # fmt: skip
_BELOW = (1.0, -13.497114692572929, 69.2086946194362, -165.18632704815363, 176.85476425529777, -62.44804958066396)
"""Φ⁻¹(1/2 + q) = q·A(q²)/B(q²) within 1.5e-9 for |q| ≤ Φ(2) − 1/2, lowest power first: fitted to AS 241."""


def seed_of(seed: int, number: int) -> float:
    """Return the seed of one of a model's random nodes: no two numbers of a model have the same.

    ONNX Runtime's generator is linear in its seed, so neighbours are put far from each other; a float holds 24 bits.
    """
    return float(((seed * 0x9E3779B1 + number) * 0x5851F42D + 0xB5297A) % 2**24 * 2**7)


def dropout_seed(seed: int, number: int) -> int:
    """Return the seed of one of a model's Dropouts; number 0 is for those with seeds of their own."""
    return int(seed_of(seed, -number))


def keyless(graph_def: Any, outputs: Sequence[str]) -> Any:  # noqa: ANN401  a GraphDef
    """Return a frozen graph whose random ops read constants in place of keys; what only made keys is gone.

    Args:
        graph_def: Optimized by TensorFlow, which would compute random ops of constants and merge equal ones.
        outputs: Its tensors that are wanted.

    Raises:
        ExportError: A key is constant.
    """
    import tensorflow as tf

    if not any(_draws(node) for nodes, _ in _parts(graph_def) for node in nodes):
        return graph_def
    found = type(graph_def)()
    found.CopyFrom(graph_def)
    for nodes, suffix in _parts(found):
        drawing = [node for node in nodes if _draws(node)]
        for node in drawing:
            _check_key(node, nodes)
            _forget_key(node, suffix)
        if drawing:
            nodes.extend(_constant(f"{_OURS}{name}", value) for name, value in _CONSTANTS.items())
    names = [name.split(":")[0] for name in outputs]
    return tf.compat.v1.graph_util.extract_sub_graph.__wrapped__(found, names)  # without its warning


def _parts(graph_def: Any) -> Sequence[tuple[Any, str]]:  # noqa: ANN401
    """Return the nodes of a graph and of its functions, and what readers add to the name of a constant there."""
    return [(graph_def.node, ""), *((function.node_def, ":output:0") for function in graph_def.library.function)]


def _draws(node: Any) -> bool:  # noqa: ANN401
    """Whether a node is a random op with a key."""
    return (node.op in _FORMS or node.op in RANDOM_OPS) and not any(name.startswith(_OURS) for name in node.input)


def _check_key(node: Any, nodes: Any) -> None:  # noqa: ANN401
    """Refuse a key that is constant: the same numbers in every call."""
    constants = {other.name for other in nodes if other.op == "Const"}
    if node.op.startswith("Stateless") and node.input[1].split(":")[0] in constants:
        raise ExportError(f"random op {node.op} of '{node.name}' has a constant seed, so it draws the same numbers in "
                          "every call, which ONNX cannot: give it a seed generator")  # fmt: skip


def _forget_key(node: Any, suffix: str) -> None:  # noqa: ANN401
    """Put a node into the form that has a handler, with constants as its key."""
    whole, old = "Int" in node.op, node.op
    data = [name for name in node.input if not name.startswith("^")]
    ranges = data[-2:] if whole else []
    dtype, shape = node.attr["Tout" if old == "RandomUniformInt" else "dtype"].type, node.attr["Tshape"].type
    shape = shape if old in RANDOM_OPS else node.attr["T"].type
    kept = {name: node.attr[name].list for name in ("_output_shapes",) if name in node.attr}
    node.op = _FORMS.get(old, old)
    node.input[:] = [data[0], *(f"{_OURS}{name}{suffix}" for name in _CONSTANTS), *ranges]
    for name in list(node.attr):
        if name not in kept:
            del node.attr[name]
    node.attr["dtype"].type, node.attr["Tshape"].type = dtype, shape


def _constant(name: str, value: Any) -> Any:  # noqa: ANN401
    import tensorflow as tf

    node = tf.compat.v1.NodeDef(name=name, op="Const")
    node.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    return node


@contextlib.contextmanager
def generators() -> Iterator[None]:
    """Let generators of seeds and keys draw them at random while a model is traced: ``keyless`` takes them away.

    Their own state would be frozen, and TensorFlow would compute what is drawn from it: the same numbers for ever.
    """
    import tensorflow as tf

    def integers(count: int, dtype: Any) -> Any:  # noqa: ANN401
        low, high = tf.constant(0, tf.int64), tf.constant(2**31 - 2, tf.int64)
        return tf.cast(tf.raw_ops.RandomUniformInt(shape=[count], minval=low, maxval=high), dtype)

    def skip(_self: Any, _delta: Any) -> Any:  # noqa: ANN401
        return integers(3, tf.int64)

    def following(self: Any, ordered: bool = True) -> Any:  # noqa: ANN401, ARG001  as Keras has it
        return integers(2, self.state.dtype)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(tf.random.Generator, "skip", skip))
        if _KERAS in sys.modules:
            stack.enter_context(mock.patch.object(sys.modules[_KERAS].SeedGenerator, "next", following))
        yield


def handlers(seed: int) -> dict[str, tuple[Callable[..., None], list[str]]]:
    """Return handlers for tf2onnx, for one conversion: each node that they write has a seed of its own.

    Args:
        seed: What all of them are made of.
    """
    drawn: list[str] = []

    def draw(ctx: Any, node: Any, op: str, dtype: int, **attributes: float) -> str:  # noqa: ANN401
        """Write a random node for the shape that is the first input of ``node``."""
        drawn.append(node.name)
        attributes = {"dtype": dtype, "seed": seed_of(seed, len(drawn)), **attributes}
        shape, known = node.inputs[0], ctx.get_shape(node.output[0])
        if shape.is_const() and len(shape.get_tensor_value()):  # ONNX Runtime takes no empty attribute
            fixed = {**attributes, "shape": [int(n) for n in shape.get_tensor_value()]}
            made = ctx.make_node(op, [], attr=fixed, shapes=[known], dtypes=[dtype])
        else:
            lengths = ctx.make_node("Cast", [node.input[0]], attr={"to": _onnx("INT64")}).output[0]
            zeros = ctx.make_node("ConstantOfShape", [lengths], shapes=[known], dtypes=[_onnx("FLOAT")]).output[0]
            made = ctx.make_node(f"{op}Like", [zeros], attr=attributes, shapes=[known], dtypes=[dtype])
        return str(made.output[0])

    def uniform(ctx: Any, node: Any, _name: str, _args: Any) -> None:  # noqa: ANN401
        dtype = ctx.get_dtype(node.output[0])
        wide = _onnx("DOUBLE") if dtype == _onnx("DOUBLE") else _onnx("FLOAT")
        steps = _GRID.get(_type_name(dtype))
        value = draw(ctx, node, "RandomUniform", wide)
        if steps is not None:
            value = _Formula(ctx, node, np.float32).floor_to(value, 2.0**-steps)
        _replace(ctx, node, value, wide)

    def normal(ctx: Any, node: Any, _name: str, _args: Any) -> None:  # noqa: ANN401
        wide = _onnx("DOUBLE") if ctx.get_dtype(node.output[0]) == _onnx("DOUBLE") else _onnx("FLOAT")
        _replace(ctx, node, draw(ctx, node, "RandomNormal", wide), wide)

    def truncated(ctx: Any, node: Any, _name: str, _args: Any) -> None:  # noqa: ANN401
        double = _onnx("DOUBLE")
        q = draw(ctx, node, "RandomUniform", double, low=-_HALF, high=_HALF)
        _replace(ctx, node, _Formula(ctx, node, np.float64).quantile(q), double)

    def whole(ctx: Any, node: Any, name: str, _args: Any) -> None:  # noqa: ANN401
        double = _onnx("DOUBLE")
        ends = [int(n.get_tensor_value()) for n in node.inputs[-2:] if n.is_const()]
        if len(ends) == 2 and not 0 < ends[1] - ends[0] <= 2**48:
            raise ExportError(f"'{name}' draws whole numbers of {ends[0]} to {ends[1]}: more than 48 bits")
        low, high = (ctx.make_node("Cast", [end], attr={"to": double}).output[0] for end in node.input[-2:])
        formula = _Formula(ctx, node, np.float64)
        scaled = formula("Mul", draw(ctx, node, "RandomUniform", double), formula("Sub", high, low))
        _replace(ctx, node, formula("Add", formula("Floor", scaled), low), double)

    written = {"Uniform": uniform, "Normal": normal, "TruncatedNormal": truncated, "UniformInt": whole}
    named = {f"Stateless{'' if key == 'TruncatedNormal' else 'Random'}{key}V2": f for key, f in written.items()}
    return {op: (function, []) for op, function in (*named.items(), *((op, _refuse) for op in _REFUSED))}


class _Formula:
    """Nodes after a random one, all of one type and of its shape."""

    def __init__(self, ctx: Any, node: Any, dtype: Any) -> None:  # noqa: ANN401
        self._ctx, self._dtype = ctx, dtype
        self._shape = ctx.get_shape(node.output[0])

    def __call__(self, op: str, *inputs: str) -> str:
        kind = _onnx("DOUBLE" if self._dtype is np.float64 else "FLOAT")
        return str(self._ctx.make_node(op, list(inputs), shapes=[self._shape], dtypes=[kind]).output[0])

    def floor_to(self, value: str, step: float) -> str:
        return self("Mul", self("Floor", self("Div", value, self._number(step))), self._number(step))

    def quantile(self, q: str) -> str:
        """Write the normal quantile of 1/2 + q."""
        t = self("Mul", q, q)
        return self("Mul", q, self("Div", self._polynomial(t, _ABOVE), self._polynomial(t, _BELOW)))

    def _polynomial(self, t: str, coefficients: Sequence[float]) -> str:
        value = self._number(coefficients[-1])
        for coefficient in reversed(coefficients[:-1]):
            value = self("Add", self("Mul", value, t), self._number(coefficient))
        return value

    def _number(self, value: float) -> str:
        from tf2onnx import utils

        return str(self._ctx.make_const(utils.make_name("number"), np.array(value, self._dtype)).output[0])


def _replace(ctx: Any, node: Any, value: str, kind: int) -> None:  # noqa: ANN401
    """Let a value that was drawn take the place of a node."""
    dtype, shape, output = ctx.get_dtype(node.output[0]), ctx.get_shape(node.output[0]), node.output[0]
    ctx.remove_node(node.name)
    op, attributes = ("Identity", {}) if dtype == kind else ("Cast", {"to": dtype})
    ctx.make_node(op, [value], outputs=[output], attr=attributes, shapes=[shape], dtypes=[dtype], name=node.name)


def _refuse(_ctx: Any, node: Any, name: str, _args: Any) -> None:  # noqa: ANN401
    raise ExportError(f"random op {node.type} of '{name}' has no counterpart in ONNX of the same distribution")


def _onnx(name: str) -> int:
    import onnx

    return int(getattr(onnx.TensorProto, name))


def _type_name(dtype: int) -> str:
    import onnx

    return str(onnx.TensorProto.DataType.Name(dtype)).lower()
