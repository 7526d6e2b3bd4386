"""What a comparison found: plain values, for a text and for JSON."""

from dataclasses import dataclass
from typing import Literal

Side = Literal["a", "b"]


@dataclass(frozen=True)
class OnlyNode:
    """A node, or a model-local function, that has no counterpart in the other model.

    Attributes:
        side: The model that has it.
        where: The graph it stands in; empty for the main one.
        node: Its name; an unnamed one by its first output.
        op_type: Its op; ``function`` for a function.
    """

    side: Side
    where: str
    node: str
    op_type: str


@dataclass(frozen=True)
class ChangedNode:
    """Something about a node, or about what a graph gives, that is not the same in its counterpart.

    Attributes:
        where: The graph it stands in.
        node: The node of the first model; empty for the graph itself.
        op_type: Its op.
        what: An attribute, an input, an output, or a version.
        before: In the first model.
        after: In the second.
    """

    where: str
    node: str
    op_type: str
    what: str
    before: str
    after: str


@dataclass(frozen=True)
class Fact:
    """Something about the whole model: an input, an output, an opset, or who made it.

    Attributes:
        what: What it is about.
        before: In the first model; empty if there is none.
        after: In the second.
    """

    what: str
    before: str
    after: str


@dataclass(frozen=True)
class OnlyWeight:
    """An initializer that has no counterpart.

    Attributes:
        side: The model that has it.
        name: Its name.
        type: Element type and shape.
    """

    side: Side
    name: str
    type: str


@dataclass(frozen=True)
class ChangedWeight:
    """An initializer, or the tensor of an attribute, whose counterpart holds something else.

    Attributes:
        name: Its name in the first model.
        before: Element type and shape there.
        after: Element type and shape in the second model.
        elements: How many elements both have; 0 if types or shapes differ, and nothing was compared.
        differing: How many of them are not the same bit for bit.
        max_abs: The largest difference; None where there is no such number.
        max_rel: The same over the largest element of the first.
    """

    name: str
    before: str
    after: str
    elements: int
    differing: int
    max_abs: float | None
    max_rel: float | None


@dataclass(frozen=True)
class Renamed:
    """A counterpart with another name.

    Attributes:
        kind: A node, a value between nodes, a weight, or an open dimension of an input or output.
        before: Its name in the first model.
        after: Its name in the second.
    """

    kind: Literal["node", "value", "weight", "dimension"]
    before: str
    after: str


@dataclass(frozen=True)
class Comparison:
    """Everything that differs between two models.

    Attributes:
        nodes: How many nodes each has, functions and subgraphs included.
        weights: How many initializers each has.
        only_nodes: Nodes without a counterpart.
        changed_nodes: Nodes that are not quite their counterpart.
        interface: Inputs, outputs and opsets that differ.
        only_weights: Initializers without a counterpart.
        changed_weights: Constants that are not their counterpart, bit for bit.
        renamed: Counterparts with other names; they count as the same.
        uncounted: What else is written in the files and does not count: who made them, and remarks.
    """

    nodes: tuple[int, int]
    weights: tuple[int, int]
    only_nodes: tuple[OnlyNode, ...] = ()
    changed_nodes: tuple[ChangedNode, ...] = ()
    interface: tuple[Fact, ...] = ()
    only_weights: tuple[OnlyWeight, ...] = ()
    changed_weights: tuple[ChangedWeight, ...] = ()
    renamed: tuple[Renamed, ...] = ()
    uncounted: tuple[Fact, ...] = ()

    @property
    def same(self) -> bool:
        """Whether the models are the same but for names inside of them."""
        return not (
            self.only_nodes or self.changed_nodes or self.interface or self.only_weights or self.changed_weights
        )
