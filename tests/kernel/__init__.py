"""The kernels in ONNX Runtime, against the reference, the bodies and frameworks."""
