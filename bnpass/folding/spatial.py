"""The shift before a padded Conv, as a constant map behind it.

    W*(s·x + t) + b  =  (W·s)*x + b + W*t          t fills the image, and zeros stand around it

W*t differs between positions only where taps read padding. With V[o, k] = Σ_c W[o, c, k]·t[c], the sum over the taps k
that read data is an outer product of 0/1 masks, one for each axis, so the map costs no convolution.
"""

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bnpass.errors import Refusal, RefusalId, VerificationError
from bnpass.folding.absorb import Absorption
from bnpass.folding.linear import refuse
from bnpass.folding.window import Axis, window_of
from bnpass.graph.nodes import Scope, described, operand
from bnpass.graph.shapes import Shapes
from bnpass.semantics.affine import Array, limits_of, wide

MAP_BYTES = 1 << 20
"""Largest map: it is read with every inference, and kept in the file."""

MAX_IMAGE = 1 << 24
"""Most numbers, with padding, of the image that the local check runs: a file may claim any."""

_TOLERANCE = 2.0**-40
_CHECKED = 4
"""Output channels of the local check."""


def spatial_bias(absorption: Absorption, shift: Array, scope: Scope, shapes: Shapes) -> Array | Refusal:
    """Return what a shift of a Conv's activation adds to its result.

    Args:
        absorption: The Conv and what it has taken in so far.
        shift: One number, or one for each input channel.
        scope: Where it stands.
        shapes: What is known about shapes.

    Returns:
        The map, wide: ``[output channels, …]``; or a Refusal, if lengths are not known or it would be too large.

    Raises:
        VerificationError: ONNX's reference implementation finds another map, which is a bug in bnpass.
    """
    node, linear = absorption.linear.node, absorption.linear
    image = _image(node, scope, shapes)
    window = window_of(node, linear.weight.shape[2:], image) if image is not None else None
    if image is None or window is None:
        return refuse(node, "pads with zeros, and the size of its image is not known", RefusalId.PADDING_BLOCKS_SHIFT)
    positions = [axis.outputs(length) for axis, length in zip(window, image, strict=True)]
    size = linear.layout.out_channels * math.prod(positions)
    if min(positions) < 1:
        return refuse(node, f"has a kernel that does not fit into its image {image}")
    if size * linear.weight.dtype.numpy().itemsize > MAP_BYTES:
        return refuse(node, f"pads with zeros, and a map of {size} numbers is too large",
                      RefusalId.PADDING_BLOCKS_SHIFT)  # fmt: skip
    padded = math.prod(length + sum(axis.pads) for axis, length in zip(window, image, strict=True))
    if padded * linear.weight.shape[1] > MAX_IMAGE:
        return refuse(node, f"pads with zeros, and its image {image} is too large to be tried on numbers",
                      RefusalId.PADDING_BLOCKS_SHIFT)  # fmt: skip
    with linear.weight.reading() as stored:
        weight = stored.astype(wide(stored.dtype))
    before = shift * absorption.into.scale  # what W itself sees of it
    groups, per_out, per_in, _ = linear.layout.view
    t = np.broadcast_to(before, groups * per_in).reshape(groups, 1, per_in, 1)
    taps = (weight.reshape(linear.layout.view) * t).sum(axis=2).reshape(groups * per_out, *weight.shape[2:])
    found = taps
    for axis, length in zip(window, image, strict=True):  # taps that come first become the last positions
        found = np.tensordot(found, _mask(axis, length), axes=([1], [1]))
    _check(node, weight, before, found, image)
    result = np.asarray(found * absorption.out.scale.reshape(-1, *(1,) * len(window)))
    if not (np.abs(result) <= limits_of(linear.weight.dtype.numpy()).max / 2).all():
        return refuse(node, "pads with zeros, and a map behind it would overflow", RefusalId.WOULD_OVERFLOW)
    return result


def _image(node: ir.Node, scope: Scope, shapes: Shapes) -> list[int] | None:
    """Return the lengths of the image; None if they are not known."""
    data = operand(node, 0)
    dims = shapes.dims(data, scope) if data is not None else None
    known = [d for d in (dims or ())[2:] if isinstance(d, int)]
    return known if dims is not None and len(known) == len(dims) - 2 and known else None


def _mask(axis: Axis, length: int) -> Array:
    """Return which taps read data at each position: [positions, taps]."""
    place = np.arange(axis.outputs(length))[:, None] * axis.stride + axis.first + np.arange(axis.taps) * axis.step
    return ((place >= 0) & (place < length)).astype(np.float64)


def _check(node: ir.Node, weight: Array, shift: Array, found: Array, image: Sequence[int]) -> None:
    """Let ONNX's reference implementation convolve an image of the shift, for a few output channels."""
    import onnx
    from onnx.reference import ReferenceEvaluator  # most models need no map, and importing it takes a while

    group = node.attributes.get_int("group", 1)
    per_out = weight.shape[0] // group
    rows = np.unique(np.linspace(0, weight.shape[0] - 1, _CHECKED).astype(int))
    proto = ir.serde.serialize_node(node)
    del proto.input[:], proto.output[:]
    proto.input.extend(["x", "w"])
    proto.output.append("y")
    kept = [a for a in proto.attribute if a.name != "group"]
    del proto.attribute[:]
    proto.attribute.extend(kept)
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [proto], "map", [info(name, onnx.TensorProto.DOUBLE, None) for name in ("x", "w")],
        [info("y", onnx.TensorProto.DOUBLE, None)],
    )  # fmt: skip
    run = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 11)])).run
    t = np.broadcast_to(shift, group * weight.shape[1]).astype(np.float64)
    for row in rows:
        start = row // per_out * weight.shape[1]
        channels = t[start : start + weight.shape[1]].reshape(1, -1, *(1,) * len(image))
        x = np.ascontiguousarray(np.broadcast_to(channels, (1, weight.shape[1], *image)))
        (made,) = run(None, {"x": x, "w": weight[row : row + 1].astype(np.float64)})
        wanted = np.asarray(made)
        reach = float(np.abs(weight[row]).sum() * np.abs(t).max(initial=0))
        if wanted.shape[2:] != found.shape[1:] or not (np.abs(wanted[0, 0] - found[row]) <= _TOLERANCE * reach).all():
            raise VerificationError(
                f"local check failed at {described(node)}: the map of its padding is another; nothing was written, "
                "please report this"
            )
