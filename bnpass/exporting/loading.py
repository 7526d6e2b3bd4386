"""A file becomes a live model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bnpass.exporting.capture.interception import norm_layers
from bnpass.exporting.errors import ExportError, first_line
from bnpass.exporting.packages import framework
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
        hint = ""
        if "custom_object" in str(error) or "register_keras_serializable" in str(error):
            hint = "; it needs classes of your own: export the live model with bnpass.export(model, path)"
        raise ExportError(f"{source.path}: Keras cannot load it: {first_line(error)}{hint}") from error
