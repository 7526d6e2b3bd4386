"""Training batch normalization written out: moments, AllReduce and plain ONNX, forward and backward."""
