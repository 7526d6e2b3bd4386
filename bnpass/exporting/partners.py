"""What an exported model is compared with: the live model that it comes from, or the graph."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bnpass.exporting.capture.interception import norm_layers
from bnpass.exporting.capture.state import plain
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

    def state(self) -> dict[str, Array]:
        """Return nothing: its variables are constants."""
        return {}

    def results(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run it in a session of its own."""
        import tensorflow as tf

        exported = self._exported
        names = [str(value.name) for value in exported.model.graph.outputs]
        with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
            tf.import_graph_def(self._origin.graph_def, name="")
            present = {node.name for node in self._origin.graph_def.node}
            ports = [port for port in exported.traced.inputs if port.tensor.split(":")[0] in present]
            feeds = {graph.get_tensor_by_name(port.tensor): arrays[port.name] for port in ports}
            return dict(zip(names, session.run(list(self._origin.outputs), feeds), strict=True))

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Do nothing: it has no variables."""
        yield
