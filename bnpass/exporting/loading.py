"""A file becomes a live model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bnpass.errors import MissingDependencyError
from bnpass.exporting.capture.interception import norm_layers
from bnpass.exporting.errors import ExportError
from bnpass.exporting.source import Source


def load_model(source: Source, *, trust: bool) -> Any:  # noqa: ANN401  a model of Keras
    """Load a file of Keras 3 or tf_keras, with their own safe mode on unless the file is trusted.

    Raises:
        MissingDependencyError: The framework is not installed.
        ExportError: It cannot be loaded; the message says what Keras says.
    """
    keras = framework("keras" if source.kind == "keras3" else "tf_keras")
    with _one_line(source):
        return keras.models.load_model(str(source.path), compile=False, safe_mode=not trust)


def framework(name: str) -> Any:  # noqa: ANN401  a module
    """Import ``keras`` (3, on TensorFlow) or ``tf_keras``.

    Raises:
        MissingDependencyError: It is not installed, or not on TensorFlow.
    """
    try:
        if name == "tf_keras":
            import tf_keras

            return tf_keras
        import keras
        import tensorflow as tf  # noqa: F401  what Keras itself finds missing is told less clearly
    except ImportError as error:
        raise MissingDependencyError(f'{name} is needed for this model: pip install "bnpass[keras]"') from error
    if keras.backend.backend() != "tensorflow":
        raise MissingDependencyError(f"Keras runs on {keras.backend.backend()} here: set KERAS_BACKEND=tensorflow")
    return keras


def synchronize(model: Any) -> None:  # noqa: ANN401
    """Make every batch normalization of a model synchronized: files of tf_keras do not say which ones were."""
    for layer in norm_layers(model):
        layer.synchronized = True
        if hasattr(layer, "fused"):
            layer.fused = False  # as in a layer that was made with synchronized=True


@contextmanager
def _one_line(source: Source) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever Keras raises, it cannot load this
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        hint = ""
        if "custom_object" in str(error) or "register_keras_serializable" in str(error):
            hint = "; it needs classes of your own: export the live model with bnpass.export(model, path)"
        raise ExportError(f"{source.path}: Keras cannot load it: {lines[0][:300]}{hint}") from error
