"""The initializers of a model's variables, as its layers know them."""

import json
from collections.abc import Mapping
from typing import Any

from bnpass.exporting.capture.state import plain

_SUFFIX = "_initializer"


def initializers(model: Any) -> Mapping[int, Mapping[str, Any]]:  # noqa: ANN401  a model of Keras
    """Return class and arguments of initializers, by the ids of the variables that they are for.

    A layer has them under names like ``kernel_initializer``, next to ``kernel``.
    """
    found: dict[int, Mapping[str, Any]] = {}
    layers = model._flatten_layers() if hasattr(model, "_flatten_layers") else [model]  # noqa: SLF001
    for layer in layers:
        for name in [name for name in vars(layer) if name.endswith(_SUFFIX)]:
            initializer, variable = getattr(layer, name), _variable(layer, name.removesuffix(_SUFFIX))
            if initializer is not None and variable is not None:
                found[id(plain(variable))] = _described(initializer)
    return found


def _variable(layer: Any, name: str) -> Any:  # noqa: ANN401
    """Return what an initializer is for: ``depthwise`` is for ``depthwise_kernel``."""
    if name == "bias" and getattr(layer, "unit_forget_bias", False):
        return None  # a quarter of it is 1
    found = [getattr(layer, stem, None) for stem in (name, f"{name}_kernel")]
    return next((variable for variable in found if hasattr(variable, "assign")), None)


def _described(initializer: Any) -> Mapping[str, Any]:  # noqa: ANN401
    """Return an initializer as Keras writes one into a configuration."""
    name = getattr(initializer, "__name__", type(initializer).__name__)
    config = initializer.get_config() if hasattr(initializer, "get_config") else {}
    try:
        return dict(json.loads(json.dumps({"class_name": name, "config": config})))
    except (TypeError, ValueError):  # arrays of a user's own
        return {"class_name": name, "config": None}
