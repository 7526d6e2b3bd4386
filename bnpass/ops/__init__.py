"""The operators of the ONNX domain ``bnpass``: their schemas, their portable bodies, and whole layers made of them."""

import re

DOMAIN = "bnpass"
"""The ONNX domain of the operators."""

VERSION = 1
"""The version of that domain."""

MIN_OPSET = 14
"""The oldest opset in which bodies and expansions are written: from it on, no op that they use changed its meaning."""

GROUP_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""What the name of a group looks like; the empty one stands for a replica alone."""
