"""A live batch-normalization layer of Keras, read: files and ``get_config`` lose arguments.

tf_keras loses ``synchronized``, ``fused`` and ``adjustment`` when a layer is saved, so only the object itself is asked.
"""

from typing import Any

from bnpass.exporting.errors import ExportError
from bnpass.semantics.resolved import Resolved
from bnpass.semantics.spec import CLIPPING_KEYS, TENSOR, Api, BatchNormSpec, SpecError

VARIABLES = {
    "scale": "gamma",
    "B": "beta",
    "input_mean": "moving_mean",
    "input_var": "moving_variance",
    "input_stddev": "moving_stddev",
    "renorm_mean": "renorm_mean",
    "renorm_stddev": "renorm_stddev",
}
"""Inputs of a layer by their ONNX names, and the attributes of the layers of Keras that hold them."""

UPDATED = {
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
    "running_stddev": "moving_stddev",
    "running_renorm_mean": "renorm_mean",
    "running_renorm_stddev": "renorm_stddev",
}
"""The statistics after a step, and the attributes that take them."""


def api_of(layer: Any) -> Api:  # noqa: ANN401  layers of untyped packages
    """Return the class whose rules a layer follows, found by the modules of its bases."""
    places = {f"{base.__module__}.{base.__name__}" for base in type(layer).__mro__}
    if any(p.startswith("keras.src.layers.normalization") for p in places):
        return "keras3"
    if any(p.endswith("legacy_tf_layers.normalization.BatchNormalization") for p in places):
        return "tf1"
    if any(p.endswith("batch_normalization_v1.BatchNormalization") for p in places):
        return "keras_v1"
    return "sync" if any(p.endswith("batch_normalization.SyncBatchNormalization") for p in places) else "tf_keras"


def resolved(layer: Any, shape: tuple[int | None, ...], dtype: str, *, training: bool) -> Resolved:  # noqa: ANN401
    """Return what a built layer means at an input.

    Args:
        layer: The layer.
        shape: Shape of X, None where a length is not known.
        dtype: Type of X.
        training: Whether the call may be one in training.

    Raises:
        ExportError: The layer contradicts itself, or would not run.
    """
    try:
        found = _spec(layer).resolve(shape, dtype, training=training)
    except SpecError as error:
        raise ExportError(f"layer '{layer.name}': {error}") from error
    if found.fused and not getattr(layer, "_bessels_correction_test_only", True):
        raise ExportError(f"layer '{layer.name}' has a switch of tf_keras's own tests off, and keeps another variance")
    if found.fused != bool(getattr(layer, "fused", False)):
        raise ExportError(f"layer '{layer.name}': fused is {layer.fused}, and its class would say {found.fused}")
    return found


def clipping(layer: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the limits of renorm that are tensors or variables, by name."""
    limits = getattr(layer, "renorm_clipping", None) or {}
    return {key: limits[key] for key in CLIPPING_KEYS if hasattr(limits.get(key), "dtype") and layer.renorm}


def _spec(layer: Any) -> BatchNormSpec:  # noqa: ANN401
    api = api_of(layer)
    arguments: dict[str, Any] = {"axis": axis_of(layer)}
    for name in ("momentum", "epsilon", "renorm_momentum"):
        arguments[name] = float(getattr(layer, name, 0.99))
    for name in ("center", "scale", "trainable"):
        arguments[name] = bool(getattr(layer, name))
    arguments["renorm"] = bool(getattr(layer, "renorm", False))
    if arguments["renorm"]:
        given, tensors = layer.renorm_clipping or {}, clipping(layer)
        arguments["renorm_clipping"] = {k: TENSOR if k in tensors else v for k, v in given.items()}
    if api not in ("tf1", "sync"):
        arguments["synchronized"] = bool(getattr(layer, "synchronized", False))
    if api != "keras3":
        arguments["virtual_batch_size"] = layer.virtual_batch_size
        arguments["adjustment"] = layer.adjustment
        arguments["fused"] = bool(layer.fused)
    if api in ("keras_v1", "tf1"):
        arguments["synchronized"] = False
    return BatchNormSpec(api, **arguments)


def axis_of(layer: Any) -> int | list[int]:  # noqa: ANN401
    """Return the channel axes of a built layer; with ghost batches, ``build`` has counted their axis in."""
    if isinstance(layer.axis, int):
        return layer.axis
    axes = [int(axis) - (layer.virtual_batch_size is not None) for axis in layer.axis]
    return axes[0] if len(axes) == 1 else axes
