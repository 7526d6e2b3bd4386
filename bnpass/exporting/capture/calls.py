"""What was intercepted: a record per call, kept outside of the graph, which holds its number alone."""

from dataclasses import dataclass, field

from bnpass.exporting.errors import ExportError
from bnpass.semantics.resolved import Resolved

TOKEN = "bnpass:"  # noqa: S105  a prefix, no secret
"""What the token of a marker begins with; the number of the call follows."""


@dataclass(frozen=True)
class NormCall:
    """A call of a batch-normalization layer.

    Attributes:
        layer_name: The layer, as messages and nodes call it.
        layer: What it means at this input.
        training: The mode; None where a boolean tensor decides, the input ``training``.
        inputs: What the marker reads, by the names of ``LayerInputs``, in order; X is the first.
        outputs: What it makes, by the names of ``LayerOutputs``; Y is the first.
    """

    layer_name: str
    layer: Resolved
    training: bool | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class DropoutCall:
    """A call of a Dropout layer that drops.

    Attributes:
        layer_name: The layer.
        dtype: Type of X.
        rate: The fraction dropped.
        seed: Of the layer, or None.
    """

    layer_name: str
    dtype: str
    rate: float
    seed: int | None


Call = NormCall | DropoutCall


@dataclass
class Calls:
    """The calls of one trace, in order, and the layers that made them.

    Attributes:
        records: What was called.
        layers: Identities of the layers.
        refusal: What was refused in a call: Keras raises something of its own in its place.
    """

    records: list[Call] = field(default_factory=list)
    layers: set[int] = field(default_factory=set)
    refusal: ExportError | None = None

    def add(self, layer: object, record: Call) -> str:
        """Record a call and return the token of its marker."""
        self.layers.add(id(layer))
        self.records.append(record)
        return f"{TOKEN}{len(self.records) - 1}"

    def of(self, token: str) -> Call | None:
        """Return the call that a token stands for; None for a token of someone else."""
        number = token.removeprefix(TOKEN)
        known = token.startswith(TOKEN) and number.isdecimal() and int(number) < len(self.records)
        return self.records[int(number)] if known else None
