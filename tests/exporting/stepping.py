"""Run an exported model in stock ONNX Runtime; in training its state is fed back after every step."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from bnpass.exporting.interface import STATE

Array = NDArray[Any]


class Stepper:
    """An exported model and its state.

    Args:
        model: The model, or its file.
    """

    def __init__(self, model: ir.Model | Path) -> None:
        proto = onnx.load(model) if isinstance(model, Path) else ir.to_proto(model)
        onnx.checker.check_model(proto, full_check=True)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4  # a default of an input is not a constant: it says so of each
        self._session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        metadata = {entry.key: entry.value for entry in proto.metadata_props}
        self.pairs: list[dict[str, Any]] = json.loads(metadata.get(STATE, "[]"))
        kept = {pair["input"] for pair in self.pairs}
        self.inputs = [value.name for value in proto.graph.input if value.name not in kept]
        changed = {pair["output"] for pair in self.pairs}
        self.outputs = [value.name for value in proto.graph.output if value.name not in changed]
        self._state: dict[str, Array] = {}

    def __call__(self, *given: Any, **named: Any) -> list[Array]:
        """Take a step with the inputs in order, or by name, and return the outputs of the model in order."""
        feeds = {**dict(zip(self.inputs, given, strict=not named)), **named}
        found = self._run({name: np.asarray(value) for name, value in feeds.items()})
        return [found[name] for name in self.outputs]

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        names = [value.name for value in self._session.get_outputs()]
        found = dict(zip(names, self._session.run(names, {**feeds, **self._state}), strict=True))
        self._state |= {pair["input"]: found[pair["output"]] for pair in self.pairs if pair["output"]}
        return found

    @property
    def updated(self) -> dict[str, Array]:
        """What the steps have changed: variables of the framework by name, after the last one."""
        changed = [pair for pair in self.pairs if pair["output"]]
        return {pair["variable"]: self._state[pair["input"]] for pair in changed if pair["input"] in self._state}
