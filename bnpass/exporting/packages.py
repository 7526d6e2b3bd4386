"""The two packages of Keras: which one a model is of, and how it is imported."""

import sys
from typing import Any, Literal

from bnpass.errors import MissingDependencyError

Package = Literal["keras", "tf_keras"]
"""Keras 3 and Keras 2."""


def package_of(model: Any) -> Package | None:  # noqa: ANN401  of any type
    """Return the package whose class a live model has; None if it is no model of Keras."""
    bases = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    return "tf_keras" if "tf_keras" in bases else "keras" if "keras" in bases else None


def version_of(model: Any) -> str:  # noqa: ANN401
    """Return the framework of a live model of Keras with its version."""
    package = package_of(model)
    name = "tf_keras" if package == "tf_keras" else "Keras"
    return f"{name} {sys.modules[str(package)].__version__}"


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
