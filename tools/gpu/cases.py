"""Tensors on which the kernels are tried."""

from dataclasses import dataclass
from itertools import product

ELEMENTS = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class Case:
    """One tensor.

    Attributes:
        shape: Of X.
        axis: The channel axis.
        virtual_batch_size: Samples of a ghost batch; 0: none.
        element: The type of X.
        parameters: The type of scale, B and the running statistics.
        offset: The mean of X, in standard deviations.
        misalign: All tensors begin one element behind an aligned address.
    """

    shape: tuple[int, ...]
    axis: int
    virtual_batch_size: int = 0
    element: str = "float32"
    parameters: str = "float32"
    offset: float = 3.0
    misalign: bool = False

    def __str__(self) -> str:
        ghosts = f" ghosts of {self.virtual_batch_size}" if self.virtual_batch_size else ""
        where = " misaligned" if self.misalign else ""
        kind = f"{self.element}/{self.parameters}"
        return f"{'x'.join(map(str, self.shape))} axis {self.axis}{ghosts} {kind} mean {self.offset:g} std{where}"


SMALL: tuple[tuple[tuple[int, ...], int, int], ...] = (
    ((2, 3, 7), 1, 0),
    ((2, 3, 7, 7), 1, 0),
    ((4, 65, 3, 3), 1, 0),
    ((3, 4, 2), 1, 0),  # short rows: neighbouring threads take neighbouring channels
    ((7, 33, 4), 1, 0),
    ((2, 16, 8, 8), 1, 0),
    ((1, 2, 3137), 1, 0),
    ((6, 1, 5, 5), 1, 0),
    ((5, 1000), 1, 0),
    ((9, 7, 3), -1, 0),
    ((3, 5, 5, 64), -1, 0),
    ((2, 7, 7, 72), -1, 0),
    ((40, 1), -1, 0),
    ((3137, 3), -1, 0),
    ((5, 4, 6), 0, 0),
    ((7,), 0, 0),
    ((1, 5), 1, 0),
    ((6, 4, 5), 1, 3),
    ((6, 5, 4), -1, 2),
    ((8, 1, 9), 1, 2),
    ((6, 2, 3, 4, 5), 3, 2),  # rows of a ghost batch that lie in pieces
    ((6, 2, 3, 8, 16), 3, 3),
    ((4, 3, 5, 24), 2, 1),
)
LARGE: tuple[tuple[tuple[int, ...], int, int], ...] = (
    ((8, 64, 56, 56), 1, 0),
    ((8, 56, 56, 64), -1, 0),
    ((32, 512, 14, 14), 1, 0),
    ((32, 14, 14, 512), -1, 0),
    ((4, 2048, 7, 7), 1, 0),
    ((4, 7, 7, 2048), -1, 0),
    ((256, 1024), 1, 0),
    ((16, 1, 3137), 1, 0),
    ((2, 3, 512, 511), 1, 0),
    ((2, 512, 511, 3), -1, 0),
    ((64, 65, 7, 7), 1, 0),
    ((64, 7, 7, 65), -1, 0),
    ((100_000, 17), -1, 0),
    ((64, 32, 28, 28), 1, 8),
    ((64, 28, 28, 32), -1, 8),
    ((3, 1_000_003), 0, 0),
)


def small_cases(elements: tuple[str, ...] = ELEMENTS) -> list[Case]:
    """Return all small tensors in all types, aligned and not, and near and far from 0."""
    cases = [
        Case(shape, axis, ghosts, element, parameters_of(element, i), misalign=misalign)
        for i, ((shape, axis, ghosts), element, misalign) in enumerate(product(SMALL, elements, (False, True)))
    ]
    far = [
        Case(shape, axis, ghosts, element, parameters_of(element, 0), 1e4)
        for (shape, axis, ghosts), element in product(SMALL[1:11:3], ("float32", "float64"))
        if element in elements
    ]
    return cases + far


def large_cases() -> list[Case]:
    """Return the shapes of real layers, many splits and blocks."""
    cases = [
        Case(shape, axis, ghosts, element, parameters_of(element, i))
        for i, ((shape, axis, ghosts), element) in enumerate(product(LARGE, ELEMENTS))
    ]
    far = [Case(shape, axis, ghosts, "float32", "float32", 1e4) for shape, axis, ghosts in LARGE]
    return cases + far


def parameters_of(element: str, number: int) -> str:
    """Return the type of the vectors: double for double, else in turns float and double."""
    return "float64" if element == "float64" or number % 3 == 0 else "float32"
