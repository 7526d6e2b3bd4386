"""Put what an expansion wrote where its site stands."""

from collections.abc import Sequence

import onnx_ir as ir

from bnpass.collectives.nodes import is_collective
from bnpass.expansion.forward import Results
from bnpass.expansion.names import Names
from bnpass.expansion.sites import Site
from bnpass.expansion.terms import Formulas


def put_in_place(site: Site, op: Formulas, results: Results, names: Names) -> int:
    """Let the results stand for the outputs of a site that are read, under their names and in their types.

    Nodes that no such result needs are dropped: what nobody reads costs nothing.

    Returns:
        The number of collectives that were written.
    """
    node, graph = site.node, site.node.graph
    if graph is None:
        raise ValueError(f"'{site.label}' is in no graph")
    new: dict[str, ir.Value] = {}
    for name, dtype in site.results.items():
        value = results[name].to(dtype).value
        if value.producer() not in op.nodes:  # an input itself
            value = op("Identity", value, name=name)
        value.dtype = dtype
        new[name] = value
    written = _needed(op.nodes, set(new.values()))
    names.settle(written, fixed=set(new.values()))
    old = [site.output(name) for name in new]
    ir.convenience.replace_nodes_and_values(graph, node, [node], written, old, list(new.values()))
    return sum(map(is_collective, written))


def _needed(nodes: Sequence[ir.Node], wanted: set[ir.Value]) -> list[ir.Node]:
    """Return the nodes that the wanted values need, in order; the others let go of what they read."""
    kept: list[ir.Node] = []
    for node in reversed(nodes):
        if any(v in wanted or v.uses() for v in node.outputs):
            kept.append(node)
        else:
            node.resize_inputs(0)
    return kept[::-1]
