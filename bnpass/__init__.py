"""Batch normalization between training and deployment, for ONNX."""

__version__ = "0.1.0"
