"""Read training-mode batch normalization as inference, on request only.

The node then normalizes with its stored statistics. It must not have been asked for updated ones.
"""

import onnx_ir as ir

from bnpass.graph.batch_norm import in_training, is_batch_norm
from bnpass.graph.nodes import malformed, scopes


def set_inference_mode(model: ir.Model) -> bool:
    """Switch every training-mode batch normalization whose statistics outputs nobody reads; return whether any was."""
    changed = False
    for scope in scopes(model):
        for node in ir.traversal.RecursiveGraphIterator(scope.graph):
            if not is_batch_norm(node) or malformed(node) is not None or not in_training(node, scope.opset):
                continue
            if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
                continue
            node.resize_outputs(1)
            if node.domain == "bnpass" or scope.opset >= 14:
                node.attributes["training_mode"] = ir.AttrInt64("training_mode", 0)
            elif scope.opset < 7:
                node.attributes["is_test"] = ir.AttrInt64("is_test", 1)
            changed = True
    return changed
