"""A planted fault."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One planted fault.

    Attributes:
        name: What is wrong.
        file: Where.
        old: The text that is there, exactly once; if the code moves on, the runner says so loudly.
        new: The text that replaces it.
        tests: The test file that most likely sees it, run before all others; "" for none.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str = ""
