"""What an export refuses."""

from bnpass.errors import ModelError


class ExportError(ModelError):
    """A model cannot be exported; the message names the layer or the op that is in the way."""
