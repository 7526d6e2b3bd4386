"""Run each kernel on numbers whose result is known by heart: ``python -m bnpass.runtime.kernel_trial cpu|cuda``.

Prints one JSON object: for each operator what is wrong with it, "" if nothing is. A process of its own, since a library
that is broken may take its process with it.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.helper import (
    make_graph,
    make_model,
    make_node,
    make_opsetid,
    make_tensor_value_info,
    np_dtype_to_tensor_dtype,
)

from bnpass.runtime.library import Library
from bnpass.runtime.sessions import session

_X = np.array([[1], [3]], np.float32)
_ONE, _ZERO = np.ones(1, np.float32), np.zeros(1, np.float32)
_GROUP: Mapping[str, Any] = {"group": "", "collective_id": 0}
_BATCH: Mapping[str, Any] = {"axis": 1, "virtual_batch_size": 0, **_GROUP}


@dataclass(frozen=True)
class _Trial:
    """A node: its inputs, how many it has, its outputs ("" is left out), and what they have to be."""

    inputs: Mapping[str, NDArray[Any]]
    slots: int
    outputs: Mapping[str, list[Any]]
    attributes: Mapping[str, Any]


_TRIALS = {
    "AllReduce": _Trial({"X": _X}, 2, {"Y": [[1], [3]]}, {"reduction": "sum", **_GROUP}),
    "SyncBatchMoments": _Trial({"X": _X}, 2, {"mean": [2], "var": [1]}, _BATCH),
    "SyncBatchNormalization": _Trial(
        {"X": _X, "scale": 2 * _ONE, "B": _ONE, "input_mean": _ZERO, "input_var": _ONE},
        6,
        {"Y": [[0], [2]], "running_mean": [1], "running_var": [1]},
        {"epsilon": 3.0, "momentum": 0.5, "training_mode": 1, "running_var_correction": 0, **_BATCH},
    ),
    "SyncBatchNormalizationGrad": _Trial(
        {
            "dY": np.array([[1], [0]], np.float32),
            "X": _X,
            "scale": _ONE,
            "saved_mean": np.array([2.0]),
            "saved_inv_std": np.array([0.5]),
            "count": np.array(4.0),
        },
        7,
        {"dX": [[0.34375], [-0.09375]], "dscale": [-0.5], "dB": [1]},
        _BATCH,
    ),
}


def main(provider: Library) -> int:
    """Try every operator."""
    print(json.dumps({op_type: _fault(op_type, trial, provider) for op_type, trial in _TRIALS.items()}))  # noqa: T201
    return 0


def _fault(op_type: str, trial: _Trial, provider: Library) -> str:
    try:
        opened = session(_model(op_type, trial), provider=provider)
        if provider == "cuda" and opened.get_providers()[0] != "CUDAExecutionProvider":
            return "ONNX Runtime could not start its CUDA provider"
        found = opened.run(list(trial.outputs), dict(trial.inputs))
    except Exception as error:  # noqa: BLE001  the runtime's own exception types are not public
        return str(error)
    for (name, wanted), value in zip(trial.outputs.items(), found, strict=True):
        if value.tolist() != wanted:
            return f"{name} is {value.tolist()} instead of {wanted}"
    return ""


def _model(op_type: str, trial: _Trial) -> onnx.ModelProto:
    operands = [*trial.inputs, *[""] * (trial.slots - len(trial.inputs))]
    node = make_node(op_type, operands, list(trial.outputs), "trial", domain="bnpass", **trial.attributes)
    inputs = [
        make_tensor_value_info(name, np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in trial.inputs.items()
    ]
    doubles = {"mean", "var"}
    outputs = [
        make_tensor_value_info(name, onnx.TensorProto.DOUBLE if name in doubles else onnx.TensorProto.FLOAT, None)
        for name in trial.outputs
    ]
    graph = make_graph([node], "trial", inputs, outputs)
    return make_model(graph, ir_version=8, opset_imports=[make_opsetid("", 18), make_opsetid("bnpass", 1)])


if __name__ == "__main__":
    sys.exit(main("cuda" if sys.argv[1:] == ["cuda"] else "cpu"))
