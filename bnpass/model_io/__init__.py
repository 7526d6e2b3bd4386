"""Load models lazily and contained, save them atomically.

`load` trusts nothing in the file and leaves the weights on disk until they are touched; `save` and
`stage` write all of a model or nothing. Nothing here runs code from a model or touches the network.
"""

from bnpass.model_io.border import to_proto, to_type_of
from bnpass.model_io.layout import Policy
from bnpass.model_io.load import ModelLike, load
from bnpass.model_io.save import SavedFiles, Staged, save, stage

__all__ = ["ModelLike", "Policy", "SavedFiles", "Staged", "load", "save", "stage", "to_proto", "to_type_of"]
