"""Expand a model: plan everything, then write it.

    functions with sites are inlined -> sites are read; a refusal ends it here -> older models are upgraded
    -> sites are written out -> AllReduces share messages -> all collectives are put in one order -> bodies

All of it is done to a copy, which takes the model's place at the end: a model that is refused is not touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from bnpass.collectives.coalesce import coalesce
from bnpass.collectives.nodes import is_ours
from bnpass.collectives.order import order
from bnpass.errors import RefusalId
from bnpass.expansion.attributes import write_out
from bnpass.expansion.backward import gradient
from bnpass.expansion.call import call
from bnpass.expansion.facts import Facts
from bnpass.expansion.forward import Results, inference, moments, training
from bnpass.expansion.functions import drop_bodies, inline
from bnpass.expansion.lower import check_all_reduce, check_site, lower
from bnpass.expansion.names import Names
from bnpass.expansion.options import ExpandOptions
from bnpass.expansion.result import Collectives, Expanded
from bnpass.expansion.sites import Kind, Site, is_site, recognize
from bnpass.expansion.terms import Formulas
from bnpass.expansion.upgrade import upgrade
from bnpass.expansion.write import put_in_place
from bnpass.graph.batch_norm import is_batch_norm
from bnpass.graph.kept import Kept
from bnpass.graph.nodes import label, nodes_of, scopes
from bnpass.ops import DOMAIN, MIN_OPSET
from bnpass.ops.bodies import MIN_BODY_OPSET, add_bodies


@dataclass(frozen=True)
class Expansion:
    """What was done to a model.

    Attributes:
        modified: Whether it changed.
        expanded: The sites that were written out, in graph order.
        kept: Batch normalizations that stay as they are.
        collectives: How many collectives there are.
    """

    modified: bool
    expanded: tuple[Expanded, ...]
    kept: tuple[Kept, ...]
    collectives: Collectives


def expand(model: ir.Model, options: ExpandOptions) -> Expansion:
    """Expand a model in place.

    Args:
        model: Not touched if it is refused.
        options: What to expand into.

    Returns:
        What was done.

    Raises:
        RefusedError: A site cannot be expanded exactly, the model cannot be upgraded, or the collectives cannot be put
            in order.
        UsageError: An input that is said to be uniform does not exist.
    """
    return _Expander(model, options).run()


class _Expander:
    """One run over a model."""

    def __init__(self, model: ir.Model, options: ExpandOptions) -> None:
        self._model, self._options = model, options
        self._work = model.clone()
        self._opset = _opset_of(model)

    def run(self) -> Expansion:
        work, options = self._work, self._options
        _spell_default_domain(work)
        drop_bodies(work)
        inline(work, is_site, everything=False)
        sites = self._plan()
        kept = tuple(_kept(work))
        if not sites and not self._lowers():
            return Expansion(False, (), kept, self._counted(work, merge=False))
        sites = self._upgraded(sites)
        expanded = tuple(self._written(sites))
        lower(work, options.collective)
        collectives = self._counted(work, merge=options.coalesce)
        order(work, options.uniform)
        add_bodies(work)
        _forget_domain(work)
        modified = bool(expanded) or self._lowers() or _nodes_of(self._model) != _nodes_of(work)
        if modified:
            _replace(self._model, work)
        return Expansion(modified, expanded, kept, collectives)

    def _plan(self) -> list[Site]:
        """Read every site, and every AllReduce that is there already; nothing has been changed when one is refused."""
        options, opset = self._options, self._opset
        facts, sites = self._facts(), []
        for node in ir.traversal.RecursiveGraphIterator(self._work.graph):
            if is_site(node, opset):
                site = recognize(node, opset, facts, options)
                check_site(site, options)
                sites.append(replace(site, group="") if options.collective == "none" else site)
            elif is_ours(node):
                check_all_reduce(node, options.collective, facts, opset)
        return sites

    def _facts(self) -> Facts:
        return Facts(self._work, self._opset, lambda node: is_site(node, self._opset))

    def _lowers(self) -> bool:
        """Whether AllReduces that are there already become something else."""
        if self._options.collective == "bnpass":
            return False
        return any(map(_is_all_reduce, ir.traversal.RecursiveGraphIterator(self._model.graph)))

    def _upgraded(self, sites: list[Site]) -> list[Site]:
        """Convert the model if the ops that are written are newer; functions are written for one version, and go."""
        target = MIN_BODY_OPSET if self._needs_bodies(sites) else MIN_OPSET
        if self._opset >= target:
            return sites
        inline(self._work, is_site, everything=True)
        return upgrade(self._work, sites, self._opset, target, self._facts())

    def _needs_bodies(self, sites: Sequence[Site]) -> bool:
        if self._options.as_functions:
            return True
        ours = any(map(_is_all_reduce, ir.traversal.RecursiveGraphIterator(self._work.graph)))
        return self._options.collective == "bnpass" and (ours or any(site.group for site in sites))

    def _written(self, sites: Sequence[Site]) -> list[Expanded]:
        names, done = Names(self._work), []
        for site in sites:
            if self._options.as_functions and site.ours:
                write_out(site.node, site.group)
                continue
            op = Formulas(site.label)
            done.append(site.done(put_in_place(site, op, self._results(op, site), names)))
        return done

    def _results(self, op: Formulas, site: Site) -> Results:
        if self._options.as_functions:
            return call(op, site)
        match site.kind:
            case Kind.TRAINING:
                return training(op, site, self._options.stats)
            case Kind.INFERENCE:
                return inference(op, site)
            case Kind.GRADIENT:
                return gradient(op, site)
            case Kind.MOMENTS:
                return moments(op, site, self._options.stats)

    def _counted(self, work: ir.Model, *, merge: bool) -> Collectives:
        """Count the collectives, after merging those that may share a message."""
        found = coalesce(work if merge else work.clone())
        return Collectives(found.before, found.after if merge else found.before, found.depth)


def _opset_of(model: ir.Model) -> int:
    return next(scopes(model)).opset


def _spell_default_domain(model: ir.Model) -> None:
    """Let the default domain have one of its two spellings, wherever it is imported."""
    for imports in (model.opset_imports, *(function.opset_imports for function in model.functions.values())):
        if "ai.onnx" in imports:
            imports.setdefault("", imports.pop("ai.onnx"))


def _is_all_reduce(node: ir.Node) -> bool:
    return node.domain == DOMAIN and node.op_type == "AllReduce"


def _kept(model: ir.Model) -> list[Kept]:
    """Return the batch normalizations that use stored statistics."""
    reason = "it normalizes with stored statistics: there is nothing to expand"
    return [
        Kept(label(node), node.op_type, RefusalId.INFERENCE_MODE, label(node), reason)
        for scope in scopes(model)
        for node in nodes_of(scope)
        if is_batch_norm(node) and not is_site(node, scope.opset)
    ]


def _forget_domain(model: ir.Model) -> None:
    """Take the import of our domain off a model that has nothing of it any more."""
    nodes = (node for scope in scopes(model) for node in nodes_of(scope))
    if not any(node.domain == DOMAIN for node in nodes):
        model.opset_imports.pop(DOMAIN, None)


def _nodes_of(model: ir.Model) -> list[bytes]:
    """Return the nodes and functions of a model in a form that can be compared."""
    nodes = [ir.serde.serialize_node(node).SerializeToString(deterministic=True) for node in model.graph]
    functions = map(ir.serde.serialize_function, model.functions.values())
    return [*nodes, *(function.SerializeToString(deterministic=True) for function in functions)]


def _replace(model: ir.Model, work: ir.Model) -> None:
    """Put what was worked out in the place of a model."""
    model.graph = work.graph
    model.ir_version = work.ir_version
    model.functions.clear()
    model.functions.update(work.functions)
