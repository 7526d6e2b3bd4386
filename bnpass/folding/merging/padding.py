"""A Pad with zeros before a Conv becomes padding of the Conv.

    Conv(Pad(x; p, 0); q)  =  Conv(x; p + q)        positions behind batch and channels alone, none of them cut

An average pool that counts padding would be another such reader; none was seen.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from bnpass.errors import VerificationError
from bnpass.folding.window import unfit_attribute
from bnpass.graph.constants import Constant, find
from bnpass.graph.nodes import Scope, blocked_use, bypass, described, is_standard, operand
from bnpass.semantics.affine import Array

_VALUE, _AXES = 2, 3
"""Input slots of Pad."""

MAX_IMAGE = 1 << 14
"""Positions of the image that the check runs: a file may claim any padding and dilation."""


def take_padding(conv: ir.Node, scope: Scope, is_selected: Callable[[ir.Node], bool]) -> ir.Node | None:
    """Let a Conv do the padding of the Pad before it.

    Args:
        conv: The Conv, changed in place.
        scope: Where it stands.
        is_selected: Whether a node may be touched.

    Returns:
        The Pad, which is gone; None, and nothing was changed, if there is none that it can take.

    Raises:
        VerificationError: Both would not compute the same, which is a bug in bnpass.
    """
    pad = conv.inputs[0].producer() if conv.inputs[0] is not None else None
    if pad is None or pad.graph is not conv.graph or not is_standard(pad, "Pad") or not is_selected(pad):
        return None
    source, ends, own, rank = pad.inputs[0], _zeros(pad, scope), _own_pads(conv), len(_kernel(conv))
    if source is None or ends is None or own is None or len(ends) != 2 * (rank + 2):
        return None
    begins, behind = ends[: rank + 2], ends[rank + 2 :]
    if any((*begins[:2], *behind[:2])) or min(ends) < 0 or blocked_use(pad.outputs[0]) is not None:
        return None
    pads = tuple(a + b for a, b in zip((*begins[2:], *behind[2:]), own, strict=True))
    image = _image(conv)
    if math.prod(n + pads[a] + pads[a + rank] for a, n in enumerate(image)) > MAX_IMAGE:
        return None
    _check(conv, image, ends, own, pads)
    conv.attributes.pop("auto_pad", None)
    conv.attributes["pads"] = ir.AttrInt64s("pads", pads)
    bypass(pad, source)
    return pad


def _own_pads(conv: ir.Node) -> tuple[int, ...] | None:
    """Return how a Conv pads; None if that is not said outright, or if its attributes contradict each other."""
    kernel = _kernel(conv)
    auto_pad = conv.attributes.get_string("auto_pad", "NOTSET")
    if not kernel or unfit_attribute(conv, kernel) or auto_pad not in ("NOTSET", "VALID"):
        return None
    none = (0,) * 2 * len(kernel)
    return none if auto_pad == "VALID" else tuple(conv.attributes.get_ints("pads", none))


def _image(conv: ir.Node) -> tuple[int, ...]:
    """Return lengths of a small image in which a Conv has a few positions."""
    kernel = _kernel(conv)
    dilations = conv.attributes.get_ints("dilations", (1,) * len(kernel))
    return tuple(d * (k - 1) + 3 for k, d in zip(kernel, dilations, strict=True))


def _kernel(conv: ir.Node) -> tuple[int, ...]:
    """Return the kernel of a Conv, by its weight; empty if that does not say it."""
    weight = operand(conv, 1)
    dims = tuple(weight.shape)[2:] if weight is not None and weight.shape is not None else ()
    return tuple(d for d in dims if isinstance(d, int)) if all(isinstance(d, int) for d in dims) else ()


def _zeros(pad: ir.Node, scope: Scope) -> tuple[int, ...] | None:
    """Return begins and ends of a Pad with zeros; None if it is another, or not known."""
    if pad.attributes.get_string("mode", "constant") != "constant" or operand(pad, _AXES) is not None:
        return None
    value = operand(pad, _VALUE)
    if "value" in pad.attributes and pad.attributes.get_float("value", 0.0) != 0:
        return None
    if value is not None:
        found = find(value, scope)
        if not isinstance(found, Constant) or found.argument().any():
            return None
    if "pads" in pad.attributes:
        return tuple(pad.attributes.get_ints("pads", ()))
    ends = operand(pad, 1)
    known = find(ends, scope) if ends is not None else None
    return known.integers() if isinstance(known, Constant) else None


def _check(conv: ir.Node, image: Sequence[int], ends: Sequence[int], own: Sequence[int], pads: Sequence[int]) -> None:
    """Run both on an image of one channel, with weights of the same kernel."""
    from onnx.reference import ReferenceEvaluator  # most models have no such Pad, and importing it takes a while

    kept = [a for a in ir.serde.serialize_node(conv).attribute if a.name not in ("group", "pads", "auto_pad")]
    before, after = (onnx.NodeProto(op_type="Conv", input=[data, "w"], output=["y"]) for data in ("p", "x"))
    for node, values in ((before, own), (after, pads)):
        node.attribute.extend([*kept, onnx.helper.make_attribute("pads", list(values))])
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((1, 1, *image)), "w": rng.standard_normal((1, 1, *_kernel(conv)))}
    padding = onnx.helper.make_node("Pad", ["x"], ["p"], pads=[int(n) for n in ends])
    old, new = (_run(ReferenceEvaluator, nodes, feeds) for nodes in ([padding, before], [after]))
    if old.shape != new.shape or not np.allclose(old, new, rtol=1e-12, atol=1e-12):
        raise VerificationError(
            f"local check failed at {described(conv)}: it would not pad as the Pad before it; nothing was written, "
            "please report this"
        )


def _run(evaluator: Callable[..., object], nodes: Sequence[onnx.NodeProto], feeds: dict[str, Array]) -> Array:
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "padding", [info(name, onnx.TensorProto.DOUBLE, a.shape) for name, a in feeds.items()],
        [info("y", onnx.TensorProto.DOUBLE, None)],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 10)], ir_version=8)
    runner: object = evaluator(model)
    (y,) = runner.run(None, feeds)  # type: ignore[attr-defined]
    return np.asarray(y)
