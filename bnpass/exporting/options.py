"""What the caller of an export can choose."""

from dataclasses import dataclass
from typing import Literal

from bnpass.errors import UsageError
from bnpass.exporting.signature import InputSignature
from bnpass.ops import GROUP_NAME

OPSETS = range(15, 19)
"""The bodies of our operators need 15; tf2onnx writes no newer one than 18."""

Content = Literal["layers", "signatures", "graph"]
"""What a model is made of: layers of Keras, signatures of a SavedModel without layers, or a graph alone."""

_CONTENTS: dict[Content, str] = {"layers": "layers", "signatures": "signatures", "graph": "a graph"}
_ONLY_FOR: dict[str, tuple[Content, str]] = {
    "signature": ("layers", "signature (--input-shape) is for models of Keras that do not know their inputs"),
    "reinitialize": ("layers", "fresh values (--reinitialize) are for models of Keras, which say how weights begin"),
    "inputs": ("graph", "inputs (--inputs) are for graphs that do not say their own"),
    "outputs": ("graph", "outputs (--outputs) are for graphs that do not say their own"),
    "signature_key": ("signatures", "signature_key (--signature-key) is for SavedModels without layers"),
}
"""Options that mean something for one kind of model."""


@dataclass(frozen=True)
class ExportOptions:
    """How to export a model.

    Attributes:
        training: Export the forward graph of a training step: weights and statistics go in, updated ones come out.
        opset: Version of the default ONNX domain.
        signature: Shape and type of each input, for a model that does not know them.
        inputs: Tensors that are the inputs of a graph without layers; None to find them.
        outputs: Tensors that are its outputs; None to find them.
        signature_key: The signature of a SavedModel without layers; None for ``serving_default``, or the only one.
        group: The replicas that synchronized layers share statistics with.
        check: Calls that are compared with the framework; in training, at least 5 steps. 0: no comparison.
        seed: Of the inputs of that check, and of Dropout layers that have none.
        reinitialize: A seed, to export fresh values of the initializers in place of the trained ones.
    """

    training: bool = False
    opset: int = 17
    signature: InputSignature | None = None
    inputs: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None
    signature_key: str | None = None
    group: str = "world"
    check: int = 3
    seed: int = 0
    reinitialize: int | None = None

    def __post_init__(self) -> None:
        if self.opset not in OPSETS:
            raise UsageError(f"an export is written in opset {OPSETS[0]} to {OPSETS[-1]}, not {self.opset}")
        if self.group and not GROUP_NAME.fullmatch(self.group):
            raise UsageError(f"a group name is made of 1 to 64 letters, digits, '_', '.' and '-', not '{self.group}'")
        if self.reinitialize is not None and not self.training:
            raise UsageError("fresh values are for a training export (training=True)")

    def check_fits(self, content: Content) -> None:
        """Refuse what was chosen and would mean nothing for a model.

        Raises:
            UsageError: An option is for models of another kind.
        """
        for option, (kind, why) in _ONLY_FOR.items():
            if getattr(self, option) is not None and kind != content:
                raise UsageError(f"{why}; this one is made of {_CONTENTS[content]}")
