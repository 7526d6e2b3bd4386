"""The call of a function becomes the nodes of its body.

TensorFlow's own optimizer aborts the process over names that it has made itself, so it is not asked.

    call/argument    Identity of each input
    call/before      comes after all of these and after what the call comes after; all of the body comes after it
    call/...         the body
    call             IdentityN of the results, so that what reads them need not change
"""

from collections.abc import Iterator
from typing import Any

from bnpass.exporting.errors import ExportError
from bnpass.exporting.graphs.proto import attribute, is_control, node_of

CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_LIMIT = 2_000_000
"""Nodes; functions that call each other could make any number."""


def inline_calls(graph_def: Any) -> bool:  # noqa: ANN401  untyped protobufs
    """Inline all calls of a graph, but not those in the functions that it then calls; return whether there were any.

    Args:
        graph_def: Changed in place.

    Raises:
        ExportError: A function is not there or its body does not fit it; or there is no end of them.
    """
    functions = {function.signature.name: function for function in graph_def.library.function}
    names = {node.name for node in graph_def.node}
    found = False
    for node in list(graph_def.node):
        if node.op not in CALLS and node.op not in functions:
            continue
        function = functions.get(attribute(node, "f").func.name if node.op in CALLS else node.op)
        if function is None:
            raise ExportError(f"'{node.name}' ({node.op}) calls a function that is not there")
        found = True
        graph_def.node.extend(_Call(node, function, functions, names).nodes())
        if len(graph_def.node) > _LIMIT:
            raise ExportError(f"'{node.name}' ({node.op}) calls functions that make more than {_LIMIT} nodes")
    return found


class _Call:
    """One call.

    Args:
        node: It becomes the IdentityN.
        function: What it calls.
        functions: By name, all of them.
        names: Names of nodes that are taken.
    """

    def __init__(self, node: Any, function: Any, functions: dict[str, Any], names: set[str]) -> None:  # noqa: ANN401
        self._node = node
        self._function = function
        self._functions = functions
        self._taken = names
        attributes = attribute(node, "f").func.attr if node.op in CALLS else node.attr
        self._attributes = {name: _copy(value) for name, value in attributes.items()}
        signature = function.signature
        self._arguments = {arg.name: self._name(arg.name) for arg in signature.input_arg}
        self._body = {inner.name: self._name(inner.name) for inner in function.node_def}
        self._outputs = {inner.name: self._indices(inner) for inner in function.node_def}

    def nodes(self) -> Iterator[Any]:
        """Return the nodes of the body, and change the call."""
        signature, node = self._function.signature, self._node
        given = [reference for reference in node.input if not is_control(reference)]
        if len(given) != len(signature.input_arg):
            raise self._misfit()
        before = type(node)(name=self._name("before"), op="NoOp")
        before.input.extend(reference for reference in node.input if is_control(reference))
        for arg, source in zip(signature.input_arg, given, strict=True):
            identity = type(node)(name=self._arguments[arg.name], op="Identity", input=[source])
            identity.attr["T"].type = self._type(arg)
            before.input.append(f"^{identity.name}")
            yield identity
        yield before
        for inner in self._function.node_def:
            yield self._inner(inner, before.name)
        self._become_identity()

    def _inner(self, inner: Any, before: str) -> Any:  # noqa: ANN401
        """Return a node of the body as it stands in the graph."""
        made = _copy(inner)
        made.name = self._body[inner.name]
        made.input[:] = [*(self._reference(reference) for reference in inner.input), f"^{before}"]
        for name, value in inner.attr.items():
            if value.placeholder:
                if value.placeholder not in self._attributes:
                    raise self._misfit()
                made.attr[name].CopyFrom(self._attributes[value.placeholder])
        return made

    def _become_identity(self) -> None:
        signature, node = self._function.signature, self._node
        if any(arg.name not in self._function.ret for arg in signature.output_arg):
            raise self._misfit()
        results = [self._reference(self._function.ret[arg.name]) for arg in signature.output_arg]
        effects = [f"^{self._body[name]}" for name in self._function.control_ret.values() if name in self._body]
        types = [self._type(arg) for arg in signature.output_arg]
        node.op = "IdentityN" if len(results) > 1 else "Identity" if results else "NoOp"
        node.input[:] = [*results, *effects]
        node.attr.clear()
        if len(results) == 1:
            node.attr["T"].type = types[0]
        elif results:
            node.attr["T"].list.type.extend(types)

    def _reference(self, reference: str) -> str:
        """Return an input of the body as one of the graph: ``node:output:index`` becomes ``node:number``."""
        inner, _, rest = reference.lstrip("^").partition(":")
        names = self._body | self._arguments
        if inner not in names:
            raise self._misfit()
        if is_control(reference):
            return f"^{names[inner]}"
        if inner in self._arguments:
            return f"{names[inner]}:0"
        output, _, index = rest.partition(":")
        first = self._outputs[inner].get(output)
        if first is None or not (index or "0").isdecimal():
            raise self._misfit()
        return f"{names[inner]}:{first + int(index or 0)}"

    def _indices(self, inner: Any) -> dict[str, int]:  # noqa: ANN401
        """Return at which number each output of an op begins."""
        from tensorflow.python.framework import op_def_registry

        called = self._functions.get(inner.op)
        op = called.signature if called is not None else op_def_registry.get(inner.op)
        if op is None:
            raise ExportError(f"'{node_of(self._node.name)}/{inner.name}': TensorFlow does not know the op {inner.op}")
        first, found = 0, {}
        for output in op.output_arg:
            found[output.name] = first
            if output.type_list_attr:
                first += len(self._value(inner, output.type_list_attr).list.type)
            else:
                first += self._value(inner, output.number_attr).i if output.number_attr else 1
        return found

    def _value(self, inner: Any, name: str) -> Any:  # noqa: ANN401
        value = attribute(inner, name)
        return self._attributes.get(value.placeholder, value) if value.placeholder else value

    def _type(self, arg: Any) -> int:  # noqa: ANN401
        """Return the type of an argument or a result of the function."""
        if arg.number_attr or arg.type_list_attr:
            raise self._misfit()
        value = self._attributes.get(arg.type_attr) if arg.type_attr else None
        found = int(value.type if value is not None else arg.type)
        if not found:
            raise self._misfit()
        return found

    def _name(self, inner: str) -> str:
        """Return a name of its own."""
        name, number = f"{self._node.name}/{inner}", 1
        while name in self._taken:
            name, number = f"{self._node.name}/{inner}_{number}", number + 1
        self._taken.add(name)
        return name

    def _misfit(self) -> ExportError:
        called = self._function.signature.name
        return ExportError(f"'{self._node.name}' ({self._node.op}) calls '{called}', which does not fit it")


def _copy(message: Any) -> Any:  # noqa: ANN401
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
