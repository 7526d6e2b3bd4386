"""Model-local functions: those with sites are inlined, the bodies of our own operators go."""

from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from bnpass.collectives.nodes import FOREIGN, is_ours
from bnpass.errors import Refusal, RefusalId, RefusedError
from bnpass.expansion.names import Names
from bnpass.graph.nodes import Scope, label, nodes_of, scopes
from bnpass.ops import DOMAIN


def drop_bodies(model: ir.Model) -> None:
    """Take the bodies of our operators out of a model."""
    ours = [key for key in model.functions if key[0] == DOMAIN and is_ours(ir.Node(DOMAIN, key[1], []))]
    for key in ours:
        del model.functions[key]


def inline(model: ir.Model, is_site: Callable[[ir.Node, int], bool], *, everything: bool) -> None:
    """Inline the functions that hold sites or collectives, or call such; those that nobody calls are dropped.

    Args:
        model: Changed in place.
        is_site: Whether a node is a site, given the version of the default domain in force.
        everything: Inline all functions.

    Raises:
        RefusedError: BN204: a function cannot be inlined.
    """
    wanted = _reaching(model, is_site, everything=everything)
    if not wanted:
        return
    before = set(ir.traversal.RecursiveGraphIterator(model.graph))
    for key in wanted:
        _make_addressable(model.functions[key])
        _separate_outputs(model.functions[key])
    try:
        InlinePass(lambda function: function.identifier() in wanted)(model)
    except (ir.passes.PassError, ir.passes.PreconditionError, ValueError) as error:
        reason = f"functions with batch normalization have to be inlined, which fails: {error}"
        raise RefusedError(Refusal(RefusalId.OPSET_NOT_UPGRADABLE, min(wanted)[1], reason)) from error
    for key in wanted:
        model.functions.pop(key, None)
    new = [node for node in ir.traversal.RecursiveGraphIterator(model.graph) if node not in before]
    Names(model, new).settle(new, fixed=set(model.graph.outputs))


def _reaching(
    model: ir.Model, is_site: Callable[[ir.Node, int], bool], *, everything: bool
) -> set[ir.OperatorIdentifier]:
    """Return the functions that hold what is looked for, or call one that does."""
    if everything:
        return set(model.functions)
    inner = dict(zip(model.functions, list(scopes(model))[1:], strict=True))
    found = {key for key, scope in inner.items() if _holds(scope, is_site)}
    while True:
        callers = {key for key, scope in inner.items() if {n.op_identifier() for n in nodes_of(scope)} & found}
        if callers <= found:
            return found
        found |= callers


def _holds(scope: Scope, is_site: Callable[[ir.Node, int], bool]) -> bool:
    return any(n.domain == FOREIGN or is_ours(n) or is_site(n, scope.opset) for n in nodes_of(scope))


def _make_addressable(function: ir.Function) -> None:
    """Name the nodes that have no name after the function: inlined, they could not be told apart."""
    for node in ir.traversal.RecursiveGraphIterator(function.graph):
        if not node.name:
            node.name = f"{function.name}/{label(node)}"


def _separate_outputs(function: ir.Function) -> None:
    """Give each output a node of its own: what is inlined takes the names of the caller's outputs."""
    graph, seen = function.graph, set[ir.Value]()
    for index, value in enumerate(graph.outputs):
        if value.producer() is None or value in seen:
            copy = ir.Node("", "Identity", [value], name=f"{function.name}/{value.name}/copy")
            graph.append(copy)
            graph.outputs[index] = copy.outputs[0]
        seen.add(value)
