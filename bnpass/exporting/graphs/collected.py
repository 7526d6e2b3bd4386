"""What a graph says of its variables beside its nodes: in collections, or in the objects of TensorFlow 2.

UPDATE_OPS              what a step of training runs besides its outputs
REGULARIZATION_LOSSES   what it adds to its loss
TRAINABLE_VARIABLES     what it changes by gradients
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bnpass.exporting.graphs.proto import attribute, is_control, node_of, tensor_of

_UPDATES, _LOSSES, _TRAINABLE = "update_ops", "regularization_losses", "trainable_variables"


@dataclass(frozen=True)
class Collected:
    """What a graph says.

    Attributes:
        updates: Nodes that are run in a step.
        losses: Tensors.
        trainable: Names of variables; None if it is not said which.
        elsewhere: Updates that belong to a graph inside of this one, where nothing can run them.
    """

    updates: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    trainable: frozenset[str] | None = None
    elsewhere: tuple[str, ...] = ()


def of_graph(graph: Any) -> Collected:  # noqa: ANN401  a tf.Graph
    """Read the collections of a live graph."""
    updates = [getattr(item, "op", item) for item in graph.get_collection(_UPDATES)]
    return Collected(
        _once(op.name for op in updates if op.graph is graph),
        _once(loss.name for loss in graph.get_collection(_LOSSES)),
        frozenset(variable.op.name for variable in graph.get_collection(_TRAINABLE)),
        _once(op.name for op in updates if op.graph is not graph),
    )


def of_meta_graph(meta: Any) -> Collected:  # noqa: ANN401  untyped protobufs
    """Read the collections of a SavedModel, or which of its variables are trainable from its objects."""
    held = {name: meta.collection_def[name] for name in (_UPDATES, _LOSSES, _TRAINABLE) if name in meta.collection_def}
    names = {name: list(one.node_list.value) for name, one in held.items()}
    present = {node.name for node in meta.graph_def.node}
    updates = _once(node_of(name) for name in names.get(_UPDATES, ()))
    return Collected(
        tuple(name for name in updates if name in present),
        _once(tensor_of(name) for name in names.get(_LOSSES, ()) if node_of(name) in present),
        _variables(held[_TRAINABLE]) if _TRAINABLE in held else _of_objects(meta),
        tuple(name for name in updates if name not in present),
    )


def _once(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(name) for name in names))


def _variables(collection: Any) -> frozenset[str]:  # noqa: ANN401
    from tensorflow.core.framework import variable_pb2

    described = map(variable_pb2.VariableDef.FromString, collection.bytes_list.value)
    return frozenset(node_of(one.variable_name) for one in described)


def _of_objects(meta: Any) -> frozenset[str] | None:  # noqa: ANN401
    """Read the objects of TensorFlow 2: each function lists the variables that its last inputs are."""
    objects, functions = meta.object_graph_def.nodes, meta.object_graph_def.concrete_functions
    if not any(one.WhichOneof("kind") == "variable" for one in objects):
        return None
    found = set()
    for node in meta.graph_def.node:
        name = attribute(node, "f").func.name
        bound = list(functions[name].bound_inputs) if name in functions else []
        given = [reference for reference in node.input if not is_control(reference)]
        for number, reference in zip(reversed(bound), reversed(given), strict=False):
            if 0 <= number < len(objects) and objects[number].variable.trainable:
                found.add(node_of(reference))
    return frozenset(found)
