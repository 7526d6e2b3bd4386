"""What an exported model is compared with: the live model that it comes from, or the graph."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bnpass.exporting.capture.interception import norm_layers
from bnpass.exporting.capture.state import plain
from bnpass.exporting.errors import ExportError, first_line
from bnpass.exporting.model import Exported
from bnpass.exporting.options import ExportOptions
from bnpass.exporting.signature import signature_of
from bnpass.exporting.trace import Origin, named_variables, regularization_loss

Array = NDArray[Any]


class Partner(Protocol):
    """Something of a framework that can be called as the exported model can."""

    def state(self) -> dict[str, Array]:
        """Return its variables, by the inputs that they are in the exported model."""
        ...

    def results(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Call it and return what comes out, by the outputs of the exported model."""
        ...

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Give its variables back the values that they had."""
        yield


class KerasPartner:
    """A live model of Keras.

    Synchronized layers compute as others do meanwhile: the same in one replica, but for E[x²] − E[x]², which rounds.
    """

    def __init__(self, model: Any, exported: Exported, options: ExportOptions) -> None:  # noqa: ANN401
        self._model, self._exported, self._training = model, exported, options.training
        self._called = signature_of(model, options.signature)

    def state(self) -> dict[str, Array]:
        """Return its variables, in the layout of the exported model."""
        state = self._exported.state
        variables = named_variables(self._model) if state else {}
        return {s.input: s.for_onnx(np.array(plain(variables[s.state.name]).numpy())) for s in state}

    def results(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Call it, with the variables that it has."""
        import tensorflow as tf

        exported = self._exported
        tensors = [tf.constant(arrays[port.name]) for port in exported.traced.inputs]
        with self._in_two_passes():
            outputs = tf.nest.flatten(self._model(self._called.pack(tensors), training=self._training))
            if len(exported.traced.outputs) > len(outputs):
                outputs.append(regularization_loss(self._model))
        names = [str(value.name) for value in exported.model.graph.outputs]
        results = {name: np.asarray(value) for name, value in zip(names, outputs, strict=False)}
        new = self.state()
        return results | {s.output: new[s.input] for s in exported.state if s.output}

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Give its variables back the values that they had."""
        variables = named_variables(self._model).values()
        before = [np.array(plain(v).numpy()) for v in variables]
        try:
            yield
        finally:
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)

    @contextmanager
    def _in_two_passes(self) -> Iterator[None]:
        layers = [layer for layer in norm_layers(self._model) if getattr(layer, "synchronized", False)]
        try:
            for layer in layers:
                layer.synchronized = False
            yield
        finally:
            for layer in layers:
                layer.synchronized = True


class GraphPartner:
    """A graph as it was before its batch normalization was recognised."""

    def __init__(self, origin: Origin, exported: Exported) -> None:
        self._origin, self._exported = origin, exported
        self._values = {s.input: s.state.default for s in exported.state}

    def state(self) -> dict[str, Array]:
        """Return its variables, in the layout of the exported model."""
        return {s.input: s.for_onnx(self._values[s.input]) for s in self._exported.state}

    def results(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run it in a session of its own, with the variables that it has, which then have their new values."""
        import tensorflow as tf

        exported = self._exported
        names = [str(value.name) for value in exported.model.graph.outputs]
        given = {port.tensor: arrays[port.name] for port in exported.traced.inputs}
        given |= {s.state.input.tensor: self._values[s.input] for s in exported.state}
        with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
            tf.import_graph_def(self._origin.graph_def, name="")
            present = {node.name for node in self._origin.graph_def.node}
            feeds = {name: value for name, value in given.items() if name.split(":")[0] in present}
            try:
                found = dict(zip(names, session.run(list(self._origin.outputs), feeds), strict=True))
            except tf.errors.OpError as error:  # ghost batches, for one, that the samples are not a multiple of
                why = first_line(error, but=("Graph execution error", "Detected at", "Node:"))
                raise ExportError(f"TensorFlow cannot run the graph on the samples of the check: {why}") from error
        self._values |= {s.input: found[s.output] for s in exported.state if s.output}
        return found

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Give its variables back the values that they had."""
        before = dict(self._values)
        try:
            yield
        finally:
            self._values = before
