"""Whole layers, with every argument that their classes have, as our operators and plain ONNX around them."""
