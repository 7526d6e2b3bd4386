"""What an export refuses."""

from bnpass.errors import ModelError


class ExportError(ModelError):
    """A model cannot be exported; the message names the layer or the op that is in the way."""


_LONGEST = 300
"""Characters of a line that another program wrote."""


def first_line(error: BaseException, *, but: tuple[str, ...] = ()) -> str:
    """Return the first line of what an error says, or its type if it says nothing.

    Args:
        error: Of any package.
        but: Beginnings of lines that say nothing.
    """
    lines = (line.strip() for line in str(error).splitlines())
    return next((line[:_LONGEST] for line in lines if line and not line.startswith(but)), type(error).__name__)
