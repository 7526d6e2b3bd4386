"""tf2onnx's optimizer of Transposes, made quick: what it leaves, and what it does only once."""

from typing import Any
from unittest import mock

import numpy as np
import pytest

from bnpass.exporting.model import export_model
from bnpass.exporting.options import ExportOptions
from tests.unit.exporting.running import QUIET, first, keras_of, ops, sequence, session

pytestmark = [pytest.mark.keras, QUIET]


def excited(keras: Any) -> Any:
    """Return a model of squeeze and excitation, whose Transposes of 1×1 images move nothing."""
    L = keras.layers
    image = L.Input((8, 8, 4))
    x = L.Conv2D(4, 3, padding="same")(image)
    for _ in range(2):
        squeezed = L.GlobalAveragePooling2D(keepdims=True)(x)
        x = L.Multiply()([x, L.Conv2D(4, 1, activation="hard_sigmoid")(L.Conv2D(2, 1, activation="relu")(squeezed))])
    return keras.Model(image, L.Flatten()(L.GlobalAveragePooling2D(keepdims=True)(x)))


def test_transposes_that_move_nothing_cancel_before_they_become_reshapes() -> None:
    model = excited(keras_of("keras"))
    exported = export_model(model, ExportOptions()).model
    assert ops(exported).count("Transpose") == 1, "that of the image"
    assert ops(exported).count("Reshape") <= 1
    x = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 4)).astype(np.float32)
    np.testing.assert_allclose(first(session(exported), x), model(x), rtol=1e-4, atol=1e-5)


def test_depthwise_convolutions_cost_no_sort_each() -> None:
    from tf2onnx.graph import Graph

    def sorts(count: int) -> int:
        keras = keras_of("keras")
        model = sequence(keras, (8, 8, 4), *(keras.layers.DepthwiseConv2D(3, padding="same") for _ in range(count)))
        with mock.patch.object(Graph, "topological_sort", autospec=True, side_effect=Graph.topological_sort) as sort:
            export_model(model, ExportOptions())
        return int(sort.call_count)

    assert sorts(6) == sorts(2)
