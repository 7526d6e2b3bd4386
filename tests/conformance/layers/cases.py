"""One case: a layer with its arguments, the shapes and types it is fed, and the steps it takes.

A case is plain data: it travels to the TensorFlow process as JSON. Arrays travel beside it (``exchange.py``); a
function cannot, so ``adjustment`` is the name of one that both sides know (``adjustments.py``).
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Api = Literal["sync", "tf1", "keras_v1", "tf_keras", "keras3"]
APIS: tuple[Api, ...] = ("sync", "tf1", "keras_v1", "tf_keras", "keras3")

TRAINING_THEN_INFERENCE = (True, True, True, True, True, False)
DTYPES: dict[str, Any] = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float64": np.float64,
}


@dataclass(frozen=True)
class Case:
    """What one conformance case does.

    Attributes:
        row: The row of the table of layers that it stands for.
        api: Whose layer.
        name: What is particular about it; row, api and name together are unique.
        arguments: The keyword arguments of the layer, in plain form.
        shares: The shape of the input on each replica.
        dtype: The type of X and Y.
        policy: The ``dtype`` argument of the layer, where it is not the one that stands for ``dtype``.
        graph: True: a graph of TensorFlow 1, with TensorFlow 2 behaviour disabled.
        training: How the layer is told to train: by a Python bool, or by a tensor that is only known at run time.
        steps: Whether each step is a training step.
        mask: The kind of the mask (``arrays.py``); "" without one.
        data: The kind of the data (``arrays.py``).
        clip: Values of the renorm clipping that are tensors; ``arguments`` then hold "tensor" or "variable".
        own_start: The layer starts from its own initializers, not from given weights.
        learning_rate: Gamma and beta learn by SGD after each step; 0: they do not.
        alone: Runs in a process of its own: a failed collective spoils every later one.
    """

    row: str
    api: Api
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    shares: tuple[tuple[int, ...], ...] = ((6, 3),)
    dtype: str = "float32"
    policy: str = ""
    graph: bool = False
    training: Literal["bool", "tensor"] = "bool"
    steps: tuple[bool, ...] = TRAINING_THEN_INFERENCE
    mask: str = ""
    data: str = "normal"
    clip: dict[str, float] = field(default_factory=dict)
    own_start: bool = False
    learning_rate: float = 0.0
    alone: bool = False

    @property
    def id(self) -> str:
        """The one name of the case."""
        return f"{self.row}-{self.api}{'_graph' if self.graph else ''}-{self.name}".replace(" ", "_").replace("/", "_")

    @property
    def process(self) -> str:
        """The kind of process that it needs: generations of Keras exclude each other, sizes of collectives too."""
        generation = "graph" if self.graph else "keras3" if self.api == "keras3" else "legacy"
        return generation if len(self.shares) == 1 else f"{generation}-{len(self.shares)}"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the input on the first replica."""
        return self.shares[0]

    @property
    def axes(self) -> tuple[int, ...]:
        """The channel axes: non-negative, ascending."""
        axis = self.arguments.get("axis", -1)
        return tuple(sorted(a % len(self.shape) for a in ([axis] if isinstance(axis, int) else axis)))

    @property
    def channels(self) -> int:
        """The number of channels."""
        return int(np.prod([self.shape[a] for a in self.axes]))

    def plain(self) -> dict[str, Any]:
        """Return the case as JSON knows it."""
        return {"id": self.id, **asdict(self)}


def from_plain(plain: dict[str, Any]) -> Case:
    """Return the case of a plain form."""
    given = {key: value for key, value in plain.items() if key != "id"}
    given["shares"] = tuple(tuple(shape) for shape in given["shares"])
    given["steps"] = tuple(given["steps"])
    return Case(**given)
