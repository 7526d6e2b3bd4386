"""What the rebuilt models of published tests share: how they are trained, and held against their export."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from bnpass.exporting.model import Exported
from tests.exporting.live import close, export, flat, state_agrees, variable_values
from tests.exporting.stepping import Array, Stepper
from tests.exporting.structures import MARKS, has_calls

TRAINED_MARKS = [
    *MARKS,
    pytest.mark.filterwarnings("ignore:The model does not have any trainable weights:UserWarning"),
    pytest.mark.filterwarnings("ignore:`layer.updates` will be removed:UserWarning"),  # of tf.layers, by itself
]

VERSIONS = ("V1", "V2", "Keras 3")

PADDED = np.array([[[1, 5], [2, 5], [0, 0], [0, 0]]] * 10, np.float32)
"""Ten samples of four steps in time, of which the last two are padding."""


@dataclass(frozen=True)
class Held:
    """What was found to agree.

    Attributes:
        inference: The export for inference.
        training: The export for training.
        run: The latter, after its steps.
    """

    inference: Exported
    training: Exported
    run: Stepper

    def moved(self, name: str) -> Array:
        """Return a statistic of the only layer that has it, after the steps."""
        (value,) = (value for variable, value in self.run.updated.items() if variable.endswith(name))
        return value


def wide(*shape: int, seed: int = 0) -> Array:
    """Return numbers with mean 5 and standard deviation 10."""
    return np.random.default_rng(seed).normal(5, 10, shape).astype(np.float32)


def uniform(*shape: int, seed: int = 0) -> Array:
    """Return numbers from 0 to 1."""
    return np.random.default_rng(seed).random(shape, np.float32)


def batches(*shape: int, of: int = 3) -> list[Array]:
    """Return what some steps are taken with."""
    return [wide(*shape, seed=10 + step) for step in range(of)]


def class_of(version: str) -> tuple[Any, Any]:
    """Return the package that a batch normalization belongs to, and its class."""
    if version == "Keras 3":
        import keras

        return keras, keras.layers.BatchNormalization
    import tf_keras
    from tf_keras.src.layers.normalization import batch_normalization_v1
    from tf_keras.src.legacy_tf_layers import normalization

    classes = {
        "V1": batch_normalization_v1.BatchNormalization,
        "V2": tf_keras.layers.BatchNormalization,
        "tf.layers": normalization.BatchNormalization,
    }
    return tf_keras, classes[version]


def of_one_layer(keras: Any, layer: Any, *shape: int | None, dtype: str = "float32") -> Any:
    """Return a model of a layer."""
    return keras.Sequential([keras.layers.Input(shape, dtype=dtype), layer])


def fitted(model: Any, x: Any, y: Any = None, *, optimizer: Any = "rmsprop", epochs: int = 1, batch: int = 32) -> Any:
    """Train a model, to its own input if nothing else is given, and return it."""
    model.compile(optimizer, "mse")
    model.fit(x, x if y is None else y, epochs=epochs, batch_size=batch, shuffle=False, verbose=0)
    return model


def trained_once(model: Any, x: Any, y: Any = None, *, optimizer: Any = "rmsprop") -> Any:
    """Take one step of training, and return the model."""
    model.compile(optimizer, "mse")
    model.train_on_batch(x, x if y is None else y)
    return model


def live_step(model: Any, given: Any) -> list[Array]:
    """Take a step in training, and return the outputs of the model, then its regularization loss if it has one."""
    outputs = flat(model(given, training=True))
    losses = [np.float32(np.sum([np.float32(loss) for loss in model.losses]))] if model.losses else []
    return [*outputs, *map(np.asarray, losses)]


def holds(model: Any, *batches: Any, calls: int | None = 1, half: bool = False, **options: Any) -> Held:
    """Assert that a model, as its training left it, infers and then trains like its exports, a step for each batch.

    Args:
        model: Of either package.
        batches: What it is called with.
        calls: Nodes that normalize, in each export; None not to count them.
        half: Whether there are 16-bit tensors inside that no output shows.
        options: Of the exports.
    """
    inference, run = export(model, training=False, **options)
    assert run.pairs == []
    for given in batches:
        agree(run(*flat(given)), flat(model(given, training=False)), half=half)
    training, run = export(model, training=True, **options)
    trains(run, model, batches, half=half)
    if calls is not None:
        has_calls((inference, training), calls)
    return Held(inference, training, run)


def trains(run: Stepper, model: Any, batches: Sequence[Any], *, half: bool = False) -> None:
    """Assert that every step of training gives the same outputs and leaves the same statistics."""
    before = variable_values(model)
    for given in batches:
        found, wanted = run(*flat(given)), live_step(model, given)
        agree(found, wanted, half=half)
        rounded = half or any(value.dtype == np.float16 for value in wanted)
        state_agrees(run, before, variable_values(model), computed_in="statistics of float16" if rounded else "")


def agree(found: Sequence[Array], wanted: Sequence[Array], *, half: bool) -> None:
    """Assert that all outputs are the framework's."""
    for number, pair in enumerate(zip(found, wanted, strict=True)):
        close(*pair, f"output {number}", computed_in="float16" if half else "")


def is_standard(y: Any, layer: Any, within: float, *, axis: int = -1) -> None:
    """Assert that what a layer gave has mean 0 and standard deviation 1 per channel, but for its gamma and beta."""
    y = np.moveaxis(np.asarray(y, np.float64), axis, -1)
    gamma, beta = (np.asarray(value.numpy(), np.float64).ravel() for value in (layer.gamma, layer.beta))
    y, others = (y - beta) / gamma, tuple(range(y.ndim - 1))
    np.testing.assert_allclose(y.mean(others), 0, atol=within)
    np.testing.assert_allclose(y.std(others), 1, atol=within)
