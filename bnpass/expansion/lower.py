"""The AllReduce that was chosen: ours, ONNX Runtime's, or none."""

import onnx_ir as ir

from bnpass.collectives.nodes import FOREIGN, WORLD
from bnpass.errors import RefusalId
from bnpass.expansion.attributes import Attributes, bad_attribute, refused
from bnpass.expansion.facts import Facts
from bnpass.expansion.options import Collective, ExpandOptions
from bnpass.expansion.sites import Site
from bnpass.graph.nodes import described, operand
from bnpass.ops import DOMAIN

_FOREIGN_TYPES = (ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE)
_REDUCTIONS = ("sum", "mean", "max", "min")


def check_site(site: Site, options: ExpandOptions) -> None:
    """Refuse a site that the chosen form cannot say.

    Raises:
        RefusedError: BN206: X has no axis of channels, and our operators need one. BN209: the group is not the world.
    """
    if options.as_functions and site.axis == len(site.dims):
        raise bad_attribute(site.node, "X has rank 1, and the operators of bnpass need an axis of channels")
    if options.collective == "com.microsoft" and site.group not in ("", WORLD):
        reason = f"{FOREIGN}::AllReduce knows the world alone, and this is group '{site.group}'"
        raise refused(RefusalId.COLLECTIVE_CANNOT_SAY_IT, site.node, reason)


def check_all_reduce(node: ir.Node, collective: Collective, facts: Facts, opset: int) -> None:
    """Refuse an AllReduce that cannot be read, or that the collective cannot say.

    Raises:
        RefusedError: BN206, BN208, BN209.
    """
    attributes = Attributes(node, opset)
    group, reduction, message = attributes.group(), attributes.text("reduction"), operand(node, 0)
    if message is None:
        raise bad_attribute(node, f"{described(node)} has no input")
    if reduction not in _REDUCTIONS:
        raise bad_attribute(node, f"reduction is '{reduction}', not one of {', '.join(_REDUCTIONS)}")
    if collective != "com.microsoft" or not group:
        return
    dtype = facts.dtype(message)
    for wrong, what in (
        (group != WORLD, f"group is '{group}'"),
        (reduction != "sum", f"reduction is '{reduction}'"),
        (dtype not in _FOREIGN_TYPES, f"type is {dtype.name.lower() if dtype is not None else 'not known'}"),
    ):
        if wrong:
            raise refused(RefusalId.COLLECTIVE_CANNOT_SAY_IT, node, f"{FOREIGN}::AllReduce has no such thing: {what}")


def lower(model: ir.Model, collective: Collective) -> None:
    """Write every AllReduce of a model as the chosen collective; without a group, and with ``none``, it is a copy."""
    if collective == "bnpass":
        return
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if node.op_identifier()[:2] != (DOMAIN, "AllReduce"):
            continue
        has_group = bool(node.attributes.get_string("group", ""))
        node.resize_inputs(1)
        node.attributes.clear()
        if collective == "none" or not has_group:
            node.domain, node.op_type = "", "Identity"
        else:
            node.domain = FOREIGN
            model.opset_imports.setdefault(FOREIGN, 1)
