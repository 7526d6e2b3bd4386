"""Bodies of loops and branches, taken out of a frozen graph as graphs and put back as functions."""

from collections.abc import Sequence
from typing import Any


def as_graph(function: Any, library: Any) -> tuple[Any, list[str]]:  # noqa: ANN401  a FunctionDef, its library
    """Return a function as a GraphDef whose arguments are Placeholders, and the tensors that it returns."""
    from tensorflow.python.framework.function_def_to_graph import function_def_to_graph_def

    given = function.attr["_input_shapes"].list.shape if "_input_shapes" in function.attr else []
    shapes = [_shape(function, i, given) for i in range(len(function.signature.input_arg))]
    graph_def, flat = function_def_to_graph_def(function, shapes)
    graph_def.library.CopyFrom(library)
    return graph_def, [flat[function.ret[arg.name]] for arg in function.signature.output_arg]


def as_function(graph_def: Any, returned: Sequence[str], like: Any) -> Any:  # noqa: ANN401
    """Return a graph as a FunctionDef with the names of another one.

    Args:
        graph_def: With a Placeholder for each argument, and a library of what it calls.
        returned: The tensors that it returns.
        like: The function whose place it takes.
    """
    import tensorflow as tf
    from tensorflow.python.framework.graph_to_function_def import graph_to_function_def

    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    inputs = [graph.get_tensor_by_name(f"{arg.name}:0") for arg in like.signature.input_arg]
    outputs = [graph.get_tensor_by_name(name) for name in returned]
    names = [arg.name for arg in like.signature.output_arg]
    function = graph_to_function_def(graph, graph.get_operations(), inputs, outputs, names)
    function.signature.name = like.signature.name
    for key, value in like.attr.items():
        function.attr[key].CopyFrom(value)
    for index, attributes in like.arg_attr.items():
        function.arg_attr[index].CopyFrom(attributes)
    return function


def callees(function: Any) -> set[str]:  # noqa: ANN401
    """Return the names of the functions that a function calls."""
    values = [value for node in function.node_def for value in node.attr.values()]
    called = [value.func.name for value in values if value.HasField("func")]
    return {*called, *(f.name for value in values for f in value.list.func)}


def _shape(function: Any, index: int, given: Sequence[Any]) -> Any:  # noqa: ANN401
    """Return the shape of an argument, as far as it is known."""
    import tensorflow as tf

    if given:
        return tf.TensorShape(given[index])
    kept = function.arg_attr[index].attr if index in function.arg_attr else {}
    return tf.TensorShape(kept["_output_shapes"].list.shape[0]) if "_output_shapes" in kept else None
