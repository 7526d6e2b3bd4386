"""The rows of the promise: an argument of the layers, or a statement about them, and the classes that take it.

The others refuse the argument, in TensorFlow and here, or have no such thing.
"""

from dataclasses import dataclass

from tests.conformance.layers.cases import APIS, Api

ALL = frozenset(APIS)
TF_KERAS: frozenset[Api] = frozenset({"tf1", "keras_v1", "tf_keras"})


@dataclass(frozen=True)
class Row:
    """One row of the promise.

    Attributes:
        key: Its short name; cases carry it.
        says: What is promised.
        taken: The classes for which there are cases with numbers; the others refuse, or have no such thing.
    """

    key: str
    says: str
    taken: frozenset[Api] = ALL

    def otherwise(self, api: Api) -> str:
        """Return what there is instead of cases."""
        return _INSTEAD.get((self.key, api), _INSTEAD.get((self.key, ""), "refused, as by the class"))


_INSTEAD: dict[tuple[str, str], str] = {
    ("UPDATE_OPS", ""): "the layer runs its updates itself",
    ("eager", ""): "a layer, not a function",
    ("training tensor", "keras3"): "see the deviations",
    ("synchronized", "keras_v1"): "ignored, see the deviations",
}

ROWS = (
    Row("axis", "axis, an int"),
    Row("axis list", "axis, a list", ALL - {"keras3"}),
    Row("momentum epsilon", "momentum, epsilon"),
    Row("center scale", "center, scale"),
    Row("initializers", "beta, gamma, moving mean and moving variance initializers"),
    Row("regularizers", "beta and gamma regularizers"),
    Row("constraints", "beta and gamma constraints"),
    Row("renorm", "renorm, renorm_momentum"),
    Row("renorm clipping", "renorm_clipping: floats, scalar tensors, variables"),
    Row("fused", "fused None, True, False", TF_KERAS),
    Row("virtual batch", "virtual_batch_size", ALL - {"keras3"}),
    Row("adjustment", "adjustment", ALL - {"keras3"}),
    Row("trainable", "trainable"),
    Row("name reuse", "name, reuse"),
    Row("training bool", "training, a Python bool"),
    Row("training tensor", "training, a boolean tensor", ALL - {"keras3"}),
    Row("UPDATE_OPS", "updates are collected in UPDATE_OPS", frozenset({"tf1", "keras_v1"})),
    Row("eager", "the function runs eagerly", frozenset({"tf1"})),
    Row("synchronized", "synchronized", frozenset({"sync", "tf_keras", "keras3"})),
    Row("mask", "mask in the call"),
    Row("rank", "inputs of any rank, an output of the same shape"),
    Row("formula", "y = gamma·(x − mean)/sqrt(var + eps) + beta, and the moving averages"),
    Row("dtype", "float16, bfloat16, float32, float64"),
    Row("pairs", "every two arguments together"),
)
