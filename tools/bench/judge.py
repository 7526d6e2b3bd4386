"""Say what is left in a model, and whether it still computes the same: one measure for all tools.

    python tools/bench/judge.py MODEL [--record FILE.npz | --expect FILE.npz] [--brightest 255]

Prints one JSON object. It uses onnx and ONNX Runtime alone, nothing of bnpass, so that it favours nobody:

batch_norms  `BatchNormalization` nodes (and ours), subgraphs and functions included
affines      Mul, Add, Sub and Div nodes that are an affine per channel: one operand is computed at run time, the
             other is constant and has exactly one axis longer than 1. Not counted: the Add directly behind a
             MatMul whose constant lies on the last axis (ONNX has no other way to give a MatMul its bias),
             scalars (activations such as hard-swish are full of them), constant / x (not affine), and nodes
             whose operands are all constant (they work on weights, not on data)
convs        Conv, ConvTranspose and the fused ones of ONNX Runtime

An operand is constant if it is an initializer that no caller can replace, a Constant, or computed from such by
deterministic nodes.
"""

import argparse
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

BATCH_NORMS = {"BatchNormalization", "SyncBatchNormalization"}
CONVS = {"Conv", "ConvTranspose", "FusedConv", "NhwcFusedConv"}
MATMULS = {"MatMul", "FusedMatMul"}
_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
Shapes = dict[str, tuple[int, ...] | None]
"""Of the constants by name; None where it is not known."""


def left(model: onnx.ModelProto) -> dict[str, int]:
    """Count what a tool has left in a model."""
    count: Counter[str] = Counter(batch_norms=0, affines=0, convs=0, nodes=0, largest_tensor_bytes=0)
    # Over 2 GB or broken: constants behind Reshape and the like then have no known shape.
    with contextlib.suppress(ValueError, onnx.shape_inference.InferenceError):
        model = onnx.shape_inference.infer_shapes(model)
    _visit(model.graph, {}, count, listed_are_constants=model.ir_version < 4)
    for function in model.functions:
        _visit_nodes(function.node, {}, {}, count)
    return dict(count)


def _visit(graph: onnx.GraphProto, outer: Shapes, count: Counter[str], *, listed_are_constants: bool) -> None:
    listed = set() if listed_are_constants else {value.name for value in graph.input}
    constants = outer | {t.name: tuple(t.dims) for t in graph.initializer if t.name not in listed}
    inferred: Shapes = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in graph.value_info
        if all(d.HasField("dim_value") for d in value.type.tensor_type.shape.dim)
    }
    for tensor in graph.initializer:
        count["largest_tensor_bytes"] = max(count["largest_tensor_bytes"], _bytes(tensor))
    _visit_nodes(graph.node, constants, inferred, count)


def _visit_nodes(nodes: Iterable[onnx.NodeProto], constants: Shapes, inferred: Shapes, count: Counter[str]) -> None:
    constants = dict(constants)
    producers: dict[str, str] = {}
    for node in nodes:
        subgraphs = [g for a in node.attribute if a.type in _GRAPHS for g in (*a.graphs, *([a.g] if a.g.node else []))]
        for graph in subgraphs:
            _visit(graph, constants, count, listed_are_constants=False)
        count["nodes"] += 1
        count["batch_norms"] += node.op_type in BATCH_NORMS
        count["convs"] += node.op_type in CONVS
        count["affines"] += _is_affine(node, constants, producers)
        producers |= dict.fromkeys(node.output, node.op_type)
        inputs = [name for name in node.input if name]
        if node.op_type == "Constant":
            constants[node.output[0]] = _constant_shape(node)
        elif inputs and not subgraphs and node.op_type not in _RANDOM and all(name in constants for name in inputs):
            constants |= {name: inferred.get(name) for name in node.output}


def _is_affine(node: onnx.NodeProto, constants: Shapes, producers: dict[str, str]) -> bool:
    if node.op_type not in {"Mul", "Add", "Sub", "Div"} or node.domain not in {"", "ai.onnx"}:
        return False
    first, second = (name in constants for name in node.input)
    if first == second or (first and node.op_type == "Div"):
        return False
    constant, variable = node.input if first else reversed(node.input)
    shape = constants[constant]
    if shape is None or sum(length > 1 for length in shape) != 1:
        return False
    is_bias = node.op_type == "Add" and producers.get(variable) in MATMULS and shape[-1] > 1
    return not is_bias


def _constant_shape(node: onnx.NodeProto) -> tuple[int, ...] | None:
    (attribute, *_) = node.attribute
    if attribute.name == "value":
        return tuple(attribute.t.dims)
    if attribute.name in {"value_floats", "value_ints"}:
        return (len(attribute.floats) + len(attribute.ints),)
    return () if attribute.name in {"value_float", "value_int"} else None


def _bytes(tensor: onnx.TensorProto) -> int:
    try:
        return int(prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except KeyError:
        return 0


class Runner:
    """A model in ONNX Runtime without optimizations."""

    def __init__(self, path: Path) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def draw(self, brightest: float) -> dict[str, NDArray[np.generic]]:
        """Draw uniform inputs from one fixed seed; an open dimension is 2."""
        rng, found = np.random.default_rng(0), {}
        for value in self._session.get_inputs():
            shape = [d if isinstance(d, int) else 2 for d in value.shape]
            kind = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
            found[value.name] = rng.uniform(0, brightest, shape).astype(kind[value.type])
        return found

    def outputs(self, inputs: dict[str, NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """Run it once; outputs in the order of the graph."""
        return list(self._session.run(None, inputs))


def difference(found: list[NDArray[np.generic]], expected: list[NDArray[np.generic]]) -> float:
    """Return the largest difference of any output, relative to that output's largest element."""
    worst = 0.0
    for new, old in zip(found, expected, strict=True):
        old64, new64 = old.astype(np.float64), new.astype(np.float64)
        error = float(np.abs(new64 - old64).max() / np.abs(old64).max()) if new.shape == old.shape else np.inf
        worst = max(worst, np.inf if np.isnan(error) else error)
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--record", type=Path, metavar="NPZ", help="run it and keep inputs and outputs")
    parser.add_argument("--expect", type=Path, metavar="NPZ", help="run it on the kept inputs and compare")
    parser.add_argument("--brightest", type=float, default=1.0, help="inputs lie between 0 and this (default 1)")
    parser.add_argument("--no-run", action="store_true", help="count only; external data is not read")
    arguments = parser.parse_args()
    found: dict[str, object] = dict(left(onnx.load(arguments.model, load_external_data=not arguments.no_run)))
    if not arguments.no_run:
        found |= _run(arguments)
    print(json.dumps(found))
    return 0


def _run(arguments: argparse.Namespace) -> dict[str, object]:
    try:
        runner = Runner(arguments.model)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base class
        return {"loads": False, "error": str(error).splitlines()[0][:300]}
    if arguments.record is not None:
        inputs = runner.draw(arguments.brightest)
        outputs = runner.outputs(inputs)
        recorded: dict[str, Any] = {f"input:{name}": value for name, value in inputs.items()}
        recorded |= {f"output:{i}": value for i, value in enumerate(outputs)}
        np.savez(arguments.record, **recorded)
        return {"loads": True, "difference": 0.0}
    if arguments.expect is None:
        return {"loads": True}
    with np.load(arguments.expect, allow_pickle=False) as kept:
        inputs = {key.removeprefix("input:"): kept[key] for key in kept.files if key.startswith("input:")}
        expected = [kept[key] for key in kept.files if key.startswith("output:")]
    try:
        return {"loads": True, "difference": difference(runner.outputs(inputs), expected)}
    except Exception as error:  # noqa: BLE001
        return {"loads": False, "error": str(error).splitlines()[0][:300]}


if __name__ == "__main__":
    sys.exit(main())
