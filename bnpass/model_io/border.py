"""What comes in as a ModelProto goes out as one."""

import onnx
import onnx_ir as ir

from bnpass.errors import SaveError
from bnpass.model_io.layout import Layout
from bnpass.model_io.load import PROTOBUF_MAX, ModelLike
from bnpass.model_io.structure import tensors_of
from bnpass.model_io.wire import Tokens


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """Serialize a model with all its tensors inline.

    Args:
        model: The model; it is not changed.

    Returns:
        A new message.

    Raises:
        SaveError: It would be larger than protobuf allows.
        ModelError: The model cannot be serialized.
    """
    tokens = Tokens()
    proto, payloads = Layout(model).skeleton("", tokens)
    total = proto.ByteSize() + sum(tensor.nbytes for tensor in payloads)
    if total > PROTOBUF_MAX:
        raise SaveError(f"the model has {total} bytes, a ModelProto holds up to 2 GiB; save it to a file instead")
    for tensor in tensors_of(proto, "the model"):
        index = tokens.index(tensor.raw_data) if tensor.HasField("raw_data") else None
        if index is not None:
            tensor.raw_data = payloads[index].tobytes()
    return proto


def to_type_of(original: ModelLike, model: ir.Model) -> onnx.ModelProto | ir.Model:
    """Return ``model`` in the type in which the caller gave ``original``.

    Args:
        original: What `load` was called with.
        model: The result.

    Returns:
        A ModelProto with inline tensors for a ModelProto; otherwise, for paths too, the model itself.
    """
    return to_proto(model) if isinstance(original, onnx.ModelProto) else model
