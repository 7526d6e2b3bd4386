"""The local check of a fold, as it stands in the report."""

from bnpass.passes import FoldBatchNorm
from bnpass.report import Check, counted


def local(folding: FoldBatchNorm) -> Check:
    """Return what the check of each edit found; a failure would have raised before."""
    edits = len(folding.folded)
    text = f"{counted(edits, 'edit')}, op before against op after in float64"
    if edits:
        text += f"; largest deviation {folding.largest_error:.2f} of what one rounding permits"
    return Check("local", ran=True, text=text, details={"edits": edits, "largest_error": folding.largest_error})
