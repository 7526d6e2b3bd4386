"""What goes into an exported graph and what comes out of it, by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True)
class Port:
    """An input or output of a traced graph.

    Attributes:
        name: As it is called in the exported model.
        tensor: The tensor of the traced graph.
        shape: Its lengths; None where one is not known. None if not even the rank is.
        dtype: Its type, as TensorFlow names it.
    """

    name: str
    tensor: str
    shape: tuple[int | None, ...] | None
    dtype: str


@dataclass(frozen=True)
class State:
    """A variable of a model that is exported in training mode.

    Attributes:
        name: The variable, with the layers that it is in.
        input: Where its value goes in.
        output: Where its new value comes out; None if the graph does not change it.
        trainable: Whether training changes it by its gradient.
        default: Its value when the model was exported, in the layout of the framework.
        initializer: Class and arguments of what gave it its first value; None if its layer does not say.
    """

    name: str
    input: Port
    output: Port | None
    trainable: bool
    default: NDArray[Any]
    initializer: Mapping[str, Any] | None = None


def unique(names: list[str]) -> list[str]:
    """Return names that differ: the second of a kind gets a number."""
    taken: set[str] = set()
    found = []
    for name in names:
        new, number = name, 1
        while new in taken:
            new, number = f"{name}_{number}", number + 1
        taken.add(new)
        found.append(new)
    return found
