"""What a model is called with: the tensors of its call, their names, and how they are put together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bnpass.errors import UsageError
from bnpass.exporting.errors import ExportError

InputSignature = Sequence[tuple[Sequence[int | None], str]]
"""Shape and type of each input, in the order of the call."""


@dataclass(frozen=True)
class Signature:
    """The inputs of a model.

    Attributes:
        names: One for each tensor.
        specs: A ``tf.TensorSpec`` for each.
        pack: Makes of the tensors what the model is called with.
    """

    names: tuple[str, ...]
    specs: tuple[Any, ...]
    pack: Callable[[Sequence[Any]], Any]


def signature_of(model: Any, given: InputSignature | None) -> Signature:  # noqa: ANN401  a model of Keras
    """Return what a model is called with: as given, or as the model itself knows it.

    Raises:
        UsageError: The model does not say it, and nothing is given; or both say different things.
    """
    import tensorflow as tf

    known = _known(model)
    if given is not None:
        specs = tuple(tf.TensorSpec(tuple(shape), dtype) for shape, dtype in given)
        if known is None:
            names = [f"input_{i}" for i in range(len(specs))] if len(specs) > 1 else ["input"]
            return Signature(tuple(names), specs, lambda tensors: list(tensors) if len(tensors) > 1 else tensors[0])
        if len(specs) != len(known.specs) or not all(
            a.is_compatible_with(b) or b.is_compatible_with(a) for a, b in zip(specs, known.specs, strict=True)
        ):
            raise UsageError(f"the signature does not fit the inputs of '{model.name}', which are {_text(known.specs)}")
        return Signature(known.names, specs, known.pack)
    if known is None:
        raise UsageError(f"'{model.name}' does not know the shapes of its inputs: give a signature")
    return known


def _known(model: Any) -> Signature | None:  # noqa: ANN401
    """Return the inputs that a model knows: those of a graph of layers, or of its first call."""
    structure = _structure(model)
    if structure is None:
        return None
    import tensorflow as tf

    flat = tf.nest.flatten(structure)
    for tensor in flat:
        if getattr(tensor, "sparse", False) or getattr(tensor, "ragged", False) or tensor.shape is None:
            raise ExportError(f"input '{tensor.name}' of '{model.name}' is sparse, ragged or of no known rank")
    names = [_name(tensor, i, len(flat)) for i, tensor in enumerate(flat)]
    if isinstance(structure, Mapping) and len(structure) == len(flat):
        names = sorted(structure)
    specs = tuple(tf.TensorSpec(tuple(t.shape), tf.as_dtype(t.dtype)) for t in flat)
    return Signature(tuple(names), specs, lambda tensors: tf.nest.pack_sequence_as(structure, list(tensors)))


def _structure(model: Any) -> Any:  # noqa: ANN401
    try:
        inputs = model.input
    except (AttributeError, ValueError, RuntimeError):
        inputs = None
    if inputs is not None:
        return inputs
    save_spec = model.save_spec(dynamic_batch=True) if hasattr(model, "save_spec") else None
    if save_spec is not None:
        arguments, _ = save_spec
        return arguments[0]
    return _from_build(model)


def _from_build(model: Any) -> Any:  # noqa: ANN401
    """Return specs from the shapes that a subclassed model of Keras 3 was built with."""
    import tensorflow as tf

    shapes = getattr(model, "_build_shapes_dict", None)
    if not shapes or len(shapes) != 1:
        return None
    (shape,) = shapes.values()
    if not isinstance(shape, tuple | list) or not all(isinstance(n, int | None) for n in shape):
        return None
    return tf.TensorSpec((None, *shape[1:]), tf.as_dtype(model.input_dtype), name="input")


def _name(tensor: Any, number: int, count: int) -> str:  # noqa: ANN401
    name = str(getattr(tensor, "name", None) or "").split(":")[0]
    return name or (f"input_{number}" if count > 1 else "input")


def _text(specs: Sequence[Any]) -> str:
    return ", ".join(f"{spec.dtype.name}{list(spec.shape)}" for spec in specs)
