"""The attributes of the nodes that are expanded: each read by its name and type, none overlooked."""

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from bnpass.errors import Refusal, RefusalId, RefusedError
from bnpass.graph.nodes import described, label
from bnpass.ops import GROUP_NAME

Default = int | float | str

_MOMENTS: dict[str, Default] = {"axis": -1, "group": "", "virtual_batch_size": 0, "collective_id": 0}
_OURS: dict[str, dict[str, Default]] = {
    "SyncBatchNormalization": {
        **_MOMENTS,
        "epsilon": 1e-3,
        "momentum": 0.99,
        "training_mode": 0,
        "running_var_correction": 0,
    },
    "SyncBatchNormalizationGrad": _MOMENTS,
    "SyncBatchMoments": _MOMENTS,
    "AllReduce": {"group": "", "reduction": "sum", "collective_id": 0},
}
_ONNX: dict[str, Default] = {"epsilon": 1e-5, "momentum": 0.9}


def defaults(node: ir.Node, opset: int) -> Mapping[str, Default]:
    """Return the attributes that a node may have, with their defaults: ours, or those of BatchNormalization by version.

    ``consumed_inputs`` of version 1 says where results may be stored, which means nothing in a graph.
    """
    if node.domain != "":
        return _OURS[node.op_type]
    if opset >= 14:
        return {**_ONNX, "training_mode": 0}
    if opset >= 9:
        return _ONNX
    if opset >= 7:
        return {**_ONNX, "spatial": 1}
    return {**_ONNX, "spatial": 1, "is_test": 0}


class Attributes:
    """The attributes of one node, with the defaults of its version in place.

    Args:
        node: The node.
        opset: Version of the default domain in force.

    Raises:
        RefusedError: BN206: one is unknown, of another type, or given by reference.
    """

    def __init__(self, node: ir.Node, opset: int) -> None:
        self._node, known = node, defaults(node, opset)
        self._values: dict[str, Default] = dict(known)
        for name, attribute in node.attributes.items():
            if node.domain == "" and opset < 6 and name == "consumed_inputs":
                continue
            if name not in known:
                raise bad_attribute(node, f"{described(node)} has an attribute '{name}' that its version does not know")
            self._values[name] = self._read(attribute, known[name])

    def integer(self, name: str, *allowed: int) -> int:
        """Return an integer, one of ``allowed`` if there are any; 0 if the version has no such attribute.

        Raises:
            RefusedError: BN206: it is another one.
        """
        value = int(self._values.get(name, 0))
        if allowed and value not in allowed:
            raise bad_attribute(self._node, f"{name} is {value}, not {' or '.join(map(str, allowed))}")
        return value

    def number(self, name: str) -> float:
        """Return a finite number, as the 32-bit attribute holds it; 0 if there is no such attribute.

        Raises:
            RefusedError: BN206: it is NaN or infinite.
        """
        value = float(np.float32(self._values.get(name, 0.0)))
        if not math.isfinite(value):
            raise bad_attribute(self._node, f"{name} is {value}")
        return value

    def text(self, name: str) -> str:
        """Return a text."""
        return str(self._values.get(name, ""))

    def group(self) -> str:
        """Return the name of a group; ``""`` for none.

        Raises:
            RefusedError: BN208: it is no name.
        """
        name = self.text("group")
        if name and not GROUP_NAME.fullmatch(name):
            raise refused(RefusalId.BAD_GROUP, self._node, f"'{name}' is not the name of a group")
        return name

    def _read(self, attribute: ir.Attr, default: Default) -> Default:
        kind = {int: ir.AttributeType.INT, float: ir.AttributeType.FLOAT, str: ir.AttributeType.STRING}[type(default)]
        if attribute.is_ref():
            raise bad_attribute(self._node, f"its attribute '{attribute.name}' is one of the function around it")
        if attribute.type != kind or (kind == ir.AttributeType.STRING and not isinstance(attribute.value, str)):
            raise bad_attribute(self._node, f"its attribute '{attribute.name}' is of type {attribute.type.name}")
        value: Default = attribute.value
        return value


def write_out(node: ir.Node, group: str) -> None:
    """Write every attribute on one of our nodes, and its group: kernels do not see the defaults."""
    for name, default in _OURS[node.op_type].items():
        if name not in node.attributes:
            node.attributes.add(ir.convenience.convert_attribute(name, default))
    node.attributes.add(ir.AttrString("group", group))


def refused(why: RefusalId, node: ir.Node, reason: str) -> RefusedError:
    """Return the error for a node that is in the way."""
    return RefusedError(Refusal(why, label(node), reason))


def bad_attribute(node: ir.Node, reason: str) -> RefusedError:
    """Return the error for a node that cannot be read."""
    return refused(RefusalId.BAD_ATTRIBUTE, node, reason)
