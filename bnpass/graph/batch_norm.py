"""Which nodes are batch normalizations, and in which mode: read by version, never gated by a list of opset numbers."""

import onnx_ir as ir


def is_batch_norm(node: ir.Node) -> bool:
    """Whether the node is a batch normalization, of ONNX or of bnpass."""
    return (node.domain, node.op_type) in (("", "BatchNormalization"), ("bnpass", "SyncBatchNormalization"))


def in_training(node: ir.Node, opset: int) -> bool:
    """Whether a batch normalization uses the statistics of the batch it sees.

    Versions 1 and 6 say so by ``is_test`` (0, training, if left out), 7 to 13 by having more than one
    output, 14 and later by ``training_mode`` (0, inference, if left out).
    """
    if node.domain == "bnpass" or opset >= 14:
        return bool(node.attributes.get_int("training_mode", 0))
    if opset < 7:
        return not node.attributes.get_int("is_test", 0)
    return any(v.name for v in node.outputs[1:])
