"""What the tests of whole models share: small models, and how their nodes are counted."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bnpass.exporting.model import Exported
from bnpass.ops import DOMAIN

MARKS = [
    pytest.mark.keras,
    # of TensorFlow, tf_keras and tf2onnx themselves, which nobody here can heed
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

NORMS = {"BatchNormalization", "SyncBatchNormalization"}
X = np.zeros((4, 6), np.float32)
IMAGE = np.zeros((3, 4, 4, 3), np.float32)


def norms(model: ir.Model) -> list[ir.Node]:
    """Return the nodes that normalize, of the graph and its subgraphs; bodies of functions are not looked at."""
    return [node for node in ir.traversal.RecursiveGraphIterator(model.graph) if node.op_type in NORMS]


def has_calls(exported: tuple[Exported, Exported], calls: int) -> None:
    """Assert that there is one node per call, in both exports, and no op that is neither ONNX's nor ours."""
    for one in exported:
        assert len(norms(one.model)) == calls == one.assembled.norms
        assert {node.domain for node in one.model.graph.all_nodes()} <= {"", DOMAIN}


def convolutional(keras: Any, **arguments: Any) -> list[Any]:
    """Return layers for images of 4 x 4 pixels: convolution and batch normalization, twice."""
    layers = keras.layers
    return [
        layers.Conv2D(4, 3, padding="same"),
        layers.BatchNormalization(**arguments),
        layers.ReLU(),
        layers.DepthwiseConv2D(2),
        layers.BatchNormalization(**arguments),
        layers.GlobalAveragePooling2D(),
        layers.Dense(2),
    ]
