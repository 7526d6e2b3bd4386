"""Run a case as TensorFlow 1 does: a graph, a session, placeholders, and update ops that someone has to run.

tf.compat.v1.layers is called by its function, with ``name`` and ``reuse``; its updates come from UPDATE_OPS and its
losses from REGULARIZATION_LOSSES. A mask is an argument of the class alone. The Keras layer of that time keeps
updates and losses to itself.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from tests.conformance.layers.cases import Array, Case
from tests.conformance.layers.exchange import Arrays, part
from tests.conformance.layers.oracle import build
from tests.conformance.layers.oracle.eager import sgd

v1 = tf.compat.v1


class Built:
    """One call of the layer in a graph, and all that a session can fetch of it."""

    def __init__(self, x: Any, w: Any, mask: Any, training: Any, caller: Any) -> None:
        self.y, self.variables = caller(x, training, mask)
        loss = tf.reduce_sum(tf.cast(self.y, w.dtype) * w)
        parameters = {k: v for k, v in self.variables.items() if k in {"gamma", "beta"}}
        found = tf.gradients(loss, [x, *parameters.values()])
        zeros = [tf.zeros_like(x), *(tf.zeros_like(v) for v in parameters.values())]
        self.gradients = {
            name: zero if gradient is None else gradient
            for name, gradient, zero in zip(["x", *parameters], found, zeros, strict=True)
        }


class Function:
    """tf.layers.batch_normalization: called again with ``reuse=True`` it shares its variables."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._name = case.arguments.get("name", "bn")
        self._called = False

    def __call__(self, x: Any, training: Any, mask: Any) -> Any:
        assert mask is None, "the function takes none"
        arguments = {**build.layer_arguments(self._case), "name": self._name}
        reuse = {"reuse": True} if self._called else {}
        self._called = True
        y = v1.layers.batch_normalization(x, training=training, **arguments, **reuse)
        found = {}
        for variable in v1.get_collection(v1.GraphKeys.GLOBAL_VARIABLES):
            scope, _, name = variable.op.name.rpartition("/")
            if scope.startswith(self._name) and name in build.VARIABLES:
                found[name] = variable
        return y, {name: found[name] for name in build.VARIABLES if name in found}

    def updates(self) -> Any:
        return v1.get_collection(v1.GraphKeys.UPDATE_OPS)

    def losses(self) -> Any:
        return v1.get_collection(v1.GraphKeys.REGULARIZATION_LOSSES)

    def facts(self) -> dict[str, Any]:
        trained = v1.get_collection(v1.GraphKeys.TRAINABLE_VARIABLES)
        return {"trainable_variables": [v.op.name for v in trained]}


class Layer:
    """A layer object, called as often as needed."""

    def __init__(self, case: Case) -> None:
        self._layer = build.new_layer(case)
        self._updates: list[Any] = []

    def __call__(self, x: Any, training: Any, mask: Any) -> Any:
        y = self._layer(x, training=training) if mask is None else self._layer(x, training=training, mask=mask)
        return y, build.variables(self._layer)

    def updates(self) -> Any:
        return self._layer.updates

    def losses(self) -> Any:
        return self._layer.losses

    def facts(self) -> dict[str, Any]:
        return build.facts(self._layer)


def run(case: Case, arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
    """Run the steps of a case; results as in ``eager.run``."""
    options = v1.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
    with tf.Graph().as_default(), v1.Session(config=options) as session:
        return _Run(case, arrays, session).all_steps()


class _Run:
    """The graph of a case and its session."""

    def __init__(self, case: Case, arrays: Arrays, session: Any) -> None:
        self._case, self._arrays, self._session = case, arrays, session
        dtype = tf.dtypes.as_dtype(case.dtype)
        self._x = v1.placeholder(dtype, case.shape)
        self._w = v1.placeholder(build.internal_dtype(case), case.shape)
        self._mask = self._mask_placeholder()
        self._training = v1.placeholder(tf.bool, []) if case.training == "tensor" else None
        self._caller = Function(case) if case.api == "tf1" and not case.mask else Layer(case)
        first = self._build(True if self._training is None else self._training)
        self._updates = list(self._caller.updates())
        self._built = {True: first, False: first if self._training is not None else self._build(False)}
        self._losses = list(self._caller.losses())
        self._learn()
        session.run(v1.global_variables_initializer())
        if not case.own_start:
            self._set_start()

    def _build(self, training: Any) -> Built:
        return Built(self._x, self._w, self._mask, training, self._caller)

    def _mask_placeholder(self) -> Any:
        if not self._case.mask:
            return None
        dtype = build.internal_dtype(self._case) if self._case.mask == "fractional" else tf.bool
        return v1.placeholder(dtype, self._arrays["mask/0/0"].shape)

    def _learn(self) -> None:
        """Make the op that lets gamma and beta learn from gradients that are fed."""
        self._fed: dict[str, Any] = {}
        self._train: Any = None
        optimizer = sgd(self._case)
        if optimizer is None:
            return
        built = self._built[True]
        self._fed = {
            k: v1.placeholder(v.dtype.base_dtype, v.shape) for k, v in built.variables.items() if k in {"gamma", "beta"}
        }
        pairs = [(placeholder, built.variables[name]) for name, placeholder in self._fed.items()]
        self._train = optimizer.apply_gradients(pairs)

    def _set_start(self) -> None:
        given = part(self._arrays, "start")
        for name, variable in self._built[True].variables.items():
            variable.load(given[name].reshape(variable.shape.as_list()), self._session)

    def _values(self) -> dict[str, Array]:
        values = self._session.run(self._built[True].variables)
        return {name: np.asarray(value, np.float64).ravel() for name, value in values.items()}

    def all_steps(self) -> tuple[dict[str, Any], Arrays]:
        found: Arrays = {f"before/{name}": value for name, value in self._values().items()}
        for step, training in enumerate(self._case.steps):
            found |= {f"{step}/{key}": value for key, value in self._step(step, training).items()}
        return {**self._caller.facts(), "updates": len(self._updates), "y_type": self._built[True].y.dtype.name}, found

    def _step(self, step: int, training: bool) -> Arrays:
        built = self._built[training]
        feeds: dict[Any, Any] = {self._x: self._arrays[f"x/{step}/0"], self._w: self._arrays[f"w/{step}/0"]}
        if self._mask is not None:
            feeds[self._mask] = self._arrays[f"mask/{step}/0"]
        if self._training is not None:
            feeds[self._training] = training
        wanted = {"y": built.y, "gradients": built.gradients, "losses": self._losses}
        if training or self._training is not None:
            wanted["updates"] = self._updates
        results = self._session.run(wanted, feeds)
        if training and self._train is not None:
            self._session.run(self._train, {p: results["gradients"][name] for name, p in self._fed.items()})
        found = {"loss": np.asarray(sum(map(float, results["losses"])))}
        found["0/y"] = np.asarray(results["y"], np.float64)
        for name, gradient in results["gradients"].items():
            value = np.asarray(gradient, np.float64)
            found[f"0/d{name}"] = value if name == "x" else value.ravel()
        return found | {f"0/{name}": value for name, value in self._values().items()}
