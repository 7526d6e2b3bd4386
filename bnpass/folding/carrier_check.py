"""Local check of one carrier: the op as it stands against the op as it will be, in float64.

The very node is run on random numbers by ONNX's reference implementation, before and after, with the affines at its
inputs and outputs applied by plain arithmetic. Axes of which nothing is said are made short: what holds for three
positions holds for all, since no rule looks at how many there are.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from bnpass.errors import Refusal, RefusalId, VerificationError
from bnpass.folding.path_check import run_layout
from bnpass.folding.region import Carried
from bnpass.folding.rules import LAYOUT
from bnpass.graph.constants import Constant, find
from bnpass.graph.nodes import Scope, described, label
from bnpass.graph.shapes import Dims, Shapes
from bnpass.semantics.affine import Affine, Array

MAX_ELEMENTS = 1 << 22
"""Largest tensor to run an op on."""

TOLERANCE = 2.0**-40
"""Permitted deviation, relative to the largest number of either side."""

_INTERPOLATES = {"Resize", "Upsample"}
_INTERPOLATED = 2.0**-16
"""The same where weights are float32 in the reference implementation: they add up to 1 within its rounding."""

_COUNTS = {
    *("Reshape", "Flatten", "Expand", "Slice", "Gather", "Split", "Pad", "ReduceSum"),
    *("Resize", "Upsample", "DepthToSpace", "SpaceToDepth"),
}
"""Ops whose arguments name lengths: they are run on the lengths that the values have."""
_POOLS = {"MaxPool", "AveragePool"}
_SHORT = 3

Sample = Mapping[int, Sequence[int]]
"""Lengths to try, of each input that is computed at run time."""


def check_carrier(carried: Carried, scope: Scope, shapes: Shapes, operands: Mapping[int, Affine]) -> Refusal | None:
    """Run a carrier before and after.

    Args:
        carried: The carrier with the affines at its inputs and outputs.
        scope: Where it stands.
        shapes: What is known about shapes.
        operands: Affines that its constant inputs take in.

    Returns:
        None if both agree; a Refusal if it cannot be run.

    Raises:
        VerificationError: They differ, which is a bug in bnpass.
    """
    constants = _constants(carried.node, scope)
    for sample in _samples(carried, constants, scope, shapes):
        found = _tried(carried, constants, operands, sample, scope, shapes)
        if found is not None:
            if not found:
                raise VerificationError(
                    f"local check failed at {described(carried.node)}: an affine does not pass it as was thought; "
                    "nothing was written, please report this"
                )
            return None
    told = f"{described(carried.node)} cannot be tried on numbers: its shapes are not known or too large"
    return Refusal(RefusalId.AXIS_NOT_PROVABLE, label(carried.node), told)


def _tried(
    carried: Carried,
    constants: Mapping[int, Array],
    operands: Mapping[int, Affine],
    sample: Sample,
    scope: Scope,
    shapes: Shapes,
) -> bool | None:
    """Compare before and after on one sample; None if the op does not run on it."""
    rng = np.random.default_rng(0)
    before, after = dict(constants), dict(constants)
    for index, affine in operands.items():
        after[index] = _applied(affine, constants[index])
    try:
        for index, shape in sample.items():
            drawn = rng.standard_normal(shape)
            owed, wanted = carried.owed.get(index), carried.wanted.get(index)
            before[index] = drawn if owed is None else _applied(owed, drawn)
            after[index] = drawn if wanted is None else _applied(wanted, drawn)
        old = _run(carried.node, before, scope, shapes)
        new = _rewritten(carried, after, scope, shapes)
        reach = max(float(np.abs(a).max(initial=0)) for a in (*before.values(), *after.values()) if a.dtype.kind == "f")
        return all(_same(carried, i, a, b, reach) for i, (a, b) in enumerate(zip(old, new, strict=True)))
    except (ValueError, LookupError, ArithmeticError, RuntimeError, TypeError, MemoryError):
        return None  # a length that does not fit it, or an argument that is none


def _same(carried: Carried, index: int, old: Array, new: Array, reach: float) -> bool:
    if carried.node.outputs[index].name == "":
        return True
    if index in carried.owes:
        new = _applied(carried.owes[index], new)
    if index in carried.becomes:
        old = _applied(carried.becomes[index], old)
    if old.shape != new.shape:
        return False
    reach = max(reach, float(np.abs(old).max(initial=0)), float(np.abs(new).max(initial=0)))
    tolerance = _INTERPOLATED if carried.node.op_type in _INTERPOLATES else TOLERANCE
    return bool((np.abs(old - new) <= tolerance * reach).all())


def _applied(affine: Affine, x: Array) -> Array:
    result = x * affine.scale.astype(np.float64) + affine.shift.astype(np.float64)
    return np.asarray(result)


def _rewritten(carried: Carried, given: Mapping[int, Array], scope: Scope, shapes: Shapes) -> Sequence[Array]:
    """Run the new form of a carrier."""
    rewrite = carried.rewrite
    if rewrite is None:
        return _run(carried.node, given, scope, shapes)
    if rewrite.ops is None:
        return _run(carried.node, {**given, **rewrite.operands}, scope, shapes)
    x = given[0]
    for op_type, constant in rewrite.ops:
        other = np.zeros(()) if constant is None else constant.astype(np.float64)
        x = np.minimum(x, other) if op_type == "Min" else np.maximum(x, other)
    return [x]


def _constants(node: ir.Node, scope: Scope) -> dict[int, Array]:
    found: dict[int, Array] = {}
    for index, value in enumerate(node.inputs):
        constant = find(value, scope) if value is not None else None
        if isinstance(constant, Constant):
            array = constant.argument()
            found[index] = array if array.dtype.kind == "i" else array.astype(np.float64)
    return found


def _run(node: ir.Node, given: Mapping[int, Array], scope: Scope, shapes: Shapes) -> Sequence[Array]:
    """Run one node by ONNX's reference implementation; one that only moves numbers, whatever their type."""
    if node.op_type in LAYOUT:
        return [run_layout(node, given[0], scope, shapes)]
    if node.op_type == "GlobalMaxPool":  # the reference implementation knows only images
        return [given[0].max(axis=tuple(range(2, given[0].ndim)), keepdims=True)]
    from onnx.reference import ReferenceEvaluator  # most models need no carrier, and importing it takes a while

    names = [f"i{i}" if i in given else "" for i in range(max([*given, len(node.inputs) - 1]) + 1)]
    proto = ir.serde.serialize_node(node)
    del proto.input[:], proto.output[:]
    proto.input.extend(names)
    proto.output.extend(f"o{i}" if v.name else "" for i, v in enumerate(node.outputs))
    if node.op_type == "MaxPool":  # with padding, the reference implementation makes up zeros at the end
        kept = [a for a in proto.attribute if a.name != "ceil_mode"]
        del proto.attribute[:]
        proto.attribute.extend(kept)
    kinds = {name: onnx.helper.np_dtype_to_tensor_dtype(given[i].dtype) for i, name in enumerate(names) if name}
    graph = onnx.helper.make_graph(
        [proto], "carrier",
        [onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()],
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, None) for name in proto.output if name],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", scope.opset)])
    feeds = {name: given[i] for i, name in enumerate(names) if name}
    return [np.asarray(array) for array in ReferenceEvaluator(model).run(None, feeds)]


def _samples(carried: Carried, constants: Mapping[int, Array], scope: Scope, shapes: Shapes) -> Iterator[Sample]:
    """Yield lengths to try."""
    node = carried.node
    data = [i for i, v in enumerate(node.inputs) if v is not None and i not in constants]
    exact = node.op_type in _COUNTS or any(a.size > 1 and a.dtype.kind == "f" for a in constants.values())
    known = {i: _dims(node.inputs[i], scope, shapes, exact=exact) for i in data}
    affines = [*carried.owed.values(), *carried.wanted.values(), *carried.owes.values(), *carried.becomes.values()]
    ranks = [a.scale.ndim or a.shift.ndim for a in affines if not a.is_uniform]
    for unknown in (2, 1) if exact else (_SHORT, 1):
        for rank in ranks[:1] or (4, 3, 2):
            found = {
                i: [
                    _length(carried, i, axis, dim, unknown, exact=exact)
                    for axis, dim in enumerate(dims or [None] * rank)
                ]
                for i, dims in known.items()
            }
            if all(math.prod(shape) <= MAX_ELEMENTS for shape in found.values()):
                yield found
            if None not in known.values():
                break


def _dims(value: ir.Value | None, scope: Scope, shapes: Shapes, *, exact: bool) -> Dims | None:
    if value is None:
        return None
    return shapes.dims(value, scope) if exact else shapes.near(value, scope)


def _length(carried: Carried, index: int, axis: int, dim: object, unknown: int, *, exact: bool) -> int:
    """Return the length of an axis: that of an affine over it, the true one where it counts, else a short one."""
    for affine in (carried.owed.get(index), carried.wanted.get(index)):
        if affine is not None and axis in affine.axes:
            return int(np.broadcast_shapes(affine.scale.shape, affine.shift.shape)[axis])
    if isinstance(dim, int) and (exact or dim == 1):
        return dim
    varied = _varied(carried, axis)
    if varied is not None and isinstance(dim, int):
        return dim
    if varied is not None and dim is None:
        return varied
    if carried.node.op_type in _POOLS and axis >= 2:
        return _window(carried.node, axis - 2)
    return unknown


def _varied(carried: Carried, axis: int) -> int | None:
    """Return the length that an affine of the output has on an axis."""
    for affine in (*carried.owes.values(), *carried.becomes.values()):
        if axis in affine.axes:
            return int(np.broadcast_shapes(affine.scale.shape, affine.shift.shape)[axis])
    return None


def _window(node: ir.Node, axis: int) -> int:
    """Return a length that gives a pool two positions."""
    kernel = node.attributes.get_ints("kernel_shape", ())
    strides, dilations = (node.attributes.get_ints(name, ()) for name in ("strides", "dilations"))
    size = kernel[axis] if axis < len(kernel) else 1
    stride = strides[axis] if axis < len(strides) else 1
    dilation = dilations[axis] if axis < len(dilations) else 1
    return dilation * (size - 1) + 1 + stride
