"""What expansion did."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Expanded:
    """A batch normalization, gradient or moments that is written out now.

    Attributes:
        node: The node; an unnamed one by its first output.
        op_type: Its op.
        kind: ``training``, ``inference``, ``gradient`` or ``moments``.
        dtype: Element type of X, as NumPy calls it.
        shape: Dimensions of X: lengths, names, or None where nothing is known.
        axis: The channel axis, not negative.
        channels: The number of channels.
        epsilon: As the node has it; 0 where it has none.
        momentum: As the node has it; 0 where it has none.
        correction: ddof of the running variance.
        group: The replicas that share statistics.
        virtual_batch_size: Samples in a ghost batch; 0 for none.
        collectives: How many messages it sends, before any of them are put together.
    """

    node: str
    op_type: str
    kind: str
    dtype: str
    shape: tuple[int | str | None, ...]
    axis: int
    channels: int
    epsilon: float
    momentum: float
    correction: int
    group: str
    virtual_batch_size: int
    collectives: int


@dataclass(frozen=True)
class Collectives:
    """How many collectives a model has.

    Attributes:
        before: As the expansion wrote them, one and more for each site.
        after: After those that do not wait for each other were put together.
        depth: The longest chain of collectives that wait for each other's results.
    """

    before: int = 0
    after: int = 0
    depth: int = 0
