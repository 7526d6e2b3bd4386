"""The operators of the ONNX domain ``bnpass``: their schemas, their portable bodies, and whole layers made of them."""

DOMAIN = "bnpass"
"""The ONNX domain of the operators."""

VERSION = 1
"""The version of that domain."""

MIN_OPSET = 14
"""The oldest opset in which bodies and expansions are written: from it on, no op that they use changed its meaning."""
