"""A graph with functions and decided branches becomes one without: batch normalization then stands in one graph.

Nothing is computed on the way: constant folding would take the arithmetic that is to be recognised.
"""

from collections.abc import Sequence
from typing import Any

from bnpass.export.errors import ExportError
from bnpass.export.graphs.branches import decide
from bnpass.export.graphs.proto import CALLS, in_one_line, pruned

_FRAMES = ("Enter", "RefEnter", "Exit", "NextIteration", "LoopCond", "Switch", "Merge", "RefSwitch", "RefMerge")
_CONTROL_FLOW = ("If", "StatelessIf", "While", "StatelessWhile", "Case", "StatelessCase")
_DEPTH = 50


def flattened(graph_def: Any, keep: Sequence[str]) -> Any:  # noqa: ANN401  untyped protobufs
    """Return a graph with its calls inlined and its decided branches taken.

    Args:
        graph_def: Changed in place.
        keep: The tensors that are wanted.

    Raises:
        ExportError: A call cannot be inlined; it is named.
    """
    _clean(graph_def)
    for _ in range(_DEPTH):
        graph_def = pruned(graph_def, keep)
        calls = any(_is_call(node, graph_def) for node in graph_def.node)
        if calls:
            graph_def = _inlined(graph_def, keep)
        if not decide(graph_def) and not calls:
            return graph_def
    left = next((n for n in graph_def.node if _is_call(n, graph_def)), graph_def.node[0])
    raise ExportError(f"'{left.name}' ({left.op}) calls functions deeper than {_DEPTH} levels, or itself")


def without_order(graph_def: Any) -> None:  # noqa: ANN401
    """Take control inputs away: without variables they change no value. Loops of TensorFlow 1 keep theirs."""
    if any(node.op in _FRAMES for node in graph_def.node):
        return
    for node in graph_def.node:
        node.input[:] = [reference for reference in node.input if not reference.startswith("^")]


def _clean(graph_def: Any) -> None:  # noqa: ANN401
    """Take away what keeps functions from being inlined, and what ties nodes to machines or to nodes that may go."""
    functions = graph_def.library.function
    for function in functions:
        for name in ("api_implements", "_XlaMustCompile", "_noinline"):
            function.attr.pop(name, None)
    for nodes in (graph_def.node, *(function.node_def for function in functions)):
        for node in nodes:
            node.device = ""
            for name in ("_class", "_XlaMustCompile", "_noinline", "_xla_compile_id"):
                node.attr.pop(name, None)
            if node.op in _CONTROL_FLOW:
                node.attr["_lower_using_switch_merge"].b = False


def _is_call(node: Any, graph_def: Any) -> bool:  # noqa: ANN401
    return node.op in CALLS or any(node.op == function.signature.name for function in graph_def.library.function)


def _inlined(graph_def: Any, keep: Sequence[str]) -> Any:  # noqa: ANN401
    from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, rewriter_config_pb2
    from tensorflow.python.grappler import tf_optimizer

    config = config_pb2.ConfigProto()
    rewrites = config.graph_options.rewrite_options
    rewrites.min_graph_nodes = -1
    rewrites.optimizers.append("function")
    rewrites.function_optimization = rewriter_config_pb2.RewriterConfig.AGGRESSIVE
    meta = meta_graph_pb2.MetaGraphDef()
    meta.graph_def.CopyFrom(graph_def)
    meta.collection_def["train_op"].node_list.value.extend(keep)
    before = {node.name for node in graph_def.node if _is_call(node, graph_def)}
    with in_one_line("the functions of the graph cannot be inlined"):
        found = tf_optimizer.OptimizeGraph(config, meta)
    for node in found.node:
        if node.name in before and _is_call(node, found):
            raise ExportError(f"'{node.name}' ({node.op}) calls a function that cannot be inlined")
    _clean(found)
    return found
