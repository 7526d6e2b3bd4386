"""What batch normalization means, in NumPy: no graph, no ONNX."""
