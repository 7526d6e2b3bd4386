"""Turn a training model into one whose batch normalization the kernels run."""

import onnx_ir as ir

from bnpass.errors import UsageError
from bnpass.expansion.options import ExpandOptions
from bnpass.ops import DOMAIN
from bnpass.passes import ExpandSyncBatchNorm


def as_operators(model: ir.Model, *, group: str = "") -> tuple[ir.Model, str]:
    """Return a model with operators of bnpass: the given one if it has some, else what ``expand`` makes of it.

    Args:
        model: The model; it is not changed.
        group: The replicas over which batch normalization shares its statistics.

    Returns:
        The model, and what was done to it; empty if nothing was.

    Raises:
        UsageError: It has none of them, and no batch normalization in training mode.
        RefusedError: Its batch normalization cannot be turned into them.
    """
    scopes = [model.graph, *(function.graph for key, function in model.functions.items() if key[0] != DOMAIN)]
    if any(node.domain == DOMAIN for scope in scopes for node in ir.traversal.RecursiveGraphIterator(scope)):
        return model, ""
    expand = ExpandSyncBatchNorm(ExpandOptions(group=group, as_functions=True))
    changed = expand(model.clone()).model
    if not expand.expanded:
        raise UsageError(
            "the model has neither operators of bnpass nor batch normalization in training mode: "
            "there is nothing that a kernel would run"
        )
    number = len(expand.expanded)
    flags = f"--as-functions --sync {group}" if group else "--as-functions"
    return changed, f"{number} BatchNormalization turned into operators of bnpass, as expand {flags} does"
